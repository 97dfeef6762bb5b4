"""Many files -> captions: killed and started again, every image once."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip_lite.captioner import Captioner
from blip_lite.captioning import command
from blip_lite.captioning.bulk import caption_files
from blip_lite.captioning.inputs import expand
from blip_lite.captioning.journal import Seen, read_journal, take_up
from blip_lite.cli import main
from blip_lite.processing.picture import Picture
from blip_lite.storage import lock
from conftest import ROOT, free_port

OPTIONS = ["--num_beams", "1", "--max_new_tokens", "6", "--batch_size", "2"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for i in range(9):
        Image.new("RGB", (40, 30), (25 * i, 90, 200 - 20 * i)).save(folder / ("b" if i % 2 else "") / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.md").write_text("not an image")
    return folder


def caption(hf_dir: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "caption.py"), *arguments, "--ckpt", str(hf_dir), *OPTIONS]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, **options
    )  # type: ignore[call-overload, no-any-return]


def images_in(path: Path) -> list[str]:
    return [json.loads(line)["image"] for line in path.read_text("utf-8").splitlines()]


@pytest.mark.long
def test_what_is_there_is_not_done_again(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    assert caption(hf_dir, str(photos), "--output", str(whole)).returncode == 1  # one is broken
    lines = whole.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:4]) + lines[4][:10])  # killed while it wrote the fifth
    done = caption(hf_dir, str(photos), "--output", str(output))
    assert output.read_text() == whole.read_text() and "has 4 images already" in done.stderr
    assert done.returncode == 1 and "6 images captioned, 0 failed" not in done.stderr
    # a mended image is tried again only when asked
    Image.new("RGB", (9, 9)).save(photos / "broken.jpg")
    assert caption(hf_dir, str(photos), "--output", str(output)).returncode == 1
    again = caption(hf_dir, str(photos), "--output", str(output), "--retry_failed")
    assert again.returncode == 0, again.stderr
    assert sorted(images_in(output)) == sorted(images_in(whole)) and '"error"' not in output.read_text()
    assert caption(hf_dir, str(photos / "0.png"), "--output", str(output), "--overwrite").returncode == 0
    assert images_in(output) == [str(photos / "0.png")]


@pytest.mark.long
def test_killed_at_any_moment_each_image_is_written_once(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    output, rng = tmp_path / "out.jsonl", random.Random(0)
    many = tmp_path / "many.txt"
    names = [picture.image_id for picture in expand([str(photos)])]
    copies = tmp_path / "copies"
    copies.mkdir()
    for i in range(60):
        (copies / f"{i:03d}{Path(names[i % 10]).suffix}").symlink_to(names[i % 10])
    many.write_text("\n".join(picture.image_id for picture in expand([str(copies)])))
    command = [sys.executable, str(ROOT / "caption.py"), str(many), "--output", str(output), "--ckpt", str(hf_dir), *OPTIONS]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(3):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
            before = output.stat().st_size if output.is_file() else 0
            while process.poll() is None and not (output.is_file() and output.stat().st_size > before):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
    subprocess.run(command, capture_output=True, env=environment)
    assert images_in(output) == many.read_text().splitlines()


def test_another_file_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"file_name": "a.jpg"}\n')
    with pytest.raises(ValueError, match=r"other.jsonl, line 1: not a line of captions"):
        list(read_journal(tmp_path / "other.jsonl"))
    for text in ('{"file_name": "a.jpg"}\n', '{"file_name": "a.jpg"}'):  # the second is no line cut by a kill
        (tmp_path / "other.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"other.jsonl, line 1: not a line of captions"):
            take_up(tmp_path / "other.jsonl", anew=True)
        assert (tmp_path / "other.jsonl").read_text() == text


def test_what_several_processes_left_becomes_one_journal(tmp_path: Path) -> None:
    def lines(*names: str) -> str:
        return "".join(json.dumps({"image": n, "caption": n.upper()}) + "\n" for n in names)

    journal = tmp_path / "out[1].jsonl"
    journal.write_text(lines("a", "b"))
    (tmp_path / "out[1].jsonl.rank-0").write_text(lines("b", "c"))  # merged already when it was killed
    (tmp_path / "out[1].jsonl.rank-1").write_text(lines("d") + '{"image": "e", "capt')
    take_up(journal)
    assert journal.read_text() == lines("a", "b", "c", "d") and list(tmp_path.iterdir()) == [journal]


def test_overwrite_forgets_what_a_killed_process_left_and_two_do_not_write_at_once(
    hf_dir: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    for name in ("out.csv", "out.csv.jsonl", "out.csv.jsonl.rank-1"):
        (tmp_path / name).write_text('{"image": "old", "caption": "x"}\n')
    command = (hf_dir, str(photos / "0.png"), "--output", str(output), "--overwrite")
    with lock(output, tmp_path / ".out.csv.lock"):
        refused = caption(*command)  # type: ignore[arg-type]
        assert refused.returncode == 2 and "out.csv is being written by another process" in refused.stderr
    assert caption(*command).returncode == 0  # type: ignore[arg-type]
    assert images_in(tmp_path / "out.csv.jsonl") == [str(photos / "0.png")]


@pytest.mark.long
def test_nothing_is_deleted_before_the_command_is_seen_to_be_right(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "report.xlsx").write_text("mine")
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": str(photos / "0.png"), "caption": None}) + "\n")
    before = (tmp_path / "list.jsonl").read_text()
    for output, arguments, told in [
        ("report.xlsx", [str(photos)], "expected a file that ends in .jsonl"),
        ("list.jsonl", [str(photos), "--num_workers", "0"], "must be at least 1"),
        ("list.jsonl", [str(photos), "--do_sample", "--top_p", "2"], "top_p"),
        ("list.jsonl", [str(tmp_path / "list.jsonl")], "is read, it cannot be written at the same time"),
        ("list.jsonl", ["nowhere.csv"], "there is no such file"),
        ("list.jsonl", [str(tmp_path / "empty")], "no images in"),
        ("list.jsonl", [str(photos), "--prompt", "a " * 70], "the model has 64 positions"),
    ]:
        done = caption(hf_dir, *arguments, "--output", str(tmp_path / output), "--overwrite")
        assert done.returncode == 2 and told in done.stderr, done.stderr
    assert (tmp_path / "report.xlsx").read_text() == "mine" and (tmp_path / "list.jsonl").read_text() == before


def test_rows_of_a_table_that_was_changed_since(
    hf_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures that a table holds have no names but their rows' numbers."""
    table, output = tmp_path / "t.jsonl", tmp_path / "o.jsonl"
    texts = [base64.b64encode(path.read_bytes()).decode() for path in sorted(photos.glob("*.png"))[:2]]
    table.write_text("".join(json.dumps({"image": f"data:image/png;base64,{text}"}) + "\n" for text in texts))
    line = [
        "caption",
        str(table),
        "--ckpt",
        str(hf_dir),
        "--device",
        "cpu",
        "--num_beams",
        "1",
        "--output",
        str(output),
    ]
    told = "2 of them are known by their rows' numbers alone, in a table that was changed since"
    for change in (lambda: None, lambda: os.utime(table, (2e9, 2e9))):
        assert main(line) == 0 and told not in capsys.readouterr().err
        change()
    assert main(line) == 0 and told in capsys.readouterr().err
    assert main([*line, "--overwrite"]) == 0 and told not in capsys.readouterr().err


@pytest.mark.parametrize("away", [Path.unlink, lambda path: path.rename(path.with_name("moved.jsonl"))])
def test_a_journal_that_was_taken_away_is_told(
    hf_dir: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    away: Any,
) -> None:
    """The captions after that would go into a file that nobody finds."""
    original, calls = command.to_line, []

    def takes_away(row: dict[str, Any]) -> str:
        calls.append(row)
        if len(calls) == 2:
            away(tmp_path / "o.jsonl")
        return original(row)

    monkeypatch.setattr(command, "to_line", takes_away)
    line = ["caption", str(photos), "--ckpt", str(hf_dir), "--device", "cpu", "--output", str(tmp_path / "o.jsonl")]
    assert main([*line, "--num_beams", "1"]) == 3
    told = f"{tmp_path / 'o.jsonl'} was moved or deleted while it was written; the same command"
    assert told in capsys.readouterr().err and len(calls) == 2


def test_a_breakdown_is_not_a_bad_image(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: object) -> int:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(command, "run", broken)
    assert main(["caption", "a.jpg", "--output", "o.jsonl"]) == 3


@pytest.mark.long
def test_sidecars_of_a_journal(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    """Written in the end, from the journal: what was captioned by an earlier run, perhaps killed, gets its text too."""
    output = tmp_path / "out.jsonl"
    (photos / "2.txt").write_text("mine\n")
    assert caption(hf_dir, str(photos / "b"), "--output", str(output)).returncode == 0
    done = caption(hf_dir, str(photos), "--output", str(output), "--sidecar")
    rows = {Path(row["image"]).name: row["caption"] for _, row in read_journal(output)}
    captioned = {row["image"]: row["caption"] for _, row in read_journal(output) if row["caption"]}  # none is empty
    written = len(captioned) - (str(photos / "2.png") in captioned)  # it has a text
    assert done.returncode == 1 and f"{written} .txt files written" in done.stderr, done.stderr
    assert (photos / "b" / "1.txt").read_text() == rows["1.png"] + "\n" and (photos / "2.txt").read_text() == "mine\n"
    # without a journal: an image that is no file of its own is one that fails
    table = tmp_path / "t.csv"
    table.write_text(f'image\n{photos / "0.png"}\n""\n')
    done = caption(hf_dir, str(table), "--sidecar", "--overwrite")
    assert done.returncode == 1 and "1 image captioned, 1 failed" in done.stderr, done.stderr


@pytest.mark.slow
def test_several_processes_killed_and_another_number_goes_on(hf_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(200):
        Image.new("RGB", (40, 30), (i, 90, 200)).save(tmp_path / "photos" / f"{i:03d}.png")
    (tmp_path / "photos" / "broken.png").write_text("no image")
    output, rng = tmp_path / "out.jsonl", random.Random(0)
    command = [sys.executable, str(ROOT / "caption.py"), str(tmp_path / "photos"), "--ckpt", str(hf_dir), *OPTIONS, "--output", str(output)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}

    def captioned() -> int:
        return len({row["image"] for path in tmp_path.glob("out.jsonl*") for _, row in read_journal(path, whole=False)})

    counts = [0]
    for processes in (2, 3, 2, 1):
        world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [
            subprocess.Popen(
                [*command, "--retry_failed"],
                stderr=subprocess.DEVNULL,
                env=environment | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(processes)
        ]
        while all(rank.poll() is None for rank in ranks) and captioned() < counts[-1] + 10:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        for rank in ranks:
            rank.kill()
            rank.wait()
        counts.append(captioned())
    assert counts[-1] < 201 and sorted(set(counts)) == counts, counts  # each was killed in the middle
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "200 images captioned, 1 failed" in done.stderr, done.stderr
    assert sorted(images_in(output)) == sorted(str(path) for path in (tmp_path / "photos").iterdir())


def test_names_are_remembered_in_8_bytes_each() -> None:
    seen = Seen()
    assert all(seen.add(f"photo {i}") for i in range(150_000)) and not any(
        seen.add(f"photo {i}") for i in range(150_000)
    )
    assert len(seen) == 150_000 and len(seen.old) > 130_000 and "photo 150000" not in seen


def test_the_model_does_not_wait_for_a_slow_file(hf_dir: Path, photos: Path) -> None:
    captioner = Captioner.from_pretrained(hf_dir, "cpu")
    served = threading.Event()

    def slow() -> bytes:
        assert served.wait(60)
        return (photos / "0.png").read_bytes()

    images = [Picture("slow", slow), *(str(photos / f"{i}.png") for i in (2, 4, 6, 8)), "nowhere.png"]
    names = []
    for result in caption_files(captioner, images, batch_size=2, num_beams=1, max_new_tokens=4):
        names.append(result.image)
        if len(names) == 5:
            served.set()
    assert names[-1] == "slow" and sorted(names) == sorted(i if isinstance(i, str) else i.image_id for i in images)
    # the same image twice is two results; without slow ones the order stays
    twice = [str(photos / "0.png")] * 3 + [str(photos / "2.png")]
    assert [r.image for r in caption_files(captioner, twice, batch_size=2, num_beams=1, max_new_tokens=4)] == twice


@pytest.mark.long
def test_scores_several_captions_and_words_to_review(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    captioner = Captioner.from_pretrained(hf_dir, "cpu")
    said = captioner(photos / "0.png", num_beams=5, max_new_tokens=6).split()[0]
    (tmp_path / "review.txt").write_text(f"{said}\nzebra crossing\n")
    output = tmp_path / "out.jsonl"
    options = ["--num_beams", "3", "--num_captions", "5", "--scores", "--review_words", str(tmp_path / "review.txt")]
    assert caption(hf_dir, str(photos / "0.png"), "--output", str(output), *options).returncode == 0
    row = json.loads(output.read_text())
    assert len(row["caption"]) == len(row["score"]) == 5 and row["review"] == [said]
    pairs = captioner(photos / "0.png", num_beams=5, num_return_sequences=5, max_new_tokens=6, return_scores=True)
    assert row["caption"] == [text for text, _ in pairs] and row["score"] == [round(score, 4) for _, score in pairs]
    (tmp_path / "banned.txt").write_text(said)
    options[-2:] = ["--banned_words", str(tmp_path / "banned.txt"), "--do_sample", "--temperature", "2"]
    assert caption(hf_dir, str(photos / "0.png"), "--output", str(output), "--overwrite", *options).returncode == 0
    row = json.loads(output.read_text())
    assert len(set(row["caption"])) > 1 and not any(said in text.split() for text in row["caption"])


@pytest.mark.long
def test_two_processes_share_one_list(hf_dir: Path, photos: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone.jsonl", tmp_path / "together.jsonl"
    assert caption(hf_dir, str(photos), "--output", str(alone)).returncode == 1
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    command = [
        *launch,
        str(ROOT / "caption.py"),
        str(photos),
        "--ckpt",
        str(hf_dir),
        *OPTIONS,
        "--output",
        str(together),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "9 images captioned, 1 failed" in done.stderr, done.stderr
    assert sorted(together.read_text().splitlines()) == sorted(alone.read_text().splitlines())
    assert sorted(p.name for p in tmp_path.glob("[!.]*.jsonl*")) == ["alone.jsonl", "together.jsonl"]


@pytest.mark.long
def test_a_file_name_that_is_no_utf8(hf_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    name = os.fsdecode(os.fsencode(str(folder)) + b"/caf\xe9.png")
    Image.new("RGB", (9, 9)).save(name, "PNG")
    printed = caption(hf_dir, str(folder))
    assert printed.returncode == 0 and "caf\\udce9.png" in printed.stdout, printed.stderr
    output = tmp_path / "out.csv"
    assert caption(hf_dir, str(folder), "--output", str(output), "--html", str(tmp_path / "p.html")).returncode == 0
    assert images_in(tmp_path / "out.csv.jsonl") == [name] and "caf\\udce9.png" in output.read_text("utf-8")
    again = caption(hf_dir, str(folder), "--output", str(output))
    assert again.returncode == 0 and "has 1 images already" in again.stderr
