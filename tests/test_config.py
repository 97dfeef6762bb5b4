"""Settings from the command line and from YAML."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import blip_lite
from blip_lite.cli import exit_code, main
from blip_lite.command_line import COMMANDS, config_of, parse, parsers
from blip_lite.errors import (
    TIME_UP,
    BrokenOff,
    CheckpointError,
    ConfigError,
    DataError,
    ImageError,
    Stopped,
    TrainingError,
)
from blip_lite.settings import EvalConfig, TrainConfig, check


def test_the_missions_defaults() -> None:
    config = TrainConfig().resolved()
    expected = {
        "model": "Salesforce/blip-image-captioning-base",
        "dataset": "flickr8k",
        "output_dir": "runs/flickr8k",
        "epochs": 4,
        "learning_rate": 5e-5,
        "batch_size": 8,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "freeze_vision": False,
        "logging_steps": 50,
        "save_total_limit": 2,
        "seed": 42,
        "max_length": 40,
        "max_new_tokens": 30,
        "num_beams": 5,
        "length_penalty": 1.0,
        "early_stopping": True,
        "prompt": "",
    }
    assert {name: config.flat()[name] for name in expected} == expected


def test_the_loss_chooses_the_best_of_what_starts_from_nothing() -> None:
    for model, chosen in (("tiny", "loss"), ("small", "loss"), ("base", "auto"), ("owner/name", "auto")):
        assert TrainConfig.of(model=model).resolved().run.best_metric == chosen
    assert TrainConfig.of(model="small", best_metric="cider").resolved().run.best_metric == "cider"


def test_each_optimizer_has_its_own_learning_rate() -> None:
    def rate(**given: Any) -> float | None:
        return TrainConfig.of(**given).resolved().optimisation.learning_rate

    assert rate(model="small") == rate(model="small", optimizer="muon") == 1.2e-3
    assert rate(model="small", optimizer="adamw") == 6e-4
    assert rate(optimizer="muon") == 2 * rate() and rate(model="base", optimizer="muon") == 2 * rate(model="base")
    assert rate(model="small", learning_rate=1e-4) == rate(optimizer="muon", learning_rate=1e-4) == 1e-4
    again = TrainConfig.of(model="small").resolved()
    assert again.resolved() == again  # a run's config.json is read back as it is


def test_command_line_over_yaml_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 3\nlearning_rate: 1e-4\nfreeze_vision: true\nsave_every: null\n")
    config = config_of(TrainConfig, parse(["train", "--config", str(file), "--epochs", "7", "--no-early_stopping"]))
    assert (config.optimisation.epochs, config.optimisation.learning_rate, config.model.freeze_vision) == (
        7,
        1e-4,
        True,
    )
    assert config.decoding.early_stopping is False and config.resolved().loading.batch_size == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", "unknown setting 'epoch'; did you mean 'epochs'"),
        ("epochs: many", "epochs is 'many'; expected int"),
        ("epochs: 1.5", "expected int"),
        ("dataset: null", "expected str"),
        ("- epochs", "name: value"),
        ("a: [", "not valid YAML"),
    ],
)
def test_wrong_yaml_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        config_of(TrainConfig, parse(["train", "--config", str(tmp_path / "run.yaml")]))
    with pytest.raises(ConfigError, match="No such file"):
        config_of(TrainConfig, parse(["train", "--config", str(tmp_path / "absent.yaml")]))


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"batch_size.*label_smoothing.*save_total_limit"):
        TrainConfig.of(batch_size=0, label_smoothing=2, save_total_limit=1).validate()
    with pytest.raises(ConfigError, match="exclude"):
        TrainConfig.of(resume=True, overwrite=True).validate()


@pytest.mark.parametrize(("command", "cls"), [("train", TrainConfig), ("evaluate", EvalConfig)])
def test_help_shows_every_setting(command: str, cls: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "(default: None)" not in shown
    for name, setting in cls.settings().items():
        assert f"--{name}" in shown and setting.field.metadata["help"]
        assert (f"--no_{name}" in shown) == (setting.kind is bool and not setting.field.metadata.get("action"))
    assert "decoding:" in shown and "data:" in shown


def test_flat_names_and_groups_are_the_same_settings() -> None:
    config = TrainConfig().resolved()
    assert TrainConfig.of(**check(TrainConfig, config.flat(), "x")) == config
    assert set(EvalConfig.of(num_beams=3, ckpt="latest").flat()) > {"ckpt", "num_beams", "base"}
    with pytest.raises(ConfigError, match="unknown setting 'num_beam'; did you mean 'num_beams'"):
        TrainConfig.of(num_beam=3)
    with pytest.raises(ConfigError, match="unknown setting 'learning_rate'"):
        EvalConfig.of(learning_rate=3)


@given(st.data())
def test_hyphens_and_underscores_are_one(data: st.DataObject) -> None:
    """Any mixture, of any option, with its value beside it or behind `=`."""
    name = data.draw(st.sampled_from(sorted(TrainConfig.settings())))
    setting = TrainConfig.settings()[name]
    spelt = "".join(data.draw(st.sampled_from("-_")) if letter == "_" else letter for letter in name)
    value = {int: "3", float: "0.5", bool: None}.get(setting.kind, "a_b-c")
    if setting.field.metadata["choices"]:
        value = setting.field.metadata["choices"][0]
    words = (
        [f"--{spelt}"] if value is None else data.draw(st.sampled_from([[f"--{spelt}", value], [f"--{spelt}={value}"]]))
    )
    found = getattr(parse(["train", *words]), name)
    assert found == (True if value is None else setting.kind(value))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "--lerning_rate", "1"], "unknown option --lerning_rate; did you mean '--learning_rate'?"),
        (["train", "--lr-schedule", "lineer"], "did you mean 'linear'?"),
        (["evaluate", "--num-beam=3"], "did you mean '--num_beams'?"),
        (["trian"], "did you mean 'train'?"),
        (["train", "--no_overwrite"], "unknown option --no_overwrite"),
        (["train", "--batch_size", "many"], "argument --batch_size: invalid int value: 'many'"),
    ],
)
def test_a_slip_is_told_in_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and told in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "--dataset", "flickr8"], "did you mean 'flickr8k'?"),
        (["train", "--dataset", "shapes", "--model", "tinny"], "did you mean 'tiny'?"),
        (["evaluate", "--ckpt", "lastest"], "did you mean 'latest'?"),
    ],
)
def test_a_slip_in_a_name_is_told(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            parse([command, "--help"])
        assert stop.value.code == 0 and f"blip-lite {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [
        ("matplotlib", ["plot", "x", "--output", "x.png"], "plot"),
        ("accelerate", ["train", "--dataset", "shapes"], "train"),
        ("accelerate", ["evaluate"], "train"),
        ("fastapi", ["serve"], "serve"),
    ],
)
def test_a_missing_extra_is_named(
    package: str, words: list[str], extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    for room in ("training", "evaluation", "serving"):
        if room in vars(blip_lite):  # else the package would keep what is imported here in its place
            monkeypatch.setattr(blip_lite, room, vars(blip_lite)[room])
        for name in [name for name in sys.modules if name.startswith(f"blip_lite.{room}")]:
            monkeypatch.delitem(sys.modules, name)
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {package} is not installed: pip install 'blip_lite[{extra}]'\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (DataError("x"), 2),
        (ImageError("x"), 2),
        (CheckpointError("x"), 2),
        (TrainingError("x"), 1),
        (BrokenOff("x"), 3),
        (KeyboardInterrupt(), 130),
        (Stopped(15), 143),
        (Stopped(TIME_UP), 75),
    ],
)
def test_one_map_from_error_to_exit_code(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), OSError("x"), ValueError("x"), KeyError("x"), RuntimeError("x")]
)
def test_what_nobody_foresaw_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        exit_code(error)


@pytest.mark.parametrize(
    "recipe", sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_a_recipe_is_read_and_says_why(recipe: Path) -> None:
    config = config_of(TrainConfig, parse(["train", "--config", str(recipe)]))
    config.resolved().validate()
    defaults = TrainConfig().resolved().flat()
    lines = [line for line in recipe.read_text("utf-8").splitlines() if not line.startswith("#")]
    assert lines and all("  # " in line for line in lines)
    named = {line.split(":")[0] for line in lines}
    assert {name for name, value in config.resolved().flat().items() if value != defaults[name]} <= {
        *named,
        "output_dir",
    }


REQUIRED = {"caption": ["a.png"], "export": ["ckpt", "--to", "out"], "plot": ["run"], "review": ["c.jsonl"]}
TEXTS = [  # every option of every command that may hold a path
    (command, action.option_strings[-1:], action.dest)
    for command, parser in parsers()[1].items()
    for action in parser._actions
    if action.nargs != 0 and action.type in (None, str, Path) and not action.choices
]


@pytest.mark.parametrize("command, option, name", TEXTS, ids=lambda part: "".join(part) if part else "positional")
def test_a_tilde_is_the_home_of_the_user(
    command: str, option: list[str], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Shells leave it in `--output=~/x`."""
    monkeypatch.setenv("HOME", "/home/me")
    words = [f"{option[0]}=~/a b/c"] if option else ["~/a b/c"]
    required = REQUIRED.get(command, [])
    found = getattr(parse([command, *(required + words if option else words + required[1:])]), name)
    assert str(found[0] if isinstance(found, list) else found) == "/home/me/a b/c"
    settings = {"train": TrainConfig, "evaluate": EvalConfig}.get(command)
    if settings and name in settings.settings():
        (tmp_path / "run.yaml").write_text(f"{name}: {'[~/a b/c]' if isinstance(found, list) else '~/a b/c'}")
        config = config_of(settings, parse([command, "--config", str(tmp_path / "run.yaml")]))
        assert config.flat()[name] == found


@pytest.mark.parametrize("text", ["a~/b", "~ a picture", "~a picture of", "", "shapes", "~no-such user/x"])
def test_other_texts_keep_their_tilde(text: str) -> None:
    assert TrainConfig.of(prompt=text).flat()["prompt"] == text
