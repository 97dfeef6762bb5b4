"""Every layout that `--dataset` takes, good and bad, on generated files and on the real photographs."""

from __future__ import annotations

import contextlib
import csv
import http.server
import io
import json
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from blip_lite.data.sources.shards import expand_braces
from blip_lite.data.sources.table import captions_in
from blip_lite.errors import DataError, ImageError
from blip_lite.processing import download as fetch
from blip_lite.processing.picture import Picture
from blip_lite.settings import SPLITS
from conftest import load, real_data


def everything(splits: dict[str, list[Picture]]) -> dict[str, Picture]:
    return {e.image_id: e for split in SPLITS for e in splits[split]}


def png(scene: str, size: int = 32) -> bytes:
    buffer = io.BytesIO()
    draw_scene(scene, size).save(buffer, "PNG")
    return buffer.getvalue()


SCENES = scene_ids(40, 5)


def write_csv(path: Path, rows: list[dict[str, str]], **how: str) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), **how)
        writer.writeheader()
        writer.writerows(rows)


def make_folder(folder: Path, count: int = 40) -> None:
    folder.mkdir()
    for number, scene in enumerate(SCENES[:count]):
        (folder / f"{number:02d}.png").write_bytes(png(scene))
    names = [f"{number:02d}.png" for number in range(count)]
    write_csv(
        folder / "metadata.csv",
        [{"file_name": n, "caption": scene_captions(s)[0]} for n, s in zip(names, SCENES, strict=False)],
    )


def test_shapes_are_the_same_every_time_and_held_out_scenes_are_new() -> None:
    data = load(dataset="shapes")
    assert {s: len(e) for s, e in data.splits.items()} == {s: len(e) for s, e in load(dataset="shapes").splits.items()}
    captions = {split: {e.captions for e in data.splits[split]} for split in SPLITS}
    assert not captions["train"] & captions["test"] and not captions["train"] & captions["validation"]
    example = data.splits["test"][0]
    assert len(example.captions) == 5 and example.open().tobytes() == example.open().tobytes()
    assert load(dataset="shapes").fingerprint() == data.fingerprint()
    assert load(dataset="shapes", seed=1).fingerprint() != data.fingerprint()


def test_subsets_are_chosen_by_id(tmp_path: Path) -> None:
    data = load(dataset="shapes", max_train_images=50, max_eval_images=7)
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
    data = load(data_dir=str(tmp_path), split_scheme="official")
    assert [len(data.splits[s]) for s in SPLITS] == [30, 5, 10]
    assert len(everything(data.splits)["3.jpg"].captions) == 5
    notes = " ".join(data.notes)
    assert (
        "2258277193_586949ec62.jpg.1 is no image name" in notes and "5 images have captions but no photograph" in notes
    )
    assert len(everything(load(data_dir=str(tmp_path)).splits)) == 45
    (tmp_path / "Flickr_8k.testImages.txt").unlink()
    with pytest.raises(DataError, match=r"testImages.txt is missing"):
        load(data_dir=str(tmp_path), split_scheme="official")


def test_the_real_flickr8k_copy() -> None:
    root = real_data("flickr8k")
    data = load(data_dir=str(root), split_scheme="official")
    assert [len(data.splits[s]) for s in SPLITS] == [205, 88, 100]
    assert all(len(e.captions) == 5 for e in everything(data.splits).values())
    assert any("7692 images have captions but no photograph" in note for note in data.notes)
    assert any("2258277193_586949ec62.jpg.1" in note for note in data.notes)


def hub_copy(folder: Path, name: str, columns: dict[str, list[object]], images: str = "") -> None:
    """Parquet files as the Hub keeps them, written by `datasets` with the features of the data set."""
    import datasets

    table = datasets.Dataset.from_dict(columns)
    if images:
        table = table.cast_column(images, datasets.Image())
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_flickr8k_of_the_hub(tmp_path: Path) -> None:
    """`ariG23498/flickr8k` has one row per (image, caption), and one part."""
    images = [{"bytes": png(s), "path": None} for s in SCENES for _ in range(5)]
    hub_copy(tmp_path / "f", "train", {"image": images, "caption": [c for s in SCENES for c in scene_captions(s)]}, "image")  # fmt: skip
    data = load("flickr8k", data_dir=str(tmp_path / "f"))
    found = everything(data.splits)
    assert len(found) == 40 and sorted(e.captions for e in found.values()) == sorted(tuple(scene_captions(s)) for s in SCENES)  # fmt: skip
    assert {e.open() for e in found.values()} == {png(s) for s in SCENES}
    with pytest.raises(DataError, match="--split_scheme official needs the lists"):
        load("flickr8k", data_dir=str(tmp_path / "f"), split_scheme="official")


def test_coco_karpathy_of_the_hub(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    (root / "val2014").mkdir(parents=True)
    columns: dict[str, list[object]] = {c: [] for c in ("filepath", "sentids", "filename", "imgid", "split", "sentences", "cocoid", "url")}  # fmt: skip
    for number, split in enumerate(("train", "restval", "val", "test")):
        (root / "val2014" / f"{number}.png").write_bytes(png(SCENES[number]))
        row = ("val2014", [1, 2], f"{number}.png", number, split, ["A dog.", "A cat."], 100 + number, "http://x/y")
        for column, value in zip(columns, row, strict=True):
            columns[column].append(value)
    hub_copy(tmp_path / "hub", "train", columns)
    data = load("coco_karpathy", data_dir=str(tmp_path / "hub"), image_root=str(root))
    assert [len(data.splits[s]) for s in SPLITS] == [2, 1, 1]
    assert data.splits["test"][0] == Picture("103", root / "val2014" / "3.png", ("A dog.", "A cat."))
    (root / "val2014" / "3.png").unlink()
    with pytest.raises(DataError, match=r"image 3: there is no image .*3.png"):
        load("coco_karpathy", data_dir=str(tmp_path / "hub"), image_root=str(root))


@pytest.mark.parametrize("name", ["coco_karpathy", "flickr30k", "flickr8k"])
def test_karpathys_own_json(tmp_path: Path, name: str) -> None:
    filepath = {"filepath": "val2014"} if name == "coco_karpathy" else {}
    images = tmp_path / "images" / filepath.get("filepath", "")
    images.mkdir(parents=True)
    rows = []
    for number, split in enumerate(("train", "restval", "val", "test")):
        (images / f"{number}.png").write_bytes(png(SCENES[number]))
        rows.append({**filepath, "filename": f"{number}.png", "split": split, "sentences": [{"raw": "A dog."}]})
    file = tmp_path / f"dataset_{name.removesuffix('_karpathy')}.json"
    file.write_text(json.dumps({"images": rows}))
    how = {"split_scheme": "karpathy"} if name == "flickr8k" else {"image_root": str(tmp_path / "images")}
    data = load(name, data_dir=str(tmp_path), **how)
    assert [len(data.splits[s]) for s in SPLITS] == [2, 1, 1] and data.splits["train"][0].captions == ("A dog.",)
    if name == "coco_karpathy":
        assert load(file, image_root=str(tmp_path / "images")).splits["test"] == data.splits["test"]
    file.write_text(json.dumps({"images": [{"filename": "a"}]}))
    with pytest.raises(DataError, match="not in Karpathy's form: KeyError 'sentences'"):
        load(name, data_dir=str(tmp_path), **how)


def test_the_annotations_of_coco(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    content: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
    for number, scene in enumerate(SCENES):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(scene))
        content["images"].append({"id": number, "file_name": f"{number}.png"})
        content["annotations"] += [{"image_id": number, "id": 0, "caption": c} for c in scene_captions(scene)]
    file = tmp_path / "captions_train2014.json"
    file.write_text(json.dumps(content))
    found = everything(load(file, image_root=str(tmp_path / "images")).splits)
    assert len(found) == 40 and found["7"].captions == tuple(scene_captions(SCENES[7]))
    assert everything(load(file).splits) == found  # the folder beside it that has them
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(DataError, match="--image_root"):
        load(file)


def test_flickr8k_of_kaggle(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    rows = []
    for number, scene in enumerate(SCENES):
        draw_scene(scene, 32).save(tmp_path / "Images" / f"{number}.jpg")
        rows += [{"image": f"{number}.jpg", "caption": f'a "quoted", {c}'} for c in scene_captions(scene)]
    rows.append({"image": "gone.jpg", "caption": "a dog"})
    write_csv(tmp_path / "captions.txt", rows)
    data = load("flickr8k", data_dir=str(tmp_path), seed=1)
    assert len(everything(data.splits)) == 40
    assert everything(data.splits)["0.jpg"].captions[0] == f'a "quoted", {scene_captions(SCENES[0])[0]}'
    assert any("1 images have captions but no photograph" in note for note in data.notes)


@pytest.mark.parametrize("layout", ["metadata in each", "one metadata", "sidecar .txt"])
def test_sub_folders_are_the_splits(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "pets"
    lines: list[dict[str, str]] = []
    for split, numbers in (("train", range(20)), ("val", range(20, 25)), ("test", range(25, 30))):
        (root / split / "deeper").mkdir(parents=True)
        for n in numbers:
            (root / split / "deeper" / f"{n}.png").write_bytes(png(SCENES[n]))
            if layout.startswith("sidecar"):
                (root / split / "deeper" / f"{n}.txt").write_text("\n".join(scene_captions(SCENES[n])) + "\n")
            lines.append({"file_name": f"{split}/deeper/{n}.png", "text": scene_captions(SCENES[n])[0]})
        if layout == "metadata in each":
            part = [{**line, "file_name": line["file_name"].removeprefix(f"{split}/")} for line in lines]
            write_csv(root / split / "metadata.csv", part)
            lines = []
    if layout == "one metadata":
        write_csv(root / "metadata.csv", lines)
    data = load(root)
    assert [len(data.splits[s]) for s in SPLITS] == [20, 5, 5]
    assert data.splits["test"][0].image_id == "test/deeper/25.png"
    assert len(data.splits["test"][0].captions) == (5 if layout.startswith("sidecar") else 1)


def test_images_with_captions_beside_them(tmp_path: Path) -> None:
    for n, scene in enumerate(SCENES):
        (tmp_path / f"{n}.png").write_bytes(png(scene))
        if n:
            (tmp_path / f"{n}.txt").write_text(scene_captions(scene)[0] + "\n\n")
    data = load(tmp_path)
    assert len(everything(data.splits)) == 39 and "1 images have no .txt" in data.notes[0]


def csv_table(folder: Path, rows: list[dict[str, str]]) -> Path:
    write_csv(folder / "captions.csv", rows)
    return folder / "captions.csv"


def jsonl_table(folder: Path, rows: list[dict[str, str]]) -> Path:
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "captions.jsonl"


def json_table(folder: Path, rows: list[dict[str, str]]) -> Path:
    (folder / "captions.json").write_text(json.dumps(rows))
    return folder / "captions.json"


def tsv_table(folder: Path, rows: list[dict[str, str]]) -> Path:
    write_csv(folder / "captions.tsv", rows, delimiter="\t")
    return folder / "captions.tsv"


def parquet_table(folder: Path, rows: list[dict[str, str]]) -> Path:
    import datasets

    datasets.Dataset.from_list(rows).to_parquet(folder / "captions.parquet")
    return folder / "captions.parquet"


@pytest.mark.parametrize("write", [csv_table, jsonl_table, json_table, tsv_table, parquet_table])
def test_tables(tmp_path: Path, write: Callable[[Path, list[dict[str, str]]], Path]) -> None:
    rows = []
    for n, scene in enumerate(SCENES):
        (tmp_path / f"{n}.png").write_bytes(png(scene))
        split = "train" if n < 30 else "dev" if n < 35 else "test"
        rows += [{"filename": f"{n}.png", "caption": c, "split": split} for c in scene_captions(scene)[:2]]
    data = load(write(tmp_path, rows))
    assert [len(data.splits[s]) for s in SPLITS] == [30, 5, 5]
    assert all(len(e.captions) == 2 for e in everything(data.splits).values())
    assert any("images are in column 'filename', captions in 'caption'" in note for note in data.notes)
    renamed = [{"shot": r["filename"], "says": r["caption"]} for r in rows]
    with pytest.raises(DataError, match="no column file_name or image; there are: shot, says. Name it with --image_c"):
        load(write(tmp_path, renamed))
    found = everything(load(write(tmp_path, renamed), image_column="shot", caption_column="says").splits)
    assert found["3.png"].captions == tuple(scene_captions(SCENES[3])[:2])


@pytest.mark.parametrize("form", ["bytes", "struct"])
@pytest.mark.parametrize("captions", ["numbered", "list", "json text"])
def test_parquet_with_images_in_it(tmp_path: Path, form: str, captions: str) -> None:
    import datasets

    rows: list[dict[str, object]] = []
    for scene in SCENES:
        image = png(scene) if form == "bytes" else {"bytes": png(scene), "path": "a.png"}
        said = scene_captions(scene)
        several = {f"caption_{k}": c for k, c in enumerate(said)}
        rows.append({"image": image, **(several if captions == "numbered" else {"captions": said if captions == "list" else json.dumps(said)})})  # fmt: skip
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "all.parquet")
    found = everything(load(tmp_path / "all.parquet").splits)
    assert {e.open(): e.captions for e in found.values()} == {png(s): tuple(scene_captions(s)) for s in SCENES}


def test_any_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its id: `datasets.load_dataset` runs for real, on a local copy in place of the download."""
    import datasets

    copy = tmp_path / "copy"
    for split, part in (("train", SCENES[:30]), ("test", SCENES[30:])):
        images = [{"bytes": png(s), "path": None} for s in part]
        hub_copy(copy, split, {"photo": images, "sentences": [{"raw": scene_captions(s)} for s in part]}, "photo")
    real = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *a, **k: real(str(copy), *a, **k))
    data = load("somebody/pictures")
    assert data.name == "pictures" and len(data.splits["test"]) == 10
    assert len(data.splits["train"]) + len(data.splits["validation"]) == 30 and data.splits["validation"]
    assert any("no validation images are named" in note for note in data.notes)
    assert {e.captions for e in data.splits["test"]} == {tuple(scene_captions(s)) for s in SCENES[30:]}
    part = load("somebody/pictures", dataset_split="train[:20]")
    assert len(everything(part.splits)) == 20


def shards(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        with tarfile.open(folder / name, "w") as tar:
            for n, scene in list(enumerate(SCENES))[number :: len(names)]:
                said = scene_captions(scene)
                text = ("txt", "\n".join(said)) if n % 2 else ("json", json.dumps({"caption": said}))
                for extension, data in (("png", png(scene)), (text[0], text[1].encode())):
                    info = tarfile.TarInfo(f"a/{n:04d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo(f"a/lonely{number}.txt")
            tar.addfile(info, io.BytesIO())


def test_webdataset_shards(tmp_path: Path) -> None:
    shards(tmp_path, [f"{n:04d}.tar" for n in range(3)])
    data = load(tmp_path / "{0000..0002}.tar")
    found = everything(data.splits)
    assert {e.open(): e.captions for e in found.values()} == {png(s): tuple(scene_captions(s)) for s in SCENES}
    assert data.notes == ["3 samples have no image or no caption; left out"]
    assert everything(load(tmp_path).splits).keys() == found.keys()
    with pytest.raises(DataError, match=r"1 of 4 shards are missing, e.g. .*0003.tar"):
        load(tmp_path / "{0000..0003}.tar")
    whole = (tmp_path / "0001.tar").read_bytes()
    (tmp_path / "0001.tar").write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(DataError, match=r"0001.tar: not a whole, uncompressed tar file"):
        load(tmp_path / "{0000..0002}.tar")
    named = tmp_path / "named"
    named.mkdir()
    shards(named, ["train-0.tar", "val-0.tar", "test-0.tar"])
    assert [len(load(named).splits[s]) for s in SPLITS] == [14, 13, 13]
    (tmp_path / "0001.tar").write_bytes(whole)
    shards_of = [tmp_path / f"{n:04d}.tar" for n in range(3)]
    joined = b"".join(path.read_bytes() for path in shards_of)  # `cat`
    (tmp_path / "ALL.TAR").write_bytes(joined)
    assert everything(load(tmp_path / "ALL.TAR").splits).keys() == found.keys()
    (tmp_path / "ALL.TAR").write_bytes(joined + b"more")
    assert everything(load(tmp_path / "ALL.TAR").splits).keys() == found.keys()  # a signature, say
    (tmp_path / "ALL.TAR").write_bytes(joined + whole[: len(whole) // 2 + 100])
    with pytest.raises(DataError, match=r"ALL.TAR: not a whole, uncompressed tar file"):
        load(tmp_path / "ALL.TAR")


def test_small_readers() -> None:
    assert expand_braces("s/{00..02}-{1..2}.tar") == [f"s/{a}-{b}.tar" for a in ("00", "01", "02") for b in (1, 2)]
    assert (
        captions_in({"raw": ["a", "b"]}) == ["a", "b"] == captions_in([{"raw": "a"}, "b"]) == captions_in('["a", "b"]')
    )
    assert captions_in("[a dog]") == ["[a dog]"] and captions_in(None) == [] and captions_in('["a') == ['["a']


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
    data = load(dataset=str(folder))
    found = everything(data.splits)
    assert len(found) == 40 and {len(e.captions) for e in found.values()} == {1 if form == "csv" else 2}
    assert data.name == "photos" and "1 images are not in metadata" in data.notes[1]


def test_a_folder_named_from_where_one_stands_has_all_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "./photos/../photos", str(tmp_path / "photos")):
        assert not [note for note in load(dataset=name).notes if "left out" in note], name


def test_bad_folders_are_refused_by_file_and_row(tmp_path: Path) -> None:
    def refused(change, message: str) -> None:
        shutil.rmtree(tmp_path / "photos", ignore_errors=True)
        make_folder(tmp_path / "photos", 6)
        change(tmp_path / "photos", tmp_path / "photos" / "metadata.csv")
        with pytest.raises(DataError, match=message):
            load(dataset=str(tmp_path / "photos"))

    def rewrite(old: str, new: str):
        return lambda folder, table: table.write_text(table.read_text().replace(old, new))

    refused(lambda folder, table: table.unlink(), "has no metadata.csv, metadata.jsonl or metadata.parquet")
    refused(
        rewrite("file_name,caption", "file_name,title"), r"metadata.csv, line 2: no column caption.*: file_name, title"
    )
    refused(
        rewrite("file_name,caption", "shot,caption"),
        r"line 2: no column file_name or image; there are: shot, caption",
    )
    refused(lambda f, t: t.write_text(t.read_text() + "00.png,\n"), r"line 8: 00.png has no caption")
    refused(lambda f, t: t.write_text(t.read_text() + "00.png\n"), r"line 8: 00.png has no caption")
    refused(lambda f, t: t.write_text(t.read_text() + "gone.png,a dog\n"), r"line 8: there is no image .*gone.png")
    refused(lambda f, t: t.write_text("file_name,caption\n"), "no images in train and validation")
    for dataset, words in (
        ("coco", "no such file or folder; expected shapes, flickr8k"),
        ("/no/such/folder", "there is no such file or folder"),
    ):
        with pytest.raises(DataError, match=words):
            load(dataset=dataset)
    with pytest.raises(DataError, match=r"has no folder Flicker8k_Dataset"):
        load(data_dir=str(tmp_path))
    with pytest.raises(DataError, match="not to be had from the Hub"):
        load(dataset="coco_karpathy")


def test_odd_but_good_tables(tmp_path: Path) -> None:
    """A byte-order mark, Windows line ends, quotes and commas in captions; the same image under two names."""
    folder = tmp_path / "photos"
    make_folder(folder)
    text = "file_name,caption\r\n" + "".join(f'{n:02d}.png,"a ""red"" star, no. {n}"\r\n' for n in range(40))
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert everything(load(folder).splits)["07.png"].captions == ('a "red" star, no. 7',)
    shutil.copy(folder / "00.png", folder / "copy.png")
    with open(folder / "metadata.csv", "a", encoding="utf-8") as file:
        file.write(f"copy.png,{'word ' * 5000}\n")
    splits = load(folder).splits
    assert {s for s in SPLITS for e in splits[s] if e.image_id in ("00.png", "copy.png")} in [{s} for s in SPLITS]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("../../etc/passwd,a dog", r"line 42: ../../etc/passwd lies outside .*photos"),
        ("/etc/passwd,a dog", r"line 42: /etc/passwd lies outside"),
        ("file:///etc/passwd,a dog", r"line 42: /etc/passwd lies outside"),
        ("https://example.org/a.jpg,a dog", r"line 42: the image is a URL.*--allow_urls"),
        ("gone.png,a dog", r"line 42: there is no image .*gone.png"),
        ("00.png,", r"line 42: 00.png has no caption"),
        ("00.png,...", r"line 42: its caption '...' has no letter and no digit"),
        ("00.png,\u200b", r"line 42: its caption .* has no letter and no digit"),  # tokenises to nothing
        (",a dog", r"line 42: no image in column file_name"),
        ("00.png,a dog,and a cat", r"line 42: more fields than columns"),
        (b"00.png,\x8f\x8f\x8f\x8f", r"metadata.csv: cannot be read .*save it as UTF-8"),
    ],
)
def test_bad_rows_are_named_before_any_work(tmp_path: Path, row: str | bytes, message: str) -> None:
    folder = tmp_path / "photos"
    make_folder(folder)
    with open(folder / "metadata.csv", "ab") as file:
        file.write((row if isinstance(row, bytes) else row.encode()) + b"\n")
    with pytest.raises(DataError, match=message):
        load(folder)


def test_many_bad_rows_are_counted_and_an_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    make_folder(folder)
    with open(folder / "metadata.csv", "a") as file:
        file.write("gone.png,a dog\n" + "".join(f"gone{n}.png,a dog\n" for n in range(9)))
    with pytest.raises(DataError, match=r"line 42.*\n.*\n.*\n.*\n.*line 46.*\nand 5 more such rows"):
        load(folder)
    rows = [{"image": "00.png", "caption": "a star", "split": s} for s in ("train", "test")]
    write_csv(folder / "two.csv", rows)
    with pytest.raises(DataError, match=r"two.csv, line 3: 00.png is in test, and in train in .*line 2"):
        load(folder / "two.csv")


# ----------------------------------------------------------------------------------------------- URLs


flooded: list[int] = []
asked: list[str] = []


class Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind, _, name = self.path.strip("/").partition("/")
        if kind.startswith("?"):
            kind = "seen"
        if kind == "slow":
            threading.Event().wait(3)
        if kind in ("drip", "flood", "busy", "latin", "seen"):
            return getattr(self, kind)()
        if kind in ("redirect", "local", "file"):
            target = {"redirect": "/html/page", "local": "http://169.254.169.254/meta", "file": "file:///etc/passwd"}
            self.send_response(302)
            self.send_header("Location", target[kind])
            self.end_headers()
            return
        body = (
            b"<html>Not here</html>"
            if kind == "html"
            else b"x" * 3000
            if kind == "large"
            else png(name if kind == "good" else SCENES[0])
        )
        self.send_response({"missing": 404, "broken": 500}.get(kind, 200))
        self.send_header("Content-Type", "text/html" if kind == "html" else "image/png")
        self.send_header("Content-Length", str(len(body) + (9 if kind == "cut" else 0)))
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        """A header every 0.3 s: no single read is slow."""
        self.send_response(200)
        with contextlib.suppress(OSError):
            for i in range(30):
                self.wfile.write(f"X-{i}: a\r\n".encode() if i else b"HTTP/1.1 200 OK\r\n")
                time.sleep(0.3)

    def flood(self) -> None:
        """A redirect whose body has no end."""
        self.send_response(302)
        self.send_header("Location", f"/good/{SCENES[0]}")
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(1000):
                self.wfile.write(b"x" * 2**20)
                flooded.append(2**20)

    def latin(self) -> None:
        """A redirect to a name with a letter that is no ASCII, as servers send it: its UTF-8 bytes."""
        self.send_response(302)
        self.send_header("Location", f"http://{self.headers['Host']}" + "/seen//é?a b".encode().decode("latin-1"))
        self.end_headers()

    def seen(self) -> None:
        asked.append(self.path)
        self.send_error(404)

    def busy(self) -> None:
        """Too many requests, at first."""
        asked.append(self.path)
        self.send_response(429 if len(asked) < 3 else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server on loopback, which alone is let through as if it were public."""
    public = fetch.is_public
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1" or public(address))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing/x", "HTTP 404"),
        ("broken/x", "HTTP 500"),
        ("html/x", r"the answer is no image \(text/html, 21 bytes\)"),
        ("redirect/x", r"the answer is no image \(text/html"),
        ("local/x", "refused: 169.254.169.254 is 169.254.169.254, which is no public address"),
        ("file/x", "file:///etc/passwd"),
        ("slow/x", "no whole answer within 1 s"),
        ("drip/x", "no whole answer within 1 s"),
        ("cut/x", "cut short, 9 bytes are missing"),
        ("large/x", "refused, larger than"),
    ],
)
def test_what_the_web_may_answer(web: str, path: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        fetch.fetch(f"{web}/{path}", seconds=1, max_bytes=2000)
    assert fetch.fetch(f"{web}/good/{SCENES[0]}") == png(SCENES[0])


def test_what_a_redirect_says_besides_is_not_read(web: str) -> None:
    flooded.clear()
    assert fetch.fetch(f"{web}/flood/x") == png(SCENES[0])
    assert sum(flooded) < 50e6  # what the system's buffers take


def test_asked_again_only_where_that_may_help(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.clear()
    monkeypatch.setattr(fetch.time, "sleep", lambda _: None)
    with pytest.raises(fetch.Refused, match="HTTP 404"):  # at the third time
        fetch.fetch_again(f"{web}/busy/refused")
    assert len(asked) == 3
    with pytest.raises(fetch.Refused, match="HTTP 404"):  # at once
        fetch.fetch_again(f"{web}/busy/refused")
    assert len(asked) == 4


def test_what_a_server_is_asked_for(web: str) -> None:
    asked.clear()
    for url in (f"{web}/latin/x", f"{web}?x=1", f" {web}/seen/a b/é%20.jpg \n"):
        with pytest.raises(fetch.Refused, match="HTTP 404"):
            fetch.fetch(url)
    assert asked == ["/seen//%C3%A9?a%20b", "/?x=1", "/seen/a%20b/%C3%A9%20.jpg"]


@pytest.mark.parametrize(
    "address",
    [
        "64:ff9b::a00:1",
        "64:ff9b::a9fe:a9fe",
        "fec0::1",
        "::a00:1",
        "2002:a00:1::1",
        "2001:0:7f00:1::1",
        "::",
        "ff02::1",
    ],
)
def test_what_carries_a_private_address_is_not_public(address: str) -> None:
    assert not fetch.is_public(address)
    assert fetch.is_public("2606:4700::6810:84e5") and fetch.is_public("::ffff:8.8.8.8") and fetch.is_public("8.8.8.8")


@pytest.mark.parametrize("url", ["http://localhost/a.png", "http://127.0.0.1:9/a", "https://10.0.0.1/", "http://[::1]/", "http://[::ffff:192.168.0.1]/", "file:///etc/passwd", "ftp://example.org/a", "http://0.0.0.0/"])  # fmt: skip
def test_private_addresses_and_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(ImageError, match="refused"):
        fetch.fetch(url)


def test_a_name_that_changes_its_address_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: public when looked at, loopback afterwards. The address that was looked at is the one used."""
    answers = iter(["203.0.113.7", "127.0.0.1"])
    asked: list[str] = []

    def resolve(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        return [(2, 1, 6, "", (next(answers), port))]

    monkeypatch.setattr(fetch.socket, "getaddrinfo", resolve)
    with pytest.raises(ImageError, match="203.0.113.7, which is no public address"):  # TEST-NET-3 is not global
        fetch.fetch("http://rebind.example/a.png", seconds=1)
    assert asked == ["rebind.example"]


def test_a_table_of_urls(tmp_path: Path, web: str) -> None:
    rows = [{"image_url": f"{web}/good/{s}", "caption": c} for s in SCENES for c in scene_captions(s)[:2]]
    rows += [{"image_url": f"{web}/missing/{n}", "caption": "a dog"} for n in range(4)]
    table = csv_table(tmp_path, rows)
    with pytest.raises(
        DataError, match=r"4 of 44 images could not be downloaded, more than --max_bad_images(.|\n)*404"
    ):
        load(table, allow_urls=True)
    data = load(table, allow_urls=True, max_bad_images=0.2)
    found = everything(data.splits)
    assert len(found) == 40 and {Path(str(e.image)).read_bytes() for e in found.values()} == {png(s) for s in SCENES}
    assert "4 images could not be downloaded; left out" in data.notes[-1]
    again = load(table, allow_urls=True, max_bad_images=0.2)  # from the cache
    assert again.fingerprint() == data.fingerprint()
    assert fetch.cached(rows[0]["image_url"]).is_file()
