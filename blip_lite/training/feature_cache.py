"""Image features of a frozen encoder, computed once: an encoder that never changes need not run twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from blip_lite.data.batches import Batch, Captions, epoch_batches, loader
from blip_lite.model.blip import Blip
from blip_lite.processing.progress import Progress
from blip_lite.training.run import Run

MISSING, THERE, BAD = 0, 1, 2  # states of an image


class Features:
    """`[N, P, D]` in half precision, in a memory-mapped file that all processes and workers of a machine share, and
    one byte an image that says whether it is there.

    Half precision rounds by at most 1 in 2,048; every epoch sees the same rounded values.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], mode: Literal["r+", "w+"] = "r+") -> None:
        self.folder, self.shape = folder, shape
        self.values = np.memmap(folder / "features.f16", np.float16, mode, shape=shape)
        self.state = np.memmap(folder / "state.u8", np.uint8, mode, shape=shape[:1])

    def __reduce__(self) -> tuple[type[Features], tuple[Path, tuple[int, int, int]]]:
        return Features, (self.folder, self.shape)  # a worker maps the file again, instead of being sent its content

    def put(self, found: dict[int, Tensor | None]) -> None:
        """Keep images' features `[P, D]` by index; None: it cannot be decoded."""
        for index, value in found.items():
            if value is not None:
                self.values[index] = value.to("cpu", torch.float16).numpy()
        self.values.flush()  # first, so that after a power cut nothing is said to be there that is not
        for index, value in found.items():
            self.state[index] = BAD if value is None else THERE

    def get(self, index: int) -> Tensor | str:
        """`[P, D]`, or why there are none."""
        if self.state[index] == BAD:
            return "it could not be decoded when the features were made"
        return torch.from_numpy(self.values[index].copy())


def cache_features(run: Run, stopping: Callable[[], int]) -> Features | None:
    """The features of all training images, from `features/` in the run's folder or computed now and kept there; shared
    by all processes. What the folder holds is used if model, preprocessing, precision and images are the same, and
    replaced if not. With more than `feature_cache_gb` (10**9 bytes) to keep, or too little free disk, no cache is made.

    Args:
        run: with a frozen encoder, on its device.
        stopping: is this process asked to stop? Then the others' features are still missing; what was computed is kept.

    Returns:
        The features, or None, after saying why: then each image is encoded anew each epoch.
    """
    folder, model, images, accelerator = run.folder / "features", run.model, run.train_set, run.accelerator
    limit_gb, batch_size = run.config.model.feature_cache_gb, run.config.loading.batch_size
    vision = model.config.vision
    shape = (len(images), (vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size)
    needed = 2 * int(np.prod(shape))
    refusal = [""]
    if accelerator.is_main_process:  # it decides for all
        refusal[0] = _refusal(folder, needed, limit_gb, accelerator)
        if not refusal[0]:
            try:
                _open(folder, shape, _key(model, images, accelerator.mixed_precision), accelerator.print)
            except OSError as error:
                shutil.rmtree(folder, ignore_errors=True)
                refusal[0] = str(error)
    broadcast_object_list(refusal)
    if refusal[0]:
        accelerator.print(f"features are not cached: {refusal[0]}")
        return None
    features = Features(folder, shape)
    missing = [i for i in range(len(images)) if features.state[i] == MISSING]
    accelerator.print(f"features of {len(images)} images, {needed / 1e9:.2f} GB in {folder}: {len(missing)} to compute")
    accelerator.wait_for_everyone()  # all have counted before one computes
    todo = epoch_batches(missing, batch_size, accelerator.process_index, accelerator.num_processes)
    todo = [[i for i in batch if i >= 0] for batch in todo]
    todo = [batch for batch in todo if batch]
    with torch.no_grad(), accelerator.autocast():
        batches: Iterable[Batch] = loader(images, todo, run.num_workers, accelerator.device.type == "cuda")
        if accelerator.is_main_process:
            batches = Progress(batches, "features", len(todo), "batches")
        for indices, batch in zip(todo, batches, strict=True):
            encoded = model.encode(batch.to(accelerator.device, images.processor)[0])
            named = zip(indices, batch.image_ids, encoded, strict=True)
            features.put({index: None if image_id in batch.bad else value for index, image_id, value in named})
            if stopping():
                break
    accelerator.wait_for_everyone()
    return features


def _refusal(folder: Path, needed: int, limit_gb: float, accelerator: Accelerator) -> str:
    if needed > limit_gb * 1e9:
        return f"{needed / 1e9:.1f} GB is more than --feature_cache_gb {limit_gb:g}"
    present = folder / "features.f16"
    allocated = present.stat().st_blocks * 512 if present.exists() else 0
    if needed - allocated > 0.9 * shutil.disk_usage(folder.parent).free:
        return f"{needed / 1e9:.1f} GB is more than the disk of {folder.parent} has room for"
    if int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)) != accelerator.num_processes:
        return "the processes of this run are on several machines"
    return ""


def _open(folder: Path, shape: tuple[int, int, int], key: str, say: Callable[[str], None]) -> None:
    """Make the files, unless they are there and hold the same."""
    key_file = folder / "key.json"
    content = json.dumps({"key": key, "shape": shape})
    if key_file.is_file() and (folder / "state.u8").is_file() and key_file.read_text("utf-8") == content:
        return
    if folder.is_dir():
        say(f"{folder} holds the features of other images or of another encoder; they are replaced")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    Features(folder, shape, "w+")
    if hasattr(os, "posix_fallocate"):  # else a disk that fills up later would end the process without a word
        with open(folder / "features.f16", "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, 2 * int(np.prod(shape)))
    key_file.write_text(content, "utf-8")


def _key(model: Blip, images: Captions, precision: str) -> str:
    """A hash of all that the features depend on: encoder, preprocessing, precision, and the images in their order."""
    p = images.processor
    preprocessing = (p.image_size, p.image_mean, p.image_std, int(p.resample), p.rescale_factor)
    digest = hashlib.sha256(repr((preprocessing, model.config.vision, precision)).encode())
    for name, value in sorted(model.vision_model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    for example in images.examples:
        digest.update(example.stamp().encode())
    return digest.hexdigest()
