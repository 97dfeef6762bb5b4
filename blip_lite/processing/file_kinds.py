"""What bytes are that are no picture, or none that Pillow reads: for messages."""

from __future__ import annotations

import re
import struct

HEIF = "pip install 'blip_lite[heic]' reads it"
KINDS: tuple[tuple[bytes, str], ...] = (  # what a file begins with -> what it is
    (rb"$", "the file is empty"),
    (rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", f"this is HEIC: {HEIF}"),
    (rb"....ftypavi[fs]", "this is AVIF, which this Pillow was built without"),
    (rb"....ftyp(mp4|isom|qt|M4V|avc1|3gp)", "this is a video"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "this is JPEG XL: convert it to JPEG or PNG"),
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "this is JPEG 2000: convert it to JPEG or PNG"),
    (rb"%PDF", "this is a PDF"),
    (rb"%!PS", "this is PostScript"),
    (rb"version https://git-lfs", "this is a Git LFS pointer, not the picture: run `git lfs pull`"),
    (rb"8BPS", "this is a Photoshop file: export it as JPEG or PNG"),
    (rb"PK\x03\x04", "this is a zip archive"),
    (rb"\x1f\x8b", "this is a gzip archive"),
    (rb"Rar!|7z\xbc\xaf", "this is an archive"),
    (rb"\x00\x05\x16[\x00\x07]", "this is what a Mac keeps beside a file (AppleDouble), not the picture"),
    (rb"RIFF....(AVI |WAVE)", "this is a video or a sound"),
    (rb"\x76\x2f\x31\x01", "this is OpenEXR: convert it to PNG"),
    (rb"SIMPLE  =", "this is FITS: convert it to PNG"),
    (rb".{128}DICM", "this is DICOM: convert it to PNG"),
    (rb"P[1-7]\s", "this is a Netpbm picture: convert it to PNG"),
    (rb"\x00\x00\x01\x00", "this is an icon (ICO): convert it to PNG"),
    (
        rb"(\xef\xbb\xbf)?\s*(<!--.{0,500}-->\s*)?(<!doctype html|<html|<head|<body)",
        "this is an HTML page, perhaps of a download that failed",
    ),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml.{0,500}?)?(<!doctype svg|<svg)", "this is SVG: convert it to PNG"),
    (rb"(\xef\xbb\xbf)?\s*<\?xml", "this is XML"),
    (rb"(\xef\xbb\xbf)?\s*\{\s*\"", "this is JSON"),
)
COMPRESSIONS = {1: "none", 5: "LZW", 6: "old JPEG", 7: "JPEG", 8: "zip", 32773: "PackBits", 32946: "zip"}
COMPRESSIONS |= {33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34933: "PNG", 50000: "Zstandard"}
COMPRESSIONS |= {50001: "WebP", 52546: "JPEG XL", 34887: "LERC", 34925: "LZMA"}


def kind_of(data: bytes) -> str | None:
    """What a file is, by its first bytes: `this is ...`; None if that is not known."""
    head = data[:1024]
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return f"this is a TIFF of a kind that Pillow does not read ({layout_of_tiff(data)}): convert it to PNG"
    return next((kind for begins, kind in KINDS if re.match(begins, head, re.DOTALL | re.IGNORECASE)), None)


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
