"""The command line: options made from the settings, one line for an error, and what may have been meant.

Our own, on `argparse`: typed libraries (tyro, jsonargparse) were tried and lack a suggestion for a misspelt choice, or
defaults that come from a run that the command line itself names.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from blip_lite.errors import ConfigError
from blip_lite.settings import EvalConfig, Grouped, TrainConfig, at_home, check, did_you_mean

COMMANDS = {
    "train": "fine-tune BLIP on a data set",
    "evaluate": "caption a split with a checkpoint and score the captions",
    "caption": "caption photographs",
    "review": "correct captions on a page; what was approved can be trained on",
    "audit": "look at a data set: counts, lengths, duplicates across splits",
    "export": "a checkpoint -> a folder that loads in transformers, or a repository of the Hub",
    "plot": "the curves of runs together, as a page or a picture",
    "serve": "caption photographs over HTTP, and on a page",
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with what may have been meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """As `parse_args`; `--learning-rate` and `--learning_rate` are one option."""
        end = argv.index("--") if "--" in argv else len(argv)
        words = [word if i >= end else _underscored(word) for i, word in enumerate(argv)]
        found, unknown = self.parse_known_args(words)
        if unknown:
            name = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
            options = [o for o in self._option_string_actions if o.startswith("--")]
            self.error(f"unknown option {name}{did_you_mean(name, options)}")
        return argparse.Namespace(**{name: at_home(value) for name, value in vars(found).items()})

    def error(self, message: str) -> NoReturn:
        if wrong := re.match(r"argument (?P<option>[\w-]+).*: invalid choice: '(?P<given>.*?)' ", message):
            action = self._option_string_actions.get(wrong["option"])
            known = [str(choice) for choice in (action.choices if action and action.choices else COMMANDS)]
            message += did_you_mean(wrong["given"], known)
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help lists the options)\n")


def _underscored(word: str) -> str:
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


class _Switch(argparse.Action):
    """`--name` and `--no_name`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, nargs=0)

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, not str(option).startswith("--no_"))


def add_settings(parser: argparse.ArgumentParser, cls: type[Grouped]) -> None:
    """An option for each setting, in groups; only those that are given come back."""
    parser.add_argument("--config", metavar="YAML", help="file with settings by name; the command line overrides it")
    groups: dict[str | None, Any] = {None: parser}
    for name, one in cls.settings().items():
        if one.group not in groups:
            groups[one.group] = parser.add_argument_group(one.title)
        help = one.field.metadata["help"]
        default = one.field.default
        if cls is EvalConfig and one.group:
            whose = "the checkpoint's" if one.group == "decoding" else "the run's"
            help = help.partition("; default: ")[0] + f"; default: {'all' if name == 'max_eval_images' else whose}"
        elif not (default is None or default is False or default == "" or "default: " in help):
            help += f" (default: {'yes' if default is True else default})"
        options: dict[str, Any] = {"help": help.replace("%", "%%"), "default": argparse.SUPPRESS, "dest": name}
        if one.kind is bool and one.field.metadata.get("action"):
            groups[one.group].add_argument(f"--{name}", action="store_true", **options)
        elif one.kind is bool:
            groups[one.group].add_argument(f"--{name}", f"--no_{name}", action=_Switch, **options)
        else:
            kind, choices = one.kind, one.field.metadata["choices"]
            metavar = None if choices else {int: "N", float: "X"}.get(kind, "TEXT")
            if kind == list[str]:
                options["nargs"], kind = "+", str
            groups[one.group].add_argument(f"--{name}", type=kind, choices=choices, metavar=metavar, **options)


def config_of(cls: type[TrainConfig] | type[EvalConfig], given: argparse.Namespace) -> Any:
    """Settings from the command line, over those of `--config FILE.yaml`, over the defaults.

    Raises:
        ConfigError: the YAML file is missing, not a mapping, or holds an unknown name or a wrong type.
    """
    values = {name: value for name, value in vars(given).items() if name not in ("command", "config")}
    file = getattr(given, "config", None)
    return cls.of(**{**(_read_yaml(cls, Path(file)) if file else {}), **values})


def _read_yaml(cls: type[Grouped], path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_bytes()) or {}
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected lines of `name: value`")
    if isinstance(values.get("settings"), dict):  # a run's config.json, which is YAML, too
        values = values["settings"]
    return check(cls, {str(name).replace("-", "_"): value for name, value in values.items()}, str(path))


SHELLS = ("bash", "zsh", "tcsh")  # that shtab knows


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The whole command's parser, and those of its commands."""
    top = Parser(prog="blip-lite", description="Fine-tune, evaluate and run BLIP image captioning.")
    add = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    subs = {
        name: add.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for name, text in COMMANDS.items()
    }
    add_settings(subs["train"], TrainConfig)
    add_settings(subs["audit"], TrainConfig)
    add_settings(subs["evaluate"], EvalConfig)
    add_caption(subs["caption"])
    add_review(subs["review"])
    add_export(subs["export"])
    subs["plot"].add_argument("runs", nargs="+", type=Path, help="directories that hold a metrics.jsonl")
    subs["plot"].add_argument(
        "--output", type=Path, default=Path("curves.html"),
        help="file that ends in .html, or with matplotlib in .png, .svg or .pdf (default: curves.html)",
    )  # fmt: skip
    add_serve(subs["serve"])
    return top, subs


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """What the command line says; `.command` is the command. Exits with 2 where it is wrong, with 0 for `--help`."""
    top, subs = parsers()
    if argv and argv[0] in subs:
        found = subs[argv[0]].parse(argv[1:])
        found.command = argv[0]
        return found
    if argv and not argv[0].startswith("-"):
        top.error(f"unknown command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}; there are {', '.join(COMMANDS)}")
    top.add_argument("--print_completion", choices=SHELLS, help="print a shell's completion script")
    if any("print_completion" in word.replace("-", "_") for word in argv):
        shell = argv[-1].rpartition("=")[2]
        if shell not in SHELLS:
            top.error(f"--print_completion: which shell? {', '.join(SHELLS)}")
        import shtab

        print(shtab.complete(top, shell))
        sys.exit(0)
    return top.parse_args(argv)


def add_caption(parser: argparse.ArgumentParser) -> None:
    """The options of `caption`."""
    add = parser.add_argument
    add(
        "images",
        nargs="+",
        help="image files, folders (searched recursively), patterns, .txt lists of paths, "
        "- for paths on standard input, "
        "tables (.csv, .tsv, .jsonl, .parquet) with an image column, webdataset shards (.tar), URLs",
    )
    add(
        "--ckpt",
        default="Salesforce/blip-image-captioning-base",
        help="checkpoint directory (e.g. runs/shapes/best) or Hub id (default: Salesforce/blip-image-captioning-base)",
    )
    add(
        "--output",
        metavar="FILE",
        help="write here instead of printing: .jsonl, .csv, .parquet, or .json (COCO's results); what is there already "
        "is not done again",
    )
    add("--sidecar", action="store_true", help="write each image's captions into a .txt beside it, if there is none")
    add("--html", metavar="FILE", help="write a page that shows the first 1,000 images, to correct their captions on")
    add("--sidecar_suffix", default=".txt", metavar=".X", help="of --sidecar's files, e.g. .caption (default: .txt)")
    add(
        "--existing",
        choices=("skip", "overwrite", "append", "prepend"),
        help="what --sidecar does with files that are there (default: skip, with --overwrite overwrite)",
    )
    add("--overwrite", action="store_true", help="begin --output anew; replace .txt files that are there")
    add("--retry_failed", action="store_true", help="try the images again that --output has with an error")
    add("--allow_urls", action="store_true", help="fetch images at http(s) URLs, from public addresses only")
    add("--image_column", metavar="NAME", help="column of tables that holds paths, URLs or images; else a usual name")
    add(
        "--prompt", metavar="TEXT", help="how captions shall begin, e.g. 'a photography of' (default: the checkpoint's)"
    )
    add("--num_captions", type=int, default=1, metavar="N", help="captions of each image, best first (default: 1)")
    add("--do_sample", action="store_true", help="draw captions instead of searching the likeliest: they vary more")
    add("--temperature", type=float, metavar="X", help="of --do_sample; above 1 more daring (default: 1.0)")
    add(
        "--top_p",
        type=float,
        metavar="X",
        help="of --do_sample: draw among tokens with this probability (default: 0.9)",
    )
    add("--banned_words", metavar="FILE", help="words and phrases, one a line, that no caption says")
    add("--review_words", metavar="FILE", help="words and phrases, one a line; captions that say one are flagged")
    add("--caption_prefix", default="", metavar="TEXT", help="put this before every caption that is written")
    add("--caption_suffix", default="", metavar="TEXT", help="put this after it")
    add("--min_score", type=float, metavar="X", help="flag captions with a lower mean log-probability for review")
    add("--scores", action="store_true", help="write the mean log-probability of each caption's tokens")
    add(
        "--batch_size",
        type=int,
        metavar="N",
        help="images at a time; fewer where memory runs out (default: 64 on CUDA, else 8)",
    )
    add(
        "--num_workers",
        type=int,
        metavar="N",
        help="threads that read and decode images (default: one a core, 4 to 16)",
    )
    add(
        "--num_beams",
        type=int,
        metavar="N",
        help="beams, at least --num_captions; 1 is greedy (default: the checkpoint's, else 5)",
    )
    add(
        "--min_new_tokens", type=int, metavar="N", help="shortest caption in tokens (default: the checkpoint's, else 0)"
    )
    add(
        "--repetition_penalty",
        type=float,
        metavar="X",
        help="above 1 a token that was said is less likely again (default: the checkpoint's, else 1.0)",
    )
    add(
        "--no_repeat_ngram_size",
        type=int,
        metavar="N",
        help="so many tokens never come twice in this order (default: the checkpoint's, else 0: they may)",
    )
    add(
        "--length_penalty",
        type=float,
        metavar="X",
        help="of beams: above 0 longer captions, below 0 shorter ones (default: the checkpoint's, else 1.0)",
    )
    add("--seed", type=int, metavar="N", help="of --do_sample; the same captions for the same images and batches")
    add(
        "--max_new_tokens", type=int, metavar="N", help="longest caption in tokens (default: the checkpoint's, else 30)"
    )
    add_placement(parser)
    add("--int8", action="store_true", help="CPU: image encoder in 8-bit integers (needs blip_lite[int8] and g++)")


def add_review(parser: argparse.ArgumentParser) -> None:
    """The options of `review`."""
    add = parser.add_argument
    add("captions", help="what `caption` wrote: .jsonl, .csv")
    add(
        "--output",
        metavar="FILE",
        help="table that each decision is saved to (default: reviewed.csv beside the captions)",
    )
    add("--html", metavar="FILE", help="instead, write the page as one file, which keeps decisions in the browser")
    add("--sidecars", action="store_true", help="also keep a .txt beside each approved picture, and none beside others")
    add("--sidecar_suffix", default=".txt", metavar=".X", help="of --sidecars, e.g. .caption (default: .txt)")
    add("--port", type=int, default=0, metavar="N", help="of the page on this machine (default: one that is free)")
    add("--allow_urls", action="store_true", help="fetch images at http(s) URLs, from public addresses only")


def add_export(parser: argparse.ArgumentParser) -> None:
    """The options of `export`."""
    parser.add_argument("ckpt", help="checkpoint directory, e.g. runs/flickr8k/best")
    parser.add_argument("--to", required=True, help="new folder")
    parser.add_argument("--push", metavar="USER/REPO", help="also upload it to the Hub (after `hf auth login`)")
    parser.add_argument("--public", action="store_true", help="the new repository is public (default: private)")
    parser.add_argument("--dry_run", action="store_true", help="with --push: list what would be uploaded, send nothing")


def add_serve(parser: argparse.ArgumentParser) -> None:
    """The options of `serve`. Defaults from the environment are texts, which argparse checks as it does arguments."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "ckpt",
        nargs="?",
        default=argparse.SUPPRESS,
        help="checkpoint directory or Hub id (default: $BLIP_CKPT, else BLIP-base from the Hub)",
    )
    which.add_argument("--ckpt", help="the same")
    add, env = parser.add_argument, os.environ.get
    add(
        "--host",
        default=env("GRADIO_SERVER_NAME", "127.0.0.1"),
        metavar="ADDRESS",
        help="where to listen; 0.0.0.0: on every network (default: $GRADIO_SERVER_NAME, else 127.0.0.1, this machine)",
    )
    add(
        "--port",
        type=int,
        default=env("GRADIO_SERVER_PORT", "7860"),
        metavar="N",
        help="0: any that is free (default: $GRADIO_SERVER_PORT, else 7860)",
    )
    add(
        "--batch_size",
        type=int,
        default=env("BLIP_BATCH", "8"),
        metavar="N",
        help="images at a time (default: $BLIP_BATCH, else 8)",
    )
    add("--max_queue", type=int, default=64, metavar="N", help="images that may wait; above it 503 (default: 64)")
    add("--timeout", type=float, default=60.0, metavar="X", help="seconds for a request, or to stop in (default: 60)")
    add("--max_body", type=int, default=32, metavar="N", help="MiB of a request; above it 413 (default: 32)")
    add("--allow_urls", action="store_true", help="fetch images at https URLs, from public addresses only")
    add("--no_page", action="store_true", help="only HTTP; else the page is there, too, with blip_lite[demo]")
    add_placement(parser)


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Where a model runs, and in which numbers."""
    parser.add_argument("--device", default="auto", help="auto (the default), cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--dtype",
        default="auto",
        help="of the weights: auto, float32, bfloat16 (twice as fast on some CPUs, slower on others), float16",
    )
