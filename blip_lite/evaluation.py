"""A split -> captions -> numbers -> files.

Captions are made from pixels alone: the examples that reach the model carry no references, which are kept in
another object until the scoring.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from blip_lite import metrics, report
from blip_lite.captioner import Captioner, pick_dtype
from blip_lite.checkpoint import newest
from blip_lite.config import ConfigError, EvalConfig, TrainConfig, read_run_config
from blip_lite.data import Batch, Captions, Example, epoch_batches, loader, subsample
from blip_lite.generation import GenerationSettings
from blip_lite.model import Blip
from blip_lite.processing import Processor
from blip_lite.sources import load_data


def decoding(config: TrainConfig, model: Blip, processor: Processor) -> GenerationSettings:
    """The decoding settings of a run. Raises ConfigError where this model cannot decode so."""
    names = ("max_new_tokens", "min_new_tokens", "num_beams", "length_penalty", "early_stopping")
    positions, text = len(processor.prompt_ids(config.prompt)) + config.max_new_tokens, model.config.text
    if positions > text.max_position_embeddings:
        raise ConfigError(
            f"prompt and --max_new_tokens take {positions} positions; the model has {text.max_position_embeddings}"
        )
    if config.num_beams > 1 and 2 * config.num_beams + 1 > text.vocab_size:
        raise ConfigError(f"--num_beams {config.num_beams} is too many for a vocabulary of {text.vocab_size} tokens")
    try:
        return GenerationSettings(**{name: getattr(config, name) for name in names})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def gather_captions(
    mine: list[tuple[str, str]], failed: dict[str, str], expected: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Put the processes' (image id, caption) pairs and failures together, captions in the split's order.

    Raises:
        RuntimeError: an image of the split has neither a caption nor a failure, or has two.
    """
    pairs = gather_object(mine)
    failures = {image_id: reason for each in gather_object([failed]) for image_id, reason in each.items()}
    captions = dict(pairs)
    if len(pairs) != len(captions) or sorted([*captions, *failures]) != sorted(expected):
        raise RuntimeError(f"{len(pairs)} captions and {len(failures)} failures for {len(expected)} images")
    return {image_id: captions[image_id] for image_id in expected if image_id in captions}, failures


def caption_batch(
    captioner: Captioner, batch: Batch, indices: list[int], settings: GenerationSettings, prompt: str
) -> list[tuple[str, str]]:
    """(image id, caption) of the batch's images, but for place-holders and those that could not be decoded. Only the
    pixels of the batch are looked at."""
    good = [i for i, image_id in enumerate(batch.image_ids) if indices[i] >= 0 and image_id not in batch.bad]
    if not good:
        return []
    found = captioner.caption_pixels(batch.pixel_values[good], settings, [prompt] * len(good), with_prompt=False)
    return [(batch.image_ids[i], row[0]) for i, row in zip(good, found, strict=True)]


def caption_images(
    captioner: Captioner,
    examples: Sequence[Example],
    settings: GenerationSettings,
    prompt: str,
    batch_size: int,
    num_workers: int,
) -> tuple[dict[str, str], dict[str, str]]:
    """Caption examples, shared out among the processes.

    Returns:
        Captions by image id (the same on every process), without the prompt; and why each image that could not be
        decoded could not, by its id.
    """
    state = PartialState()
    bare = [Example(e.image_id, e.image, ()) for e in examples]  # no reference goes further than this line
    batches = epoch_batches(range(len(bare)), batch_size, state.process_index, state.num_processes)
    mine: list[tuple[str, str]] = []
    failed: dict[str, str] = {}
    quiet = not (state.is_main_process and sys.stderr.isatty())
    data = loader(Captions(bare, captioner.processor, "", 40), batches, num_workers)
    for indices, batch in zip(batches, tqdm(data, "captions", unit="batch", disable=quiet), strict=True):
        failed |= batch.bad
        mine += caption_batch(captioner, batch, indices, settings, prompt)
    return gather_captions(mine, failed, [e.image_id for e in examples])


def find_checkpoint(config: EvalConfig) -> tuple[str, Path | None]:
    """The checkpoint to load and the run it belongs to (None for a Hub id, or a directory outside a run).

    Raises:
        ConfigError: there is no such run, or it has no such checkpoint.
    """
    run = Path(config.run) if config.run else None
    if config.ckpt not in ("best", "latest"):
        path = Path(config.ckpt)
        return config.ckpt, run or (
            path.resolve().parent if (path.resolve().parent / "config.json").is_file() else None
        )
    if run is None:
        found = sorted(Path("runs").glob("*/config.json"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise ConfigError(
                f"--ckpt {config.ckpt}: there is no run under runs/; name one with --run, or a checkpoint with --ckpt PATH"
            )
        run = found[-1].parent
    found_path = run / "best" if config.ckpt == "best" else newest(run)
    if found_path == run / "best" and not found_path.is_dir():
        found_path = run / ".old-best"  # a run was killed, or is busy, between two renames
    if found_path is None or not found_path.is_dir():
        raise ConfigError(
            f"{run} has no {config.ckpt} checkpoint" + (" yet" if run.is_dir() else "; there is no such directory")
        )
    return str(found_path), run


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Caption a split and score it.

    Writes, into the run's directory, `captions.jsonl` (one line an image), `coco_metrics.json` (what is returned)
    and `report.html`; for another split than test their names end in `_SPLIT`.

    Raises:
        ConfigError, DataError, CheckpointError: before any image is captioned.
    """
    state = PartialState()
    ckpt, run = find_checkpoint(config)
    base = read_run_config(run) if run else TrainConfig(dataset=config.dataset or "")
    if not base.dataset:
        raise ConfigError(f"--ckpt {ckpt} belongs to no run: say which images with --dataset")
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if hasattr(base, f.name)}
    given = {name: value for name, value in given.items() if value is not None and name != "output_dir"}
    # All images, unless told otherwise: a run's limit was for its validations.
    run_config = dataclasses.replace(base, **{"max_eval_images": None, **given})
    run_config.validate()
    with state.main_process_first():
        data = load_data(run_config)
    examples = subsample(data.splits[config.split], config.max_eval_images, run_config.seed)
    if not examples:
        raise ConfigError(f"{data.name}: the {config.split} split has no images")
    captioner = Captioner.from_pretrained(ckpt, state.device, pick_dtype(config.dtype, state.device))
    settings = decoding(run_config, captioner.model, captioner.processor)
    state.print(f"{ckpt}: captioning {len(examples)} images of {data.name}, {config.split}")

    start = time.perf_counter()
    captions, failures = caption_images(
        captioner, examples, settings, run_config.prompt, run_config.batch_size, int(run_config.num_workers or 0)
    )
    seconds = time.perf_counter() - start
    references = {e.image_id: list(e.captions) for e in examples if e.image_id in captions}
    if not captions:
        raise ConfigError(
            f"no image of {data.name}, {config.split}, could be decoded, e.g. {next(iter(failures.values()))}"
        )
    result: dict[str, Any] = {}
    if state.is_main_process:
        bleu = metrics.sacrebleu(list(captions.values()), list(references.values()))
        result = {
            "checkpoint": ckpt,
            "dataset": data.name,
            "split": config.split,
            "num_images": len(captions),
            "num_references": sum(map(len, references.values())),
            "failed_images": failures,
            "data_fingerprint": data.fingerprint(),
            "decoding": {**dataclasses.asdict(settings), "prompt": run_config.prompt},
            "dtype": str(next(captioner.model.parameters()).dtype).removeprefix("torch."),
            "seconds": seconds,
            "images_per_second": len(captions) / seconds,
            "sacrebleu": bleu["score"],
            "sacrebleu_signature": bleu["signature"],
            "human_agreement_sacrebleu": metrics.human_agreement(list(references.values())),
            "failure_groups": metrics.failure_groups(list(captions.values())),
            **metrics.coco_metrics(captions, references),
        }
        shown = [e for e in examples if e.image_id in captions][:100]
        page = report.page(
            result,
            [(e.open(), captions[e.image_id], references[e.image_id]) for e in shown],
            report.read_metrics(run) if run else [],
        )
        _write(Path(config.output_dir or run or "."), config.split, result, captions, references, page)
    state.wait_for_everyone()
    return result


def _write(
    folder: Path,
    split: str,
    result: dict[str, Any],
    captions: dict[str, str],
    references: dict[str, list[str]],
    page: str,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "" if split == "test" else f"_{split}"
    with open(folder / f"captions{suffix}.jsonl", "w", encoding="utf-8") as file:
        for image_id, caption in captions.items():
            line = {"image_id": image_id, "caption": caption, "references": references[image_id]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / f"coco_metrics{suffix}.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    (folder / f"report{suffix}.html").write_text(page, "utf-8")


def summary(result: dict[str, Any]) -> str:
    """A few lines for people."""
    lines = [
        f"{result['dataset']}, {result['split']}: {result['num_images']} images, {result['images_per_second']:.1f} images/s"
    ]
    human = result["human_agreement_sacrebleu"]
    lines.append(
        f"  sacreBLEU {result['sacrebleu']:.2f}" + (f"   (one human against the others: {human:.2f})" if human else "")
    )
    names = ("Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
    known = [f"{name} {result[name]:.4f}" for name in names if result[name] is not None]
    missing = {result["reasons"][name] for name in names if result[name] is None}
    lines += [f"  {'   '.join(known)}"] if known else []
    lines += [f"  not computed: {reason}" for reason in sorted(missing)]
    if result["failed_images"]:
        lines.append(
            f"  {len(result['failed_images'])} images could not be decoded: {', '.join(list(result['failed_images'])[:5])}"
        )
    return "\n".join(lines)
