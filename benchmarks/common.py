"""What every benchmark shares: the checkpoints, alternating timings, floating-point operations by formula, results.

Sizes are shapes, not weights: random weights (nothing is downloaded), with a `[SEP]` bias found so that
captions end after 8 to 15 tokens, as real ones do. `transformers` makes and saves the checkpoint; both sides load it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
OURS, PEER = "blip_lite", "transformers"

# (vision hidden, layers, heads, image size, patch; text hidden, layers, heads, vocabulary)
SHAPES: dict[str, tuple[int, ...]] = {
    "tiny": (96, 4, 4, 64, 8, 96, 2, 4, 120),  # the preset of the embedded default
    "small": (384, 6, 6, 224, 16, 384, 6, 6, 8000),  # of --short
    "base": (768, 12, 12, 384, 16, 768, 12, 12, 30524),  # Salesforce/blip-image-captioning-base
    "large": (1024, 24, 16, 384, 16, 768, 12, 12, 30524),  # Salesforce/blip-image-captioning-large
}


def arguments(description: str | None, parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """The options every benchmark takes, and those of `parser`."""
    parser = parser or argparse.ArgumentParser()
    parser.description = description
    parser.add_argument("--size", choices=list(SHAPES), default="base", help="shape of the model (default: base)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=int, default=5, help="timings of each side, alternating (default: 5)")
    parser.add_argument("--short", action="store_true", help="the small shape and fewer rows: minutes on 2 cores")
    parser.add_argument("--photos", type=Path, help="a folder of photographs; default: drawn pictures")
    parser.add_argument("--rows", default="", help="only rows whose name holds this")
    args = parser.parse_args()
    if args.short:
        args.size = "small"
    return args


# --------------------------------------------------------------------------------------- checkpoints


def checkpoint(size: str) -> Path:
    """The directory of a random checkpoint that `transformers` saved; made once."""
    folder = CACHE / size
    if (folder / "ready").exists():
        return folder
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    vd, vl, vh, image, patch, td, tl, th, vocab = SHAPES[size]
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(vocab - 7))]
    (folder / "words.txt").write_text("\n".join(words), "utf-8")
    config = BlipConfig(
        vision_config={
            "hidden_size": vd,
            "intermediate_size": 4 * vd,
            "num_hidden_layers": vl,
            "num_attention_heads": vh,
            "image_size": image,
            "patch_size": patch,
            "initializer_range": 0.02,  # the class default of 1e-10 makes the image irrelevant
        },
        text_config={
            "vocab_size": vocab,
            "hidden_size": td,
            "intermediate_size": 4 * td,
            "num_hidden_layers": tl,
            "num_attention_heads": th,
            "bos_token_id": vocab - 2,
            "sep_token_id": 3,
            "pad_token_id": 0,
            "eos_token_id": 3,
        },
    )
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config).eval()
    with torch.no_grad():  # wider weights: the next word depends on the image and on the words before it
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                wide = 3.0 if "text_decoder.bert.embeddings" in name else 1.5 if size in ("base", "large") else 2.5
                parameter.mul_(wide)
    model.save_pretrained(folder)
    tokenizer = BertTokenizer(vocab=str(folder / "words.txt"))
    BlipProcessor(BlipImageProcessorPil(size={"height": image, "width": image}), tokenizer).save_pretrained(folder)
    head = model.text_decoder.cls.predictions.decoder
    head.weight.data[3], head.bias.data[3] = _learn_to_end(folder)
    model.save_pretrained(folder)
    (folder / "ready").touch()
    return folder


def _learn_to_end(folder: Path) -> tuple[torch.Tensor, float]:
    """A `[SEP]` embedding and bias with which captions end after 8 to 15 tokens.

    The embedding points from what the decoder's state is early in a caption to what it is late, so that ending grows
    likelier with the position; the bias is bisected until 5-beam captions of 8 pictures have 11 tokens on average.
    """
    from blip_lite.model.generation import GenerationSettings, generate
    from blip_lite.model.pretrained import load_pretrained

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = load_pretrained(folder, torch.device(device), torch.float32)
    pixels = pixel_values(8, model.config.vision.image_size, device)
    prompt = torch.tensor([processor.prompt_ids()] * 8, device=device)
    free = GenerationSettings(max_new_tokens=20, min_new_tokens=20, num_beams=1)
    predictions = model.text_decoder.cls.predictions
    with torch.inference_mode():
        ids = generate(model, pixels, prompt, free).sequences
        states = predictions.transform(model.decode(ids, model.encode(pixels)))[:, 0]  # [I, 21, D]
        late, early = states[:, 12:].mean((0, 1)), states[:, 1:6].mean((0, 1))
        rise = (late - early) @ (late - early)
        embedding = 12.0 * (late - early) / rise  # the logit rises by 12 from early to late
        predictions.decoder.weight[3] = embedding
    low, high = -60.0, 60.0
    for _ in range(12):
        middle = (low + high) / 2
        predictions.decoder.bias.data[3] = middle
        found = generate(model, pixels, prompt, GenerationSettings(max_new_tokens=20)).sequences[:, 0, 1:]
        length = (found != 0).sum(-1).float().mean().item()
        if 10 <= length <= 12:
            break
        low, high = (middle, high) if length > 11 else (low, middle)
    return embedding.cpu(), middle


def pixel_values(images: int, size: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Seeded pictures of noise at several scales, so that images differ, `[I, 3, S, S]`."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(images, 3, 6, 6, generator=generator)
    fine = torch.randn(images, 3, size, size, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") + 0.3 * fine
    return pixels.to(device, dtype)


def photographs(folder: Path | None, count: int) -> list[str]:
    """`count` JPEG files: the first of a folder, or drawn ones of 500 x 375 pixels."""
    if folder:
        found = sorted(str(p) for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))[:count]
        if len(found) < count:
            raise SystemExit(f"--photos {folder}: {len(found)} JPEG files, {count} needed")
        return found
    drawn = CACHE / "photos"
    drawn.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        if not (drawn / f"{i:04d}.jpg").exists():
            noise = np.random.default_rng(i).integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(drawn / f"{i:04d}.jpg")
    return [str(drawn / f"{i:04d}.jpg") for i in range(count)]


# ----------------------------------------------------------------------------------------- measuring


def alternate(sides: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each side's calls: one warm-up each, then in turn, the order reversed each time."""
    for call in sides.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(repeats):
        for name in list(sides)[:: -1 if i % 2 else 1]:
            wait(device)
            start = time.perf_counter()
            sides[name]()
            wait(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def wait(device: str) -> None:
    """Until the GPU has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """This machine's matrix-multiply rate in FLOP/s: the best of ten products of the model's own kind."""
    rows, inner, columns = (4616, 768, 3072) if device == "cpu" else (8192, 8192, 8192)
    a, b = torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(inner, columns, device=device, dtype=dtype)
    best = min(alternate({"": lambda: a @ b}, 10, device)[""])
    return 2 * rows * inner * columns / best


def peak_memory() -> float:
    """This process's peak memory in GB (`ru_maxrss` would begin with its parent's)."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def in_child(script: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark script in a process of its own; its last line is JSON."""
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# ------------------------------------------------------------------------------------------- results


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    import accelerate
    import transformers

    model = next((x.split(":")[1].strip() for x in cpuinfo() if x.startswith("model name")), platform.machine())
    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else model,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "python": platform.python_version(),
        "when": time.strftime("%Y-%m-%d"),
    }


def cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text("utf-8").splitlines() if path.exists() else []


def compare(seconds: dict[str, list[float]], work: float) -> dict[str, Any]:
    """A row of the table: work per second of each side (median, least, most) and the ratio of the medians."""
    rate = {name: [work / s for s in times] for name, times in seconds.items()}
    row: dict[str, Any] = {"runs": len(seconds[OURS])}
    for name, rates in rate.items():
        row[name] = {"median": statistics.median(rates), "least": min(rates), "most": max(rates)}
    peers = [name for name in rate if name.startswith(PEER)]
    # against the faster peer, where there are two
    best = max((row[p]["median"] for p in peers), default=float("nan"))
    row["ratio"] = row[OURS]["median"] / best
    row |= {f"ratio of {name}": row[name]["median"] / best for name in rate if name.startswith(f"{OURS} ")}
    return row


class Results:
    """Rows, printed as they come and kept in one JSON file a machine, script, size, device and type of number."""

    def __init__(self, script: str, args: argparse.Namespace, folder: Path = HERE / "results") -> None:
        kind = "cuda" if args.device.startswith("cuda") else "cpu"
        self.content: dict[str, Any] = {"machine": machine(args.device), "rows": {}}
        name = re.sub(r"\W+", "-", re.sub(r"\(.*?\)", "", self.content["machine"]["device"])).strip("-").lower()
        self.path = folder / name / f"{script}-{args.size}-{kind}-{args.dtype}.json"
        self.resume = getattr(args, "resume", False)
        if (args.rows or self.resume) and self.path.exists():  # some rows anew, the others as they were
            self.content["rows"] = json.loads(self.path.read_text("utf-8"))["rows"]
        self.wanted = args.rows
        print(json.dumps(self.content["machine"]))

    def wants(self, name: str) -> bool:
        return self.wanted in name and not (self.resume and name in self.content["rows"])

    def add(self, name: str, unit: str, **row: Any) -> None:
        self.content["rows"][name] = {"unit": unit, **row}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n", "utf-8")
        parts = [
            f"{key} {value['median']:.3g} ({value['least']:.3g} to {value['most']:.3g})"
            if isinstance(value, dict) and "median" in value
            else f"{key} {value:.3g}"
            if isinstance(value, float)
            else f"{key} {value}"
            for key, value in row.items()
        ]
        print(f"{name} [{unit}]: {'; '.join(parts)}", flush=True)
