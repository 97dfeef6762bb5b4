"""Which captions belong to which image, and which image to which split: however files, lists and shards say it."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from blip_lite.data.dataset import DataSet
from blip_lite.data.names import caption_columns
from blip_lite.data.sources.lists import key_of
from blip_lite.data.sources.table import captions_in
from blip_lite.errors import DataError
from blip_lite.settings import SPLITS
from conftest import load

FEW_EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
COUNT = 9


def photo(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number * 7 % 256, number // 36, 9)).save(path, "PNG")
    return path


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 7 % 256, number // 36, 9)).save(file, "PNG")
    return file.getvalue()


def number_of(picture: Any) -> int:
    """Which of the photographs above it is, by its colour."""
    source = picture.open()
    red, blocks, _ = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source).getpixel((0, 0))
    return next(n for n in range(blocks * 36, 256) if n * 7 % 256 == red)


def pairs(found: DataSet) -> dict[int, tuple[str, ...]]:
    return {number_of(e): e.captions for split in SPLITS for e in found.splits[split]}


def splits(found: DataSet) -> dict[int, str]:
    return {number_of(e): split for split in SPLITS for e in found.splits[split]}


SPLIT = {n: SPLITS[n % 3] for n in range(COUNT)}
RIGHT = {n: (f"caption {n}",) for n in range(COUNT)}


def as_csv(folder: Path, names: list[str]) -> Path:
    path = folder / "captions.csv"
    path.write_text("image,caption\n" + "".join(f'"{name}",caption {n}\n' for n, name in enumerate(names)), "utf-8")
    return path


def as_tsv(folder: Path, names: list[str]) -> Path:
    path = folder / "captions.tsv"
    path.write_text("image\tcaption\n" + "".join(f"{name}\tcaption {n}\n" for n, name in enumerate(names)), "utf-8")
    return path


def as_jsonl(folder: Path, names: list[str]) -> Path:
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps({"image": x, "caption": f"caption {n}"}) + "\n" for n, x in enumerate(names)))
    return path


def as_coco(folder: Path, names: list[str]) -> Path:
    images = [{"id": 900 - n, "file_name": name} for n, name in enumerate(names)]
    said = [{"id": n, "image_id": 900 - n, "caption": f"caption {n}"} for n in range(len(names))]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": said}))
    return path


def as_texts(folder: Path, names: list[str]) -> Path:
    for n, name in enumerate(names):
        (folder / name).with_suffix(".txt").write_text(f"caption {n}")
    return folder


def parts(names: list[str]) -> dict[str, list[str]]:
    return {split: [name for n, name in enumerate(names) if SPLIT[n] == split] for split in SPLITS}


def each(pattern: str, line: str = "{}") -> Any:
    """A list for each split."""
    return lambda names: {
        pattern.format(split): "".join(line.format(name) + "\n" for name in some)
        for split, some in parts(names).items()
    }


def rows_of(file: str, header: str, line: Any) -> Any:
    """One table of all images."""
    begin = f"{header}\n" if header else ""
    return lambda names: {file: begin + "".join(line(name, SPLIT[n]) + "\n" for n, name in enumerate(names))}


def flags_of(name: str, split: str) -> str:
    return ",".join([name, *(str(int(split == other)) for other in SPLITS)])


LISTS = {
    **{p: each(p) for p in ("{}.txt", "{}list01.txt", "{}_ids.txt", "{}_list.lst", "splits/{}.txt", "ImageSets/{}.txt")},
    "classes": each("{}.txt", "{} 3"),
    "VOC": each("{}.txt", "{}  -1"),
    "upper": each("{}.TXT"),
    "header": rows_of("split.csv", "image,split", "{},{}".format),
    "name": rows_of("splits.csv", "name,split", "{},{}".format),
    "semicolon": rows_of("Split.CSV", "id;set", "{};{}".format),
    "no header": rows_of("split.csv", "", "{},{}".format),
    "lines": rows_of("split.txt", "", "{} {}".format),
    "partition": rows_of("partition.csv", "image,partition", "{},{}".format),
    "any table": rows_of("images.csv", "file_name,split", "{},{}".format),
    "flags": rows_of("split.csv", "image,is_train,is_validation,is_test", flags_of),
    "columns": rows_of("split.csv", "image,train,validation,test", flags_of),
    "JSON": lambda names: {"splits.json": json.dumps(parts(names))},
    "JSON and more": lambda names: {"splits.json": json.dumps(parts(names) | {"seed": 42, "unused": []})},
    "JSON in JSON": lambda names: {"dataset_splits.json": json.dumps({"about": "x", "splits": parts(names)})},
    "JSON rows": lambda names: {"split.json": json.dumps([{"name": x, "split": SPLIT[n]} for n, x in enumerate(names)])},
    "JSON objects": lambda names: {
        "splits.json": json.dumps({split: [{"file_name": x} for x in some] for split, some in parts(names).items()})
    },
    "JSON by name": lambda names: {"split.json": json.dumps({x: SPLIT[n] for n, x in enumerate(names)})},
    "YAML": lambda names: {"splits.yaml": json.dumps(parts(names))},
}  # fmt: skip
SPELLINGS = {
    "plain": lambda name: name,
    "folder": lambda name: f"images/{name}",
    "far": lambda name: f"/data/all/images/{name}",
    "Windows": lambda name: f"images\\{name}",
    "drive": lambda name: f"C:\\me\\{name}",
    "NFD": lambda name: unicodedata.normalize("NFD", name),
    "dot": lambda name: f"./images/{name}",
    "no suffix": lambda name: name.removesuffix(".png"),
}


@given(
    form=st.sampled_from(sorted(LISTS)),
    spelling=st.sampled_from(sorted(SPELLINGS)),
    write=st.sampled_from([as_csv, as_tsv, as_jsonl, as_coco, as_texts]),
    whole=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    name=st.sampled_from(["{}", "00{}", "été {}", "vid1.00{}", "IMG_{}"]),
)
@settings(FEW_EXAMPLES, max_examples=100)
def test_lists_share_the_images_out(
    tmp_path_factory: pytest.TempPathFactory,
    form: str,
    spelling: str,
    write: Any,
    whole: bool,
    encoding: str,
    name: str,
) -> None:
    if spelling == "no suffix" and (form == "no header" or (form in ("VOC", "lines", "classes") and " " in name)):
        return  # nobody could tell
    folder = tmp_path_factory.mktemp("lists")
    names = [f"{name.format(n)}.png" for n in range(COUNT)]
    for n, one in enumerate(names):
        photo(folder / "images" / one, n)
    captions = write(folder, [f"images/{one}" for one in names])
    for file, text in LISTS[form]([SPELLINGS[spelling](one) for one in names]).items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(text.encode(encoding if not file.endswith((".json", ".yaml")) else "utf-8"))
    found = load(folder if whole else captions)
    assert splits(found) == SPLIT and pairs(found) == RIGHT, (form, spelling, found.notes)


@pytest.mark.parametrize(
    "text", ["0.png yes\n1.png no\n", '{"a": {"0.png": 1, "1.png": 2}}', "name;value\n0.png;7\n1.png;9\n"]
)
@pytest.mark.parametrize("whole", [True, False])
def test_a_list_that_is_not_understood_stops(tmp_path: Path, text: str, whole: bool) -> None:
    """Else the images that it keeps for the test would be trained on."""
    for n in range(COUNT):
        photo(tmp_path / f"{n}.png", n)
    captions = as_csv(tmp_path, [f"{n}.png" for n in range(COUNT)])
    name = {"{": "splits.json", "n": "splits.csv"}.get(text[0], "splits.txt")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}: names images, but not as a list of a split does: a name a line"):
        load(tmp_path if whole else captions)
    if name != "splits.json":
        (tmp_path / name).write_text("These are the official splits of 2014.")
        assert any("is not read" in note for note in load(tmp_path if whole else captions).notes)


def test_a_name_of_two_folders_and_an_id_that_is_another_name(tmp_path: Path) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"{'ab'[n % 2]}/{n // 2}.png", n)
    captions = as_csv(tmp_path, [f"{'ab'[n % 2]}/{n // 2}.png" for n in range(COUNT)])
    (tmp_path / "train.txt").write_text("".join(f"a/{n}.png\n" for n in range(5)))
    (tmp_path / "test.txt").write_text("".join(f"b/{n}.png\n" for n in range(3)))
    found = splits(load(captions))
    assert {n for n in found if found[n] == "test"} == {1, 3, 5} and 7 not in found  # b/3 is in no list
    (tmp_path / "test.txt").write_text("0.png\n")
    (tmp_path / "train.txt").write_text("x/0.png\ny/1.png\n")
    as_csv(tmp_path, ["0.png", *(f"a/{n}.png" for n in range(1, 4))])
    (tmp_path / "val.txt").write_text("a/2.png\n")
    photo(tmp_path / "0.png", 8)
    assert splits(load(captions))[8] == "test"  # the name itself comes before one with a folder

    coco = tmp_path / "coco"
    for n in range(4):
        photo(coco / f"{n}.png", n)
    images = [{"id": 3 - n, "file_name": f"{n}.png"} for n in range(4)]
    said = [{"id": n, "image_id": 3 - n, "caption": f"caption {n}"} for n in range(4)]
    (coco / "all.json").write_text(json.dumps({"images": images, "annotations": said}))
    (coco / "train.txt").write_text("0\n1\n")
    (coco / "test.txt").write_text("2\n3\n")
    with pytest.raises(DataError, match=r"0.png is in train as a name, and in test by its id 3. Write names with"):
        load(coco / "all.json")
    (coco / "train.txt").write_text("0.png\n1.png\n")
    (coco / "test.txt").write_text("2.png\n3.png\n")
    found = splits(load(coco / "all.json"))
    assert {n for n in found if found[n] == "test"} == {2, 3}


@given(name=st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=12))
def test_one_spelling_of_a_name(name: str) -> None:
    inner = key_of(name)
    assert key_of(f"./{inner}.jpg") == key_of(f"/{inner}.JPG".replace("/", "\\")) == key_of(inner)


@pytest.mark.parametrize("write", [as_coco, as_csv, as_jsonl])
@pytest.mark.parametrize("place", ["{}/{}.png", "bird_{}/{}.png", "{}_{}.png", "{}\\{}.png", "C:\\data\\{}\\{}.png"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_split_in_an_images_own_path(tmp_path: Path, write: Any, place: str, whole: bool) -> None:
    if not whole and write is not as_coco and place.startswith("C:"):
        pytest.skip("the names in a table are those of another machine")
    names = [place.format({"validation": "val"}.get(SPLIT[n], SPLIT[n]), n) for n in range(COUNT)]
    for n, name in enumerate(names):
        photo(tmp_path / name.removeprefix("C:\\data\\").replace("\\", "/"), n)
    captions = write(tmp_path, [name.replace("\\", "\\\\") if write is None else name for name in names])
    found = load(tmp_path if whole else captions)
    assert splits(found) == SPLIT and pairs(found) == RIGHT


def test_folders_that_have_images_of_the_same_names(tmp_path: Path) -> None:
    for folder in ("masks", "images"):
        for n in range(20):
            if (folder, n) != ("images", 3):
                photo(tmp_path / f"a/{folder}/{n}.png", n + 40 * (folder == "masks"))
    with pytest.raises(DataError, match="line 5: there is no image .*images/3.png"):
        load(as_csv(tmp_path / "a", [f"{n}.png" for n in range(20)]))
    for n in range(20):
        photo(tmp_path / f"b/one/{n}.png", n)
        if n < 19:
            photo(tmp_path / f"b/two/{n}.png", n + 40)
    with pytest.raises(DataError, match=r"names are in .*one and in .*two; say which .* or write the folder before"):
        load(as_csv(tmp_path / "b", [f"{n}.png" for n in range(20)]))


@pytest.mark.parametrize("base", ["", "images/"])
@pytest.mark.parametrize("header", ["class,filename,caption", "filename,caption,folder"])
def test_a_column_that_names_the_folder(tmp_path: Path, base: str, header: str) -> None:
    lines, expected = [header], {}
    for n in range(100):
        row = {"class": (c := "cats" if n < 60 else "dogs"), "folder": c, "filename": f"{n % 60:03d}.png"}
        row["caption"] = f"caption {n}"
        photo(tmp_path / f"{base}{c}/{row['filename']}", n)
        lines.append(",".join(row[name] for name in header.split(",")))
        expected[n] = (f"caption {n}",)
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    for dataset in (tmp_path, tmp_path / "captions.csv"):
        found = load(dataset)
        assert pairs(found) == expected and any("folders are in column" in note for note in found.notes)


@pytest.mark.parametrize("folders", [("part0", "part1"), ("images/a", "images/b"), ("train", "test")])
@pytest.mark.parametrize("order", [0, 1])
def test_one_table_of_several_folders(tmp_path: Path, folders: tuple[str, str], order: int) -> None:
    """Its first 50 rows may all be of one folder."""
    numbers = [*range(90)]
    random.Random(order).shuffle(numbers) if order else None
    for n in numbers:
        photo(tmp_path / folders[n >= 60] / f"{n}.png", n)
    (tmp_path / "c.csv").write_text("image,caption\n" + "".join(f"{n}.png,caption {n}\n" for n in numbers))
    for dataset in (tmp_path, tmp_path / "c.csv"):
        found = load(dataset)
        assert pairs(found) == {n: (f"caption {n}",) for n in numbers}
        if folders[1] == "test":
            assert {n for n, split in splits(found).items() if split == "test"} == {*range(60, 90)}


def test_names_with_the_folders_of_another_machine_beside_image_root(tmp_path: Path) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"pictures/{n}.png", n)
    for prefix in ("/content/drive/imgs/", "C:\\me\\imgs\\", "images/"):
        captions = as_csv(tmp_path, [f"{prefix}{n}.png" for n in range(COUNT)])
        assert pairs(load(captions, image_root=str(tmp_path / "pictures"))) == RIGHT


SPELT = {
    "capitals": lambda n: f"img_{n}.PNG",
    "comment": lambda n: f"IMG_{n}.png#0",
    "query": lambda n: f"IMG_{n}.png?raw=true",
    "list": lambda n: f"['IMG_{n}.png']",
    "URL of a file": lambda n: f"file:///somewhere/IMG_{n}.png",
    "bare": lambda n: f"img_{n}",
}


@pytest.mark.parametrize("spelt", SPELT)
@pytest.mark.parametrize("write", [as_csv, as_jsonl])
def test_names_as_other_programs_spell_them(tmp_path: Path, spelt: str, write: Any) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"IMG_{n}.png", n)
    assert pairs(load(write(tmp_path, [SPELT[spelt](n) for n in range(COUNT)]))) == RIGHT


def test_one_file_under_two_spellings_is_one_image(tmp_path: Path) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"{n}.png", n)
    rows = [f"{n}.{suffix},{suffix} {n}" for n in range(COUNT) for suffix in ("png", "PNG")]
    (tmp_path / "c.csv").write_text("\n".join(["image,caption", *rows]))
    found = load(tmp_path / "c.csv")
    assert pairs(found) == {n: (f"png {n}", f"PNG {n}") for n in range(COUNT)}
    assert sum(map(len, found.splits.values())) == COUNT


def test_a_column_of_numbers_is_no_path_beside_one_of_names(tmp_path: Path) -> None:
    for n in range(12):
        photo(tmp_path / f"{n}.png", n)
    rows = [f"{n},{11 - n}.png,caption {11 - n}" for n in range(12)]
    (tmp_path / "c.csv").write_text("\n".join(["image,file_name,caption", *rows]))
    assert pairs(load(tmp_path / "c.csv")) == {n: (f"caption {n}",) for n in range(12)}
    (tmp_path / "c.csv").write_text("image_id,caption\n" + "".join(f"{n}.0,caption {n}\n" for n in range(12)))
    assert pairs(load(tmp_path / "c.csv")) == {n: (f"caption {n}",) for n in range(12)}


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as shard:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


@given(
    name=st.sampled_from(["{}", "a/{:03d}", "2026.01.{:02d}", "./IMG.{:04d}", "x.{}.y"]),
    texts=st.sampled_from([("txt",), ("caption",), ("caption1.txt", "caption2.txt"), ("json",), ("txt", "cls")]),
    seed=st.integers(0, 10**6) | st.none(),
)
@FEW_EXAMPLES
def test_shards_pair_by_name_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, name: str, texts: tuple[str, ...], seed: int | None
) -> None:
    if "." in name.removeprefix("./") and texts[0].startswith("caption1"):
        return  # webdataset ends a name at its first dot
    members, expected = [], {}
    for n in range(COUNT):
        members.append((f"{name.format(n)}.png", encoded(n)))
        lines = [f"{text} {n}" for text in texts if text != "cls"]
        expected[n] = tuple(lines)
        for text in texts:
            said = json.dumps({"caption": f"{text} {n}"}) if text == "json" else "3" if text == "cls" else f"{text} {n}"
            members.append((f"{name.format(n)}.{text}", said.encode()))
    if seed is not None:
        random.Random(seed).shuffle(members)
    assert pairs(load(tar(tmp_path_factory.mktemp("tar") / "x.tar", members))) == expected


@pytest.mark.parametrize("place", ["{}/{}", "{}_{}", "bird_{}/{}", "data/{}/a/{}"])
def test_the_split_in_the_names_of_a_shards_members(tmp_path: Path, place: str) -> None:
    members = []
    for n in range(COUNT):
        name = place.format(SPLIT[n], n)
        members += [(f"{name}.png", encoded(n)), (f"{name}.txt", f"caption {n}".encode())]
    found = load(tar(tmp_path / "x.tar", members))
    assert splits(found) == SPLIT and pairs(found) == RIGHT


def test_joined_shards_repeat_names(tmp_path: Path) -> None:
    members = []
    for n in range(COUNT):
        members += [(f"{n % 3}.png", encoded(n)), (f"{n % 3}.txt", f"caption {n}".encode())]
    assert pairs(load(tar(tmp_path / "x.tar", members))) == RIGHT


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("order", [("train", "validation"), ("validation", "train"), ("test", "train")])
def test_the_same_bytes_in_two_splits_stay_where_they_are_scored(
    tmp_path: Path, kind: str, order: tuple[str, str]
) -> None:
    import datasets

    for split, numbers in zip(order, ((0, 1, 2), (2, 3, 4)), strict=True):
        said = [f"{split} {n}" for n in numbers]
        if kind == "tar":
            pieces = [
                ((f"{n}.png", encoded(n)), (f"{n}.txt", text.encode())) for n, text in zip(numbers, said, strict=True)
            ]
            tar(tmp_path / f"{split}.tar", [member for pair in pieces for member in pair])
        else:
            columns = {"image": [{"bytes": encoded(n), "path": None} for n in numbers], "caption": said}
            features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
            datasets.Dataset.from_dict(columns, features).to_parquet(str(tmp_path / f"{split}-0.parquet"))
    found = load(tmp_path)
    kept = next(split for split in order if split != "train")
    assert splits(found)[2] == kept and pairs(found)[2] == (f"{kept} 2",)
    assert any(f"1 pictures of train that are in {kept}, too" in note for note in found.notes)


def test_class_numbers_of_parquet_are_names_of_splits(tmp_path: Path) -> None:
    import datasets

    kinds = {"image": datasets.Image(), "caption": datasets.Value("string")}
    kinds["split"] = datasets.ClassLabel(names=["train", "val", "test"])
    columns = {
        "image": [{"bytes": encoded(n), "path": None} for n in range(COUNT)],
        "split": [n % 3 for n in range(COUNT)],
    }
    columns["caption"] = [f"caption {n}" for n in range(COUNT)]
    datasets.Dataset.from_dict(columns, datasets.Features(kinds)).to_parquet(str(tmp_path / "x.parquet"))
    assert splits(load(tmp_path / "x.parquet")) == SPLIT


def test_lists_beside_parquet_name_its_pictures(tmp_path: Path) -> None:
    import datasets

    kinds = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    columns = {"image": [{"bytes": encoded(n), "path": f"p/{n}.png"} for n in range(COUNT)]}
    columns["caption"] = [f"caption {n}" for n in range(COUNT)]
    datasets.Dataset.from_dict(columns, kinds).to_parquet(str(tmp_path / "x.parquet"))
    (tmp_path / "splits.json").write_text(json.dumps(parts([f"{n}.png" for n in range(COUNT)])))
    assert splits(load(tmp_path)) == splits(load(tmp_path / "x.parquet")) == SPLIT


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("image raw raw_1 raw_2", "raw raw_1 raw_2"),
        ("image description description_2", "description description_2"),
        ("image caption comment1", "caption"),
        ("image text caption_0 caption_1", "caption_0 caption_1"),
        ("Image Caption1 Caption2", "Caption1 Caption2"),
        ("image caption caption_2_score", "caption"),
        ("image sentence1 text", "text"),
    ],
)
def test_columns_of_captions_are_called_alike(columns: str, expected: str) -> None:
    assert caption_columns(columns.split()) == expected.split()


lines = st.text(st.sampled_from('ab "\t'), min_size=1, max_size=8).map(lambda t: f"x{t}y")


@given(
    captions=st.lists(st.lists(lines, min_size=1, max_size=3).map("\n".join), min_size=6, max_size=6),
    last=st.booleans(),
)
@FEW_EXAMPLES
def test_texts_of_several_lines_in_tab_separated_tables(
    tmp_path_factory: pytest.TempPathFactory, captions: list[str], last: bool
) -> None:
    """As pandas and Excel write them; CC3M's quotation marks, which open nothing, stay."""
    folder = tmp_path_factory.mktemp("tsv")
    captions = [caption.replace("\t", " ") for caption in captions]
    with open(folder / "c.tsv", "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        for n, caption in enumerate(["caption", *captions]):
            name = f"{n}.png" if n else "image"
            if n:
                photo(folder / name, n)
            writer.writerow([name, caption] if last else [caption, name])
    found = pairs(load(folder / "c.tsv"))
    assert found == {n: (caption.strip(),) for n, caption in enumerate(captions, 1)}
    (folder / "c.tsv").write_text('image\tcaption\n1.png\t"so\n2.png\t5" tall\n3.png\t"a" and "b"\n')
    assert pairs(load(folder / "c.tsv")) == {1: ('"so',), 2: ('5" tall',), 3: ('"a" and "b"',)}


def test_quotation_marks_after_a_backslash(tmp_path: Path) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"{n}.png", n)
    rows = [f'"{n}.png","a \\"big\\" dog, {n}"' for n in range(COUNT)]
    (tmp_path / "c.csv").write_text("\n".join(["image,caption", *rows]))
    assert pairs(load(tmp_path / "c.csv")) == {n: (f'a "big" dog, {n}',) for n in range(COUNT)}


OBJECTS: dict[str, Any] = {
    "images with captions": lambda rows: {"images": rows, "info": {"year": 2026}},
    "columns called images": lambda rows: {
        "images": [r["file_name"] for r in rows], "captions": [r["caption"] for r in rows], "version": 1,
    },
    "parts and a version": lambda rows: {"version": 2, "train": rows[:6], "test": rows[6:]},
    "by class": lambda rows: {"airport": rows[:4], "beach": rows[4:]},
}  # fmt: skip


@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_of_json(tmp_path: Path, kind: str) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"{n}.png", n)
    rows = [{"file_name": f"{n}.png", "caption": f"caption {n}"} for n in range(COUNT)]
    (tmp_path / "captions.json").write_text(json.dumps(OBJECTS[kind](rows)))
    assert pairs(load(tmp_path)) == pairs(load(tmp_path / "captions.json")) == RIGHT


def test_fields_of_label_studio_are_told_apart(tmp_path: Path) -> None:
    tasks = []
    for n in range(COUNT):
        photo(tmp_path / f"{n}.png", n)
        typed = [
            {"from_name": field, "type": "textarea", "value": {"text": [f"{field} {n}"]}}
            for field in ("caption", "notes")
        ]
        tasks.append({"data": {"image": f"{n}.png"}, "annotations": [{"result": typed}]})
    (tmp_path / "project.json").write_text(json.dumps(tasks))
    assert pairs(load(tmp_path / "project.json")) == RIGHT
    text = (tmp_path / "project.json").read_text().replace('"caption"', '"what is seen"')
    (tmp_path / "project.json").write_text(text)
    with pytest.raises(DataError, match=r"there are: image, what is seen, notes. Name it with --caption_column"):
        load(tmp_path / "project.json")
    found = load(tmp_path / "project.json", caption_column="what is seen")
    assert pairs(found) == RIGHT


def test_a_named_column_means_the_table_not_the_texts(tmp_path: Path) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"{n}.png", n).with_suffix(".txt").write_text("0")
    as_csv(tmp_path, [f"{n}.png" for n in range(COUNT)])
    assert pairs(load(tmp_path, caption_column="caption")) == RIGHT
    (tmp_path / "metadata.csv").write_text("file_name,caption\n0.png,a dog\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "caption": "a cat"}\n')
    with pytest.raises(DataError, match=r"which of metadata.csv, metadata.jsonl\? Name the file"):
        load(tmp_path)


@pytest.mark.parametrize("images", ["images", "JPEGImages"])
def test_texts_in_a_folder_of_the_same_structure(tmp_path: Path, images: str) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"{images}/{n % 2:03d}.Bird/{n}.png", n)
        text = tmp_path / f"text_c10/{n % 2:03d}.Bird/{n}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(f"caption {n}\n")
    assert pairs(load(tmp_path)) == RIGHT


def test_a_caption_by_its_language() -> None:
    assert captions_in({"en": "a dog"}) == captions_in({"pt-BR": ["a dog"]}) == ["a dog"]
    assert captions_in({"en": "a dog", "de": "ein Hund"}) == []  # which one?


def test_texts_in_another_folder_are_no_captions_beside_a_table(tmp_path: Path) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"images/{n}.png", n)
        (tmp_path / "ocr").mkdir(exist_ok=True)
        (tmp_path / f"ocr/{n}.txt").write_text("STOP")
    as_csv(tmp_path, [f"{n}.png" for n in range(COUNT)])
    assert pairs(load(tmp_path)) == RIGHT


def test_samples_of_joined_shards_stay_whole(tmp_path: Path) -> None:
    first = [("0.png", encoded(0)), ("1.png", encoded(1)), ("1.txt", b"caption 1")]
    second = [("0.txt", b"caption 2"), ("0.png", encoded(2)), ("1.jpg", encoded(3)), ("1.txt", b"caption 3")]
    assert pairs(load(tar(tmp_path / "x.tar", first + second), validation_share=0.3)) == {
        n: RIGHT[n] for n in (1, 2, 3)
    }
    said = json.dumps({"split": "test"}).encode()
    members = [("0.a.png", encoded(0)), ("0.a.txt", b"a"), ("0.b.png", encoded(1)), ("0.b.txt", b"b"), ("0.json", said)]
    for n in range(2, 6):
        members += [
            (f"{n}.png", encoded(n)),
            (f"{n}.txt", b"c"),
            (f"{n}.json", json.dumps({"split": "train"}).encode()),
        ]
    found = load(tar(tmp_path / "y.tar", members))
    assert {n for n, split in splits(found).items() if split == "test"} == {0, 1}


def test_the_same_bytes_in_two_folders_of_a_shard(tmp_path: Path) -> None:
    members = [
        ("train/1.png", encoded(1)),
        ("train/1.txt", b"in training"),
        ("test/9.png", encoded(1)),
        ("test/9.txt", b"x"),
    ]
    for n in range(2, 6):
        members += [(f"train/{n}.png", encoded(n)), (f"train/{n}.txt", b"c")]
    found = load(tar(tmp_path / "x.tar", members))
    assert splits(found)[1] == "test" and pairs(found)[1] == ("x",)


def test_names_that_differ_in_capitals_are_two_images(tmp_path: Path) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"a{n}.png", n)
    (tmp_path / "c.csv").write_text(
        "image,caption\n" + "".join(f"a{n}.png,caption {n}\n" for n in range(COUNT)) + "A0.png,x\n"
    )
    with pytest.raises(DataError, match="line 11: there is no image .*A0.png"):
        load(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text("image,caption,split\na0.png,a,train\na0.PNG,b,train\na0.PNG,c,test\n")
    with pytest.raises(DataError, match=r"line 4: a0.png is in test, and in train in .*line 2"):
        load(tmp_path / "c.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("folds.yaml", "0: [0.png, 1.png]\n1: [2.png]\n"),
        ("boxes.csv", "file_name,split\n0.png,left\n1.png,right\n"),
        ("train_log.txt", b"\xff\xe9 \x81\x8d loss"),
        ("subset_config.json", '{"a": 1} // a comment'),
        ("train.yaml", "train: images/train\nval: images/val\nnc: 3\n"),
        ("test.yaml", "path: !ENV data\n"),
        ("instances_train_val.json", '{"images": [{"id": 1, "file_name": "0.png"}], "annotations": []}'),
        ("flickr_subset.json", '{"0.png": "a dog", "1.png": "a cat"}'),
        ("README.txt", "see test.txt"),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_what_lies_beside_captions_and_is_no_list(tmp_path: Path, name: str, text: str | bytes, whole: bool) -> None:
    names = [f"images/{n}.png" for n in range(COUNT)]
    for n, one in enumerate(names):
        photo(tmp_path / one, n)
    captions = as_csv(tmp_path, names)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    if whole and name == "subset_config.json":
        return  # a .json in a folder may be the captions: it is read
    if whole and name == "flickr_subset.json":
        with pytest.raises(DataError, match="which of captions.csv, flickr_subset.json"):  # both are captions
            load(tmp_path)
        return
    assert pairs(load(tmp_path if whole else captions)) == RIGHT


def test_a_lone_table_called_after_a_subset(tmp_path: Path) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"{n}.png", n)
    (tmp_path / "coco_subset.json").write_text(json.dumps({f"{n}.png": f"caption {n}" for n in range(COUNT)}))
    assert pairs(load(tmp_path)) == RIGHT


def test_a_folder_called_images_that_lacks_many(tmp_path: Path) -> None:
    for n in range(10):
        photo(tmp_path / f"full/{n}.png", n)
        if n < 6:
            photo(tmp_path / f"images/{n}.png", n + 40)
    found = load(as_csv(tmp_path, [f"{n}.png" for n in range(10)]))
    assert pairs(found) == {n: (f"caption {n}",) for n in range(10)}


def test_a_late_row_without_the_column_of_the_folder(tmp_path: Path) -> None:
    """It ended in a KeyError."""
    rows: list[dict[str, str]] = []
    for n in range(60):
        photo(tmp_path / f"cats/{n}.png", n)
        rows.append({"class": "cats", "filename": f"{n}.png", "caption": f"caption {n}"})
    del rows[-1]["class"]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="line 60: there is no image .*59.png"):
        load(tmp_path / "c.jsonl")


@FEW_EXAMPLES
@given(
    st.sampled_from(
        [
            ("id,file_name", "id,image_id,caption"),
            ("image_id,path", "image_id,text"),
            ("Image ID,file,w", "n,Image ID,caption"),
            ("id,filename", "photo_id,description"),
            ("uid,url,img", "uid,caption"),
            (",file_name", "id,image_id,caption"),
            ("w,original_filename,asset_key", "image_fk,caption"),
        ]
    ),
    st.sampled_from(["{}", "{}.0", "{:05d}", "b1e4-{}"]),
    st.permutations(range(COUNT)),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", '"']),
)
def test_two_tables_of_a_database(
    tmp_path: Path, heads: tuple[str, str], form: str, order: list[int], named: bool, whole: bool, mark: str
) -> None:
    """The numbers are never those in the files' names; the splits stand in the table of the pictures."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    names = [photo(folder / "images" / f"{n}.jpg", n).name for n in range(COUNT)]
    ids = dict(zip(range(COUNT), order, strict=True))
    pictures, captions = heads

    def table(head: str, rows: list[dict[str, str]]) -> str:
        lines = [[row.get(cell, "7") for cell in head.split(",")] for row in rows]
        lines = [head.split(","), *lines]
        return "".join(",".join(f"{mark}{cell}{mark}" for cell in line) + "\n" for line in lines)

    files, about = [], []
    for n in order:
        key = form.format(ids[n])
        files.append(
            {
                **dict.fromkeys(("file_name", "path", "file", "filename", "img", "original_filename"), names[n]),
                "split": SPLIT[n],
            }
        )
        files[-1] |= dict.fromkeys(("id", "image_id", "Image ID", "uid", "", "asset_key"), key)
        about.append(
            {"id": str(len(about)), "n": str(len(about)), **dict.fromkeys(("caption", "text"), f"caption {n}")}
        )
        about[-1] |= dict.fromkeys(("image_id", "Image ID", "photo_id", "uid", "image_fk"), key) | {
            "description": f"caption {n}"
        }
    (folder / "photos.csv").write_text(table(pictures + ",split" * named, files))
    (folder / "captions.csv").write_text(table(captions, about[::-1]))
    found = load(folder if whole else folder / "captions.csv")
    assert pairs(found) == RIGHT and any("photos.csv names the images" in note for note in found.notes)
    assert not named or splits(found) == SPLIT


@FEW_EXAMPLES
@given(
    st.lists(st.integers(0, 99_999), min_size=COUNT, max_size=COUNT, unique=True),
    st.sampled_from(["{:05d}.jpg", "{:012d}.png", "{:07d}.JPG", "COCO_val2014_{:012d}.jpg"]),
    st.sampled_from(["{}", "{}.0", "{:05d}"]),
    st.sampled_from(["image_id", "image"]),
    st.sampled_from(["", "images"]),
    st.booleans(),
    st.booleans(),
)
def test_numbers_that_lost_their_leading_zeros(
    tmp_path: Path, numbers: list[int], name: str, form: str, column: str, inner: str, listed: bool, whole: bool
) -> None:
    """As Excel writes `00005` of 00005.jpg, and as COCO's ids are written. Lists of splits have the pictures' names."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    files = [photo(folder / inner / name.format(number), n).name for n, number in enumerate(numbers)]
    captions = (f"{form.format(number)},caption {n}\n" for n, number in enumerate(numbers))
    (folder / "captions.csv").write_text("".join([f"{column},caption\n", *captions]))
    for split in SPLITS if listed else ():
        (folder / f"{split}.txt").write_text("\n".join(files[n] for n in range(COUNT) if SPLIT[n] == split))
    found = load(folder if whole else folder / "captions.csv")
    assert pairs(found) == RIGHT
    assert not listed or splits(found) == SPLIT


def test_a_number_that_may_be_two_pictures_is_none(tmp_path: Path) -> None:
    for n, name in enumerate(["0005.jpg", "005.jpg", "6.jpg", "06.jpg", "7.jpg"]):
        photo(tmp_path / name, n)
    (tmp_path / "captions.csv").write_text("image_id,caption\n6,caption 2\n06,caption 3\n7,caption 4\n")
    assert pairs(load(tmp_path)) == {n: RIGHT[n] for n in (2, 3, 4)}
    files = [photo(tmp_path / "b" / f"{n:04d}.jpg", n).name for n in range(COUNT)]
    rows = ["3,of a lost picture", *(f"{name},caption {n}" for n, name in enumerate(files))]
    (tmp_path / "b" / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    assert pairs(load(tmp_path / "b", max_bad_images=0.2)) == RIGHT
    (tmp_path / "captions.csv").write_text("image_id,caption\n5,caption 2\n6,caption 2\n7,caption 4\n")
    with pytest.raises(DataError, match="line 2: there is no image .*5"):
        load(tmp_path / "captions.csv")


def wrong_numbers(folder: Path) -> list[str]:
    """A picture that is lost, one that has its number but for zeros, and others that have theirs."""
    for n in range(COUNT):
        photo(folder / (f"{n:05d}.jpg" if n == 3 else f"{n}.jpg"), n)
    return [f"{n},caption {n}" for n in range(COUNT)]


def test_a_lost_picture_is_not_replaced_by_another_of_its_number(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("\n".join(["image_id,caption", *wrong_numbers(tmp_path)]))
    with pytest.raises(DataError, match="line 5: there is no image .*3"):
        load(tmp_path)
    assert pairs(load(tmp_path, max_bad_images=0.2)) == {n: RIGHT[n] for n in RIGHT if n != 3}


@pytest.mark.parametrize("inner", ["images", ""])
def test_a_lost_picture_moves_no_other_to_another_folder(tmp_path: Path, inner: str) -> None:
    for n in range(COUNT):
        photo(tmp_path / "masks" / f"{n:05d}.png", n + COUNT)
        if n != 3:
            photo(tmp_path / inner / f"{n}.jpg", n)
    rows = [f"{n},caption {n}" for n in range(COUNT)]
    (tmp_path / "captions.csv").write_text("\n".join(["image_id,caption", *rows]))
    assert pairs(load(tmp_path / "captions.csv", max_bad_images=0.2)) == {n: RIGHT[n] for n in RIGHT if n != 3}


def test_names_and_numbers_in_one_column_stay_where_they_are(tmp_path: Path) -> None:
    for n in range(COUNT):
        photo(tmp_path / (f"cat{n}.jpg" if n < 5 else f"images/{n:05d}.jpg"), n)
    rows = [f"cat{n}.jpg,caption {n}" if n < 5 else f"{n},caption {n}" for n in range(COUNT)]
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *rows]))
    assert pairs(load(tmp_path / "captions.csv", max_bad_images=0.5)) == {n: RIGHT[n] for n in range(5)}


@pytest.mark.parametrize(
    "content",
    [
        {str(k): [{"filename": f"p{n}.jpg", "raw": f"caption {n}"} for n in range(k, COUNT, 2)] for k in (0, 1)},
        {str(n): {"image": f"p{n}.jpg", "caption": f"caption {n}"} for n in range(COUNT)},
    ],
)
def test_json_by_number_of_class_or_row_is_not_by_picture(tmp_path: Path, content: Any) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"p{n}.jpg", n)
    (tmp_path / "captions.json").write_text(json.dumps(content))
    assert pairs(load(tmp_path / "captions.json")) == RIGHT
    (tmp_path / "captions.json").write_text('{"0": "a dog", "1": 5, "2": [["x"]], "3": {"foo": 1}}')
    with pytest.raises(DataError, match="an object with '0', '1'"):
        load(tmp_path / "captions.json")


def test_numbers_of_pictures_in_several_folders(tmp_path: Path) -> None:
    """COCO's, by its ids."""
    for n in range(COUNT):
        photo(tmp_path / f"{SPLIT[n]}2014" / f"COCO_{SPLIT[n]}2014_{100 + n:012d}.jpg", n)
    rows = [f"{100 + n},caption {n}" for n in range(COUNT)]
    (tmp_path / "captions.csv").write_text("\n".join(["image_id,caption", *rows]))
    found = load(tmp_path)
    assert pairs(found) == RIGHT and splits(found) == SPLIT
    photo(tmp_path / "validation2014" / "100.jpg", 9)  # the number is not one picture's any more
    with pytest.raises(DataError, match="images of these names are in|no image"):
        load(tmp_path / "captions.csv")


@pytest.mark.parametrize(
    ("beside", "content"),
    [
        ("lookup.csv", "image_id,path\n" + "".join(f"{n + 1},{n:05d}.jpg\n" for n in range(COUNT))),
        ("lookup.json", json.dumps([{"image_id": n + 1, "path": f"{n:05d}.jpg"} for n in range(COUNT)])),
        ("images.json", json.dumps({n + 1: f"{n:05d}.jpg" for n in range(COUNT)})),
        ("photos.json", json.dumps([{"id": n + 1, "image_no": None, "path": f"{n:05d}.jpg"} for n in range(COUNT)])),
    ],
)
def test_a_table_beside_counts_more_than_a_guess_at_zeros(tmp_path: Path, beside: str, content: str) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"{n:05d}.jpg", n)
    (tmp_path / beside).write_text(content)
    rows = {f"{n + 1}": f"caption {n}" for n in range(COUNT)}
    (tmp_path / "captions.csv").write_text("\n".join(["image_id,caption", *map(",".join, rows.items())]))
    assert pairs(load(tmp_path / "captions.csv")) == RIGHT
    (tmp_path / "captions.csv").unlink()
    for said in (rows, {key: {"caption": text} for key, text in rows.items()}, {k: [t] for k, t in rows.items()}):
        (tmp_path / "captions.json").write_text(json.dumps(said))
        assert pairs(load(tmp_path / "captions.json")) == RIGHT


@pytest.mark.parametrize("name", ["{:05d}", "{}", "img_{}", "a/{}"])
@pytest.mark.parametrize("column", ["image_id", "file_id", "photo_no"])
def test_keys_of_json_that_name_pictures_stay_names(tmp_path: Path, name: str, column: str) -> None:
    """Whatever number the rows have beside."""
    for n in range(COUNT):
        photo(tmp_path / f"{name.format(n)}.jpg", n)
    said = {name.format(n): {column: (n + 1) % COUNT, "caption": f"caption {n}"} for n in range(COUNT)}
    (tmp_path / "captions.json").write_text(json.dumps(said))
    assert pairs(load(tmp_path)) == RIGHT


MASKS = [{"image_id": n, "file_name": f"masks/{n}.png"} for n in range(COUNT)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("masks.json", MASKS),
        ("masks.csv", MASKS),
        ("masks.parquet", MASKS),
        ("image_masks.json", MASKS),
        ("depth.json", {"annotations": MASKS}),
        ("image_crops.json", [{**row, "file_name": f"{i}_{row['image_id']}.jpg"} for i in (0, 1) for row in MASKS]),
        ("image_data.json", [{"image_id": n, "url": f"https://a.b/{n + 1}.jpg"} for n in range(COUNT)]),
        ("crops_of_images.csv", [{"image_id": "p0", "file": "p1.jpg"}, {"image_id": "p0", "file": "p2.jpg"}]),
    ],
)
@pytest.mark.parametrize("inner", ["images", "a/b"])
def test_tables_of_masks_and_crops_are_passed_over(tmp_path: Path, name: str, content: Any, inner: str) -> None:
    for n in range(COUNT):
        photo(tmp_path / inner / f"{n}.jpg", n), photo(tmp_path / "masks" / f"{n}.png", n + COUNT)
    form = {".json": "list", ".csv": "CSV", ".parquet": "Parquet"}[Path(name).suffix]
    if isinstance(content, dict):
        (tmp_path / name).write_text(json.dumps(content))
    else:
        write_rows(tmp_path / name, form, content)
    rows = [f"{n},caption {n}" for n in range(COUNT)]
    (tmp_path / "captions.csv").write_text("\n".join(["image_id,caption", *rows]))
    assert pairs(load(tmp_path / "captions.csv", image_root=str(tmp_path / inner))) == RIGHT
    if inner == "images":
        assert pairs(load(tmp_path / "captions.csv")) == RIGHT


@pytest.mark.parametrize("form", ["CSV", "Parquet", "JSON lines", "list"])
@pytest.mark.parametrize(("other", "column"), [("reviews", "comment"), ("objects", "text")])
def test_a_table_of_pictures_that_holds_their_captions_is_not_given_up_for_another(
    tmp_path: Path, form: str, other: str, column: str
) -> None:
    """One right reading or none: comments are no captions."""
    rows = [
        {"image_id": n, "file_name": photo(tmp_path / f"p{n}.jpg", n).name, "caption": f"caption {n}"}
        for n in range(COUNT)
    ]
    write_rows(tmp_path / "images", form, rows)
    write_rows(tmp_path / other, "CSV", [{"image_id": n, column: "no caption"} for n in range(COUNT)])
    try:
        found = load(tmp_path)
    except DataError as error:
        assert "which of" in str(error)
        return
    assert pairs(found) == RIGHT


def test_tables_of_pictures_and_captions_by_split_beside_comments(tmp_path: Path) -> None:
    for split in SPLITS:
        rows = [
            {"image_id": n, "file_name": photo(tmp_path / f"p{n}.jpg", n).name, "caption": f"caption {n}"}
            for n in range(COUNT)
            if SPLIT[n] == split
        ]
        write_rows(tmp_path / f"images_{split}", "JSON lines", rows)
    write_rows(tmp_path / "reviews", "CSV", [{"image_id": n, "comment": "no caption"} for n in range(COUNT)])
    found = load(tmp_path)
    assert pairs(found) == RIGHT and splits(found) == SPLIT


def test_a_table_with_two_numbers_of_a_picture_is_asked_about(tmp_path: Path) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"p{n}.jpg", n)
    rows = [{"id": n, "media_id": (n + 2) % COUNT, "file_name": f"p{n}.jpg"} for n in range(COUNT)]
    (tmp_path / "images.json").write_text(json.dumps(rows))
    (tmp_path / "captions.csv").write_text("\n".join(["image_id,caption", *(f"{n},caption {n}" for n in range(COUNT))]))
    with pytest.raises(DataError, match="images.json by its media_id and images.json by its id name different images"):
        load(tmp_path / "captions.csv")
    (tmp_path / "images.json").write_text(json.dumps([{**row, "media_id": f"m{row['id']}"} for row in rows]))
    assert pairs(load(tmp_path / "captions.csv")) == RIGHT
    (tmp_path / "images.csv").write_text("\n".join(["id,path", *(f"{n},./p{n}.jpg" for n in range(COUNT))]))
    assert pairs(load(tmp_path / "captions.csv")) == RIGHT  # two tables that say the same


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def by_split(rows: list[dict[str, Any]], split_of: Any) -> dict[str, list[dict[str, Any]]]:
    return {split: [row for row in rows if split_of(row) == split] for split in SPLITS}


FORMS: dict[str, tuple[str, Any]] = {  # suffix, rows -> text
    "CSV": (".csv", lambda rows: "\n".join([",".join(rows[0]), *(",".join(map(str, r.values())) for r in rows)])),
    "TSV": (".tsv", lambda rows: "\n".join(["\t".join(rows[0]), *("\t".join(map(str, r.values())) for r in rows)])),
    "JSON lines": (".jsonl", lambda rows: "\n".join(map(json.dumps, rows))),
    "list": (".json", json.dumps),
    "images": (".json", lambda rows: json.dumps({"info": {"year": 2026}, "images": rows})),
    "data": (".json", lambda rows: json.dumps({"data": rows})),
    "another": (".json", lambda rows: json.dumps({"records": rows})),
    "columns": (".json", lambda rows: json.dumps(columns(rows))),
    "pandas": (".json", lambda rows: json.dumps({k: dict(enumerate(v)) for k, v in columns(rows).items()})),
    "by number": (".json", lambda rows: json.dumps({row["id"]: row for row in rows})),
    "Parquet": (".parquet", None),
}


def write_rows(path: Path, form: str, rows: list[dict[str, Any]]) -> Path:
    suffix, text = FORMS[form]
    path = path.with_suffix(suffix)
    if text:
        path.write_text(text(rows))
    else:
        pyarrow.parquet.write_table(pyarrow.table(columns(rows)), path)
    return path


@FEW_EXAMPLES
@given(
    st.sampled_from([*FORMS]),
    st.sampled_from([form for form in FORMS if form != "images"]),
    st.permutations(range(COUNT)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([{}, {"description": "about"}]),
)
def test_two_tables_in_any_form(
    tmp_path: Path,
    pictures: str,
    captions: str,
    order: list[int],
    named: bool,
    whole: bool,
    texts: bool,
    more: dict[str, str],
) -> None:
    """Numbers or texts that are never those in the files' names, in whatever holds the two tables."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    ids = {n: f"{order[n]}" if texts else order[n] for n in range(COUNT)}
    files = [
        {"id": ids[n], "file_name": photo(folder / "images" / f"{n}.jpg", n).name, "split": SPLIT[n], **more}
        for n in range(COUNT)
    ]
    about = [{"id": 50 + n, "image_id": ids[n], "caption": f"caption {n}"} for n in order]
    if not named:
        files = [{key: cell for key, cell in row.items() if key != "split"} for row in files]
    write_rows(folder / "images", pictures, files)
    table = write_rows(folder / "captions", captions, about)
    found = load(folder if whole else table)
    assert pairs(found) == RIGHT and any("names the images" in note for note in found.notes)
    assert not named or splits(found) == SPLIT


def test_names_by_number_and_by_split_as_json(tmp_path: Path) -> None:
    """`{"8": "0.jpg"}`, and rows under the names of splits, on both sides."""
    ids = database(tmp_path)
    (tmp_path / "images.csv").unlink()
    rows = [{"image_id": ids[n], "caption": f"caption {n}"} for n in range(COUNT)]
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    by_number = {ids[n]: f"{n}.jpg" for n in range(COUNT)}
    for content in (
        by_number,
        {"images": by_number},
        {"images": {number: {"file_name": name} for number, name in by_number.items()}},
        {name: int(number) for number, name in by_number.items()},
        {name: {"id": int(number), "width": 8} for number, name in by_number.items()},
    ):
        (tmp_path / "images.json").write_text(json.dumps(content))
        for dataset in (tmp_path, tmp_path / "captions.json"):
            assert pairs(load(dataset)) == RIGHT
    split_of = {ids[n]: SPLIT[n] for n in range(COUNT)}
    files = [{"id": ids[n], "file_name": f"{n}.jpg"} for n in range(COUNT)]
    (tmp_path / "images.json").write_text(json.dumps(by_split(files, lambda row: split_of[row["id"]])))
    for content in (rows, by_split(rows, lambda row: split_of[row["image_id"]])):
        (tmp_path / "captions.json").write_text(json.dumps(content))
        for dataset in (tmp_path, tmp_path / "captions.json"):
            found = load(dataset)
            assert pairs(found) == RIGHT and splits(found) == SPLIT


def test_parquet_that_holds_its_pictures_needs_no_table_beside(tmp_path: Path) -> None:
    """Whatever the pictures' column is called, and `image_id` beside."""
    ids = database(tmp_path)
    (tmp_path / "captions.csv").unlink()
    for name, cells in {
        "thing": [{"bytes": encoded(n), "path": None} for n in range(COUNT)],
        "image": [encoded(n) for n in range(COUNT)],
    }.items():
        rows = {name: cells, "image_id": [*ids.values()], "caption": [f"caption {n}" for n in range(COUNT)]}
        if name == "thing":
            features = datasets.Features(
                thing=datasets.Image(), image_id=datasets.Value("string"), caption=datasets.Value("string")
            )
            datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "captions.parquet")
        else:
            pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "captions.parquet")
        assert pairs(load(tmp_path / "captions.parquet")) == RIGHT


def database(folder: Path, captions: str = "id,image_id,caption", shift: int = 4) -> dict[int, str]:
    """Numbered pictures whose files have other numbers, `images.csv` and `captions.csv`; (number in the files -> id)."""
    ids = {n: str((n + shift) % COUNT) for n in range(COUNT)}
    for n in range(COUNT):
        photo(folder / "images" / f"{n}.jpg", n)
    (folder / "images.csv").write_text("id,file_name\n" + "".join(f"{ids[n]},{n}.jpg\n" for n in range(COUNT)))
    cells = captions.split(",")
    rows = [{**dict.fromkeys(cells, ids[n]), "id": str(50 + n), "caption": f"caption {n}"} for n in range(COUNT)]
    (folder / "captions.csv").write_text("\n".join([captions, *(",".join(r[c] for c in cells) for r in rows)]))
    return ids


OTHERS = {
    "annotators.csv": "annotator_id,photo\n0,0.jpg\n1,1.jpg\n2,2.jpg\n",
    "a_crops.csv": "id,image_id,path\n" + "".join(f"{n},{n},{(n + 1) % COUNT}.jpg\n" for n in range(COUNT)),
    "a_neighbours.csv": "image_id,image\n" + "".join(f"{n % 3},{n}.jpg\n" for n in range(COUNT)),
    "a_broken.csv": 'image_id,image\n1,"2.jpg\n',
    "b_utf16.csv": "\xff\xfei\0m\0a",
    "c_empty.csv": "",
    "image_log.csv": 'when,what\n1,"a\n',
    "d_broken.json": '{"images": [',
    "e_numbers.json": "[1, 2]",
    "f_config.json": '{"id": 1, "path": "x", "0": {"id": 0}}',
    "g_index.json": json.dumps({f"{n}.jpg": n for n in range(COUNT)}),
    "h_broken.parquet": "PAR1 and no more",
}


@pytest.mark.parametrize(
    "captions", ["id,image_id,caption", "id,annotator_id,image_id,caption", "image_no,caption,id", "image,caption"]
)
@pytest.mark.parametrize("other", OTHERS)
def test_the_table_of_the_pictures_is_told_from_others(tmp_path: Path, captions: str, other: str) -> None:
    database(tmp_path, captions)
    (tmp_path / other).write_text(OTHERS[other], "latin-1")
    (tmp_path / "a.csv").mkdir()
    (tmp_path / "aa.csv").symlink_to(tmp_path / "nowhere.csv")
    assert pairs(load(tmp_path / "captions.csv")) == RIGHT


@pytest.mark.parametrize("other", [*OTHERS, "images.csv"])
def test_numbers_that_are_names_of_files_stay_so(tmp_path: Path, other: str) -> None:
    """Without a table of the pictures, whatever tables have such numbers; or with one that names the originals."""
    database(tmp_path, shift=0)
    originals = "id,file_name\n" + "".join(f"{n},/mnt/orig/IMG_{n + 900}.CR2\n" for n in range(COUNT))
    (tmp_path / "images.csv").unlink()
    (tmp_path / other).write_text(OTHERS.get(other, originals), "latin-1")
    assert pairs(load(tmp_path / "captions.csv")) == RIGHT


def test_blemishes_of_the_table_of_pictures(tmp_path: Path) -> None:
    ids = database(tmp_path)
    lines = (tmp_path / "images.csv").read_text().splitlines()
    (tmp_path / "images.csv").write_text("\n".join([*lines, lines[1], ",", "", lines[2]]))
    assert pairs(load(tmp_path / "captions.csv")) == RIGHT
    (tmp_path / "images.csv").write_text("\n".join([*lines, f"{ids[3]},5.jpg"]))
    with pytest.raises(DataError, match=f"images.csv: id {ids[3]} is that of 3.jpg, and of 5.jpg"):
        load(tmp_path / "captions.csv")
    (tmp_path / "images.csv").write_text("\n".join(line for line in lines if not line.endswith(",3.jpg")))
    with pytest.raises(
        DataError, match=r"(?s)line 5: no image.*1 of the image_id in captions.csv are not in images.csv"
    ):
        load(tmp_path / "captions.csv")  # `7` is not guessed to be 7.jpg
    found = load(tmp_path / "captions.csv", max_bad_images=0.2)
    assert pairs(found) == {n: RIGHT[n] for n in RIGHT if n != 3}
    (tmp_path / "images.csv").write_text("\n".join(lines))
    (tmp_path / "old_images.csv").write_text(
        (tmp_path / "images.csv").read_text().replace(".jpg", ".jpg").replace("1", "2")
    )
    with pytest.raises(
        DataError, match="images.csv: |images.csv by image_id and old_images.csv by image_id name different"
    ):
        load(tmp_path / "captions.csv")


def test_tables_of_pictures_by_split(tmp_path: Path) -> None:
    """Beside one of all captions, and beside one of captions for each split, that have the same numbers."""
    ids = database(tmp_path)
    (tmp_path / "images.csv").unlink()
    for split in SPLITS:
        files = [f"{ids[n]},{n}.jpg" for n in range(COUNT) if SPLIT[n] == split]
        (tmp_path / f"images_{split}.csv").write_text("\n".join(["id,file_name", *files]))
    for dataset in (tmp_path, tmp_path / "captions.csv"):
        found = load(dataset)
        assert pairs(found) == RIGHT and splits(found) == SPLIT
    (tmp_path / "captions.csv").unlink()
    for split in SPLITS:
        numbers = [n for n in range(COUNT) if SPLIT[n] == split]
        files = [f"{place},{n}.jpg" for place, n in enumerate(numbers)]
        (tmp_path / f"images_{split}.csv").write_text("\n".join(["id,file_name", *files]))
        captions = [f"{place},caption {n}" for place, n in enumerate(numbers)]
        (tmp_path / f"captions_{split}.csv").write_text("\n".join(["image_id,caption", *captions]))
    found = load(tmp_path)
    assert pairs(found) == RIGHT and splits(found) == SPLIT


def test_verdicts_on_a_picture_and_on_its_caption_both_count(tmp_path: Path) -> None:
    ids = database(tmp_path)
    said = {0: ("rejected", "accepted"), 1: ("accepted", "rejected"), 2: ("rejected", "")}
    both = [said.get(n, ("accepted", "accepted")) for n in range(COUNT)]
    pictures = [f"{ids[n]},{n}.jpg,{both[n][0]}" for n in range(COUNT)]
    captions = [f"{ids[n]},caption {n},{both[n][1]}" for n in range(COUNT)]
    (tmp_path / "images.csv").write_text("\n".join(["id,file_name,status", *pictures]))
    (tmp_path / "captions.csv").write_text("\n".join(["image_id,caption,status", *captions]))
    assert pairs(load(tmp_path / "captions.csv")) == {n: RIGHT[n] for n in range(3, COUNT)}


def test_other_columns_are_no_numbers_of_pictures(tmp_path: Path) -> None:
    """A rating of 1 to 9 beside ids that name the pictures; ids that differ in capitals; rows that say nothing."""
    for n in range(COUNT):
        photo(tmp_path / f"p{n}.jpg", n)
    files = [f"{n},p{(n + 1) % COUNT}.jpg" for n in range(COUNT)]
    (tmp_path / "photos.csv").write_text("\n".join(["id,file_name", *files]))
    rows = [f"p{n},caption {n},{n}" for n in range(COUNT)]
    (tmp_path / "captions.csv").write_text("\n".join(["id,caption,rating", *rows]))
    assert pairs(load(tmp_path / "captions.csv")) == RIGHT
    ids = ["aXb", "axB", *(f"x{n}" for n in range(2, COUNT))]
    (tmp_path / "photos.csv").write_text("\n".join(["id,file_name", *(f"{i},p{n}.jpg" for n, i in enumerate(ids))]))
    rows = [f"{i},caption {n}" for n, i in enumerate(ids)]
    (tmp_path / "captions.csv").write_text("\n".join(["image_id,caption", *rows]))
    assert pairs(load(tmp_path / "captions.csv")) == RIGHT
    rows = [f"{n},p{n}.jpg,caption {n}" for n in range(COUNT)]
    (tmp_path / "photos.csv").write_text("\n".join(["id,file_name", *files]))
    (tmp_path / "captions.csv").write_text("\n".join(["image,file_name,caption", *rows]))
    assert pairs(load(tmp_path / "captions.csv")) == RIGHT
    (tmp_path / "photos.csv").write_text("\n".join(["id,file_name", ",p1.jpg", ",p2.jpg", "aXb,", "axB,"]))
    (tmp_path / "captions.csv").write_text(
        "\n".join(["image_id,caption", *(f"p{n},caption {n}" for n in range(COUNT))])
    )
    assert pairs(load(tmp_path / "captions.csv")) == RIGHT


def test_what_the_table_of_pictures_says_besides(tmp_path: Path) -> None:
    """Splits, verdicts and folders count; its own texts are no captions."""
    ids = database(tmp_path)
    for n in range(COUNT):
        (tmp_path / "images" / f"{n}.jpg").rename(photo(tmp_path / "images" / f"c{n % 2}" / f"{n}.jpg", n))
    head = "id,file_name,folder,is_test,approved,description"
    rows = [f"{ids[n]},{n}.jpg,images/c{n % 2},{int(n > 6)},{'no' if n == 2 else 'yes'},about" for n in range(COUNT)]
    for name in ("images.csv", "my_photos.csv"):
        (tmp_path / name).write_text("\n".join([head.replace("images/", ""), *rows]).replace("images/", ""))
        for dataset in (tmp_path, tmp_path / "captions.csv"):
            found = load(dataset)
            assert pairs(found) == {n: RIGHT[n] for n in RIGHT if n != 2}
            assert {n for n, split in splits(found).items() if split == "test"} == {7, 8}
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    "pictures", ["image_id,path\n1,a.jpg\n", "id,file\n0,1.jpg\n1,0.jpg\n", "id,score\n0,3\n1,4\n", ""]
)
def test_a_table_beside_that_is_not_about_these_pictures(tmp_path: Path, pictures: str) -> None:
    for n in (0, 1):
        photo(tmp_path / f"{n}.jpg", n)
    (tmp_path / "results.csv").write_text(pictures)
    (tmp_path / "captions.csv").write_text("image_id,caption\n0,caption 0\n1,caption 1\n")
    assert pairs(load(tmp_path / "captions.csv")) == {n: RIGHT[n] for n in (0, 1)}


@FEW_EXAMPLES
@given(
    st.lists(st.sampled_from(["cats", "dogs", "a b", "part1", "old", "rgb"]), min_size=2, max_size=3, unique=True),
    st.lists(st.integers(1, 70), min_size=3, max_size=3),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_names_that_are_in_two_folders(
    tmp_path: Path, folders: list[str], sizes: list[int], whole: bool, order: random.Random
) -> None:
    """Whatever the sizes: refused as they stand, read where a column or the name has the folder, in other capitals."""
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    placed = [(folder, n) for folder, size in zip(folders, sizes, strict=False) for n in range(size)]
    numbers = {place: number for number, place in enumerate(placed)}
    for (folder, n), number in numbers.items():
        photo(root / folder / f"{n}.jpg", number)
    order.shuffle(placed)
    table = root / "captions.csv"
    table.write_text("image,caption\n" + "".join(f"{n}.jpg,caption {numbers[f, n]}\n" for f, n in placed))
    with pytest.raises(DataError, match="images of these names are in .* and in .*; say which with --image_root"):
        load(root if whole else table)
    table.write_text(
        "filename,kind,caption\n" + "".join(f"{n}.jpg,{f.title()},caption {numbers[f, n]}\n" for f, n in placed)
    )
    right = {number: (f"caption {number}",) for number in numbers.values()}
    assert pairs(load(table)) == right
    rows = [f"{n}.jpg,./{f.upper()}/{n}.jpg,caption {numbers[f, n]}\n" for f, n in placed]
    table.write_text("filename,filepath,caption\n" + "".join(rows))
    assert pairs(load(table)) == right


def test_copies_in_a_second_folder_are_the_same_pictures(tmp_path: Path) -> None:
    for n in range(COUNT):
        photo(tmp_path / "all" / f"{n}.jpg", n)
    for n in range(3):
        photo(tmp_path / "preview" / f"{n}.jpg", n)
    as_csv(tmp_path, [f"{n}.jpg" for n in range(COUNT)])
    assert pairs(load(tmp_path / "captions.csv")) == RIGHT


def test_of_two_columns_of_names_the_one_whose_files_are_there(tmp_path: Path) -> None:
    for n in range(COUNT):
        photo(tmp_path / "images" / f"{n:04}.jpg", n)
    rows = [f"DSC_{n}.JPG,images/{n:04}.jpg,caption {n}\n" for n in range(COUNT)]
    for path in ("path", "local_path", "filepath", "image_path"):
        (tmp_path / "captions.csv").write_text(f"filename,{path},caption\n" + "".join(rows))
        assert pairs(load(tmp_path)) == RIGHT
    rows = [f"{COUNT - 1 - n:04}.jpg,images/{n:04}.jpg,caption {n}\n" for n in range(COUNT)]
    (tmp_path / "captions.csv").write_text("filename,local_path,caption\n" + "".join(rows))
    with pytest.raises(DataError, match=r"column 'filename' leads to .*column 'local_path' to .*--image_column"):
        load(tmp_path)
    assert pairs(load(tmp_path, image_column="local_path")) == RIGHT


@pytest.mark.parametrize("lost", ["part1", "cats", "2014"])
def test_another_part_is_no_stand_in_for_one_that_is_not_there(tmp_path: Path, lost: str) -> None:
    as_csv(tmp_path, [f"{lost}/{n}.jpg" for n in range(COUNT)])
    for n in range(COUNT):
        photo(tmp_path / "part2" / f"{n}.jpg", n)
    with pytest.raises(DataError, match="there is no image"):
        load(tmp_path / "captions.csv")
    for other in ("images", "Photos", f"{lost}_small"):
        (tmp_path / "part2").rename(tmp_path / other)
        assert pairs(load(tmp_path / "captions.csv")) == RIGHT
        (tmp_path / other).rename(tmp_path / "part2")


def told_in_shards(root: Path, rows: list[dict[str, str]]) -> Path:
    return tar(
        root / "0.tar",
        [m for n, row in enumerate(rows) for m in ((f"{n}.jpg", encoded(n)), (f"{n}.json", json.dumps(row).encode()))],
    )


def told_beside(root: Path, rows: list[dict[str, str]]) -> Path:
    for n, row in enumerate(rows):
        photo(root / f"{n}.jpg", n)
        (root / f"{n}.json").write_text(json.dumps(row))
    return root


def told_in_coco(root: Path, rows: list[dict[str, str]]) -> Path:
    images = [{"id": n, "file_name": photo(root / f"{n}.jpg", n).name} for n in range(len(rows))]
    notes = [{"image_id": n, **row} for n, row in enumerate(rows)]
    (root / "a.json").write_text(json.dumps({"images": images, "annotations": notes}))
    return root / "a.json"


def told_by_name(root: Path, rows: list[dict[str, str]]) -> Path:
    (root / "a.json").write_text(json.dumps({photo(root / f"{n}.jpg", n).name: row for n, row in enumerate(rows)}))
    return root / "a.json"


def told_as_karpathy(root: Path, rows: list[dict[str, str]]) -> Path:
    images = [
        {"filename": photo(root / f"{n}.jpg", n).name, "split": "train", "sentences": [{"raw": "x"}], **row}
        for n, row in enumerate(rows)
    ]
    (root / "a.json").write_text(json.dumps({"images": images}))
    return root / "a.json"


@pytest.mark.parametrize("write", [told_in_shards, told_beside, told_in_coco, told_by_name, told_as_karpathy])
def test_the_column_of_captions_that_was_told_is_read_or_missed(tmp_path: Path, write: Any) -> None:
    rows = [{"caption": "alt text", "re_caption": f"caption {n}", "p": "a", "q": "b"} for n in range(COUNT)]
    found = write(tmp_path, rows)
    assert pairs(load(found, caption_column="recaption")) == RIGHT
    assert pairs(load(found, caption_column="p,q")) == dict.fromkeys(RIGHT, ("a", "b"))
    with pytest.raises(DataError, match="no column nonsense; there are: .*re_caption"):
        load(found, caption_column="nonsense")


def test_a_text_has_no_columns_and_a_folder_no_parts(tmp_path: Path) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"{n}.jpg", n)
        (tmp_path / f"{n}.txt").write_text(f"caption {n}")
    tar(tmp_path / "old.tar", [(f"0.{kind}", text) for kind, text in (("jpg", encoded(0)), ("txt", b"an old one"))])
    found = load(tmp_path)
    assert pairs(found) == RIGHT and any("1 .tar are not read" in note for note in found.notes)
    with pytest.raises(DataError, match="a text has no columns, so none is called caption; leave --caption_column out"):
        load(tmp_path, caption_column="caption")
    for option in ("dataset_split", "dataset_config"):
        with pytest.raises(DataError, match=f"--{option} chooses a part of a data set of the Hub"):
            load(tmp_path, **{option: "test"})
        with pytest.raises(DataError, match=f"--{option} chooses a part of a data set of the Hub"):
            load(as_csv(tmp_path, ["0.jpg"]), **{option: "test"})


@FEW_EXAMPLES
@given(
    st.permutations(range(COUNT)),
    st.sampled_from(["{}", "a{}", "x/{:03}"]),
    st.sampled_from([("id", "id"), ("image_id", "image_id"), ("Image ID", "image_id")]),
    st.booleans(),
)
def test_a_list_of_splits_by_id_is_joined_by_id(
    tmp_path: Path, ids: list[int], form: str, columns: tuple[str, str], joined: bool
) -> None:
    """Whatever the files are called, also after each other's ids."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    own, of_list = columns
    names = [photo(folder / "images" / f"{form.format(n)}.jpg", n) for n in range(COUNT)]
    files = [name.relative_to(folder / "images").as_posix() for name in names]
    if joined:
        rows = "".join(f"{ids[n]},{files[n]}\n" for n in range(COUNT))
        (folder / "images.csv").write_text("id,file_name\n" + rows)
        rows = "".join(f"{ids[n]},caption {n}\n" for n in range(COUNT))
        (folder / "captions.csv").write_text("image_id,caption\n" + rows)
    else:
        rows = "".join(f"{ids[n]},{files[n]},caption {n}\n" for n in range(COUNT))
        (folder / "captions.csv").write_text(f"{own},file_name,caption\n" + rows)
    (folder / "split.csv").write_text(f"{of_list},split\n" + "".join(f"{ids[n]},{SPLIT[n]}\n" for n in range(COUNT)))
    found = load(folder)
    assert pairs(found) == RIGHT and splits(found) == SPLIT


@pytest.mark.parametrize("write", [as_coco, as_csv])
@pytest.mark.parametrize("header", ["id;set", "id;split", "image_id;split"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_lists_column_of_ids_may_hold_names_without_suffix(
    tmp_path: Path, write: Any, header: str, whole: bool
) -> None:
    """COCO's images have ids of their own, which are other numbers."""
    names = [photo(tmp_path / "images" / f"{n}.png", n).name for n in range(COUNT)]
    captions = write(tmp_path, [f"images/{name}" for name in names])
    (tmp_path / "split.csv").write_text(header + "".join(f"\n{n};{SPLIT[n]}" for n in range(COUNT)))
    found = load(tmp_path if whole else captions)
    assert splits(found) == SPLIT and pairs(found) == RIGHT


@given(
    folders=st.sampled_from(
        [("train2014", "val2014", "test2015"), ("train", "val", "test"), ("cats", "dogs", "birds")]
    ),
    begins=st.sampled_from(["", "data/", "/home/me/data/", "D:\\data\\"]),
    into=st.sampled_from(["images", "", "flickr/jpg"]),
    write=st.sampled_from([as_csv, as_jsonl, as_coco]),
    whole=st.booleans(),
)
@FEW_EXAMPLES
def test_pictures_of_several_folders_that_were_put_into_one(
    tmp_path_factory: pytest.TempPathFactory, folders: tuple[str, ...], begins: str, into: str, write: Any, whole: bool
) -> None:
    """As Karpathy's names, `val2014/COCO_val2014_...`, beside a folder of all: what the folders said still counts."""
    folder = tmp_path_factory.mktemp("flat")
    for n in range(COUNT):
        photo(folder / into / f"x{n}.png", n)
    captions = write(folder, [f"{begins}{folders[n % 3]}/x{n}.png" for n in range(COUNT)])
    found = load(folder if whole else captions)
    assert pairs(found) == RIGHT and (folders[0] == "cats" or splits(found) == SPLIT)


@pytest.mark.parametrize("there", ["test/images", "masks", "train/masks", "birds/images", "thumbnails", "images/test"])
@pytest.mark.parametrize("folders", [("train/images", "val/images"), ("train", "val"), ("cats/images", "dogs/images")])
def test_no_folder_that_says_something_stands_for_several(tmp_path: Path, folders: tuple[str, ...], there: str) -> None:
    for n in range(COUNT):
        photo(tmp_path / there / f"x{n}.png", n)
    captions = as_csv(tmp_path, [f"{folders[n % 2]}/x{n}.png" for n in range(COUNT)])
    with pytest.raises(DataError, match="there is no image"):
        load(captions)
    photo(tmp_path / "images" / "x0.png", 0)  # which lacks the others; those of `there` are none of them
    with pytest.raises(DataError, match="there is no image"):
        load(captions)


def test_a_picture_that_is_there_comes_before_one_of_its_name_in_one_folder(tmp_path: Path) -> None:
    for n in range(60):
        photo(tmp_path / "images" / f"x{n}.png", n)
    for n in range(4):
        photo(tmp_path / "extra" / f"x{n}.png", 90 + n)
    names = [f"{'ab'[n % 2]}/x{n}.png" for n in range(4, 60)] + [f"extra/x{n}.png" for n in range(4)]
    found = load(as_csv(tmp_path, names))
    places = {e.captions[0]: str(e.image) for part in found.splits.values() for e in part}
    assert places["caption 57"] == str(tmp_path / "extra/x1.png")
    assert places["caption 1"] == str(tmp_path / "images/x5.png")


def test_names_that_only_their_folders_tell_apart_are_not_put_into_one(tmp_path: Path) -> None:
    for n in range(COUNT):
        photo(tmp_path / "images" / f"{n}.png", n)
    captions = as_csv(tmp_path, [f"{'ab'[n % 2]}/{n // 2}.png" for n in range(COUNT)])
    with pytest.raises(
        DataError, match=r"there is only .*/images/0.png for a/0.png and b/0.png; put each into its own"
    ):
        load(captions)


@pytest.mark.parametrize("own", [True, False])
def test_an_id_that_no_list_has_makes_no_names_of_ids(tmp_path: Path, own: bool) -> None:
    """The others still go by their ids, which are other files' names."""
    ids = [*range(1, COUNT), 77]
    rows = [f"{ids[n]},{photo(tmp_path / f'images/{n}.png', n).name},caption {n}" for n in range(COUNT)]
    (tmp_path / "captions.csv").write_text("\n".join(["id,file_name,caption", *rows]))
    said = [f"{ids[n]};{SPLIT[n]}" for n in range(COUNT - 1)] + ["0;train"] * (not own)
    (tmp_path / "split.csv").write_text("\n".join(["id;split", *said]))
    assert splits(load(tmp_path)) == {n: split for n, split in SPLIT.items() if n < COUNT - 1}


@pytest.mark.parametrize("form", ["birds_{}", "open_images_{}_v6", "{}2017-en", "coco/{}", "my-{}-part"])
@pytest.mark.parametrize("column", ["source", "subset", "dataset_id", "group"])
def test_cells_that_differ_in_the_word_for_the_split(tmp_path: Path, column: str, form: str) -> None:
    rows = [f"{photo(tmp_path / f'{n}.jpg', n).name},caption {n},{form.format(SPLIT[n])}" for n in range(COUNT)]
    (tmp_path / "captions.csv").write_text("\n".join([f"image,caption,{column}", *rows]))
    found = load(tmp_path / "captions.csv")
    assert splits(found) == SPLIT and not any("names no split" in note for note in found.notes)


def test_a_late_cell_that_says_test_as_others_say_train(tmp_path: Path) -> None:
    rows = [f"{photo(tmp_path / f'{n}.jpg', n).name},caption {n},birds_train" for n in range(70)]
    rows[60] = rows[60].replace("train", "test")
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,source", *rows]))
    with pytest.raises(DataError, match="line 62: column 'source' says 'birds_test'"):
        load(tmp_path / "captions.csv")


def test_captions_in_columns_that_come_late(tmp_path: Path) -> None:
    rows = []
    for n in range(70):
        rows.append({"image": photo(tmp_path / f"{n}.png", n).name, "caption_1": f"caption {n}"})
        rows[-1] |= {"caption_2": "late", "text": "no caption"} if n > 60 else {}
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert pairs(load(tmp_path / "c.jsonl"))[61] == ("caption 61", "late")


def test_what_was_chosen_in_label_studio_and_tasks_that_nobody_did(tmp_path: Path) -> None:
    tasks: list[dict[str, Any]] = []
    for n in range(COUNT):
        said = [
            {"from_name": "caption", "value": {"text": [f"caption {n}"]}},
            {"from_name": "quality", "value": {"choices": ["Reject" if n == 4 else "Good"]}},
            {"from_name": "split", "value": {"choices": [SPLIT[n]]}},
        ]
        tasks.append({"data": {"image": photo(tmp_path / f"{n}.png", n).name}, "annotations": [{"result": said}]})
    for undone in ({}, {"annotations": None}, {"annotations": [{"result": None}]}, {"annotations": [{"result": [{}]}]}):
        more = {"data": {"image": photo(tmp_path / "9.png", 9).name, "split": "train"}, **undone}
        (tmp_path / "project.json").write_text(json.dumps([more, *tasks, more]))
        found = load(tmp_path / "project.json", max_bad_images=0.3)
        assert pairs(found) == {n: RIGHT[n] for n in RIGHT if n != 4}
        assert splits(found) == {n: SPLIT[n] for n in RIGHT if n != 4}
    (tmp_path / "project.json").write_text(json.dumps([*tasks, {"data": None, "annotations": []}]))
    with pytest.raises(DataError, match="item 10: no task of Label Studio, as others are: it has no data"):
        load(tmp_path / "project.json")


@pytest.mark.parametrize("nothing", [r"\N", "NULL", "n/a"])
def test_cells_without_a_caption(tmp_path: Path, nothing: str) -> None:
    rows = [f"{photo(tmp_path / f'{n}.png', n).name}\tcaption {n}\t{nothing}" for n in range(COUNT)]
    (tmp_path / "c.tsv").write_text("\n".join(["image\tcaption_1\tcaption_2", *rows]))
    assert pairs(load(tmp_path / "c.tsv")) == RIGHT
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": None}]
    (tmp_path / "c.json").write_text(json.dumps([{"image": "0.png", "conversations": turns}] * 2))
    with pytest.raises(DataError, match=r"0.png has no caption"):
        load(tmp_path / "c.json")


def test_photographs_and_masks_of_one_name(tmp_path: Path) -> None:
    """The photograph where a name says so, else a question."""
    members = []
    for n in range(COUNT):
        members += [(f"{n}.depth.png", encoded(n + 20)), (f"{n}.jpg", encoded(n)), (f"{n}.txt", b"caption %d" % n)]
    assert pairs(load(tar(tmp_path / "0.tar", members))) == RIGHT
    for n in range(COUNT):
        photo(tmp_path / "d" / f"{n}.jpg", n)
        photo(tmp_path / "d" / f"{n}.png", n + 20)
        (tmp_path / "d" / f"{n}.txt").write_text(f"caption {n}")
    with pytest.raises(DataError, match=r"0.txt: is it about 0.jpg or 0.png\? Take the other away"):
        load(tmp_path / "d")
    (tmp_path / "d" / "metadata.csv").write_text(
        "file_name,caption\n" + "".join(f"{n}.jpg,caption {n}\n" for n in RIGHT)
    )
    assert pairs(load(tmp_path / "d")) == RIGHT
    (tmp_path / "d" / "metadata.csv").write_text("file_name,caption\n" + "".join(f"{n},caption {n}\n" for n in RIGHT))
    with pytest.raises(DataError, match=r"0: is it 0.jpg or 0.png\? Write the suffix"):
        load(tmp_path / "d")


def write_table(path: Path, rows: list[tuple[int, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        images = [{"bytes": encoded(n), "path": f"{n}.png"} for n, _ in rows]
        pyarrow.parquet.write_table(pyarrow.table({"image": images, "caption": [c for _, c in rows]}), path)
    else:
        path.write_text("image,caption\n" + "".join(f"{n}.jpg,{caption}\n" for n, caption in rows))


@pytest.mark.parametrize(
    ("one", "other", "parts"),
    [
        ("train.csv", "train_old.csv", False),
        ("train_en.csv", "train_de.csv", False),
        ("en/train.parquet", "de/train.parquet", False),
        ("train_0.csv", "train_1.csv", True),
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", True),
        ("train_cats.csv", "train_dogs.csv", True),
    ],
)
def test_two_tables_of_one_split(tmp_path: Path, one: str, other: str, parts: bool) -> None:
    """Parts of one, also with captions of the same pictures where numbers alone differ; or one too many."""
    for n in RIGHT:
        photo(tmp_path / f"{n}.jpg", n)
    write_table(tmp_path / one, [(n, f"caption {n}") for n in range(5)])
    write_table(tmp_path / other, [(n, f"caption {n}") for n in range(5, COUNT - 1)])
    write_table(tmp_path / one.replace("train", "test"), [(COUNT - 1, f"caption {COUNT - 1}")])
    assert pairs(load(tmp_path)) == RIGHT
    write_table(tmp_path / other, [(n, f"another {n}") for n in range(1, 5)])
    if "cats" in one or not parts:
        with pytest.raises(DataError, match=r"have other captions of 4 images: which\? Take one away"):
            load(tmp_path)
    else:
        assert pairs(load(tmp_path))[2] == ("caption 2", "another 2")


def each_split(pattern: str, write: Any) -> Any:
    """A list of each split, called after it."""

    def lists(folder: Path) -> None:
        for split, word in (("train", "train"), ("validation", "val"), ("test", "test")):
            path = folder / pattern.format(word)
            path.parent.mkdir(exist_ok=True)
            write(path, [n for n in SPLIT if SPLIT[n] == split])

    return lists


def names_a_line(path: Path, numbers: list[int]) -> None:
    path.write_text("".join(f"{n}.jpg\n" for n in numbers))


def bare_names(path: Path, numbers: list[int]) -> None:
    path.write_text("".join(f"{n}\n" for n in numbers))


def names_as_numpy(path: Path, numbers: list[int]) -> None:
    np.save(path, np.array(numbers))


def rows_of_names(path: Path, numbers: list[int]) -> None:
    path.write_text("".join(json.dumps({"image": f"{n}.jpg"}) + "\n" for n in numbers))


def names_as_parquet(path: Path, numbers: list[int]) -> None:
    pyarrow.parquet.write_table(
        pyarrow.table({"image": [f"{n}.jpg" for n in numbers], "w": [[1]] * len(numbers)}), path
    )


def names_with_captions(path: Path, numbers: list[int]) -> None:
    path.write_text("image,caption\n" + "".join(f"{n}.jpg,another\n" for n in numbers))


def a_table_of_sets(folder: Path) -> None:
    (folder / "assignments.csv").write_text("image,set\n" + "".join(f"{n}.jpg,{SPLIT[n]}\n" for n in SPLIT))


@pytest.mark.parametrize(
    "write",
    [
        *(each_split(p, names_a_line) for p in ("splits/{}", "{}", "{}.ids", "splits/{}.lst", "meta/{}_split.txt")),
        *(each_split(p, bare_names) for p in ("birds_{}.txt", "{}_screens.txt", "lists/my_{}_set.ids")),
        *(each_split(p, names_as_numpy) for p in ("{}_ids.npy", "split/{}.npy")),
        *(each_split(p, rows_of_names) for p in ("splits/{}.jsonl", "{}.jsonl")),
        *(each_split(p, names_as_parquet) for p in ("splits/{}.parquet", "{}.parquet")),
        a_table_of_sets,
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_lists_of_splits_of_unusual_kinds(tmp_path: Path, write: Any, named: bool) -> None:
    for n in range(COUNT):
        photo(tmp_path / "images" / f"{n}.jpg", n)
    table = as_csv(tmp_path, [f"{n}.jpg" for n in range(COUNT)])
    write(tmp_path)
    found = load(table if named else tmp_path)
    assert pairs(found) == RIGHT and splits(found) == SPLIT


@pytest.mark.parametrize("metadata", [True, False])
def test_tables_of_the_splits_beside_other_captions_are_lists(tmp_path: Path, metadata: bool) -> None:
    for n in range(COUNT):
        photo(tmp_path / f"{n}.jpg", n)
        if not metadata:
            (tmp_path / f"{n}.txt").write_text(f"caption {n}")
    each_split("{}.csv", names_with_captions)(tmp_path)
    if metadata:
        as_csv(tmp_path, [f"{n}.jpg" for n in range(COUNT)]).rename(tmp_path / "metadata.csv")
    found = load(tmp_path)
    assert pairs(found) == RIGHT and splits(found) == SPLIT


def test_files_that_are_no_lists_stay_out(tmp_path: Path) -> None:
    """Features of each picture, a licence, captions of others' training: nothing of these shares the pictures out."""
    for n in range(COUNT):
        photo(tmp_path / f"{n}.jpg", n)
        np.save(tmp_path / f"{n}.npy", np.zeros(3))
    (tmp_path / "LICENSE").write_text("MIT")
    (tmp_path / "notes_train.txt").write_text("we took the train to the sea\n")
    table = as_csv(tmp_path, [f"{n}.jpg" for n in range(COUNT)])
    for found in (load(table), load(tmp_path)):
        assert pairs(found) == RIGHT


def texts_in_folders_of_a_split(root: Path) -> None:
    for n, split in SPLIT.items():
        photo(root / split / "images" / f"{n}.jpg", n)
        (root / split / "captions").mkdir(exist_ok=True)
        (root / split / "captions" / f"{n}.txt").write_text(f"caption {n}")


def texts_and_boxes(root: Path) -> None:
    for n in RIGHT:
        photo(root / "images" / f"{n}.jpg", n)
        for folder, text in (("captions", f"caption {n}"), ("labels", "0 .5 .5 .1 .1")):
            (root / folder).mkdir(exist_ok=True)
            (root / folder / f"{n}.txt").write_text(text)


def a_table_in_each_folder(root: Path) -> None:
    for n in RIGHT:
        photo(root / "abc"[n % 3] / f"{n // 3}.jpg", n)
    for k, folder in enumerate("abc"):
        rows = [f"{n // 3}.jpg,caption {n}" for n in RIGHT if n % 3 == k]
        (root / folder / "captions.csv").write_text("\n".join(["image,caption", *rows]))


def names_beside_urls(root: Path) -> None:
    photos = [photo(root / "train_images" / f"{n:08x}.jpg", n).name for n in RIGHT]
    rows = [{"url": f"http://x.y/{n}.jpg", "image_id": photos[n], "caption": f"caption {n}"} for n in RIGHT]
    (root / "a.json").write_text(json.dumps(rows))


def coco_as_detectors_have_it(root: Path) -> None:
    for split, part in (("train", range(6)), ("val", range(6, COUNT))):
        images = [{"id": n, "file_name": photo(root / "images" / f"{split}2017" / f"{n}.jpg", n).name} for n in part]
        notes = [{"image_id": n, "caption": f"caption {n}"} for n in part]
        (root / "annotations").mkdir(exist_ok=True)
        text = json.dumps({"images": images, "annotations": notes})
        (root / "annotations" / f"captions_{split}2017.json").write_text(text)


@pytest.mark.parametrize(
    "write",
    [
        texts_in_folders_of_a_split,
        texts_and_boxes,
        a_table_in_each_folder,
        names_beside_urls,
        coco_as_detectors_have_it,
    ],
)
def test_layouts_that_people_have(tmp_path: Path, write: Any) -> None:
    write(tmp_path)
    assert pairs(load(tmp_path)) == RIGHT


@pytest.mark.parametrize("key", ["samples", "records", "results", "captions", "entries"])
def test_objects_that_hold_rows_and_parts(tmp_path: Path, key: str) -> None:
    names = [photo(tmp_path / f"{n}.jpg", n).name for n in RIGHT]
    rows = [{"image": names[n], "caption": f"caption {n}"} for n in RIGHT]
    (tmp_path / "a.json").write_text(json.dumps({"version": 1, key: rows}))
    assert pairs(load(tmp_path / "a.json")) == RIGHT
    parts = {split: {names[n]: f"caption {n}" for n in RIGHT if SPLIT[n] == split} for split in SPLITS}
    (tmp_path / "a.json").write_text(json.dumps(parts))
    found = load(tmp_path / "a.json")
    assert pairs(found) == RIGHT and splits(found) == SPLIT


@pytest.mark.parametrize("line", ["{}", "{}.jpg", "{} 1 2", "{}  3"])
def test_trainval_is_for_training_where_no_list_is(tmp_path: Path, line: str) -> None:
    """What VOC and Oxford's pets have; where `train.txt` is there, `trainval.txt` is the sum of two lists."""
    for n in RIGHT:
        photo(tmp_path / "images" / f"p{n}.jpg", n)
    as_csv(tmp_path, [f"p{n}.jpg" for n in RIGHT])
    (tmp_path / "lists").mkdir()

    def write(name: str, numbers: Any) -> None:
        (tmp_path / "lists" / name).write_text("".join(line.format(f"p{n}") + "\n" for n in numbers))

    write("trainval.txt", range(6))
    write("test.txt", range(6, COUNT))
    found = splits(load(tmp_path))
    assert {n for n in found if found[n] == "test"} == {6, 7, 8} and len(found) == COUNT
    write("train.txt", range(4))
    write("val.txt", range(4, 6))
    found = splits(load(tmp_path / "captions.csv"))
    assert found == {n: "train" if n < 4 else "validation" if n < 6 else "test" for n in RIGHT}


def test_lines_of_a_name_and_a_caption_without_a_header(tmp_path: Path) -> None:
    said = {n: f"a dog that is number {n}" for n in RIGHT}
    rows = [f"{photo(tmp_path / 'images' / f'{n}.jpg', n).name}\t{said[n]}\n" for n in RIGHT]
    (tmp_path / "captions.txt").write_text("".join(rows))
    assert pairs(load(tmp_path)) == {n: (text,) for n, text in said.items()}
    for line in ("0.jpg\t0 1 2 3\n", "0.jpg\tgolden retriever\n"):  # boxes, a class
        as_csv(tmp_path, [f"{n}.jpg" for n in RIGHT])
        (tmp_path / "captions.txt").write_text(line)
        assert pairs(load(tmp_path)) == RIGHT


def test_karpathys_sentences_may_be_a_text(tmp_path: Path) -> None:
    images = [
        {"filename": photo(tmp_path / f"{n}.jpg", n).name, "split": "train", "sentences": f"caption {n}"} for n in RIGHT
    ]
    (tmp_path / "a.json").write_text(json.dumps({"images": images}))
    assert pairs(load(tmp_path / "a.json")) == RIGHT


@pytest.mark.parametrize("begins", ["images/", "data/images/", "/home/me/data/images/", "photos/"])
@pytest.mark.parametrize("there", ["masks", "train_depth", "Thumbnails"])
def test_masks_stand_for_no_pictures(tmp_path: Path, begins: str, there: str) -> None:
    for n in range(COUNT):
        photo(tmp_path / there / f"x{n}.png", n)
    captions = as_csv(tmp_path, [f"{begins}x{n}.png" for n in range(COUNT)])
    with pytest.raises(DataError, match="there is no image"):
        load(captions)
    as_csv(tmp_path, [f"x{n}.png" for n in range(COUNT)])  # nothing says that others are meant
    assert pairs(load(captions)) == RIGHT
    as_csv(tmp_path, [f"{begins}x{n}.png" for n in range(COUNT)])
    for n in range(COUNT - 1):
        photo(tmp_path / "images" / f"x{n}.png", n)
    with pytest.raises(DataError, match=f"there is no image .*x{COUNT - 1}.png"):
        load(captions)
