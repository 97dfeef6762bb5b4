"""A run's files -> its model card: a page of what was set and what was measured, with metadata for the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blip_lite.reports.metric_names import METRICS
from blip_lite.settings import FROM_SCRATCH, SPLITS
from blip_lite.storage import newest

SETTINGS = (
    "batch_size", "gradient_accumulation_steps", "learning_rate", "lr_schedule", "warmup_ratio", "weight_decay",
    "label_smoothing", "max_grad_norm", "max_length", "captions_per_image", "prompt", "freeze_vision",
    "mixed_precision", "seed",
)  # fmt: skip


def model_card(run: Path) -> str:
    """The text of a run's `README.md`: YAML metadata and Markdown.

    Reads `config.json`, the newest checkpoint's progress, `best/best.json` and `coco_metrics*.json`.

    Raises:
        OSError, ValueError: `config.json` is missing or damaged.
    """
    about = json.loads((run / "config.json").read_text("utf-8"))
    settings = about["settings"]
    last = newest(run)
    progress = json.loads((last / "state" / "progress.json").read_text("utf-8")) if last else {}
    results = {}
    for split in (*SPLITS, "all"):
        path = run / f"coco_metrics{'' if split == 'test' else f'_{split}'}.json"
        if path.is_file():
            results[split] = json.loads(path.read_text("utf-8"))
    base = None if settings["model"] in FROM_SCRATCH else settings["model"]
    name, machine = settings["run_name"] or run.resolve().name, about.get("hardware", {})
    images = about["images"]
    return "\n".join(
        [
            metadata(name, settings, base, progress, machine, results),
            f"# {name}",
            "",
            f"BLIP image captioning, {about['num_parameters'] / 1e6:.1f} million parameters, "
            + (f"fine-tuned from `{base}`" if base else f"trained from nothing (`{settings['model']}`)")
            + f" on {settings['dataset']} with blip_lite {about['versions']['blip_lite']}.",
            "",
            "## Results",
            "",
            *[line for split, result in results.items() for line in results_table(split, result)],
            *([] if results else ["Not evaluated yet: `python evaluate.py`.", ""]),
            "## Data",
            "",
            f"{settings['dataset']}, split by image: {images['train']} for training, "
            f"{images['validation']} for validation "
            f"(the best checkpoint was chosen on them), {images['test']} for testing. Fingerprint "
            f"`{about['data_fingerprint']}`.",
            "",
            "## Recipe",
            "",
            f"{progress.get('step', 0)} optimizer steps, {progress.get('epoch', 0)} whole epochs; AdamW; "
            f"best validation sacreBLEU {progress.get('best_bleu', -1):.2f} at step {progress.get('best_step', 0)}.",
            "",
            *[f"- `{key}`: {settings[key]!r}" for key in SETTINGS],
            "",
            "## Hardware, time and energy",
            "",
            f"{machine.get('processes', 1)} process(es), each on "
            f"{machine.get('device') or 'hardware that was not recorded'}; "
            f"{progress.get('seconds', 0) / 3600:.2f} hours, all segments of the run together. "
            f"{energy(progress, machine)}",
            "",
            "## Use",
            "",
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
            'inputs = processor(images=Image.open("photo.jpg").convert("RGB"), return_tensors="pt")',
            "print(processor.decode(model.generate(**inputs, max_new_tokens=30)[0], skip_special_tokens=True))",
            "```",
            "",
            "Meant for describing photographs like those it was trained on, with a person looking at the "
            "result. Not meant for "
            "identifying people, for medical or legal decisions, or as the only description where safety "
            "depends on it.",
            "",
            "## Limits",
            "",
            "Captions are in lower case and in the language and style of the training captions. The model "
            "names what it saw often, may name what is not there, and repeats the biases of its data; none of this was "
            "measured here.",
            "",
            "## Versions",
            "",
            ", ".join(f"{package} {version}" for package, version in about["versions"].items() if version),
            "",
        ]
    )


def results_table(split: str, result: dict[str, Any]) -> list[str]:
    """Markdown: the metrics, their intervals, and the baselines beside them."""
    known = [name for name in METRICS if METRICS[name].hub_type and result.get(name) is not None]
    decoding = result["decoding"]
    cell = lambda value: "–" if value is None else f"{value:.4g}"  # noqa: E731
    rows = {"this model": result, **result["baselines"]}
    lines = [
        f"{split}: `{result['checkpoint']}`, {result['num_images']} images, {result['num_references']} "
        f"references; {decoding['num_beams']} beams, at most "
        f"{decoding['max_new_tokens']} new tokens, length penalty {decoding['length_penalty']:g}; "
        f"`{result['sacrebleu_signature']}`.",
        "",
        "| | " + " | ".join(METRICS[name].title for name in known) + " |",
        "|---" * (len(known) + 1) + "|",
    ]
    names = {
        "base": "the untouched base",
        "human": "one human against the others",
        "most_common_caption": "one caption for every image",
        "compare": "compared with",
    }
    for name, row in rows.items():
        values = " | ".join(cell(row.get(metric)) for metric in known)
        lines.append(f"| {names.get(name, name)} | {values} |")
    intervals = [
        f"{METRICS[n].title} {low:.4g} to {high:.4g}" for n, (low, high) in result["intervals_95"].items() if n in known
    ]
    lines += ["", f"95% intervals: {', '.join(intervals)}.", ""]
    return lines + [f"**Warning:** {warning}\n" for warning in result["warnings"]]


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

    scores = [
        EvalResult(
            task_type="image-to-text", dataset_type=settings["dataset"], dataset_name=settings["dataset"],
            dataset_split=split, metric_type=str(METRICS[metric].hub_type),
            metric_name=METRICS[metric].title, metric_value=result[metric],
        )
        for split, result in results.items()
        for metric in METRICS if METRICS[metric].hub_type and result.get(metric) is not None
    ]  # fmt: skip
    more: dict[str, Any] = {}
    if progress.get("co2_kg"):
        more["co2_eq_emissions"] = {
            "emissions": 1000 * progress["co2_kg"], "source": "codecarbon", "hardware_used": machine.get("device"),
            "training_type": "fine-tuning" if base else "pre-training",
        }  # fmt: skip
    if base and base.startswith("Salesforce/blip-"):
        more["license"] = "bsd-3-clause"
    if base and not Path(base).exists():  # an id of the Hub
        more["base_model"] = base
    data = ModelCardData(
        model_name=name, library_name="transformers", pipeline_tag="image-to-text", tags=["blip", "image-captioning"],
        eval_results=scores or None, ignore_metadata_errors=False, **more,
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n"
