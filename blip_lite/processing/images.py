"""Untrusted bytes -> upright RGB pictures."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from collections.abc import Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blip_lite.errors import ImageError
from blip_lite.processing.damage import damage
from blip_lite.processing.decoder_warnings import about
from blip_lite.processing.depth import SAMPLE_FORMAT, SIGNED, eight_bits, mend_tiff, widen
from blip_lite.processing.file_kinds import AVIF, HEIC, PNG, TIFF, chunks_of_png, is_whole, kind_of, layout_of_tiff

ImageInput = str | Path | bytes | bytearray | memoryview | io.IOBase | Image.Image | np.ndarray

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".bmp", ".gif", ".tif"}
IMAGE_SUFFIXES |= {".tiff", *([".heic", ".heif"] if HEIC else [])}

# Pictures that are not read, by suffix, and what helps; named where they are passed over.
OTHER_PICTURES = {
    **({} if HEIC else dict.fromkeys((".heic", ".heif", ".hif"), "pip install 'blip_lite[heic]' reads them")),
    **dict.fromkeys(
        (
            *(".jxl", ".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf", ".jxr", ".wdp", ".hdp", ".psd", ".psb", ".svg"),
            *(".ico", ".icns", ".cur", ".exr", ".hdr", ".fits", ".fts", ".dcm", ".dicom", ".tga", ".pcx"),
            *(".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm", ".sgi", ".rgb", ".dds", ".qoi", ".eps", ".xbm", ".xpm"),
            *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".orf", ".rw2", ".raf", ".pef"),
            *(".srw", ".3fr", ".fff", ".iiq", ".erf", ".kdc", ".dcr", ".mos", ".mrw", ".x3f", ".djvu"),
        ),
        "convert them",
    ),
}

# No others, whatever a file is called: of EPS, Pillow runs Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", *(["AVIF"] if AVIF else []))
FORMATS += ("HEIF",) if HEIC else ()


STRIP = 256  # rows


PIXELS_A_BYTE = 300  # of a file; photographs have 2 to 20, and a bomb of few bytes takes many seconds


MAX_SIDE = 2**16 - 1  # pixels; JPEG's own limit


MAX_BYTES = 2**30  # of a file


ORIENTATION = 274  # EXIF's tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PHOTOMETRIC, COLOUR_MAP = 262, 320  # TIFF's tags
WHITE_IS_ZERO = 0  # and a value


def open_image(source: ImageInput) -> Image.Image:
    """Decode an image and turn it into upright RGB.

    EXIF orientation is applied. Alpha and palette transparency are laid on white, more than 8 bits are scaled to 8 by
    `depth` (Pillow would clip them or cut them off), everything else is converted by Pillow. Of an animation, the first
    frame. Metadata that are broken or huge are passed over.

    Args:
        source: a path, the bytes of a file, an open file, a Pillow image, an array `[height, width]` or
            `[height, width, 1|3|4]`, uint8 (0 to 255) or floating (0 to 1), a tensor, `[1|3|4, height, width]` as well,
            or `{"bytes": ..., "path": ...}`.

    Raises:
        ImageError: no such file, not an image, truncated, damaged, or a decompression bomb: more than Pillow's limit of
            179 megapixels, a side above 65,535, or more than 89 megapixels (`Image.MAX_IMAGE_PIXELS`) at above 300 a
            byte.
    """
    source = unpacked(source)
    if isinstance(source, os.PathLike):
        source = os.fsdecode(source)
    name = source if isinstance(source, str) else f"<{type(source).__name__}>"
    with about(name):
        return _open_image(source, name)


def unpacked(source: Any) -> Any:
    """What `{"bytes": ..., "path": ...}` of `datasets` holds; a tensor, as torchvision has it, as an array."""
    if isinstance(source, Mapping):
        return source.get("bytes") or source.get("path") or b""
    if not hasattr(source, "is_floating_point"):
        return source
    array = (source.detach().float() if source.is_floating_point() else source).cpu().numpy()
    return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] in (1, 3, 4) else array


def _open_image(source: ImageInput, name: str) -> Image.Image:
    data = b""
    try:
        if isinstance(source, np.ndarray):
            image = _from_array(source)
        elif isinstance(source, Image.Image) and not (data := _undecoded(source)):
            image = source
        else:
            data = data or _bytes_of(source)
            image = _open(data)
            again = image.info.pop("again")  # it holds the bytes
            dense = image.width * image.height > max(Image.MAX_IMAGE_PIXELS or 0, PIXELS_A_BYTE * len(data))
            if dense or max(image.size) > MAX_SIDE:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels in {len(data)} bytes")
        if not (image.width and image.height):
            raise ValueError("it has no pixels")
        if data and (how := damage(data)):
            raise ValueError(how)
        if data and image.info["deep"]:
            rgb = _to_rgb(widen(image, again))
        else:
            rgb = _to_rgb(image)
        turn = _turn(image)
        return rgb if turn is None else rgb.transpose(turn)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: {not_an_image(data)}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: refused, {error}") from error
    except Exception as error:  # of broken files Pillow raises whatever its decoders do, struct.error among them
        if isinstance(error, OSError) and error.errno:
            raise ImageError(f"{name}: cannot be read ({error.strerror})") from error
        layout = f": a TIFF of {layout_of_tiff(data)}" if data[:4] in TIFF else ""
        raise ImageError(f"{name}: cannot be decoded ({error}){layout}") from error


def not_an_image(data: bytes) -> str:
    """What bytes are that Pillow cannot open, for messages."""
    kind = kind_of(data)
    if kind and re.search("damaged|TIFF|JPEG of|lossless|BMP", kind):
        return kind
    return f"not a JPEG, PNG, WebP, AVIF, BMP, GIF or TIFF image{f': {kind}' if kind else ''}"


def _bytes_of(source: Any) -> bytes:
    if isinstance(source, (str, Path)):
        if str(source)[:1] == "~" and not os.path.lexists(source):
            source = os.path.expanduser(source)
        if re.match(r"https?://", str(source), re.IGNORECASE):
            raise ValueError("a URL; `blip-lite caption --allow_urls` fetches it, or pass the bytes")
        return _read(source)
    if hasattr(source, "read"):
        if getattr(source, "seekable", lambda: False)():  # just written, or captioned before
            source.seek(0)
        source = source.read()
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    raise ValueError("expected a path, bytes, an open file, a PIL.Image or an array")


def _read(path: str | Path) -> bytes:
    """A file's bytes: Pillow reads some layouts wrongly from a path. Not those of a pipe or a device, which may never
    end."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device, not a file")
    if found.st_size > MAX_BYTES:
        raise Image.DecompressionBombError(f"a file of {found.st_size / 1e9:.1f} GB")
    return Path(path).read_bytes()


def _undecoded(image: Image.Image) -> bytes:
    """The file of an image that Pillow opened and did not decode yet: of the kinds that are decoded better here. Else
    nothing."""
    file = getattr(image, "fp", None)
    if file is None or image.format not in ("PNG", "TIFF") or not getattr(image, "tile", ()) or image.tell():
        return b""
    try:
        at = file.tell()
        file.seek(0)
        data = bytes(file.read())
        file.seek(at)
        with Image.open(io.BytesIO(data), formats=FORMATS) as fresh:
            colours = [
                getattr(each.palette, "palette", None) for each in (fresh, image)
            ]  # `getpalette` would decode it
            same = fresh.size == image.size and fresh.info == image.info and colours[0] == colours[1]
    except Exception:  # closed; Pillow raises many kinds
        return b""
    return data if same else b""  # somebody may have changed it


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height of an image that `open_image` opens; nothing is decoded yet. Raises what Pillow does."""
    with _open(data, False) as image:
        return image.size


def _open(data: bytes, load: bool = True) -> Image.Image:
    """Pillow's image; the pixels of a PNG loaded, but for the largest. What a PNG says besides its pixels (texts,
    resolutions, profiles) is left out where its checksum is wrong, and where Pillow stumbles over it."""
    if data[:8] != PNG:
        return _opened(data, load)
    tried = _bare(data)
    try:
        return _opened(tried, load)
    except Image.DecompressionBombError:
        raise
    except Exception:  # Pillow raises many kinds
        for kept in ((b"tRNS", b"eXIf"), (b"tRNS",), ()):
            if (bare := _bare(tried, kept)) != tried:
                tried = bare
                with contextlib.suppress(Exception):
                    return _opened(bare, load)
        raise


def _opened(data: bytes, load: bool) -> Image.Image:
    """`_open` of just these bytes."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    image.info["deep"] = False
    if image.format == "TIFF":
        mend_tiff(image)
    if data[:8] == PNG:
        image.info["deep"] = image.mode in ("RGB", "RGBA") and data[24] == 16  # bits a colour
        if load and image.width * image.height < (Image.MAX_IMAGE_PIXELS or 0):
            image.load()  # texts may come after the pixels
        if isinstance(key := image.info.get("transparency"), int) and image.mode == "L":  # of 2, 4 or 8 bits
            most = 2 ** data[24] - 1
            image.info["transparency"] = (key & most) * 255 // most
    image.info["again"] = partial(_opened, data, False)
    return image


def _bare(data: bytes, kept: Container[bytes] | None = None) -> bytes:
    """A PNG with no chunks but those needed for its pixels and of the `kept` kinds; where none are told, without those
    that are not needed and whose checksum is wrong."""
    parts, since = [], 0
    for kind, at, end in chunks_of_png(data):
        if kind[:1].isupper() or (is_whole(data, at, end) if kept is None else kind in kept):
            continue
        parts.append(data[since:at])
        since = end
    return b"".join((*parts, data[since:])) if parts else data


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What EXIF asks for (of a TIFF, Pillow does it itself in loading); None where it cannot be read."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever Pillow's readers of broken EXIF raise
        return None


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"an array of shape {array.shape} is no image; expected [height, width(, 1, 3 or 4)]")
    if np.issubdtype(array.dtype, np.floating):
        if array.size and not (array.min() >= 0 and array.max() <= 1):  # NaN is neither
            raise ValueError("floating-point pixels must lie between 0 and 1")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"pixels of type {array.dtype}; expected uint8 or floating point")
    return Image.fromarray(array)


def _to_rgb(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})
    transparency = image.info.get("transparency")
    if image.mode == "RGB" and transparency is None:
        image.load()
        return image
    if image.mode == "L" and tags.get(SAMPLE_FORMAT, (None,))[0] == SIGNED:
        image = Image.fromarray(eight_bits(np.asarray(image).view(np.int8), SIGNED))
    if image.mode[0] in "IF":  # grey of 16 or 32 bits, or floating point
        grey = eight_bits(np.asarray(image), tags.get(SAMPLE_FORMAT, (None,))[0])
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            grey = 255 - grey
        if isinstance(transparency, int):
            grey[np.asarray(image) == transparency] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "P" and (colours := tags.get(COLOUR_MAP)) and max(colours) < 256:  # not of 16 bits, as it says
        image.load()
        each = len(colours) // 3
        image.putpalette(bytes(colours[c * each + i] for i in range(each) for c in range(3)))
    # Programs that have no alpha leave 0 there.
    with_alpha = image.mode in ("RGBA", "LA", "La") and image.format in ("BMP", "TIFF")
    if with_alpha and not image.getchannel(len(image.mode) - 1).getbbox():
        return image.getchannel("L").convert("RGB") if image.mode == "La" else image.convert("RGB")
    if image.info.get("premultiplied"):
        image = Image.frombytes("RGBa", image.size, image.tobytes())
    if image.mode in ("La", "RGBa"):  # multiplied by alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if isinstance(transparency, tuple) and (image.info.get("deep") or max(transparency) > 255):  # Pillow has 8 bits
        image.info["transparency"] = tuple(value >> 8 for value in transparency)
    if "A" in image.getbands() or transparency is not None:
        image = image.convert("RGBA")
        rgb = Image.new("RGB", image.size)
        for top in range(0, image.height, STRIP):  # in strips: a large image is not held four times
            strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
            white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
            rgb.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
        return rgb
    return image.convert("RGB")
