"""A first look at data, in words: what would be seen by opening it, before a model is trained on it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from blip_lite.data.dataset import DataSet
from blip_lite.errors import DataError
from blip_lite.processing.picture import Picture
from blip_lite.processing.processor import Processor
from blip_lite.processing.text import normalize_caption
from blip_lite.reports.page import picture, render
from blip_lite.settings import SPLITS, OptimisationSettings

T = TypeVar("T")

SAMPLES = 3
FEW = 50  # validation images, below which the best checkpoint is a matter of chance
LOOKED_AT = 2000  # captions, evenly spaced
MANY = 0.05  # a share worth a word

KINDS = {  # what people mistake for captions
    "URLs": re.compile(r"(https?://|www\.)\S+$", re.IGNORECASE),
    "numbers": re.compile(r"[\d\s.,;:+\-/#e]+$"),
    "names of files": re.compile(r"\S*[/\\]?\S+\.(jpe?g|png|webp|gif|bmp|tiff?|txt|json)$", re.IGNORECASE),
    "boxes": re.compile(r".*(<loc\d+>|<box>|<bbox>)", re.DOTALL),
    "a spreadsheet's errors": re.compile(r"#(REF|NAME|VALUE|DIV/0|NUM|NULL|SPILL)[!?]?$"),
    "lists or objects": re.compile(r"[\[{].*[\]}]$", re.DOTALL),
}
GENERATED = re.compile(r"negative prompt:|steps: \d+, ", re.IGNORECASE)  # beside AUTOMATIC1111's pictures


def first_look(data: DataSet, processor: Processor | None, settings: OptimisationSettings) -> list[str]:
    """Three pictures with their captions, and warnings where captions are no captions, or do not fit the vocabulary
    of `processor` (None if that is made from them)."""
    captions = some_captions(data)
    lines = [f"{example.image_id}: {shortened(example.captions[0])!r}" for _, example in samples(data)[:SAMPLES]]
    if captions:
        lines += lost(captions)
        lines += [f"warning: {text}" for text in warnings(captions, processor, settings)]
    if 0 < (count := len(data.splits["validation"])) < FEW:
        lines.append(
            f"warning: only {count} validation image{'s' * (count > 1)}: a share of them is known to "
            f"±{100 / count**0.5:.0f} points only, so which checkpoint is best is left to chance; the loss decides "
            "(unless --best_metric says otherwise), as the score would be worse. "
            "Name more, in a folder `validation` or a column `split`"
            + (", or draw more with --validation_share" if data.drawn else "")
        )
    return lines


def samples(data: DataSet, count: int = SAMPLES) -> list[tuple[str, Picture]]:
    """(split, picture): a few of each split, to be looked at."""
    return [(split, picture) for split in SPLITS for picture in spread(data.splits[split], count)]


def card(split: str, example: Picture, texts: Sequence[str], note: str = "") -> dict[str, Any]:
    """A picture with its captions, for a page."""
    named = ", ".join([example.image_id, split, *([note] if note else [])])
    return {"src": picture(example.open), "texts": texts, "note": named}


def first_look_page(data: DataSet, notes: Sequence[str]) -> str:
    """The first look as one page: what was told, how much there is, and some pictures of each split."""
    counts = [[s, len(part), sum(len(e.captions) for e in part)] for s, part in data.splits.items() if part]
    looks = [card(split, example, example.captions) for split, example in samples(data)]
    return render("plan.html", title=f"A first look at {data.name}", notes=notes, rows=counts, looks=looks, charts=[])


def some_captions(data: DataSet) -> list[str]:
    return spread([c for split in SPLITS for example in data.splits[split] for c in example.captions], LOOKED_AT)


def refuse_what_is_no_caption(data: DataSet) -> None:
    """Raises DataError where more than half of the captions are URLs, numbers, names of files, boxes or lists."""
    captions = some_captions(data)
    odd = {c: kind for c in captions for kind, pattern in KINDS.items() if pattern.match(c.strip())}
    part = share(caption in odd for caption in captions)
    if part > 0.5:
        kinds = " and ".join(kind for kind, _ in Counter(odd[c] for c in captions if c in odd).most_common())
        raise DataError(
            f"{data.name}: {part:.0%} of the captions are {kinds}, e.g. {shortened(next(iter(odd)))!r}. "
            "Name the column of the captions with --caption_column"
        )


def shares_of_kinds(captions: Sequence[str]) -> dict[str, float]:
    return {
        kind: share(pattern.match(caption.strip()) is not None for caption in captions)
        for kind, pattern in KINDS.items()
    }


def lost(captions: Sequence[str]) -> Iterator[str]:
    """What BLIP's rule and the uncased vocabulary take out of captions, if it is more than capitals and full stops."""
    accents = share(any(map(unicodedata.combining, unicodedata.normalize("NFD", c))) for c in captions)
    signs = share(re.search(r"[!\"()*#:;~]", caption) is not None for caption in captions)
    if accents > MANY:
        yield f"{accents:.0%} of the captions lose accents: the vocabulary is uncased, and writes é as e"
    if signs > MANY:
        yield f"{signs:.0%} of the captions lose signs: BLIP's rule takes out . ! \" ( ) * # : ; ~"


def warnings(captions: Sequence[str], processor: Processor | None, settings: OptimisationSettings) -> Iterator[str]:
    """What is odd about captions, in one line each."""
    for kind, part in shares_of_kinds(captions).items():
        if part > MANY:
            yield f"{part:.0%} of the captions are {kind}. Name the column of the captions with --caption_column"
    if (part := share(len(re.findall(r"[^\W\d_]{2,}", caption)) == 0 for caption in captions)) > 0.5:
        yield f"{part:.0%} of the captions hold no word of letters"
    if (part := share(re.search(r"&(#\d+|[a-z]{2,6});|</?[a-z]+/?>", c) is not None for c in captions)) > MANY:
        yield f"{part:.0%} of the captions hold HTML (&amp; or <b>), which the model would learn to write"
    if (part := share(re.search(r"\S *(\||<sep>|\[SEP\]) *\S", caption) is not None for caption in captions)) > MANY:
        yield f"{part:.0%} of the captions hold a | or <sep>. If these are several captions, give each its own column"
    if (part := share(re.search(r"\[/EN#", caption) is not None for caption in captions)) > MANY:
        yield f"{part:.0%} of the captions hold marks ([/EN#1/people A man]), which the model would learn to write"
    if (part := share(GENERATED.match(caption.strip()) is not None for caption in captions)) > MANY:
        yield f"{part:.0%} of the captions are an image generator's (Negative prompt, Steps); keep the first line"
    if (part := share(len(caption.split()) == 1 for caption in captions)) > 0.5:
        yield f"{part:.0%} of the captions are one word: is it a list of words that was taken for captions, or a class?"
    commonest, count = Counter(map(normalize_caption, captions)).most_common(1)[0]
    if count > 0.5 * len(captions) and len(captions) > 4:
        yield f"{count / len(captions):.0%} of the captions are {shortened(commonest)!r}"
    longest = settings.max_words
    cut = share(len(normalize_caption(c, longest + 1).split()) > longest for c in captions)
    if cut > MANY:
        yield f"{cut:.0%} of the captions are cut after {longest} words, BLIP's own rule; --max_words allows more"
    if processor:
        yield from token_warnings(captions, processor, settings)


def token_warnings(captions: Sequence[str], processor: Processor, settings: OptimisationSettings) -> Iterator[str]:
    """What the vocabulary lacks, and what is cut."""
    longest = settings.max_words
    tokens = [processor.words(normalize_caption(caption, longest)) for caption in captions]
    total, unknown = sum(map(len, tokens)), processor.tokenizer.token_to_id("[UNK]")
    if (part := sum(token == unknown for ids in tokens for token in ids) / max(1, total)) > MANY / 5:
        yield (
            f"{part:.0%} of the tokens are [UNK]: this vocabulary lacks the script or the signs of these captions, and "
            "the model cannot say them"
        )
    if (part := share(len(ids) + 2 > settings.max_length for ids in tokens)) > MANY:
        yield f"{part:.0%} of the captions are cut at {settings.max_length} tokens; --max_length allows more"


def share(found: Iterator[bool]) -> float:
    values = list(found)
    return sum(values) / max(1, len(values))


def shortened(caption: str) -> str:
    return caption if len(caption) <= 120 else caption[:117] + "..."


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spaced, the first one among them."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)
