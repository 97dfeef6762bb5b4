"""What a request may hold, wherever one is answered: the sizes of its images, the bounds of its settings."""

from __future__ import annotations

from PIL import Image

from blip_lite.errors import ImageError, TooLarge
from blip_lite.processing.images import not_an_image, size_of

MAX_IMAGES = 32  # a request
MAX_BYTES = 20 * 2**20  # an image
MAX_PIXELS = 50_000_000  # an image
MAX_PROMPT = 100  # characters
LIMITS = {"num_beams": 10, "max_new_tokens": 60, "num_return_sequences": 10, "top_k": 1000}
URL_SECONDS = 10.0  # for one image


def look(data: bytes) -> bytes:
    """The bytes of an image, after a look at its size; nothing is decoded yet.

    Raises:
        TooLarge: more bytes or pixels than are taken.
        ImageError: not an image.
    """
    if len(data) > MAX_BYTES:
        raise TooLarge(f"{len(data)} bytes; at most {MAX_BYTES}")
    try:
        width, height = size_of(data)
    except Image.DecompressionBombError as error:
        raise TooLarge(str(error)) from error
    except Exception:  # Pillow raises many kinds
        raise ImageError(not_an_image(data)) from None
    if width * height > MAX_PIXELS:
        raise TooLarge(f"{width} x {height} pixels; at most {MAX_PIXELS}")
    return data
