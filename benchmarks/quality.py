"""Quality per hour: the validation BLEU that our loop reaches on the drawn scenes, with all captions of an image at each visit and
with one, and what the usual way (`Seq2SeqTrainer`, rows of one image and one caption, batch 8, accumulation 2) reaches in the
same training time; from the same random weights, with the same peak learning rate and decay.

All train on the same images; theirs has the pixels ready, ours draws them. Seconds are of training alone, validations left
out; the runs follow each other for each seed.

python benchmarks/quality.py --repeats 3    (seeds; the model is `tiny`, on the CPU)
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from common import OURS, PEER, Results, arguments

from blip_lite.captioner import Captioner
from blip_lite.data.load import load_data
from blip_lite.evaluation import metrics
from blip_lite.model.generation import GenerationSettings
from blip_lite.model.pretrained import load_pretrained, load_weights, save_pretrained
from blip_lite.settings import TrainConfig
from blip_lite.training.loop import train
from blip_lite.training.setup import build_model

warnings.filterwarnings("ignore")
# captions of an image at each visit (None: all five), images a step, epochs: some minute each
WAYS = {OURS: (None, 4, 4), f"{OURS}, one caption a visit": (1, 16, 8)}
HELD_OUT, RATE, WARMUP, DECAY = 100, 1.5e-3, 0.05, 0.05


def bleu(folder: Path, weights: dict[str, torch.Tensor] | None, examples: list[Any]) -> float:
    """Validation sacreBLEU of a checkpoint, or of other weights in its place."""
    model, processor = load_pretrained(folder)
    if weights is not None:
        load_weights(model, weights, "the other side")
    settings, captions = GenerationSettings(num_beams=5, max_new_tokens=30), []
    for at in range(0, len(examples), 50):
        pixels = processor.pixel_values([e.image() for e in examples[at : at + 50]])
        captions += [row[0] for row in Captioner(model, processor).caption_pixels(pixels, settings)]
    return float(metrics.sacrebleu(captions, [e.captions for e in examples])["score"])


def ours(folder: Path, run: Path, seed: int, captions: int | None, batch: int, epochs: int) -> tuple[Path, float]:
    """Train; the last checkpoint and the seconds of training."""
    train(
        TrainConfig.of(
            dataset="shapes",
            model=str(folder),
            output_dir=str(run),
            seed=seed,
            epochs=epochs,
            batch_size=batch,
            captions_per_image=captions,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
            learning_rate=RATE,
            warmup_ratio=WARMUP,
            weight_decay=DECAY,
            num_workers=0,
            logging_steps=1,
            max_eval_images=10,
            num_beams=1,
        )
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    seconds = sum(line["seconds_per_step"] for line in lines if "loss" in line)
    return sorted(run.glob("checkpoint-*"))[-1], seconds


class Rows(torch.utils.data.Dataset[Any]):
    """Rows of one image and one caption."""

    def __init__(self, examples: list[Any], processor: Any) -> None:
        self.pixels = processor.pixel_values([e.image() for e in examples])
        self.rows = [(i, processor.encode(c)) for i, e in enumerate(examples) for c in e.captions]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, ids = self.rows[index]
        return {"pixel_values": self.pixels[image], "ids": ids}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["ids"]) for row in rows)
    ids = torch.tensor([row["ids"] + [0] * (longest - len(row["ids"])) for row in rows])
    mask = torch.tensor([[1] * len(row["ids"]) + [0] * (longest - len(row["ids"])) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    pixels = torch.stack([row["pixel_values"] for row in rows])
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "labels": labels}


def theirs(folder: Path, data: Rows, steps: int, seed: int, work: str) -> tuple[Any, float]:
    """Train that many optimizer steps; the model and the seconds."""
    from transformers import BlipForConditionalGeneration, Seq2SeqTrainer, Seq2SeqTrainingArguments

    settings = Seq2SeqTrainingArguments(
        output_dir=work,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_steps=steps,
        learning_rate=RATE,
        warmup_steps=int(WARMUP * steps),
        weight_decay=DECAY,
        seed=seed,
        save_strategy="no",
        report_to="none",
        logging_steps=10_000,
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    model = BlipForConditionalGeneration.from_pretrained(folder)
    trainer = Seq2SeqTrainer(model=model, args=settings, train_dataset=data, data_collator=collate)
    start = time.perf_counter()
    trainer.train()
    return model, time.perf_counter() - start


def main() -> None:
    args = arguments(__doc__ or "")
    args.size = "tiny"
    from transformers.utils import logging

    logging.set_verbosity_error()
    results = Results("quality", args)
    for seed in range(args.repeats):
        with tempfile.TemporaryDirectory() as work:
            config = TrainConfig.of(dataset="shapes", model="tiny", seed=seed).resolved()
            data = load_data(config.data, config.optimisation.seed)
            model, processor = build_model(config, data)
            folder, held_out = Path(work) / "start", data.splits["validation"][:HELD_OUT]
            save_pretrained(model, processor, folder)
            reached: dict[str, float] = {}
            seconds: dict[str, float] = {}
            visits: dict[str, int] = {}
            for number, (name, way) in enumerate(WAYS.items()):
                last, seconds[name] = ours(folder, Path(work) / f"run-{number}", seed, *way)
                reached[name] = bleu(last, None, held_out)
                visits[name] = way[2] * len(data.splits["train"])

            rows = Rows(data.splits["train"], processor)
            (_, short), (_, longer) = (theirs(folder, rows, count, seed, work) for count in (20, 80))
            steps = int(max(seconds.values()) / ((longer - short) / 60))  # a step's time without the start's
            other, seconds[PEER] = theirs(folder, rows, steps, seed, work)
            reached[PEER], visits[PEER] = bleu(folder, other.state_dict(), held_out), 16 * steps
            results.add(
                f"seed {seed}",
                "validation sacreBLEU",
                **reached,
                seconds={name: round(value, 1) for name, value in seconds.items()},
                images_visited=visits,
            )


if __name__ == "__main__":
    main()
