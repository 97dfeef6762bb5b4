"""Pictures that are written as text."""

from __future__ import annotations

import base64
import re

from blip_lite.errors import ImageError

URL_SAFE = str.maketrans("-_", "+/")


def from_base64(text: str) -> bytes:
    """The bytes of a base64 text: of either alphabet, in lines or in one, padded or not, by itself or in a `data:` URL.

    Raises:
        ImageError: it is none.
    """
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    letters = "".join(text.split()).translate(URL_SAFE)
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except ValueError:
        raise ImageError("not valid base64") from None


def is_base64(text: str) -> bool:
    """Whether a text is a picture, not a path: a `data:` URL, or longer than a file's name and of base64's letters."""
    return re.match(r"data:image/", text, re.IGNORECASE) is not None or (
        len(text) > 255 and re.fullmatch(r"[\w+/\s-]{255,}=*\s*", text, re.ASCII) is not None
    )
