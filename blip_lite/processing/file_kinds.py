"""What bytes are that are no picture, or none that Pillow reads: for messages."""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator

from PIL import features

try:  # of the extra `heic`
    import pillow_heif  # type: ignore[import-not-found,unused-ignore]

    pillow_heif.register_heif_opener()
    HEIC = True
except ImportError:
    HEIC = False
AVIF = features.check("avif")

WHAT_HEIC = "this is a damaged HEIC" if HEIC else "this is HEIC: pip install 'blip_lite[heic]' reads it"
WHAT_AVIF = "this is a damaged AVIF" if AVIF else "this is AVIF, which this Pillow was built without"
BMP = rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00"  # a header of one of its known lengths
PICTURES: tuple[tuple[bytes, str], ...] = (  # that are not read: what a file begins with -> its name
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"II\xbc\x01", "JPEG XR"),
    (rb"8BPS", "a Photoshop file"),
    (rb"\x76\x2f\x31\x01", "OpenEXR"),
    (rb"#\?(RADIANCE|RGBE)", "Radiance HDR"),
    (rb"SIMPLE  =", "FITS"),
    (rb".{128}DICM", "DICOM"),
    (rb"P[1-6fF]\s+[#\d]|P7\s+\w+ \d|P7 332", "a Netpbm picture"),
    (rb"\x00\x00[\x01\x02]\x00[\x01-\xff]\x00", "an icon (ICO)"),
    (rb"icns", "an icon of a Mac (ICNS)"),
    (rb"\x01\xda[\x00\x01][\x01\x02]", "SGI"),
    (rb"\x0a[\x00\x02-\x05]\x01[\x01\x02\x04\x08]", "PCX"),
    (rb"DDS ", "a DirectDraw surface (DDS)"),
    (rb"qoif", "QOI"),
    (rb"Image type: ", "IM"),
    (rb"BLP[12]", "BLP"),
    (rb"#define \w+_width", "XBM"),
    (rb"/\* XPM", "XPM"),
    (rb"AT&TFORM", "DjVu"),
    (rb"FUJIFILMCCD-RAW|IIR[OS]|IIU\x00|....ftypcrx", "a camera's raw file"),
    (rb"\x93NUMPY", "a NumPy array"),
)
KINDS: tuple[tuple[bytes, str], ...] = (  # what a file begins with -> what it is
    (rb"$", "the file is empty"),
    (rb"\x00{512}", "the file begins with nothing but zeros, perhaps of a copy that failed"),
    (rb"\x89PNG", "this is a damaged PNG"),
    (rb"GIF8[79]a", "this is a damaged GIF"),
    (rb"RIFF....WEBP", "this is a damaged WebP"),
    (BMP, "this is a BMP, damaged or of a kind Pillow does not read"),
    (rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", WHAT_HEIC),
    (rb"....ftypavi[fs]", WHAT_AVIF),
    (rb"....ftyp(mp4|isom|qt|M4V|avc1|3gp)|\x1aE\xdf\xa3", "this is a video"),
    (rb"%PDF", "this is a PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "this is PostScript"),
    (rb"version https://git-lfs", "this is a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (rb"PK\x03\x04", "this is a zip archive"),
    (rb"\x1f\x8b", "this is a gzip archive"),
    (rb"Rar!|7z\xbc\xaf|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|.{257}ustar", "this is an archive"),
    (rb"\x00\x05\x16[\x00\x07]", "this is what a Mac keeps beside a file (AppleDouble), not the picture"),
    (rb"RIFF....(AVI |WAVE)|ID3", "this is a video or a sound"),
    (rb"data:image/|/9j/[2-4]|iVBORw0KGgo", "this is base64 text of a picture: decode it"),
    (
        rb"(\xef\xbb\xbf)?\s*(<!--.{0,500}-->\s*)?(<!doctype html|<html|<head|<body)",
        "this is an HTML page, perhaps of a download that failed",
    ),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml.{0,500}?)?(<!doctype svg|<svg)", "this is SVG: convert it to PNG"),
    (rb"(\xef\xbb\xbf)?\s*<\?xml", "this is XML"),
    (rb"(\xef\xbb\xbf)?\s*\{\s*\"", "this is JSON"),
    *((begins, f"this is {name}: convert it to JPEG or PNG") for begins, name in PICTURES),
)
PNG = b"\x89PNG\r\n\x1a\n"
HEAD = 256  # bytes of a file that say what it is
READ = (  # what the kinds of pictures that are read begin with, TIFF apart
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF....WEBP|....ftyp(avi[fs]|hei[cxms]|hev[cm]|mif1|msf1)|" + BMP
)
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # what one begins with
COMPRESSIONS = {1: "none", 5: "LZW", 6: "old JPEG", 7: "JPEG", 8: "zip", 32773: "PackBits", 32946: "zip"}
COMPRESSIONS |= {33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34933: "PNG", 50000: "Zstandard"}
COMPRESSIONS |= {50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL", 34934: "JPEG XR", 34887: "LERC", 34925: "LZMA"}


def head_of(file: str) -> bytes:
    """What a file begins with; nothing of one that cannot be read, of a pipe or of a device: to open one is to wait."""
    try:
        if stat.S_ISREG(os.stat(file).st_mode):
            with open(file, "rb") as opened:
                return opened.read(HEAD)
    except OSError:
        pass
    return b""


def begins_like_a_picture(head: bytes) -> bool:
    """Whether a file that begins so is of the kinds of pictures that are read, whatever it is called."""
    return head.startswith(TIFF) or re.match(READ, head, re.DOTALL) is not None


def begins_like_another_picture(head: bytes) -> bool:
    """Whether a file that begins so is a picture of a kind that is not read."""
    return any(re.match(begins, head, re.DOTALL) for begins, _ in PICTURES)


def kind_of(data: bytes) -> str | None:
    """What a file is, by its bytes: `this is ...`; None if that is not known."""
    head = data[:1024]
    if head[:4] in TIFF:
        return f"this is a TIFF of a kind that Pillow does not read ({layout_of_tiff(data)}): convert it to PNG"
    if head[:3] == b"\xff\xd8\xff":
        return f"this is {layout_of_jpeg(data)}"
    if data[-18:] == b"TRUEVISION-XFILE.\0":
        return "this is TGA: convert it to JPEG or PNG"
    return next((kind for begins, kind in KINDS if re.match(begins, head, re.DOTALL | re.IGNORECASE)), None)


def layout_of_jpeg(data: bytes) -> str:
    """What a JPEG is that Pillow does not open, in words, by the marker that begins its frame."""
    for marker, at in segments_of_jpeg(data):
        if marker == 0xF7:
            return "JPEG-LS: convert it to JPEG or PNG"
        if marker in (0xC3, 0xC7, 0xCB, 0xCF):
            return "a lossless JPEG: convert it to JPEG or PNG"
        if 0xC0 <= marker <= 0xC2 and data[at + 4] > 8:
            return f"a JPEG of {data[at + 4]} bits a colour: convert it to one of 8 bits, or to PNG"
    return "a damaged JPEG"


def segments_of_jpeg(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, where it stands) of a JPEG's segments, the last before its pixels (0xDA) too."""
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        yield marker, at
        if marker == 0xDA:
            return
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")  # 0xFF: a fill byte


def chunks_of_png(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where it begins, where it ends) of a PNG's chunks."""
    at = len(PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at, end
        at = end


def is_whole(data: bytes, at: int, end: int) -> bool:
    """Whether the checksum of a PNG's chunk is right."""
    return zlib.crc32(memoryview(data)[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


def layout_of_tiff(data: bytes) -> str:
    """The layout of a TIFF's first picture, in words."""
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    tags: dict[int, tuple[int, int]] = {}  # first value, count
    try:
        start = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
        count = struct.unpack_from(order + ("Q" if big else "H"), data, start)[0]
        for i in range(min(count, 100)):
            at = start + (8 + 20 * i if big else 2 + 12 * i)
            tag, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, at)
            if kind in (3, 4):
                form, size, value = (
                    ("H", 2, at + (12 if big else 8)) if kind == 3 else ("I", 4, at + (12 if big else 8))
                )
                if number * size > (8 if big else 4):
                    value = struct.unpack_from(order + ("Q" if big else "I"), data, value)[0]
                tags[tag] = struct.unpack_from(order + form, data, value)[0], number
    except (struct.error, OverflowError):  # cut short; an offset beyond what a file can have
        return "damaged"
    bits, samples = tags.get(258, (1, 1))[0], tags.get(277, (1, 1))[0]
    forms = {1: "unsigned", 2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
    words = ["BigTIFF" if big else "", f"{samples} x {bits} bits", forms.get(tags.get(339, (1, 1))[0], "untyped")]
    compression = tags.get(259, (1, 1))[0]
    words += [f"compression {COMPRESSIONS.get(compression, compression)}", "planes" * (tags.get(284, (1, 1))[0] == 2)]
    return ", ".join(filter(None, words))
