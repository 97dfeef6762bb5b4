"""Images with their captions -> the page on which people correct them."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from PIL import ImageOps

from blip_lite.errors import ImageError
from blip_lite.processing.images import ImageInput, open_image
from blip_lite.processing.picture import Picture
from blip_lite.processing.text import NULLS
from blip_lite.reports.page import render

MOST = 1000  # pictures of a page that holds them
PICTURES = 8_200_000  # bytes that these take, so that such a page stays below 10 MB
LARGEST = 40_000  # bytes of one, in base64
ENCODINGS = ((448, 80), (384, 75), (320, 70), (256, 60), (192, 50), (128, 40))  # (pixels a side, JPEG quality)
FEW_SCORES = 10  # below these, a tenth of them says nothing


@dataclass
class Item:
    """A picture with what a model said of it, and what a person decided.

    Attributes:
        picture: what is shown.
        name: of the picture, as `reviewed.csv` calls it.
        machine: the captions of the model, the best first.
        score: of the best, if known.
        doubts: reasons to look at it first.
        problem: why it cannot be a row of a data set; then there is nothing to decide.
        place: its number in the file.
        order: its number where the doubtful ones come first.
        status: approved, rejected, or "" if nobody has decided yet.
        captions: the machine's, or those of the person who decided.
        src: of the page's `<img>`; "" shows none.
    """

    picture: Picture
    name: str
    machine: list[str]
    score: float | None = None
    doubts: list[str] = field(default_factory=list)
    problem: str = ""
    place: int = 0
    order: int = 0
    status: str = ""
    captions: list[str] = field(default_factory=list)
    src: str = ""

    def __post_init__(self) -> None:
        self.captions = self.captions or self.machine

    @property
    def key(self) -> str:
        """Of the picture and its machine captions: what was decided of these holds for no others."""
        text = "\0".join((self.name, *self.machine))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def find_doubts(items: Sequence[Item]) -> None:
    """Complete `doubts` by what only all captions together tell, and put the doubtful items first in `order`: those
    with a flag, with no caption, with the caption of others, with a score in the lowest tenth."""
    said = Counter(caption.casefold() for item in items for caption in item.machine[:1])
    scores = sorted(item.score for item in items if item.score is not None)
    low = scores[math.ceil(len(scores) / 10) - 1] if len(scores) >= FEW_SCORES else -math.inf
    for place, item in enumerate(items):
        item.place = place
        same = said[item.machine[0].casefold()] if item.machine else 0
        if not any(map(str.strip, item.machine)) and not item.problem and not item.doubts:
            item.doubts.append("empty caption")
        elif same > 1:
            item.doubts.append(f"{same} pictures have this caption")
        if item.score is not None and item.score <= low:
            item.doubts.append("score in the lowest tenth")

    def rank(item: Item) -> tuple[bool, bool, float]:
        return bool(item.problem), not item.doubts, 0.0 if item.score is None else item.score

    for order, item in enumerate(sorted(items, key=rank)):
        item.order = order


def embed(items: Sequence[Item]) -> None:
    """Put a small copy of each picture into its `src`, the smaller the more there are. What cannot be opened becomes
    the item's `problem`; one that has a problem already is not waited for once more."""
    most = min(LARGEST, PICTURES // max(1, len(items)))
    for item in items:
        if not item.problem:
            try:
                item.src = (
                    "data:image/jpeg;base64," + base64.b64encode(small(item.picture.open(), most * 3 // 4)).decode()
                )
            except (ImageError, OSError) as error:
                item.problem = str(error)


def small(image: ImageInput, most: int) -> bytes:
    """An image as a JPEG of at most `most` bytes, if 128 pixels a side can do that. Raises ImageError."""
    whole, data = open_image(image), b""
    for size, quality in ENCODINGS:
        buffer = io.BytesIO()
        fitting = whole if max(whole.size) <= size else ImageOps.contain(whole, (size, size))
        fitting.save(buffer, "JPEG", quality=quality)
        data = buffer.getvalue()
        if len(data) <= most:
            break
    return data


def review_page(items: Iterable[Item], then: str, *, saves_to: str = "", folder: str = "", left_out: str = "") -> str:
    """The page, one file that needs no network.

    Args:
        items: what it shows; their `src` says where the pictures are.
        then: the command that trains on what was reviewed.
        saves_to: the file to which a server saves each decision; without one, the browser keeps them.
        folder: in which the file that the browser downloads is to be.
        left_out: what the page does not show.
    """
    page = render(
        "review.html",
        items=sorted(items, key=lambda item: item.order),
        nulls=sorted(NULLS),
        then=then,
        saves_to=saves_to,
        folder=folder,
        left_out=left_out,
        nonce=secrets.token_urlsafe(16),
    )
    return page.encode("utf-8", "backslashreplace").decode()  # file names that are no UTF-8
