"""How our captioning grows with the batch, the number of new tokens and of beams, in time and peak memory.

Each point is a process of its own, so that its peak memory is its own. `transformers` is measured at one point, for its
memory. Points of one series are taken in turn, `--repeats` times.

python benchmarks/scaling.py [--size base] [--repeats 3]
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from common import OURS, PEER, Results, arguments, checkpoint
from common import pixel_values as noise

SERIES = {
    "batch": [(batch, 5, 12) for batch in (1, 2, 4, 8, 16, 32)],
    "new tokens": [(4, 5, tokens) for tokens in (5, 10, 20, 40)],
    "beams": [(4, beams, 12) for beams in (1, 3, 5, 10)],
}


def measure(folder: str, side: str, batch: int, beams: int, tokens: int) -> None:
    """Print the seconds and the peak memory of one call, after a first one."""
    if side == OURS:
        from blip_lite import Captioner
        from blip_lite.model.generation import GenerationSettings, generate

        captioner = Captioner.from_pretrained(folder)
        model, device = captioner.model, captioner.model.device
        prompts = torch.tensor([captioner.processor.prompt_ids()] * batch, device=device)
        wanted = GenerationSettings(num_beams=beams, max_new_tokens=tokens, min_new_tokens=tokens)
        pixels = noise(batch, model.config.vision.image_size, str(device), model.dtype)

        def call() -> None:
            generate(model, pixels, prompts, wanted)
    else:
        from transformers import BlipForConditionalGeneration

        theirs = BlipForConditionalGeneration.from_pretrained(folder).eval()
        device, pixels = torch.device("cpu"), noise(batch, theirs.config.vision_config.image_size, "cpu", torch.float32)

        def call() -> None:
            theirs.generate(pixel_values=pixels, num_beams=beams, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)  # fmt: skip

    call()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    cuda = device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "gigabytes": memory / 1e9}))


def point(folder: str, side: str, *numbers: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--point", folder, side, *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    args = arguments(__doc__ or "")
    folder, results = str(checkpoint(args.size)), Results("scaling", args)
    for name, points in SERIES.items():
        found: dict[tuple[int, ...], list[dict[str, float]]] = {numbers: [] for numbers in points}
        for _ in range(args.repeats):
            for numbers in points:
                found[numbers].append(point(folder, OURS, *numbers))
        for numbers, runs in found.items():
            seconds = [run["seconds"] for run in runs]
            batch, beams, tokens = numbers
            median = statistics.median(seconds)
            results.add(
                f"{name}: batch {batch}, {beams} beams, {tokens} new tokens",
                "seconds",
                **{OURS: {"median": median, "least": min(seconds), "most": max(seconds)}},
                runs=len(runs),
                images_per_second=batch / median,
                peak_gigabytes=max(run["gigabytes"] for run in runs),
            )
    memory = point(folder, PEER, 8, 5, 12)["gigabytes"]
    results.add("memory: batch 8, 5 beams, 12 new tokens", "GB", **{PEER: memory})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--point"]:
        measure(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
    else:
        main()
