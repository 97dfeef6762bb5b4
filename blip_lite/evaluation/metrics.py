"""Captions + references -> numbers: sacreBLEU, and the COCO metrics through `pycocoevalcap`."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from blip_lite.processing.text import normalize_caption

BOOTSTRAP_SAMPLES = 1000
RARE_WORDS = 0.15  # share of words used of one image only, below which captions are made from templates
KNOWN_IMAGES = 0.1  # share of images of which training had every caption, from which on a match may be a leak
# don't is "do n't", dog's is "dog 's", 3:00 and sun-lit are one; other signs are left out
PTB_WORD = re.compile(r"\w+(?=n't\b)|n't\b|'\w+|\w+(?:[-/:.]\w+)*")


def streams_of(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """Normalised references as sacreBLEU wants them, transposed, one stream a number of a reference, all of one length:
    an image with fewer references repeats its last, which changes no count
    (https://github.com/mjpost/sacrebleu/issues/69)."""
    most = max(map(len, references))
    return [[normalize_caption(refs[min(k, len(refs) - 1)]) for refs in references] for k in range(most)]


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
    bleu = BLEU(lowercase=True)
    score = bleu.corpus_score([normalize_caption(c) for c in captions], streams_of(references)).score
    return {"score": score, "signature": str(bleu.get_signature())}


def cider(captions: dict[str, str], references: dict[str, list[str]]) -> float:
    """CIDEr-D (Vedantam et al. 2015), `pycocoevalcap`'s, without Java, so that each validation can have it. Its words
    are nearly those of the PTB tokeniser, which `evaluate.py` runs for the number that papers give.

    Args:
        captions, references: by image id; how rare a word is, is counted in these references.

    Returns:
        From 0 to 10.
    """
    from pycocoevalcap.cider.cider import Cider

    def words(texts: Sequence[str]) -> list[str]:
        return [" ".join(PTB_WORD.findall(text.lower())) for text in texts]

    score, _ = Cider().compute_score(
        {i: words(references[i]) for i in captions}, {i: words([caption]) for i, caption in captions.items()}
    )
    return float(score)


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


def sacrebleu_test(
    captions: Sequence[str], references: Sequence[Sequence[str]], others: Mapping[str, Sequence[str]] | None = None
) -> tuple[list[float], dict[str, dict[str, Any]]]:
    """95% interval of `sacrebleu` by sacreBLEU's own paired bootstrap (Koehn 2004; 1,000 samples, seed 12345).

    Args:
        captions, references: as in `sacrebleu`.
        others: captions of the same images by other systems.

    Returns:
        ([low, high], for each other system its `interval_95` and `p_value`, the chance of so large a difference
        between equal systems).
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.significance import PairedTest

    systems: list[tuple[str, Sequence[str]]] = [("a", [normalize_caption(c) for c in captions])]
    systems += [(f"b{n}", [normalize_caption(c) for c in other]) for n, other in enumerate((others or {}).values())]
    metric = {"BLEU": BLEU(lowercase=True, references=streams_of(references))}
    found: list[Any] = list(PairedTest(systems, metric, None, "bs", n_samples=BOOTSTRAP_SAMPLES)()[1]["BLEU"])
    intervals = [[float(r.mean - r.ci), float(r.mean + r.ci)] for r in found]
    # sacreBLEU counts the samples that differ by more than was seen; of a difference of 0 it thereby says p = 0.001
    p_values = [1.0 if r.score == found[0].score else float(r.p_value) for r in found[1:]]
    tests = zip(others or {}, intervals[1:], p_values, strict=True)
    return intervals[0], {name: {"interval_95": interval, "p_value": p} for name, interval, p in tests}


def bootstrap(scores: Sequence[float]) -> list[float]:
    """95% percentile interval of the mean of per-image scores, or of per-image differences (1,000
    samples, seed 12345)."""
    values, rng = np.asarray(scores, dtype=np.float64), np.random.default_rng(12345)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(BOOTSTRAP_SAMPLES)]
    return [float(v) for v in np.percentile(means, [2.5, 97.5])]


def variety(captions: Sequence[str], trained_on: Collection[str]) -> dict[str, Any]:
    """How much a model has to say.

    Args:
        captions: one an image.
        trained_on: the normalised captions of its training; none where they are not known.

    Returns:
        `distinct_captions` and `vocabulary_size` (words) as numbers; `novel_captions`, the share of captions that
        training did not have word for word, or None.
    """
    said = [normalize_caption(caption) for caption in captions]
    novel = sum(caption not in trained_on for caption in said) / len(said) if trained_on else None
    words = {word for caption in said for word in caption.split()}
    return {"distinct_captions": len(set(said)), "vocabulary_size": len(words), "novel_captions": novel}


def are_templates(references: Collection[Sequence[str]], trained_on: Collection[str]) -> bool:
    """Whether references are made from templates that training had, too, of other images: then a model is expected to
    match them word for word.

    People bring in words that they use of one image only: in Flickr8k 45 to 80% of all words, of 20 images as of
    8,000, where the drawn scenes have 4% or less. Where training had these very captions, that says nothing.

    Args:
        references: the captions of each image.
        trained_on: the normalised captions of training.
    """
    images = {tuple(normalize_caption(text, 10_000) for text in texts) for texts in references}
    counts = Counter(word for texts in images for word in {word for text in texts for word in text.split()})
    of_one_image = sum(count == 1 for count in counts.values()) / max(1, len(counts))
    known = sum(all(normalize_caption(text) in trained_on for text in texts) for texts in references) / len(references)
    return of_one_image < RARE_WORDS and known < KNOWN_IMAGES


def failure_groups(captions: Sequence[str]) -> dict[str, float]:
    """Signs of a model gone wrong, as shares of all captions: empty ones, a word repeated three times in a row,
    and the commonest caption."""
    words = [caption.split() for caption in captions]
    repeats = sum(any(len(set(w[i : i + 3])) == 1 for i in range(len(w) - 2)) for w in words)
    commonest = max(Counter(captions).values())
    n = len(captions)
    return {"empty": sum(not w for w in words) / n, "repetition": repeats / n, "commonest_caption": commonest / n}
