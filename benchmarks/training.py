"""Training pairs per second and peak memory, beside `Seq2SeqTrainer` on the same weights and the same data.

A pair is one image with one of its captions. Theirs takes rows of one image and one caption, batch 8; ours takes
images with all five captions. Both: AdamW, clipping, the loss of `transformers` (no label smoothing), prepared pixels.

python benchmarks/training.py [--size base] [--device cpu] [--dtype float32] [--short]
"""

from __future__ import annotations

import gc
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from common import (
    CACHE,
    HERE,
    OURS,
    PEER,
    Results,
    arguments,
    checkpoint,
    compare,
    in_child,
    matmul_rate,
    peak_memory,
    pixel_values,
)

from blip_lite.data.load import load_data
from blip_lite.model.blip import IGNORE, Blip
from blip_lite.model.flops import training_flops
from blip_lite.model.pretrained import load_pretrained
from blip_lite.processing.images import open_image
from blip_lite.settings import DataSettings, OptimisationSettings, RegularisationSettings
from blip_lite.training.optimizer import build_optimizer

warnings.filterwarnings("ignore")

CAPTIONS, TOKENS = 5, 14  # an image has 5 captions; [DEC] + 12 words + [SEP], as Flickr8k's are on average
VARIANTS = {
    # name: (gradient checkpointing of theirs, of ours, frozen encoder)
    "checkpointing in both": (True, True, False),
    "checkpointing in neither": (False, False, False),
    "theirs with checkpointing, ours without": (True, False, False),
    "vision encoder frozen, features cached": (False, False, True),
}


def captions(images: int, vocabulary: int) -> torch.Tensor:
    """Random captions `[I, 5, 14]`, `[DEC]` first, `[SEP]` last."""
    ids = torch.randint(5, vocabulary - 3, (images, CAPTIONS, TOKENS), generator=torch.Generator().manual_seed(2))
    ids[:, :, 0], ids[:, :, -1] = vocabulary - 2, 3
    return ids


def targets_of(ids: torch.Tensor) -> torch.Tensor:
    """Labels: all but `[DEC]`."""
    labels = ids.clone()
    labels[:, :, 0] = IGNORE
    return labels


def our_step(size: str, args: Any, checkpointing: bool, frozen: bool, images: int) -> tuple[Any, int]:
    """A function that trains one step of `images` images with five captions each, and how many pairs that is."""
    model, _ = load_pretrained(checkpoint(size), args.device)
    model.gradient_checkpointing = checkpointing
    if frozen:
        model.freeze_vision()
    optimizer = build_optimizer(model, OptimisationSettings(learning_rate=1e-5), RegularisationSettings())
    pixels = pixel_values(images, model.config.vision.image_size, args.device)
    ids = captions(images, model.config.text.vocab_size).to(args.device)
    labels = targets_of(ids)
    dtype = getattr(torch, args.dtype)
    model.train()
    if frozen:  # the first epoch makes the features; all others read them
        with torch.no_grad():
            pixels = model.encode(pixels).half()

    def step() -> None:
        with torch.autocast(args.device.split(":")[0], dtype, enabled=dtype != torch.float32):
            loss, targets = model(pixels, ids, labels)
        (loss / targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, images * CAPTIONS


class Rows(torch.utils.data.Dataset[Any]):
    """Rows of one image and one caption, decoded beforehand."""

    def __init__(self, size: str) -> None:
        config = json.loads((checkpoint(size) / "config.json").read_text("utf-8"))
        self.pixels = pixel_values(8, config["vision_config"]["image_size"])
        self.ids = captions(8, config["text_config"]["vocab_size"])

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = self.ids[index % 8, index // 8 % CAPTIONS]
        return {"pixel_values": self.pixels[index % 8], "input_ids": ids, "labels": ids}


class Photographs(torch.utils.data.Dataset[Any]):
    """Rows of one photograph and one caption of a folder in Flickr8k's layout, as `transformers` prepares them; captions
    are padded to 30 tokens."""

    def __init__(self, size: str, folder: Path) -> None:
        from transformers import BertTokenizer
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        pictures = load_data(DataSettings(dataset="flickr8k", data_dir=str(folder)), 42).splits["train"]
        self.rows = [(picture, caption) for picture in pictures for caption in picture.captions]
        self.images = BlipImageProcessorPil.from_pretrained(checkpoint(size))
        self.tokenizer = BertTokenizer.from_pretrained(checkpoint(size))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        picture, caption = self.rows[index]
        text = self.tokenizer(caption, padding="max_length", truncation=True, max_length=30, return_tensors="pt")
        ids = text["input_ids"][0]
        pixels = self.images(open_image(picture.open()), return_tensors="pt")["pixel_values"][0]
        labels = ids.masked_fill(text["attention_mask"][0] == 0, IGNORE)
        return {"pixel_values": pixels, "input_ids": ids, "attention_mask": text["attention_mask"][0], "labels": labels}


def their_trainer(
    size: str,
    args: Any,
    checkpointing: bool,
    frozen: bool,
    steps: int,
    callbacks: list[Any],
    batch: int = 8,
    rows: torch.utils.data.Dataset[Any] | None = None,
    **changes: Any,
) -> Any:
    """On `rows`, or prepared ones; `changes` are of its arguments."""
    from transformers import BlipForConditionalGeneration, Seq2SeqTrainer, Seq2SeqTrainingArguments

    model: Any = BlipForConditionalGeneration.from_pretrained(checkpoint(size))
    if frozen:
        model.vision_model.requires_grad_(False)
    settings = Seq2SeqTrainingArguments(
        output_dir=str(CACHE / "trainer"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=1,
        gradient_checkpointing=checkpointing,
        max_steps=steps,
        learning_rate=1e-5,
        weight_decay=0.05,
        save_strategy="no",
        report_to="none",
        logging_steps=10_000,
        disable_tqdm=True,
        use_cpu=args.device == "cpu",
        bf16=args.dtype == "bfloat16",
        fp16=args.dtype == "float16",
        dataloader_pin_memory=args.device != "cpu",
        **changes,
    )
    return Seq2SeqTrainer(model=model, args=settings, train_dataset=rows or Rows(size), callbacks=callbacks)


def alternating(
    size: str, args: Any, variant: str, repeats: int, images: int = 4, batch: int = 8
) -> tuple[dict[str, list[float]], int]:
    """Inside their training loop on `batch` pairs at a time, after each of their steps, one of ours on the captions of
    `images` images: seconds of each, the first left out."""
    from transformers import TrainerCallback

    theirs, ours, frozen = VARIANTS[variant]
    step, pairs = our_step(size, args, ours, frozen, images)
    seconds: dict[str, list[float]] = {PEER: [], OURS: []}

    def now() -> float:
        if args.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    class Alternate(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[PEER].append(now() - self.begun)
            begun = now()
            step()
            seconds[OURS].append(now() - begun)

    trainer = their_trainer(size, args, theirs, frozen, repeats + 1, [Alternate()], batch)
    trainer.train()
    # seconds of one pair each, so that the two sides' different batches compare
    return {PEER: [s / batch for s in seconds[PEER][1:]], OURS: [s / pairs for s in seconds[OURS][1:]]}, pairs


def memory(size: str, args: Any, variant: str, side: str, images: int = 4, batch: int = 8) -> float:
    """Peak memory in GB of one side alone, two steps, in this process: on a GPU what torch reserved."""
    theirs, ours, frozen = VARIANTS[variant]
    if args.device != "cpu":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if side == OURS:
        step, _ = our_step(size, args, ours, frozen, images)
        step()
        step()
    else:
        their_trainer(size, args, theirs, frozen, 2, [], batch).train()
    return torch.cuda.max_memory_reserved() / 1e9 if args.device != "cpu" else peak_memory()


def pair_flops(model: Blip) -> float:
    """Useful work of a pair's forward and backward pass."""
    return training_flops(model, False, targets_of(captions(1, model.config.text.vocab_size))) / CAPTIONS


def floor(size: str, args: Any, seconds_per_pair: float) -> dict[str, float]:
    """Achieved share of the machine's matrix-multiply rate, in useful work: what checkpointing repeats is none."""
    model, _ = load_pretrained(checkpoint(size))
    work, rate = pair_flops(model), matmul_rate(args.device, getattr(torch, args.dtype))
    return {"GFLOP_a_pair": work / 1e9, "useful_share_of_matmul_rate": work / seconds_per_pair / rate}


def main() -> None:
    if "--memory" in sys.argv:  # a child process: --memory SIDE VARIANT, then the usual options
        at = sys.argv.index("--memory")
        side, variant = sys.argv[at + 1 : at + 3]
        del sys.argv[at : at + 3]
        args = arguments(__doc__)
        print("\n" + json.dumps({"gb": memory(args.size, args, variant, side)}))
        return
    args = arguments(__doc__)
    from transformers.utils import logging

    logging.set_verbosity_error()
    results = Results("training", args)
    options = ["--size", args.size, "--device", args.device, "--dtype", args.dtype]
    for variant in VARIANTS:
        if not results.wants(variant):
            continue
        seconds, pairs = alternating(args.size, args, variant, args.repeats)
        row = compare(seconds, 1.0)
        for side in (PEER, OURS):
            row[f"{side}_peak_GB"] = in_child("training.py", "--memory", side, variant, *options)["gb"]
        if not VARIANTS[variant][2]:
            row |= floor(args.size, args, 1 / row[OURS]["median"])
        results.add(variant, "pairs/s", **row, our_batch=f"{pairs // CAPTIONS} images with {CAPTIONS} captions")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(HERE)))
    main()
