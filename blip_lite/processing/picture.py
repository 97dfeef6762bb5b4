"""A named picture that is opened when it is needed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from blip_lite.processing.images import ImageInput


@dataclass(slots=True)
class Picture:
    """One image: of a data set, with its captions, or to be captioned.

    Attributes:
        image_id: what it is called, in files and messages; the same id, the same image.
        image: a path, bytes, or a function that returns one of these or a picture.
        captions: those that people wrote.
        where: the file and row that named it, for messages.
        split: train, validation or test, where the source says so.
        url: from which `image`, a path, is downloaded.
        name: its path in the data set, where that is not its id: COCO's images have numbers, those of a shard are
            called after their bytes.
        key: (the column, the cell) of a table's ids, where another column names the files: lists of splits may have
            these; the column is empty where it is the images' own.
    """

    image_id: str
    image: ImageInput | Callable[[], ImageInput]
    captions: tuple[str, ...] = ()
    where: str = field(default="", compare=False)
    split: str | None = None
    url: str | None = None
    name: str = field(default="", compare=False)
    key: tuple[str, str] = field(default=("", ""), compare=False)

    @property
    def place(self) -> str:
        return self.name or self.image_id

    def open(self) -> ImageInput:
        return self.image() if callable(self.image) else self.image

    def stamp(self) -> str:
        """Changes when the image does: its id, and the path, size and time of a file."""
        if isinstance(self.image, (str, Path)):
            with contextlib.suppress(OSError):
                found = os.stat(self.image)
                return f"{self.image_id}{self.image}:{found.st_size}:{found.st_mtime_ns}"
        return self.image_id
