"""Photographs as cameras, scanners and programs write them: one picture in every depth, order, layout comes out the same;
what cannot be read is called by what it is."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from blip_lite.errors import ImageError
from blip_lite.processing.file_kinds import kind_of
from blip_lite.processing.images import IMAGE_SUFFIXES, open_image, size_of
from blip_lite.serving.requests import look

H, W = 24, 36
GREY = np.clip(np.add.outer(np.arange(H) * 6, np.arange(W) * 3), 0, 255).astype(np.uint8)
GREY[0, 0], GREY[-1, -1] = 0, 255  # the whole range


def tiff(array: np.ndarray, order: str, photometric: int = 1, more: dict[int, tuple[int, ...]] | None = None) -> bytes:
    """An uncompressed TIFF of one strip, written here so that no library's idea of it is tested against itself."""
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    form = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    tags: dict[int, tuple[int, ...]] = {
        256: (array.shape[1],), 257: (array.shape[0],), 258: (8 * array.itemsize,), 259: (1,), 262: (photometric,),
        273: (0,), 277: (1,), 278: (array.shape[0],), 279: (len(data),), 339: (form,),
    } | (more or {})  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    long, entries = b"", b""
    for tag, values in sorted(tags.items()):
        values = (start + sum(2 * len(v) for v in tags.values() if len(v) > 2),) if tag == 273 else values
        kind, letter = (4, "I") if tag in (256, 257, 273, 278, 279) else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            long, packed = long + packed, struct.pack(f"{order}I", start + len(long))
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0" + long + data


WAYS: dict[str, Any] = {
    "u8": GREY,
    "u16": GREY.astype(np.uint16) * 257,
    "12 bits in u16": (GREY.astype(np.float64) * 4095 / 255).round().astype(np.uint16),
    "u32": GREY.astype(np.uint32) * 16843009,
    "8 bits in i32": GREY.astype(np.int32),
    "i16": (GREY.astype(np.int32) * 257 - 32768).astype(np.int16),
    "f32 to 1": (GREY / 255).astype(np.float32),
    "f32 to 255": GREY.astype(np.float32),
}


@given(st.sampled_from(sorted(WAYS)), st.sampled_from("<>"), st.booleans(), st.integers(1, 8))
@settings(deadline=None, max_examples=150)
def test_greys_of_every_depth(way: str, order: str, white_is_zero: bool, orientation: int) -> None:
    array = WAYS[way]
    if white_is_zero and way[0] == "f":
        return  # no program writes it
    more = {274: (orientation,)} if orientation > 1 else None
    data = tiff(array, order, 0 if white_is_zero else 1, more)
    try:
        found = np.asarray(open_image(data))
    except ImageError as error:  # of some orders Pillow has no reader; then it is said
        assert "this is a TIFF of a kind that Pillow does not read" in str(error) and (order == ">" or white_is_zero)
        return
    expected = 255 - GREY if white_is_zero else GREY
    turned = {1: expected, 2: expected[:, ::-1], 3: expected[::-1, ::-1], 4: expected[::-1], 5: expected.T,
              6: expected[::-1].T, 7: expected[::-1, ::-1].T, 8: expected.T[::-1]}[orientation]  # fmt: skip
    assert found.shape == (*turned.shape, 3)
    assert np.abs(found[:, :, 0].astype(int) - turned).max() <= 1


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_path_and_its_bytes_are_one_picture(tmp_path: Path, mode: str, orientation: int) -> None:
    image = Image.fromarray(WAYS["u16"]) if mode == "I;16" else Image.fromarray(GREY).convert(mode)
    exif = Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / "a.tif", exif=exif)
    one, two = open_image(tmp_path / "a.tif"), open_image((tmp_path / "a.tif").read_bytes())
    assert one.size == two.size == ((W, H) if orientation < 5 else (H, W)) and one.tobytes() == two.tobytes()


def test_a_palette_of_eight_bits_is_not_black() -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (256, 3))
    for scale in (1, 257):
        values = tuple(int(v) * scale for v in colours.T.ravel())
        found = np.asarray(open_image(tiff(GREY, "<", 3, {320: values})))
        assert np.abs(found.astype(int) - colours[GREY]).max() <= 1


def test_alpha_that_is_zero_everywhere_is_none_in_a_bmp_and_transparent_greys_are_white() -> None:
    raw = np.dstack([GREY, GREY, GREY, np.zeros_like(GREY)])
    header = b"BM" + struct.pack("<IHHI", 54 + raw.size, 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, W, -H, 1, 32, 0, raw.size, 0, 0, 0, 0)
    assert np.abs(np.asarray(open_image(header + raw.tobytes()))[:, :, 0].astype(int) - GREY).max() == 0
    for array, mode in ((WAYS["u16"], "I;16"), (GREY, "L")):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG", transparency=int(array[0, 0]))
        found = np.asarray(open_image(file.getvalue()))[:, :, 0]
        assert (found[array == array[0, 0]] == 255).all() and found[1, 1] == GREY[1, 1], mode


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(
    "extra",
    [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000))), chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nxyz"),
     chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(3_000_000))), chunk(b"eXIf", b"garbage"),
     chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(3_000_000)))],
)  # fmt: skip
def test_metadata_that_are_broken_or_huge_refuse_no_picture(extra: bytes, where: str) -> None:
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, "PNG")
    data = file.getvalue()
    at = data.index(b"IDAT") - 4 if where == "before" else data.index(b"IEND") - 4
    assert (np.asarray(open_image(data[:at] + extra + data[at:]))[:, :, 0] == GREY).all()


KINDS = ["pHYs", "gAMA", "sRGB", "cHRM", "iCCP", "sBIT", "bKGD", "hIST", "tIME", "acTL", "fcTL", "fdAT", "tEXt", "zTXt",
         "iTXt", "eXIf", "tRNS", "cICP", "prVt"]  # fmt: skip


@given(
    st.sampled_from(KINDS), st.binary(max_size=12), st.booleans(), st.booleans(), st.sampled_from(["L", "RGB", "deep"])
)
@example("pHYs", b"", True, True, "deep")
@example("tRNS", b"\0\0", False, True, "L")
@settings(deadline=None, max_examples=120)
def test_a_broken_chunk_that_pixels_do_not_need_refuses_no_picture(
    kind: str, content: bytes, whole: bool, late: bool, mode: str
) -> None:
    """Nor does the service, which looks at the size first."""
    file = io.BytesIO()
    if mode == "deep":
        file.write(deep_png(np.dstack([(GREY * (4095 / 255)).round().astype(np.uint16)] * 3)))
    else:
        Image.fromarray(GREY).convert(mode).save(file, "PNG")
    data, extra = file.getvalue(), bytearray(chunk(kind.encode(), content))
    extra[-1] ^= 0 if whole else 1
    at = data.index(b"IEND" if late else b"IDAT") - 4
    broken = data[:at] + bytes(extra) + data[at:]
    assert size_of(broken) == (W, H) and look(broken) == broken
    found = np.asarray(open_image(broken))
    if not (whole and kind in ("tRNS", "eXIf", "fcTL", "fdAT", "acTL")):  # which say something of the pixels
        assert np.abs(found[:, :, 0].astype(int) - GREY).max() <= 1


def test_what_a_broken_chunk_stands_beside_still_counts() -> None:
    """The transparent colour, and which side is up."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6
    Image.fromarray(GREY).save(file, "PNG", transparency=int(GREY[0, 0]), exif=exif)
    data = file.getvalue()
    at = data.index(b"IDAT") - 4
    whole = open_image(data)
    assert whole.size == (H, W) and whole.getpixel((H - 1, 0)) == (255, 255, 255)
    assert open_image(data[:at] + chunk(b"pHYs", b"") + data[at:]).tobytes() == whole.tobytes()


def test_what_pillow_opened_is_seen_as_its_file_is(tmp_path: Path) -> None:
    """Where it did not decode it yet: what it decodes wrongly is decoded here."""
    deep = deep_png(np.dstack([(GREY * (4095 / 255)).round().astype(np.uint16)] * 3))
    grey = np.full((H, W // 2), 0x05, np.uint8)  # 4 bits: black, and 5, which is transparent
    four = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 4, 0, 0, 0, 0)) + chunk(b"tRNS", b"\0\5")
    four += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in grey))) + chunk(b"IEND", b"")
    ways = {"12 bits": deep, "transparent grey of 4 bits": four, "16 bits": tiff(WAYS["u16"], ">")}
    for name, data in ways.items():
        expected = open_image(data).tobytes()
        with Image.open(io.BytesIO(data)) as image:
            assert open_image(image).tobytes() == expected == open_image(image).tobytes(), name
            image.load()  # nothing was moved in its file
        (tmp_path / "a").write_bytes(data)
        assert open_image(Image.open(tmp_path / "a")).tobytes() == expected
    assert open_image(Image.open(io.BytesIO(deep)).point(lambda v: 7)).getpixel((5, 5)) == (7, 7, 7)
    frames = io.BytesIO()
    Image.new("L", (W, H), 1).save(frames, "TIFF", save_all=True, append_images=[Image.new("L", (W, H), 9)])
    second = Image.open(frames)
    second.seek(1)
    assert open_image(second).getpixel((0, 0)) == (9, 9, 9)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_exif_leaves_a_photograph_a_photograph(exif: bytes) -> None:
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, "JPEG", exif=b"Exif\0\0" + exif)
    assert sorted(open_image(file.getvalue()).size) == [H, W]


@pytest.mark.parametrize(
    "data, says",
    [(b"\0\0\0\x18ftypheic", "HEIC.*blip_lite\\[heic\\]"), (b"%PDF-1.4", "a PDF"), (b"\n<!DOCTYPE html><html>", "an HTML page"),
     (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"), (b"", "empty"), (b"\xff\x0a\0", "JPEG XL"),
     (b"\0\5\x16\7\0\2\0\0Mac OS X", "AppleDouble"), (b"<?xml version='1.0'?><svg/>", "SVG"), (b"8BPS\0", "Photoshop"),
     (tiff(GREY.astype(np.float16), "<"), "TIFF.*16 bits, floating-point"), (b"MM\0+\0\x08\0\0", "TIFF.*damaged")],
)  # fmt: skip
def test_what_is_no_picture_is_called_what_it_is(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        open_image(data)
    assert "TIFF" not in says or "not a JPEG" not in str(caught.value)


FULL = {  # ways to write a photograph, none of which may end in zeros
    "JPEG": {"quality": 98}, "JPEG, flat": {"quality": 30}, "JPEG, progressive": {"progressive": True},
    "PNG": {}, "PNG, stored": {"compress_level": 0}, "GIF": {},
    **({"AVIF": {}} if ".avif" in IMAGE_SUFFIXES and features.check("avif") else {}),
}  # fmt: skip


@given(st.sampled_from(sorted(FULL)), st.floats(0.2, 0.9), st.integers(60, 400), st.integers(0, 40), st.booleans())
@settings(deadline=None, max_examples=60)
def test_pixels_that_end_in_zeros_are_damaged(way: str, share: float, side: int, noise: int, exif: bool) -> None:
    """As of a download whose size was set aside before: a decoder takes them for a picture that is grey or black
    below. Zeros behind a whole file do no harm, nor does a black picture."""
    rng, about = np.random.default_rng(0), Image.Exif()
    about[0x010E] = "padded" + 2000 * "\0"  # as Windows leaves it in a file's metadata
    picture = Image.fromarray(rng.integers(0, noise + 1, (side, side, 3)).astype(np.uint8) + 100 * bool(noise))
    file = io.BytesIO()
    picture.save(file, way.partition(",")[0], **FULL[way], **({"exif": about} if exif and way != "GIF" else {}))
    data = file.getvalue()
    for padding in (0, 1, 63, 64, 5000):
        assert open_image(data + bytes(padding)).size == picture.size
    kept = int(len(data) * share)
    if (b"\0" * 64 not in data[kept - 64 :]) and len(data) - kept > 200 and noise:
        with pytest.raises(ImageError, match="cannot be decoded|damaged"):
            open_image(data[:kept] + bytes(len(data) - kept))


@pytest.mark.parametrize("way", [*FULL, "WEBP", "WEBP, lossless"])
def test_a_product_on_white_ends_in_no_damage(way: str) -> None:
    """Of a whole WebP, the last hundreds of bytes are zeros then."""
    picture = Image.new("RGB", (1600, 1400), "white")
    picture.paste(Image.effect_noise((500, 300), 60).convert("RGB"), (400, 200))
    file = io.BytesIO()
    picture.save(file, way.partition(",")[0], **FULL.get(way, {"lossless": True} if "lossless" in way else {}))
    assert open_image(file.getvalue()).size == picture.size
    assert open_image(file.getvalue() + bytes(100)).size == picture.size


def test_an_offset_that_no_file_can_have_is_damage() -> None:
    """Found by fuzzing: two of 200,000 broken files ended in an OverflowError."""
    assert "damaged" in str(kind_of(b"II+\0\x08\0\0\0" + b"\xff" * 48))


def test_errors_of_the_file_system_say_just_that(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.png")
    for path, says in (
        (tmp_path, "a folder"),
        (tmp_path / "a.png", "a pipe or a device"),
        (tmp_path / "b", "no such file"),
    ):
        with pytest.raises(ImageError, match=says):
            open_image(path)


@pytest.mark.parametrize(
    "suffix, form", [(".avif", "AVIF"), (".jfif", "JPEG"), (".jpe", "JPEG"), (".mpo", "MPO"), (".apng", "PNG")]
)
def test_formats_people_have(tmp_path: Path, suffix: str, form: str) -> None:
    image = Image.fromarray(GREY).convert("RGB")
    try:
        image.save(tmp_path / f"a{suffix}", form)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {form}")
    assert suffix in IMAGE_SUFFIXES
    assert np.abs(np.asarray(open_image(tmp_path / f"a{suffix}")).astype(int)[:, :, 0] - GREY).mean() < 6


@pytest.mark.parametrize("key", [(0x1234, 0x5678, 0x9ABC), (0x0012, 0x0056, 0x009A)])
def test_the_transparent_colour_of_a_deep_png_is_white(key: tuple[int, int, int]) -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", *key) + struct.pack(">3H", 60000, 30000, 20000) for _ in range(2))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    data += chunk(b"tRNS", struct.pack(">3H", *key)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    found = open_image(data)
    assert found.getpixel((0, 0)) == (255, 255, 255) and found.getpixel((1, 0)) == (234, 117, 78)


def deep_png(array: np.ndarray) -> bytes:
    """A PNG of 16 bits: grey, grey with alpha, RGB or RGBA."""
    kind = 0 if array.ndim == 2 else {2: 4, 3: 2, 4: 6}[array.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 16, kind, 0, 0, 0))
    return data + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_dark_picture_stays_dark_and_fewer_bits_are_bright(channels: int) -> None:
    """Of 16 bits that are used by a quarter: 8 or 12 bits that were widened are dark, others are fewer bits in 16."""
    dark = GREY // 5
    ways = {"*257": dark * np.uint16(257), "<<8": dark.astype(np.uint16) << 8}
    ways["12 bits << 4"] = (dark * (4095 / 255)).round().astype(np.uint16) << 4
    for bits in (8, 10, 12, 14):
        ways[f"{bits} bits"] = (GREY * ((2**bits - 1) / 255)).round().astype(np.uint16)
    has_alpha = channels in (2, 4)
    for name, grey in ways.items():
        few = name.endswith("bits")
        for alpha in {65535 if not few else int(grey.max()), int(grey.max()) if name == "14 bits" else 65535}:
            bands = [grey] * (channels - has_alpha) + [np.full_like(grey, alpha)] * has_alpha
            found = np.asarray(open_image(deep_png(grey if channels == 1 else np.dstack(bands))))[:, :, 0]
            assert np.abs(found.astype(int) - (GREY if few else dark)).max() <= 1, (name, alpha)


SAYS = """
import io, sys, warnings
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from blip_lite.errors import ImageError
from blip_lite.processing import decoder_warnings
from blip_lite.processing.images import open_image

decoder_warnings.name_pictures()
decoder_warnings.name_pictures()
for name in sys.argv[1:] * 2:
    with ThreadPoolExecutor(2) as pool:
        try:
            list(pool.map(open_image, [name] * 4))
        except ImageError:
            pass
warnings.warn("of something else")
"""


def test_what_decoders_say_names_the_picture_once(tmp_path: Path) -> None:
    """Warnings of Pillow, and what libtiff writes to the terminal by itself."""
    image = Image.linear_gradient("L").resize((W, H))
    for name in ("a.jpg", "b.jpg"):
        image.save(tmp_path / name, exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0")  # cut off
    image.save(tmp_path / "c.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "c.tif").read_bytes())
    at = struct.unpack_from("<I", data, 4)[0]
    data[8 : min(at, 60) if at > 8 else 60] = bytes(b ^ 0x5A for b in data[8 : min(at, 60) if at > 8 else 60])
    (tmp_path / "c.tif").write_bytes(data)
    names = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.tif")]
    done = subprocess.run(
        [sys.executable, "-c", SAYS, *names], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    lines = done.stderr.splitlines()
    for name in names:
        about = [line for line in lines if line.startswith(f"warning: {name}: ")]
        assert about and len(about) == len(set(about)), lines
    assert len([line for line in lines if "Corrupt EXIF" in line]) == 2, lines
    others = [line for line in lines if not line.startswith("warning: ")]
    assert len([line for line in others if "UserWarning: of something else" in line]) == 1 and len(others) <= 2, lines
