"""Images that could not be decoded: reported once, counted, limited."""

from __future__ import annotations

import sys

import torch
from tqdm import tqdm

from blip_lite.data.batches import Batch
from blip_lite.errors import TrainingError
from blip_lite.training.run import Run


class BadImages:
    """Those of this process, in this epoch."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.now: set[str] = set()
        self.named: set[str] = set()  # those already reported

    def add(self, window: list[Batch]) -> None:
        """Collect images that could not be decoded; name each once a run."""
        for image_id, reason in ((i, r) for batch in window for i, r in batch.bad.items()):
            self.now.add(image_id)
            if image_id not in self.named:
                self.named.add(image_id)
                tqdm.write(f"skipped, an image that cannot be decoded: {image_id}: {reason}", file=sys.stderr)

    def count(self) -> int:
        """How many images all processes could not decode in this epoch. Raises TrainingError when they are too many."""
        accelerator, share = self.run.accelerator, self.run.config.data.max_bad_images
        count = int(accelerator.reduce(torch.tensor(len(self.now), device=accelerator.device), "sum"))
        if count > share * len(self.run.train_set):
            last = f"; the last: {sorted(self.now)[-1]}" if self.now else ""
            raise TrainingError(
                f"{count} of {len(self.run.train_set)} training images could not be decoded, more than "
                f"--max_bad_images {share:g} allows{last}. Repair or remove them, or raise the share."
            )
        return count

    def close_epoch(self) -> None:
        """Once more, all that this process could not decode in the epoch that ended."""
        if self.now:
            names = ", ".join(sorted(self.now)[:20]) + (", ..." if len(self.now) > 20 else "")
            epoch = self.run.progress.epoch
            tqdm.write(f"epoch {epoch}: {len(self.now)} images could not be decoded: {names}", file=sys.stderr)
        self.now.clear()
