"""Captions + references -> numbers: sacreBLEU, and the COCO metrics through `pycocoevalcap`."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from subprocess import PIPE
from typing import Any

from blip_lite.processing import normalize_caption

COCO_METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
TIME_LIMIT = 500  # seconds; METEOR's Java process can hang. 5,000 captions take about a minute


def sacrebleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Corpus BLEU of one caption an image against all of that image's references.

    Both sides go through `normalize_caption`, because the model only knows such text.

    Args:
        captions: one an image.
        references: for each image one or more.

    Returns:
        `{"score": 0 to 100, "signature": sacreBLEU's own}`.

    Raises:
        ValueError: nothing to score, lengths differ, or an image without references.
    """
    from sacrebleu.metrics.bleu import BLEU

    if not captions or len(captions) != len(references) or not all(references):
        raise ValueError(
            f"{len(captions)} captions and {len(references)} lists of references: expected as many, none empty"
        )
    # sacreBLEU wants the transpose, one stream per reference number, all of one length: an image with fewer
    # references repeats its last, which changes no count (https://github.com/mjpost/sacrebleu/issues/69).
    most = max(map(len, references))
    streams = [[normalize_caption(refs[min(k, len(refs) - 1)]) for refs in references] for k in range(most)]
    bleu = BLEU(lowercase=True)
    score = bleu.corpus_score([normalize_caption(c) for c in captions], streams).score
    return {"score": score, "signature": str(bleu.get_signature())}


def human_agreement(references: Sequence[Sequence[str]]) -> float | None:
    """sacreBLEU of each human caption against the other humans', averaged over who is left out; None where some
    image has a single reference."""
    fewest = min(map(len, references))
    if fewest < 2:
        return None
    scores = [
        sacrebleu([refs[k] for refs in references], [[*refs[:k], *refs[k + 1 :]] for refs in references])["score"]
        for k in range(fewest)
    ]
    return statistics.mean(scores)


def coco_metrics(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Bleu_1..4, METEOR, ROUGE_L and CIDEr on PTB-tokenised text, by `pycocoevalcap`.

    They run in a process of their own with a time limit: METEOR's lock is never released after an error.

    Args:
        captions: by image id.
        references: by image id, the same ids.

    Returns:
        The metrics by name; one that could not be computed is None, and `"reasons"` says why.

    Raises:
        ValueError: the ids differ, or an image has no reference.
    """
    if set(captions) != set(references) or not all(references.values()):
        raise ValueError("captions and references must have the same image ids, each with a reference")
    scores: dict[str, Any] = dict.fromkeys((*COCO_METRICS, "SPICE"))
    reasons = {"SPICE": "not computed: it needs Stanford CoreNLP 3.6.0, which is not installed by pip"}
    output, reason = "", "no `java` on this machine; install a Java runtime, 8 or later"
    if shutil.which("java"):
        # A newline or `|||` in one caption would shift all that follow, and an empty line is swallowed.
        clean = [
            {i: [" ".join(text.replace("|||", " ").split()) or "." for text in texts] for i, texts in side}
            for side in (references.items(), [(i, [caption]) for i, caption in captions.items()])
        ]
        output, reason = _in_a_child(json.dumps(clean))
    for line in output.splitlines():
        scores.update(json.loads(line))
    reasons.update({name: reason for name in COCO_METRICS if scores[name] is None})
    return {**scores, "reasons": reasons}


def _in_a_child(text: str) -> tuple[str, str]:
    """Run `_child` on its standard input; return its standard output, and what to blame for what is missing."""
    # LC_ALL: a German Java would print decimal commas. PYTHONPATH: find this package as the parent did.
    environment = {**os.environ, "LC_ALL": "C", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", "from blip_lite.metrics import _child; _child()"]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=environment) as child:
        try:
            output, errors = child.communicate(text, timeout=TIME_LIMIT)
            return output, f"failed: {(errors.strip().splitlines() or ['no message'])[-1]}"
        except subprocess.TimeoutExpired:
            child.kill()
            return child.communicate()[0], f"no answer within {TIME_LIMIT} s"


def _child() -> None:
    """Print one JSON line with the metrics that rarely fail, and one with METEOR, which does."""
    references, captions = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # the metrics print on their own account
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    ids = sorted(references)
    both = [{i: [{"caption": text} for text in side[i]] for i in ids} for side in (references, captions)]
    refs, hyps = (PTBTokenizer().tokenize(side) for side in both)
    if [len(refs.get(i, ())) for i in ids] != [len(references[i]) for i in ids] or len(hyps) != len(ids):
        raise SystemExit("the PTB tokenizer lost captions")
    bleu, _ = Bleu(4).compute_score(refs, hyps, verbose=0)
    scores = {f"Bleu_{n}": float(value) for n, value in enumerate(bleu, 1)}
    scores["ROUGE_L"], scores["CIDEr"] = (float(m.compute_score(refs, hyps)[0]) for m in (Rouge(), Cider()))
    print(json.dumps(scores), file=out, flush=True)
    print(json.dumps({"METEOR": float(Meteor().compute_score(refs, hyps)[0])}), file=out, flush=True)
    os._exit(0)  # METEOR's Java process and lock would keep us


def failure_groups(captions: Sequence[str]) -> dict[str, float]:
    """Signs of a model gone wrong, as shares of all captions: empty ones, a word repeated three times in a row,
    and the commonest caption."""
    words = [caption.split() for caption in captions]
    repeats = sum(any(len(set(w[i : i + 3])) == 1 for i in range(len(w) - 2)) for w in words)
    commonest = max(Counter(captions).values())
    n = len(captions)
    return {"empty": sum(not w for w in words) / n, "repetition": repeats / n, "commonest_caption": commonest / n}
