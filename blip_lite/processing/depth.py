"""Pixels of any depth -> 8 bits, and what Pillow gets wrong on the way: it clips, cuts off, or swaps bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

BITS, PLANES, ALPHA, SAMPLE_FORMAT = 258, 284, 338, 339  # TIFF's tags
SIGNED, MULTIPLIED = 2, 1  # and values
NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
OTHER_BYTES = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
NARROW = (255, 1023, 4095, 16383)  # what is white in 16 bits that hold fewer


def mend_tiff(image: Any) -> None:
    """Have a TIFF decoded rightly, before it is.

    libtiff gives numbers in this machine's order, which Pillow swaps for some big-endian files. Colours that are
    multiplied by alpha stay so (`info["premultiplied"]`): Pillow divides while it reads, which leaves black where a
    program wrote no alpha. `info["deep"]`: of its colours Pillow reads the upper byte alone.

    Raises:
        UnidentifiedImageError: planes of a kind that Pillow mixes up.
    """
    planes, libtiff = image.tag_v2.get(PLANES) == 2, image.tile[0].codec_name == "libtiff"
    multiplied, raw_16 = MULTIPLIED in image.tag_v2.get(ALPHA, ()), not libtiff and 16 in image.tag_v2.get(BITS, ())
    if planes and (image.mode in ("LA", "La", "PA") or multiplied or raw_16):
        raise Image.UnidentifiedImageError
    image.info["premultiplied"] = image.mode == "RGBA" and multiplied
    image.info["deep"] = image.mode in ("RGB", "RGBA") and 16 in image.tag_v2.get(BITS, ())

    def mend(rawmode: str) -> str:
        if image.info["premultiplied"]:
            rawmode = rawmode.replace("RGBa", "RGBA")
        return NATIVE.get(rawmode, rawmode) if libtiff else rawmode

    change_rawmode(image, mend)


def change_rawmode(image: Any, change: Callable[[str], str]) -> None:
    """Change how the bytes of an image that is not loaded yet are understood."""
    image.tile = [
        tile._replace(args=change(tile.args) if isinstance(tile.args, str) else (change(tile.args[0]), *tile.args[1:]))
        for tile in image.tile
    ]


def widen(image: Image.Image, again: Callable[[], Any]) -> Image.Image:
    """Colours of 16 bits that hold fewer -> all of 8. Pillow reads the upper byte alone, of which 12 bits leave 4.

    Args:
        image: RGB or RGBA, the upper bytes.
        again: opens the same file, without loading its pixels.

    Raises:
        ValueError: planes of fewer bits: Pillow cannot read their lower bytes.
    """
    image.load()
    upper = np.asarray(image)
    full_alpha = image.mode == "RGBA" and upper[..., 3].max(initial=0) > NARROW[-1] >> 8  # then colours have 16 bits
    if upper[..., :3].max(initial=0) > NARROW[-2 if full_alpha else -1] >> 8:  # unless they were as good as black
        return image
    low = again()
    if low.format == "TIFF" and low.tag_v2.get(PLANES) == 2:
        raise ValueError("planes of fewer bits in 16: convert it to 8 bits")
    change_rawmode(low, lambda raw: "RGBA" if raw == "LA;16B" else raw[:-1] + OTHER_BYTES[raw[-1]])
    grey_alpha = low.tile[0].args == "RGBA"  # both bytes of both numbers
    low.load()
    lower = np.asarray(low)[..., [1, 1, 1, 3] if grey_alpha else slice(None)]
    values = upper.astype(np.uint16) << 8 | lower
    if is_dark(values[..., :3]):
        return image
    white = next(top for top in NARROW if values[..., :3].max(initial=0) <= top)
    found = np.empty_like(upper)
    found[..., :3] = to_bytes(white)[values[..., :3]]
    if image.mode == "RGBA":  # alpha may well fill all bits
        most = values[..., 3].max(initial=0)
        found[..., 3] = to_bytes(next(top for top in (white, *NARROW, 65535) if most <= top))[values[..., 3]]
    result = Image.fromarray(found)
    result.format, result.info = image.format, image.info.copy()
    if transparency := result.info.get("transparency"):
        result.info["transparency"] = tuple(min(255, round(value * 255 / white)) << 8 for value in transparency)
    return result


def to_bytes(white: int) -> np.ndarray:
    """Each number from 0 to `white` -> 0 to 255."""
    return (np.arange(white + 1) * (255 / white)).round().astype(np.uint8)


def is_dark(values: np.ndarray) -> bool:
    """Whether numbers of 16 bits that are small are a dark picture's, not those of fewer bits: made of 8 bits (times
    256 or 257), or of 12 (times 16)."""
    most = values.max(initial=0)
    if not NARROW[0] < most <= NARROW[-1]:
        return False
    factors = (256, 257, 16) if most > 4095 else (256, 257)
    return any(not (values % factor).any() for factor in factors)


def eight_bits(grey: np.ndarray, sample_format: int | None) -> np.ndarray:
    """Greys of any type -> uint8. What is white is the largest number of the smallest usual range that holds all
    values, as files do not say: 8 bits in 32, 12 in 16 (cameras, X-rays), 0 to 1 or 0 to 255 in floating point.

    Args:
        grey: `[H, W]`, unsigned, signed or floating point.
        sample_format: TIFF's: 1 unsigned, 2 signed, 3 floating point; None: not said.

    Raises:
        ValueError: floating-point values in no usual range.
    """
    if np.issubdtype(grey.dtype, np.floating):
        if not np.isfinite(grey).all() or grey.min() < 0 or grey.max() > 65535:
            raise ValueError(
                f"floating-point pixels from {grey.min():g} to {grey.max():g}; expected 0 to 1, 0 to 255 or 0 to 65535"
            )
        ranges: tuple[float, ...] = (1, 255, 65535)
    elif grey.dtype == np.int8:
        if grey.min() < 0:
            return (grey.view(np.uint8) ^ 0x80).astype(np.uint8)
        ranges = (127,)
    else:
        if grey.dtype == np.int32 and grey.min() < 0 and sample_format != SIGNED:
            grey = grey.view(np.uint32)
        if grey.min() < 0:  # as many below 0 as above
            half = 2**15 if grey.min() >= -(2**15) and grey.max() < 2**15 else 2**31
            return ((grey.astype(np.float64) + half) / (2 * half - 1) * 255).round().astype(np.uint8)
        ranges = (
            255,
            1023,
            4095,
            16383,
            *([2**15 - 1] if sample_format == SIGNED else []),
            65535,
            2**31 - 1,
            2**32 - 1,
        )
    if grey.dtype.kind == "u" and grey.dtype.itemsize == 2 and is_dark(grey):
        ranges = (65535,)
    white = next(top for top in ranges if grey.max(initial=0) <= top)
    return (grey.astype(np.float64) * (255 / white)).round().astype(np.uint8)
