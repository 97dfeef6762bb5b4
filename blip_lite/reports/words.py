"""Which words a model says more often, or less often, than the people who described the same images."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from blip_lite.processing.text import normalize_caption

SHOWN = 10  # words of each kind


class WordUse(NamedTuple):
    """A word, in how many percent of the model's captions it is, and in how many of a human's."""

    word: str
    model: float
    human: float


def word_surprises(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[list[WordUse], list[WordUse]]:
    """The words whose use differs most from humans', by more than chance explains.

    Args:
        captions, references: by image id.

    Returns:
        (words said too often, words said too seldom), at most `SHOWN` of each, those that differ most first.
    """
    model: defaultdict[str, float] = defaultdict(float)
    human: defaultdict[str, float] = defaultdict(float)
    for image_id, caption in captions.items():
        texts = references[image_id]
        for counts, text, part in ((model, caption, 1.0), *((human, each, 1 / len(texts)) for each in texts)):
            for word in set(normalize_caption(text, 10_000).split()):
                counts[word] += part
    n = len(captions)
    found = [WordUse(word, 100 * model[word] / n, 100 * human[word] / n) for word in model.keys() | human.keys()]

    def beyond_chance(use: WordUse) -> bool:
        """Two standard errors of a share of `n` images."""
        share = (use.model + use.human) / 200
        return abs(use.model - use.human) > 200 * math.sqrt(
            max(0.0, share * (1 - share)) / n
        )  # rounding: a share of 1.0000001

    found = sorted(filter(beyond_chance, found), key=lambda use: (-abs(use.model - use.human), use.word))
    often, seldom = ([use for use in found if (use.model > use.human) == more] for more in (True, False))
    return often[:SHOWN], seldom[:SHOWN]
