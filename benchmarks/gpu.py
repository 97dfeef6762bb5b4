"""All that is to be known of a GPU, in one command: is it right, how fast is it, how much memory does it take, beside
`transformers` (`generate`, `Seq2SeqTrainer`) in the same process, on the same random weights. Nothing is downloaded.

python benchmarks/gpu.py [--minutes 9] [--resume] [--data_dir DIR]

The most important comes first, and each row is on disk when it is done, so that a run that is cut off keeps what it
has; `--resume` goes on after it. No part is begun that would probably not end within `--minutes`. Writes JSON, a table
in Markdown and a picture under `results/`. On a machine without a GPU, `--short` takes a tiny shape, which shows that
the script works, and nothing else.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # of several, `Seq2SeqTrainer` would take all, and ours one

import captions as captioning
import table
import torch
import training
from common import HERE, OURS, PEER, Results, alternate, arguments, checkpoint, compare, matmul_rate, wait
from common import pixel_values as noise

from blip_lite.captioner import pick_dtype
from blip_lite.data.batches import workers_by_cores
from blip_lite.model import graphs
from blip_lite.model.flops import peak_flops
from blip_lite.model.pretrained import load_pretrained
from blip_lite.settings import TrainConfig
from blip_lite.storage import read_metrics
from blip_lite.training.loop import train

warnings.filterwarnings("ignore")
load_both = functools.lru_cache(maxsize=1)(captioning.load_both)
VARIANTS = ("checkpointing in neither", "checkpointing in both")
RECIPE_STEPS = 60  # of the user's recipe, the first third left out: workers start, memory is asked for


class Budget:
    """Minutes, and what the rows took so far."""

    def __init__(self, minutes: float) -> None:
        self.end, self.longest = time.monotonic() + 60 * minutes, dict[str, float]()

    def allows(self, kind: str) -> bool:
        """Whether one more row of a kind will probably end in time: it takes at most twice what the longest took."""
        return time.monotonic() + 2 * self.longest.get(kind, 15) < self.end

    def spent(self, kind: str, seconds: float) -> None:
        self.longest[kind] = max(seconds, self.longest.get(kind, 0))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=9, help="begin nothing that would end later (default: 9)")
    parser.add_argument("--resume", action="store_true", help="keep the rows of an earlier run; make the others")
    parser.add_argument("--data_dir", type=Path, help="a folder in Flickr8k's layout: the user's own recipe, too")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="where to write (default: results/)")
    args = arguments(__doc__, parser)
    if args.device == "cpu" and not args.short:
        raise SystemExit("there is no GPU here; --short takes a tiny shape on the CPU, to see that this script works")
    sizes = ["tiny"] if args.short else ["base", "large"]
    args.repeats, args.size = min(args.repeats, 2 if args.short else 3), "-".join(sizes)
    fast = pick_dtype("auto", torch.device(args.device))
    args.dtype = str(fast).removeprefix("torch.")
    budget, results = Budget(args.minutes), Results("gpu", args, args.output)

    for kind, name, unit, measure in parts(args, sizes, fast):
        if not results.wants(name):
            continue
        if not budget.allows(kind):
            print(f"{name}: left out, no time", flush=True)
            continue
        began = time.monotonic()
        if not kind.startswith("captions"):
            load_both.cache_clear()  # memory
        try:
            row = measure()
        except torch.OutOfMemoryError as error:
            row = {"failed": str(error).split(". ")[0]}
        gc.collect()
        if args.device != "cpu":
            torch.cuda.empty_cache()
        budget.spent(kind, time.monotonic() - began)
        results.add(name, unit, **row)
        write(results.path)


def write(path: Path) -> None:
    """The table and the picture of what is there so far."""
    path.with_suffix(".md").write_text(table.table(path), "utf-8")
    if bars := table.ratios(path):
        table.draw(bars, path.with_suffix(".png"), path.stem)


def parts(args: Any, sizes: list[str], fast: torch.dtype) -> list[tuple[str, str, str, Callable[[], dict[str, Any]]]]:
    """What is measured, the most important first: kind, name, unit and how."""
    found: list[tuple[str, str, str, Callable[[], dict[str, Any]]]] = []
    batches = (8, 1) if args.short else (64, 8, 1, 256)
    kinds = [torch.float32] if args.device == "cpu" else [torch.float32, fast, torch.float16]
    for dtype in dict.fromkeys(kinds):
        name = str(dtype).removeprefix("torch.")
        found.append(("right", f"right: {sizes[0]}, {name}", "8 images", lambda d=dtype: right(sizes[0], args, d)))
    found.append(("waits", "waits: a tiny model", "waits", lambda: waits(args)))
    for size in sizes:
        if size != sizes[0]:
            found.append(("right", f"right: {size}, {args.dtype}", "8 images", lambda s=size: right(s, args, fast)))
        for beams in (5, 1):
            found += [
                (f"captions {size}", f"captions: {size}, {args.dtype}, {beams} beams, batch {batch}", "images/s",
                 lambda s=size, n=batch, b=beams: speed(s, args, fast, n, b))
                for batch in batches
            ]  # fmt: skip
        found += [
            (f"training {size}", f"training: {size}, {args.dtype}, {variant}", "pairs/s",
             lambda s=size, v=variant: steps(s, args, fast, v))
            for variant in VARIANTS
        ]  # fmt: skip
        if args.data_dir and size == sizes[0]:
            found.append(("recipe", f"recipe: {size}, {args.data_dir.name}", "pairs/s", lambda s=size: recipe(s, args)))
    return found


def right(size: str, args: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Tokens and losses beside those of `transformers`. In half precision close calls may fall otherwise."""
    ours, theirs = captioning.load_both(size, args.device, dtype)
    row: dict[str, Any] = {}
    for beams in (5, 1):
        sides = captioning.both(ours, theirs, 8, num_beams=beams, max_new_tokens=20)
        row[f"{beams} beams"] = captioning.same_tokens(sides[OURS](), sides[PEER]())["same_tokens"]
    ids = training.captions(8, ours.model.config.text.vocab_size).to(args.device)
    labels = training.targets_of(ids)
    pixels = noise(8, ours.model.config.vision.image_size, args.device, dtype)
    with torch.no_grad():
        loss, targets = ours.model(pixels, ids, labels)
        their_pixels = pixels.repeat_interleave(training.CAPTIONS, 0)
        their_loss = theirs(pixel_values=their_pixels, input_ids=ids.flatten(0, 1), labels=labels.flatten(0, 1)).loss
    row |= {"loss": (loss / targets).item(), "loss of transformers": their_loss.item()}
    return row


def waits(args: Any) -> dict[str, Any]:
    """How often decoding makes the host wait for the emulated GPU of our tests, and for the one here."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from emulated_gpu import EmulatedGPU
    from test_gpu import SETTINGS, decode, real_waits

    row: dict[str, Any] = {}
    for name, settings in SETTINGS.items():
        with EmulatedGPU() as gpu:
            call = decode(settings, "cuda")
            with gpu.counting() as counted:
                call()
        row[name] = f"{sum(counted.values())} emulated"
        if args.device != "cpu":
            call = decode(settings, args.device)
            call()
            row[name] += f", {real_waits(call)} here"
    return row


def speed(size: str, args: Any, dtype: torch.dtype, batch: int, beams: int) -> dict[str, Any]:
    """Captions a second of both sides, and the memory that each takes; and of ours with recorded steps."""
    ours, theirs = load_both(size, args.device, dtype)
    sides = captioning.both(ours, theirs, batch, num_beams=beams, max_new_tokens=20)
    row, found = compare(alternate(sides, args.repeats, args.device), batch), {}
    for side, call in sides.items():
        if args.device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        found[side] = call()
        if args.device != "cpu":  # both models lie there
            row[f"{side}_peak_GB_beside_the_other_model"] = torch.cuda.max_memory_reserved() / 1e9
    row |= captioning.same_tokens(found[OURS], found[PEER])
    ours.model.recorded_search = graphs.search
    try:
        recorded = compare({OURS: alternate({"": sides[OURS]}, args.repeats, args.device)[""]}, batch)[OURS]
        same = captioning.same_tokens(sides[OURS](), found[OURS])["same_tokens"]
        return row | {"cuda_graphs": recorded, "cuda_graphs_same_tokens": same}
    except RuntimeError as error:  # no GPU has recorded them yet
        return row | {"cuda_graphs": f"failed: {error}"}
    finally:
        ours.model.recorded_search = None


def steps(size: str, args: Any, dtype: torch.dtype, variant: str) -> dict[str, Any]:
    """Training, one step of each side in turn: theirs on pairs, ours on images with five captions."""
    images, batch = (4, 8) if args.short else (16, 64)
    seconds, pairs = training.alternating(size, args, variant, 3 if args.short else 10, images, batch)
    row = compare(seconds, 1.0)
    row["images/s"] = row[OURS]["median"] / training.CAPTIONS
    row["batch"] = f"{batch} pairs, {images} images"
    model, _ = load_pretrained(checkpoint(size))
    work = training.pair_flops(model) * row[OURS]["median"]
    peak = peak_flops(torch.device(args.device), dtype)
    if peak:
        row["MFU"] = work / peak
    row["share_of_measured_matrix_rate"] = work / matmul_rate(args.device, dtype)
    if args.device != "cpu":  # on a CPU the peak is the process's, which has had both
        row |= {f"{side}_peak_GB": training.memory(size, args, variant, side, images, batch) for side in (OURS, PEER)}
    return row


def recipe(size: str, args: Any) -> dict[str, Any]:
    """The user's own: photographs from the disk, workers, their own precision; ours as `train.py` runs it, theirs as
    `Seq2SeqTrainer` does on rows of one image and caption, as many at a time. Both without their first third."""
    from transformers import TrainerCallback

    most = 6 if args.short else RECIPE_STEPS
    first, batch = most // 3, 8 * training.CAPTIONS
    with tempfile.TemporaryDirectory() as run:
        config = TrainConfig.of(
            dataset="flickr8k", data_dir=str(args.data_dir), model=str(checkpoint(size)), output_dir=f"{run}/run",
            max_steps=most, logging_steps=first, max_eval_images=2, num_beams=1, max_new_tokens=5,
        )  # fmt: skip
        train(config)
        logged = [line for line in read_metrics(Path(run, "run")) if "images_per_second" in line][1:]
    rate = len(logged) / sum(1 / line["images_per_second"] for line in logged)
    times: dict[int, float] = {}

    class Clock(TrainerCallback):
        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step in (first, most):
                wait(args.device)
                times[state.global_step] = time.perf_counter()

    training.their_trainer(
        size, args, True, False, most, [Clock()], batch, training.Photographs(size, args.data_dir),
        dataloader_num_workers=workers_by_cores(),
    ).train()  # fmt: skip
    rates = {OURS: rate * training.CAPTIONS, PEER: batch * (most - first) / (times[most] - times[first])}
    row: dict[str, Any] = {side: {"median": r, "least": r, "most": r} for side, r in rates.items()}
    return row | {"ratio": rates[OURS] / rates[PEER], "images/s": rate, "MFU": logged[-1]["mfu"] or "unknown"}


if __name__ == "__main__":
    main()
