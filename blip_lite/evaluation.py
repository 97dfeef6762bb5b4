"""A split -> captions -> numbers -> files.

Captions are made from pixels alone: the examples that reach the model carry no references, which are kept in
another object until the scoring.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from tqdm import tqdm

from blip_lite import metrics, report
from blip_lite.captioner import Captioner, pick_dtype
from blip_lite.card import model_card
from blip_lite.checkpoint import newest
from blip_lite.config import FROM_SCRATCH, ConfigError, EvalConfig, TrainConfig, read_run_config
from blip_lite.data import SPLITS, Batch, Captions, DataSet, Example, epoch_batches, loader, subsample
from blip_lite.generation import GenerationSettings
from blip_lite.model import Blip
from blip_lite.pretrained import CheckpointError
from blip_lite.processing import Processor, normalize_caption
from blip_lite.runlog import log_evaluation
from blip_lite.sources import load_data

SHOWN = 1000  # images on the report


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
    kept: Callable[[list[tuple[str, str]]], None] = lambda _: None,
) -> tuple[dict[str, str], dict[str, str]]:
    """Caption examples, shared out among the processes. `kept` gets this process's (image id, caption) pairs, batch
    by batch.

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
        found = caption_batch(captioner, batch, indices, settings, prompt)
        kept(found)
        mine += found
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
    """Caption a split and score it; or score the captions in `config.predictions`.

    Writes, into the run's directory, `captions.jsonl` (one line an image), `coco_metrics.json` (what is returned)
    and `report.html`; for another split than test their names end in `_SPLIT`. For predictions, only `config.output`.

    Raises:
        ConfigError, DataError, CheckpointError: before any image is captioned.
    """
    ckpt, run, run_config, data, examples = prepare(config)
    state = PartialState()
    split, folder = config.split or "test", Path(config.output_dir or run or ".")
    about: dict[str, Any] = {"dataset": data.name, "split": split}
    failures: dict[str, str] = {}
    others: dict[str, dict[str, str]] = {}
    others_made: dict[str, dict[str, Any]] = {}
    if config.predictions:
        captions = read_predictions(Path(config.predictions), examples)
        about |= {"predictions": config.predictions}
    else:
        keep = folder / "captions"
        captions, failures, made = caption_with(ckpt, examples, run_config, config.dtype, keep)
        about |= made
        more = {"compare": config.compare} if config.compare else {}
        if run and config.base and run_config.model not in (*FROM_SCRATCH, ckpt):
            more["base"] = run_config.model
        for name, other in more.items():
            try:
                others[name], _, others_made[name] = caption_with(other, examples, run_config, config.dtype, keep)
            except CheckpointError as error:
                if name == "compare":  # the user asked for it
                    raise
                others_made[name] = {"checkpoint": other, "reason": str(error)}
                state.print(f"the untouched {other} is left out: {error}")
    if not captions:
        raise ConfigError(f"no image of {data.name}, {split}, could be decoded, e.g. {next(iter(failures.values()))}")
    result: dict[str, Any] = {}
    if state.is_main_process:
        references = {e.image_id: list(e.captions) for e in examples if e.image_id in captions}
        train = Counter(normalize_caption(c) for e in data.splits["train"] for c in e.captions)
        if train:
            others["most_common_caption"] = dict.fromkeys(captions, train.most_common(1)[0][0])
            others_made["most_common_caption"] = {"caption": train.most_common(1)[0][0]}
        numbers, per_image = score(captions, references, others, config.spice_subsample if config.spice else 0)
        about |= {
            "num_images": len(captions),
            "num_references": sum(map(len, references.values())),
            "failed_images": failures,
            "data_fingerprint": data.fingerprint(),
        }
        result = {**about, **numbers}
        for name, made in others_made.items():
            result["baselines"][name] = {**made, **result["baselines"].get(name, {})}
        # Drawn scenes have templates for captions: there a model is expected to match them word for word.
        result["warnings"] = [] if data.name == "shapes" else leak_warnings(result)
        if config.predictions:
            if config.output:
                Path(config.output).parent.mkdir(parents=True, exist_ok=True)
                Path(config.output).write_text(json.dumps(result, indent=2) + "\n", "utf-8")
        else:
            rows = [
                (e, captions[e.image_id], scores_of(per_image, e.image_id)) for e in examples if e.image_id in captions
            ]
            _write(folder, split, result, rows, run)
            if run and not config.output_dir:
                (run / "README.md").write_text(model_card(run), "utf-8")
                log_evaluation(run, split, result)
    state.wait_for_everyone()
    return result


def prepare(config: EvalConfig) -> tuple[str, Path | None, TrainConfig, DataSet, list[Example]]:
    """The checkpoint, its run, the settings, the data, and the images of the split. Raises as `evaluate` does."""
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # which it does not read by itself
    ckpt, run = ("", None) if config.predictions else find_checkpoint(config)
    if config.run and config.predictions:
        run = Path(config.run)
    base = read_run_config(run) if run else TrainConfig(dataset=config.dataset or "")
    if not base.dataset:
        raise ConfigError(
            f"{config.predictions or f'--ckpt {ckpt}'} belongs to no run: say which images with --dataset"
        )
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if hasattr(base, f.name)}
    given = {name: value for name, value in given.items() if value is not None and name != "output_dir"}
    # All images, unless told otherwise: a run's limit was for its validations.
    run_config = dataclasses.replace(base, **{"max_eval_images": None, **given})
    run_config.validate()
    with state.main_process_first():
        data = load_data(run_config)
    splits = SPLITS if config.split == "all" else (config.split or "test",)
    examples = [e for split in splits for e in data.splits[split]]
    examples = subsample(examples, config.max_eval_images, run_config.seed)
    if not examples:
        raise ConfigError(f"{data.name}: the {config.split or 'test'} split has no images")
    return ckpt, run, run_config, data, examples


def caption_with(
    ckpt: str, examples: Sequence[Example], config: TrainConfig, dtype: str, folder: Path
) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """Captions and failures by image id, as in `caption_images`; and what is to be known of how they were made.

    Captions are kept in `folder` as they are made, so that an evaluation that was cut off goes on, and one that is
    repeated takes no time: under a hash of weights, decoding settings, precision and images.
    """
    state = PartialState()
    captioner = Captioner.from_pretrained(ckpt, state.device, pick_dtype(dtype, state.device))
    settings = decoding(config, captioner.model, captioner.processor)
    made: dict[str, Any] = {
        "checkpoint": ckpt,
        "checkpoint_sha256": weights_hash(captioner.model),
        "decoding": {**dataclasses.asdict(settings), "prompt": config.prompt},
        "dtype": str(captioner.model.dtype).removeprefix("torch."),
    }
    told = json.dumps({**made, "checkpoint": "", "device": state.device.type, "images": [e.stamp() for e in examples]})
    key = hashlib.sha256(told.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    before: dict[str, str] = {}
    seconds = 0.0
    for path in folder.glob(f"{key}.*.jsonl"):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # half a line of a killed process
                row = json.loads(line)
                before |= row["captions"]
                seconds += row["seconds"] if path.name == f"{key}.0.jsonl" else 0.0
    todo = [e for e in examples if e.image_id not in before]
    state.wait_for_everyone()  # all have read before one writes
    state.print(f"{ckpt}: captioning {len(todo)} images" + (f", {len(before)} are done" if before else ""))
    start = time.perf_counter()
    with open(folder / f"{key}.{state.process_index}.jsonl", "a", encoding="utf-8") as file:

        def keep(found: list[tuple[str, str]]) -> None:
            nonlocal start, seconds
            now = time.perf_counter()
            seconds += now - start
            file.write("\n" + json.dumps({"captions": dict(found), "seconds": now - start}, ensure_ascii=False))
            file.flush()
            start = now

        captions, failures = caption_images(
            captioner, todo, settings, config.prompt, config.batch_size, int(config.num_workers or 0), keep
        )
    captions |= before
    seconds = float(broadcast_object_list([seconds])[0])
    made |= {"seconds": seconds, "images_per_second": len(captions) / max(seconds, 1e-9)}
    return {e.image_id: captions[e.image_id] for e in examples if e.image_id in captions}, failures, made


def weights_hash(model: Blip) -> str:
    """SHA-256 of all weights by name, as they are in memory."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_predictions(path: Path, examples: Sequence[Example]) -> dict[str, str]:
    """Anyone's captions: lines of `{"image_id", "caption"}`, or a JSON list of these (COCO's result format).

    Raises:
        ConfigError: it cannot be read, or its images are not those of the split.
    """
    try:
        text = path.read_text("utf-8-sig")
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]  # fmt: skip
        found = {str(row["image_id"]): str(row["caption"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'{path}: expected lines of {{"image_id", "caption"}} ({type(error).__name__} {error})') from error  # fmt: skip
    wanted = [e.image_id for e in examples]
    missing, unknown = [i for i in wanted if i not in found], sorted(set(found) - set(wanted))
    if missing or unknown or len(rows) != len(found):
        raise ConfigError(
            f"{path}: {len(rows)} captions of {len(found)} images for a split of {len(wanted)}; {len(missing)} have none"
            + (f" (e.g. {missing[0]})" if missing else "")
            + (f", {len(unknown)} are not in the split (e.g. {unknown[0]})" if unknown else "")
        )
    return {image_id: found[image_id] for image_id in wanted}


def score(
    captions: dict[str, str], references: dict[str, list[str]], others: dict[str, dict[str, str]], spice: int = 0
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """All numbers, each with a 95% interval, beside those of humans and of others' captions of the same images.

    Args:
        captions, references: by image id.
        others: captions by name and image id; the one called `compare` is tested for a real difference.
        spice: as in `metrics.coco_metrics`.

    Returns:
        (numbers, per-image scores by metric and image id).
    """
    if any(set(each) != set(captions) for each in others.values()):
        raise ConfigError("the checkpoints did not caption the same images")
    refs = list(references.values())
    bleu = metrics.sacrebleu(list(captions.values()), refs)
    coco = metrics.coco_metrics(captions, references, others, human=True, spice=spice)
    per_image = coco.pop("per_image", {})
    found, human = coco.pop("others", {}), coco.pop("human", None)
    compared = list(others["compare"].values()) if "compare" in others else None
    test = metrics.sacrebleu_test(list(captions.values()), refs, compared)
    exact = [normalize_caption(c) in map(normalize_caption, references[i]) for i, c in captions.items()]
    human_bleu = metrics.human_agreement(refs)
    baselines = {"human": {"sacrebleu": human_bleu, **(human or {})}}
    for name, each in others.items():
        baselines[name] = {"sacrebleu": metrics.sacrebleu(list(each.values()), refs)["score"], **found.get(name, {})}
    if compared:
        baselines["compare"] |= {"interval_95": test["other_interval"], "p_value": test["p_value"]}
    result: dict[str, Any] = {
        "sacrebleu": bleu["score"],
        "sacrebleu_signature": bleu["signature"],
        "human_agreement_sacrebleu": human_bleu,
        **coco,
        "intervals_95": {
            "sacrebleu": test["interval"],
            **{name: metrics.bootstrap(list(per_image[name].values())) for name in INTERVALS if name in per_image},
        },
        "exact_match_rate": sum(exact) / len(exact),
        "failure_groups": metrics.failure_groups(list(captions.values())),
        "baselines": baselines,
    }
    return result, per_image


INTERVALS = ("ROUGE_L", "CIDEr")  # those that are the mean of per-image scores; METEOR and Bleu are not


def scores_of(per_image: dict[str, dict[str, float]], image_id: str) -> dict[str, float]:
    return {name: values[image_id] for name, values in per_image.items()}


def leak_warnings(result: dict[str, Any]) -> list[str]:
    """What is too good to be true, and what to look at then."""
    found = []
    human = result["human_agreement_sacrebleu"]
    if human and result["sacrebleu"] > 1.25 * human:
        found.append(
            f"sacreBLEU {result['sacrebleu']:.1f} is more than 1.25 times what one human scores against the others ({human:.1f})"
        )
    if result["exact_match_rate"] > 0.3 and result["num_images"] >= 20:
        found.append(f"{result['exact_match_rate']:.0%} of the captions are one of their references, word for word")
    if found:
        found.append(
            "Were these images trained on? `python -m blip_lite.data audit` looks for duplicates. Did a reference reach the prompt?"
        )
    return found


def _write(
    folder: Path,
    split: str,
    result: dict[str, Any],
    rows: Sequence[tuple[Example, str, dict[str, float]]],
    run: Path | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "" if split == "test" else f"_{split}"
    with open(folder / f"captions{suffix}.jsonl", "w", encoding="utf-8") as file:
        for example, caption, scores in rows:
            line = {"image_id": example.image_id, "caption": caption, "references": example.captions, "scores": scores}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / f"coco_metrics{suffix}.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    worst = sorted(rows, key=lambda row: row[2].get("CIDEr", 0.0))
    shown = [(e.open(), e.image_id, caption, e.captions, scores) for e, caption, scores in worst[:SHOWN]]
    page = report.page(result, shown, report.read_metrics(run) if run else [])
    (folder / f"report{suffix}.html").write_text(page, "utf-8")


def summary(result: dict[str, Any]) -> str:
    """A few lines for people."""
    speed = f", {result['images_per_second']:.1f} images/s" if "images_per_second" in result else ""
    lines = [f"{result['dataset']}, {result['split']}: {result['num_images']} images{speed}"]
    low, high = result["intervals_95"]["sacrebleu"]
    human = result["human_agreement_sacrebleu"]
    lines.append(
        f"  sacreBLEU {result['sacrebleu']:.2f} [{low:.2f}, {high:.2f}]"
        + (f"   (one human against the others: {human:.2f})" if human else "")
    )
    names = ("Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
    known = [f"{name} {result[name]:.4f}" for name in names if result.get(name) is not None]
    missing = {result["reasons"][name] for name in names if result.get(name) is None}
    lines += [f"  {'   '.join(known)}"] if known else []
    lines += [f"  not computed: {reason}" for reason in sorted(missing)]
    if result["failed_images"]:
        lines.append(
            f"  {len(result['failed_images'])} images could not be decoded: {', '.join(list(result['failed_images'])[:5])}"
        )
    if base := result["baselines"].get("base", {}).get("sacrebleu"):
        lines.append(f"  the untouched {result['baselines']['base']['checkpoint']}: sacreBLEU {base:.2f}")
    if other := result["baselines"].get("compare"):
        p = other["p_value"]
        verdict = f"p = {p:.3f}: {'a real difference' if p < 0.05 else 'no difference that these images can show'}"
        low, high = other["interval_95"]
        lines.append(f"  {other['checkpoint']}: sacreBLEU {other['sacrebleu']:.2f} [{low:.2f}, {high:.2f}], {verdict}")
    lines += [f"  warning: {warning}" for warning in result["warnings"]]
    return "\n".join(lines)
