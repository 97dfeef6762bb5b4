"""Images with their captions -> a page to look at."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Callable, Sequence
from typing import Any

from blip_lite.errors import ImageError
from blip_lite.processing.images import ImageInput
from blip_lite.reports.page import SEARCH, STYLE, thumbnail


def gallery(images: Sequence[tuple[Callable[[], ImageInput], dict[str, Any]]]) -> str:
    """A page of images with their captions, to be searched. One that failed is shown with the reason.

    Args:
        images: (what loads the image, its row in the journal of captions).
    """
    cards = []
    for load, row in images:
        captions = row["caption"] if isinstance(row["caption"], list) else [row["caption"] or ""]
        notes = [str(row["image"])]
        notes += [f"error: {row['error']}"] if "error" in row else []
        notes += [f"score {row['score']}"] if "score" in row else []
        notes += [f"to review: {', '.join(row['review'])}"] if row.get("review") else []
        picture = ""
        if "error" not in row:  # what could not be fetched is not waited for once more
            with contextlib.suppress(ImageError, OSError):
                picture = f'<img loading=lazy src="{thumbnail(load(), 224, 75)}">'
        texts = "".join(f"<b>{html.escape(caption)}</b>" for caption in captions)
        cards.append(
            f"<div class=card>{picture}{texts}<span class=note>{'<br>'.join(map(html.escape, notes))}</span></div>"
        )
    return (
        (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            f"<title>captions</title><style>{STYLE}</style><h1>Captions</h1>"
            f"<p><input id=find placeholder='search captions'> <span id=count class=note>{len(cards)} images</span></p>"
            f"<div class=cards>{''.join(cards)}</div><script>{SEARCH}</script></html>\n"
        )
        .encode("utf-8", "backslashreplace")
        .decode()
    )
