"""Captions as BLIP was trained on them, and text that people can read."""

from __future__ import annotations

import re

NULLS = {"", "nan", "none", "null", "<na>", "n/a", "na", "#n/a", "-nan", r"\n"}  # how programs write an empty cell


def normalize_caption(caption: str, max_words: int = 30) -> str:
    """BLIP's own caption rule: lower case, `.!"()*#:;~` removed, white space folded, at most `max_words` words.

    Applied to training targets and to both sides of validation BLEU, so that all see the same text. Source:
    `pre_caption` in https://github.com/salesforce/BLIP/blob/main/data/utils.py
    """
    words = re.sub(r"[.!\"()*#:;~]", " ", caption.lower()).split()
    return " ".join(words[:max_words])


def has_words(caption: str) -> bool:
    """Whether there is anything to learn: a letter or a digit, in any script."""
    return any(map(str.isalnum, caption))


def detokenize(text: str) -> str:
    """Undo the spaces that BERT's tokenizer puts around punctuation: `a t - shirt` -> `a t-shirt`.

    Only white space changes, so the result has the same tokens.
    """
    text = re.sub(r"(?<=\w) ' (?=(?:s|t|d|m|re|ve|ll)\b)", "'", text)  # horse ' s, doesn ' t
    text = re.sub(r"(?<=\w) ([-/]) (?=\w)", r"\1", text)
    text = re.sub(r"(?<=\d) ([.,]) (?=\d)", r"\1", text)
    text = re.sub(r" ([,.!?;:%)\]])", r"\1", text)
    return re.sub(r"([(\[$#]) ", r"\1", text)
