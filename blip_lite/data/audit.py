"""What is in a data set, and can its split be trusted?"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from blip_lite.captioner import Captioner
from blip_lite.data.batches import Captions, epoch_batches, loader
from blip_lite.data.dataset import DataSet
from blip_lite.data.load import load_data
from blip_lite.data.look import card, first_look, samples
from blip_lite.errors import CheckpointError, ImageError
from blip_lite.model.location import has_weights, locate
from blip_lite.model.pretrained import load_processor, read_config
from blip_lite.processing.images import open_image
from blip_lite.processing.picture import Picture
from blip_lite.processing.processor import Processor
from blip_lite.processing.progress import Progress
from blip_lite.processing.text import normalize_caption
from blip_lite.processing.threads import Threads
from blip_lite.reports.charts import lengths
from blip_lite.reports.page import render
from blip_lite.settings import FROM_SCRATCH, SPLITS, TrainConfig

# Near-duplicates: at most NEAR_BITS of 192 hash bits differ, and the 16 x 16 thumbnails by at most NEAR_LEVELS of 255
# on average. Measured on Flickr8k: re-encoded, resized, 8% brightened or 4-pixel cropped copies stay below 43 bits and
# 15.3 levels; of the 4.5 million pairs of 3,000 different photographs, 200 lie within 40 bits and none of these below
# 27 levels.
NEAR_BITS, NEAR_LEVELS = 40, 16.0


# Of 2 x 192 hash bits; fewer say nothing. A single colour has none, 1,500 photographs (Flickr8k, COCO) 78 or more.
FLAT_BITS = 24
MAX_NEAR = 10_000  # pairs between two splits, after which no more are looked for


AUDIT_PAIRS = 60  # and captions, on the page
AUDIT_SAMPLES = 6  # pictures of a split
COMMON_WORDS = 60


ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


class Pair(NamedTuple):
    """Two pictures of different splits that are one, or nearly."""

    one: str  # the split of `first`
    first: Picture
    two: str
    second: Picture
    how: str  # "the same file", "mirrored", or ""


@dataclass
class Look:
    """What one look at an image gives: a hash of its content, its size, what to compare it by; or why it failed."""

    digest: str = ""
    size: tuple[int, int] = (0, 0)
    bits: np.ndarray | None = None  # [2, 24] bytes: `difference_hash` of the picture and of its mirror image
    small: np.ndarray | None = None  # [16, 16, 3] uint8
    error: str | None = None


def difference_hash(image: Image.Image) -> np.ndarray:
    """Whether each of 8 x 8 cells is darker than its right neighbour, for each colour: `[24]` bytes. Resizing,
    re-encoding and small changes of brightness change few bits (dHash, N. Krawetz 2013,
    https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html)."""
    cells = np.asarray(image.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits((cells[:, 1:] - cells[:, :-1] > 1).transpose(2, 0, 1))


def look(example: Picture) -> Look:
    """Decode one image and take its hashes."""
    digest = ""
    try:
        source = example.open()
        if isinstance(source, (str, Path)):
            source = Path(source).read_bytes()
        digest = hashlib.sha256(source if isinstance(source, bytes) else np.asarray(source).tobytes()).hexdigest()
        image = open_image(source)
    except (ImageError, OSError) as error:
        return Look(digest, error=str(error).removeprefix("<bytes>: "))
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    bits = np.stack([difference_hash(image), difference_hash(mirrored)])
    return Look(digest, image.size, bits, np.asarray(image.resize((16, 16), Image.Resampling.BOX)))


def near_duplicates(looks: Sequence[Look], others: Sequence[Look]) -> list[tuple[int, int, bool]]:
    """(index, index in others, mirrored?) of the near-duplicates between two lists of images."""
    left = [i for i, one in enumerate(looks) if not is_flat(one)]
    if not left:
        return []
    bits = np.stack([looks[i].bits[0] for i in left])  # type: ignore[index]
    small = np.stack([looks[i].small for i in left])  # type: ignore[misc]
    found: list[tuple[int, int, bool]] = []
    for j, other in enumerate(Progress(others, "near-duplicates", len(others))):
        if other.bits is None or other.small is None or is_flat(other):
            continue
        for mirrored in (False, True):
            seen = other.small[:, ::-1] if mirrored else other.small
            near = np.flatnonzero(ONES[bits ^ other.bits[int(mirrored)]].sum(1, dtype=np.int16) <= NEAR_BITS)
            apart = np.abs(small[near].astype(np.int16) - seen).mean((1, 2, 3))
            for i in near[apart <= NEAR_LEVELS]:
                if (left[i], j, False) not in found[-len(near) :]:
                    found.append((left[i], j, mirrored))
        if len(found) >= MAX_NEAR:
            break
    return found


def is_flat(seen: Look) -> bool:
    """Whether a picture is so even that its hash says nothing: all such look alike."""
    return seen.bits is None or int(ONES[seen.bits].sum()) < FLAT_BITS


def audit(config: TrainConfig) -> dict[str, Any]:
    """Look at every image and caption; print what was found, and write `audit.json` and `audit.html`.

    Returns:
        What is in `audit.json`; `"leaks"` counts images whose file lies in two splits.

    Raises:
        ConfigError, DataError: the data set cannot be read at all.
    """
    config = config.resolved()
    config.validate()
    data = load_data(config.data, config.optimisation.seed, needed=())
    processor, captioner, unknown = tools(config)
    notes = [*data.notes, *first_look(data, processor, config.optimisation)]
    result: dict[str, Any] = {"dataset": data.name, "data_fingerprint": data.fingerprint(), "notes": notes}
    looks: dict[str, list[Look]] = {}
    with Threads(8) as pool:
        for split in SPLITS:
            examples = data.splits[split]
            looks[split] = list(Progress(pool.map(look, examples), split, len(examples)))
            result[split] = counts(examples, looks[split], processor, config)
    result["token_lengths_unknown"] = unknown

    same: list[Pair] = []
    near: list[Pair] = []
    for one, two in combinations(SPLITS, 2):
        first = {seen.digest: i for i, seen in enumerate(looks[one])}
        for j, seen in enumerate(looks[two]):
            if seen.digest in first:
                same.append(Pair(one, data.splits[one][first[seen.digest]], two, data.splits[two][j], "the same file"))
        if data.name == "shapes":
            continue
        for i, j, mirrored in near_duplicates(looks[one], looks[two]):
            if looks[one][i].digest != looks[two][j].digest:
                near.append(Pair(one, data.splits[one][i], two, data.splits[two][j], "mirrored" * mirrored))
    result["exact_duplicates"] = [[s, a.image_id, t, b.image_id] for s, a, t, b, _ in same]
    result["leaks"] = len(same)
    result["flat_pictures"] = sum(is_flat(seen) for split in SPLITS for seen in looks[split] if not seen.error)
    result["near_duplicates"] = [[s, a.image_id, t, b.image_id, how] for s, a, t, b, how in near]
    why_not = "drawn scenes that differ in one shape look alike" if data.name == "shapes" else None
    result["near_duplicates_not_looked_for"] = why_not
    shared = shared_captions(data)
    result["captions_in_several_splits"] = {"count": len(shared), "examples": shared[:AUDIT_PAIRS]}
    result["vocabulary"] = vocabulary(data)
    suspicious = highest_losses(captioner, data, config) if captioner else []
    result["highest_losses"] = [
        {"loss": loss, "split": split, "image_id": e.image_id, "caption": caption}
        for loss, split, e, caption in suspicious
    ]

    folder = Path(f"{config.run.output_dir}-audit")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    (folder / "audit.html").write_text(page(result, data, same + near, suspicious), "utf-8", "backslashreplace")
    print(summary(result), f"  written: {folder / 'audit.html'}, {folder / 'audit.json'}", sep="\n")
    return result


def tools(config: TrainConfig) -> tuple[Processor | None, Captioner | None, str | None]:
    """What counts tokens; what finds wrong captions, where a trained checkpoint was named; else why there is none."""
    if config.model.model in FROM_SCRATCH:
        return None, None, f"{config.model.model} makes its vocabulary from the captions"
    try:
        folder, _ = locate(config.model.model)
        if os.path.exists(os.path.expanduser(config.model.model)) and has_weights(folder):
            captioner = Captioner.from_pretrained(config.model.model)
            return captioner.processor, captioner, None
        return load_processor(folder, read_config(folder)), None, None
    except CheckpointError as error:
        return None, None, str(error)


def counts(
    examples: Sequence[Picture], looks: Sequence[Look], processor: Processor | None, config: TrainConfig
) -> dict[str, Any]:
    """What a split holds."""
    per_image = [len(example.captions) for example in examples]
    captions = [caption for example in examples for caption in example.captions]
    sizes = [seen.size for seen in looks if not seen.error]
    found: dict[str, Any] = {
        "images": len(examples),
        "captions": len(captions),
        "captions_per_image": spread(per_image),
        "words": spread([len(normalize_caption(c, 10_000).split()) for c in captions]),
        "width": spread([width for width, _ in sizes]),
        "height": spread([height for _, height in sizes]),
        "bad_images": {e.image_id: s.error for e, s in zip(examples, looks, strict=True) if s.error},
    }
    if processor:
        start = len(processor.prompt_ids(config.decoding.prompt)) + 1  # and [SEP]
        tokens = [start + len(processor.words(normalize_caption(caption, 10_000))) for caption in captions]
        longest, words = config.optimisation.max_length, config.optimisation.max_words
        cut = [t > longest or len(c.split()) > words for t, c in zip(tokens, captions, strict=True)]
        found |= {"tokens": spread(tokens), "truncated_share": sum(cut) / max(1, len(cut))}
    return found


def spread(values: Sequence[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {
        "min": min(values),
        "median": statistics.median(values),
        "mean": statistics.mean(values),
        "max": max(values),
    }


def vocabulary(data: DataSet) -> dict[str, Any]:
    """The words of all captions: how many, how many of them occur once, and the commonest."""
    found = Counter(
        word
        for split in SPLITS
        for example in data.splits[split]
        for caption in example.captions
        for word in normalize_caption(caption, 10_000).split()
    )
    once = sum(count == 1 for count in found.values())
    return {"words": found.total(), "different": len(found), "once": once, "commonest": found.most_common(COMMON_WORDS)}


def shared_captions(data: DataSet) -> list[list[Any]]:
    """[caption, splits] of captions that several splits have word for word, the longest first: long ones are hardly
    chance."""
    where: dict[str, set[str]] = defaultdict(set)
    for split in SPLITS:
        for example in data.splits[split]:
            for caption in example.captions:
                where[normalize_caption(caption)].add(split)
    shared = [[caption, sorted(splits)] for caption, splits in where.items() if len(splits) > 1]
    return sorted(shared, key=lambda pair: (-len(pair[0].split()), pair[0]))


def highest_losses(captioner: Captioner, data: DataSet, config: TrainConfig) -> list[tuple[float, str, Picture, str]]:
    """(loss, split, example, caption) of the captions that the checkpoint finds least likely: often wrong ones."""
    found: list[tuple[float, str, Picture, str]] = []
    for split in SPLITS:
        examples = data.splits[split]
        dataset = Captions(examples, captioner.processor, config.decoding.prompt, config.optimisation.max_length)
        batches = epoch_batches(range(len(examples)), config.loading.batch_size)
        ready = loader(dataset, batches, config.loading.num_workers, captioner.model.device.type == "cuda")
        for indices, batch in zip(batches, Progress(ready, f"{split} losses", len(batches), "batch")):
            scores = captioner.score_pixels(batch.pixel_values, batch.input_ids, batch.labels)
            for index, row in zip(indices, scores.tolist(), strict=True):
                example = examples[index]
                if example.image_id not in batch.bad:
                    found += [(-score, split, example, c) for score, c in zip(row, dataset.captions(example))]
        found = sorted(found, key=lambda item: -item[0])[:AUDIT_PAIRS]
    return found


def summary(result: dict[str, Any]) -> str:
    """A few lines for people."""
    lines = [
        f"{result['dataset']}, fingerprint {result['data_fingerprint']}",
        *(f"  {note}" for note in result["notes"]),
    ]
    for split in SPLITS:
        part = result[split]
        if not part["images"]:
            lines.append(f"  {split:<10} no images")
            continue
        lines.append(
            f"  {split:<10} {part['images']} images, {part['captions']} captions "
            f"({shown(part['captions_per_image'])} an image), "
            f"{'tokens ' + shown(part['tokens']) if 'tokens' in part else 'words ' + shown(part['words'])}"
            + (f", {part['truncated_share']:.2%} cut" if "tokens" in part else "")
            + (f", {shown(part['width'])} x {shown(part['height'])} pixels" if part["width"] else "")
        )
        lines += [f"    bad image: {image_id}: {reason}" for image_id, reason in list(part["bad_images"].items())[:5]]
        if len(part["bad_images"]) > 5:
            lines.append(f"    and {len(part['bad_images']) - 5} more bad images")
    if result["token_lengths_unknown"]:
        lines.append(f"  words, not tokens, were counted: {result['token_lengths_unknown']}")
    lines += [
        f"  LEAK: {a} ({one}) and {b} ({two}) are the same file" for one, a, two, b in result["exact_duplicates"][:20]
    ]
    why_not = result["near_duplicates_not_looked_for"]
    near = f"not looked for ({why_not})" if why_not else len(result["near_duplicates"])
    lines.append(f"  across splits: exact duplicates {result['leaks']}, near-duplicates {near}")
    if result["flat_pictures"]:
        lines.append(f"    {result['flat_pictures']} pictures are too even to be compared")
    if len(result["near_duplicates"]) >= MAX_NEAR:
        lines.append(f"    between two splits no more than {MAX_NEAR} were looked for")
    lines += [
        f"    {a} ({one}) and {b} ({two}) {mirrored}" for one, a, two, b, mirrored in result["near_duplicates"][:10]
    ]
    lines.append(f"  captions that several splits have word for word: {result['captions_in_several_splits']['count']}")
    return "\n".join(lines)


def shown(values: dict[str, float]) -> str:
    if values["min"] == values["max"]:
        return f"{values['min']}"
    return f"{values['min']} to {values['max']} (median {values['median']:g})"


def page(
    result: dict[str, Any],
    data: DataSet,
    pairs: Sequence[Pair],
    suspicious: Sequence[tuple[float, str, Picture, str]],
) -> str:
    """One self-contained HTML page: the numbers, some pictures of each split, lengths and words of the captions,
    duplicates side by side, captions that are hardly of their image."""

    named = {split: data.splits[split] for split in SPLITS if data.splits[split]}
    captions = {
        split: [normalize_caption(c, 10_000) for e in part for c in e.captions] for split, part in named.items()
    }
    ranges = {"captions_per_image": "captions an image", "words": "words a caption", "tokens": "tokens a caption"}
    ranges |= {"width": "width, pixels", "height": "height, pixels"}
    rows = [
        [title, *(result[split][key] for split in named)]
        for key, title in (("images", "images"), ("captions", "captions"))
    ]
    for key, title in ranges.items():
        found = [result[split].get(key) for split in named]
        rows += [[title, *(shown(each) if each else "–" for each in found)]] if any(found) else []
    return render(
        "audit.html",
        title=f"Audit of {result['dataset']}",
        result=result,
        columns=["", *named],
        rows=rows,
        bad=[(i, reason) for split in named for i, reason in result[split]["bad_images"].items()],
        charts=[lengths(captions)],
        looks=[card(split, example, example.captions) for split, example in samples(data, AUDIT_SAMPLES)],
        pairs=[([card(s, a, ()), card(t, b, ())], how) for s, a, t, b, how in pairs[:AUDIT_PAIRS]],
        shared=[(c, ", ".join(splits)) for c, splits in result["captions_in_several_splits"]["examples"]],
        doubts=[card(split, e, [caption], f"loss {loss:.2f} a token") for loss, split, e, caption in suspicious],
    )
