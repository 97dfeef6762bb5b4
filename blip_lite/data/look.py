"""A first look at data, in words: what would be seen by opening it, before a model is trained on it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

from blip_lite.data.dataset import DataSet
from blip_lite.processing.processor import Processor
from blip_lite.processing.text import normalize_caption
from blip_lite.settings import SPLITS

T = TypeVar("T")

SAMPLES = 3
FEW = 50  # validation images, below which the best checkpoint is a matter of chance
LOOKED_AT = 2000  # captions, evenly spaced
MANY = 0.05  # a share worth a word

_URL = re.compile(r"(https?://|www\.)\S+$", re.IGNORECASE)
_PATH = re.compile(r"\S*[/\\]?\S+\.(jpe?g|png|webp|gif|bmp|tiff?|txt|json)$", re.IGNORECASE)
_NUMBERS = re.compile(r"[\d\s.,;:+\-/#]+$")


def first_look(data: DataSet, processor: Processor | None, max_length: int) -> list[str]:
    """Three pictures with their captions, and warnings where captions are no captions, or do not fit the vocabulary.

    Args:
        data: all splits are looked at.
        processor: of the model; None if it makes its vocabulary from the captions.
        max_length: of a caption, in tokens.
    """
    examples = [example for split in SPLITS for example in data.splits[split]]
    captions = spread([caption for example in examples for caption in example.captions], LOOKED_AT)
    lines = [f"{e.image_id}: {shortened(e.captions[0])!r}" for e in spread(data.splits["train"] or examples, SAMPLES)]
    lines += [f"warning: {text}" for text in warnings(captions, processor, max_length)] if captions else []
    if 0 < len(data.splits["validation"]) < FEW:
        lines.append(
            f"warning: only {len(data.splits['validation'])} validation images: which checkpoint is best is left to "
            "chance. Name more, in a folder `validation` or a column `split`"
        )
    return lines


def warnings(captions: Sequence[str], processor: Processor | None, max_length: int) -> Iterator[str]:
    """What is odd about captions, in one line each."""
    kinds = (("URLs", _URL), ("numbers", _NUMBERS), ("names of files", _PATH))
    for kind, pattern in kinds:
        if (part := share(pattern.match(caption) is not None for caption in captions)) > MANY:
            yield f"{part:.0%} of the captions are {kind}. Name the column of the captions with --caption_column"
    if (part := share(len(re.findall(r"[^\W\d_]{2,}", caption)) == 0 for caption in captions)) > 0.5:
        yield f"{part:.0%} of the captions hold no word of letters"
    cut = share(len(normalize_caption(c, 10**6).split()) > len(normalize_caption(c).split()) for c in captions)
    if cut > MANY:
        yield f"{cut:.0%} of the captions are cut after 30 words, BLIP's own rule"
    if processor is None:
        return
    tokens = [processor.words(normalize_caption(caption)) for caption in captions]
    total, unknown = sum(map(len, tokens)), processor.tokenizer.token_to_id("[UNK]")
    if (part := sum(token == unknown for ids in tokens for token in ids) / max(1, total)) > MANY / 5:
        yield (
            f"{part:.0%} of the tokens are [UNK]: this vocabulary lacks the script or the signs of these captions, and "
            "the model cannot say them"
        )
    if (part := share(len(ids) + 2 > max_length for ids in tokens)) > MANY:
        yield f"{part:.0%} of the captions are cut at {max_length} tokens; --max_length allows more"


def share(found: Iterator[bool]) -> float:
    values = list(found)
    return sum(values) / max(1, len(values))


def shortened(caption: str) -> str:
    return caption if len(caption) <= 120 else caption[:117] + "..."


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spaced, the first one among them."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)
