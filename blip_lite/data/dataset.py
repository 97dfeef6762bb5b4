"""A data set: images, each with all of its captions, in splits by image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from blip_lite.errors import DataError
from blip_lite.processing.picture import Picture
from blip_lite.settings import SPLITS


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
    whether the splits are ours, as the data name none."""

    name: str
    splits: dict[str, list[Picture]]
    notes: list[str]
    drawn: bool = False

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
        return hashlib.sha256(Path(example.image).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{example.image}: cannot be read ({error.strerror})") from error


def split_by_image(examples: Sequence[Picture], seed: int, validation_share: float = 0.05) -> dict[str, list[Picture]]:
    """Share examples out to train, validation and test by `split_of`."""
    with ThreadPoolExecutor(8) as pool:  # hashing waits for the disk
        digests = list(pool.map(image_digest, examples))
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
    if not splits["train"] and len(splits["validation"]) > 1:
        splits["train"] = [splits["validation"].pop()]
    return splits


def subsample(examples: list[Picture], count: int | None, seed: int) -> list[Picture]:
    """The `count` examples whose ids hash lowest: a random choice that does not depend on their order."""
    if count is None or count >= len(examples):
        return examples
    return sorted(examples, key=lambda e: hashlib.sha256(f"{seed}/{e.image_id}".encode()).digest())[:count]
