"""The settings of a run, in groups; their help texts are the command line's `--help`.

Each group goes only to the rooms that need it. On the command line, in YAML and in a run's `config.json` the names are
flat: `TrainConfig.of(dataset="shapes", batch_size=4)` and `config.flat()` go between the two.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import math
import os
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from blip_lite.errors import ConfigError

Texts = list[str]
SPLITS = ("train", "validation", "test")
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")  # files of rows that a data set, or `caption`, is read from
DATASETS = ("shapes", "flickr8k", "flickr30k", "coco_karpathy")  # data sets with a name of their own

# Defaults that depend on the model: a published checkpoint, or a preset that starts from random weights. The learning
# rates are AdamW's; Muon's is twice that (1.2e-3 for `small`, where AdamW is worse than at 6e-4: docs/quality.md).
MUON_RATE = 2
FINE_TUNING: dict[str, Any] = {
    "optimizer": "adamw",
    "parallel_prediction": 0.0,
    "learning_rate": 5e-5,
    "epochs": 4,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "batch_size": 8,
}
DASHBOARDS = ("wandb", "tensorboard", "trackio")
FROM_SCRATCH: dict[str, dict[str, Any]] = {
    # no workers: on 2 cores they get in the way of a model this small (measured: 129 images/s without, 68 to 99 with)
    "tiny": {
        "optimizer": "adamw",
        "parallel_prediction": 0.0,
        "learning_rate": 1e-3,
        "epochs": 13,
        "batch_size": 16,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "captions_per_image": 1,
        "max_eval_images": 100,
        "best_metric": "loss",  # which still tells models apart that score 99 of 100
        "num_workers": 0,
    },
    "small": {
        **FINE_TUNING,
        "optimizer": "muon",  # with the next a fifth more CIDEr in as many steps: docs/quality.md
        "parallel_prediction": 0.5,
        "learning_rate": 6e-4,
        "epochs": 5,
        "best_metric": "loss",  # sacreBLEU of 300 images once chose the first epoch: a quarter less CIDEr than the last
        "gradient_checkpointing": False,
    },
    "base": {**FINE_TUNING, "learning_rate": 2e-4, "epochs": 40},
}


def defaults(name: str) -> str:
    """A setting's defaults by model, for its help: '4, tiny 13, small 5, base from nothing 40'."""
    general = FINE_TUNING[name]
    presets = {preset: values.get(name, general) for preset, values in FROM_SCRATCH.items()}
    others = [f"{preset} {value}" for preset, value in presets.items() if value != general]
    return ", ".join([str(general), *others]).replace("base ", "base from nothing ")


def setting(
    default: Any,
    help: str,
    choices: tuple[str, ...] | None = None,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> Any:
    """A dataclass field with its help text, and the values that make sense: of `choices`, or numbers within bounds."""
    bounds = {"least": least, "above": above, "most": most}
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "bounds": bounds})


def action(help: str) -> Any:
    """A switch that asks for something to be done; it has no `--no-` form."""
    return dataclasses.field(default=False, metadata={"help": help, "choices": None, "bounds": {}, "action": True})


@dataclass
class DataSettings:
    """data"""

    dataset: str = setting(
        "flickr8k",
        "shapes, flickr8k, flickr30k, coco_karpathy, a folder, a captions file (.csv, .tsv, .jsonl, .json, .parquet), "
        ".tar shards (a/{0000..0099}.tar), or a Hub id",
    )
    scenes: int | None = setting(
        None, "how many scenes --dataset shapes draws; default: 8000, on --resume the run's", least=100, most=9000
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
        "seed",
        "flickr8k: 90/5/5 by image and seed, the official 6000/1000/1000 lists, or Karpathy's",
        ("seed", "official", "karpathy"),
    )
    validation_share: float = setting(
        0.05,
        "where the data name no splits: share of the images drawn for validation, and as many for test",
        above=0,
        most=0.4,
    )
    max_train_images: int | None = setting(None, "use only this many training images; default: all", least=1)
    max_eval_images: int | None = setting(None, "validate, or score, only this many; default: all, tiny 100", least=1)
    max_bad_images: float = setting(
        0.01, "share of undecodable images, 0 to 1, above which a run ends", least=0, most=1
    )


@dataclass
class LoadingSettings:
    """loading"""

    batch_size: int = setting(  # None until `TrainConfig.resolved`
        None,
        "images per device and forward pass, with their captions; also in evaluation; "
        f"default: {defaults('batch_size')}",
        least=1,
    )
    num_workers: int | None = setting(
        None,
        "processes that decode images ahead, per training process; 0: none; default: its CPU cores, 2 to 8; tiny 0",
        least=0,
    )


@dataclass
class ModelSettings:
    """model"""

    model: str = setting(
        "Salesforce/blip-image-captioning-base",
        "Hub id, checkpoint directory, or a preset that starts from nothing: tiny, small, base",
    )
    image_size: int | None = setting(
        None,
        "side of the model's images in pixels, a multiple of its patches' (16); positions are interpolated as BLIP "
        "does; default: the checkpoint's",
        least=16,
        most=4096,
    )
    freeze_vision: bool = setting(False, "train the text decoder only")
    feature_cache_gb: float = setting(
        50.0,
        "freeze_vision: keep each image's features on disk instead of encoding it anew each epoch, up to this many GB "
        "(base size: 0.9 per 1,000 images); 0: off",
        least=0,
    )
    gradient_checkpointing: bool | None = setting(
        None, "recompute activations to save memory; default: on, off for tiny and small"
    )
    compile: bool = setting(
        False,
        "compile the layers for training, through torch; the first steps wait for it, and it needs a C++ compiler",
    )
    mixed_precision: str = setting(
        "auto",
        "auto: what `accelerate launch` says, else bf16 or fp16 where the GPU has it",
        ("auto", "no", "bf16", "fp16"),
    )


@dataclass
class OptimisationSettings:
    """optimisation"""

    epochs: int | None = setting(None, f"passes over the training images; default: {defaults('epochs')}", least=1)
    max_steps: int | None = setting(None, "stop after this many optimizer steps; default: what epochs needs", least=1)
    gradient_accumulation_steps: int | None = setting(
        None, f"forward passes per optimizer step; default: {defaults('gradient_accumulation_steps')}", least=1
    )
    optimizer: str | None = setting(
        None,
        "adamw, or muon for the matrices between embeddings and vocabulary and AdamW for all else; "
        f"default: {defaults('optimizer')}",
        ("adamw", "muon"),
    )
    learning_rate: float | None = setting(
        None, f"peak learning rate; default: {defaults('learning_rate')}, and twice that with muon", above=0
    )
    lr_schedule: str = setting("linear", "decay after warm-up", ("linear", "cosine", "constant"))
    warmup_ratio: float = setting(
        0.05, "share of all steps in which the learning rate rises linearly, 0 to 1", least=0, most=1
    )
    weight_decay: float = setting(0.05, "weight decay, on matrices only", least=0)
    label_smoothing: float = setting(0.0, "0 to 1; the official COCO recipe uses 0.1", least=0, most=1)
    max_grad_norm: float = setting(1.0, "clip the gradient's norm to this; 0: do not clip", least=0)
    seed: int = setting(42, "of the split, the order of images and random weights", least=0, most=2**32 - 1)
    captions_per_image: int | None = setting(
        None, "captions of each image in an epoch, others in the next; default: all, tiny 1", least=1
    )
    parallel_prediction: float | None = setting(
        None,
        "share of training captions whose words the decoder does not read, so that it must look at the image, 0 to "
        "below 1; "
        f"default: {defaults('parallel_prediction')}",
        least=0,
    )
    max_length: int = setting(40, "longest caption in tokens, [DEC], prompt and [SEP] included; longer ones are cut")
    max_words: int = setting(
        30, "longest caption in words, BLIP's own rule; longer ones are cut. sacreBLEU always compares 30", least=1
    )


@dataclass
class RegularisationSettings:
    """regularisation, all of it off by default"""

    augment: bool = setting(
        False,
        "training images are cropped, mirrored, turned and changed in colour as BLIP's were, anew in each epoch; not "
        "mirrored where a caption says left, right, or that there is text",
    )
    dropout: float | None = setting(
        None,
        "of the text decoder in training, 0 to 1; BLIP had 0.1; default: as the checkpoint says, mostly 0",
        least=0,
    )
    vision_learning_rate_factor: float = setting(
        1.0, "the image encoder learns at this share of the learning rate", above=0
    )
    layer_decay: float = setting(
        1.0,
        "each layer learns at this share of the rate of the one above it, in both halves; 1: all alike",
        above=0,
        most=1,
    )
    ema: float = setting(
        0.0,
        "keep an average of the weights, this share of it and the rest of the new ones at each step (0.999), and "
        "validate and keep it as best; 0: off",
        least=0,
    )
    patience: int | None = setting(
        None, "stop after this many validations in a row without a better one; default: never", least=1
    )


@dataclass
class DecodingSettings:
    """decoding"""

    prompt: str = setting("", "how every caption begins, not trained on; the official COCO recipe uses 'a picture of '")
    max_new_tokens: int = setting(30, "longest generated caption in tokens, [SEP] included, prompt not", least=1)
    min_new_tokens: int = setting(0, "shortest generated caption in tokens", least=0)
    num_beams: int = setting(5, "beams; 1 is greedy", least=1)
    length_penalty: float = setting(
        1.0, "beam score = sum of log-probabilities / length ** length_penalty", least=-10, most=10
    )
    repetition_penalty: float = setting(
        1.0, "above 1 a token that was said, in the prompt too, is less likely again", least=0.1, most=10
    )
    no_repeat_ngram_size: int = setting(0, "so many tokens never come twice in this order; 0: they may", least=0)
    early_stopping: bool = setting(True, "an image is done as soon as num_beams captions are complete")


@dataclass
class RunSettings:
    """the run"""

    output_dir: str | None = setting(None, "where everything is written; default: runs/DATASET")
    overwrite: bool = action("delete the run that output_dir holds")
    resume: bool = action("continue the run in output_dir from its newest checkpoint, or begin it")
    resume_from: str | None = setting(None, "continue from this checkpoint of the run instead; later ones are given up")
    allow_config_change: bool = action("resume although settings changed with which it is another run")
    time_limit: float | None = setting(
        None, "minutes after which to save and stop, with exit code 75; the last step and save are allowed for", above=0
    )
    save_every: int | None = setting(None, "save a checkpoint every so many steps, besides each epoch's end", least=1)
    eval_every: int | None = setting(None, "validate every so many steps instead of at each epoch's end", least=1)
    best_metric: str = setting(
        "auto",
        "what chooses best/ in validation; auto: sacreBLEU, or the loss for tiny, small and below 50 validation images",
        ("auto", "sacrebleu", "cider", "loss"),
    )
    logging_steps: int = setting(50, "steps between two lines of the log", least=1)
    save_total_limit: int = setting(2, "checkpoints to keep, at least 2; best/ is kept besides", least=2)
    log_with: str = setting("none", "dashboards: none, wandb, tensorboard, trackio, or several: wandb,tensorboard")
    country: str | None = setting(
        None, "3-letter code of where this runs, e.g. FRA: measure CO2 with codecarbon, for the model card"
    )
    wandb_artifacts: bool = setting(False, "at the end, upload best/ to W&B as an artifact")
    project: str = setting("blip_lite", "project name on the dashboard")
    run_name: str | None = setting(None, "run name on the dashboard; default: output_dir's name")

    def dashboards(self) -> list[str]:
        """`log_with` as a list."""
        return [] if self.log_with == "none" else [name.strip() for name in self.log_with.split(",")]


@dataclass
class InsteadSettings:
    """instead of training"""

    sanity: bool = action("only check that the model can learn 8 of the captions word for word, then stop")
    audit: bool = action(
        "only look at the data: counts, lengths, duplicates and near-duplicates across splits; exit code 1 on a leak"
    )
    plan: bool = action("only run 4 steps, one on the longest captions, print memory, time and disk needed, then stop")


class Setting(NamedTuple):
    """A setting by its flat name: the group that holds it, or None, and what is known of it."""

    name: str
    group: str | None
    field: dataclasses.Field[Any]
    kind: Any  # int, float, str, bool or list[str]
    optional: bool  # may be None
    title: str  # of the group


C = TypeVar("C", bound="Grouped")


class Grouped:
    """Settings in groups: between those and flat names, with every value checked."""

    @classmethod
    def settings(cls) -> dict[str, Setting]:
        """All settings by their flat names, in order."""
        return {one.name: one for one in _settings(cls, None)}

    @classmethod
    def of(cls: type[C], **flat: Any) -> C:
        """From flat names. Raises ConfigError for an unknown one."""
        return cls().replace(**flat)

    def replace(self: C, **flat: Any) -> C:
        """The same with other values. Raises ConfigError for an unknown name."""
        known = self.settings()
        own: dict[str, Any] = {}
        groups: dict[str, dict[str, Any]] = {}
        for name, value in flat.items():
            group = known_setting(known, name).group
            (own if group is None else groups.setdefault(group, {}))[name] = at_home(value)
        own |= {group: dataclasses.replace(getattr(self, group), **values) for group, values in groups.items()}
        return dataclasses.replace(self, **own)  # type: ignore[type-var]

    def flat(self) -> dict[str, Any]:
        """All values by their flat names."""
        holders = {n: self if s.group is None else getattr(self, s.group) for n, s in self.settings().items()}
        return {name: getattr(holder, name) for name, holder in holders.items()}

    def validate(self) -> None:
        """Raises ConfigError with every problem at once."""
        if problems := self.problems():
            raise ConfigError("; ".join(problems))

    def problems(self) -> list[str]:
        """What is wrong with single values."""
        found = []
        known = self.settings()
        for name, value in self.flat().items():
            choices, bounds = known[name].field.metadata["choices"], known[name].field.metadata["bounds"]
            if value is None:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                found.append(f"--{name} is {value}; expected a finite number")
                continue
            if choices and value not in choices:
                found.append(f"--{name} must be one of {', '.join(choices)}{did_you_mean(str(value), choices)}")
            least, above, most = (bounds.get(key) for key in ("least", "above", "most"))
            if least is not None and most is not None:
                found += [f"--{name} must be between {least} and {most}"] * (not least <= value <= most)
            elif least is not None and value < least:
                low = {0: "must not be negative", 1: "must be above 0"}
                found.append(f"--{name} {low.get(int(least), f'must be at least {least}')}")
            elif above is not None and value <= above:
                found.append(f"--{name} must be above {above}")
            elif most is not None and value > most:
                found.append(f"--{name} must be at most {most}")
        return found


def _settings(cls: type, group: str | None, title: str = "") -> Iterator[Setting]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _settings(kind, field.name, str(kind.__doc__))  # type: ignore[arg-type]
            continue
        optional = isinstance(kind, types.UnionType)  # `int | None`
        if optional:
            kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
        if "help" in field.metadata:
            yield Setting(field.name, group, field, kind, optional, title)


def at_home(value: Any) -> Any:
    """`~/photos`, a text or a path, alone or in a list -> the one in the user's home; all else as it is. Shells do that
    neither in `--output=~/x` nor in a YAML file."""
    if isinstance(value, list):
        return [at_home(one) for one in value]
    if isinstance(value, (str, Path)) and re.match(r"~\w*([/\\]|$)", str(value)):
        return type(value)(os.path.expanduser(value))
    return value


def did_you_mean(given: str, known: typing.Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean 'batch_size'?`, or nothing where no name is close."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def known_setting(known: dict[str, Setting], name: str, where: str = "") -> Setting:
    """A setting by its name. Raises ConfigError, which begins with `where`, for an unknown one."""
    if name not in known:
        raise ConfigError(f"{where}unknown setting {name!r}{did_you_mean(name, known)}")
    return known[name]


@dataclass
class TrainConfig(Grouped):
    """Fine-tune BLIP for image captioning."""

    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    loading: LoadingSettings = dataclasses.field(default_factory=LoadingSettings)
    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    optimisation: OptimisationSettings = dataclasses.field(default_factory=OptimisationSettings)
    regularisation: RegularisationSettings = dataclasses.field(default_factory=RegularisationSettings)
    decoding: DecodingSettings = dataclasses.field(default_factory=DecodingSettings)
    run: RunSettings = dataclasses.field(default_factory=RunSettings)
    instead: InsteadSettings = dataclasses.field(default_factory=InsteadSettings)

    def resolved(self) -> TrainConfig:
        """The same settings with every default that depends on another one filled in."""
        values = self.flat()
        own = FROM_SCRATCH.get(self.model.model, FINE_TUNING)
        fill = {name: value for name, value in own.items() if values[name] in (None, "auto")}
        if "learning_rate" in fill and (values["optimizer"] or own["optimizer"]) == "muon":
            fill["learning_rate"] *= MUON_RATE
        run, dataset = self.run, self.data.dataset
        if run.resume_from:
            fill |= {"resume": True, "output_dir": run.output_dir or str(Path(run.resume_from).parent)}
        elif run.output_dir is None:
            path = Path(dataset)  # a folder's name may hold a dot
            is_file = path.suffix.lower() in (*TABLES, ".tar")
            name = path.resolve().name if path.is_dir() else path.stem if is_file else path.name
            plain = re.sub(r"[^\w.]+", "-", name).strip("-.")  # of a name like 🐕 nothing is left
            fill["output_dir"] = f"runs/{plain or 'data-' + hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return self.replace(**fill)

    def problems(self) -> list[str]:
        """What is wrong, with single values and with some together."""
        problems, run, regularisation = super().problems(), self.run, self.regularisation
        shares = {"dropout": regularisation.dropout, "ema": regularisation.ema}
        for name, value in {**shares, "parallel_prediction": self.optimisation.parallel_prediction}.items():
            if (value or 0) >= 1:
                problems.append(f"--{name} must be below 1")
        if regularisation.augment and self.model.freeze_vision and self.model.feature_cache_gb:
            problems.append(
                "--augment changes images in each epoch, and --freeze_vision keeps what it made of them once: leave "
                "one out, or pass --feature_cache_gb 0"
            )
        if self.decoding.min_new_tokens > self.decoding.max_new_tokens:
            problems.append("--min_new_tokens must not be above --max_new_tokens")
        if unknown := set(run.dashboards()) - set(DASHBOARDS):
            names = ", ".join(sorted(unknown))
            problems.append(f"--log_with {names}: known are none, {', '.join(DASHBOARDS)}")
        if run.resume_from:
            path = Path(run.resume_from).resolve()
            if path.parent != Path(str(run.output_dir)).resolve() or not re.fullmatch(r"checkpoint-\d+", path.name):
                problems.append(f"--resume_from {run.resume_from} is no checkpoint-N in --output_dir {run.output_dir}")
        if run.resume and run.overwrite:
            problems.append("--resume and --overwrite exclude each other")
        return problems


@dataclass
class EvalConfig(Grouped):
    """Caption a split with a checkpoint and score the captions.

    What `data`, `loading` and `decoding` are to be is known when the checkpoint is found: data and loading as in its
    run, but for that one's limit of images, decoding as the checkpoint says; and over them the flat values in
    `overrides`, which `of` fills.
    """

    ckpt: str = setting("best", "best, latest or checkpoint-N (of the run), a checkpoint directory, or a Hub id")
    run: str | None = setting(None, "run directory; default: that of the checkpoint, else the newest under runs/")
    split: str | None = setting(None, "which images; default: test, or validation for --sweep", (*SPLITS, "all"))
    compare: str | None = setting(
        None, "a second checkpoint (or Hub id, e.g. the untouched base): is one really better?"
    )
    predictions: str | None = setting(
        None,
        'score these captions instead: lines of {"image_id", "caption"}, or COCO\'s result JSON; '
        "needs --dataset or --run",
    )
    output: str | None = setting(None, "with predictions: where to write the numbers (JSON)")
    output_dir: str | None = setting(None, "where to write; default: the run, or the working directory for a Hub id")
    base: bool = setting(
        True, "also score the checkpoint that the run began with, untouched (once: its captions are kept)"
    )
    spice: bool = setting(
        False, "also SPICE: needs `pip install 'blip_lite[spice]'`, 390 MB fetched once, 2 GB of memory"
    )
    spice_subsample: int = setting(1000, "SPICE of this many images, drawn with a fixed seed; 0 is all", least=0)
    spice_dir: str | None = setting(None, "a folder with the four files of SPICE, for machines without a network")
    list: bool = action("only print a table of the run's evaluations")
    sweep: Texts | None = setting(  # noqa: RUF009
        None,
        "instead, quality against speed of every combination, on validation: e.g. num_beams=1,3,5 "
        "length_penalty=0.8,1.0,1.2",
    )
    dtype: str = setting(
        "auto",
        "of the weights; auto: bfloat16 on a GPU that has it, float16 on an older one, else float32",
        ("auto", "float32", "bfloat16", "float16"),
    )
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)

    GROUPS: typing.ClassVar = {"data": DataSettings, "loading": LoadingSettings, "decoding": DecodingSettings}

    @classmethod
    def settings(cls) -> dict[str, Setting]:
        own = {one.name: one for one in _settings(cls, None)}
        return own | {
            one.name: one for group, kind in cls.GROUPS.items() for one in _settings(kind, group, str(kind.__doc__))
        }

    def replace(self, **flat: Any) -> EvalConfig:
        known = self.settings()
        own = {name: at_home(value) for name, value in flat.items() if known_setting(known, name).group is None}
        overrides = {name: at_home(value) for name, value in flat.items() if name not in own}
        return dataclasses.replace(self, **own, overrides={**self.overrides, **overrides})

    def flat(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name, one in self.settings().items() if one.group is None}
        return own | self.overrides


def check(cls: type[Grouped], values: dict[str, Any], source: str) -> dict[str, Any]:
    """Check names and types of settings that were read from a file. Raises ConfigError."""
    known = cls.settings()
    for name, value in values.items():
        one = known_setting(known, name, f"{source}: ")
        kind, optional = one.kind, one.optional
        if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            with contextlib.suppress(ValueError):
                values[name] = value = float(value)  # YAML reads 5e-5 as text
        if not (value is None and optional) and (type(value) is not (typing.get_origin(kind) or kind)):
            raise ConfigError(f"{source}: {name} is {value!r}; expected {kind.__name__}")
    return values
