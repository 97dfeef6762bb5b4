"""Sources -> images, each with all of its captions; splits by image; the order of an epoch; batches.

One example is one image with every caption it has: that is how images are split (so none is trained on with one
caption and tested with another) and how the model takes them (an image is encoded once for all its captions).
"""

from __future__ import annotations

import csv
import hashlib
import http.client
import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from blip_lite.config import TrainConfig
from blip_lite.model import IGNORE
from blip_lite.processing import IMAGE_SUFFIXES, ImageError, ImageInput, Processor, normalize_caption
from blip_lite.shapes import draw_scene, scene_captions, scene_ids

SPLITS = ("train", "validation", "test")
T = TypeVar("T")


class DataError(ValueError):
    """A data set that cannot be used; the message names the file, the row and the remedy."""


@dataclass(frozen=True)
class Example:
    """One image with all of its captions. `image` is opened only when needed: a path, bytes, or a function that
    returns one of these or a picture."""

    image_id: str
    image: ImageInput | Callable[[], ImageInput]
    captions: tuple[str, ...]

    def open(self) -> ImageInput:
        return self.image() if callable(self.image) else self.image


@dataclass
class DataSet:
    """`splits` maps train, validation and test to their examples; `notes` says what was seen and left out."""

    name: str
    splits: dict[str, list[Example]]
    notes: list[str]

    def fingerprint(self) -> str:
        """A hash of every image id, caption and split: the same number, the same data."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for example in sorted(self.splits[split], key=lambda e: e.image_id):
                digest.update(json.dumps([split, example.image_id, example.captions]).encode())
        return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------- splits


def split_of(digest: str, seed: int) -> str:
    """train, validation or test (90/5/5): a pure function of the image's content and the seed.

    So adding images moves no other image, and identical files under two names fall together.
    """
    draw = int.from_bytes(hashlib.sha256(f"{seed}:{digest}".encode()).digest()[:8], "big") / 2**64
    return "train" if draw < 0.90 else "validation" if draw < 0.95 else "test"


def image_digest(example: Example) -> str:
    """SHA-256 of the image file's bytes. What is no file has an id that already says what is in it (a drawn scene, or
    the digest of a Hub row's bytes)."""
    if not isinstance(example.image, (str, Path)):
        return example.image_id
    try:
        return hashlib.sha256(Path(example.image).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{example.image}: cannot be read ({error.strerror})") from error


def split_by_image(examples: Sequence[Example], seed: int) -> dict[str, list[Example]]:
    """Share examples out to train, validation and test by `split_of`."""
    with ThreadPoolExecutor(8) as pool:  # hashing waits for the disk
        digests = list(pool.map(image_digest, examples))
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for example, digest in zip(examples, digests, strict=True):
        splits[split_of(digest, seed)].append(example)
    return splits


def subsample(examples: list[Example], count: int | None, seed: int) -> list[Example]:
    """The `count` examples whose ids hash lowest: a random choice that does not depend on their order."""
    if count is None or count >= len(examples):
        return examples
    return sorted(examples, key=lambda e: hashlib.sha256(f"{seed}/{e.image_id}".encode()).digest())[:count]


def limit(splits: dict[str, list[Example]], config: TrainConfig) -> None:
    """Apply `max_train_images` and `max_eval_images`."""
    for split in SPLITS:
        count = config.max_train_images if split == "train" else config.max_eval_images
        splits[split] = subsample(splits[split], count, config.seed)


# --------------------------------------------------------------------------------------------- sources


def load_data(config: TrainConfig) -> DataSet:
    """Find the data set that `config.dataset` names, with its splits and `max_*_images` applied.

    Raises:
        DataError: unknown data set, missing file or column, an image without a caption, an empty split.
    """
    name = config.dataset
    if name == "shapes":
        data = load_shapes(config)
    elif name == "flickr8k":
        data = load_flickr8k(config)
    elif name == "coco_karpathy":
        data = load_coco_karpathy(config)
    elif Path(name).is_dir():
        data = load_folder(Path(name), config)
    else:
        raise DataError(
            f"--dataset {name}: expected shapes, flickr8k, coco_karpathy, or a folder; there is no such folder"
        )
    limit(data.splits, config)
    if empty := [split for split in ("train", "validation") if not data.splits[split]]:
        sizes = ", ".join(f"{split} {len(data.splits[split])}" for split in SPLITS)
        raise DataError(
            f"{name}: no images in {' and '.join(empty)} ({sizes}). Is the data set complete? A split is drawn image by image, 90/5/5: with few images a part can be empty; add images, or try another --seed."
        )
    for split in SPLITS:
        for example in data.splits[split]:
            if not any(normalize_caption(caption) for caption in example.captions):
                raise DataError(f"{name}: image {example.image_id} has no caption. Add one, or remove the image.")
    return data


def load_shapes(config: TrainConfig) -> DataSet:
    """2,500 drawn scenes; held-out ones show combinations that were never trained on."""
    scenes = scene_ids(2500, config.seed)
    examples = [Example(s, partial(draw_scene, s), tuple(scene_captions(s))) for s in scenes]
    return DataSet("shapes", split_by_image(examples, config.seed), [])


def load_flickr8k(config: TrainConfig) -> DataSet:
    """Flickr8k (Hodosh, Young, Hockenmaier 2013) from a local copy, or from the Hub."""
    if config.data_dir is None:
        if config.split_scheme == "official":
            raise DataError(
                "flickr8k: the official split needs Flickr_8k.*Images.txt; name a local copy with --data_dir"
            )
        rows = _hub("ariG23498/flickr8k")
        grouped = group_rows([row for split in rows.values() for row in _image_rows(split)])
        return DataSet("flickr8k", split_by_image(grouped, config.seed), [])
    root = Path(config.data_dir).expanduser()
    tokens = root / "Flickr8k.token.txt"
    if not tokens.is_file():
        raise DataError(f"--data_dir {root}: has no Flickr8k.token.txt (lines of `name.jpg#0<TAB>caption`)")
    folders = [
        root / name for name in ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images") if (root / name).is_dir()
    ]
    if not folders:
        raise DataError(f"--data_dir {root}: has no folder Flicker8k_Dataset with the photographs")
    present = {entry.name for entry in os.scandir(folders[0])}

    captions: dict[str, list[str]] = {}
    notes = []
    for number, line in enumerate(_utf8(tokens, _lines(tokens)), 1):
        key, tab, caption = line.partition("\t")
        name = key.rsplit("#", 1)[0]
        if not tab:
            raise DataError(f"{tokens}, line {number}: expected `name.jpg#0<TAB>caption`")
        if not name.lower().endswith(".jpg"):  # the original file has one: 2258277193_586949ec62.jpg.1#0
            if name not in captions:
                notes.append(f"{tokens.name}: {name} is no image name; left out")
            captions[name] = []
        elif caption.strip():
            captions.setdefault(name, []).append(caption.strip())
    absent = [name for name, found in captions.items() if found and name not in present]
    if absent:
        notes.append(
            f"{len(absent)} images have captions but no photograph in {folders[0].name}; left out (e.g. {absent[0]})"
        )
    if silent := sorted(name for name in present - captions.keys() if name.lower().endswith(".jpg")):
        notes.append(f"{len(silent)} photographs have no caption; left out (e.g. {silent[0]})")
    examples = {n: Example(n, folders[0] / n, tuple(found)) for n, found in captions.items() if found and n in present}
    if config.split_scheme == "seed":
        return DataSet("flickr8k", split_by_image(list(examples.values()), config.seed), notes)

    splits: dict[str, list[Example]] = {}
    for split, part in zip(SPLITS, ("train", "dev", "test"), strict=True):
        file = root / f"Flickr_8k.{part}Images.txt"
        if not file.is_file():
            raise DataError(f"--split_scheme official: {file} is missing; add it or use --split_scheme seed")
        splits[split] = [examples[name] for name in file.read_text("utf-8").split() if name in examples]
    rest = len(examples) - sum(map(len, splits.values()))
    if rest:
        notes.append(f"{rest} images are in no official list; left out")
    return DataSet("flickr8k", splits, notes)


def load_folder(root: Path, config: TrainConfig) -> DataSet:
    """A folder in the Hugging Face `imagefolder` convention: `metadata.csv` or `metadata.jsonl` with `file_name` and
    `caption` (or `text`, `captions`): one caption, a list of them, or several rows an image."""
    for name in ("metadata.csv", "metadata.jsonl"):
        if (root / name).is_file():
            path = root / name
            break
    else:
        raise DataError(f"{root}: has no metadata.csv or metadata.jsonl with columns file_name and caption")
    rows: dict[str, list[str]] = {}
    for number, row in _utf8(path, _read_rows(path)):
        where = f"{path}, line {number}"
        file_name = row.get("file_name")
        column = next((c for c in ("caption", "captions", "text") if c in row), None)
        if file_name is None or column is None:
            missing = "file_name" if file_name is None else "caption (or captions, or text)"
            raise DataError(f"{where}: no column {missing}; there are: {', '.join(map(str, row))}")
        value = row[column]
        captions = value if isinstance(value, list) else [value]
        if not captions or not all(isinstance(c, str) and normalize_caption(c) for c in captions):
            raise DataError(f"{where}: {file_name} has no caption. Add one, or remove the row.")
        if not (root / str(file_name)).is_file():
            raise DataError(f"{where}: there is no image {root / str(file_name)}. Add it, or remove the row.")
        rows.setdefault(str(file_name), []).extend(captions)
    notes = []
    images = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES}
    if silent := sorted(images - rows.keys()):
        notes.append(f"{len(silent)} images are not in {path.name}; left out (e.g. {silent[0]})")
    examples = [Example(name, root / name, tuple(captions)) for name, captions in rows.items()]
    return DataSet(root.resolve().name, split_by_image(examples, config.seed), notes)


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        yield from (line.rstrip("\n") for line in file)


def _utf8(path: Path, rows: Iterator[T]) -> Iterator[T]:
    try:
        yield from rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); save it as UTF-8") from error


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a CSV or JSONL file."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            reader = csv.DictReader(file)
            for row in reader:
                if None in row:  # a comma in a caption without quotes would cut it
                    raise DataError(
                        f"{path}, line {reader.line_num}: more fields than columns; put captions with commas in quotes"
                    )
                yield reader.line_num, row
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not valid JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected an object with file_name and caption")
            yield number, row


def _hub(dataset: str) -> Any:
    """All splits of a Hub data set, images not decoded."""
    import datasets

    try:
        return datasets.load_dataset(dataset)
    except Exception as error:  # offline, not found, gated: the client raises a dozen types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"the data set {dataset} is not to be had from the Hub: {reason}") from error


def _image_rows(rows: Any) -> Iterator[tuple[Callable[[], bytes], str, str]]:
    """(image, digest, caption) of each row of a `datasets.Dataset` with columns image and caption."""
    import datasets

    if missing := [c for c in ("image", "caption") if c not in rows.column_names]:
        raise DataError(f"the data set has no column {missing[0]}; there are: {', '.join(rows.column_names)}")
    rows = rows.cast_column("image", datasets.Image(decode=False))
    for index, row in enumerate(rows):
        if not row["image"] or not row["caption"]:
            raise DataError(f"the data set's row {index} has no {'caption' if row['image'] else 'image'}")
        image = partial(_row_image, rows, index)
        yield image, hashlib.sha256(_image_bytes(row["image"])).hexdigest(), row["caption"]


def _row_image(rows: Any, index: int) -> bytes:
    return _image_bytes(rows[index]["image"])


def _image_bytes(image: dict[str, Any]) -> bytes:
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def group_rows(rows: Sequence[tuple[Callable[[], bytes], str, str]]) -> list[Example]:
    """Rows of one caption each -> one example an image, known by its content."""
    captions: dict[str, list[str]] = {}
    images: dict[str, Callable[[], bytes]] = {}
    for image, digest, caption in rows:
        images.setdefault(digest, image)
        captions.setdefault(digest, []).append(caption)
    return [Example(digest[:16], image, tuple(captions[digest])) for digest, image in images.items()]


def load_coco_karpathy(config: TrainConfig) -> DataSet:
    """COCO captions in Karpathy's split, from the Hub; train is train + restval.

    Images come from `image_root` (`train2014/`, `val2014/`), or are downloaded once into a cache.
    """
    rows = [row for split in _hub("yerevann/coco-karpathy").values() for row in split]
    splits = karpathy_splits(rows, Path(config.image_root) if config.image_root else None)
    limit(splits, config)  # before anything is downloaded
    notes = []
    if config.image_root:
        absent = next((e for examples in splits.values() for e in examples if not Path(str(e.image)).is_file()), None)
        if absent:
            raise DataError(
                f"--image_root {config.image_root}: there is no {absent.image!s}; expected train2014/ and val2014/ of COCO"
            )
    else:
        urls = {row["filename"]: row["url"] for row in rows}
        wanted = [Path(str(e.image)) for examples in splits.values() for e in examples]
        notes = download([(urls[path.name], path) for path in wanted if not path.is_file()])
    return DataSet("coco_karpathy", splits, notes)


def karpathy_splits(rows: Sequence[dict[str, Any]], image_root: Path | None) -> dict[str, list[Example]]:
    """Rows with filepath, filename, split, sentences and cocoid -> examples by split."""
    root = image_root or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "blip_lite" / "coco"
    names = {"train": "train", "restval": "train", "val": "validation", "validation": "validation", "test": "test"}
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for row in rows:
        captions = tuple(s["raw"] if isinstance(s, dict) else s for s in row["sentences"])
        image = root / row["filepath"] / row["filename"]
        splits[names[row["split"]]].append(Example(str(row["cocoid"]), image, captions))
    return splits


def download(files: Sequence[tuple[str, Path]], tries: int = 3) -> list[str]:
    """Fetch (url, path) pairs in parallel; each file appears whole or not at all. Raises DataError."""

    def fetch(job: tuple[str, Path]) -> str | None:
        url, path = job
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".part-{os.getpid()}")
        for attempt in range(tries):
            try:
                with urllib.request.urlopen(url, timeout=30) as response:
                    part.write_bytes(response.read())
                os.replace(part, path)
                return None
            except (OSError, http.client.HTTPException) as error:
                if attempt + 1 == tries:
                    return f"{url}: {error}"
                time.sleep(2**attempt)
        return None

    with ThreadPoolExecutor(16) as pool:
        failed = [error for error in pool.map(fetch, files) if error]
    if failed:
        raise DataError(
            f"{len(failed)} of {len(files)} images could not be downloaded, e.g. {failed[0]}. Run again, or use --image_root."
        )
    return [f"{len(files)} images downloaded"] if files else []


# --------------------------------------------------------------------------------------------- batches


@dataclass
class Batch:
    """One forward pass of one process. Rows of images that could not be decoded, and of captions that are not
    there, have no targets."""

    pixel_values: Tensor  # [I, 3, S, S], or the cached features [I, P, D] of a frozen encoder
    input_ids: Tensor  # [I, K, T]
    labels: Tensor  # [I, K, T], IGNORE where no loss is wanted
    image_ids: list[str]
    bad: dict[str, str]  # why each image that could not be decoded could not, by its id

    def num_targets(self) -> int:
        return int((self.labels[:, :, 1:] != IGNORE).sum())

    def pin_memory(self) -> Batch:
        tensors = (self.pixel_values.pin_memory(), self.input_ids.pin_memory(), self.labels.pin_memory())
        return Batch(*tensors, self.image_ids, self.bad)

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """pixel_values, input_ids and labels on a device."""
        move = partial(Tensor.to, device=device, non_blocking=True)
        return move(self.pixel_values), move(self.input_ids), move(self.labels)


class Captions(Dataset[Any]):
    """Decodes and tokenises examples. An image that cannot be decoded becomes its reason.

    Attributes:
        features: a `features.Features`, from which images come instead of being decoded.
    """

    def __init__(self, examples: Sequence[Example], processor: Processor, prompt: str, max_length: int) -> None:
        self.examples, self.processor = examples, processor
        self.prompt, self.max_length = prompt, max_length
        self.features: Any = None

    def __len__(self) -> int:
        return len(self.examples)

    def tokens(self, example: Example) -> list[list[int]]:
        wanted = [c for c in example.captions if normalize_caption(c)]
        return [self.processor.encode(caption, self.prompt, self.max_length) for caption in wanted]

    def __getitem__(self, index: int) -> tuple[str, Tensor | str, list[list[int]]]:
        # A negative index -1-i asks for a place-holder: image i without captions (see `epoch_batches`).
        position = index if index >= 0 else -1 - index
        example = self.examples[position]
        try:
            pixels: Tensor | str = (
                self.features.get(position) if self.features else self.processor.pixels(example.open())
            )
        except (ImageError, OSError) as error:
            pixels = str(error)
        return example.image_id, pixels, self.tokens(example) if index >= 0 else []


def collate(
    items: Sequence[tuple[str, Tensor | str, list[list[int]]]], processor: Processor, prompt_length: int
) -> Batch:
    """Stack items; captions are padded to the batch's longest, images to its largest number of captions.

    Args:
        items: what `Captions` returns.
        processor: for the padding id and the image size.
        prompt_length: leading tokens that are no target, `[DEC]` included.
    """
    captions = [tokens if isinstance(pixels, Tensor) else [] for _, pixels, tokens in items]
    most = max(1, max(len(rows) for rows in captions))
    longest = max((len(row) for rows in captions for row in rows), default=2)
    input_ids = torch.full((len(items), most, longest), processor.pad_token_id)
    input_ids[:, :, 0] = processor.bos_token_id
    labels = torch.full_like(input_ids, IGNORE)
    for i, rows in enumerate(captions):
        for k, row in enumerate(rows):
            input_ids[i, k, : len(row)] = torch.tensor(row)
            labels[i, k, prompt_length : len(row)] = input_ids[i, k, prompt_length : len(row)]
    decoded = [pixels for _, pixels, _ in items if isinstance(pixels, Tensor)]
    blank = torch.zeros_like(decoded[0]) if decoded else torch.zeros(3, processor.image_size, processor.image_size)
    pixel_values = torch.stack([pixels if isinstance(pixels, Tensor) else blank for _, pixels, _ in items])
    bad = {image_id: pixels for image_id, pixels, _ in items if isinstance(pixels, str)}
    return Batch(pixel_values, input_ids, labels, [image_id for image_id, _, _ in items], bad)


def epoch_order(num_images: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch, a pure function of (seed, epoch): so resuming is slicing."""
    return np.random.default_rng([seed, epoch]).permutation(num_images).tolist()


def epoch_batches(order: Sequence[int], batch_size: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """This process's batches of an epoch: process r takes its `batch_size` of every `world * batch_size` images.

    All processes get the same number of batches, and every image comes once. A process that would go without in
    the last batch gets a place-holder (a negative index): forward and backward must run everywhere.
    """
    batches = []
    for start in range(0, len(order), batch_size * world):
        mine = order[start : start + batch_size * world][rank::world]
        batches.append(list(mine) if mine else [-1 - order[start]])
    return batches


def _ignore_first_signal(_: int) -> None:
    """A signal to the whole process group (Ctrl-C, Slurm) is for the trainer, which finishes its step; a worker ends
    when it is told, or at a second SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))


def loader(
    dataset: Captions, batches: Sequence[list[int]], num_workers: int, pin_memory: bool = False
) -> DataLoader[Batch]:
    """Decode these batches ahead, in worker processes; the order does not depend on their number."""
    prompt_length = len(dataset.processor.prompt_ids(dataset.prompt))
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=partial(collate, processor=dataset.processor, prompt_length=prompt_length),
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_first_signal,
        generator=torch.Generator(),  # else each epoch's start draws from the global one, and resuming moves it
    )
