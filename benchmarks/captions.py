"""Captions per second, beside `transformers` on the same weights, and whether the tokens are the same.

python benchmarks/captions.py [--size base] [--device cpu] [--dtype float32] [--short] [--photos DIR]
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import OURS, PEER, Results, alternate, arguments, checkpoint, compare, cpuinfo, matmul_rate
from common import photographs as find_photographs
from common import pixel_values as noise
from PIL import Image

from blip_lite import Captioner
from blip_lite.captioning.bulk import caption_files
from blip_lite.model.flops import Flops
from blip_lite.model.generation import GenerationSettings, beam_search, generate, prefill

warnings.filterwarnings("ignore")
OPTIONS: dict[str, dict[str, Any]] = {"int8": {"quantize": "int8"}}
if any(instruction in "".join(cpuinfo()) for instruction in ("avx512_bf16", "amx_bf16")):  # elsewhere it is slower
    OPTIONS["bfloat16"] = {"dtype": "bfloat16"}


def load_both(size: str, device: str, dtype: torch.dtype) -> tuple[Captioner, Any]:
    """Ours and theirs, of one checkpoint."""
    from transformers import BlipForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    folder = checkpoint(size)
    theirs: Any = BlipForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(device).eval()
    return Captioner.from_pretrained(folder, device, dtype), theirs


def both(captioner: Captioner, theirs: Any, batch: int, **settings: Any) -> dict[str, Callable[[], torch.Tensor]]:
    """A call of each side that captions the same images, and gives its tokens `[batch, T]`."""
    model, wanted = captioner.model, GenerationSettings(**settings)
    pixels = noise(batch, model.config.vision.image_size, str(model.device), model.dtype)
    prompts = torch.tensor([captioner.processor.prompt_ids()] * batch, device=model.device)
    extra = {"early_stopping": wanted.early_stopping} if wanted.num_beams > 1 else {}

    def us() -> torch.Tensor:
        return generate(model, pixels, prompts, wanted).sequences[:, 0]

    def them() -> torch.Tensor:
        found: torch.Tensor = theirs.generate(
            pixel_values=pixels,
            num_beams=wanted.num_beams,
            max_new_tokens=wanted.max_new_tokens,
            min_new_tokens=wanted.min_new_tokens or None,
            do_sample=False,
            **extra,
        )
        return found

    return {PEER: them, OURS: us}


def same_tokens(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, str]:
    """The share of images with the same tokens, and how many these are."""
    same = sum(_text(a) == _text(b) for a, b in zip(ours.tolist(), theirs.tolist(), strict=True))
    lengths = (ours[:, 1:] != 0).sum(-1)
    return {"same_tokens": f"{same} of {len(ours)}", "tokens": f"{int(lengths.min())} to {int(lengths.max())}"}


def main() -> None:
    args = arguments(__doc__)
    from transformers import BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder, device = checkpoint(args.size), args.device
    results = Results("captions", args)
    ours, theirs = load_both(args.size, device, getattr(torch, args.dtype))

    fixed = {"max_new_tokens": 12, "min_new_tokens": 12}
    rows: list[tuple[str, int, dict[str, Any]]] = [
        ("5 beams, batch 8, 12 new tokens", 8, {"num_beams": 5, **fixed}),
        ("5 beams, batch 1, 12 new tokens", 1, {"num_beams": 5, **fixed}),
        ("greedy, batch 8, 12 new tokens", 8, {"num_beams": 1, **fixed}),
        ("greedy, batch 1, 12 new tokens", 1, {"num_beams": 1, **fixed}),
        ("5 beams, batch 8, ends by itself", 8, {"num_beams": 5, "max_new_tokens": 20}),
    ]
    for name, batch, settings in rows:
        if results.wants(name):
            sides = both(ours, theirs, batch, **settings)
            row = compare(alternate(sides, args.repeats, device), batch)
            results.add(name, "images/s", **row, **same_tokens(sides[OURS](), sides[PEER]()))

    if results.wants("floor"):
        floor(ours, args, results)
    if results.wants("file to caption"):
        images = 64 if args.size in ("tiny", "small") or device != "cpu" else 16
        processor = BlipProcessor(BlipImageProcessorPil.from_pretrained(folder), ours_tokenizer(folder))
        whole_path(ours, theirs, processor, find_photographs(args.photos, images), args, results, folder)
    if results.wants("agreement") and device == "cpu":
        agreement(ours, find_photographs(args.photos, 64), results, folder)


def agreement(captioner: Captioner, paths: list[str], results: Results, folder: Any) -> None:
    """How many captions of an option are word for word those of float32, eager."""
    settings = {"num_beams": 5, "max_new_tokens": 20}
    expected = captioner(paths, **settings)
    for name, option in OPTIONS.items():
        found = Captioner.from_pretrained(folder, "cpu", **{"dtype": "float32", **option})(paths, **settings)
        same = sum(a == b for a, b in zip(found, expected, strict=True))
        pairs = [(x, y) for a, b in zip(found, expected, strict=True) for x, y in zip(a.split(), b.split())]
        results.add(
            f"agreement with float32: {name}",
            "captions",
            same=f"{same} of {len(paths)}",
            same_words=sum(x == y for x, y in pairs) / len(pairs),
        )


def _text(ids: list[int]) -> list[int]:
    """Up to `[SEP]` (id 3 in these checkpoints): what follows is padding, which `transformers` writes as `[SEP]`."""
    return ids[: ids.index(3)] if 3 in ids else ids


def ours_tokenizer(folder: Any) -> Any:
    from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(folder)


def floor(captioner: Captioner, args: Any, results: Results) -> None:
    """Achieved share of the machine's own matrix-multiply rate, for each part of captioning 8 images."""
    model, device, dtype = captioner.model, args.device, getattr(torch, args.dtype)
    rate, count = matmul_rate(device, dtype), Flops.of(model.config)
    token = count.token + count.head  # a look at the few tokens before it is left out
    pixels = noise(8, model.config.vision.image_size, device, dtype)
    prompts = torch.tensor([captioner.processor.prompt_ids()] * 8, device=device)
    with torch.inference_mode():
        embeds = model.encode(pixels)
        settings = GenerationSettings(max_new_tokens=12, min_new_tokens=12)
        parts = {
            "encode": (lambda: model.encode(pixels), 8 * count.encode),
            "prefill": (lambda: prefill(model, embeds, prompts, 60), 8 * (count.cross + token)),
            "prefill and 11 steps of 5 beams": (
                lambda: beam_search(model, embeds, prompts, settings),
                8 * (count.cross + 56 * token),
            ),
        }
        for name, (call, work) in parts.items():
            seconds = alternate({OURS: call}, args.repeats, device)
            row = compare(seconds, work / 1e9)
            results.add(
                f"floor: {name}",
                "GFLOP/s",
                blip_lite=row[OURS],
                machine=rate / 1e9,
                share=row[OURS]["median"] * 1e9 / rate,
            )


def whole_path(
    captioner: Captioner, theirs: Any, processor: Any, paths: list[str], args: Any, results: Results, folder: Any
) -> None:
    """Files to captions: our `caption_files`, and the loops people write around `generate`."""
    device, dtype = args.device, getattr(torch, args.dtype)
    settings = {"num_beams": 5, "max_new_tokens": 20, "early_stopping": True}
    found: dict[str, list[str]] = {}

    def load(part: list[str]) -> torch.Tensor:
        images = [Image.open(p).convert("RGB") for p in part]
        return processor.image_processor(images, return_tensors="pt")["pixel_values"]

    def obvious() -> None:
        found[PEER] = []
        for start in range(0, len(paths), 8):
            pixels = load(paths[start : start + 8]).to(device, dtype)
            tokens = theirs.generate(pixel_values=pixels, **settings)
            found[PEER] += processor.batch_decode(tokens, skip_special_tokens=True)

    def loader() -> None:
        captions = []
        batches = torch.utils.data.DataLoader(paths, batch_size=8, num_workers=2, collate_fn=load)
        for pixels in batches:
            tokens = theirs.generate(pixel_values=pixels.to(device, dtype), **settings)
            captions += processor.batch_decode(tokens, skip_special_tokens=True)

    def us() -> None:
        found[OURS] = [r.captions[0] for r in caption_files(captioner, paths, batch_size=8, **settings)]

    sides = {PEER: obvious, f"{PEER} + DataLoader": loader, OURS: us}
    if device == "cpu":
        for name, option in OPTIONS.items():
            other = Captioner.from_pretrained(folder, "cpu", **{"dtype": dtype, **option})
            sides[f"{OURS} {name}"] = lambda other=other: list(caption_files(other, paths, batch_size=8, **settings))
    row = compare(alternate(sides, args.repeats, device), len(paths))
    same = sum(a == b for a, b in zip(found[OURS], found[PEER], strict=True))
    results.add(
        f"file to caption, {len(paths)} photographs, 5 beams",
        "images/s",
        **row,
        same_captions=f"{same} of {len(paths)}",
    )


if __name__ == "__main__":
    main()
