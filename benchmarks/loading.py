"""Decoding and resizing: images a second of one worker, beside `transformers`' Pillow processor, and what Pillow's
`draft` mode (a JPEG decoded at 1/2, 1/4, 1/8 size) would gain and change.

python benchmarks/loading.py --photos DIR
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from common import OURS, PEER, Results, alternate, arguments, checkpoint, compare, photographs
from PIL import Image

from blip_lite.model.pretrained import load_pretrained


def main() -> None:
    args = arguments(__doc__)
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.set_num_threads(1)  # one worker
    folder = checkpoint(args.size)
    _, ours = load_pretrained(folder)
    theirs = BlipImageProcessorPil.from_pretrained(folder)
    files = [Path(p).read_bytes() for p in photographs(args.photos, 32)]
    sizes = [Image.open(io.BytesIO(f)).size for f in files]
    results = Results("loading", args)

    def open_all(draft: bool) -> list[Image.Image]:
        images = []
        for content in files:
            image = Image.open(io.BytesIO(content))
            if draft:
                image.draft("RGB", (ours.image_size, ours.image_size))
            images.append(image.convert("RGB"))
        return images

    seconds = alternate(
        {
            PEER: lambda: theirs(open_all(False), return_tensors="pt"),
            OURS: lambda: ours.pixel_values(files),
        },
        args.repeats,
        "cpu",
    )
    same = (theirs(open_all(False), return_tensors="pt")["pixel_values"] == ours.pixel_values(files)).all().item()
    size = f"{np.mean([w * h for w, h in sizes]) / 1e6:.2f} megapixels"
    results.add(
        f"decode and resize, {size}, 1 worker", "images/s", **compare(seconds, len(files)), same_pixels=str(same)
    )

    half = [i for i, (w, h) in enumerate(sizes) if min(w, h) >= 2 * ours.image_size]
    plain, draft = (ours.pixel_values(open_all(d)) for d in (False, True))
    gain = alternate({"plain": lambda: open_all(False), "draft": lambda: open_all(True)}, args.repeats, "cpu")
    results.add(
        "Pillow's draft mode",
        "decode only",
        speedup=float(np.median(gain["plain"]) / np.median(gain["draft"])),
        photographs_large_enough=f"{len(half)} of {len(files)}",
        mean_change_in_grey_levels=float((plain - draft).abs().mean() * 0.27 * 255),
        largest_change_in_grey_levels=float((plain - draft).abs().max() * 0.27 * 255),
    )


if __name__ == "__main__":
    main()
