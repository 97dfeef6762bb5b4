"""Sources, splits by image, the order of an epoch, batches."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from blip_lite.data.batches import (
    Captions,
    draw_captions,
    epoch_batches,
    epoch_order,
    loader,
    workers_by_cores,
    workers_that_fit,
)
from blip_lite.data.dataset import split_by_image, split_of
from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from blip_lite.model.blip import IGNORE
from blip_lite.model.pretrained import load_processor, read_config
from blip_lite.processing.picture import Picture
from blip_lite.processing.processor import Processor
from blip_lite.settings import SPLITS


@pytest.fixture
def processor(hf_dir: Path) -> Processor:
    return load_processor(hf_dir, read_config(hf_dir))


def everything(splits: dict[str, list[Picture]]) -> dict[str, Picture]:
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
    examples = [Picture(f"image-{i}", f"image-{i}".encode(), ("a",)) for i in range(2000)]
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
    splits = split_by_image([Picture(p.name, p, ("x",)) for p in sorted(tmp_path.iterdir())], 42)
    names = {split: {e.image_id[1:] for e in splits[split]} for split in SPLITS}
    assert not (
        names["train"] & names["validation"] or names["train"] & names["test"] or names["validation"] & names["test"]
    )
    assert names["validation"] or names["test"]


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
    examples = [Picture(s, draw_scene(s), tuple(scene_captions(s)[: i + 1])) for i, s in enumerate(scenes)]
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
    examples = [Picture("good", good, ("a red star", "a star")), Picture("bad", b"no image", ("a dog",))]
    (batch,) = loader(Captions(examples, processor, "", 40), [[0, 1]], 0)
    assert list(batch.bad) == ["bad"] and "not a JPEG" in batch.bad["bad"]
    assert (batch.labels[1] == IGNORE).all() and (batch.labels[0] != IGNORE).any()
    (empty,) = loader(Captions(examples, processor, "", 40), [[-1]], 0)
    assert empty.num_targets() == 0 and empty.pixel_values.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_does_not_change_the_order(processor: Processor, workers: int) -> None:
    examples = [Picture(s, draw_scene(s), tuple(scene_captions(s))) for s in scene_ids(9, 0)]
    batches = epoch_batches(epoch_order(9, 1, 0), 2)
    one, other = (list(loader(Captions(examples, processor, "", 40), batches, n)) for n in (0, workers))
    for a, b in zip(one, other, strict=True):
        assert (
            a.image_ids == b.image_ids
            and torch.equal(a.pixel_values, b.pixel_values)
            and torch.equal(a.labels, b.labels)
        )


def test_captions_per_image_takes_each_once_before_any_twice(processor: Processor) -> None:
    captions = [f"a {word} star" for word in ("red", "green", "blue", "yellow", "large")]
    epochs = [draw_captions(captions, 2, "42/image", epoch) for epoch in range(5)]
    assert all(len(set(drawn)) == 2 for drawn in epochs)
    assert sorted(c for drawn in epochs for c in drawn) == sorted(2 * captions)  # 5 epochs of 2 are 2 rounds of 5
    assert epochs == [draw_captions(captions[::-1], 2, "42/image", epoch) for epoch in range(5)]
    assert epochs != [draw_captions(captions, 2, "43/image", epoch) for epoch in range(5)]
    assert draw_captions(captions, 9, "", 3) == captions
    dataset = Captions([Picture("i", draw_scene(scene_ids(1, 0)[0]), tuple(captions))], processor, "", 40)
    dataset.captions_per_image = 2
    found = []
    for dataset.epoch in range(2):
        (batch,) = loader(dataset, [[0]], 0)
        assert batch.input_ids.shape[:2] == (1, 2)
        found.append([processor.decode(row) for row in batch.input_ids[0].tolist()])
    assert found[0] != found[1]


def test_workers_live_on_and_see_each_epoch(processor: Processor) -> None:
    """The same batches as from fresh ones, whose captions and pictures are the epoch's."""
    examples = [
        Picture(str(i), draw_scene(scene, 48), tuple(scene_captions(scene))) for i, scene in enumerate(scene_ids(6, 1))
    ]

    def dataset() -> Captions:
        images = Captions(examples, processor, "", 40)
        images.captions_per_image, images.augment, images.seed = 1, True, 7
        return images

    lasting, batches, pids = dataset(), list[list[int]](), set[int]()
    for epoch in range(3):
        batches[:] = epoch_batches(epoch_order(6, 0, epoch), 2)[epoch:]  # as after a resume
        if not epoch:
            data = loader(lasting, batches, 2, lasting=True)
        lasting.epoch = epoch
        found = list(data)
        pids |= {worker.pid for worker in data._iterator._workers}
        fresh = dataset()
        fresh.epoch = epoch
        for a, b in zip(found, loader(fresh, batches, 0), strict=True):
            assert a.image_ids == b.image_ids and all(map(torch.equal, a.tensors(), b.tensors()))
    assert len(pids) == 2


@pytest.mark.parametrize(
    ("seen", "here", "expected"), [(1, 1, 2), (2, 1, 2), (6, 1, 6), (96, 1, 8), (96, 32, 3), (4, 4, 2)]
)
def test_workers_are_as_many_as_the_cores_of_a_process(
    seen: int, here: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blip_lite.data.batches.cores", lambda: seen)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    assert workers_by_cores() == expected


def test_workers_that_fit_by_the_bytes_that_travel(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MB of Docker: of 384 pixels three bytes each, of features two a number."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    images = Captions(
        [Picture("a", draw_scene(scene_ids(1, 0)[0]))], dataclasses.replace(processor, image_size=384), "", 40
    )
    (item,) = loader(images, [[0]], 0)
    assert images.image_bytes == item.pixel_values.nbytes == 3 * 384**2
    assert [workers_that_fit(8, size, images.image_bytes) for size in (8, 16, 64)] == [7, 3, 0]
    images.features = SimpleNamespace(shape=(1, 577, 768), get=lambda _: torch.zeros(577, 768, dtype=torch.float16))
    (item,) = loader(images, [[0]], 0)
    assert images.image_bytes == item.pixel_values.nbytes
