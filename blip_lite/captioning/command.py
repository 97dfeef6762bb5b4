"""`blip-lite caption`: photographs from wherever they lie -> captions, printed or written.

Exit code: 0, all were captioned (empty captions are counted in a warning); 1, some could not be; 2, nothing was done,
the command or a file it names is wrong; 3, it broke down on the way (out of memory, say).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import torch

from blip_lite.captioner import Captioner
from blip_lite.captioning.bulk import Captioned, caption_files, review_of
from blip_lite.captioning.inputs import (
    broken,
    count,
    expand,
    identity,
    is_pipe,
    lists_in,
    passed_over_text,
    without_texts,
)
from blip_lite.captioning.journal import (
    IN,
    Seen,
    begin_here,
    behind_links,
    directory_of,
    identity_in,
    key_of,
    parts_of,
    read_journal,
    take_up,
    to_line,
)
from blip_lite.captioning.outputs import (
    EMPTY,
    Sidecars,
    convert,
    discard,
    earlier,
    is_edited,
    journal_of,
    try_to_write,
    try_to_write_page,
    write_sidecar,
    write_sidecars,
)
from blip_lite.captioning.review import items_of, write_page
from blip_lite.errors import BrokenOff, ConfigError, ImageError
from blip_lite.model.flops import bfloat16_gain, bfloat16_slower
from blip_lite.model.pretrained import DECODING
from blip_lite.processing.download import is_url
from blip_lite.processing.images import IMAGE_SUFFIXES
from blip_lite.processing.picture import Picture
from blip_lite.processing.progress import Progress
from blip_lite.processing.word_filter import read_words, split_entries
from blip_lite.reports.review import MOST
from blip_lite.storage import lock

WORTH_IT = 1.3  # times as fast
REMEMBERED = 10_000  # captions that are compared: do most images get the same one?


def caption(args: argparse.Namespace) -> int:
    """Caption what `args.images` names; see `command_line.add_caption` for the rest. Returns the exit code."""
    args.begun = False  # whether anything was written
    how_on = "; the same command without --overwrite goes on" if args.output else ""
    try:
        return run(args)
    except (ModuleNotFoundError, BrokenPipeError):  # of an extra; `| head`
        raise
    except (ValueError, OSError) as error:  # what cannot be used, a full disk; a bad image is only reported
        raise BrokenOff(f"{error}{how_on}") if args.begun else ConfigError(str(error)) from error
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted{how_on}") from error
    except torch.OutOfMemoryError as error:
        raise BrokenOff(f"{error}{how_on}") from error
    except Exception as error:
        traceback.print_exc()
        raise BrokenOff(f"{type(error).__name__}{how_on}") from error


def decoding_of(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as `Captioner` takes it. Raises ConfigError for options that would do nothing."""
    names = [name for name in (*DECODING, "seed") if hasattr(args, name)]  # else as the checkpoint says
    settings: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.num_captions != 1:
        settings["num_return_sequences"] = args.num_captions
        if args.num_beams is not None:
            settings["num_beams"] = max(args.num_beams, args.num_captions)
    sampling = {name: v for name in ("temperature", "top_p") if (v := getattr(args, name)) is not None}
    if args.do_sample:
        settings |= {"do_sample": True, "num_beams": 1, "temperature": 1.0, "top_p": 0.9, **sampling}
        if args.num_beams not in (None, 1):
            raise ConfigError("--num_beams searches, --do_sample draws: leave one out")
    elif sampling:
        raise ConfigError(f"--{next(iter(sampling))} is of --do_sample, which is not given")
    if not args.sidecar and (args.existing or args.sidecar_suffix != ".txt"):
        raise ConfigError(f"--{'existing' if args.existing else 'sidecar_suffix'} is of --sidecar, which is not given")
    if args.retry_failed and not args.output:
        raise ConfigError("--retry_failed looks into --output, which is not given")
    if args.banned_words:
        settings["banned_words"] = read_words(args.banned_words)
    return settings


def run(args: argparse.Namespace) -> int:
    """`caption`, with errors as they are."""
    if sys.stdout is None and not (args.output or args.sidecar or args.html):
        raise ConfigError("standard output is closed, no caption can be printed; name a file with --output")
    settings = decoding_of(args)
    to_review = read_words(args.review_words) if args.review_words else []

    args.images = without_texts(args.images)
    rank, processes, wait, device = together(args)
    captioner = Captioner.from_pretrained(args.ckpt, device, args.dtype, "int8" if args.int8 else None)
    review = split_entries(captioner.processor, to_review)
    args.existing = args.existing or ("overwrite" if args.overwrite else "skip")
    seen, shown, images, journal = Seen(), dict[str, Picture](), 0, None
    empty: list[str] = []
    passed_over, sidecars = Counter[str](), Sidecars(args.sidecar_suffix, args.images)

    def wanted() -> Iterator[Picture]:
        nonlocal images
        for picture in expand(args.images, args.allow_urls, args.image_column, passed_over, empty):
            images += 1
            key = identity(picture.image_id)
            if not seen.add(key):
                if journal and args.html and len(shown) < MOST:  # of an earlier run
                    shown.setdefault(picture.image_id, picture)
                continue
            if args.sidecar and not args.output:
                try:
                    if sidecars.of(picture).exists() and args.existing == "skip":
                        continue
                except (ImageError, OSError) as error:
                    picture = broken(picture.image_id, str(error))
            if args.html and len(shown) < MOST:
                shown[picture.image_id] = picture
            if key_of(key) % processes == rank:
                yield picture

    found = caption_files(captioner, wanted(), args.batch_size, args.prompt, args.num_workers, **settings)
    if args.html:
        try_to_write_page(Path(args.html))
    journal = begin(args, rank, wait, seen) if args.output else None
    before = len(seen)
    # The first batch tells what is wrong with the settings and the input, so nothing is deleted or written before; and
    # nothing is deleted before one image was captioned.
    head = list(islice(found, 1))
    while args.overwrite and head and head[-1].error and (more := next(found, None)):
        head.append(more)
    there = [p for p in earlier(Path(args.output)) if p.exists()] if args.output else []
    if args.overwrite and there and processes == 1 and head and head[-1].error:
        raise ConfigError(
            f"no image can be captioned, e.g. {head[0].image}: {head[0].error}. --output {args.output} stays as it is"
        )
    found = chain(head, found)
    if not images:
        others = passed_over_text(passed_over)
        raise ConfigError(f"no images in {', '.join(empty)}{'; passed over: ' + others if others else ''}")
    wait()
    if args.output and args.overwrite and rank == 0:
        discard(Path(args.output))
        for file in args.locks:
            begin_here(file)
    wait()
    args.begun = True
    own = journal.with_name(f"{journal.name}.rank-{rank}") if journal and processes > 1 else journal
    say_faster(args, captioner, rank)
    failed, page = write(args, progress(args, found, before, rank, processes), own, captioner, review)
    wait()
    if rank == 0 and journal:
        take_up(journal, anew=args.had_failures)
        convert(journal, Path(args.output))
        if args.sidecar:
            written, unwritten = write_sidecars(journal, args)
            print(f"{written} {args.sidecar_suffix} files written", file=sys.stderr)
        done, failed = 0, unwritten if args.sidecar else 0
        for _, row in read_journal(journal):
            done, failed = done + ("error" not in row), failed + ("error" in row)
        print(f"{images_of(done)} captioned, {failed} failed: {args.output}", file=sys.stderr)
    if rank == 0 and args.html:
        page = {row["image"]: row for _, row in read_journal(journal) if row["image"] in shown} if journal else page
        pairs = [(shown[i], page[i]) for i in shown if i in page]
        write_page(Path(args.html), items_of(pairs, Path(args.html).parent), len(shown) == MOST and images > MOST)
        print(f"a page to look at, and to correct captions on: {args.html}", file=sys.stderr)
    for argument in empty if rank == 0 else ():
        print(f"no images in {argument}", file=sys.stderr)
    if rank == 0 and (others := passed_over_text(passed_over)):
        print(f"passed over: {others}", file=sys.stderr)
    wait()
    return 1 if failed and (rank == 0 or not journal) else 0  # without a journal each process knows of its own only


def is_there(path: Path | None, file: TextIO) -> bool:
    """Whether an open file is still the one of that path."""
    return path is not None and path.exists() and os.path.samestat(os.stat(path), os.fstat(file.fileno()))


def images_of(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def who_am_i() -> tuple[int, int]:
    """(rank, processes) as `accelerate launch` or torchrun say. What a cluster left in the environment is no launch:
    without LOCAL_RANK, this process is alone."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = [os.environ.get(name, "").strip() for name in names]
    if all(value.isdecimal() for value in values) and int(values[0]) < int(values[1]):
        return int(values[0]), int(values[1])
    if values[1] not in ("", "1"):
        found = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True) if value)
        print(f"{found} is not what torchrun or accelerate set: one process, all images", file=sys.stderr)
    return 0, 1


def together(args: argparse.Namespace) -> tuple[int, int, Callable[[], None], str | torch.device]:
    """(rank, processes, wait for the others, device) of the processes that `accelerate launch` started, which share one
    list: each takes the images whose hash falls to it."""
    rank, processes = who_am_i()
    if processes == 1:
        return 0, 1, lambda: None, args.device
    if not (args.output or args.sidecar):
        raise ConfigError(f"{processes} processes need --output or --sidecar")
    if any(name == "-" or is_pipe(name) for name in args.images):
        raise ConfigError("standard input or a pipe reaches one process only; write the paths into a .txt file")
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Days, as some may be done hours before the others, and wait.
    cpu = args.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    state = PartialState(cpu=cpu, timeout=timedelta(days=30))
    return rank, processes, state.wait_for_everyone, state.device


def begin(args: argparse.Namespace, rank: int, wait: Callable[[], None], seen: Seen) -> Path:
    """The journal of `--output`, what earlier runs left taken up, its images added to `seen`."""
    output, failed, numbered = Path(args.output), 0, 0
    journal = journal_of(output)
    begun_in = directory_of(journal)
    if output.suffix == ".parquet":
        import pyarrow.parquet  # noqa: F401  of an extra: missing, it is to be told before the first image
    lists = lists_in(args.images)
    if read := [a for a in (*args.images, *lists) if behind_links(Path(a)) in map(behind_links, (output, journal))]:
        raise ConfigError(f"--output {output}: {read[0]} is read, it cannot be written at the same time")
    for path in (output, journal):
        try_to_write(path)
    if rank == 0:  # of the journal too, which another output may share; kept open
        files = sorted({behind_links(output), behind_links(journal)})
        goes_on = not args.overwrite and (journal.exists() or bool(parts_of(journal)))
        note = IN + (begun_in or os.getcwd())
        args.locks = [lock(output, path.with_name(f".{path.name}.lock"), note) for path in files]
        relative = [a for a in args.images if not (os.path.isabs(a) or is_url(a) or a == "-")]
        if goes_on and relative and begun_in not in (None, os.getcwd()):
            raise ConfigError(
                f"--output {output}: was begun in {begun_in}, from where its images are named. Run the command there, "
                "name images by their whole paths, or choose another --output"
            )
    if not args.overwrite:
        if output.exists() and not journal.exists():
            raise ConfigError(
                f"--output {output}: is there, but {journal.name}, from which it is made, is not; --overwrite"
            )
        since = journal.stat().st_mtime if journal.exists() else 0
        younger = tuple(f"{a}, " for a in lists if os.path.isfile(a) and os.path.getmtime(a) > since)
        if rank == 0:
            take_up(journal)
        if rank == 0 and is_edited(journal, output):
            raise ConfigError(
                f"--output {output}: was changed since it was made from {journal.name}, and would be made anew. Move "
                "it away, or choose another --output"
            )
        wait()
        for _, row in read_journal(journal):
            failed += "error" in row
            numbered += row["image"].startswith(younger)
            if not (args.retry_failed and "error" in row):
                seen.add(identity_in(begun_in, row["image"]))
    args.had_failures = failed > 0
    if len(seen) and rank == 0:
        failures = f"{failed} that failed are tried again" if args.retry_failed else f"{failed} of them failed"
        print(f"{output} has {len(seen)} images already, {failures}", file=sys.stderr)
    if numbered and rank == 0:
        print(
            f"{numbered} of them are known by their rows' numbers alone, in a table that was changed since. If rows "
            "were moved, put in or taken out, begin anew with --overwrite",
            file=sys.stderr,
        )
    return journal


def say_faster(args: argparse.Namespace, captioner: Captioner, rank: int) -> None:
    """Before a long job on a CPU: whether this processor is faster in the other type, with a model that is worth it."""
    model = captioner.model
    if rank or not (args.output or args.sidecar) or model.device.type != "cpu":
        return
    if args.dtype == "bfloat16" and (slower := bfloat16_slower(model, "--dtype float32")):
        print(slower, file=sys.stderr)
    if args.dtype == "auto" and model.config.vision.hidden_size >= 512 and (gain := bfloat16_gain(model)) >= WORTH_IT:
        print(
            f"this processor multiplies {gain:.1f} times as fast in bfloat16 as in float32: --dtype bfloat16 is "
            "faster, and some captions differ",
            file=sys.stderr,
        )


def progress(
    args: argparse.Namespace, found: Iterator[Captioned], before: int, rank: int, processes: int
) -> Iterator[Captioned]:
    """The results behind a bar, or, without a terminal, with a line every 30 seconds; a thread counts the images
    meanwhile, for the time left."""
    if not (args.output or args.sidecar) or rank:
        return found
    bar = Progress(found, "captioned")

    def total() -> None:
        if (images := count(args.images, args.image_column)) is not None:
            bar.total = max(0, images - before) // processes

    threading.Thread(target=total, daemon=True).start()
    return iter(bar)


def write(
    args: argparse.Namespace,
    found: Iterator[Captioned],
    journal: Path | None,
    captioner: Captioner,
    review: dict[str, list[str]],
) -> tuple[int, dict[str, Any]]:
    """Print the captions (a single image's without the file's name), or write them where they are wanted, each at once;
    beside the images only without a journal, else that is done from it in the end.

    Returns:
        How many failed, and what a gallery without a journal shows, by image.
    """
    sidecars, said = Sidecars(args.sidecar_suffix, args.images), Counter[str]()
    alone = len(args.images) == 1 and Path(args.images[0]).suffix.lower() in IMAGE_SUFFIXES
    failed = written = empty = 0
    page: dict[str, Any] = {}
    with open(journal, "a", encoding="utf-8") if journal else contextlib.nullcontext() as file:
        for result in found:
            flags = review_of(captioner.processor, result, review)
            if args.min_score is not None:
                low = [f"score {score:.2f}" for score in result.scores if score < args.min_score]
                flags = [*(flags or []), *low]
            mute = not result.error and not any(map(str.strip, result.captions))
            if mute:
                empty += 1
                flags = [*(flags or []), EMPTY]
            if sum(said.values()) < REMEMBERED:
                said.update(result.captions[:1])
            result.captions = [f"{args.caption_prefix}{text}{args.caption_suffix}" for text in result.captions]
            if args.sidecar and not journal and not result.error and not mute:
                try:
                    written += write_sidecar(sidecars.of(result.picture), result.captions, args.existing)
                except (ImageError, OSError) as error:
                    result.error = f"its text cannot be written ({error})"
            row = result.row(args.scores, flags)
            failed += result.error is not None
            if file:
                if not is_there(journal, file):
                    raise BrokenOff(f"{journal} was moved or deleted while it was written; the same command goes on")
                file.write(to_line(row))
                file.flush()
            elif args.html and len(page) < MOST:
                page[result.image] = row
            if result.error:
                if not file:
                    print(f"error: {result.image}: {result.error}", file=sys.stderr)
            elif not file and not args.sidecar:
                for i, caption in enumerate(result.captions):
                    score = f"{result.scores[i]:.4f} " if args.scores else ""
                    flagged = f"  [review: {', '.join(row['review'])}]" if row.get("review") else ""
                    print(f"{'' if alone else f'{result.image}: '}{score}{caption}{flagged}", flush=True)
    if args.sidecar and not journal:
        others = f"the others had a {args.sidecar_suffix} already"
        print(f"{images_of(written)} captioned, {failed} failed, {others}", file=sys.stderr)
    if empty:
        print(f"warning: {images_of(empty)} got an empty caption. Is the checkpoint trained?", file=sys.stderr)
    if sum(said.values()) >= 20 and said.most_common(1)[0][1] > 0.5 * sum(said.values()):
        text, times = said.most_common(1)[0]
        share = times / sum(said.values())
        print(f"warning: {share:.0%} of the captions are {text!r}. Is the checkpoint trained?", file=sys.stderr)
    return failed, page
