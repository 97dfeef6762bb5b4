"""Decoding settings -> quality against speed: a table and a chart."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from accelerate import PartialState

from blip_lite.errors import ConfigError
from blip_lite.evaluation import files, metrics
from blip_lite.evaluation.captions import caption_with
from blip_lite.evaluation.coco_process import coco_metrics
from blip_lite.evaluation.evaluate import Plan, check_options, prepare
from blip_lite.reports.charts import chart
from blip_lite.reports.metric_names import HEADLINES, METRICS, hundredths
from blip_lite.reports.page import render
from blip_lite.settings import EvalConfig
from blip_lite.storage import write_text

SWEPT = {
    "num_beams": int,
    "max_new_tokens": int,
    "min_new_tokens": int,
    "length_penalty": float,
    "repetition_penalty": float,
    "no_repeat_ngram_size": int,
}


def sweep(config: EvalConfig) -> list[dict[str, Any]]:
    """Caption and score a split (validation, unless told otherwise: settings chosen on test images would make the
    test's numbers too good) with every combination of `config.sweep`; print a table, write `sweep.json` and
    `sweep.html`.

    Returns:
        On the main process, one row a combination, in the order of the settings: those settings, images_per_second
        and scores.

    Raises:
        ConfigError: a setting that is not known or makes no sense, before any image is captioned.
    """
    check_options(config)
    grid = parse_grid(config.sweep or [])
    config = config.replace(split=config.split or "validation")
    plan = prepare(config)
    ckpt, run, run_config, data, split, examples = plan[:6]
    kept = Path(config.output_dir or run or ".")
    folder = Path(config.output_dir or kept / files.EVALUATIONS / name_of(plan, config.sweep or []))
    for values in grid:
        run_config.replace(**values).validate()
    files.check_writable(kept / "captions")
    results: dict[str, dict[str, Any]] = {}
    systems: dict[str, dict[str, str]] = {}
    for values in grid:
        label = ", ".join(f"{name} {value:g}" for name, value in values.items())
        settings = run_config.replace(**values)
        systems[label], _, about = caption_with(ckpt, examples, settings, config.dtype, kept / "captions")
        results[label] = {**values, "images_per_second": about["images_per_second"]}
    if not PartialState().is_main_process:
        return []
    [first, *_] = systems.values()
    references = {e.image_id: list(e.captions) for e in examples if e.image_id in first}
    coco = coco_metrics(first, references, systems)["others"]
    rows = []
    for label, captions in systems.items():
        bleu = metrics.sacrebleu(list(captions.values()), [references[i] for i in captions])["score"]
        rows.append({**results[label], "sacrebleu": bleu, **coco[label]})
    columns = [*grid[0], "images_per_second", *(n for n in HEADLINES if rows[0].get(n) is not None)]
    print(f"{data.name}, {split}: {len(references)} images, {ckpt}")
    for line in ([*columns], *([f"{row[name]:.4g}" for name in columns] for row in rows)):
        print("  ".join(f"{text:>{max(8, len(name))}}" for text, name in zip(line, columns, strict=True)))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "sweep.json", json.dumps(rows, indent=2) + "\n")
    title = f"{data.name}, {split}: decoding of {ckpt}"
    write_text(folder / "sweep.html", page(title, rows, list(grid[0])))
    print(f"written: {folder / 'sweep.json'}, {folder / 'sweep.html'}")
    return rows


def page(title: str, rows: list[dict[str, Any]], swept: list[str]) -> str:
    """Quality against speed as a chart, one point a combination, and the table."""
    names = [name for name in HEADLINES if rows[0].get(name) is not None]
    quality = "CIDEr" if "CIDEr" in names else "sacrebleu"
    labels = [", ".join(f"{name.replace('_', ' ')} {row[name]:g}" for name in swept) for row in rows]
    points = {
        label: {row["images_per_second"]: METRICS[quality].factor * row[quality]}
        for label, row in zip(labels, rows, strict=True)
    }
    table = [
        [
            *(f"{row[name]:g}" for name in swept),
            f"{row['images_per_second']:.3g}",
            *(hundredths(name, row[name], 1) for name in names),
        ]
        for row in rows
    ]
    return render(
        "curves.html",
        title=title,
        charts=[chart(METRICS[quality].title, "images a second", points, "points")],
        columns=[
            *(name.replace("_", " ") for name in swept),
            "images a second",
            *(METRICS[name].title for name in names),
        ],
        rows=table,
    )


def name_of(plan: Plan, grid: list[str]) -> str:
    """What a sweep is called: each has a folder of its own."""
    settings = [f"{name}-{value}" for name, value in plan.differs.items()]
    images = [f"{len(plan.examples)}-images"] if plan.left_out else []
    return files.slug("sweep", plan.split, *settings, *(text.replace("=", "-") for text in grid), *images)


def parse_grid(texts: list[str]) -> list[dict[str, Any]]:
    """`["num_beams=1,3", "length_penalty=0.8,1"]` -> every combination. Raises ConfigError."""
    lists: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = str(text).partition("=")
        if name in lists:
            raise ConfigError(f"--sweep {text}: {name} comes twice; all of its values go into one, {name}=1,2")
        try:
            lists[name] = [SWEPT[name](value) for value in values.split(",")]
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"--sweep {text}: expected name=value,value (in quotes, in YAML) with a name of {', '.join(SWEPT)}"
            ) from error
        if len({*lists[name]}) < len(lists[name]):
            raise ConfigError(f"--sweep {text}: a value comes twice")
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
