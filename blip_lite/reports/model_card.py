"""A run's files -> its model card: a page of what was set and what was measured, with metadata for the Hub."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blip_lite.model.pretrained import own_decoding
from blip_lite.reports.metric_names import METRICS, SYSTEMS, digits, hundredths
from blip_lite.settings import FROM_SCRATCH, SPLITS, DecodingSettings, TrainConfig
from blip_lite.storage import BEFORE, newest, step_in

EXAMPLES = "examples"  # folder of a run: pictures that may be shown, by number, and captions.json
SETTINGS = (
    "batch_size", "gradient_accumulation_steps", "optimizer", "learning_rate", "lr_schedule", "warmup_ratio",
    "weight_decay", "label_smoothing", "parallel_prediction", "max_grad_norm", "max_length", "captions_per_image",
    "image_size", "augment", "dropout", "vision_learning_rate_factor", "layer_decay", "ema", "patience", "best_metric",
    "prompt", "freeze_vision", "mixed_precision", "seed",
)  # fmt: skip
DECODING = [field.name for field in dataclasses.fields(DecodingSettings)]
# Of an evaluation's numbers, what may leave this machine: no paths, no names of files, no messages of errors.
PUBLISHED = (
    "dataset", "split", "checkpoint", "checkpoint_sha256", "step", "evaluated", "dtype", "decoding", "num_images",
    "num_references", "data_fingerprint", "sacrebleu_signature", *METRICS, "intervals_95", "human_agreement_sacrebleu",
    "baselines", "exact_match_rate", "failure_groups", "distinct_captions", "vocabulary_size", "novel_captions",
    "templates", "verdicts", "warnings",
)  # fmt: skip


def model_card(run: Path, verdicts: Sequence[Mapping[str, Any]] = (), ckpt: str = "best") -> str:
    """The text of a run's `README.md`: YAML metadata and Markdown. It names no place on this machine.

    Reads `config.json`, the newest checkpoint's progress, the evaluations and the decoding of `ckpt`, and the pictures
    in `examples/`.

    Args:
        verdicts: on the run's log, for as long as there is no evaluation, which has them too.
        ckpt: the checkpoint of the run that the card is of.

    Raises:
        OSError, ValueError: `config.json` is missing or damaged.
    """
    about = about_of(run, ckpt)
    results = results_of(run, ckpt, about)
    # An older run names fewer settings; what came later was not there, as the defaults or BEFORE say.
    about["settings"] = settings = {**TrainConfig().flat(), **BEFORE, **about["settings"]}
    last = newest(run) if ckpt == "best" else run / ckpt
    state = last / "state" / "progress.json" if last else None
    progress = json.loads(state.read_text("utf-8")) if state and state.is_file() else {}
    base = None if settings["model"] in FROM_SCRATCH else settings["model"]
    name, machine = settings["run_name"] or run.resolve().name, about.get("hardware", {})
    images, dataset = about["images"], public(settings["dataset"])
    minutes = progress.get("seconds", 0) / 60
    best = ""  # a run that was stopped before its first validation has none
    if progress.get("best_step"):
        best = f"; best validation sacreBLEU {progress['best_bleu']:.1f} at step {progress['best_step']}"
    return "\n".join(
        [
            metadata(name, settings, base, progress, machine, results),
            f"# {name}",
            "",
            f"BLIP image captioning, {about['num_parameters'] / 1e6:.1f} million parameters, "
            + (f"fine-tuned from `{public(base)}`" if base else f"trained from nothing (`{settings['model']}`)")
            + f" on {dataset} with blip_lite {about['versions']['blip_lite']}.",
            "",
            "## Results",
            "",
            *[line for split, result in results.items() for line in results_table(split, result)],
            *([] if results else not_evaluated(ckpt, verdicts)),
            *again(settings),
            "## Examples",
            "",
            *examples(run, dataset, ckpt),
            "## Data",
            "",
            f"{dataset}, split by image: {images['train']} for training, {images['validation']} for validation "
            f"(the best checkpoint was chosen on them), {images['test']} for testing. Fingerprint "
            f"`{about['data_fingerprint']}`.",
            "",
            "## Recipe",
            "",
            f"{progress.get('step', 0)} optimizer steps, {progress.get('epoch', 0)} whole epochs"
            f"{best}. "
            f"Precision: {machine.get('precision') or 'not recorded'}.",
            "",
            *[f"- `{key}`: {settings[key]!r}" for key in SETTINGS],
            "",
            "## Hardware, time and energy",
            "",
            f"{machine.get('processes', 1)} process(es), each on "
            f"{machine.get('device') or 'hardware that was not recorded'}; "
            f"{f'{minutes:.2g} minutes' if minutes < 60 else f'{minutes / 60:.1f} hours'}, "
            f"all segments of the run together. {energy(progress, machine)}",
            "",
            "## Use",
            "",
            *use(settings),
            "## Limits",
            "",
            "Captions are in lower case and in the language and style of the training captions. The model "
            "names what it saw often, may name what is not there, and repeats the biases of its data; none of this was "
            "measured here.",
            "",
            "## Licence",
            "",
            licence(base)[1],
            "",
            "## Versions",
            "",
            ", ".join(f"{package} {version}" for package, version in about["versions"].items() if version),
            "",
        ]
    )


def about_of(run: Path, ckpt: str) -> dict[str, Any]:
    """What a run's `config.json` says, with the decoding of its checkpoint, where that is there and says so: the run
    may have been resumed with other settings since."""
    about: dict[str, Any] = json.loads((run / "config.json").read_text("utf-8"))
    about["settings"] |= own_decoding(run / ckpt) if (run / ckpt).is_dir() else {}
    return about


def public(name: str) -> str:
    """A data set or checkpoint without the place where it lies on this machine."""
    path = Path(name).expanduser()
    return path.resolve().name if path.is_absolute() or path.exists() else name


def results_of(run: Path, ckpt: str = "best", about: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """The whole evaluations of a run's checkpoint with its own settings, by split. Those of weights that `ckpt` held
    earlier do not count, and versions before 0.2 put others in their place, too.

    Args:
        about: what `about_of` gives, where that was read already.
    """
    about = about or about_of(run, ckpt)
    own = {name: value for name, value in about["settings"].items() if name in DECODING}
    step = step_in(run / ckpt)
    beside = [] if ckpt == "best" else sorted((run / "evaluations").glob(f"{ckpt}*/coco_metrics.json"))
    found = {}
    for path in (*sorted(run.glob("coco_metrics*.json")), *beside):
        try:
            result = json.loads(path.read_text("utf-8"))
            split, decoding = result["split"], result["decoding"]
            images = sum(about["images"][s] for s in (SPLITS if split == "all" else (split,)))
            partial = result.get("left_out", len(result["failed_images"]) + result["num_images"] < images)
            other = result.get("differs", {n: v for n, v in decoding.items() if own.get(n, v) != v})
            name = Path(result["checkpoint"]).name.removeprefix(".old-")
        except (OSError, ValueError, KeyError, TypeError):  # not ours, or damaged
            continue
        if name == ckpt and not partial and set(other) <= {"ckpt"} and result.get("step", step) == step:
            found[split] = result
    return {split: found[split] for split in (*SPLITS, "all") if split in found}


def published(result: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation's numbers as others may have them: nothing in them names a place on this machine."""
    found = {name: result[name] for name in PUBLISHED if name in result}
    found["baselines"] = {
        name: {key: public(v) if key == "checkpoint" else v for key, v in row.items() if key != "reason"}
        for name, row in result["baselines"].items()
    }
    return found | {
        "dataset": public(result["dataset"]),
        "checkpoint": Path(result["checkpoint"]).name.removeprefix(".old-"),
        "failed_images": len(result["failed_images"]),
    }


def not_evaluated(ckpt: str, verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, in the place of results."""
    line = "Not evaluated yet: `blip-lite evaluate`."
    if ckpt != "best":
        line = (
            f"Not evaluated yet: `blip-lite evaluate --run RUN --ckpt {ckpt}`. The numbers of the run's `best` are not "
            "those of this checkpoint."
        )
    return [line, "", *verdict_lines(verdicts)]


def results_table(split: str, result: dict[str, Any]) -> list[str]:
    """Markdown: the metrics, their intervals, the baselines beside them, and what they say."""
    known = [name for name in METRICS if METRICS[name].hub_type and result.get(name) is not None]
    decoding = result["decoding"]
    rows = {"this model": result, **result["baselines"]}
    step = f", step {result['step']}" if result.get("step") is not None else ""
    lines = [
        f"{split}: `{Path(result['checkpoint']).name.removeprefix('.old-')}`{step}, {result['num_images']} images, "
        f"{result['num_references']} references; {decoding['num_beams']} beams, at most "
        f"{decoding['max_new_tokens']} new tokens, length penalty {decoding['length_penalty']:g}, "
        f"{result['dtype']}; `{result['sacrebleu_signature']}`.",
        "",
        "| | " + " | ".join(METRICS[name].title for name in known) + " |",
        "|---" * (len(known) + 1) + "|",
    ]
    places = {name: digits(name, result["intervals_95"]) for name in METRICS}
    for name, row in rows.items():
        cells = [hundredths(metric, row.get(metric), places[metric]) for metric in known]
        lines.append(f"| {SYSTEMS.get(name, name)} | {' | '.join(cells)} |")
    intervals = [
        f"{METRICS[n].title} {hundredths(n, low, places[n])} to {hundredths(n, high, places[n])}"
        for n, (low, high) in result["intervals_95"].items()
        if n in known
    ]
    lines += ["", f"Scores are times 100. 95% intervals: {', '.join(intervals)}.", ""]
    if "verdicts" in result:
        return lines + verdict_lines(result["verdicts"])
    return lines + [f"**Warning:** {warning}\n" for warning in result["warnings"]]


def verdict_lines(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: a list of what the numbers say, with what to do."""
    return [f"- **{v['name']}**: {v['text']}. {v['advice']}" for v in verdicts] + [""] * bool(verdicts)


def again(settings: dict[str, Any]) -> list[str]:
    """Markdown: the command that evaluates once more."""
    defaults = TrainConfig().flat()
    names = ("scenes", "dataset_config", "dataset_split", "split_scheme", "validation_share", "caption_column")
    words = [f"--{n} {shlex.quote(str(settings[n]))}" for n in names if settings.get(n) != defaults[n]]
    command = " ".join(["blip-lite evaluate --ckpt THIS --dataset", shlex.quote(public(settings["dataset"])), *words])
    lines = ["To evaluate it:", "", "```bash", f"{command} --split test", "```", ""]
    if settings["seed"] != defaults["seed"]:
        lines += [
            f"If the data name no splits, they were drawn with `--seed {settings['seed']}`, which only the run's "
            "folder tells: `blip-lite evaluate --run RUN`.",
            "",
        ]
    return lines


def examples(run: Path, dataset: str, ckpt: str) -> list[str]:
    """Markdown: six pictures with their captions, where they may be shown. The captions are those of `best`."""
    path = run / EXAMPLES / "captions.json"
    if path.is_file() and ckpt == "best":
        captions = [caption.replace("|", r"\|") or "(empty)" for caption in json.loads(path.read_text("utf-8"))]
        rows = []
        for first in range(0, len(captions), 3):
            numbers = range(first, min(first + 3, len(captions)))
            rows.append([f"![test scene {n + 1}]({EXAMPLES}/{n + 1}.png)" for n in numbers])
            rows.append([captions[n] for n in numbers])
        lines = [f"| {' | '.join(row + [''] * (3 - len(row)))} |" for row in rows]
        return ["Six test scenes, evenly spaced, not chosen:", "", lines[0], "|---|---|---|", *lines[1:], ""]
    if dataset == "shapes":
        return ["`blip-lite evaluate` adds six of the test scenes to the card of `best`.", ""]
    return [f"No pictures: whether those of {dataset} may be published is not known here.", ""]


def use(settings: dict[str, Any]) -> list[str]:
    """Markdown: how to caption with this package and with `transformers`."""
    decoding = ", ".join(f"{name}={settings[name]!r}" for name in DECODING if name != "prompt")
    text = f"text={settings['prompt']!r}, " if settings["prompt"] else ""
    return [
        "```python",
        "from blip_lite import Captioner",
        "",
        'Captioner.from_pretrained("THIS")("photo.jpg")',
        "```",
        "",
        "```python",
        "from PIL import Image",
        "from transformers import BlipForConditionalGeneration, BlipProcessor",
        "",
        'processor = BlipProcessor.from_pretrained("THIS")',
        'model = BlipForConditionalGeneration.from_pretrained("THIS")',
        f'inputs = processor(images=Image.open("photo.jpg").convert("RGB"), {text}return_tensors="pt")',
        f"ids = model.generate(**inputs, {decoding})",
        "print(processor.decode(ids[0], skip_special_tokens=True))",
        "```",
        "",
        "`Captioner` takes the decoding settings from `generation_config.json` and the prompt from `captioning.json`. "
        "BLIP's `generate` in `transformers` reads neither: without the settings above it decodes greedily, at most 20 "
        "tokens.",
        "",
        "Meant for describing photographs like those it was trained on, with a person looking at the "
        "result. Not meant for "
        "identifying people, for medical or legal decisions, or as the only description where safety "
        "depends on it.",
        "",
    ]


def licence(base: str | None) -> tuple[str, str]:
    """The Hub's name for the licence of the weights, and words about it."""
    if base and base.startswith("Salesforce/blip-"):
        return "bsd-3-clause", f"`{base}` is under the BSD 3-clause licence; the data have a licence of their own."
    return "unknown", (
        "Not chosen yet. Who publishes these weights names it in the field `license` above; the data"
        + (" and the checkpoint that this began with have" if base else " have")
        + " a say in it."
    )


def energy(progress: dict[str, Any], machine: dict[str, Any]) -> str:
    if progress.get("co2_kg"):
        return f"{progress['co2_kg']:.4g} kg CO2 equivalent, by codecarbon on the main process's machine."
    if machine.get("board_power_watts"):
        kwh = progress["seconds"] / 3.6e6 * machine["board_power_watts"] * machine["processes"]
        return f"Energy: at most {kwh:.3g} kWh, an upper bound (hours x the GPUs' power limit); CO2 was not measured."
    return "Energy and CO2: not measured."


def metadata(
    name: str,
    settings: dict[str, Any],
    base: str | None,
    progress: dict[str, Any],
    machine: dict[str, Any],
    results: dict[str, Any],
) -> str:
    """The YAML block at the top, by `huggingface_hub`. There CO2 is in grams."""
    from huggingface_hub import EvalResult, ModelCardData

    dataset = public(settings["dataset"])
    scores = [
        EvalResult(
            task_type="image-to-text", dataset_type=dataset, dataset_name=dataset,
            dataset_split=split, metric_type=str(METRICS[metric].hub_type),
            metric_name=METRICS[metric].title,
            metric_value=float(hundredths(metric, result[metric], digits(metric, result["intervals_95"]))),
        )
        for split, result in results.items()
        for metric in METRICS if METRICS[metric].hub_type and result.get(metric) is not None
    ]  # fmt: skip
    more: dict[str, Any] = {"license": licence(base)[0]}
    if progress.get("co2_kg"):
        more["co2_eq_emissions"] = {
            "emissions": 1000 * progress["co2_kg"], "source": "codecarbon", "hardware_used": machine.get("device"),
            "training_type": "fine-tuning" if base else "pre-training",
        }  # fmt: skip
    if base and public(base) == base:  # an id of the Hub
        more["base_model"] = base
    data = ModelCardData(
        model_name=name, library_name="transformers", pipeline_tag="image-to-text", tags=["blip", "image-captioning"],
        eval_results=scores or None, ignore_metadata_errors=False, **more,
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n"
