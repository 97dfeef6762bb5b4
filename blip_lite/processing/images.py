"""Untrusted bytes -> upright RGB pictures."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from blip_lite.errors import ImageError

ImageInput = str | Path | bytes | Image.Image | np.ndarray


IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
)  # no others, whatever a file is called: of EPS, Pillow runs Ghostscript


STRIP = 256  # rows


PIXELS_A_BYTE = 300  # of a file; photographs have 2 to 20, and a bomb of few bytes takes many seconds


MAX_SIDE = 2**16 - 1  # pixels; JPEG's own limit


def open_image(source: ImageInput) -> Image.Image:
    """Decode an image and turn it into upright RGB.

    EXIF orientation is applied. Alpha and palette transparency are laid on white, 16-bit greys are scaled to 8
    bits (Pillow would clip them), everything else is converted by Pillow. Of an animation, the first frame.

    Args:
        source: a path, the bytes of a file, a Pillow image, or an array `[height, width]` or
            `[height, width, 1|3|4]`, uint8 (0 to 255) or floating (0 to 1).

    Raises:
        ImageError: no such file, not an image, truncated, or a decompression bomb: more than Pillow's limit of 179
            megapixels, a side above 65,535, or more than 89 megapixels (`Image.MAX_IMAGE_PIXELS`) at above 300 a byte.
    """
    name = str(source) if isinstance(source, (str, Path)) else f"<{type(source).__name__}>"
    try:
        if isinstance(source, np.ndarray):
            image = _from_array(source)
        elif isinstance(source, Image.Image):
            image = source
        else:
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
            size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
            dense = image.width * image.height > max(Image.MAX_IMAGE_PIXELS or 0, PIXELS_A_BYTE * size)
            if dense or max(image.size) > MAX_SIDE:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels in {size} bytes")
        if not (image.width and image.height):
            raise ValueError("it has no pixels")
        image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not a JPEG, PNG, WebP, BMP, GIF or TIFF image") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: refused, {error}") from error
    except Exception as error:  # of broken files Pillow raises whatever its decoders do, struct.error among them
        raise ImageError(f"{name}: cannot be decoded ({error})") from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"an array of shape {array.shape} is no image; expected [height, width(, 1, 3 or 4)]")
    if np.issubdtype(array.dtype, np.floating):
        if array.size and (array.min() < 0 or array.max() > 1):
            raise ValueError("floating-point pixels must lie between 0 and 1")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"pixels of type {array.dtype}; expected uint8 or floating point")
    return Image.fromarray(array)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I"):  # 16-bit grey, held in 16 or 32 bits
        grey = np.asarray(image).astype(np.float64) / 257  # 65535 -> 255
        return Image.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        rgb = Image.new("RGB", image.size)
        for top in range(0, image.height, STRIP):  # in strips: a large image is not held four times
            strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
            white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
            rgb.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
        return rgb
    return image.convert("RGB")
