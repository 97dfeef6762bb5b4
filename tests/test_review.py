"""The page to correct captions: its table is a data set, nothing that was decided is lost, and keys and clicks do it."""

from __future__ import annotations

import csv
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from blip_lite.captioning.inputs import in_folder
from blip_lite.captioning.journal import to_line
from blip_lite.captioning.review import Review, items_of, one_line, read_captions, wrong_with
from blip_lite.cli import main
from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from blip_lite.errors import CheckpointError, ConfigError, DataError
from blip_lite.processing.picture import Picture
from blip_lite.reports.review import review_page
from conftest import ROOT, free_port, load

HOSTILE = "</script><script>document.title='hit'</script> \"quoted\" 'it' 🐕 & <b>"


def write_captions(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "captions.jsonl"
    path.write_text("".join(map(to_line, rows)), "utf-8")
    return path


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Twelve captioned scenes: a flagged one, a hostile one, two alike, an empty one, one that could not be read."""
    (tmp_path / "photos").mkdir()
    rows = []
    for number, scene in enumerate(scene_ids(12, 5)):
        draw_scene(scene, 32).save(tmp_path / "photos" / f"{number:02d}.png")
        row = {"image": f"photos/{number:02d}.png", "caption": scene_captions(scene)[0], "score": -0.1 - number / 100}
        rows.append(row)
    rows[4]["review"] = ["star"]
    rows[5]["caption"] = HOSTILE
    rows[6]["caption"] = rows[7]["caption"]
    rows[8]["caption"] = ""
    rows[9] = {"image": "photos/09.png", "caption": None, "error": "not an image"}
    return write_captions(tmp_path, rows)


def keys(job: Review) -> dict[str, str]:
    return {Path(item.picture.image_id).name: item.key for item in job.items}


# The table


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    names=st.lists(
        st.one_of(st.text(max_size=12), st.binary(max_size=8).map(os.fsdecode), st.sampled_from(["a,b", 'c"d', " e", "f\\g", "C:h", "x?d=y", "nan", "-", "é", "e\u0301"])),
        min_size=2, max_size=5,
    ),
    texts=st.lists(st.one_of(st.text(min_size=1, max_size=30), st.sampled_from(["none", "['a']", "a, \"b\"", "=1+1", "+1 a", "-b", "@c", "2"])), min_size=5, max_size=5),
    elsewhere=st.booleans(),
)  # fmt: skip
def test_what_is_approved_is_what_training_reads(names: list[str], texts: list[str], elsewhere: bool) -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        table = folder / ("other" if elsewhere else "") / "reviewed.csv"
        table.parent.mkdir(exist_ok=True)
        (folder / "photos").mkdir()
        for number, name in enumerate(names):
            file = folder / "photos" / (re.sub(r"[\0/]", "_", name) + f"{number}.png")
            try:
                Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "PNG")
            except (OSError, UnicodeEncodeError):  # a name that no file can have
                assume(False)
        pictures = list(in_folder(str(folder / "photos"), Counter()))
        rows = [{"image": os.path.relpath(str(p.image), path), "caption": "a dog"} for p in pictures]
        assume(rows)
        expected: dict[bytes, list[str]] = {}
        with Review(write_captions(folder, rows), table) as job:
            for item, text in zip(job.items, texts, strict=False):
                assert bool(item.problem) == bool(re.search(r"[\r\n]", str(item.picture.image)))
                caption = [line for line in [one_line(text)] if line]
                if item.problem or wrong_with(caption):
                    with pytest.raises(ConfigError):
                        job.decide(item.key, "approved", [text])
                else:
                    job.decide(item.key, "approved", [text])
                    expected[Path(str(item.picture.image)).read_bytes()] = caption
            then = job.then()
        assume(len(expected) > 1)
        root = {"image_root": str(folder / "photos")} if elsewhere else {}
        assert ("--image_root" in then) == elsewhere
        data = load(table, **root)
        found = {Path(str(p.image)).read_bytes(): list(p.captions) for part in data.splits.values() for p in part}
        assert found == expected


def test_rejected_pictures_are_not_trained_on_and_are_counted(captions: Path, tmp_path: Path) -> None:
    output = tmp_path / "reviewed.csv"
    with Review(captions, output) as job:
        by_name = keys(job)
        job.decide(by_name["00.png"], "approved", ["a dog", "a brown dog"])  # two captions of one picture
        job.decide(by_name["01.png"], "rejected", [])
        job.decide(by_name["02.png"], "approved", ["a cat"])
        job.decide(by_name["03.png"], "approved", ["undone"])
        job.decide(by_name["03.png"], "", [])
        assert job.progress() == "2 of 11 approved, 1 rejected"
        with pytest.raises(ConfigError, match="no such picture"):
            job.decide(by_name["09.png"], "approved", ["a dog"])  # it could not be read
    data = load(output)
    assert sorted(p.captions for part in data.splits.values() for p in part) == [("a cat",), ("a dog", "a brown dog")]
    assert any("1 captions are marked as rejected; left out" in note for note in data.notes)


def test_the_doubtful_come_first_and_a_table_is_read_like_lines(captions: Path, tmp_path: Path) -> None:
    items = read_captions(captions)
    doubts = {Path(i.picture.image_id).name: i.doubts for i in items if i.doubts}
    assert doubts == {
        "04.png": ["star"],
        "06.png": ["2 pictures have this caption"],
        "07.png": ["2 pictures have this caption"],
        "08.png": ["empty caption"],
        "10.png": ["score in the lowest tenth"],
        "11.png": ["score in the lowest tenth"],
    }
    first = [Path(i.picture.image_id).name for i in sorted(items, key=lambda i: i.order)]
    assert set(first[:6]) == set(doubts) and first[0] == "11.png" and first[-1] == "09.png"

    from blip_lite.captioning.outputs import to_csv

    to_csv(captions, tmp_path / "captions.csv")
    for one, other in zip(items, read_captions(tmp_path / "captions.csv"), strict=True):
        assert (one.key, one.machine, one.score, one.doubts, one.problem) == (other.key, other.machine, other.score, other.doubts, other.problem)  # fmt: skip


def test_what_is_no_file_of_captions_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"a.txt": "x", "b.jsonl": '{"image_id": 1}\n', "c.jsonl": "", "d.csv": "image,caption\nnowhere.png,a dog\n", "e.jsonl": "{\n{}\n"}  # fmt: skip
    for name, text in bad.items():
        (tmp_path / name).write_text(text)
        assert main(["review", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {tmp_path / name}")
    assert main(["review", str(tmp_path / "missing.csv")]) == 2 and "missing.csv" in capsys.readouterr().err


def test_no_name_in_a_csv_is_a_formula_and_captions_are_word_for_word(tmp_path: Path) -> None:
    from blip_lite.captioning.outputs import to_csv

    for number, name in enumerate(names := ["=1.png", "+1.png", "-1.png", "@1.png", "\t1.png", "1.png"]):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name)
    rows = [{"image": name, "caption": f"{name[0]}1 dog"} for name in names]
    to_csv(write_captions(tmp_path, rows), tmp_path / "captions.csv")
    with open(tmp_path / "captions.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["image"] for row in found] == [f"./{name}" for name in names[:-1]] + ["1.png"]
    assert [row["caption"] for row in found] == [row["caption"] for row in rows]
    with Review(tmp_path / "captions.csv", tmp_path / "reviewed.csv") as job:
        for item in job.items:
            job.decide(item.key, "approved", item.captions)
    with open(tmp_path / "reviewed.csv", newline="") as file:
        assert not [row for row in csv.DictReader(file) if row["image"][0] in "=+-@\t"]
    data = load(tmp_path / "reviewed.csv")
    said = {Path(str(p.image)).name: p.captions[0] for part in data.splits.values() for p in part}
    assert said == {name: one_line(f"{name[0]}1 dog") for name in names}


@pytest.mark.parametrize("column", ["is_rejected", "Is Rejected"])
def test_a_judgement_that_is_not_understood_is_an_error(column: str, captions: Path, tmp_path: Path) -> None:
    def rows(*words: str) -> Path:
        table = tmp_path / "table.csv"
        cells = "".join(f"photos/{number:02d}.png,dog {number},{word}\n" for number, word in enumerate(words))
        table.write_text(f"image,caption,{column}\n{cells}")
        return table

    data = load(rows("TRUE", "VRAI", "1", "", "no", "FALSO"))
    assert sorted(c for part in data.splits.values() for p in part for c in p.captions) == ["dog 3", "dog 4", "dog 5"]
    with pytest.raises(DataError, match=rf"line 3: column {column} says 'perhaps'; expected true or false"):
        load(rows("false", "perhaps"))


# Nothing is lost, nothing of others is written over


def test_the_files_of_others_stay(captions: Path, tmp_path: Path) -> None:
    output = tmp_path / "reviewed.csv"
    output.write_text("image,caption\nmine.png,my own\n")
    with pytest.raises(ConfigError, match=r"is no table of `review`, and reviewed.csv.jsonl, from which"):
        Review(captions, output)
    assert output.read_text() == "image,caption\nmine.png,my own\n" and not (tmp_path / "reviewed.csv.jsonl").exists()


WORDS = st.text(min_size=1, max_size=12) | st.sampled_from(["=1+1", "+a", "-b;c", "@c", 'a, "b"', "café 🐕", "2"])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["change", "delete", "reject", "approve", "note"]), WORDS),
        max_size=6,
    ),
    columns=st.permutations(["image", "caption", "is_rejected", "machine_caption", "note", ""]),
    delimiter=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    words=st.sampled_from([("true", "false"), ("TRUE", "FALSE"), ("WAHR", "FALSCH"), ("1", "")]),
    told=st.booleans(),
)  # fmt: skip
def test_what_a_person_changed_in_the_table_is_taken(
    edits: list[Any], columns: list[str], delimiter: str, encoding: str, newline: str, words: Any, told: bool
) -> None:
    """In whatever form a spreadsheet saves it; nothing of it is lost, and training reads both forms alike."""
    with tempfile.TemporaryDirectory() as path:
        table = Path(path) / "reviewed.csv"
        for number in range(6):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(Path(path) / f"{number}.png")
        captions = write_captions(Path(path), [{"image": f"{n}.png", "caption": f"machine {n}"} for n in range(6)])
        with Review(captions, table) as job:
            for number in range(4):
                job.decide(job.items[number].key, "rejected" if number == 3 else "approved", [f"person {number}"])
        rows = {row["image"]: {**row, "note": "", "": ""} for row in csv.DictReader(table.open())}
        for number, what, text in edits:
            name, text = f"{number}.png", one_line(text)
            row = {"image": name, "caption": "new", "machine_caption": "", "is_rejected": "false", "note": "", "": ""}
            if what == "delete":
                rows.pop(name, None)
            elif what == "change" and not wrong_with([text]):
                rows.setdefault(name, row)["caption"] = text
            elif what == "note":
                rows.setdefault(name, row)["note"] = text
            elif what in ("reject", "approve"):
                rows.setdefault(name, row)["is_rejected"] = str(what == "reject").lower()
        assume(rows and not any(text in cell for row in rows.values() for cell in row.values() for text in '"'))
        with open(table, "w", encoding=encoding, newline="") as file:
            file.write(f"sep={delimiter}{newline}" if told else "")
            writer = csv.DictWriter(file, columns, delimiter=delimiter, lineterminator=newline)
            writer.writeheader()
            for row in rows.values():
                writer.writerow({**row, "is_rejected": words[row["is_rejected"] == "false"]})
        left = {name: (row["caption"], row["is_rejected"], row["note"]) for name, row in rows.items()}
        trained = [(p.image_id, p.captions) for split in load(table).splits.values() for p in split] if trainable(left) else None  # fmt: skip
        for _ in range(2):  # the second time it is our own
            with Review(captions, table) as job:
                status = {item.name: (item.status, item.captions) for item in job.items}
            with open(table, encoding="utf-8", newline="") as file:
                found = {row["image"]: (row["caption"], row["is_rejected"], row.get("note", "")) for row in csv.DictReader(file)}  # fmt: skip
            assert found == left
        assert job.remark == ""
        for name, (said, now) in status.items():
            expected = left.get(name, (f"machine {name[0]}", None, ""))
            assert (said, now) == ({"true": "rejected", "false": "approved", None: ""}[expected[1]], [expected[0]])
        if trained:
            assert trained == [(p.image_id, p.captions) for split in load(table).splits.values() for p in split]


def trainable(rows: dict[str, tuple[str, str, str]]) -> bool:
    return sum(rejected == "false" for _, rejected, _ in rows.values()) > 1


HEAD = "image,caption,is_rejected,machine_caption\r\n"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (HEAD + "00.png,a dog,false,m\r\n00.png,a dog,true,m\r\n", "line 3: 00.png is rejected here and approved in .*line 2"),
        (HEAD + "0O.png,a dog,false,m\r\n", "line 2: there is no picture '0O.png'.*Mend the name"),
        (HEAD + ",a dog,false,m\r\n", "line 2: there is no picture ''"),
        (HEAD + "00.png,,false,m\r\n", "line 2: an approved picture needs a caption.*delete the row"),
        (HEAD + "00.png,...,false,m\r\n", "line 2: '...' has no letter"),
        (HEAD + "00.png,a dog,maybe,m\r\n", "line 2: column is_rejected says 'maybe'; expected true or false"),
        (HEAD + "00.png,a dog,false,a cow\r\n", "line 2: machine_caption is what the model had said, 'm'"),
        (HEAD + "00.png,#NAME?,false,m\r\n", "line 2: the spreadsheet took a caption for a formula"),
        (HEAD + "01.png,2,false,m\r\n", "line 2: the spreadsheet took '=1[+]1' for a formula, and made it '2'"),
        (HEAD + "00.png,? caf\u00e9,false,m\r\n", "line 2: the spreadsheet made '. caf\u00e9' of .*UTF-8"),
        (HEAD + "00.png,ðŸ\x90• cafÃ©,false,m\r\n", "line 2: the spreadsheet made .*UTF-8"),
        (HEAD + "00.png,a dog, a cow,false,m\r\n", "line 2: more fields than columns"),
        (HEAD + '00.png,"a dog,false,m\r\n', "line 2: a quotation mark opens here"),
        ("image,caption,is_rejected,machine_caption,\r\n00.png,a dog,false,m,mine\r\n", "'mine' stands in a column without"),
        ("image,caption\r\n00.png,a dog\r\n", "no column is_rejected, but some"),
        ("image,text,is_rejected\r\n00.png,a dog,\r\n", "no column caption; there are: image, text, is_rejected"),
        (HEAD, "has no rows any more"),
        ("", "has no rows any more"),
    ],
)  # fmt: skip
def test_what_could_mean_several_things_is_one_error(table: str, told: str, tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"0{number}.png")
    captions = write_captions(tmp_path, [{"image": f"0{n}.png", "caption": "m"} for n in range(3)])
    output, journal = tmp_path / "reviewed.csv", tmp_path / "reviewed.csv.jsonl"
    with Review(captions, output) as job:
        job.decide(keys(job)["00.png"], "approved", ["🐕 café"])
        job.decide(keys(job)["01.png"], "approved", ["=1+1"])
        job.decide(keys(job)["02.png"], "rejected", [])
    output.write_bytes(table.encode())
    before = journal.read_bytes()
    with pytest.raises(DataError, match=rf"{re.escape(str(output))}.*{told}"):
        Review(captions, output)
    assert output.read_bytes() == table.encode() and journal.read_bytes() == before


def test_a_table_that_is_edited_while_the_page_is_open(captions: Path, tmp_path: Path) -> None:
    output = tmp_path / "reviewed.csv"
    with Review(captions, output, ".txt") as job:
        by_name = keys(job)
        job.decide(by_name["00.png"], "approved", ["a dog"])
        job.decide(by_name["01.png"], "approved", ["a cat"])
        head, first, _ = output.read_text().splitlines()
        output.write_text(f"{head}\n{first.replace('a dog', 'a wolf')}\nphotos/03.png,a fox,,\n")
        remark = job.decide(by_name["02.png"], "approved", ["a cow"])
        assert remark.startswith("reviewed.csv was edited by hand: 1 changed, 1 added, 1 removed. Reload")
        assert [row["caption"] for row in csv.DictReader(output.open())] == ["a wolf", "a fox", "a cow"]
        texts = {path.stem: path.read_text() for path in (tmp_path / "photos").glob("*.txt")}
        assert texts == {"00": "a wolf\n", "02": "a cow\n", "03": "a fox\n"}
        output.write_text(output.read_text().replace("a fox", "..."))
        with pytest.raises(DataError, match=r"line 3: '\.\.\.' has no letter"):
            job.decide(by_name["04.png"], "approved", ["a hen"])
        assert "..." in output.read_text()  # as it was, until it is mended
        output.write_text(output.read_text().replace("...", "a vixen"))
        job.decide(by_name["04.png"], "approved", ["a hen"])
        assert [row["caption"] for row in csv.DictReader(output.open())] == ["a wolf", "a cow", "a vixen", "a hen"]


def test_what_another_window_decided_is_not_lost_unseen(captions: Path, tmp_path: Path) -> None:
    with Review(captions, tmp_path / "reviewed.csv") as job:
        key = keys(job)["00.png"]
        seen = ["", *job.by_key[key].machine]
        assert job.decide(key, "approved", ["a dog"], seen) == ""
        assert job.decide(key, "approved", ["a dog"], seen) == "", "the same word again, as after a lost answer"
        remark = job.decide(key, "rejected", [], seen)
        assert "another window had approved: photos/00.png, 'a dog'. Reload this page" in remark
        assert job.decide(key, "", [], ["rejected", *job.by_key[key].machine]) == "", "it was seen"


def test_the_last_row_that_was_deleted_stays_deleted(captions: Path, tmp_path: Path) -> None:
    """Byte for byte it is the table of before; so it is when a process was killed before it could write the row."""
    output = tmp_path / "reviewed.csv"
    with Review(captions, output) as job:
        for name in ("00.png", "01.png"):
            job.decide(keys(job)[name], "approved", ["a dog"])
    lines = output.read_bytes().splitlines(keepends=True)
    for later, left in ((-(10**9), 2), (10**9, 1)):  # nanoseconds
        output.write_bytes(b"".join(lines[:2]))
        time = (tmp_path / "reviewed.csv.jsonl").stat().st_mtime_ns + later
        os.utime(output, ns=(time, time))
        with Review(captions, output) as job:
            assert len(job.decided) == left


def test_a_table_without_its_journal_is_gone_on_with(captions: Path, tmp_path: Path) -> None:
    """As a page that was downloaded made it."""
    (tmp_path / "reviewed.csv").write_text('"image","caption","is_rejected","machine_caption"\r\n"photos/00.png","a dog","false","m"\r\n')  # fmt: skip
    with Review(captions, tmp_path / "reviewed.csv") as job:
        assert job.remark == "reviewed.csv was edited by hand: 1 added" and job.progress().startswith("1 of 11")
    (tmp_path / "reviewed.csv").unlink()
    with Review(captions, tmp_path / "reviewed.csv") as job:
        assert job.progress().startswith("1 of 11") and (tmp_path / "reviewed.csv").exists()


def test_sidecars(captions: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    machine = json.loads(captions.read_text("utf-8").splitlines()[1])["caption"]
    (photos / "01.txt").write_text(machine + "\n")  # of `caption --sidecar`
    (photos / "02.txt").write_text("somebody else's\n")
    with Review(captions, tmp_path / "reviewed.csv", ".txt") as job:
        by_name = keys(job)
        assert (
            job.decide(by_name["00.png"], "approved", ["a dog"]) == "" and (photos / "00.txt").read_text() == "a dog\n"
        )
        job.decide(by_name["01.png"], "rejected", [])
        assert not (photos / "01.txt").exists()
        assert "stays as it is" in job.decide(by_name["02.png"], "approved", ["a dog"])
        assert (photos / "02.txt").read_text() == "somebody else's\n"
    (photos / "00.txt").unlink()  # as if killed before it was written
    with Review(captions, tmp_path / "reviewed.csv", ".txt") as job:
        assert (photos / "00.txt").read_text() == "a dog\n"
        job.decide(keys(job)["00.png"], "approved", ["two dogs"])
        assert (photos / "00.txt").read_text() == "two dogs\n"


@contextmanager
def served(captions: Path, output: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the address that it prints."""
    command = [sys.executable, "-m", "blip_lite", "review", str(captions), "--output", str(output), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=captions.parent, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    try:
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        yield process, next(found[0] for line in lines if (found := re.search(r"http://\S+", line)))
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def ask(url: str, path: str = "", body: Any = None, **headers: str) -> tuple[int, bytes]:
    host, _, token = url.removeprefix("http://").rstrip("/").partition("/")
    connection = http.client.HTTPConnection(host, timeout=20)
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    kinds = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    connection.request("GET" if body is None else "POST", f"/{token}/{path}", data, kinds)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_the_server_saves_survives_a_kill_and_refuses_strangers(captions: Path, tmp_path: Path) -> None:
    output = tmp_path / "reviewed.csv"
    by_name = {Path(i.picture.image_id).name: i.key for i in read_captions(captions)}

    def decided(name: str, status: str = "approved", text: str = "a dog") -> dict[str, Any]:
        return {"key": by_name[name], "status": status, "captions": [text]}

    with served(captions, output) as (process, url):
        assert ask(url, "decide", decided("00.png"))[0] == 200
        assert ask(url, "decide", decided("01.png", "rejected"))[0] == 200
        process.kill()
    assert len(list(csv.DictReader(output.open()))) == 2
    with open(tmp_path / "reviewed.csv.jsonl", "ab") as journal:  # killed while it wrote
        journal.write(b'{"status": "appro')
    port = free_port()
    with served(captions, output, "--port", str(port)) as (process, url):
        status, page = ask(url)
        assert status == 200 and url.startswith(f"http://127.0.0.1:{port}/")
        assert page.count(b'data-status="approved"') == 1 and page.count(b'data-status="rejected"') == 1
        assert ask(url, f"picture/{by_name['00.png']}")[1][:3] == b"\xff\xd8\xff"
        assert ask(url, f"picture/{by_name['00.png']}x")[0] == 404 and ask(url, "../captions.jsonl")[0] == 404
        with pytest.raises(CheckpointError, match="is being written by another process"):
            Review(captions, output)
        # strangers
        body = decided("02.png")
        assert (
            ask(url[:-5] + "x/", "decide", body)[0] == 403 and ask(f"http://127.0.0.1:{port}", "decide", body)[0] == 403
        )
        assert ask(url, "decide", body, Origin="https://evil.example")[0] == 403
        assert ask(url, "decide", body, Origin="null")[0] == 403
        assert ask(url, Host=f"evil.example:{port}")[0] == 403
        # nonsense
        assert ask(url, "decide", body, Content_Type="text/plain")[0] == 404
        assert (
            ask(url, "decide", b"{" * 10_000)[0] == 400 and ask(url, "decide", b"x", Content_Length="2000000")[0] == 413
        )
        assert ask(url, "decide", {**body, "status": "maybe"})[0] == 400
        for text in ("...", "none", "['a']"):
            assert ask(url, "decide", decided("02.png", text=text))[0] == 400
        assert len(list(csv.DictReader(output.open()))) == 2
        assert ask(url, "decide", decided("02.png"), Origin=f"http://127.0.0.1:{port}")[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.stdout
        last = process.stdout.read()
        assert process.wait(10) == 0 and "2 of 11 approved, 1 rejected" in last
        assert f"blip-lite train --dataset {output} --model CHECKPOINT" in last
    assert [row["is_rejected"] for row in csv.DictReader(output.open())] == ["false", "true", "false"]


def test_it_starts_without_torch(captions: Path, tmp_path: Path) -> None:
    """Which takes seconds to import, and is for models."""
    code = (
        "import sys; from pathlib import Path; from blip_lite.cli import main; from blip_lite.captioning import review_server\n"
        "review_server.serve = lambda job, port: (job.page(), review_server.small(job.items[0].picture.open(), 9999))\n"
        "for more in ([], ['--html', 'page.html']):\n    assert main(['review', 'captions.jsonl', *more]) == 0\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


def test_a_full_disk_loses_no_decision(captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Review(captions, tmp_path / "reviewed.csv") as job:
        job.decide(keys(job)["00.png"], "approved", ["a dog"])

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(os, "fsync", full)
            job.decide(keys(job)["01.png"], "approved", ["a cat"])
        job.decide(keys(job)["02.png"], "approved", ["a cow"])
    with Review(captions, tmp_path / "reviewed.csv") as job:
        assert [one.captions for one in job.decided.values()] == [["a dog"], ["a cow"]]


# The page


def test_a_page_of_a_thousand_pictures_is_below_10_mb(tmp_path: Path) -> None:
    noise = Image.effect_noise((200, 150), 90).convert("RGB")  # worse than a photograph
    noise.save(tmp_path / "noise.jpg", quality=90)
    rows = []
    for number in range(1001):
        os.link(tmp_path / "noise.jpg", tmp_path / f"{number:04d}.jpg")
        rows.append(
            {"image": f"{number:04d}.jpg", "caption": f"a long caption of a picture of noise, the number {number}"}
        )
    captions = write_captions(tmp_path, rows)
    assert main(["review", str(captions), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("data:image/jpeg") == 1000 and len(page.encode()) < 10e6 and "The others are left out" in page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of blip_lite[dev]")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,800"):
        options.add_argument(argument)
    downloads = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.downloads = downloads
    yield chrome
    chrome.quit()


def press(browser: Any, *typed: str) -> None:
    for key in typed:
        browser.switch_to.active_element.send_keys(key)


def here(browser: Any) -> str:
    """The name of the picture on which the focus is."""
    return Path(browser.execute_script("return document.activeElement.closest('.card').dataset.name")).name


def wait_for(browser: Any, text: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 10).until(lambda b: b.find_element("id", "progress").text == text)


def test_keys_and_clicks_in_one_offline_file(browser: Any, captions: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    page = tmp_path / "page.html"
    assert main(["review", str(captions), "--html", str(page)]) == 0
    browser.get(page.as_uri())
    assert browser.title == "Correct captions"  # and not what the hostile caption wanted
    assert not re.search(r'(?:src|href)="(?!data:)', page.read_text("utf-8"))
    order = [i.name for i in sorted(read_captions(captions), key=lambda i: i.order)]
    names = [Path(name).name for name in order]
    assert here(browser) == names[0] == "11.png"
    press(browser, "j", "j", "k")
    assert here(browser) == names[1]
    press(browser, "a")
    assert here(browser) == names[2]  # the next one
    press(browser, "x")
    wait_for(browser, "1 of 11 approved, 1 rejected")
    press(browser, "u", Keys.ARROW_DOWN)
    wait_for(browser, "1 of 11 approved, 0 rejected")
    press(browser, Keys.ARROW_UP, Keys.ARROW_DOWN, "e", " and more", Keys.ESCAPE)
    assert here(browser) == names[3] and "and more" not in browser.switch_to.active_element.text
    press(browser, Keys.ENTER, " and “more”, 🐕", Keys.ENTER)
    wait_for(browser, "2 of 11 approved, 0 rejected")
    # no caption of nothing
    Select(browser.find_element("id", "filter")).select_by_value("doubtful")
    empty = browser.find_element("css selector", '[data-name$="08.png"]')
    empty.find_element("css selector", "[data-do=approve]").click()
    assert "A caption needs words." in empty.text
    press(browser, "null", Keys.ENTER)
    assert "as no caption" in empty.text
    press(browser, Keys.ESCAPE)
    empty.find_element("css selector", "[data-do=reject]").click()
    wait_for(browser, "2 of 11 approved, 1 rejected")
    Select(browser.find_element("id", "filter")).select_by_value("edited")
    assert browser.find_element("id", "count").text == "1 of 12 images"
    Select(browser.find_element("id", "filter")).select_by_value("approved")
    browser.find_element("id", "find").send_keys(Keys.ESCAPE)
    assert here(browser) == names[1]
    press(browser, "j", "x")  # it leaves the filter, and its neighbour is next
    assert here(browser) == names[1]
    press(browser, "u")
    Select(browser.find_element("id", "filter")).select_by_value("all")
    browser.find_element("css selector", '[data-name$="05.png"] [data-do=approve]').click()  # the hostile one
    browser.refresh()  # what was decided is kept
    wait_for(browser, "3 of 11 approved, 1 rejected")
    browser.find_element("id", "download").click()
    table = browser.downloads / "reviewed.csv"
    WebDriverWait(browser, 10).until(lambda _: table.exists() and table.stat().st_size)  # it begins empty
    shutil.move(table, tmp_path / "reviewed.csv")
    with open(tmp_path / "reviewed.csv", encoding="utf-8", newline="") as file:
        rows = {Path(row["image"]).name: row for row in csv.DictReader(file)}
    assert rows["05.png"]["caption"] == rows["05.png"]["machine_caption"] == HOSTILE
    assert rows[names[3]]["caption"].endswith("and “more”, 🐕") and rows["08.png"]["is_rejected"] == "true"
    data = load(tmp_path / "reviewed.csv")
    assert {Path(p.image_id).name: p.captions[0] for part in data.splits.values() for p in part} == {
        name: row["caption"] for name, row in rows.items() if row["is_rejected"] == "false"
    }


@pytest.mark.long
def test_keys_save_through_the_server(browser: Any, captions: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    output = tmp_path / "reviewed.csv"

    def rows() -> list[tuple[str, str]]:
        with open(output, encoding="utf-8", newline="") as file:
            return [(row["caption"], row["is_rejected"]) for row in csv.DictReader(file)]

    with served(captions, output, "--port", str(port := free_port())) as (process, url):
        browser.get(url)
        assert browser.execute_script("return [...document.images].every(i => i.naturalWidth > 0 || !i.complete)")
        press(browser, "e", Keys.END, " here", Keys.ENTER, "x", "x", "u")
        WebDriverWait(browser, 10).until(lambda _: output.exists() and len(rows()) == 2)
        assert rows()[0][0].endswith(" here") and rows()[1][1] == "true"
        browser.find_element("id", "download").click()
        WebDriverWait(browser, 10).until(
            lambda _: [f for f in browser.downloads.glob("reviewed*.csv") if f.stat().st_size]
        )
        [downloaded] = browser.downloads.glob("reviewed*.csv")
        read = [list(csv.reader(path.read_text("utf-8").splitlines())) for path in (downloaded, output)]
        assert read[0][0] == read[1][0] and sorted(read[0]) == sorted(read[1])  # in another order
        process.kill()
        process.wait()
        press(browser, "x")
        WebDriverWait(browser, 10).until(lambda b: "1 not saved" in b.find_element("id", "problem").text)
    assert len(rows()) == 2
    with served(captions, output, "--port", str(port)) as (_, url):
        WebDriverWait(browser, 10).until(lambda b: "started anew" in b.find_element("id", "problem").text)
        browser.get("about:blank")
        browser.get(url)
        wait_for(browser, "1 of 11 approved, 1 rejected")
        names = [Path(item.name).name for item in sorted(read_captions(captions), key=lambda item: item.order)]
        assert here(browser) == names[2]  # where it stopped
        first = browser.current_window_handle
        browser.switch_to.new_window("tab")  # a second person
        browser.get(url)
        press(browser, "e", "a cat", Keys.ENTER)  # the model had no caption for it
        WebDriverWait(browser, 10).until(lambda _: len(rows()) == 3)  # saved
        browser.switch_to.window(first)
        press(browser, "x", "x")
        wait_for(browser, "1 of 11 approved, 3 rejected")
        WebDriverWait(browser, 10).until(  # it is said, and it stays
            lambda b: len(rows()) == 4 and "another window had approved" in b.find_element("id", "problem").text
        )
        browser.refresh()
        wait_for(browser, "1 of 11 approved, 3 rejected")  # the last word on each


def test_paths_of_the_file_are_from_where_it_is(captions: Path, tmp_path: Path) -> None:
    for folder, name, root in ((tmp_path, "photos/00.png", False), (tmp_path / "pages", str(tmp_path / "photos/00.png"), True)):  # fmt: skip
        assert main(["review", str(captions), "--html", str(folder / "page.html")]) == 0
        page = (folder / "page.html").read_text("utf-8")
        assert f'data-name="{name}"' in page and ("--image_root" in page) == root
    (tmp_path / "file").touch()
    assert main(["review", str(captions), "--html", str(tmp_path / "file" / "page.html")]) == 2


def test_names_and_captions_are_texts_on_the_page(tmp_path: Path) -> None:
    name = str(tmp_path / "<img src=x onerror=alert(1)>'\".png")
    row = {"image": name, "caption": HOSTILE, "review": ["<i>"]}
    page = review_page(items_of([(Picture(name, name), row)], tmp_path), "cmd", folder="</code><script>")
    assert (
        "<img src=x" not in page
        and "<i>" not in page
        and page.count("</script>") == 1
        and "</code><script>" not in page
    )


def test_nothing_else_is_raised_where_data_are_odd(captions: Path, tmp_path: Path) -> None:
    text = captions.read_text("utf-8")
    captions.write_text(text + text.splitlines()[0] + "\n", "utf-8")
    with pytest.raises(DataError, match="is there twice"):
        read_captions(captions)
    captions.write_text(text + '{"image": "photos/1', "utf-8")  # a job that was killed
    assert len(read_captions(captions)) == 12
    with pytest.raises(ConfigError, match="expected another file that ends in .csv"):
        Review(captions, captions.with_suffix(".txt"))
