"""Data as they are published, exported and downloaded: read right, or refused in one line with the remedy."""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip_lite.data.dataset import DataSet
from blip_lite.data.load import load_data
from blip_lite.data.look import first_look, refuse_what_is_no_caption
from blip_lite.data.names import SPLIT_WORDS, split_of_flag
from blip_lite.data.sources.marks import flagged
from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from blip_lite.errors import DataError
from blip_lite.settings import SPLITS, OptimisationSettings, TrainConfig
from conftest import ROOT

SCENES = scene_ids(9, 5)
CAPTIONS = [f"{scene_captions(scene)[0]} in picture {n}" for n, scene in enumerate(SCENES)]
PARTS = ["train"] * 5 + ["valid"] * 2 + ["test"] * 2


def draw(folder: Path, pattern: str = "{}.png") -> None:
    for n, (scene, part) in enumerate(zip(SCENES, PARTS, strict=True)):
        path = folder / pattern.format(n, part=part)
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_scene(scene, 32).save(path, "PNG")


def lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def read(path: Path, **flat: object) -> DataSet:
    config = TrainConfig.of(dataset=str(path), **flat)
    return load_data(config.data, config.optimisation.seed, needed=())


def split_sizes(data: DataSet) -> list[int]:
    return [len(data.splits[split]) for split in SPLITS]


def captions_of(data: DataSet) -> list[str]:
    return sorted(caption for split in SPLITS for e in data.splits[split] for caption in e.captions)


def of_part(part: str) -> list[int]:
    return [n for n, name in enumerate(PARTS) if name == part]


def paligemma(folder: Path) -> None:
    draw(folder / "dataset")
    for part in set(PARTS):
        rows = [{"image": f"{n}.png", "prefix": "caption en", "suffix": CAPTIONS[n]} for n in of_part(part)]
        lines(folder / "dataset" / f"_annotations.{part}.jsonl", *rows)


def roco(folder: Path) -> None:
    draw(folder, "{part}/ROCO_{part}_{}.png")
    for part in set(PARTS):
        names = [(n, f"ROCO_{part}_{n}") for n in of_part(part)]
        lines(folder / f"{part}_captions.csv", "ID,Caption", *(f"{name},{CAPTIONS[n]}" for n, name in names))
        lines(folder / f"{part}_concepts.csv", "ID,CUIs", *(f"{name},C1;C2" for _, name in names))


def flickr8k(folder: Path) -> None:
    draw(folder, "Flicker8k_Dataset/{}.jpg")
    tokens = [f"{n}.jpg#0\t{caption}" for n, caption in enumerate(CAPTIONS)]
    lines(folder / "Flickr8k_text" / "Flickr8k.token.txt", *tokens)
    for part, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
        lines(folder / "Flickr8k_text" / f"Flickr_8k.{name}Images.txt", *(f"{n}.jpg" for n in of_part(part)))


def vizwiz(folder: Path) -> None:
    """The images of the test come without captions: those of the others are read."""
    draw(folder, "{part}/{part}_{}.png")
    for part in set(PARTS):
        images: Any = {"images": [{"id": n, "file_name": f"{part}_{n}.png"} for n in of_part(part)]}
        if part != "test":
            spam = {"image_id": of_part(part)[0], "caption": "spam", "is_rejected": True, "is_precanned": False}
            images["annotations"] = [{"image_id": n, "caption": CAPTIONS[n]} for n in of_part(part)] + [spam]
        lines(folder / "annotations" / f"{part}.json", images)


@pytest.mark.parametrize(("write", "test"), [(paligemma, 2), (roco, 2), (flickr8k, 2), (vizwiz, 0)])
def test_published_splits(tmp_path: Path, write: Callable[[Path], None], test: int) -> None:
    write(tmp_path)
    data = read(tmp_path)
    assert split_sizes(data) == [5, 2, test] and captions_of(data) == sorted(CAPTIONS[: 7 + test])


@pytest.mark.parametrize(
    "rows",
    [
        [
            "image,caption 1,caption 2",
            *(f"{n}.png,{c},{'' if n % 2 else c + ' again'}" for n, c in enumerate(CAPTIONS)),
        ],
        ["image,captions", *(f"{n}.png,{c}{'' if n % 2 else f' | {c} again'}" for n, c in enumerate(CAPTIONS))],
    ],
)
def test_an_empty_one_of_several_captions_is_left_out(tmp_path: Path, rows: list[str]) -> None:
    draw(tmp_path)
    again = [f"{caption} again" for caption in CAPTIONS[::2]]
    assert captions_of(read(lines(tmp_path / "c.csv", *rows))) == sorted(CAPTIONS + again)


@pytest.mark.parametrize(
    ("header", "cell"),
    [
        ("url,local_path", "http://a.org/{0}.png,{0}.PNG"),  # the copy that is here
        ("image,file_name", "https://a.org/{0}.png,{0}.png"),
        ("id,fname", "7,{0}.png"),  # the number of a row is no image
        ("image_id,x", "{0},x"),
        ("image,x", "photos\\wild/{0}.png,x"),  # of Windows and of Linux
    ],
)
def test_which_column_is_the_image(tmp_path: Path, header: str, cell: str) -> None:
    draw(tmp_path / "photos/wild")
    rows = [f"{cell.format(n)},{caption}" for n, caption in enumerate(CAPTIONS)]
    assert captions_of(read(lines(tmp_path / "c.csv", f"{header},caption", *rows))) == sorted(CAPTIONS)


def test_a_url_comes_before_the_number_of_an_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the image is a URL, http://a.org/1.png; --allow_urls"):
        read(lines(tmp_path / "c.csv", "image_id,url,caption", "1,http://a.org/1.png,a dog"))


def test_a_label_studio_task_that_was_cancelled_has_no_caption(tmp_path: Path) -> None:
    draw(tmp_path / "images")
    tasks = [
        {
            "data": {"image": f"/data/upload/1/0a1b2c3d-{n}.png"},
            "annotations": [{"was_cancelled": n == 4, "result": [{"value": {"text": [caption]}}]}],
        }
        for n, caption in enumerate(CAPTIONS)
    ]
    path = lines(tmp_path / "project.json", tasks)
    with pytest.raises(DataError, match="project.json, item 5: .* has no caption"):
        read(path)
    assert captions_of(read(path, max_bad_images=0.2)) == sorted(CAPTIONS[:4] + CAPTIONS[5:])


words = st.sampled_from(sorted(SPLIT_WORDS))


@given(
    one=words, other=words, yes=st.sampled_from(["1", "TRUE", " yes", True, 1, "x"]), no=st.sampled_from(["0", "", 0])
)
def test_flags_are_splits(one: str, other: str, yes: Any, no: Any) -> None:
    flags = {name: str(split_of_flag(name)) for name in (f"is_{one}", f"In {other}")}
    assert [*flags.values()] == [SPLIT_WORDS[one], SPLIT_WORDS[other]]
    first, second = flags
    assert flagged(flags, {first: yes, second: no}, "line 2") == SPLIT_WORDS[one]
    if SPLIT_WORDS[one] != SPLIT_WORDS[other]:
        with pytest.raises(DataError, match="line 2: it is in"):
            flagged(flags, {first: yes, second: yes}, "line 2")
    neither = flagged(flags, {first: no, second: no}, "line 2")
    assert (neither == "train") == ("train" not in flags.values())
    with pytest.raises(DataError, match="expected true or false, 1 or 0"):
        flagged(flags, {first: "perhaps", second: no}, "line 2")


def test_lists_of_names(tmp_path: Path) -> None:
    draw(tmp_path)
    lines(tmp_path / "captions.csv", "image,caption", *(f"{n}.png,{caption}" for n, caption in enumerate(CAPTIONS)))
    lines(tmp_path / "requirements-dev.txt", "pytest==8", "ruff")  # no list of images
    assert sum(split_sizes(read(tmp_path))) == 9
    lines(tmp_path / "train.txt", *(f"{n}" for n in range(4)))
    lines(tmp_path / "test.txt", *(f"./{n}.png" for n in range(4, 7)))
    for path in (tmp_path, tmp_path / "captions.csv"):
        data = read(path)
        assert sum(split_sizes(data)[:2]) == 4 and split_sizes(data)[2] == 3
        assert any("2 images are in no list of a split; left out" in note for note in data.notes)
    lines(tmp_path / "val.txt", "5.png")
    with pytest.raises(DataError, match=r"val.txt: 5.png is in validation, and in test"):
        read(tmp_path)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_to_a_tests_image_is_refused_in_training(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    draw(tmp_path, "{part}/{}.png")
    for n, caption in enumerate(CAPTIONS):
        lines(tmp_path / PARTS[n] / f"{n}.txt", caption)
    link(tmp_path / "test/8.png", tmp_path / "train/again.png")
    lines(tmp_path / "train/again.txt", "the same once more")
    with pytest.raises(DataError, match=r"again.png is in train; its file is that of test/8.png, in test"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 2, "caption": "a"}]},
            "image_id 2 is",
        ),
        (
            {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, "bbox": [1]}]},
            "image_id, bbox",
        ),
        ({"images": [{"id": 1, "file_name": "1.png"}], "annotations": []}, "no image with a caption"),
        ({"train": [{"image": "1.png", "caption": "a"}], "bonus": [{"image": "2.png"}]}, "'bonus' is no split"),
        ({"image": ["1.png", "2.png"], "caption": ["a"]}, "not lists of one length"),
        ([{"image": ["1.png", "2.png"], "caption": "a"}], "holds list; expected a path"),
        ([{"image": "/9j/" + "4AAQ" * 99, "caption": "a"}], "is no path: its name is too long"),
        ([{"image": "s3://1.png", "caption": "a"}], "--image_column names a column with their paths"),
    ],
)
def test_json_that_cannot_be_read_names_what_is_wrong(tmp_path: Path, content: Any, told: str) -> None:
    draw(tmp_path)
    with pytest.raises(DataError, match=told) as caught:
        read(lines(tmp_path / "all.json", content))
    assert len(str(caught.value)) < 500


def test_what_is_told_of_columns_files_and_archives_that_are_not_read(tmp_path: Path) -> None:
    draw(tmp_path)
    rows = [f"{n}.png,{caption},{n % 3}" for n, caption in enumerate(CAPTIONS)]
    path = lines(tmp_path / "train.csv", "image,caption,fold", *rows)
    lines(tmp_path / "val.csv", "image,caption")
    notes = "\n".join(read(path).notes)
    assert "column 'fold' holds '0', which names no split" in notes and "val.csv, beside it, is not read" in notes
    with tarfile.open(tmp_path / "packed.tar", "w") as tar:
        tar.add(path, "packed/train.csv")
        tar.add(tmp_path / "1.png", "packed/1.png")
    with pytest.raises(DataError, match=r"unpack it and name the folder"):
        read(tmp_path / "packed.tar")


@pytest.mark.parametrize("sign", ["{} &amp; more", "<b>{}</b>", "{} | {}", "{} <sep> {}"])
def test_captions_with_signs_of_programs_are_told(tmp_path: Path, sign: str) -> None:
    draw(tmp_path)
    rows = [f"{n}.png,{sign.format(caption, caption)}" for n, caption in enumerate(CAPTIONS)]
    told = first_look(read(lines(tmp_path / "c.csv", "image,caption", *rows)), None, OptimisationSettings())
    assert any(line.startswith("warning: 100% of the captions hold") for line in told)


def test_a_detectors_boxes_are_no_captions(tmp_path: Path) -> None:
    draw(tmp_path)
    rows = [{"image": f"{n}.png", "prefix": "detect", "suffix": f"<loc00{n}1><loc0300> dog"} for n in range(9)]
    with pytest.raises(DataError, match="100% of the captions are boxes"):
        refuse_what_is_no_caption(read(lines(tmp_path / "boxes.jsonl", *rows)))


TABLE = re.findall(
    r"^\| ([^|]+) \| .* \| `'?([^`']+)'?` \|$", (ROOT / "docs" / "data.md").read_text("utf-8"), re.MULTILINE
)
TOLD = {layout: dataset for layout, dataset in TABLE if dataset != "--dataset"}


def pieces(folder: Path, pattern: str, suffix: str = "txt") -> None:
    """img2dataset's files, or the same as shards."""
    draw(folder, "files/{:09d}.png")
    folder.mkdir(parents=True, exist_ok=True)
    for n, caption in enumerate(CAPTIONS):
        text = lines(folder / "files" / f"{n:09d}.{suffix}", caption if suffix == "txt" else {"caption": caption})
        with tarfile.open(folder / pattern.format(n % 2), "a") as tar:
            tar.add(text.with_suffix(".png"), f"{n}.png")
            tar.add(text, f"{n}.{suffix}")
    shutil.rmtree(folder / "files")


def hub_copy(folder: Path, saved: bool) -> None:
    import datasets

    draw(folder / "x")
    images = [{"bytes": (folder / f"x/{n}.png").read_bytes(), "path": None} for n in range(9)]
    shutil.rmtree(folder / "x")
    table = datasets.Dataset.from_dict({"image": images, "text": CAPTIONS})
    if saved:
        table.save_to_disk(folder)
    else:
        (folder / "data").mkdir()
        pq.write_table(table.data.table, folder / "data/train-00000-of-00001.parquet")


def table(folder: Path, name: str, where: str = "", parts: str = "") -> None:
    draw(folder / where)
    for part in sorted(set(PARTS)) if parts else [""]:
        rows = [f"{n}.png,{caption}" for n, caption in enumerate(CAPTIONS) if PARTS[n] == part or not part]
        lines(folder / name.format(part), "file_name,caption", *rows)


def sidecars(folder: Path, above: str = "") -> None:
    draw(folder, above + "{}.png")
    for n, caption in enumerate(CAPTIONS):
        lines(folder / f"{above.format(part=PARTS[n])}{n}.txt", caption)


def two_tables(folder: Path) -> None:
    draw(folder / "images")
    lines(folder / "images.csv", "id,file_name", *(f"{8 - n},{n}.png" for n in range(len(CAPTIONS))))
    lines(folder / "captions.csv", "image_id,caption", *(f"{8 - n},{caption}" for n, caption in enumerate(CAPTIONS)))


def parallel_texts(folder: Path) -> None:
    draw(folder, "images/a/{}.png")
    for n, caption in enumerate(CAPTIONS):
        lines(folder / f"text/a/{n}.txt", caption)


def one_json(folder: Path, name: str, content: Any) -> None:
    draw(folder / "images")
    lines(folder / name, content)


def named_lists(folder: Path) -> None:
    table(folder, "captions.csv", "images")
    for part in sorted(set(PARTS)):
        lines(folder / f"{part}.txt", *(f"{n}.png" for n in of_part(part)))


def coco(folder: Path) -> None:
    for part in ("train", "valid", "test"):
        content = {
            "images": [{"id": n, "file_name": f"{n:012d}.jpg"} for n in of_part(part)],
            "annotations": [{"image_id": n, "caption": CAPTIONS[n]} for n in of_part(part)],
        }
        lines(folder / "annotations" / f"captions_{part}2017.json", content)
    draw(folder, "{part}2017/{:012d}.jpg")


def turns(caption: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption}]


WRITE: dict[str, Callable[[Path], None]] = {
    "pictures and a table": lambda f: table(f, "metadata.csv"),
    "a table beside a folder of pictures": lambda f: table(f, "captions.csv", "images"),
    "a text beside each picture": sidecars,
    "texts in a folder of the same structure": parallel_texts,
    "folders called after splits": lambda f: sidecars(f, "{part}/"),
    "a table for each split": lambda f: table(f, "{}.csv", "images", "parts"),
    "lists of names for the splits": named_lists,
    "one table": lambda f: table(f, "captions.csv"),
    "a table of pictures and one of captions": two_tables,
    "COCO, nocaps, VizWiz": coco,
    "JSON of names": lambda f: one_json(f, "captions.json", {f"{n}.png": c for n, c in enumerate(CAPTIONS)}),
    "conversations": lambda f: one_json(
        f, "chat.json", [{"image": f"{n}.png", "conversations": turns(c)} for n, c in enumerate(CAPTIONS)]
    ),
    "Label Studio": lambda f: one_json(
        f,
        "project.json",
        [
            {"data": {"image": f"{n}.png"}, "annotations": [{"result": [{"value": {"text": [c]}}]}]}
            for n, c in enumerate(CAPTIONS)
        ],
    ),
    "Roboflow's PaliGemma, ROCO": paligemma,
    "a saved data set": lambda f: hub_copy(f, saved=True),
    "a copy of a Hub data set": lambda f: hub_copy(f, saved=False),
    "img2dataset": lambda f: pieces(f, "0000{}.tar"),
    "webdataset shards": lambda f: pieces(f, "000{}.tar", "json"),
}
ELSEWHERE = {"a data set of the Hub", "Flickr8k", "Karpathy's splits", "COCO with Karpathy's splits", "drawn scenes"}


def test_each_layout_of_the_table_is_tried() -> None:
    assert {*TOLD} == {*WRITE} | ELSEWHERE  # those elsewhere have tests in test_sources.py


@pytest.mark.parametrize("layout", WRITE)
def test_each_line_of_the_table_works_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.chdir(tmp_path)
    WRITE[layout](tmp_path / "birds")
    data = read(Path(TOLD[layout]))
    assert captions_of(data) == sorted(CAPTIONS)
    assert data.drawn or split_sizes(data) == [5, 2, 2]
