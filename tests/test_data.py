"""Sources, splits by image, the order of an epoch, batches."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_lite.config import TrainConfig
from blip_lite.data import (
    SPLITS,
    Captions,
    DataError,
    Example,
    _image_rows,
    epoch_batches,
    epoch_order,
    group_rows,
    karpathy_splits,
    load_data,
    loader,
    split_by_image,
    split_of,
)
from blip_lite.model import IGNORE
from blip_lite.pretrained import load_processor, read_config
from blip_lite.processing import Processor
from blip_lite.shapes import draw_scene, scene_captions, scene_ids
from conftest import real_data


@pytest.fixture
def processor(hf_dir: Path) -> Processor:
    return load_processor(hf_dir, read_config(hf_dir))


def everything(splits: dict[str, list[Example]]) -> dict[str, Example]:
    return {e.image_id: e for split in SPLITS for e in splits[split]}


def make_folder(folder: Path, count: int = 40) -> None:
    folder.mkdir()
    rows = []
    for number, scene in enumerate(scene_ids(count, 5)):
        draw_scene(scene, 32).save(folder / f"{number:02d}.png")
        rows.append({"file_name": f"{number:02d}.png", "caption": scene_captions(scene)[0]})
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "caption"])
        writer.writeheader()
        writer.writerows(rows)


# ---------------------------------------------------------------------------------------------- splits


def test_splits_are_by_image_and_independent_of_order_and_of_other_images() -> None:
    examples = [Example(f"image-{i}", f"image-{i}".encode(), ("a",)) for i in range(2000)]
    splits = split_by_image(examples, 42)
    assert [round(len(splits[s]) / 2000, 1) for s in ("train",)] == [0.9]
    assert all(60 < len(splits[s]) < 140 for s in ("validation", "test"))
    where = {e.image_id: s for s in SPLITS for e in splits[s]}
    fewer = split_by_image(examples[::-3], 42)
    assert all(where[e.image_id] == s for s in SPLITS for e in fewer[s])
    assert split_by_image(examples, 43) != splits
    assert split_of("abc", 42) == split_of("abc", 42)


def test_identical_files_under_two_names_fall_together(tmp_path: Path) -> None:
    for number, scene in enumerate(scene_ids(60, 1)):
        draw_scene(scene, 16).save(tmp_path / f"a{number}.png")
        shutil.copy(tmp_path / f"a{number}.png", tmp_path / f"b{number}.png")
    splits = split_by_image([Example(p.name, p, ("x",)) for p in sorted(tmp_path.iterdir())], 42)
    names = {split: {e.image_id[1:] for e in splits[split]} for split in SPLITS}
    assert not (
        names["train"] & names["validation"] or names["train"] & names["test"] or names["validation"] & names["test"]
    )
    assert names["validation"] or names["test"]


# --------------------------------------------------------------------------------------------- sources


def test_shapes_are_the_same_every_time_and_held_out_scenes_are_new() -> None:
    data = load_data(TrainConfig(dataset="shapes"))
    assert {s: len(e) for s, e in data.splits.items()} == {
        s: len(e) for s, e in load_data(TrainConfig(dataset="shapes")).splits.items()
    }
    captions = {split: {e.captions for e in data.splits[split]} for split in SPLITS}
    assert not captions["train"] & captions["test"] and not captions["train"] & captions["validation"]
    example = data.splits["test"][0]
    assert len(example.captions) == 5 and example.open().tobytes() == example.open().tobytes()
    assert load_data(TrainConfig(dataset="shapes")).fingerprint() == data.fingerprint()
    assert load_data(TrainConfig(dataset="shapes", seed=1)).fingerprint() != data.fingerprint()


def test_subsets_are_chosen_by_id(tmp_path: Path) -> None:
    data = load_data(TrainConfig(dataset="shapes", max_train_images=50, max_eval_images=7))
    assert [len(data.splits[s]) for s in SPLITS] == [50, 7, 7]


def test_flickr8k_original_layout(tmp_path: Path) -> None:
    photos = tmp_path / "Flicker8k_Dataset"
    photos.mkdir()
    lines = []
    for number, scene in enumerate(scene_ids(50, 2)):
        lines += [f"{number}.jpg#{k}\t{caption} ." for k, caption in enumerate(scene_captions(scene))]
        if number < 45:
            draw_scene(scene, 32).save(photos / f"{number}.jpg")
    lines += [f"2258277193_586949ec62.jpg.1#{k}\ta man" for k in range(5)]
    (tmp_path / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    for part, numbers in (("train", range(30)), ("dev", range(30, 35)), ("test", range(35, 48))):
        (tmp_path / f"Flickr_8k.{part}Images.txt").write_text("".join(f"{n}.jpg\n" for n in numbers))
    data = load_data(TrainConfig(data_dir=str(tmp_path), split_scheme="official"))
    assert [len(data.splits[s]) for s in SPLITS] == [30, 5, 10]
    assert len(everything(data.splits)["3.jpg"].captions) == 5
    notes = " ".join(data.notes)
    assert (
        "2258277193_586949ec62.jpg.1 is no image name" in notes and "5 images have captions but no photograph" in notes
    )
    assert len(everything(load_data(TrainConfig(data_dir=str(tmp_path))).splits)) == 45
    (tmp_path / "Flickr_8k.testImages.txt").unlink()
    with pytest.raises(DataError, match=r"testImages.txt is missing"):
        load_data(TrainConfig(data_dir=str(tmp_path), split_scheme="official"))


def test_the_real_flickr8k_copy() -> None:
    root = real_data("flickr8k")
    data = load_data(TrainConfig(data_dir=str(root), split_scheme="official"))
    assert [len(data.splits[s]) for s in SPLITS] == [205, 88, 100]
    assert all(len(e.captions) == 5 for e in everything(data.splits).values())
    assert any("7692 images have captions but no photograph" in note for note in data.notes)
    assert any("2258277193_586949ec62.jpg.1" in note for note in data.notes)


def test_flickr8k_hub_rows_are_grouped_by_image(tmp_path: Path) -> None:
    """The Hub data set has one row per (image, caption); a local data set of the same form stands in for it."""
    import datasets

    rows = []
    for scene in scene_ids(4, 3):
        draw_scene(scene, 16).save(tmp_path / f"{scene}.png")
        rows += [{"image": str(tmp_path / f"{scene}.png"), "caption": c} for c in scene_captions(scene)]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    table = datasets.Dataset.from_list(rows, features=features)
    examples = group_rows(list(_image_rows(table)))
    assert [e.captions for e in examples] == [tuple(scene_captions(s)) for s in scene_ids(4, 3)]
    assert Image.open(__import__("io").BytesIO(examples[0].open())).size == (16, 16)
    with pytest.raises(DataError, match="no column caption; there are: image, sentence"):
        list(_image_rows(table.rename_column("caption", "sentence")))


def test_karpathy_rows(tmp_path: Path) -> None:
    row = {"filepath": "val2014", "filename": "COCO_val2014_1.jpg", "cocoid": 1, "sentences": ["A dog.", "A cat."]}
    rows = [{**row, "cocoid": n, "split": s} for n, s in enumerate(("train", "restval", "val", "test"))]
    splits = karpathy_splits(rows, tmp_path)
    assert [len(splits[s]) for s in SPLITS] == [2, 1, 1]
    assert splits["test"][0] == Example("3", tmp_path / "val2014" / "COCO_val2014_1.jpg", ("A dog.", "A cat."))
    assert karpathy_splits([{**rows[0], "sentences": [{"raw": "A dog."}]}], tmp_path)["train"][0].captions == (
        "A dog.",
    )


@pytest.mark.parametrize("form", ["csv", "list", "rows"])
def test_folder_with_metadata(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "photos"
    make_folder(folder)
    if form != "csv":
        (folder / "metadata.csv").unlink()
        captions = ["a red star", "a star"]
        with open(folder / "metadata.jsonl", "w") as file:
            for n in range(40):
                for caption in [captions] if form == "list" else captions:
                    file.write(json.dumps({"file_name": f"{n:02d}.png", "text": caption}) + "\n")
    Image.new("RGB", (4, 4)).save(folder / "extra.png")
    data = load_data(TrainConfig(dataset=str(folder)))
    found = everything(data.splits)
    assert len(found) == 40 and {len(e.captions) for e in found.values()} == {1 if form == "csv" else 2}
    assert data.name == "photos" and "1 images are not in metadata" in data.notes[0]


def test_bad_folders_are_refused_by_file_and_row(tmp_path: Path) -> None:
    def refused(change, message: str) -> None:
        shutil.rmtree(tmp_path / "photos", ignore_errors=True)
        make_folder(tmp_path / "photos", 6)
        change(tmp_path / "photos", tmp_path / "photos" / "metadata.csv")
        with pytest.raises(DataError, match=message):
            load_data(TrainConfig(dataset=str(tmp_path / "photos")))

    def rewrite(old: str, new: str):
        return lambda folder, table: table.write_text(table.read_text().replace(old, new))

    refused(lambda folder, table: table.unlink(), "has no metadata.csv or metadata.jsonl")
    refused(
        rewrite("file_name,caption", "file_name,title"), r"metadata.csv, line 2: no column caption.*: file_name, title"
    )
    refused(rewrite("file_name,caption", "file,caption"), r"line 2: no column file_name; there are: file, caption")
    refused(lambda f, t: t.write_text(t.read_text() + "00.png,\n"), r"line 8: 00.png has no caption")
    refused(lambda f, t: t.write_text(t.read_text() + "00.png\n"), r"line 8: 00.png has no caption")
    refused(lambda f, t: t.write_text(t.read_text() + "gone.png,a dog\n"), r"line 8: there is no image .*gone.png")
    refused(lambda f, t: t.write_text("file_name,caption\n"), "no images in train and validation")
    for dataset, words in (("coco", "expected shapes, flickr8k"), ("/no/such/folder", "there is no such folder")):
        with pytest.raises(DataError, match=words):
            load_data(TrainConfig(dataset=dataset))
    with pytest.raises(DataError, match=r"has no Flickr8k.token.txt"):
        load_data(TrainConfig(data_dir=str(tmp_path)))
    with pytest.raises(DataError, match="not to be had from the Hub"):
        load_data(TrainConfig(dataset="coco_karpathy"))


# --------------------------------------------------------------------------------------------- batches


def test_epoch_order_is_a_pure_function_of_seed_and_epoch() -> None:
    orders = [epoch_order(100, 42, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert epoch_order(100, 42, 1) == orders[1] and epoch_order(100, 43, 1) != orders[1]


@pytest.mark.parametrize(("images", "batch", "world"), [(10, 4, 1), (10, 4, 2), (9, 2, 4), (3, 8, 4), (16, 4, 2)])
def test_every_image_comes_once_whatever_the_processes(images: int, batch: int, world: int) -> None:
    order = epoch_order(images, 0, 0)
    shares = [epoch_batches(order, batch, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert all(0 < len(b) <= batch for share in shares for b in share)
    assert sorted(i for share in shares for b in share for i in b if i >= 0) == list(range(images))
    for step in range(len(shares[0])):  # the same images in the same effective batch
        together = {i for share in shares for i in share[step] if i >= 0}
        assert together == set(order[step * batch * world : (step + 1) * batch * world])


def test_batches_have_dec_first_and_targets_only_where_wanted(processor: Processor) -> None:
    scenes = scene_ids(3, 0)
    examples = [Example(s, draw_scene(s), tuple(scene_captions(s)[: i + 1])) for i, s in enumerate(scenes)]
    (batch,) = loader(Captions(examples, processor, "a picture of", 40), [[0, 1, 2]], 0)
    start = processor.prompt_ids("a picture of")
    assert batch.pixel_values.shape == (3, 3, 32, 32) and batch.input_ids.shape[:2] == (3, 3)
    assert (batch.input_ids[:, :, 0] == processor.bos_token_id).all()
    for i, example in enumerate(examples):
        for k in range(3):
            row, labels = batch.input_ids[i, k].tolist(), batch.labels[i, k].tolist()
            if k < len(example.captions):
                ids = processor.encode(example.captions[k], "a picture of")
                assert row == ids + [0] * (len(row) - len(ids))
                assert labels == [IGNORE] * len(start) + ids[len(start) :] + [IGNORE] * (len(row) - len(ids))
            else:
                assert set(labels) == {IGNORE}
    assert batch.num_targets() == (batch.labels != IGNORE).sum()


def test_an_undecodable_image_is_reported_and_has_no_targets(processor: Processor) -> None:
    good = draw_scene(scene_ids(1, 0)[0])
    examples = [Example("good", good, ("a red star", "a star")), Example("bad", b"no image", ("a dog",))]
    (batch,) = loader(Captions(examples, processor, "", 40), [[0, 1]], 0)
    assert list(batch.bad) == ["bad"] and "not an image" in batch.bad["bad"]
    assert (batch.labels[1] == IGNORE).all() and (batch.labels[0] != IGNORE).any()
    (empty,) = loader(Captions(examples, processor, "", 40), [[-1]], 0)
    assert empty.num_targets() == 0 and empty.pixel_values.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_does_not_change_the_order(processor: Processor, workers: int) -> None:
    examples = [Example(s, draw_scene(s), tuple(scene_captions(s))) for s in scene_ids(9, 0)]
    batches = epoch_batches(epoch_order(9, 1, 0), 2)
    one, other = (list(loader(Captions(examples, processor, "", 40), batches, n)) for n in (0, workers))
    for a, b in zip(one, other, strict=True):
        assert (
            a.image_ids == b.image_ids
            and torch.equal(a.pixel_values, b.pixel_values)
            and torch.equal(a.labels, b.labels)
        )
