"""Captions + references -> numbers: sacreBLEU, and the COCO metrics through `pycocoevalcap`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from blip_lite.processing import normalize_caption

METEOR_SECONDS = 600  # its Java process can hang; 5,000 captions take well under a minute


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

    Args:
        captions: by image id.
        references: by image id, the same ids.

    Returns:
        The metrics by name; one that could not be computed is None, and `"reasons"` says why.
    """
    names = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
    reasons = {"SPICE": "not computed: it needs Stanford CoreNLP 3.6.0, which is not installed by pip"}
    scores: dict[str, Any] = dict.fromkeys((*names, "SPICE"))
    if set(captions) != set(references):
        raise ValueError("captions and references have different image ids")
    if not shutil.which("java"):
        reasons.update(dict.fromkeys(names, "no `java` on this machine; install a Java runtime, 8 or later"))
        return {**scores, "reasons": reasons}

    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    ids = sorted(captions)
    # A newline or `|||` in one caption would shift all that follow, and an empty line is swallowed.
    clean = lambda text: " ".join(text.replace("|||", " ").split()) or "."  # noqa: E731
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        refs = PTBTokenizer().tokenize({i: [{"caption": clean(r)} for r in references[i]] for i in ids})
        hyps = PTBTokenizer().tokenize({i: [{"caption": clean(captions[i])}] for i in ids})
    if [len(refs.get(i, ())) for i in ids] != [len(references[i]) for i in ids] or len(hyps) != len(ids):
        reasons.update(dict.fromkeys(names, "the PTB tokenizer lost captions"))
        return {**scores, "reasons": reasons}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(refs, hyps, verbose=0)
        scores.update({f"Bleu_{n + 1}": value for n, value in enumerate(bleu)})
        scores["ROUGE_L"] = float(Rouge().compute_score(refs, hyps)[0])
        scores["CIDEr"] = float(Cider().compute_score(refs, hyps)[0])
    scores["METEOR"], reason = _meteor(refs, hyps)
    if reason:
        reasons["METEOR"] = reason
    return {**scores, "reasons": reasons}


def _meteor(refs: dict[str, list[str]], hyps: dict[str, list[str]]) -> tuple[float | None, str | None]:
    """METEOR in a process of its own: after an error its lock is never released, and it would hang ours."""
    command = [sys.executable, "-c", "from blip_lite.metrics import _meteor_main; _meteor_main()"]
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }  # C: no decimal commas
    try:
        done = subprocess.run(
            command,
            input=json.dumps([refs, hyps]),
            capture_output=True,
            text=True,
            timeout=METEOR_SECONDS,
            env=environment,
        )
        return float(done.stdout.strip().splitlines()[-1]), None
    except subprocess.TimeoutExpired:
        return None, f"METEOR gave no answer within {METEOR_SECONDS} s"
    except (IndexError, ValueError):
        return None, f"METEOR failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"


def _meteor_main() -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    refs, hyps = json.load(sys.stdin)
    score, _ = Meteor().compute_score(refs, hyps)
    print(score, flush=True)
    os._exit(0)  # its Java process and lock would keep us


def failure_groups(captions: Sequence[str]) -> dict[str, float]:
    """Signs of a model gone wrong, as shares of all captions: empty ones, a word repeated three times in a row,
    and the commonest caption."""
    words = [caption.split() for caption in captions]
    repeats = sum(any(len(set(w[i : i + 3])) == 1 for i in range(len(w) - 2)) for w in words)
    commonest = max(map(captions.count, set(captions)))
    n = len(captions)
    return {"empty": sum(not w for w in words) / n, "repetition": repeats / n, "commonest_caption": commonest / n}
