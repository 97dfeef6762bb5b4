"""Pictures that decoders take for whole, though a part of their pixels is gone."""

from __future__ import annotations

from blip_lite.processing.file_kinds import PNG, chunks_of_png, segments_of_jpeg

ZEROS = 64  # bytes; compressed pixels do not end in so many


def damage(data: bytes) -> str | None:
    """How the pixels of a JPEG, PNG, WebP, AVIF or HEIC are damaged; None where nothing is to be seen. Where a copy or
    a download was interrupted whose size was set aside before, zeros stand in place of the bytes that were to come, and
    Pillow decodes them without a word. (Of a GIF it sees it; in a BMP or TIFF zeros are black.)"""
    if any(data[-ZEROS:]):
        return None
    zeros = min(end_of_pixels(data), len(data)) - len(data.rstrip(b"\0"))
    return f"its pixels end in {zeros:,} zeros, perhaps of a copy that was interrupted" if zeros >= ZEROS else None


def end_of_pixels(data: bytes) -> int:
    """Where the pixels of a JPEG, of a PNG or of a WebP's first frame end, or the media data of an AVIF or HEIC, by the
    marks and lengths in the file; 0 for other kinds."""
    if data[:2] == b"\xff\xd8":  # the end mark does not occur among pixels, but in metadata that hold a small picture
        pixels = next((at for marker, at in segments_of_jpeg(data) if marker == 0xDA), len(data))
        end = data.find(b"\xff\xd9", pixels)
        return end if end >= 0 else len(data)
    if data[:8] == PNG:
        return max((end for kind, _, end, _ in chunks_of_png(data) if kind == b"IDAT"), default=0)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        at = 12
        while at + 8 <= len(data):
            kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
            at += 8 + size + size % 2
            if kind in (b"VP8 ", b"VP8L", b"ANMF"):
                return at
    elif data[4:8] == b"ftyp":
        at = 0
        while at + 16 <= len(data):
            kind, size = data[at + 4 : at + 8], int.from_bytes(data[at : at + 4], "big")
            size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size or len(data) - at
            if kind == b"mdat":
                return at + size
            at += max(size, 8)
    return 0
