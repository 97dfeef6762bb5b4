"""What `caption.py` may be given, and the files it writes."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from blip_lite.captioning import inputs, outputs
from blip_lite.captioning.inputs import count, expand
from blip_lite.captioning.journal import Seen, key_of
from blip_lite.data.sources.table import captions_in, read_table
from blip_lite.errors import ImageError
from blip_lite.processing.images import open_image
from blip_lite.processing.picture import Picture
from test_bulk import caption, images_in, photos  # noqa: F401


def names(*arguments: str, **options: object) -> list[str]:
    return [source.image_id for source in expand(arguments, **options)]  # type: ignore[arg-type]


def colour(picture: Picture) -> tuple[int, ...]:
    return open_image(picture.open()).getpixel((0, 0))  # type: ignore[return-value]


def test_folders_lists_patterns_and_standard_input(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    found = names(str(photos))
    assert [Path(n).name for n in found] == [*(f"{i}.png" for i in (0, 2, 4, 6, 8)), "broken.jpg", *(f"{i}.png" for i in (1, 3, 5, 7))]  # fmt: skip
    (photos / "list.txt").write_text("a b.jpg\n\nc.png\n")
    assert names(str(photos / "list.txt"), "x.jpg") == ["a b.jpg", "c.png", "x.jpg"]
    assert names(str(photos / "**" / "[13].png")) == [str(photos / "b" / "1.png"), str(photos / "b" / "3.png")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("p.jpg\r\nq.jpg"))
    assert names("-") == ["p.jpg", "q.jpg"]
    for missing in ("nowhere.txt", "nowhere.csv"):  # said before the first image
        with pytest.raises(ValueError, match="there is no such file"):
            next(expand([str(photos), missing]))
    assert count([str(photos)]) == 10 and count(["-"]) is None and count(["nowhere.txt"]) is None


def test_tables_of_paths_bytes_and_urls(photos: Path, tmp_path: Path) -> None:  # noqa: F811
    table = photos / "table.csv"
    table.write_text("file_name,note\n0.png,x\nb/1.png,y\n,nothing\n")
    found = list(expand([str(table)]))
    assert [s.image_id for s in found] == [str(photos / "0.png"), str(photos / "b" / "1.png"), f"{table}, line 4"]
    assert [colour(s) for s in found[:2]] == [(0, 90, 200), (25, 90, 180)]
    with pytest.raises(ImageError, match="no image in column file_name"):
        found[2].open()
    (photos / "table.jsonl").write_text(json.dumps({"shot": str(photos / "2.png")}) + "\n")
    with pytest.raises(ValueError, match=r"no column image; there are: shot. Name it with --image_column"):
        names(str(photos / "table.jsonl"))
    assert [colour(s) for s in expand([str(photos / "table.jsonl")], image_column="shot")] == [(50, 90, 160)]

    cells = [{"bytes": (photos / "0.png").read_bytes(), "path": None}, {"bytes": None, "path": "b/3.png"}, None]
    pyarrow.parquet.write_table(pa.table({"image": cells, "other": [1, 2, 3]}), photos / "t.parquet")
    found = list(expand([str(photos / "t.parquet")]))
    assert [s.image_id for s in found] == [
        f"{photos / 't.parquet'}, row 0",
        str(photos / "b" / "3.png"),
        f"{photos / 't.parquet'}, row 2",
    ]
    assert [colour(s) for s in found[:2]] == [(0, 90, 200), (75, 90, 140)]
    (tmp_path / "torn.parquet").write_bytes((photos / "t.parquet").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"torn.parquet: cannot be read as Parquet"):
        names(str(tmp_path / "torn.parquet"))
    with pytest.raises(ValueError, match="there is no such file"):
        names("nowhere.csv")


def reason(picture: Picture) -> str:
    with pytest.raises(ImageError) as error:
        picture.open()
    return str(error.value)


def test_what_is_wrong_with_one_does_not_end_the_others(
    photos: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = ['{"image": "0.png"}', '{"image": ', "[1]", '{"image": "\\ud800.png"}', '{"image": "2.png"}']
    (photos / "t.jsonl").write_text("\n".join(lines))
    first, torn, number, lone, last = expand([str(photos / "t.jsonl")])
    assert colour(first) == (0, 90, 200) and colour(last) == (50, 90, 160) and key_of(lone.image_id)
    assert "not valid JSON" in reason(torn) and torn.image_id.endswith("t.jsonl, line 2")
    assert "expected an object" in reason(number)
    with pytest.raises(ImageError, match="cannot be decoded"):
        open_image(lone.open())
    (photos / "t.csv").write_bytes(b"image,caption\n0.png,two, fields\ncaf\xe9.png,x\n2.png,x\n")
    found = list(expand([str(photos / "t.csv")]))
    assert [colour(found[0]), colour(found[2])] == [(0, 90, 200), (50, 90, 160)] and "caf\udce9.png" in found[
        1
    ].image_id
    (photos / "list.txt").write_bytes(b"caf\xe9.png\n")
    assert names(str(photos / "list.txt")) == ["caf\udce9.png"]
    (nothing,) = expand([str(photos / "*.webp")])
    assert reason(nothing) == "no file matches this pattern"

    scandir = os.scandir

    def locked(path: str) -> object:
        if path.endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    *_, folder = expand([str(photos)])
    assert folder.image_id == str(photos / "b") and reason(folder) == "a folder that cannot be read (Permission denied)"


def test_two_tables_may_name_their_images_alike(hf_dir: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (9, 9), (200 * (folder == "a"), 9, 9)).save(tmp_path / folder / "1.png")
        (tmp_path / folder / "metadata.csv").write_text("file_name\n1.png\n")
    tables = [str(tmp_path / folder / "metadata.csv") for folder in ("a", "b")]
    assert caption(hf_dir, *tables, "--output", str(tmp_path / "out.jsonl")).returncode == 0
    assert images_in(tmp_path / "out.jsonl") == [str(tmp_path / f / "1.png") for f in ("a", "b")]


@pytest.mark.slow
def test_memory_does_not_grow_with_a_list(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"/photos/{i // 1000:04d}/{i:09d}.jpg\n" for i in range(200_000)))
    seen = Seen()
    tracemalloc.start()
    assert all(seen.add(source.image_id) for source in expand([str(tmp_path / "list.txt")]))
    assert tracemalloc.get_traced_memory()[1] < 20e6  # 8 bytes each, and the last 65,536 as Python's numbers
    tracemalloc.stop()


def test_urls_only_when_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("https://example.org/a.jpg\n")
    with pytest.raises(ValueError, match="--allow_urls"):
        names("https://example.org/a.jpg")
    (refused,) = expand([str(tmp_path / "list.txt")])
    with pytest.raises(ImageError, match="--allow_urls"):
        refused.open()
    (tmp_path / "list.txt").write_text("https://example.org/a.txt?w=1\n")
    for argument in ("https://example.org/a.txt?w=1", str(tmp_path / "list.txt")):
        monkeypatch.setattr(inputs, "fetch_again", lambda url: url.encode())
        (picture,) = expand([argument], allow_urls=True)
        assert (
            picture.image_id == "https://example.org/a.txt?w=1" and picture.open() == b"https://example.org/a.txt?w=1"
        )


def test_shards(photos: Path, tmp_path: Path) -> None:  # noqa: F811
    for shard in range(2):
        with tarfile.open(tmp_path / f"s-{shard}.tar", "w") as tar:
            for i in range(2):
                tar.add(photos / f"{4 * shard + 2 * i}.png", f"x/{i}.png")
                tar.addfile(tarfile.TarInfo(f"x/{i}.json"), io.BytesIO(b""))
    whole = (tmp_path / "s-1.tar").read_bytes()
    (tmp_path / "s-2.tar").write_bytes(whole[:700])
    found = list(expand([str(tmp_path / "s-{0..3}.tar")]))
    assert [s.image_id for s in found[:4]] == [f"{tmp_path}/s-{n}.tar/x/{i}.png" for n in (0, 1) for i in (0, 1)]
    assert [colour(s)[0] for s in found[:4]] == [0, 50, 100, 150]
    for picture in found[4:]:  # a torn shard, and one that is not there
        with pytest.raises(ImageError):
            open_image(picture.open())
    assert found[-1].image_id == f"{tmp_path}/s-3.tar"


@pytest.mark.long
def test_formats(hf_dir: Path, photos: Path, tmp_path: Path) -> None:  # noqa: F811
    for suffix in (".csv", ".parquet", ".json"):
        output = tmp_path / f"out{suffix}"
        done = caption(hf_dir, str(photos), "--output", str(output), "--num_captions", "2", "--scores")
        assert done.returncode == 1 and "9 images captioned, 1 failed" in done.stderr, done.stderr
        journal = [json.loads(line) for line in (tmp_path / f"out{suffix}.jsonl").read_text().splitlines()]
        if suffix == ".json":
            ids = {row["image_id"]: row["caption"] for row in json.loads(output.read_text())}
            # broken.jpg is left out, so that all names are numbers
            assert (
                ids == {int(Path(r["image"]).stem): r["caption"][0] for r in journal if r["caption"]} and len(ids) == 9
            )
        elif suffix == ".csv":
            rows = list(csv.DictReader(output.read_text().splitlines()))
            assert [captions_in(r["caption"]) for r in rows if not r["error"]] == [
                r["caption"] for r in journal if r["caption"]
            ]
            assert [row["image"] for _, row in read_table(output)] == [r["image"] for r in journal]
        else:
            table = pyarrow.parquet.read_table(output)
            assert [
                {k: v for k, v in r.items() if v is not None or k == "caption"} for r in table.to_pylist()
            ] == journal
    again = caption(hf_dir, str(photos), "--output", str(tmp_path / "out.csv"))
    assert "has 10 images already, 1 of them failed" in again.stderr and again.returncode == 1
    (tmp_path / "mine.csv").write_text("image,caption\n")
    refused = caption(hf_dir, str(photos), "--output", str(tmp_path / "mine.csv"))
    assert refused.returncode == 2 and "mine.csv.jsonl" in refused.stderr
    assert caption(hf_dir, str(photos), "--output", str(tmp_path / "out.xls")).returncode == 2


def test_ids_of_coco_results(tmp_path: Path) -> None:
    journal = tmp_path / "j.jsonl"

    def ids(*images: str) -> list[object]:
        journal.write_text("".join(json.dumps({"image": i, "caption": "x"}) + "\n" for i in images))
        outputs.convert(journal, tmp_path / "j.json")
        return [row["image_id"] for row in json.loads((tmp_path / "j.json").read_text())]

    assert ids("a/COCO_val2014_000000391895.jpg", "12.png") == [391895, 12]
    assert ids("a/b_1.jpg", "c.png") == ["b_1", "c"]
    assert ids("a/c.jpg", "c.png") == ["a/c.jpg", "c.png"]
    assert ids() == []


@pytest.mark.long
def test_sidecars(hf_dir: Path, photos: Path) -> None:  # noqa: F811
    (photos / "0.txt").write_text("mine")
    done = caption(hf_dir, str(photos), "--sidecar", "--num_captions", "2")
    assert done.returncode == 1 and (photos / "0.txt").read_text() == "mine"
    assert len((photos / "b" / "1.txt").read_text().splitlines()) == 2 and not (photos / "broken.txt").exists()
    before = (photos / "2.txt").stat().st_mtime_ns
    assert caption(hf_dir, str(photos), "--sidecar").returncode == 1 and (photos / "2.txt").stat().st_mtime_ns == before
    assert caption(hf_dir, str(photos), "--sidecar", "--overwrite").returncode == 1
    assert (photos / "0.txt").read_text() != "mine" and len((photos / "2.txt").read_text().splitlines()) == 1
    # where the image is no file, there is no beside
    pyarrow.parquet.write_table(pa.table({"image": [(photos / "0.png").read_bytes()]}), photos / "t.parquet")
    assert "--sidecar" in caption(hf_dir, str(photos / "t.parquet"), "--sidecar").stderr


def test_gallery(hf_dir: Path, photos: Path, tmp_path: Path) -> None:  # noqa: F811
    for output in ([], ["--output", str(tmp_path / "out.jsonl")]):
        page = tmp_path / "page.html"
        done = caption(hf_dir, str(photos), "--html", str(page), "--scores", *output)
        text = page.read_text()
        assert done.returncode == 1 and text.count("data:image/jpeg") == 9 and "error: not a JPEG" in text
        assert text.count("score -") == 9 and text.count("<article") == 10
    assert images_in(tmp_path / "out.jsonl") == [s.image_id for s in expand([str(photos)])]
