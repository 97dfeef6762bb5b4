"""Training steps of `small` on a CPU in turn: float32, bfloat16, and bfloat16 with attention in bfloat16, too.

python benchmarks/attention.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F

from blip_lite.model import blip
from blip_lite.model.from_scratch import PRESETS, from_scratch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    model, _ = from_scratch("small", ["a dog runs"], 0)
    size = PRESETS["small"][0].image_size
    pixel_values = torch.randn(16, 3, size, size, generator=generator)
    input_ids = torch.randint(5, 20, (16, 5, 20), generator=generator)  # five captions an image, of 12 words
    labels = input_ids.clone()
    labels[:, :, 0] = labels[:, :, 13:] = blip.IGNORE
    model.train()

    def step(bfloat16: bool, attention: Callable[..., torch.Tensor]) -> float:
        began = time.process_time()
        with mock.patch.object(blip, "attention", attention), torch.autocast("cpu", torch.bfloat16, bfloat16):
            loss, targets = model(pixel_values, input_ids, labels)
        (loss / targets).backward()
        model.zero_grad()
        return time.process_time() - began

    def torchs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: None = None, **options: object) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, **options)  # type: ignore[arg-type]

    ways = {
        "float32": (False, blip.attention),
        "bfloat16": (True, blip.attention),
        "bfloat16, attention too": (True, torchs),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            seconds = step(*way)
            if turn:  # the first is to warm up
                times[name].append(seconds)
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["float32"], found, strict=True))
        print(f"{name:24} {statistics.median(found):.2f} s [{min(found):.2f}, {max(found):.2f}]  {ratio:.2f}x")


if __name__ == "__main__":
    main()
