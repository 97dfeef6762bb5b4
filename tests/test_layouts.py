"""Data as people have them: names of splits and columns, tables, folders, JSON. No image that is named a test is trained
on, in whatever way it is named."""

from __future__ import annotations

import io
import json
import random
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blip_lite.captioning.review_table import wrong_with
from blip_lite.data.dataset import split_by_image
from blip_lite.data.look import first_look, refuse_what_is_no_caption
from blip_lite.data.names import REJECTED, SPLIT_WORDS, find_column, plain, split_of_name, split_of_path
from blip_lite.data.sources.marks import Marks, lone_word
from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from blip_lite.data.sources.table import captions_in, delimiter_of
from blip_lite.errors import DataError
from blip_lite.processing.picture import Picture
from blip_lite.settings import SPLITS, OptimisationSettings
from conftest import load

SCENES = scene_ids(12, 3)
FEW_EXAMPLES = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
words = st.sampled_from(sorted(SPLIT_WORDS))
cases = st.sampled_from([str.lower, str.upper, str.title])
around = st.sampled_from(
    ["{}", " {} ", "{}2017", "{}_set", "images_{}", "{}-00000-of-00004", "captions_{}", "my {} part"]
)


@given(word=words, case=cases, around=around)
def test_a_split_is_known_however_it_is_written(word: str, case: Any, around: str) -> None:
    assert split_of_name(around.format(case(word))) == SPLIT_WORDS[word]


@pytest.mark.parametrize(
    "name", ["trainval", "train_val", "trainVal", "contest", "extra", "a", "2017", "", "evaluated"]
)
def test_what_names_no_split_or_two_is_none(name: str) -> None:
    assert split_of_name(name) is None


def test_folders_about_something_else_are_no_splits() -> None:
    assert split_of_name("test tubes", strict=True) is None and split_of_name("steam-train-photos", strict=True) is None
    assert split_of_name("Test Images", strict=True) == "test"


@given(st.text(alphabet="FileName_- ", min_size=1, max_size=3), cases)
def test_columns_are_found_without_regard_to_case_and_blanks(noise: str, case: Any) -> None:
    written = case("file" + "".join(c for c in noise if not c.isalpha()) + "name")
    assert find_column(["x", written], ["image", "filename"]) == written


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12), min_size=1, max_size=5))
def test_a_list_in_a_cell_is_a_list(captions: list[str]) -> None:
    captions = [f"a {caption}" for caption in captions]
    assert captions_in(repr(captions)) == captions  # pandas
    assert captions_in(json.dumps(captions)) == captions
    assert captions_in("[" + " ".join(map(repr, captions)) + "]") == captions  # numpy


def test_nulls_are_no_words_and_conversations_have_one_answer() -> None:
    assert captions_in(float("nan")) == captions_in(None) == []
    assert captions_in("NaN") == captions_in("null") == captions_in(" ") == [""]
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a dog"}]
    assert captions_in(turns) == ["a dog"]
    assert captions_in([{"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}]) == ["a cat"]
    with pytest.raises(ValueError, match="2 answers"):
        captions_in([*turns, turns[1]])


def draw(folder: Path, name: str, scene: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    draw_scene(scene, 32).save(folder / name)


Row = tuple[str, str, str]  # name of the image, caption, split as it is written


def column(folder: Path, rows: list[Row], header: str) -> Path:
    for name, caption, _ in rows:
        draw(folder, name, caption_to_scene[caption])
    lines = [f"image;caption;{header}", *(f"{name};{caption};{split}" for name, caption, split in rows)]
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder / "captions.csv"


def folders(folder: Path, rows: list[Row], above: str) -> Path:
    for name, caption, split in rows:
        draw(folder, f"{above}{split}/{name}", caption_to_scene[caption])
        (folder / f"{above}{split}/{name}").with_suffix(".txt").write_text(caption)
    return folder


def files(folder: Path, rows: list[Row], pattern: str) -> Path:
    tables: dict[str, list[Row]] = {}
    for name, caption, split in rows:
        draw(folder, f"images/{name}", caption_to_scene[caption])
        tables.setdefault(split, []).append((name, caption, split))
    for split, part in tables.items():
        path = folder / pattern.format(split)
        if path.suffix == ".csv":
            path.write_text("\n".join(["file_name,caption", *(f"{name},{caption}" for name, caption, _ in part)]))
        elif path.suffix == ".json":
            path.write_text(json.dumps({name: [caption] for name, caption, _ in part}))
        else:
            path.write_text("\n".join(json.dumps({"image": name, "text": caption}) for name, caption, _ in part))
    return folder


def png(caption: str) -> bytes:
    buffer = io.BytesIO()
    draw_scene(caption_to_scene[caption], 32).save(buffer, "PNG")
    return buffer.getvalue()


def by_split(rows: list[Row]) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row[2], []).append(row)
    return parts


def shards(folder: Path, rows: list[Row], pattern: str) -> Path:
    """webdataset: the split in a shard's name, in its folder's, in a member's folder, or in its JSON."""
    for split, part in by_split(rows).items():
        path = folder / (pattern.format(split) if "{}" in pattern else f"{len(list(folder.iterdir()))}.tar")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, caption, _ in part:
                about = {"caption": caption} | ({"split": split} if pattern == "json" else {})
                pieces = {name: png(caption), name.replace(".png", ".json"): json.dumps(about).encode()}
                for member, content in pieces.items():
                    put(tar, f"{split}/{member}" if pattern == "member" else member, content)
    return folder


def parquets(folder: Path, rows: list[Row], pattern: str) -> Path:
    """A copy of a Hub data set, or what `datasets.save_to_disk` wrote."""
    import datasets

    def table(part: list[Row]) -> Any:
        columns = {"image": [{"bytes": png(c), "path": None} for _, c, _ in part], "text": [c for _, c, _ in part]}
        if pattern == "column.parquet":
            columns["split"] = [split for _, _, split in part]
        return datasets.Dataset.from_dict(columns)

    if pattern == "saved":
        datasets.DatasetDict({s.replace(" ", "_"): table(p) for s, p in by_split(rows).items()}).save_to_disk(folder)
        return folder
    for split, part in by_split(rows).items() if "{}" in pattern else [("", rows)]:
        path = folder / pattern.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(part).data.table, path)
    return folder


def metadata(folder: Path, rows: list[Row], kind: str) -> Path:
    """`imagefolder`: one table for all folders, one in each, or with a column."""
    for n, (name, caption, split) in enumerate(rows):
        draw(folder, f"{split}/{name}", caption_to_scene[caption])
        one = {"file_name": f"{split}/{name}" if kind == "one" else name, "caption": caption}
        with open(folder / ("." if kind == "one" else split) / "metadata.jsonl", "a") as file:
            file.write("\n" * (n > 0) + json.dumps(one))
    return folder


def objects(folder: Path, rows: list[Row], kind: str) -> Path:
    """JSON of COCO, Karpathy, TextCaps, `{split: [rows]}`, `{name: ...}`, `{column: [...]}`."""
    for name, caption, _ in rows:
        draw(folder, f"images/{name}", caption_to_scene[caption])
    known = [{"image": name, "caption": caption, "split": split} for name, caption, split in rows]
    content: Any = {
        "coco": {
            "images": [{"id": n, "file_name": r["image"], "split": r["split"]} for n, r in enumerate(known)],
            "annotations": [{"image_id": str(n), "caption": r["caption"]} for n, r in enumerate(known)],
        },
        "karpathy": {
            "images": [
                {"filename": r["image"], "split": r["split"], "sentences": [{"raw": r["caption"]}]} for r in known
            ]
        },
        "data": {"dataset_type": "x", "data": [{**r, "split": None, "set_name": r["split"]} for r in known]},
        "parts": {s: [{"image": n, "caption": c} for n, c, _ in part] for s, part in by_split(rows).items()},
        "named": {r["image"]: {"caption": r["caption"], "split": r["split"]} for r in known},
        "keyed": {f"k{n}": r for n, r in enumerate(known)},
        "columns": {key: [r[key] for r in known] for key in ("image", "caption", "split")},
        "pandas": {key: {str(n): r[key] for n, r in enumerate(known)} for key in ("image", "caption", "split")},
        "label studio": [
            {
                "data": {"image": f"/data/upload/1/0a1b2c3d-{r['image']}", "split": r["split"]},
                "annotations": [{"result": [{"value": {"text": [r["caption"]]}}]}],
            }
            for r in known
        ],
    }[kind]
    if kind == "data":
        for row in content["data"]:
            del row["split"]
    path = folder / "all.json"
    path.write_text(json.dumps(content))
    return path


def flags(folder: Path, rows: list[Row], kind: str) -> Path:
    """A column of yes and no for each split, or one of any name that holds their names."""
    for name, caption, _ in rows:
        draw(folder, name, caption_to_scene[caption])
    splits = {split: split_of_name(split) for _, _, split in rows}
    if "{}" in kind:
        lines = ["image,caption," + ",".join(kind.format(split) for split in splits)]
        lines += [f"{n},{c}," + ",".join(str(splits[s] == splits[o]) for o in splits) for n, c, s in rows]
    else:
        lines = [f"image,caption,{kind}", *(f"{n},{c},{s}" for n, c, s in rows)]
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder / "captions.csv"


def lists(folder: Path, rows: list[Row], pattern: str) -> Path:
    """A list of names for each split beside a table without splits: Flickr8k's, and home-made ones."""
    for name, caption, _ in rows:
        draw(folder, f"images/{name}", caption_to_scene[caption])
    if "token" in pattern:
        (folder / "a.token").write_text("".join(f"{name}.jpg#0\t{c}\n".replace(".png", "") for name, c, _ in rows))
        for name, _, _ in rows:
            (folder / "images" / name).rename(folder / "images" / name.replace(".png", ".jpg"))
    else:
        (folder / "captions.csv").write_text("\n".join(["image,caption", *(f"{name},{c}" for name, c, _ in rows)]))
    parts = {split: [name for name, _, _ in part] for split, part in by_split(rows).items()}
    if pattern == "split.csv":
        (folder / pattern).write_text("\n".join(["image,split", *(f"{name},{split}" for name, _, split in rows)]))
    elif pattern == "split_by_name.json":
        (folder / pattern).write_text(json.dumps({name: split for name, _, split in rows}))
    elif "{}" not in pattern:
        (folder / "splits.json").write_text(json.dumps(parts))
    else:
        for split, names in parts.items():
            text = json.dumps(names, indent=1) if pattern.endswith(".json") else "\n".join(names)
            (folder / pattern.removeprefix("token").format(split)).write_text(text)
    return folder


caption_to_scene = {scene_captions(scene)[0]: scene for scene in SCENES}
LAYOUTS = [
    *((column, header) for header in ("split", "Split", "SPLIT", "data_split")),
    *((folders, above) for above in ("", "images/", "data/images/", "Data/")),
    *((files, pattern) for pattern in ("{}.csv", "{}.json", "_annotations.{}.jsonl", "captions_{}2017.json")),
    *((shards, pattern) for pattern in ("{}-000.tar", "data/{}/0.tar", "member", "json")),
    *((parquets, pattern) for pattern in ("data/{}-00000-of-00001.parquet", "{}/0.parquet", "column.parquet", "saved")),
    *((metadata, kind) for kind in ("one", "each")),
    *((objects, kind) for kind in ("coco", "karpathy", "data", "parts", "named", "keyed", "columns", "pandas")),
    (objects, "label studio"),
    *((flags, kind) for kind in ("is_{}", "{}", "in {}", "usage", "type", "what it is for")),
    *((lists, pattern) for pattern in ("{}.txt", "Flickr_8k.{}Images.txt", "splits.json", "token{}.txt")),
    *((lists, pattern) for pattern in ("{}.json", "names of {}.json", "{}_split.json")),
    *((lists, pattern) for pattern in ("{}.lst", "my {} list.csv", "split.csv", "split_by_name.json")),
]


@pytest.mark.parametrize("kind", ["is_{}", "in {}", "in_{}", "for_{}", "{}"])
def test_flags_of_every_word_for_a_split(tmp_path: Path, kind: str) -> None:
    """`in valid` was read as `invalid`, and its validation images were left out as rejected."""
    for number, word in enumerate(w for w in SPLIT_WORDS if w != "train"):
        split = SPLIT_WORDS[word]
        others = {"train": "train", "validation": "val", "test": "test"} | {split: word}
        expected = {caption: SPLITS[n % 3] for n, caption in enumerate(caption_to_scene)}
        rows = [(f"{n}.png", caption, others[expected[caption]]) for n, caption in enumerate(expected)]
        (folder := tmp_path / str(number)).mkdir()
        found = load(flags(folder, rows, kind)).splits
        assert {c: split for split in SPLITS for e in found[split] for c in e.captions} == expected, (kind, word)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout[0].__name__} {layout[1]}")
@given(case=cases, seed=st.integers(0, 10**6), data=st.data())
@settings(FEW_EXAMPLES, max_examples=3)
def test_no_image_that_is_named_a_test_is_trained_on(
    tmp_path_factory: pytest.TempPathFactory, layout: Any, case: Any, seed: int, data: Any
) -> None:
    write, detail = layout
    written = {
        split: case(data.draw(st.sampled_from([w for w in SPLIT_WORDS if SPLIT_WORDS[w] == split]))) for split in SPLITS
    }
    order = list(caption_to_scene)
    random.Random(seed).shuffle(order)
    expected = {caption: SPLITS[n % 3] for n, caption in enumerate(order)}
    rows = [(f"{n}.png", caption, written[expected[caption]]) for n, caption in enumerate(order)]
    found = load(write(tmp_path_factory.mktemp("layout"), rows, detail)).splits
    assert {c: split for split in SPLITS for e in found[split] for c in e.captions} == expected


@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[4]])
def test_a_split_that_is_not_understood_is_refused_by_name(tmp_path: Path, layout: Any) -> None:
    write, detail = layout
    names = ["train", "val", "bonus"]
    rows = [(f"{n}.png", caption, names[n % 3]) for n, caption in enumerate(caption_to_scene)]
    with pytest.raises(DataError, match="bonus"):
        load(write(tmp_path, rows, detail))


@given(
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    header=st.sampled_from([("image", "caption"), ("URL", "TEXT"), ("Image Name", " Comment")]),
    end=st.sampled_from(["\n", "\r\n"]),
)
@FEW_EXAMPLES
def test_tables_as_programs_write_them(
    tmp_path_factory: pytest.TempPathFactory, delimiter: str, encoding: str, header: tuple[str, str], end: str
) -> None:
    folder = tmp_path_factory.mktemp("table")
    lines = [delimiter.join(header)]
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        draw(folder, f"{n}.png", scene)
        lines.append(delimiter.join((f"{n}.png", f'"{caption}"' if n % 2 else caption)))
    (folder / "c.csv").write_bytes(end.join(lines).encode(encoding))
    found = load(folder / "c.csv").splits
    assert sorted(c for split in SPLITS for e in found[split] for c in e.captions) == sorted(caption_to_scene)
    assert delimiter_of(lines[0], ".csv") == delimiter


def test_a_quote_that_never_closes_and_a_missing_header_are_named(tmp_path: Path) -> None:
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"{n}.png", scene)
    rows = [f"{n}.png,a dog" for n in range(12)]
    (tmp_path / "c.csv").write_text("\n".join(["image,caption", *rows[:4], '4.png,"a dog', *rows[5:]]))
    with pytest.raises(DataError, match="line 6: a quotation mark opens here"):
        load(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text("\n".join(["image,caption", *rows[:4], '4.png,"a dog', *rows[5:9], 'x.png,a cat"']))
    with pytest.raises(DataError, match="line 6: a quotation mark opens here"):
        load(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match="the first line looks like data, not a header"):
        load(tmp_path / "c.csv")


def test_cells_that_are_empty_are_left_out_within_the_share_and_listed_beyond_it(tmp_path: Path) -> None:
    lines = ["image,caption"]
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        draw(tmp_path, f"{n}.png", scene)
        lines.append(f"{n}.png,{'NaN' if n == 3 else caption}")
    (tmp_path / "c.csv").write_text("\n".join([*lines, "99.png,a dog"]))
    with pytest.raises(
        DataError, match=r"(?s)line 5: 3.png has no caption.*line 14: there is no image.*--max_bad_images"
    ):
        load(tmp_path / "c.csv")
    found = load(tmp_path / "c.csv", max_bad_images=0.2)
    assert sum(map(len, found.splits.values())) == 11 and any("2 rows cannot be used" in note for note in found.notes)


def test_repeated_captions_and_spellings_of_one_image_are_one(tmp_path: Path) -> None:
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"{n}.png", scene)
    rows = [f"{name},a dog" for n in range(12) for name in (f"{n}.png", f"./{n}.png")]
    (tmp_path / "c.csv").write_text("\n".join(["image,caption", *rows]))
    found = load(tmp_path / "c.csv")
    examples = [e for split in SPLITS for e in found.splits[split]]
    assert len(examples) == 12 and all(e.captions == ("a dog",) for e in examples)
    assert any(note.startswith("12 captions repeat") for note in found.notes)


@pytest.mark.parametrize("count", [2, 3, 6, 30])
def test_two_images_can_be_shared_out(tmp_path: Path, count: int) -> None:
    for n, scene in enumerate(scene_ids(count, 9)):
        draw(tmp_path, f"{n}.png", scene)
        (tmp_path / f"{n}.caption").write_text(scene_captions(scene)[0])
        (tmp_path / f"{n}.txt").write_text("1girl, solo")
    for hidden in ("__MACOSX/._0.png", ".ipynb_checkpoints/0.png"):
        (tmp_path / hidden).parent.mkdir()
        (tmp_path / hidden).write_bytes(b"\0")
    found = load(tmp_path)
    assert found.splits["train"] and found.splits["validation"] and found.drawn
    assert sum(map(len, found.splits.values())) == count
    assert any("the .caption is read" in note for note in found.notes)


def test_what_is_no_caption_is_seen(tmp_path: Path) -> None:
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"{n}.png", scene)
    for text, warning in (("http://x.org/{}", "URLs"), ("0 0.5 0.{} 0.3", "numbers"), ("img/{}.jpg", "names of files")):
        (tmp_path / "c.csv").write_text("\n".join(["image,text", *(f"{n}.png,{text.format(n)}" for n in range(12))]))
        lines = first_look(load(tmp_path / "c.csv"), None, OptimisationSettings())
        assert any(f"100% of the captions are {warning}" in line for line in lines), lines
    assert sum("png: " in line for line in lines) == 3


@pytest.mark.parametrize("path", ["data/test/train/a.jpg", "train/test/a.jpg"])
def test_of_two_folders_the_test_counts(path: str) -> None:
    from pathlib import PurePosixPath

    assert split_of_path(PurePosixPath(path)) == "test"


def test_the_folders_above_a_data_set_say_nothing_and_tables_may_have_images_of_one_name(tmp_path: Path) -> None:
    folder = tmp_path / "test" / "mine"
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        part = ("train", "val")[n % 2]
        draw(folder, f"{part}/{n // 2}.png", scene)
        with open(folder / part / "captions.csv", "a") as file:
            file.write(f"image,caption\n{n // 2}.png,{caption}\n" if n < 2 else f"{n // 2}.png,{caption}\n")
    found = load(folder).splits
    assert {split: len(found[split]) for split in SPLITS} == {"train": 6, "validation": 6, "test": 0}


def table(folder: Path, name: str, rows: list[tuple[str, ...]], header: str = "image,caption") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([header, *(",".join(row) for row in rows)]))


def splits_of(found: Any) -> dict[str, str]:
    return {c: split for split in SPLITS for e in found.splits[split] for c in e.captions}


def test_the_rows_own_word_counts_before_that_of_its_file(tmp_path: Path) -> None:
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"{n}.png", scene)
    words = ("train", "val", "test")
    rows = [(f"{n}.png", caption, words[n % 3]) for n, caption in enumerate(caption_to_scene)]
    table(tmp_path, "train_captions.csv", rows, "image,caption,split")
    expected = {caption: SPLITS[n % 3] for n, caption in enumerate(caption_to_scene)}
    assert splits_of(load(tmp_path)) == expected
    lines = [json.dumps({"image": i, "caption": c} | ({"split": s} if n else {})) for n, (i, c, s) in enumerate(rows)]
    (tmp_path / "train_captions.csv").write_text("")
    (tmp_path / "train_captions.csv").unlink()
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="1 of 12 images are in no split"):
        load(tmp_path / "captions.jsonl")


@pytest.mark.parametrize(
    "names", [("trainA", "testA"), ("x_train", "x_test"), ("traindata", "testimages"), ("train_256px", "val_256px")]
)
def test_folders_that_differ_only_in_the_split_are_splits(tmp_path: Path, names: tuple[str, str]) -> None:
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        draw(tmp_path, f"{names[n % 2]}/{n}.png", scene)
        (tmp_path / f"{names[n % 2]}/{n}.txt").write_text(caption)
    found = splits_of(load(tmp_path))
    held = {"trainA": "test", "x_train": "test", "traindata": "test"}.get(names[0], "validation")
    assert [found[c] for c in list(caption_to_scene)[1::2]] == [held] * 6
    assert held not in [found[c] for c in list(caption_to_scene)[::2]] or held == "validation"


def test_a_tests_image_that_a_table_calls_training_is_refused(tmp_path: Path) -> None:
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"test/{n}.png", scene)
    table(tmp_path, "train.csv", [(f"test/{n}.png", c) for n, c in enumerate(caption_to_scene)])
    with pytest.raises(DataError, match="is in train, but its folder says test"):
        load(tmp_path)
    table(tmp_path, "train.csv", [(f"{n}.png", c) for n, c in enumerate(caption_to_scene)])
    with pytest.raises(DataError, match="there is no image"):  # test/ has images of these names, but not these
        load(tmp_path)


def test_each_tables_images_are_looked_for_in_its_own_folder(tmp_path: Path) -> None:
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        part = ("train", "test")[n % 2]
        draw(tmp_path, f"{part}2017/{n // 2}.png", scene)
        with open(tmp_path / f"{part}.csv", "a") as file:
            file.write(("image,caption\n" if n < 2 else "") + f"{n // 2}.png,{caption}\n")
    found = load(tmp_path)
    expected = [("train", "test")[n % 2] == "test" for n in range(12)]
    assert [splits_of(found)[c] == "test" for c in caption_to_scene] == expected
    images = {c: e.image for split in SPLITS for e in found.splits[split] for c in e.captions}
    assert all(("test2017" in str(images[c])) == test for c, test in zip(caption_to_scene, expected, strict=True))


def test_a_folder_of_coco_with_its_other_annotations(tmp_path: Path) -> None:
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"{('train', 'val')[n % 2]}2017/{n}.png", scene)
    for r, part in enumerate(("train", "val")):
        images = [{"id": n, "file_name": f"{n}.png"} for n in range(r, 12, 2)]
        notes = [{"id": n, "image_id": n, "caption": list(caption_to_scene)[n]} for n in range(r, 12, 2)]
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/captions_{part}2017.json").write_text(
            json.dumps({"images": images, "annotations": notes})
        )
        boxes = [{"id": n, "image_id": n, "bbox": [0, 0, 1, 1]} for n in range(r, 12, 2)]
        (tmp_path / f"annotations/instances_{part}2017.json").write_text(
            json.dumps({"images": images, "annotations": boxes})
        )
    found = splits_of(load(tmp_path))
    assert [found[c] for c in caption_to_scene] == ["train", "validation"] * 6


@pytest.mark.parametrize("names", [("Train", "Test"), ("trainset", "heldout"), ("data/train/0", "data/test/0")])
def test_parquet_files_are_the_splits_that_they_are_called(tmp_path: Path, names: tuple[str, str]) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"images/{n}.png", scene)
    for r, name in enumerate(names):
        rows = [(f"images/{n}.png", c) for n, c in enumerate(caption_to_scene) if n % 2 == r]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(
            pyarrow.table({"image": [i for i, _ in rows], "caption": [c for _, c in rows]}),
            tmp_path / f"{name}.parquet",
        )
    found = splits_of(load(tmp_path))
    assert all((found[c] == "test") == bool(n % 2) for n, c in enumerate(caption_to_scene))


@pytest.mark.parametrize(
    "content",
    [{"images": None}, {"images": [{"id": 1, "file_name": None}], "annotations": [{"image_id": 1, "caption": "a"}]},
     {"images": [{"id": 1, "file_name": "a.png"}], "annotations": ["x"]}, {"images": [{"filename": "a", "sentences": [], "split": "train"}, "x"]}],
)  # fmt: skip
def test_json_of_another_shape_is_one_error(tmp_path: Path, content: Any) -> None:
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"c\.json"):
        load(tmp_path / "c.json")


def test_a_cell_that_is_no_path_is_one_error(tmp_path: Path) -> None:
    table(tmp_path, "c.csv", [("A" * 5000, "a dog")])
    with pytest.raises(DataError, match=r"line 2: 'A{60}' is no path"):
        load(tmp_path / "c.csv")
    assert (
        captions_in("['a dog', nan, None]") == ["a dog"] and captions_in("[nan]") == [] and captions_in("#N/A") == [""]
    )


def caption_all(folder: Path, names: dict[str, str], header: str = "image,caption", to: str = "captions.csv") -> None:
    """One drawn scene a file; `names`: where it lies -> what the table calls it."""
    rows = []
    for (file, written), (caption, scene) in zip(names.items(), caption_to_scene.items(), strict=False):
        draw(folder, file, scene)
        rows.append((written, caption))
    table(folder, to, rows, header)


@pytest.mark.parametrize("prefix", ["C:\\Users\\me\\images\\", "/content/drive/images/", "data/flickr/images/",
                                    "/data/local-files/?d=images/", "images\\"])  # fmt: skip
@pytest.mark.parametrize("inner", ["", "a/"])
def test_paths_of_another_machine_are_found_by_their_ends(tmp_path: Path, prefix: str, inner: str) -> None:
    slash = inner.replace("/", "\\") if "\\" in prefix else inner
    caption_all(tmp_path, {f"images/{inner}{n}.png": f"{prefix}{slash}{n}.png" for n in range(12)})
    for dataset in (tmp_path, tmp_path / "captions.csv"):
        found = load(dataset)
        images = {c: e.image for split in SPLITS for e in found.splits[split] for c in e.captions}
        assert images == {c: tmp_path / f"images/{inner}{n}.png" for n, c in enumerate(caption_to_scene)}


def test_what_label_studio_uploaded_and_a_table_beside_the_images_folder(tmp_path: Path) -> None:
    caption_all(tmp_path, {f"images/{n}.png": f"/data/upload/3/{n:08x}-{n}.png" for n in range(12)})
    assert sum(map(len, load(tmp_path).splits.values())) == 12
    caption_all(tmp_path / "b", {f"images/{n}.png": f"../images/{n}.png" for n in range(12)}, to="annotations/c.csv")
    assert sum(map(len, load(tmp_path / "b").splits.values())) == 12
    table(tmp_path / "b/annotations", "c.csv", [("../../captions.csv", "a dog")])
    with pytest.raises(DataError, match="lies outside"):
        load(tmp_path / "b")


def test_the_leading_folder_of_a_test_is_never_left_out(tmp_path: Path) -> None:
    caption_all(tmp_path, {f"images/{n}.png": f"/x/test/{n}.png" for n in range(12)})
    with pytest.raises(DataError, match="train 0, validation 0, test 12"):
        load(tmp_path)


@pytest.mark.parametrize("pattern", ["{}_{:04d}.png", "COCO_{}2014_{:012d}.png", "{:03d}-{}.png"])
def test_splits_in_the_names_of_flat_files(tmp_path: Path, pattern: str) -> None:
    words, parts = ("train", "val", "test"), {}
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        word = words[n % 3]
        name = pattern.format(n, word) if pattern.startswith("{:") else pattern.format(word, n)
        draw(tmp_path, name, scene)
        (tmp_path / name).with_suffix(".txt").write_text(caption)
        parts[caption] = SPLITS[n % 3]
    assert splits_of(load(tmp_path)) == parts
    draw(tmp_path, "other.png", SCENES[0])
    (tmp_path / "other.txt").write_text("something else")
    assert any("others do not (other.png)" in note for note in load(tmp_path).notes)


@given(
    suffixes=st.sampled_from([(".JPG", ".TXT"), (".png", ".TXT"), (".JPEG", ".Caption")]),
    form=st.sampled_from(["NFC", "NFD"]),
)
@FEW_EXAMPLES
def test_sidecars_in_capitals_and_in_another_spelling(
    tmp_path_factory: pytest.TempPathFactory, suffixes: tuple[str, str], form: Any
) -> None:
    folder = tmp_path_factory.mktemp("sidecars")
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        draw(folder, f"caf\u00e9{n}.png", scene)
        (folder / f"caf\u00e9{n}.png").rename(folder / f"caf\u00e9{n}{suffixes[0]}")
        (folder / unicodedata.normalize(form, f"caf\u00e9{n}{suffixes[1]}")).write_text(caption)
    assert set(splits_of(load(folder))) == set(caption_to_scene)


def test_a_detectors_boxes_beside_a_table_are_not_read(tmp_path: Path) -> None:
    caption_all(tmp_path, {f"{n}.png": f"{n}.png" for n in range(12)})
    for n in range(12):
        (tmp_path / f"{n}.txt").write_text("0 0.5 0.5 0.1 0.2\n1 0.25 0.5 1e-1 0.2\n")
    assert set(splits_of(load(tmp_path))) == set(caption_to_scene)


@given(
    before=st.sampled_from(["", "\n", "sep=;\n", "\r\n\r\n", '"sep=;"\r\n']),
    after=st.sampled_from(["", ";", ";;"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]),
)
@FEW_EXAMPLES
def test_tables_as_excel_writes_them(
    tmp_path_factory: pytest.TempPathFactory, before: str, after: str, encoding: str
) -> None:
    folder = tmp_path_factory.mktemp("excel")
    lines = [f"Image;Caption{after}"]
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        draw(folder, f"{n}.png", scene)
        lines.append(f"{n}.png;{caption} at the caf\u00e9{after}")
    (folder / "c.csv").write_bytes((before + "\r\n".join(lines)).encode(encoding))
    assert set(splits_of(load(folder / "c.csv"))) == {f"{c} at the caf\u00e9" for c in caption_to_scene}


@given(st.lists(st.integers(0, 99), min_size=3, max_size=8, unique=True), st.sampled_from(["{:03d}", "im{}", "a/b{}"]))
def test_a_quote_that_swallows_rows_without_suffixes_is_named(numbers: list[int], pattern: str) -> None:
    from blip_lite.data.sources.table import swallowed

    lines = [f"{pattern.format(n)},a dog" for n in numbers]
    cells = [pattern.format(7), "a dog\n" + "\n".join(lines) + " of 6"]
    assert swallowed(cells[1], cells, ",", 2)
    assert not swallowed("a dog,\nrunning, fast", [pattern.format(7), "a dog,\nrunning, fast"], ",", 2)


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12), min_size=1, max_size=5))
def test_other_writings_of_a_list_in_a_cell(captions: list[str]) -> None:
    captions = [f"a {caption}" for caption in captions]
    assert captions_in(repr(tuple(captions))) == captions
    assert captions_in(f"array({captions!r}, dtype=object)") == captions
    assert captions_in(json.dumps({"text": captions})) == captions
    assert captions_in("(a dog)") == ["(a dog)"] and captions_in("{a dog}") == ["{a dog}"]


@given(st.randoms())
@FEW_EXAMPLES
def test_moving_the_rows_of_a_table_moves_no_example(tmp_path_factory: pytest.TempPathFactory, rng: Any) -> None:
    folder, rows = tmp_path_factory.mktemp("rows"), []
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        draw(folder, f"{n}.png", scene)
        rows += [(f"{n}.png", caption), (f"{n}.png", f"again {caption}")]
    table(folder, "c.csv", rows)
    before = load(folder / "c.csv")
    rng.shuffle(rows)
    table(folder, "c.csv", rows)
    after = load(folder / "c.csv")
    assert before.fingerprint() == after.fingerprint()
    assert all([e.image_id for e in before.splits[s]] == [e.image_id for e in after.splits[s]] for s in SPLITS)


def test_a_row_of_a_test_file_that_says_train_is_refused(tmp_path: Path) -> None:
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"{n}.png", scene)
    table(
        tmp_path, "test.csv", [(f"{n}.png", c, "train") for n, c in enumerate(caption_to_scene)], "image,caption,split"
    )
    with pytest.raises(DataError, match="its split is train, but the file or part it is in says test"):
        load(tmp_path / "test.csv")


def test_a_shards_json_may_name_the_split(tmp_path: Path) -> None:
    expected = {}
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for n, (caption, scene) in enumerate(caption_to_scene.items()):
            draw(tmp_path, f"{n}.png", scene)
            about = json.dumps({"caption": caption, "split": ("train", "val", "test")[n % 3]})
            (tmp_path / f"{n}.json").write_text(about)
            for suffix in ("png", "json"):
                tar.add(tmp_path / f"{n}.{suffix}", f"{n}.{suffix}")
            expected[caption] = SPLITS[n % 3]
    assert splits_of(load(tmp_path / "0.tar")) == expected


def test_saved_data_sets_one_folder_down(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for name, part in (("train", list(caption_to_scene)[:9]), ("test", list(caption_to_scene)[9:])):
        for n, caption in enumerate(part):
            draw(tmp_path, f"{name}{n}.png", caption_to_scene[caption])
        rows = {"image": [{"bytes": (tmp_path / f"{name}{n}.png").read_bytes(), "path": None} for n in range(len(part))],
                "caption": part}  # fmt: skip
        datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "d" / name))
    found = splits_of(load(tmp_path / "d"))
    assert {c for c, split in found.items() if split == "test"} == set(list(caption_to_scene)[9:])


def test_captions_that_are_none_are_refused_in_training(tmp_path: Path) -> None:
    caption_all(tmp_path, {f"{n}.png": f"{n}.png" for n in range(12)})
    refuse_what_is_no_caption(load(tmp_path / "captions.csv"))
    for kind, text in (("URLs", "https://x.org/{}"), ("numbers", "0 0.5 0.{}"), ("lists", "[{{'x': {}}}]")):
        table(tmp_path, "captions.csv", [(f"{n}.png", text.format(n)) for n in range(12)])
        with pytest.raises(DataError, match=f"100% of the captions are {kind}"):
            refuse_what_is_no_caption(load(tmp_path / "captions.csv"))


def test_the_share_of_validation_is_as_asked_for() -> None:
    pictures = [Picture(name, bytes) for name in scene_ids(400, 9)]
    parts = {share: split_by_image(pictures, 42, share) for share in (0.05, 0.2)}
    for share, part in parts.items():
        assert all(abs(len(part[split]) - 400 * share) < 30 for split in ("validation", "test"))
    train = [{e.image_id for e in parts[share]["train"]} for share in (0.2, 0.05)]
    assert train[0] < train[1]  # a larger share moves nothing into training


@pytest.mark.parametrize("name", ["a.zip", "a.xlsx", "data.arrow", "a.tar.gz", "a.png"])
def test_what_is_not_read_names_its_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DataError, match="unpack it|save the sheet|save_to_disk|this is a picture"):
        load(tmp_path / name)
    if not name.endswith("png"):
        with pytest.raises(DataError, match="There are no images either.*(unpack it|save the sheet|save_to_disk)"):
            load(tmp_path)


def test_one_file_under_two_names_is_in_one_split(tmp_path: Path) -> None:
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"images/{n}.png", scene)
    captions = list(caption_to_scene)
    table(tmp_path, "train.csv", [(f"images/{n}", captions[n]) for n in range(8)])
    table(tmp_path, "test.csv", [(f"images/{n}.png", captions[n]) for n in range(7, 12)])
    with pytest.raises(DataError, match="images/7.png is in"):
        load(tmp_path)
    rows = [
        ("images/7", captions[7], "train"),
        ("images/7.png", captions[7], "test"),
        ("images/8.png", "a dog", "train"),
    ]
    table(tmp_path, "one.csv", rows, "image,caption,split")
    with pytest.raises(DataError, match="its file is that of images/7, in train"):
        load(tmp_path / "one.csv")


@pytest.mark.parametrize(
    "folder, says",
    [
        ("flowers_test", "there is no image"),
        ("test-of-mine", "there is no image"),
        ("my val part", "train 0, validation 12, test 0"),
        ("x/held_out_2/y", "train 0, validation 0, test 12"),
    ],
)
def test_a_folder_that_may_name_a_split_is_never_cut_off(tmp_path: Path, folder: str, says: str) -> None:
    caption_all(tmp_path, {f"images/{n}.png": f"/srv/{folder}/{n}.png" for n in range(12)})
    with pytest.raises(DataError, match=says):
        load(tmp_path / "captions.csv")


def test_a_text_belongs_to_the_image_that_is_called_like_it(tmp_path: Path) -> None:
    for n, name in enumerate(("A.png", "a.png", "b.png")):
        draw(tmp_path, name, SCENES[n])
    (tmp_path / "a.txt").write_text("a dog")
    (tmp_path / "B.txt").write_text("a cat")
    found = load(tmp_path)
    assert {e.image_id: e.captions for split in SPLITS for e in found.splits[split]} == {
        "a.png": ("a dog",),
        "b.png": ("a cat",),
    }


def test_long_names_in_any_script_are_one_error(tmp_path: Path) -> None:
    for name in ("\u732b" * 100, "\U0001f415" * 64, "/".join(["a" * 200] * 30)):
        table(tmp_path, "c.csv", [(name, "a dog"), (name, "a cat")])
        with pytest.raises(DataError, match="is no path|there is no image"):
            load(tmp_path / "c.csv")


def test_metadata_in_another_unicode_spelling_names_its_images(tmp_path: Path) -> None:
    names = {f"caf\u00e9{n}.png": unicodedata.normalize("NFD", f"caf\u00e9{n}.png") for n in range(12)}
    caption_all(tmp_path, names, "file_name,caption", "metadata.csv")
    found = load(tmp_path)
    assert sum(map(len, found.splits.values())) == 12 and not any("are not in metadata" in n for n in found.notes)


@pytest.mark.parametrize("place", ["images", "annotations"])
@pytest.mark.parametrize("column", ["split", "Subset", "phase", "data_split", "what it is for", "is_{}"])
def test_cocos_objects_may_name_the_split_in_any_way(tmp_path: Path, place: str, column: str) -> None:
    content: Any = {"images": [], "annotations": []}
    expected = {}
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        draw(tmp_path, f"{n}.png", scene)
        expected[caption] = SPLITS[n % 3]
        content["images"].append({"id": n, "file_name": f"{n}.png"})
        content["annotations"].append({"image_id": n, "caption": caption})
        says = {column.format(s): s == SPLITS[n % 3] for s in SPLITS} if "{}" in column else {column: SPLITS[n % 3]}
        content[place][-1].update(says)
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert splits_of(load(tmp_path / "c.json")) == expected


def put(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def as_csv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    lines = [",".join(map(str, row.values())) for row in rows]
    (folder / "c.csv").write_text("\n".join([",".join(rows[0]), *lines]))
    return folder / "c.csv"


def as_named(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "c.json").write_text(json.dumps({row["image"]: {k: row[k] for k in row if k != "image"} for row in rows}))
    return folder / "c.json"


def as_coco(folder: Path, rows: list[dict[str, Any]]) -> Path:
    images = [{"id": n, "file_name": row["image"]} for n, row in enumerate(rows)]
    notes = [{"image_id": n} | {k: row[k] for k in row if k != "image"} for n, row in enumerate(rows)]
    (folder / "c.json").write_text(json.dumps({"images": images, "annotations": notes}))
    return folder / "c.json"


def as_shard(folder: Path, rows: list[dict[str, Any]]) -> Path:
    with tarfile.open(folder / "c.tar", "w") as tar:
        for row in rows:
            (folder / "about.json").write_text(json.dumps({k: row[k] for k in row if k != "image"}))
            tar.add(folder / row["image"], row["image"])
            tar.add(folder / "about.json", row["image"].replace(".png", ".json"))
    return folder / "c.tar"


# A column, what it says of a caption that is not to be used, and of one that is.
JUDGED = [
    ("is_rejected", "true", "false"), ("Rejected?", "yes", "no"), ("is_spam", "1", "0"), ("exclude", "1", ""),
    ("approved", "no", "yes"), ("is_ok", "0", "1"), ("keep", "FALSE", "TRUE"), ("accepted", "", "x"),
    ("answer", "reject", "accept"), ("answer", "ignore", "accept"), ("status", "Rejected", "Approved"),
    ("decision", "discard", ""), ("use", "no", "yes"), ("do_not_use", "1", "0"), ("is_valid_image", "0", "1"),
    ("is_correct", "no", "yes"), ("bad caption", "x", ""), ("invalid", "TRUE", "FALSE"), ("quality", "bad", "good"),
    ("status", "deleted", "x"), ("Caption Quality", "Poor", "OK"), ("review_status", "wrong", "correct"),
    ("rating", "bad", ""),
]  # fmt: skip


@given(
    write=st.sampled_from([as_csv, as_named, as_coco, as_shard]),
    says=st.sampled_from(JUDGED),
    which=st.sets(st.integers(0, 11), min_size=1, max_size=8),
)
@FEW_EXAMPLES
def test_what_somebody_rejected_is_left_out_and_counted(
    tmp_path_factory: pytest.TempPathFactory, write: Any, says: tuple[str, str, str], which: set[int]
) -> None:
    folder, rows = tmp_path_factory.mktemp("rejected"), []
    column, bad, good = says
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        draw(folder, f"{n}.png", scene)
        rows.append({"image": f"{n}.png", "caption": caption, column: bad if n in which else good})
    found = load(write(folder, rows))
    assert set(splits_of(found)) == {c for n, c in enumerate(caption_to_scene) if n not in which}
    assert f"column {column!r}: {len(which)} captions are marked as rejected; left out" in found.notes


def test_a_column_of_splits_that_begins_with_blanks_or_late_is_not_passed_over(tmp_path: Path) -> None:
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"{n}.png", scene)
    captions = list(caption_to_scene)
    rows = [(f"{n}.png", c, "" if n < 3 else ("train", "test")[n % 2]) for n, c in enumerate(captions)]
    table(tmp_path, "c.csv", rows, "image,caption,type")
    with pytest.raises(DataError, match="line 2, column 'type': its split is ''"):
        load(tmp_path / "c.csv")
    late = [(f"{n % 12}.png", f"{captions[n % 12]} {n}", "test" if n > 58 else "photo") for n in range(60)]
    table(tmp_path, "c.csv", late, "image,caption,type")
    with pytest.raises(DataError, match="line 61: column 'type' says 'test'"):
        load(tmp_path / "c.csv")
    vehicles = [(f"{n}.png", c, ("train", "bus", "car")[n % 3]) for n, c in enumerate(captions)]
    table(tmp_path, "c.csv", vehicles, "image,caption,type")
    assert load(tmp_path / "c.csv").drawn


@pytest.mark.parametrize("column", ["kfold", "cv_fold", "train_test", "split2", "eval_only"])
def test_a_column_whose_name_is_about_splits_is_not_passed_over_in_silence(tmp_path: Path, column: str) -> None:
    rows = [(f"{n}.png", c, str(n % 5)) for n, c in enumerate(caption_to_scene)]
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"{n}.png", scene)
    table(tmp_path, "c.csv", rows, f"image,caption,{column}")
    assert any(f"column {column!r} holds '0', which names no split" in note for note in load(tmp_path / "c.csv").notes)


@pytest.mark.parametrize("above", ["", "images/"])
def test_blips_own_annotations_beside_the_images_with_those_for_evaluation(tmp_path: Path, above: str) -> None:
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        split = list(parts)[n % 3]
        name = f"{'train' if split == 'train' else 'val'}2014/{n}.png"  # COCO's val2014 holds Karpathy's test, too
        draw(tmp_path, above + name, scene)
        parts[split].append({"image": name, "caption": [caption]})
    (tmp_path / "annotation").mkdir()
    for split, rows in parts.items():
        (tmp_path / f"annotation/coco_karpathy_{split}.json").write_text(json.dumps(rows))
        if split != "train":
            scored = {"annotations": [{"image_id": 1, "caption": "a dog", "id": 1}], "images": [{"id": 1}]}
            (tmp_path / f"annotation/coco_karpathy_{split}_gt.json").write_text(json.dumps(scored))
    found = load(tmp_path)
    assert splits_of(found) == {c: SPLITS[n % 3] for n, c in enumerate(caption_to_scene)}
    assert any("names no images, left out: annotation/coco_karpathy_test_gt.json" in note for note in found.notes)
    with pytest.raises(DataError, match="its images have no file_name, as in a file for evaluation only"):
        load(tmp_path / "annotation/coco_karpathy_test_gt.json")


def test_a_json_beside_each_image_is_read_and_may_say_more(tmp_path: Path) -> None:
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        draw(tmp_path, f"train_{n}.png", scene)
        about = {"caption": caption, "subset": ("train", "test")[n % 2], "status": "rejected" if n < 2 else "ok"}
        (tmp_path / f"train_{n}.json").write_text(json.dumps(about))
    found = splits_of(load(tmp_path))
    captions = list(caption_to_scene)
    assert set(found) == set(captions[2:]) and all((found[captions[n]] == "test") == (n % 2 == 1) for n in range(2, 12))
    for n in range(12):
        (tmp_path / f"train_{n}.json").write_text(json.dumps({"imagePath": f"train_{n}.png", "shapes": []}))
    table(tmp_path, "captions.csv", [(f"train_{n}.png", c) for n, c in enumerate(captions)])
    assert set(splits_of(load(tmp_path))) == set(captions)  # LabelMe's, which are about boxes


@given(
    places=st.sampled_from(
        [("images", "json"), ("photos", "complete"), ("{}/images", "{}/annotations"), ("a/{}", "b/{}")]
    ),
    key=st.sampled_from(["caption", "captions", "short_caption"]),
    more=st.booleans(),
)
@FEW_EXAMPLES
def test_a_json_for_each_image_in_a_folder_of_their_own(
    tmp_path_factory: pytest.TempPathFactory, places: tuple[str, str], key: str, more: bool
) -> None:
    folder = tmp_path_factory.mktemp("jsons")
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        images, texts = (place.format(("train", "test", "val")[n % 3]) for place in places)
        draw(folder, f"{images}/{n}.png", scene)
        (folder / texts).mkdir(parents=True, exist_ok=True)
        about = {"image": f"{n}.png", "width": 3} if more else {}
        about[key] = [caption] if key == "captions" else caption
        (folder / texts / f"{n}.json").write_text(json.dumps(about))
    if key == "short_caption":
        with pytest.raises(DataError, match=r"json has no caption, but .*short_caption; --caption_column names"):
            load(folder)
    found = splits_of(load(folder, caption_column=key if key == "short_caption" else None))
    assert set(found) == set(caption_to_scene)
    for n, caption in enumerate(caption_to_scene) if "{}" in places[0] else ():
        assert found[caption] == ("train", "test", "validation")[n % 3]
    for path in folder.rglob("*.json"):  # LabelMe's
        path.write_text(json.dumps({"imagePath": path.with_suffix(".png").name, "shapes": []}))
    names = sorted(folder.rglob("*.png"))
    table(
        folder, "captions.csv", [(path.relative_to(folder).as_posix(), f"caption {n}") for n, path in enumerate(names)]
    )
    assert set(splits_of(load(folder))) == {f"caption {n}" for n in range(len(names))}


@given(
    value=st.sampled_from([lambda n: n, float, str, lambda n: f"{n}.png", lambda n: f"{n}%2Epng"]),
    key=st.sampled_from(["image", "image_id", "file_name"]),
)
@FEW_EXAMPLES
def test_numbers_and_escapes_that_name_files(tmp_path_factory: pytest.TempPathFactory, value: Any, key: str) -> None:
    folder = tmp_path_factory.mktemp("numbers")
    rows = [{key: value(n), "caption": caption} for n, caption in enumerate(caption_to_scene)]
    for n, scene in enumerate(SCENES):
        draw(folder, f"images/{n}.png", scene)
    (folder / "c.json").write_text(json.dumps(rows))
    assert set(splits_of(load(folder / "c.json"))) == set(caption_to_scene)


@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_texts_of_one_split_are_no_captions_of_anothers_pictures(tmp_path: Path, suffix: str) -> None:
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        draw(tmp_path, f"train/{n}.png", scene)
        (tmp_path / "val").mkdir(exist_ok=True)
        (tmp_path / f"val/{n}{suffix}").write_text(json.dumps({"caption": caption}) if suffix == ".json" else caption)
    with pytest.raises(DataError, match={".txt": "no image has a .txt", ".json": "which of"}[suffix]):
        load(tmp_path)


def test_a_json_of_another_folder_that_is_about_another_image(tmp_path: Path) -> None:
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        draw(tmp_path, f"images/{n}.png", scene)
        (tmp_path / "json").mkdir(exist_ok=True)
        (tmp_path / f"json/{n}.json").write_text(json.dumps({"image": f"{n + 1}.png", "caption": caption}))
    with pytest.raises(DataError, match=r"json/\d+.json: is about \d+.png by what it says, and about .*images/\d+.png"):
        load(tmp_path)


def test_what_is_no_utf8_is_told_with_its_words(tmp_path: Path) -> None:
    """A Czech name of Windows reads wrong as cp1252; nobody would know."""
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"{n}.png", scene)
    lines = ["image,caption", *(f"{n}.png,a dog waits in front of the Dvořák museum {n}" for n in range(len(SCENES)))]
    (tmp_path / "captions.csv").write_bytes("\n".join(lines).encode("cp1250"))
    told = [note for note in load(tmp_path / "captions.csv").notes if "is not UTF-8" in note]
    assert told and "cp1252 (Dvoøák). If that reads wrong, save it as UTF-8" in told[0]


@given(encoding=st.sampled_from(["utf-8-sig", "utf-16", "cp1252"]), end=st.sampled_from(["\n", "\r\n", "\n\n"]))
@FEW_EXAMPLES
def test_token_files_as_editors_save_them(tmp_path_factory: pytest.TempPathFactory, encoding: str, end: str) -> None:
    folder = tmp_path_factory.mktemp("token")
    for n, scene in enumerate(SCENES):
        draw(folder, f"images/{n}.png", scene)
    lines = [f"{n}.png#0\t{caption} at the caf\u00e9" for n, caption in enumerate(caption_to_scene)]
    (folder / "a.token").write_bytes((end.join(lines) + end).encode(encoding))
    assert set(splits_of(load(folder / "a.token"))) == {f"{c} at the caf\u00e9" for c in caption_to_scene}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", b"\x1f\x8b\x08\0\0", "c.csv: this is a gzip archive"),
        ("c.json", b"PK\x03\x04\xff", "c.json: this is a zip archive"),
        ("c.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer.*git lfs pull"),
        ("c.jsonl", b"<!doctype html><html>", "an HTML page"),
        ("c.csv", "image,caption\n0.png,a dog".encode("utf-32"), "it is UTF-32); save it as UTF-8"),
        ("c.csv", "image,caption\n0.png,a caf\u00e9".encode("mac_roman"), "save it as UTF-8"),
        ("c.csv", b"image^caption\n0.png^a dog", "the separator is another one"),
        ("c.csv", b"# mine\nimage,caption\n0.png,a dog", r"line 2: more fields than columns \(# mine\)"),
        ("c.ndjson", b"{}", "call it .jsonl"),
        ("c.xml", b"<a/>", "export the images' names and captions as CSV"),
    ],
)
def test_what_a_table_is_instead_is_said(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    draw(tmp_path, "0.png", SCENES[0])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message.replace("UTF-32)", r"UTF-32\)")):
        load(tmp_path / name)


@given(
    st.lists(
        st.sampled_from(["https://x.org/{}", "{}", "img/{}.jpg", "#REF!", "[{{'x': {}}}]"]), min_size=7, max_size=7
    )
)
@FEW_EXAMPLES
def test_captions_that_are_none_in_several_ways_are_counted_together(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    caption_all(folder, {f"{n}.png": f"{n}.png" for n in range(12)})
    rows = [(f"{n}.png", f'"{texts[n].format(n)}"' if n < 7 else c) for n, c in enumerate(caption_to_scene)]
    table(folder, "captions.csv", rows)
    with pytest.raises(DataError, match="58% of the captions are "):
        refuse_what_is_no_caption(load(folder / "captions.csv"))


def test_what_is_in_no_list_keeps_the_split_that_its_table_says(tmp_path: Path) -> None:
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"images/{n}.png", scene)
    captions = list(caption_to_scene)
    table(tmp_path, "train.csv", [(f"images/{n}.png", captions[n]) for n in range(9)])
    table(tmp_path, "test.csv", [(f"{n}", f"images/{n}.png") for n in range(9, 12)], "id,image")  # without captions
    for dataset in (tmp_path, tmp_path / "train.csv"):
        assert set(splits_of(load(dataset))) == set(captions[:9])
    table(tmp_path, "test.csv", [(f"{n}", f"images/{n}.png") for n in range(8, 12)], "id,image")
    with pytest.raises(DataError, match="line 10: its split is train, but the file or part it is in says test"):
        load(tmp_path)


@pytest.mark.parametrize("key", ["split", "dataset_type", "part"])
def test_json_that_says_it_is_a_test_is_not_trained_on(tmp_path: Path, key: str) -> None:
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"{n}.png", scene)
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(12)]
    notes = [{"image_id": n, "caption": c} for n, c in enumerate(caption_to_scene)]
    rows = [{"image": f"{n}.png", "caption": c} for n, c in enumerate(caption_to_scene)]
    for content in ({key: "test", "data": rows}, {"info": {key: "Test"}, "images": images, "annotations": notes}):
        (tmp_path / "c.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match="no images in train and validation .train 0, validation 0, test 12"):
            load(tmp_path / "c.json")


def test_of_several_texts_in_a_shard_the_caption_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for n, caption in enumerate(caption_to_scene):
            for end, content in ((".png", png(caption)), (".caption.txt", caption.encode()), (".tags.txt", b"1girl")):
                put(tar, f"{n}{end}", content)
    assert set(splits_of(load(tmp_path / "0.tar"))) == set(caption_to_scene)


@pytest.mark.parametrize("kind", ["tag", "part"])
def test_a_conversation_may_name_its_picture(tmp_path: Path, kind: str) -> None:
    rows = []
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        draw(tmp_path, f"images/{n}.png", scene)
        name = f"images/{n}.png"
        asked: Any = f"Picture 1: <img>{name}</img> Describe it."
        if kind == "part":
            asked = [{"type": "image", "image": name}, {"type": "text", "text": "Describe it."}]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": caption}]
        rows.append({"id": f"identity_{n}", "messages": turns})
    (tmp_path / "c.json").write_text(json.dumps(rows))
    assert splits_of(load(tmp_path / "c.json")).keys() == caption_to_scene.keys()


def test_a_file_beside_the_table_that_only_sounds_like_a_list_of_a_split_is_named(tmp_path: Path) -> None:
    caption_all(tmp_path, {f"{n}.png": f"{n}.png" for n in range(12)})
    table(tmp_path, "test_results.csv", [("0.png", "0.3")], "image,score")
    (tmp_path / "train_log.txt").write_text("epoch 1: loss 3")
    for dataset in (tmp_path, tmp_path / "captions.csv"):
        found = load(dataset)
        assert found.drawn and set(splits_of(found)) == set(caption_to_scene)
        for name in ("test_results.csv", "train_log.txt"):
            assert f"{name} is not read: it names no images of a split" in found.notes


@given(
    name=st.sampled_from([lambda n: f"{n}.png", lambda n: f"images/{n}.png", str, int]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"]),
    indent=st.sampled_from([None, 0, 2]),
)
@FEW_EXAMPLES
def test_lists_of_names_as_json_beside_texts(
    tmp_path_factory: pytest.TempPathFactory, name: Any, encoding: str, indent: int | None
) -> None:
    folder = tmp_path_factory.mktemp("names")
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        draw(folder, f"images/{n}.png", scene)
        (folder / f"images/{n}.txt").write_text(caption)
    for r, split in enumerate(("train", "val", "test")):
        (folder / f"{split}.json").write_bytes(
            json.dumps([*map(name, range(r, 12, 3))], indent=indent).encode(encoding)
        )
    assert splits_of(load(folder)) == {c: SPLITS[n % 3] for n, c in enumerate(caption_to_scene)}
    (folder / "train.json").write_text("[]")
    with pytest.raises(DataError, match="train.json is not read: it names no images of a split"):
        load(folder)


def test_a_key_of_json_that_comes_twice_is_refused(tmp_path: Path) -> None:
    """Python's own reader keeps the last of its values without a word."""
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"{n}.png", scene)
    pairs = ", ".join(f'"{n}.png": "{caption}"' for n, caption in enumerate(caption_to_scene))
    for text in (f'{{{pairs}, "3.png": "another"}}', f'{{"data": {{{pairs}, "3.png": "another"}}}}'):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(DataError, match="the key '3.png' comes twice; several captions of an image are a list"):
            load(tmp_path / "c.json")


def test_a_line_of_json_with_a_key_twice_is_named(tmp_path: Path) -> None:
    lines = [json.dumps({"image": f"{n}.png", "caption": caption}) for n, caption in enumerate(caption_to_scene)]
    for n, scene in enumerate(SCENES):
        draw(tmp_path, f"{n}.png", scene)
    lines[2] = lines[2][:-1] + ', "caption": "another"}'
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="line 3: not valid JSON .the key 'caption' comes twice"):
        load(tmp_path / "c.jsonl")


def test_several_images_of_a_sample_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for n, caption in enumerate(caption_to_scene):
            second = [(".mask.png", png(caption))] if n < 3 else []
            for end, content in [(".png", png(caption)), *second, (".txt", caption.encode())]:
                put(tar, f"{n}{end}", content)
    data = load(tmp_path / "0.tar")
    assert set(splits_of(data)) == set(caption_to_scene)
    assert "3 samples hold several images; the first of each is taken" in data.notes


@given(there=st.integers(0, 12), layout=st.sampled_from(["train/{}.png", "images/{}.png", "{}.png"]))
@FEW_EXAMPLES
def test_where_most_images_are_not_there_their_folder_is_asked_for(
    tmp_path_factory: pytest.TempPathFactory, there: int, layout: str
) -> None:
    """As of TextCaps, whose pictures are unpacked elsewhere; a few that lie about change nothing."""
    folder, rows = tmp_path_factory.mktemp("textcaps"), []
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        rows.append({"image_name": str(n), "image_path": f"train/{n}.png", "set_name": "train", "caption_str": caption})
        draw(folder, layout.format(n) if n < there else f"elsewhere/a/b/{n}.png", scene)
    (folder / "c.json").write_text(json.dumps({"dataset_type": "train", "data": rows}))
    if there == 12:
        assert set(splits_of(load(folder / "c.json"))) == set(caption_to_scene)
        return
    with pytest.raises(DataError) as refused:
        load(folder / "c.json")
    assert ("name the folder of the images with --image_root" in str(refused.value)) == (there < 6)
    assert ("--max_bad_images SHARE leaves such rows out" in str(refused.value)) == (there >= 6)


@given(
    word=st.sampled_from(
        ["rejected", "Skip", "junk", "TEST", "held out", "held-out", "photo", "train", "val", "7", "x1"]
    ),
    before=st.text(st.sampled_from(" -_.\"'(½７１1é"), max_size=3),
    after=st.text(st.sampled_from(" -_.\"')½７１1é\n"), max_size=3),
)
def test_a_lone_word_is_told_as_if_every_cell_were_read_in_full(word: str, before: str, after: str) -> None:
    cell = before + word + after
    test, rejected = SPLIT_WORDS.get(cell.strip().casefold()) == "test", plain(cell) in REJECTED
    expected = None if len(cell) > 11 else "test" if test else "rejected" if rejected else None
    assert lone_word(cell) == expected and lone_word(7) is lone_word("") is lone_word(None) is None


def twice_in_a_shard(folder: Path, said: str, text: bool) -> Path:
    """`said`: the object of the fourth sample; `text`: its caption is in a `.txt` beside it."""
    with tarfile.open(folder / "0.tar", "w") as tar:
        for n, caption in enumerate(caption_to_scene):
            about = said if n == 3 else json.dumps({"caption": caption})
            pieces = [(".png", png(caption)), (".json", about.encode()), *([(".txt", b"a dog")] if text else [])]
            for end, content in pieces:
                put(tar, f"{n}{end}", content)
    return folder / "0.tar"


def twice_in_a_cell(folder: Path, said: str, listed: bool) -> Path:
    caption_all(folder, {f"{n}.png": f"{n}.png" for n in range(12)}, to="unused.csv")
    rows = {f"{n}.png": caption for n, caption in enumerate(caption_to_scene)}
    rows["3.png"] = f"[{said}]" if listed else said
    lines = [json.dumps({"image": name, "captions": caption}) for name, caption in rows.items()]
    (folder / "c.jsonl").write_text("\n".join(lines))
    return folder / "c.jsonl"


def twice_in_what_a_name_says(folder: Path, said: str, listed: bool) -> Path:
    path = twice_in_a_cell(folder, said, listed)
    rows = map(json.loads, path.read_text().splitlines())
    (folder / "c.json").write_text(json.dumps({row["image"]: row["captions"] for row in rows}))
    return folder / "c.json"


@given(
    write=st.sampled_from([twice_in_a_shard, twice_in_a_cell, twice_in_what_a_name_says]),
    way=st.booleans(),
    key=st.sampled_from(["caption", "split", "id"]),
    deep=st.booleans(),
)
@settings(FEW_EXAMPLES, max_examples=12)
def test_a_key_that_comes_twice_in_a_shard_or_a_cell_is_refused(
    tmp_path_factory: pytest.TempPathFactory, write: Any, way: bool, key: str, deep: bool
) -> None:
    pairs = f'"{key}": "a dog", "{key}": "a cat"'
    said = f'{{"caption": "a bird", "more": {{{pairs}}}}}' if deep else f'{{"text": "a bird", {pairs}}}'
    with pytest.raises(DataError, match=f"(3|line 4).*the key '{key}' comes twice"):
        load(write(tmp_path_factory.mktemp("twice"), said, way))
    assert f"the key '{key}' comes twice" in str(wrong_with([said]))


@given(numbers=st.lists(st.uuids().map(str) | st.integers(1, 999).map(str), min_size=12, max_size=12, unique=True))
@settings(FEW_EXAMPLES, max_examples=8)
def test_the_numbered_lists_of_cub_share_the_images_out(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[str]
) -> None:
    folder, names = tmp_path_factory.mktemp("cub"), {n: f"{n % 3:03d}.A Bird/{n}_a.png" for n in range(12)}
    caption_all(folder, {f"images/{name}": name for name in names.values()})
    (folder / "images.txt").write_text("".join(f"{numbers[n]} {name}\n" for n, name in names.items()))
    (folder / "train_test_split.txt").write_text("".join(f"{numbers[n]} {int(n % 4 > 0)}\n" for n in names))
    for dataset in (folder, folder / "captions.csv"):
        found = splits_of(load(dataset))
        assert {c for c, split in found.items() if split == "test"} == set([*caption_to_scene][::4])
    (folder / "train_test_split.txt").write_text(f"{numbers[0]} 2\n")
    with pytest.raises(DataError, match="expected a number of images.txt, and 1 .training. or 0 .test."):
        load(folder)


@pytest.mark.parametrize(
    ("column", "cells", "told"),
    [
        ("quality", ["good", "bad", "medium"], "column 'quality' says 'bad', but also 'medium'; nothing is left out"),
        ("label", ["good", "bad", "good"], None),
        ("condition", ["valid", "wrong", "poor"], None),
        ("image_quality", ["good", "poor", "good"], None),
        ("rating", ["1", "0", "5"], None),
        ("use", ["kitchen", "garden", "no"], None),
    ],
)
def test_what_may_be_no_verdict_is_left_alone(tmp_path: Path, column: str, cells: list[str], told: str | None) -> None:
    rows = []
    for n, (caption, scene) in enumerate(caption_to_scene.items()):
        draw(tmp_path, f"{n}.png", scene)
        rows.append({"image": f"{n}.png", "caption": caption, column: cells[n % 3]})
    found = load(as_csv(tmp_path, rows))
    assert set(splits_of(found)) == set(caption_to_scene)
    assert [told in note for note in found.notes].count(True) == 1 if told else len(found.notes) == 1, found.notes


def test_a_verdict_that_is_not_understood_is_no_default(tmp_path: Path) -> None:
    draw(tmp_path, "0.png", SCENES[0])
    said = [*["good", "bad", ""] * 20, "so-so"]
    table(tmp_path, "c.csv", [("0.png", f"a dog {n}", word) for n, word in enumerate(said)], "image,caption,quality")
    with pytest.raises(DataError, match="line 62: column 'quality' says 'so-so', where the rows before say good or"):
        load(tmp_path / "c.csv")


@given(
    name=st.sampled_from(["valid", "is_valid", "IsValid", "Valid?"]),
    yes=st.integers(0, 60),
    order=st.randoms(),
    beside=st.sampled_from([None, "is_test", "split", "what it is for"]),
)
@settings(FEW_EXAMPLES, max_examples=40)
def test_valid_is_about_validation_or_about_what_can_be_used_or_is_asked_about(
    name: str, yes: int, order: Any, beside: str | None
) -> None:
    """Of sixty rows the first fifty are looked at before; in the end all must say the same of the column."""
    says = [n < yes for n in range(60)]
    order.shuffle(says)
    split = {"is_test": "0", "split": "train", "what it is for": "train"}
    rows = [{"image": n, name: str(said)} | ({beside: split[beside]} if beside else {}) for n, said in enumerate(says)]

    def meaning(part: list[bool]) -> str:
        few = plain(name) == "isvalid" and 3 * sum(part) <= len(part)
        return "usable" if 3 * sum(part) >= 2 * len(part) else "validation" if few else "open"

    def read() -> list[tuple[bool, str | None]]:
        marks = Marks(["image"], [], rows[:50])
        found = [(marks.is_rejected(row, "here"), marks.split(row, "here")) for row in rows]
        marks.tell()
        return found

    first = meaning(says[:50]) if plain(name) == "isvalid" else "usable"
    is_open = meaning(says) == "open" or meaning(says) != first
    if is_open and not beside:
        with pytest.raises(DataError, match="Call it `is_validation`, or `is_usable`"):
            read()
    elif beside == "is_test" or (meaning(says) == "validation" and not beside):
        assert read() == [(False, "validation" if said else "train") for said in says]
    else:
        assert read() == [(not said, "train" if beside else None) for said in says]
