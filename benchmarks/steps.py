"""Training steps of `small` on one thread of a CPU, in turn: by optimizer and precision, and what attention costs there.

python benchmarks/steps.py [--rounds 7]
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
from blip_lite.settings import OptimisationSettings, RegularisationSettings
from blip_lite.training.optimizer import build_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    size, generator = PRESETS["small"][0].image_size, torch.Generator().manual_seed(0)
    pixel_values = torch.randn(16, 3, size, size, generator=generator)
    input_ids = torch.randint(5, 20, (16, 5, 20), generator=generator)  # five captions an image, of 12 tokens
    labels = input_ids.clone()
    labels[:, :, 0] = labels[:, :, 13:] = blip.IGNORE

    def step(optimizer: str, dtype: torch.dtype, attention: Callable[..., torch.Tensor]) -> Callable[[], float]:
        model = from_scratch("small", ["a dog runs"], 0)[0].train()
        settings = OptimisationSettings(optimizer=optimizer, learning_rate=1e-4)
        updates = build_optimizer(model, settings, RegularisationSettings(), dtype)

        def seconds() -> float:
            began = time.process_time()
            with (
                mock.patch.object(blip, "attention", attention),
                torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16),
            ):
                loss, targets = model(pixel_values, input_ids, labels)
            (loss / targets).backward()
            updates.step()
            updates.zero_grad()
            return time.process_time() - began

        return seconds

    def torchs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: None = None, **options: object) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, **options)  # type: ignore[arg-type]

    ways = {
        "float32, AdamW": step("adamw", torch.float32, blip.attention),
        "float32, Muon": step("muon", torch.float32, blip.attention),
        "bfloat16, AdamW": step("adamw", torch.bfloat16, blip.attention),
        "bfloat16, Muon": step("muon", torch.bfloat16, blip.attention),
        "bfloat16, attention too, AdamW": step("adamw", torch.bfloat16, torchs),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            seconds = way()
            if turn:  # the first is to warm up
                times[name].append(seconds)
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["float32, AdamW"], found, strict=True))
        print(f"{name:31} {statistics.median(found):.2f} s [{min(found):.2f}, {max(found):.2f}]  {ratio:.2f}x")


if __name__ == "__main__":
    main()
