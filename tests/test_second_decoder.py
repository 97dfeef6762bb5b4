"""One picture in every layout that tifffile writes: what we read is what tifffile reads, or an error that names its kind."""

from __future__ import annotations

import io
import itertools
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blip_lite.errors import ImageError
from blip_lite.processing.images import open_image

tifffile = pytest.importorskip("tifffile")

H, W = 32, 48


def picture() -> np.ndarray:
    """Colours that no swap of bytes, channels, rows or black and white leaves alike. `[H, W, 3]`"""
    image = Image.linear_gradient("L").resize((W, H)).convert("RGB")
    draw = ImageDraw.Draw(image)
    draw.rectangle((4, 3, 20, 25), fill=(200, 60, 30))
    draw.ellipse((22, 10, 45, 30), fill=(20, 90, 220))
    draw.line((0, 0, 12, 0), fill=(255, 255, 255))
    draw.point((47, 31), fill=(0, 0, 0))
    return np.asarray(image)


COLOURS = picture()
GREY = np.asarray(Image.fromarray(COLOURS).convert("L"))
ALPHA = np.tile(np.linspace(0, 255, W).round().astype(np.uint8), (H, 1))
DEPTHS: dict[str, Any] = {
    "u8": (np.uint8, 255, 0), "u16": (np.uint16, 65535, 0), "12 in 16": (np.uint16, 4095, 0),
    "10 in 16": (np.uint16, 1023, 0), "8 in 16": (np.uint16, 255, 0), "u32": (np.uint32, 2**32 - 1, 0),
    "u64": (np.uint64, 2**53, 0), "i8": (np.int8, 255, 128), "i8 from 0": (np.int8, 127, 0),
    "i16": (np.int16, 65535, 32768), "i16 from 0": (np.int16, 32767, 0), "i32": (np.int32, 2**32 - 1, 2**31),
    "8 in i32": (np.int32, 255, 0), "f16": (np.float16, 1, 0), "f32": (np.float32, 1, 0), "f32 to 255": (np.float32, 255, 0),
    "f64": (np.float64, 1, 0),
}  # fmt: skip


def stored(values: np.ndarray, depth: str) -> np.ndarray:
    kind, white, zero = DEPTHS[depth]
    scaled = values.astype(np.float64) / 255 * white - zero
    return (scaled if np.issubdtype(kind, np.floating) else scaled.round()).astype(kind)


def on_white(colours: np.ndarray) -> np.ndarray:
    share = ALPHA[:, :, None] / 255
    return (colours * share + 255 * (1 - share)).round()


def written(array: np.ndarray, order: str, **how: Any) -> bytes:
    """A TIFF, of which tifffile reads what was written."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file, byteorder=order) as tiff:
        tiff.write(array, metadata=None, **how)
    assert (tifffile.imread(io.BytesIO(file.getvalue())) == array).all()
    return file.getvalue()


def read(data: bytes, expected: np.ndarray, what: object) -> bool:
    """Whether it is read; rightly, then, else refused by its kind."""
    try:
        found = np.asarray(open_image(data)).astype(int)
    except ImageError as error:
        assert "TIFF of" in str(error), (what, error)
        return False
    expected = expected if expected.ndim == 3 else expected[:, :, None]
    assert np.abs(found - expected).mean() < 1.3, what
    return True


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth_order_and_layout(depth: str) -> None:
    counts = [0, 0]
    for channels, order, compression, layout, planes in itertools.product(
        ("grey", "white is zero", "colours"), "<>", (None, "zlib"), ({}, {"rowsperstrip": 7}, {"tile": (16, 32)}), (False, True)
    ):  # fmt: skip
        floating = DEPTHS[depth][0] in (np.float32, np.float64)
        if (planes and channels != "colours") or (floating and channels == "white is zero"):
            continue
        photometric = {"grey": "minisblack", "white is zero": "miniswhite", "colours": "rgb"}[channels]
        how = {"photometric": photometric, "compression": compression, **layout}
        array = stored(COLOURS if channels == "colours" else GREY, depth)
        if planes:
            array, how["planarconfig"] = np.ascontiguousarray(array.transpose(2, 0, 1)), "separate"
        expected = {"grey": GREY, "white is zero": 255 - GREY.astype(int), "colours": COLOURS}[channels]
        counts[read(written(array, order, **how), expected, (depth, order, how))] += 1
    assert counts[1] >= {"u64": 0, "f16": 0, "f64": 0, "u32": 6}.get(depth, 12), counts


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha", "unspecified", "zero", "zero, multiplied", "opaque"])
@pytest.mark.parametrize("base", [GREY[:, :, None], COLOURS], ids=["grey", "colours"])
def test_every_kind_of_alpha(base: np.ndarray, alpha: str) -> None:
    kind = {"zero": "unassalpha", "opaque": "unassalpha", "zero, multiplied": "assocalpha"}.get(alpha, alpha)
    share = ALPHA * 0 if "zero" in alpha else ALPHA * 0 + 255 if alpha == "opaque" else ALPHA
    colours = base * (share[:, :, None] / 255) if alpha == "assocalpha" else base
    array = np.concatenate([colours, share[:, :, None]], 2)
    expected = on_white(base) if alpha in ("unassalpha", "assocalpha") else base
    some = False
    for depth, order, compression, planes in itertools.product(("u8", "u16", "12 in 16"), "<>", (None, "zlib"), (0, 1)):
        how = {"photometric": "rgb" if base.shape[2] == 3 else "minisblack", "extrasamples": [kind]}
        values = stored(array, depth)
        values = np.ascontiguousarray(values.transpose(2, 0, 1)) if planes else values
        how |= {"planarconfig": "separate" if planes else "contig", "compression": compression}
        some |= read(written(values, order, **how), expected, (alpha, depth, order, how))
    assert some


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("white", [65535, 4095, 1023, 255])
@pytest.mark.parametrize("colour_type", [0, 2, 4, 6])
def test_fewer_bits_in_the_16_of_a_png(colour_type: int, white: int) -> None:
    base = GREY[:, :, None] if colour_type in (0, 4) else COLOURS
    array = np.concatenate([base, ALPHA[:, :, None]], 2) if colour_type > 3 else base
    rows = b"".join(b"\0" + (row / 255 * white).round().astype(">u2").tobytes() for row in array)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 16, colour_type, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    found = np.asarray(open_image(data)).astype(int)
    assert np.abs(found - (on_white(base) if colour_type > 3 else base)).mean() < 1.3


@pytest.mark.parametrize("bits, key", [(1, 1), (2, 2), (4, 9), (8, 77), (4, 16 + 9)])
def test_the_transparent_grey_of_a_png_of_few_bits(bits: int, key: int) -> None:
    """Only its lowest bits count, as in libpng."""
    values = np.arange(2**bits, dtype=np.uint8).repeat(8)
    packed = np.packbits(((values[:, None] >> np.arange(bits - 1, -1, -1)) & 1).ravel().astype(np.uint8)).tobytes()
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0))
    data += chunk(b"tRNS", struct.pack(">H", key)) + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    most = 2**bits - 1
    expected = np.where(values == key & most, 255, (values.astype(int) * 255 / most).round())
    assert (np.asarray(open_image(data))[0, :, 0] == expected).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_damaged_picture_is_called_that(kind: str) -> None:
    """Not another kind, and not one that this installation cannot read."""
    file = io.BytesIO()
    try:
        Image.fromarray(COLOURS).save(file, kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {kind}")
    cut, messages = file.getvalue(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for length in range(24, len(cut), 1 + len(cut) // 40):
            try:
                open_image(cut[:length])
            except ImageError as error:
                messages.append(str(error))
    assert messages and not [m for m in messages if "not a JPEG, PNG" in m or "built without" in m]
