"""How people call splits, images and captions: matched here and nowhere else."""

from __future__ import annotations

# How splits, and the columns of images and captions, are usually called. The first name that is there is taken.
SPLIT_NAMES = {"train": "train", "training": "train", "restval": "train", "test": "test", "testing": "test"}

SPLIT_NAMES |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")

IMAGE_COLUMNS = ("image", "file_name", "filename", "image_path", "filepath", "path", "img", "jpg", "png", "image_url",
"url")  # fmt: skip

CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "sentences", "raw", "description", "txt")
