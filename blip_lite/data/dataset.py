"""A data set: images, each with all of its captions, in splits by image."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from blip_lite.errors import DataError
from blip_lite.processing.download import cache_dir
from blip_lite.processing.picture import Picture
from blip_lite.processing.progress import Progress
from blip_lite.processing.threads import Threads
from blip_lite.settings import SPLITS
from blip_lite.storage import write_text

MANY_FILES = 2000  # that are worth a cache of their digests


@dataclass
class Listing:
    """What a source names, before it is put together: several rows may be of one image, each with some captions.

    Attributes:
        name: of the data set.
        rows: in any order.
        notes: what was seen and left out; a source may add to it while its rows are read.
        published: the user cannot mend the rows, so empty captions are left out and counted, not refused.
    """

    name: str
    rows: Iterable[Picture]
    notes: list[str]
    published: bool = False


@dataclass
class DataSet:
    """`splits` maps train, validation and test to their images; `notes` says what was seen and left out; `drawn`,
    whether the splits are ours, as the data name none; `left_out`, how many images `max_*_images` took out of a split.
    """

    name: str
    splits: dict[str, list[Picture]]
    notes: list[str]
    drawn: bool = False
    left_out: dict[str, int] = field(default_factory=dict)

    def fingerprint(self, in_row_order: bool = False) -> str:
        """A hash of every image id, caption and split: the same number, the same data, in the same order.

        Args:
            in_row_order: as versions before 0.2 took it: an image's captions as a table's rows have them.
        """
        digest = hashlib.sha256()
        for split in SPLITS:
            for example in sorted(self.splits[split], key=lambda e: e.image_id):
                captions = list(example.captions) if in_row_order else sorted(example.captions)
                digest.update(json.dumps([split, example.image_id, captions]).encode())
        return digest.hexdigest()[:16]


def split_of(digest: str, seed: int, validation_share: float = 0.05) -> str:
    """train, validation or test (90/5/5): a pure function of the image's content and the seed.

    So adding images moves no other image, and identical files under two names fall together.
    """
    share = draw(digest, seed)
    first, second = 1 - 2 * validation_share, 1 - validation_share
    return "train" if share < first else "validation" if share < second else "test"


def draw(digest: str, seed: int) -> float:
    """From 0 to 1, the same at every call."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{digest}".encode()).digest()[:8], "big") / 2**64


def image_digest(example: Picture) -> str:
    """SHA-256 of the image file's bytes. What is no file has an id that already says what is in it (a drawn scene, or
    the digest of a Hub row's bytes)."""
    if not isinstance(example.image, (str, Path)):
        return example.image_id
    try:
        with open(example.image, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        raise DataError(f"{example.image}: cannot be read ({error.strerror})") from error


def image_digests(examples: Sequence[Picture]) -> list[str]:
    """`image_digest` of each; where there are many files, from a cache, as long as size and time are the same."""
    files = [os.path.abspath(e.image) for e in examples if isinstance(e.image, (str, Path))]
    if len(files) < MANY_FILES:
        return [image_digest(example) for example in examples]
    name = hashlib.sha256(os.path.commonpath(files).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    cache, known = cache_dir() / "digests" / f"{name}.json", dict[str, str]()
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(cache.read_text("utf-8"))

    def digests(part: Sequence[Picture]) -> list[tuple[str, str]]:
        stamps = [example.stamp() for example in part]
        return [(stamp, known.get(stamp) or image_digest(one)) for stamp, one in zip(stamps, part, strict=True)]

    parts = [examples[start : start + 256] for start in range(0, len(examples), 256)]
    with Threads(8) as pool:  # hashing waits for the disk
        hashed = chain.from_iterable(pool.map(digests, parts))
        found = list(Progress(hashed, "hashed", len(examples)))
    if not all(stamp in known for stamp, _ in found):
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_text(cache, json.dumps(dict(found)))
    return [digest for _, digest in found]


def split_by_image(examples: Sequence[Picture], seed: int, validation_share: float = 0.05) -> dict[str, list[Picture]]:
    """Share examples out to train, validation and test by `split_of`."""
    digests = image_digests(examples)
    splits: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for example, digest in zip(examples, digests, strict=True):
        splits[split_of(digest, seed, validation_share)].append(example)
    if not splits["validation"] and len(splits["train"]) > 1:  # few images: that with the largest draw, and its copies
        last = max(digests, key=lambda digest: draw(digest, seed))
        kept = [example for example, digest in zip(examples, digests, strict=True) if digest == last]
        if len(kept) < len(examples):
            splits = {split: [e for e in part if e not in kept] for split, part in splits.items()} | {
                "validation": kept
            }
    if not splits["train"] and (len(splits["validation"]) > 1 or len(examples) == 1):
        splits["train"] = [(splits["validation"] or splits["test"]).pop()]
    return splits


def subsample(examples: list[Picture], count: int | None, seed: int) -> list[Picture]:
    """The `count` examples whose ids hash lowest: a random choice that does not depend on their order."""
    if count is None or count >= len(examples):
        return examples
    return sorted(examples, key=lambda e: hashlib.sha256(f"{seed}/{e.image_id}".encode()).digest())[:count]
