"""Broken images: whatever the bytes are, `open_image` gives an image or an `ImageError`, soon and in bounded memory.

`pytest -m slow tests/test_hardening.py` runs it; by hand: `python tests/fuzz.py 100000 SEED`.
"""

from __future__ import annotations

import io
import json
import random
import resource
import signal
import sys
import time
import warnings
import zlib
from collections import Counter

import numpy as np
from PIL import Image

from blip_lite.errors import ImageError
from blip_lite.processing.images import FORMATS, open_image


def corpus() -> list[bytes]:
    """Small whole files of every kind we read."""
    noise = np.random.default_rng(0)
    rough = Image.fromarray(noise.integers(0, 255, (37, 53, 3), dtype=np.uint8))
    smooth = Image.linear_gradient("L").resize((53, 37)).convert("RGB")
    deep = Image.fromarray(noise.integers(0, 65535, (20, 30), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "turned"
    clear = {"transparency": 2}
    palette = smooth.convert("P")
    files: list[tuple[Image.Image, str, dict[str, object]]] = [
        *((smooth, kind, {"exif": exif}) for kind in ("JPEG", "PNG", "TIFF", "WEBP")),
        (smooth, "JPEG", {"progressive": True}),
        *((smooth.convert(mode), "JPEG", {}) for mode in ("CMYK", "L")),
        *((smooth.convert(mode), "PNG", {}) for mode in ("RGBA", "LA", "1")),
        (rough, "PNG", {}),
        (deep, "PNG", {}),
        (palette, "PNG", clear),
        (palette, "GIF", {}),
        (palette, "GIF", {"save_all": True, "append_images": [rough.convert("P")], **clear}),
        (smooth.convert("RGBA"), "WEBP", {"lossless": True}),
        (smooth, "WEBP", {"save_all": True, "append_images": [rough], "exif": exif}),
        *((smooth, "TIFF", {"compression": c}) for c in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
        (smooth.convert("1"), "TIFF", {"compression": "group4"}),
        *((image, "TIFF", {}) for image in (deep, palette, smooth.convert("CMYK"), smooth.convert("LA"))),
        (smooth.convert("F"), "TIFF", {"compression": "tiff_lzw"}),
        (smooth, "TIFF", {"big_tiff": True}),
        *((smooth.convert(mode), "BMP", {}) for mode in ("RGB", "RGBA", "P", "1")),
        (smooth, "PNG", {"save_all": True, "append_images": [rough]}),
        (smooth, "MPO", {"save_all": True, "append_images": [rough]}),
        *((smooth.convert(mode), kind, {}) for kind in ("AVIF", "HEIF") if kind in FORMATS for mode in ("RGB", "RGBA")),
    ]
    found = []
    for image, kind, options in files:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)  # type: ignore[arg-type]
        found.append(buffer.getvalue())
    return found


EXTREMES = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\x40\0", b"\x80\0\0\0"]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Change, cut, insert and copy bytes; half of the time near the beginning, where the headers are."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        at = rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 200))
        kind = rng.randrange(7)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.randrange(1, 20)]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.randrange(1, 20))
        elif kind == 5:
            data[at : at + 4] = rng.choice(EXTREMES)
        else:
            source, length = rng.randrange(len(data)), rng.randrange(1, 64)
            data[at : at + length] = data[source : source + length]
    return with_checksums(bytes(data)) if rng.random() < 0.5 else bytes(data)


def with_checksums(data: bytes) -> bytes:
    """A PNG's, made right again: else hardly a change gets past them."""
    at, mended = 8, bytearray(data)
    while data[1:4] == b"PNG" and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        mended[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(mended)


def main(count: int, seed: int) -> None:
    warnings.simplefilter("ignore")
    rng, files, outcomes, slowest = random.Random(seed), corpus(), Counter[str](), 0.0
    for number in range(count):
        data = mutate(files[number % len(files)], rng)
        signal.alarm(10)  # ends what hangs without computing; far above the bound, as the machine may be busy
        start = time.thread_time()  # of this thread, for the same reason
        try:
            open_image(data)
            outcomes["image"] += 1
        except ImageError:
            outcomes["ImageError"] += 1
        except BaseException as error:
            outcomes[type(error).__name__] += 1
        slowest = max(slowest, time.thread_time() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"outcomes": outcomes, "slowest_seconds": slowest, "peak_memory_bytes": memory}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
