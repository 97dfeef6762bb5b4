"""What `caption` is given, as people have it: nothing is lost without a word, nothing that is read is written over."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from blip_lite.captioning.command import say_faster
from blip_lite.captioning.inputs import count, expand, identity, passed_over_text
from blip_lite.captioning.journal import take_up
from blip_lite.captioning.outputs import (
    Sidecars,
    convert,
    discard,
    is_edited,
    try_to_write,
    try_to_write_page,
    write_sidecar,
)
from blip_lite.captioning.review import write_page
from blip_lite.errors import ConfigError, ImageError
from blip_lite.model.flops import bfloat16_gain
from blip_lite.processing.images import open_image
from blip_lite.processing.picture import Picture
from blip_lite.processing.progress import Progress
from conftest import ROOT

NAMES = st.text(st.characters(exclude_categories=["C"], exclude_characters="/\\\"'"), min_size=1, max_size=20)


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path, "PNG")
    return path


def ids(*arguments: Any, passed_over: Counter[str] | None = None) -> list[str]:
    return [picture.image_id for picture in expand(map(str, arguments), passed_over=passed_over)]


@given(
    names=st.lists(
        NAMES.map(str.strip).filter(lambda n: n and not n.startswith(".")), min_size=1, max_size=5, unique=True
    ),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]),
    around=st.sampled_from(["{}", '"{}"', "{}  ", "\t{}", "'{}' "]),
    end=st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lists_as_programs_write_them(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], encoding: str, around: str, end: str
) -> None:
    folder = tmp_path_factory.mktemp("list")
    paths = [str(folder / f"{name}.png") for name in names]
    (folder / "list.txt").write_bytes("".join(around.format(path) + end for path in paths).encode(encoding))
    for path in paths:
        photo(Path(path))
    assert ids(folder / "list.txt") == paths


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_standard_input_may_have_a_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    path = str(photo(tmp_path / "a.png"))
    raw = io.BufferedReader(io.BytesIO(f"{path}\r\n{path}\r\n".encode(encoding)))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw, "utf-8"))
    assert ids("-") == [path, path]


def test_lists_of_find_of_urls_and_of_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`find -print0`, `file://`, `~`: unless a file is called so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a b.png", "c.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    for text in ("a b.png\0c.png\0", f"{(tmp_path / 'a b.png').as_uri()}\n~/c.png\n"):
        (tmp_path / "list.txt").write_text(text)
        pictures = list(expand(["list.txt"]))
        assert [os.path.basename(picture.image_id) for picture in pictures] == ["a b.png", "c.png"]
        assert all(open_image(picture.open()).size == (9, 9) for picture in pictures)
    (tmp_path / "~").mkdir()
    (tmp_path / "c.png").rename(tmp_path / "~" / "c.png")
    assert [picture.image_id for picture in expand(["list.txt"])][1] == "~/c.png"


def test_archives_are_told_and_sparse_files_in_them_too(tmp_path: Path) -> None:
    passed_over: Counter[str] = Counter()
    for name in ("a.tar", "b.zip", "c.tar.gz"):
        (tmp_path / name).write_bytes(b"")
    assert not list(expand([str(tmp_path)], passed_over=passed_over))
    text = passed_over_text(passed_over)
    assert "1 .tar (name it" in text and "1 .zip (unpack it)" in text and "1 .gz (unpack it)" in text
    info = tarfile.TarInfo("d.png")
    info.size = 1024
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "d.png",
                        "GNU.sparse.realsize": "2048"}  # fmt: skip
    with tarfile.open(tmp_path / "e.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"1\n1024\n512\n".ljust(1024, b"\0")))
    (picture,) = expand([str(tmp_path / "e.tar")])
    with pytest.raises(ImageError, match="a sparse file in a tar: unpack it"):
        picture.open()


def test_folders_with_links_pipes_and_what_a_mac_leaves(tmp_path: Path) -> None:
    photo(tmp_path / "p/a.png"), photo(tmp_path / "disk/b.png"), photo(tmp_path / "p/.hidden/c.png")
    photo(tmp_path / "p/__MACOSX/d.png")
    (tmp_path / "p/._a.png").write_bytes(b"\0\5\x16\7")
    os.mkfifo(tmp_path / "p/pipe.png")
    (tmp_path / "p/2021").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/back").symlink_to(tmp_path / "p")
    (tmp_path / "p/gone.png").symlink_to(tmp_path / "nowhere.png")
    for suffix in ("heic", "HEIC", "jxl", "txt"):
        (tmp_path / f"p/x.{suffix}").write_bytes(b"x")
    over: Counter[str] = Counter()
    found = [Path(name).name for name in ids(tmp_path / "p", passed_over=over)]
    assert sorted(found) == ["a.png", "b.png", "gone.png"]
    assert over["pipes or devices"] == 1 and over[".jxl"] == 1 and ".txt" not in +over
    assert "1 .jxl" in passed_over_text(over) and "txt" not in passed_over_text(over)
    assert len(ids(tmp_path / "*")) == 6  # a pattern is two folders, and each has the other through a link


def test_a_bad_table_late_in_the_list_is_an_image_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,picture of\n1,a.png\n")
    first, last = photo(tmp_path / "a.png"), photo(tmp_path / "z.png")
    with pytest.raises(ConfigError, match="no column image"):
        ids(tmp_path / "t.csv", last)
    pictures = list(expand(map(str, (first, tmp_path / "t.csv", last))))
    assert [p.image_id for p in pictures] == [str(first), str(tmp_path / "t.csv"), str(last)]
    with pytest.raises(ImageError, match="no column image"):
        pictures[1].open()


def coloured(path: Path, colour: str, form: str = "PNG") -> Path:
    Image.new("RGB", (8, 8), colour).save(path, form)
    return path


def tar_of(shard: Path, *files: Path, mode: Literal["w", "a"] = "w") -> Path:
    with tarfile.open(shard, mode, format=tarfile.USTAR_FORMAT) as tar:
        for file in files:
            tar.add(file, file.name)
    return shard


def test_links_in_a_shard_are_pictures(tmp_path: Path) -> None:
    """Hard ones, symbolic ones, those to links, those before their picture, whether or not names begin with `./`."""
    photo(tmp_path / "m.png")
    os.link(tmp_path / "m.png", tmp_path / "n.png")
    for name, target in {
        "a.png": "m.png",
        "b.png": "a.png",
        "o.png": "./m.png",
        "p.png": "o.png",
        "q": "p.png",
    }.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "round.png").symlink_to("round.png")
    (tmp_path / "gone.png").symlink_to("../else.png")
    (tmp_path / "folder").symlink_to("/")
    for before in ("", "./"):
        with tarfile.open(tmp_path / "t.tar", "w") as tar:
            for name in ("a.png", "b.png", "m.png", "n.png", "o.png", "p.png", "q", "round.png", "gone.png", "folder"):
                tar.add(tmp_path / name, before + name)
        found = {p.image_id.rpartition("/")[2]: p for p in expand([str(tmp_path / "t.tar")])}
        for name in ("round.png", "gone.png"):
            with pytest.raises(ImageError, match="which is no picture of this tar: unpack it"):
                found.pop(name).open()
        assert sorted(found) == ["a.png", "b.png", "m.png", "n.png", "o.png", "p.png", "q"]
        assert all(open_image(p.open()).size == (8, 8) for p in found.values())


@pytest.mark.parametrize("way", ["appended", "joined by cat", "joined by cat without zeros between them"])
def test_pictures_of_one_name_in_a_shard_are_several(tmp_path: Path, way: str) -> None:
    shard = tar_of(tmp_path / "t.tar", coloured(tmp_path / "a.png", "red"))
    for colour in ("blue", "lime"):
        other = coloured(tmp_path / "a.png", colour)
        if way == "appended":
            tar_of(shard, other, mode="a")
        else:
            more = tar_of(tmp_path / "more.tar", other).read_bytes()
            data = shard.read_bytes().rstrip(b"\0") if "without" in way else shard.read_bytes()
            shard.write_bytes(data + bytes(-len(data) % 512) + more)
    found = list(expand([str(shard)]))
    assert [p.image_id.removeprefix(f"{shard}/") for p in found] == [
        "a.png", "a.png, number 2 of this name", "a.png, number 3 of this name"]  # fmt: skip
    assert [open_image(p.open()).getpixel((0, 0)) for p in found] == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]
    assert len({identity(p.image_id) for p in found}) == 3


@pytest.mark.parametrize("junk", [b"\x07" * 512, b"signature", bytes(5000) + b"x"])
def test_a_shard_with_something_else_in_it_is_an_error(tmp_path: Path, junk: bytes) -> None:
    """Behind its end, or in place of a header, behind which nothing is read."""
    files = [coloured(tmp_path / f"{name}.png", "red") for name in "abc"]
    whole = tar_of(tmp_path / "t.tar", *files).read_bytes()
    second = whole.index(b"b.png")
    for data, before in ((whole + junk, 3), (whole[:second] + junk[-1:] * 512 + whole[second + 512 :], 1)):
        (tmp_path / "t.tar").write_bytes(data)
        *found, last = expand([str(tmp_path / "t.tar")])
        assert len(found) == before
        with pytest.raises(ImageError, match=r"not a whole, uncompressed tar file \(what lies at byte \d+ is damaged"):
            last.open()


FORMS = {"TIFF": ("", ".tif_original"), "BMP": ("", ".dib"), "PNG": ("", ".jpg_large"), "GIF": ("", ".0"),
         "DDS": ("", ".dds", ".x"), "PPM": ("", ".pnm", ".x"), "ICNS": ("", ".icns", ".x"), "SGI": ("", ".sgi", ".x"),
         "JPEG2000": ("", ".jpx", ".x"), "EPS": (".eps",)}  # fmt: skip


def test_a_picture_is_read_or_counted_whatever_it_is_called_and_in_a_shard_as_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    for hidden in (".thumbs", "__MACOSX"):
        photo(folder / hidden / "a.png")
    for form, suffixes in FORMS.items():
        for suffix in suffixes:
            coloured(folder / f"{form}{suffix}", "red", form)
    for name in ("a.rar", "b.7z", "c.tar.zst", "d.pef", "e.3fr", "f.hdr"):
        (folder / name).write_bytes(b"?")
    (folder / "g").write_bytes(bytes(128) + b"DICM")
    for name, text in {
        "README": "P1 is the plan",
        "0.cls": "7",
        "BMW": "BM 3 series, and more",
        "._a.jxl": "x",
    }.items():
        (folder / name).write_text(text)
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(folder, ".")
    for argument in (folder, tmp_path / "t.tar"):
        over: Counter[str] = Counter()
        found = ids(argument, passed_over=over)
        assert sorted(map(os.path.basename, found)) == ["BMP", "GIF", "PNG", "TIFF"]
        assert +over == {".tif_original": 1, ".dib": 1, ".jpg_large": 1, ".0": 1, ".x": 5, ".dds": 1, ".pnm": 1,
                         ".icns": 1, ".sgi": 1, ".jpx": 1, ".eps": 1, "pictures without a suffix": 6, ".rar": 1,
                         ".7z": 1, ".zst": 1, ".pef": 1, ".3fr": 1, ".hdr": 1}  # fmt: skip
    assert "6 pictures without a suffix (convert them)" in passed_over_text(over)
    assert "1 .pef (convert them)" in passed_over_text(over) and "1 .zst (unpack it)" in passed_over_text(over)


def test_spellings_of_one_path_are_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "p/a.png")
    assert len({identity(name) for name in ids("p", "./p", tmp_path / "p", "p/../p/a.png")}) == 1
    (tmp_path / "o.jsonl").write_text('{"image": "p/a.png", "caption": "x"}\n{"image": "./p/a.png", "caption": "y"}')
    take_up(tmp_path / "o.jsonl")
    assert (tmp_path / "o.jsonl").read_text().count("caption") == 1


def test_a_text_beside_images_belongs_to_one_of_them_and_is_no_list_that_is_read(tmp_path: Path) -> None:
    sidecars = Sidecars(".txt", [str(tmp_path / "list.txt")])
    assert sidecars.of(Picture("a", str(tmp_path / "a.jpg"))) == tmp_path / "a.txt"
    with pytest.raises(ImageError, match="that of another image"):
        sidecars.of(Picture("a", str(tmp_path / "a.png")))
    with pytest.raises(ImageError, match="a list that is read"):
        sidecars.of(Picture("list", str(tmp_path / "list.png")))
    with pytest.raises(ImageError, match="no file"):
        sidecars.of(Picture("bytes", b""))


def test_what_is_done_with_a_text_that_is_there(tmp_path: Path) -> None:
    text = tmp_path / ("b" * 247 + ".txt")
    assert write_sidecar(text, ["one"], "skip") and not write_sidecar(text, ["two"], "skip")
    for existing, content in (("append", "one\ntwo\n"), ("prepend", "two\none\ntwo\n"), ("overwrite", "two\n")):
        assert write_sidecar(text, ["two"], existing) and text.read_text() == content
    assert list(tmp_path.iterdir()) == [text]


def test_without_a_terminal_progress_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr("blip_lite.processing.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert list(Progress(range(6), "captioned", 6)) == list(range(6))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and told[0] == "captioned: 2 of 6 images, 0.1 images/s, 1.3 min left"


def test_texts_that_are_no_utf8_are_kept_and_a_second_run_adds_nothing(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    for existing, content in (("skip", b"caf\xe9\n"), ("append", b"caf\xe9\none\n"), ("prepend", b"one\ncaf\xe9\n")):
        text.write_bytes(b"caf\xe9\n")
        assert write_sidecar(text, ["one"], existing) == (existing != "skip")
        assert not write_sidecar(text, ["one"], existing) and text.read_bytes() == content
    assert write_sidecar(text, ["one"], "overwrite") and text.read_bytes() == b"one\n"


LINE = st.text("ab ", min_size=1, max_size=3).filter(str.strip)


@given(st.lists(LINE, max_size=3), st.lists(LINE, min_size=1, max_size=2), st.sampled_from(["append", "prepend"]),
       st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())  # fmt: skip
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_text_has_each_caption_as_a_line(
    tmp_path: Path, there: list[str], captions: list[str], existing: str, end: str, ends: bool, marked: bool
) -> None:
    """Which a line that ends or begins like one is not."""
    text, mark = tmp_path / "a.txt", "\ufeff" if marked else ""
    text.write_bytes((mark + (end.join(there) + end * ends if there else "")).encode())
    known = there[-len(captions) :] if existing == "append" else there[: len(captions)]
    assert write_sidecar(text, captions, existing) == (known != captions)
    lines = text.read_text("utf-8").splitlines()
    wanted = there if known == captions else there + captions if existing == "append" else captions + there
    assert "\n".join(lines).removeprefix(mark) == "\n".join(wanted)
    assert not write_sidecar(text, captions, existing)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_no_text_is_in_two_encodings(tmp_path: Path, encoding: str) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes("Größe\r\n".encode(encoding))
    for existing in ("append", "prepend"):
        with pytest.raises(ImageError, match=r"a.txt is in UTF-16 or UTF-32.*save it as UTF-8"):
            write_sidecar(text, ["one"], existing)
    assert text.read_bytes() == "Größe\r\n".encode(encoding)
    assert write_sidecar(text, ["one"], "overwrite") and text.read_text() == "one\n"


def test_a_page_of_others_is_not_written_over(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    for others in ("my page", "<!doctype html><title>Captions</title>"):
        page.write_text(others)
        with pytest.raises(ConfigError, match=r"index.html: is a page that blip-lite did not write; choose another"):
            try_to_write_page(page)
    page.write_text("")
    try_to_write_page(page)
    for _ in range(2):
        write_page(page, [])
        try_to_write_page(page)


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_a_table_that_was_changed_is_told_from_one_that_was_not(tmp_path: Path, suffix: str) -> None:
    journal, output = tmp_path / f"o.{suffix}.jsonl", tmp_path / f"o.{suffix}"
    rows = [{"image": f"{n}.png", "caption": "a dog"} for n in range(3)]
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    convert(journal, output)
    assert not is_edited(journal, output)
    os.utime(output)
    assert not is_edited(journal, output)  # touched
    if suffix == "parquet":
        table = pyarrow.parquet.read_table(output)
        pyarrow.parquet.write_table(table, output, compression="zstd")  # by another program
        assert not is_edited(journal, output)
        corrected = table.set_column(1, "caption", pa.array(["a dog", "a cat", "a dog"]))
        for other in (table.append_column("licence", pa.array(["CC"] * 3)), corrected, pa.concat_tables([table] * 2)):
            pyarrow.parquet.write_table(other, output)
            assert is_edited(journal, output)
        output.write_bytes(b"no table")
    else:
        output.write_text(output.read_text().replace("dog", "cat"))
    assert is_edited(journal, output)


@pytest.mark.parametrize("suffix", [".jpg", ".PNG", ".heic", ".csv", ".tar", "txt", ".", "", ".a/b"])
def test_no_picture_or_table_is_written_over_by_a_text(suffix: str) -> None:
    with pytest.raises(ConfigError, match="--sidecar_suffix"):
        Sidecars(suffix, [])


def test_looking_whether_a_file_can_be_written_touches_nothing(tmp_path: Path) -> None:
    try_to_write(tmp_path / "new" / "o.jsonl")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "o.jsonl").write_text("mine")
    try_to_write(tmp_path / "o.jsonl")
    assert (tmp_path / "o.jsonl").read_text() == "mine"
    with pytest.raises(ConfigError, match="cannot be written"):
        try_to_write(tmp_path / "new")


def test_devices_links_to_nowhere_and_other_files_are_not_written_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for name, target in (("null.csv", "/dev/null"), ("loop.csv", "loop.csv"), ("far.csv", str(tmp_path / "no/x.csv"))):
        (tmp_path / name).symlink_to(target)
    for name in ("pipe.csv", "null.csv", "loop.csv", "far.csv"):
        with pytest.raises(ConfigError, match=f"{name}: cannot be written"):
            try_to_write(tmp_path / name)
    for name in ("photo.png", "captions.jsonl", "config.json", "page"):
        with pytest.raises(ConfigError, match="expected a file that ends in .html"):
            try_to_write_page(tmp_path / name)


def test_an_output_that_is_a_link_stays_one(tmp_path: Path) -> None:
    row = '{"image": "a", "caption": "x"}\n'
    (tmp_path / "disk2").mkdir()
    for name in ("o.csv", "o.csv.jsonl"):
        (tmp_path / "disk2" / name).write_text(row + '{"image": "b"')
        (tmp_path / name).symlink_to(tmp_path / "disk2" / name)
    take_up(tmp_path / "o.csv.jsonl")
    convert(tmp_path / "o.csv.jsonl", tmp_path / "o.csv")
    assert (tmp_path / "disk2/o.csv.jsonl").read_text() == row
    assert (tmp_path / "disk2/o.csv").read_text().splitlines() == ["image,caption", "a,x"]
    discard(tmp_path / "o.csv")
    assert not any((tmp_path / "disk2").iterdir()) and (tmp_path / "o.csv").is_symlink()


def test_a_path_behind_a_link_is_opened_as_written(tmp_path: Path) -> None:
    photo(tmp_path / "a.png"), photo(tmp_path / "far/away/b.png"), photo(tmp_path / "far/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/link/../a.png\n")
    [name] = ids(tmp_path / "list.txt")
    assert os.path.samefile(name, tmp_path / "far/a.png")
    assert identity(name) == str(tmp_path / "far/a.png")


@pytest.mark.parametrize(
    ("gain", "changes", "expected"),
    [
        (1.9, {}, "--dtype bfloat16 is faster"),
        (0.5, {}, ""),  # as of a Xeon that has the instructions
        (0.06, {"dtype": "bfloat16"}, "16.7 times as slowly in bfloat16 as in float32: --dtype float32 is faster"),
        (1.9, {"dtype": "bfloat16"}, ""),
        (1.9, {"output": None}, ""),
        (1.9, {"dtype": "float32"}, ""),
        (1.9, {"hidden_size": 96}, ""),
    ],
)
def test_a_long_job_says_when_this_processor_is_faster_in_the_other_type(
    gain: float,
    changes: dict[str, Any],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("blip_lite.captioning.command.bfloat16_gain", lambda _: gain)
    monkeypatch.setattr("blip_lite.model.flops.bfloat16_gain", lambda _: gain)
    asked = {"output": "captions.jsonl", "sidecar": False, "dtype": "auto", "hidden_size": 768, **changes}
    vision = SimpleNamespace(hidden_size=asked.pop("hidden_size"))
    model = SimpleNamespace(config=SimpleNamespace(vision=vision), device=SimpleNamespace(type="cpu"))
    say_faster(SimpleNamespace(**asked), SimpleNamespace(model=model), 0)  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert expected in said and bool(said) == bool(expected)


def test_the_gain_is_measured() -> None:
    vision = SimpleNamespace(image_size=64, patch_size=16, hidden_size=32, intermediate_size=64)
    assert 0 < bfloat16_gain(SimpleNamespace(config=SimpleNamespace(vision=vision))) < 1000  # type: ignore[arg-type]


def test_zeros_between_names_that_hold_a_line_end(tmp_path: Path) -> None:
    names = ["a.png", "new\nline.png", " b.png"]
    (tmp_path / "l.txt").write_text("".join(f"{photo(tmp_path / name)}\0" for name in names))
    assert ids(tmp_path / "l.txt") == [str(tmp_path / name) for name in names]


def test_pictures_without_a_usual_suffix_are_read_or_counted(tmp_path: Path) -> None:
    photo(tmp_path / "a.png").rename(tmp_path / "p-hash")
    photo(tmp_path / "a.png").rename(tmp_path / "p.jpg_large")
    (tmp_path / "README").write_text("text")
    os.mkfifo(tmp_path / "pipe")
    over: Counter[str] = Counter()
    assert ids(tmp_path, passed_over=over) == [str(tmp_path / "p-hash")]
    assert passed_over_text(over).startswith("1 .jpg_large (pictures by what they hold")


def test_other_pictures_in_a_shard_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jxl").write_bytes(b"x")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(tmp_path / "a.jxl", "a.jxl")
    over: Counter[str] = Counter()
    assert ids(tmp_path / "t.tar", passed_over=over) == [] and over[".jxl"] == 1


def test_tables_of_base64_and_lines_that_are_too_deep(tmp_path: Path) -> None:
    text = base64.b64encode(photo(tmp_path / "a.png").read_bytes()).decode()
    rows = [
        json.dumps({"image": text + " " * 300}),
        json.dumps({"image": f"data:image/png;base64,{text}"}),
        "[" * 99_999,
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    first, second, deep = expand([str(tmp_path / "t.jsonl")])
    assert [p.image_id for p in (first, second)] == [f"{tmp_path}/t.jsonl, line {n}" for n in (1, 2)]
    assert open_image(first.open()).size == open_image(second.open()).size
    with pytest.raises(ImageError, match="not valid JSON"):
        deep.open()


def parquet_of(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table({"image": ["a.png"]}), file)
    return file


@pytest.mark.parametrize(
    ("make", "argument", "what"),
    [
        (lambda t: (t / "e").mkdir(), "e", "an empty folder"),
        (lambda t: parquet_of(t / "e/x/0.parquet"), "e", "a folder with 1 .parquet: name '{t}/e/**/*.parquet'"),
        (lambda t: parquet_of(t / "e.parquet/0.parquet"), "e.parquet", "a folder with 1 .parquet: name"),
        (lambda t: (t / "e.csv").write_text("image\n"), "e.csv", "a table with no row below its header"),
        (lambda t: (t / "e.txt").write_text("\n"), "e.txt", "a list without a line"),
        (lambda t: tar_of(t / "e.tar"), "e.tar", "a tar without an image"),
        (lambda t: (t / "e").write_text("x"), "e*", "no image in the files that match"),
        (lambda t: None, "e{3..1}.tar", "counts down: write the smaller number first"),
    ],
)
def test_an_argument_that_gives_nothing_is_named(tmp_path: Path, make: Any, argument: str, what: str) -> None:
    make(tmp_path)
    empty: list[str] = []
    pictures = [str(photo(tmp_path / "p" / name)) for name in ("a.png", "b.png")]
    argument = str(tmp_path / argument)
    assert [p.image for p in expand([pictures[0], argument, pictures[1]], empty=empty)] == pictures
    assert len(empty) == 1 and empty[0].startswith(f"{argument} (") and what.format(t=tmp_path) in empty[0]


@pytest.mark.parametrize("name", ["list.txt", "no suffix"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_list_may_be_a_pipe(tmp_path: Path, name: str, encoding: str) -> None:
    os.mkfifo(tmp_path / name)
    paths = [str(photo(tmp_path / f"{i}.png")) for i in range(3)]
    text = "".join(f"{path}\n" for path in paths).encode(encoding)
    writer = threading.Thread(target=(tmp_path / name).write_bytes, args=(text,), daemon=True)
    writer.start()
    found = subprocess.run(  # another process, as what hangs cannot be ended in this one
        [sys.executable, "-c", "import sys; from blip_lite.captioning.inputs import count, expand; a = sys.argv[1:]\n"
         "assert count(a) is None; print(*(p.image for p in expand(a)), sep='\\n')", str(tmp_path / name)],
        capture_output=True, text=True, timeout=60, cwd=ROOT,
    )  # fmt: skip
    assert found.stdout.splitlines() == paths, found.stderr


def test_a_name_that_no_file_can_have_is_an_image_that_cannot_be_had() -> None:
    names = [f"https://example.org/{'a' * 300}", "b" * 300, "c\0"]
    assert [p.image_id for p in expand(names, allow_urls=True)] == names and count(names) == 3


def test_a_table_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(ConfigError, match=r"t.csv: a pipe.* Write it into a file"):
        ids(tmp_path / "t.csv")


@pytest.mark.parametrize("pattern", ["{}*.{}", "{}{{0..1}}.{}", "{}[01].{}"])
@pytest.mark.parametrize("suffix", ["tar", "csv", "parquet", "jsonl", "txt", "png"])
def test_quoted_patterns_of_whatever_is_read(tmp_path: Path, pattern: str, suffix: str) -> None:
    for n in range(2):
        one = photo(tmp_path / "p" / f"{n}.png")
        match suffix:
            case "tar":
                tar_of(tmp_path / f"{n}.tar", one)
            case "parquet":
                pyarrow.parquet.write_table(pa.table({"image": [str(one)]}), tmp_path / f"{n}.parquet")
            case "png":
                photo(tmp_path / f"{n}.png")
            case _:
                lines = {"csv": f"image\n{one}\n", "jsonl": json.dumps({"image": str(one)}), "txt": str(one)}
                (tmp_path / f"{n}.{suffix}").write_text(lines[suffix])
    argument = pattern.format(f"{tmp_path}/", suffix)
    assert [os.path.basename(name) for name in ids(argument)] == ["0.png", "1.png"]
    literal = photo(tmp_path / os.path.basename(argument)) if suffix == "png" else None
    assert literal is None or ids(argument) == [argument]  # a file is called so


def test_home_is_understood_in_whatever_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    one = photo(tmp_path / "p" / "0.png")
    (tmp_path / "l.txt").write_text(f"{one}\n"), tar_of(tmp_path / "t.tar", one)
    assert ids("~/p", "~/p/*.png", "~/p/{0..0}.png", "~/p/0.png", "~/l.txt") == [str(one)] * 5
    assert ids("~/t.tar") == [f"{tmp_path}/t.tar/0.png"]


def test_a_pattern_is_no_way_round_what_protects_a_list(tmp_path: Path) -> None:
    (tmp_path / "0.txt").write_text(str(photo(tmp_path / "0.png")))
    with pytest.raises(ImageError, match="is a list that is read"):
        Sidecars(".txt", [str(tmp_path / "*.txt")]).of(Picture("0", str(tmp_path / "0.png")))
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n"), (tmp_path / "good.csv").write_text("image\n0.png\n")
    pictures = list(expand([str(tmp_path / "0.png"), str(tmp_path / "*.csv")]))
    assert [os.path.basename(p.image_id) for p in pictures] == ["0.png", "bad.csv", "0.png"]
    with pytest.raises(ConfigError, match=r"2.csv: there is no such file"):
        ids(tmp_path / "{2..3}.csv")


@pytest.mark.parametrize("column", [None, "0.png"])
@pytest.mark.parametrize(
    ("text", "says"),
    [("0.png\n1.png\n", "a line `image` before it, or rename it to .txt"),
     ("0.png,a dog\n1.png,a cat\n", "a line of names before it, `image` above"), ("http://x.org/a?b\nc\n", "a line `image`")],
)  # fmt: skip
def test_a_table_without_a_header_is_told(tmp_path: Path, text: str, says: str, column: str | None) -> None:
    (tmp_path / "t.csv").write_text(text)
    if column and column not in text:
        return
    with pytest.raises(ConfigError, match=f"t.csv: has no header, its first line names .*{says}"):
        list(expand([str(tmp_path / "t.csv")], image_column=column))
