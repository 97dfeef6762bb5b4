"""Pictures that decoders take for whole, though a part of their pixels is gone."""

from __future__ import annotations

from blip_lite.processing.file_kinds import PNG, chunks_of_png, segments_of_jpeg

ZEROS = 64  # bytes; compressed pixels do not end in so many


def damage(data: bytes) -> str | None:
    """How the pixels of a JPEG, PNG, AVIF or HEIC are damaged; None where nothing is to be seen. Where a copy or a
    download was interrupted whose size was set aside before, zeros stand in place of the bytes that were to come, and
    Pillow decodes them without a word. (Of a GIF it sees it; in a BMP or TIFF zeros are black; a whole WebP may end in
    thousands of them, where its lower part is white.)"""
    if any(data[-ZEROS:]):
        return None
    zeros = min(end_of_pixels(data), len(data)) - len(data.rstrip(b"\0"))
    return f"its pixels end in {zeros:,} zeros, perhaps of a copy that was interrupted" if zeros >= ZEROS else None


def end_of_pixels(data: bytes) -> int:
    """Where the pixels of a JPEG or PNG end, or the media data of an AVIF or HEIC, by the marks and lengths in the
    file; 0 for other kinds, and where they do not say."""
    if data[:2] == b"\xff\xd8":  # the end mark does not occur among pixels, but in metadata that hold a small picture
        pixels = next((at for marker, at in segments_of_jpeg(data) if marker == 0xDA), None)
        if pixels is None:
            return 0
        end = data.find(b"\xff\xd9", pixels)
        return end if end >= 0 else len(data)
    if data[:8] == PNG:
        return max((end for kind, _, end in chunks_of_png(data) if kind == b"IDAT"), default=0)
    at = 0 if data[4:8] == b"ftyp" else len(data)
    while at + 16 <= len(data):
        kind, size = data[at + 4 : at + 8], int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if kind == b"mdat":
            return at + size  # of 0, which means to the end, nothing is known
        at += max(size, 8)
    return 0
