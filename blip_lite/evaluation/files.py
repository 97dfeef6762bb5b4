"""The files of evaluations: nothing is replaced by less, and a table of all of them.

A run's own `coco_metrics.json`, `captions.jsonl` and `report.html` are those of the whole evaluation of `best` with the
run's settings (`_SPLIT` for another split than test). Every other evaluation has a folder of its own under
`evaluations/`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from blip_lite.errors import ConfigError
from blip_lite.reports import report
from blip_lite.reports.metric_names import METRICS
from blip_lite.storage import lines_of, read_metrics, write_text

LONGEST_NAME = 80  # characters of a folder's name
EVALUATIONS = "evaluations"


class Files(NamedTuple):
    """The three files of an evaluation."""

    metrics: Path
    captions: Path
    report: Path

    @classmethod
    def of(cls, folder: Path, split: str = "test") -> Files:
        suffix = "" if split == "test" else f"_{split}"
        return cls(
            folder / f"coco_metrics{suffix}.json", folder / f"captions{suffix}.jsonl", folder / f"report{suffix}.html"
        )


def check_writable(folder: Path) -> None:
    """Make the folder. Raises ConfigError where no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}); name another with --output_dir") from error


def checkpoint_name(ckpt: str, run: Path | None) -> str:
    """`best` or `checkpoint-000012` of the run; another directory with that above it; a Hub id."""
    path = Path(ckpt).resolve()
    if not path.exists():
        return ckpt if len(Path(ckpt).parts) <= 2 else path.name
    name = path.name.removeprefix(".old-")  # a run was killed, or is busy, between two renames
    return name if run and path.parent == run.resolve() else f"{path.parent.name}/{name}"


def slug(*parts: str) -> str:
    """A folder's name; what it cannot hold is told apart by a hash."""
    text = "_".join(parts)
    plain = "_".join(re.sub(r"[^\w.+-]+", "-", part).strip("-.") for part in parts)
    if plain == text and len(text) <= LONGEST_NAME:
        return plain
    return f"{plain[:LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def images_of(result: dict[str, Any]) -> int:
    """How many images were to be captioned."""
    return int(result["num_images"]) + len(result["failed_images"])


def name_of(result: dict[str, Any]) -> str:
    """What an evaluation that is not the run's own is called: checkpoint, split, settings that differ, images."""
    differs = result.get("differs", {})
    parts = [differs.get("ckpt") or checkpoint_name(result["checkpoint"], Path(result["checkpoint"]).parent)]
    parts += [result["split"]] if result["split"] != "test" else []
    parts += [f"{name}-{value}" for name, value in differs.items() if name != "ckpt"]
    parts += [f"{images_of(result)}-images"] if result.get("left_out") or not differs else []
    return slug(*parts)


def identity(result: dict[str, Any]) -> str:
    """The same for evaluations of the same weights with the same settings on the same images."""
    names = ("checkpoint_sha256", "decoding", "dtype", "split", "data_fingerprint")
    return hashlib.sha256(json.dumps([images_of(result), *(result.get(n) for n in names)]).encode()).hexdigest()[:6]


def read(path: Path) -> dict[str, Any] | None:
    """An earlier evaluation; None if there is none, or one that cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text("utf-8"))
        return found if isinstance(found, dict) and "num_images" in found else None
    return None


def place(folder: Path, result: dict[str, Any], asked: bool) -> tuple[Files, str]:
    """Where an evaluation's files go, and why not into `folder` itself ('' if they do).

    Args:
        asked: the user named `folder`; then they always do.
    """
    own, images = Files.of(folder, result["split"]), images_of(result)
    before, why = read(own.metrics), ""
    if not asked and result["left_out"]:
        why = f"{images} of {images + result['left_out']} images"
    elif not asked and result["differs"]:
        why = ", ".join(f"{name} {value!r}" for name, value in result["differs"].items())
    elif not asked and before and all(before.get(name) == result[name] for name in ("checkpoint_sha256", "dataset")):
        more = before["num_images"] > result["num_images"]
        why = f"{result['num_images']} images, and {own.metrics} is of {before['num_images']}" if more else ""
    if why:
        return Files.of(folder / EVALUATIONS / name_of(result)), why
    if before and identity(before) != identity(result):
        set_aside(own, folder / EVALUATIONS / f"{name_of(before)}-{identity(before)}")
    return own, ""


def set_aside(files: Files, folder: Path) -> None:
    """Move another evaluation's files out of the way."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, new in zip(files, Files.of(folder), strict=True):
        if path.is_file():
            path.replace(new)
    print(f"an earlier evaluation of other weights, settings or images is now in {folder}")


def keep_what_was_known(result: dict[str, Any], captions: list[dict[str, Any]], files: Files) -> None:
    """Take over what an earlier evaluation of the very same captions had, and this one was not asked for or could not
    compute: SPICE, the comparison, the untouched base."""
    before = read(files.metrics)
    if before is None or identity(before) != identity(result):
        return
    with contextlib.suppress(OSError, ValueError, KeyError):
        rows = {r["image_id"]: r for r in map(json.loads, lines_of(files.captions.read_text("utf-8")))}
        if {i: row["caption"] for i, row in rows.items()} != {row["image_id"]: row["caption"] for row in captions}:
            return
        for system, values in before["baselines"].items():
            if "reason" in values:  # it could not be loaded
                continue
            known = result["baselines"].setdefault(system, {})
            if known.get("checkpoint", values.get("checkpoint")) == values.get("checkpoint"):
                known |= {key: v for key, v in values.items() if v is not None and known.get(key) is None}
        for name in METRICS:
            if result.get(name) is None and before.get(name) is not None:
                result[name] = before[name]
                result["reasons"].pop(name, None)
                if interval := before["intervals_95"].get(name):
                    result["intervals_95"][name] = interval
                result |= {"spice": before["spice"]} if name == "SPICE" else {}
                for row in captions:
                    row["scores"] |= {k: v for k, v in rows[row["image_id"]]["scores"].items() if k == name}


def write(
    files: Files, result: dict[str, Any], captions: Sequence[dict[str, Any]], pictures: dict[str, Any], run: Path | None
) -> None:
    """Each file whole or not at all.

    Args:
        captions: the lines of `captions.jsonl`.
        pictures: what opens each image, by its id.
        run: whose curves the report shows.
    """
    files.metrics.parent.mkdir(parents=True, exist_ok=True)
    write_text(files.captions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in captions))
    write_text(files.metrics, json.dumps(result, indent=2) + "\n")
    write_text(files.report, report.page(result, captions, pictures, read_metrics(run) if run else []))


def table(run: Path) -> str:
    """All evaluations of a run, one a line."""
    found = [("", path) for path in sorted(run.glob("coco_metrics*.json"))]
    found += [(path.parent.name, path) for path in sorted((run / EVALUATIONS).glob("*/coco_metrics.json"))]
    rows = [["evaluation", "checkpoint", "split", "images", "differs", "sacreBLEU", "CIDEr", "when"]]
    for name, path in found:
        if (result := read(path)) is None:
            rows.append([name or path.name, "cannot be read", *[""] * 6])
            continue
        step, cider = result.get("step"), result.get("CIDEr")
        left_out = result.get("left_out")
        when = result.get("evaluated") or datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat()
        differs = dict(result.get("differs", {}))
        known = differs.pop("ckpt", "best") if "differs" in result else checkpoint_name(result["checkpoint"], run)
        rows.append(
            [
                name or "the run's own",
                known + (f" (step {step})" if step is not None else ""),
                result["split"],
                f"{result['num_images']}" + (f" of {images_of(result) + left_out}" if left_out else ""),
                ", ".join(f"{k} {v!r}" for k, v in differs.items()) or "–",
                f"{result['sacrebleu']:.2f}",
                "–" if cider is None else f"{cider:.3f}",
                when[:16].replace("T", " "),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) if found else f"{run} has no evaluation yet: evaluate makes one"
