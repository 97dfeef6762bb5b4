"""The settings of a run as dataclasses; their help texts are the scripts' `--help`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import json
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar


class ConfigError(ValueError):
    """Settings that cannot work; the message names them and says what to do."""


def setting(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field with its help text."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


# Defaults that depend on the model: a published checkpoint, or a preset that starts from random weights.
FINE_TUNING: dict[str, Any] = {
    "learning_rate": 5e-5,
    "epochs": 4,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "num_workers": 2,
}
FROM_SCRATCH: dict[str, dict[str, Any]] = {
    # no workers: on 2 cores they get in the way of a model this small (measured: 129 images/s without, 68 to 99 with)
    "tiny": {
        "learning_rate": 1.5e-3,
        "epochs": 10,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "num_workers": 0,
    },
    "small": {**FINE_TUNING, "learning_rate": 6e-4, "epochs": 10, "gradient_checkpointing": False},
    "base": {**FINE_TUNING, "learning_rate": 2e-4, "epochs": 40},
}


FILES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".tar")
SCHEMES = ("seed", "official", "karpathy")


@dataclass
class TrainConfig:
    """Fine-tune BLIP for image captioning."""

    # data
    dataset: str = setting(
        "flickr8k",
        "shapes, flickr8k, flickr30k, coco_karpathy, a folder, a captions file (.csv, .tsv, .jsonl, .json, .parquet), .tar shards (a/{0000..0099}.tar), or a Hub id",
    )
    data_dir: str | None = setting(
        None, "local copy of flickr8k (original or Kaggle layout, Parquet), or the folder of Karpathy's dataset_*.json"
    )
    image_root: str | None = setting(
        None, "folder that image paths are relative to; COCO's (train2014/, val2014/) is else downloaded into a cache"
    )
    image_column: str | None = setting(None, "column of the image; default: guessed from usual names")
    caption_column: str | None = setting(None, "column of the caption, or several, a,b,c; default: guessed")
    dataset_config: str | None = setting(None, "configuration of a Hub data set")
    dataset_split: str | None = setting(None, "only this part of a Hub data set, e.g. train[:1000], split by image")
    allow_urls: bool = setting(False, "download images that a table names by URL, once, into a cache")
    split_scheme: str = setting(
        "seed", "flickr8k: 90/5/5 by image and seed, the official 6000/1000/1000 lists, or Karpathy's", SCHEMES
    )
    captions_per_image: int | None = setting(
        None, "captions of each image in an epoch, others in the next; default: all"
    )
    max_train_images: int | None = setting(None, "use only this many training images; default: all")
    max_eval_images: int | None = setting(None, "validate on only this many images; default: all")
    max_bad_images: float = setting(0.01, "share of undecodable images, 0 to 1, above which a run ends")
    prompt: str = setting("", "how every caption begins, not trained on; the official COCO recipe uses 'a picture of '")
    max_length: int = setting(40, "longest caption in tokens, [DEC], prompt and [SEP] included; longer ones are cut")
    num_workers: int | None = setting(
        None, "processes that decode images ahead, per training process; 0: none; default: 2, tiny 0"
    )
    # model
    model: str = setting(
        "Salesforce/blip-image-captioning-base",
        "Hub id, checkpoint directory, or a preset that starts from nothing: tiny, small, base",
    )
    freeze_vision: bool = setting(False, "train the text decoder only")
    feature_cache_gb: float = setting(
        50.0,
        "freeze_vision: keep each image's features on disk instead of encoding it anew each epoch, up to this many GB (base size: 0.9 per 1,000 images); 0: off",
    )
    gradient_checkpointing: bool | None = setting(
        None, "recompute activations to save memory; default: on, off for tiny and small"
    )
    mixed_precision: str = setting(
        "auto",
        "auto: what `accelerate launch` says, else bf16 or fp16 where the GPU has it",
        ("auto", "no", "bf16", "fp16"),
    )
    # optimisation
    epochs: int | None = setting(
        None, "passes over the training images; default: 4, tiny and small 10, base from nothing 40"
    )
    max_steps: int | None = setting(None, "stop after this many optimizer steps; default: what epochs needs")
    batch_size: int = setting(
        8, "images per device and forward pass, each with all of its captions; also in evaluation"
    )
    gradient_accumulation_steps: int | None = setting(None, "forward passes per optimizer step; default: 2, tiny 1")
    learning_rate: float | None = setting(
        None, "peak learning rate; default: 5e-5, tiny 1.5e-3, small 6e-4, base (from nothing) 2e-4"
    )
    lr_schedule: str = setting("linear", "decay after warm-up", ("linear", "cosine", "constant"))
    warmup_ratio: float = setting(0.05, "share of all steps in which the learning rate rises linearly, 0 to 1")
    weight_decay: float = setting(0.05, "AdamW weight decay, on matrices only")
    label_smoothing: float = setting(0.0, "0 to 1; the official COCO recipe uses 0.1")
    max_grad_norm: float = setting(1.0, "clip the gradient's norm to this; 0: do not clip")
    seed: int = setting(42, "of the split, the order of images and random weights")
    # generation, in validation
    max_new_tokens: int = setting(30, "longest generated caption in tokens, [SEP] included, prompt not")
    min_new_tokens: int = setting(0, "shortest generated caption in tokens")
    num_beams: int = setting(5, "beams; 1 is greedy")
    length_penalty: float = setting(1.0, "beam score = sum of log-probabilities / length ** length_penalty")
    early_stopping: bool = setting(True, "an image is done as soon as num_beams captions are complete")
    # the run
    output_dir: str | None = setting(None, "where everything is written; default: runs/DATASET")
    overwrite: bool = setting(False, "delete the run that output_dir holds")
    resume: bool = setting(False, "continue the run in output_dir from its newest checkpoint, or begin it")
    resume_from: str | None = setting(None, "continue from this checkpoint of the run instead; later ones are given up")
    allow_config_change: bool = setting(False, "resume although settings changed with which it is another run")
    time_limit: float | None = setting(
        None, "minutes after which to save and stop, with exit code 75; the last step and save are allowed for"
    )
    save_every: int | None = setting(None, "save a checkpoint every so many steps, besides each epoch's end")
    eval_every: int | None = setting(None, "validate every so many steps instead of at each epoch's end")
    logging_steps: int = setting(50, "steps between two lines of the log")
    save_total_limit: int = setting(2, "checkpoints to keep, at least 2; best/ is kept besides")
    log_with: str = setting("none", "dashboards: none, wandb, tensorboard, or wandb,tensorboard")
    country: str | None = setting(
        None, "3-letter code of where this runs, e.g. FRA: measure energy and CO2 with codecarbon, for the model card"
    )
    wandb_artifacts: bool = setting(False, "at the end, upload best/ to W&B as an artifact")
    project: str = setting("blip_lite", "project name on the dashboard")
    run_name: str | None = setting(None, "run name on the dashboard; default: output_dir's name")
    # instead of training
    sanity: bool = setting(False, "only check that the model can learn 8 of the captions word for word, then stop")
    audit: bool = setting(
        False,
        "only look at the data: counts, lengths, duplicates and near-duplicates across splits; exit code 1 on a leak",
    )
    plan: bool = setting(
        False, "only run 4 steps, one on the longest captions, print memory, time and disk needed, then stop"
    )

    def resolved(self) -> TrainConfig:
        """The same settings with every default that depends on another one filled in."""
        own = FROM_SCRATCH.get(self.model, FINE_TUNING)
        fill = {name: value for name, value in own.items() if getattr(self, name) is None}
        if self.resume_from:
            fill |= {"resume": True, "output_dir": self.output_dir or str(Path(self.resume_from).parent)}
        elif self.output_dir is None:
            path = Path(self.dataset)  # a folder's name may hold a dot
            name = path.resolve().name if path.is_dir() else path.stem if path.suffix in FILES else path.name
            fill["output_dir"] = "runs/" + re.sub(r"[^\w.]+", "-", name).strip("-.")
        return dataclasses.replace(self, **fill)

    def dashboards(self) -> list[str]:
        """`log_with` as a list."""
        return [] if self.log_with == "none" else [name.strip() for name in self.log_with.split(",")]

    def validate(self) -> None:
        """Raises ConfigError with every problem at once."""
        ratios = ("max_bad_images", "warmup_ratio", "label_smoothing")
        positive: tuple[str, ...] = (
            "epochs",
            "max_steps",
            "batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
        )
        positive += ("save_every", "eval_every", "max_train_images", "max_eval_images", "num_beams", "max_new_tokens")
        positive += ("learning_rate", "time_limit", "captions_per_image")
        problems = [f"--{n} must be between 0 and 1" for n in ratios if not 0 <= getattr(self, n) <= 1]
        problems += [
            f"--{n} must be above 0" for n in positive if getattr(self, n) is not None and getattr(self, n) <= 0
        ]
        not_negative = ("num_workers", "feature_cache_gb", "max_grad_norm", "weight_decay", "min_new_tokens")
        problems += [f"--{n} must not be negative" for n in not_negative if (getattr(self, n) or 0) < 0]
        if self.min_new_tokens > self.max_new_tokens:
            problems.append("--min_new_tokens must not be above --max_new_tokens")
        for field in dataclasses.fields(self):
            choices = field.metadata["choices"]
            if choices and getattr(self, field.name) not in choices:
                problems.append(f"--{field.name} must be one of {', '.join(choices)}")
        if unknown := set(self.dashboards()) - {"wandb", "tensorboard"}:
            problems.append(f"--log_with {', '.join(sorted(unknown))}: known are none, wandb, tensorboard")
        if self.resume_from:
            path = Path(self.resume_from).resolve()
            if path.parent != Path(str(self.output_dir)).resolve() or not re.fullmatch(r"checkpoint-\d+", path.name):
                problems.append(
                    f"--resume_from {self.resume_from} is no checkpoint-N in --output_dir {self.output_dir}"
                )
        if self.save_total_limit < 2:
            problems.append("--save_total_limit must be at least 2: the last one may be the one being written")
        if self.resume and self.overwrite:
            problems.append("--resume and --overwrite exclude each other")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass
class EvalConfig:
    """Caption a split with a checkpoint and score the captions."""

    ckpt: str = setting("best", "best or latest (of the run), a checkpoint directory, or a Hub id")
    run: str | None = setting(None, "run directory; default: that of the checkpoint, else the newest under runs/")
    split: str | None = setting(
        None, "which images; default: test, or validation for --sweep", ("train", "validation", "test", "all")
    )
    compare: str | None = setting(
        None, "a second checkpoint (or Hub id, e.g. the untouched base): is one really better?"
    )
    predictions: str | None = setting(
        None,
        'score these captions instead: lines of {"image_id", "caption"}, or COCO\'s result JSON; needs --dataset or --run',
    )
    output: str | None = setting(None, "with predictions: where to write the numbers (JSON)")
    dataset: str | None = setting(None, "as in train.py; default: the run's (needed for a Hub id)")
    data_dir: str | None = setting(None, "as in train.py; default: the run's")
    image_root: str | None = setting(None, "as in train.py; default: the run's")
    image_column: str | None = setting(None, "as in train.py; default: the run's")
    caption_column: str | None = setting(None, "as in train.py; default: the run's")
    split_scheme: str | None = setting(None, "as in train.py; default: the run's", SCHEMES)
    max_eval_images: int | None = setting(None, "caption only this many images; default: all")
    prompt: str | None = setting(None, "how every caption begins; default: the run's")
    batch_size: int | None = setting(None, "images at a time; default: the run's")
    num_beams: int | None = setting(None, "beams; default: the run's")
    max_new_tokens: int | None = setting(None, "longest caption in tokens; default: the run's")
    length_penalty: float | None = setting(None, "default: the run's")
    output_dir: str | None = setting(None, "where to write; default: the run, or the working directory for a Hub id")
    base: bool = setting(
        True, "also score the checkpoint that the run began with, untouched (once: its captions are kept)"
    )
    spice: bool = setting(False, "also SPICE: needs Stanford CoreNLP (400 MB, downloaded once) and 8 GB of memory")
    spice_subsample: int = setting(1000, "SPICE of this many images, drawn with a fixed seed")
    sweep: list[str] | None = setting(  # noqa: RUF009
        None,
        "instead, quality against speed of every combination, on validation: e.g. num_beams=1,3,5 length_penalty=0.8,1.0,1.2",
    )
    dtype: str = setting(
        "auto",
        "of the weights; auto: bfloat16 on a GPU that has it, float16 on an older one, else float32",
        ("auto", "float32", "bfloat16", "float16"),
    )


# ------------------------------------------------------------------------------------ command line, YAML

T = TypeVar("T", TrainConfig, EvalConfig)


def parse(cls: type[T], argv: list[str] | None = None) -> T:
    """Settings from the command line, over those of `--config FILE.yaml`, over the defaults.

    Raises:
        ConfigError: the YAML file is missing, not a mapping, or holds an unknown name or a wrong type.
        SystemExit: argparse's own, for a wrong command line and for `--help`.
    """
    parser = argparse.ArgumentParser(description=cls.__doc__)
    parser.add_argument("--config", metavar="YAML", help="file with settings by name; the command line overrides it")
    types_ = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, help = base_type(types_[field.name]), field.metadata["help"]
        if field.default is not None:
            help += f" (default: {field.default if field.default != '' else 'none'})"
        options: dict[str, Any] = {"help": help.replace("%", "%%"), "default": argparse.SUPPRESS}
        if kind is bool:
            parser.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, **options)
        else:
            metavar = None if field.metadata["choices"] else {int: "N", float: "X"}.get(kind, "TEXT")
            if kind == list[str]:
                options["nargs"], kind = "+", str
            parser.add_argument(
                f"--{field.name}", type=kind, choices=field.metadata["choices"], metavar=metavar, **options
            )
    given = vars(parser.parse_args(argv))
    file = given.pop("config", None)
    return cls(**{**(_read_yaml(cls, Path(file)) if file else {}), **given})


def base_type(annotation: Any) -> Any:
    if isinstance(annotation, types.UnionType):  # `int | None`
        return next(arg for arg in typing.get_args(annotation) if arg is not type(None))
    return annotation


def _read_yaml(cls: type[T], path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text("utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected lines of `name: value`")
    return check(cls, values, str(path))


def check(cls: type[T], values: dict[str, Any], source: str) -> dict[str, Any]:
    """Check names and types of settings that were read from a file. Raises ConfigError."""
    types_ = typing.get_type_hints(cls)
    for name, value in values.items():
        if name not in types_:
            close = difflib.get_close_matches(name, types_, n=1)
            raise ConfigError(
                f"{source}: unknown setting {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")
            )
        kind, optional = base_type(types_[name]), isinstance(types_[name], types.UnionType)
        if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            with contextlib.suppress(ValueError):
                values[name] = value = float(value)  # YAML reads 5e-5 as text
        if not (value is None and optional) and (type(value) is not (typing.get_origin(kind) or kind)):
            raise ConfigError(f"{source}: {name} is {value!r}; expected {kind.__name__}")
    return values


def read_run_config(run: Path) -> TrainConfig:
    """The settings of a run, from its `config.json`. Raises ConfigError."""
    path = run / "config.json"
    try:
        values = json.loads(path.read_text("utf-8"))["settings"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{run}: not a run of train.py, {path.name} cannot be read ({error})") from error
    return TrainConfig(**check(TrainConfig, values, str(path)))
