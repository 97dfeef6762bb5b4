"""Settings from the command line and from YAML."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from blip_lite.config import ConfigError, EvalConfig, TrainConfig, check, parse


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
    assert {name: getattr(config, name) for name in expected} == expected


def test_command_line_over_yaml_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 3\nlearning_rate: 1e-4\nfreeze_vision: true\nsave_every: null\n")
    config = parse(TrainConfig, ["--config", str(file), "--epochs", "7", "--no-early_stopping"])
    assert (config.epochs, config.learning_rate, config.freeze_vision) == (7, 1e-4, True)
    assert config.early_stopping is False and config.batch_size == 8


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
        parse(TrainConfig, ["--config", str(tmp_path / "run.yaml")])
    with pytest.raises(ConfigError, match="No such file"):
        parse(TrainConfig, ["--config", str(tmp_path / "absent.yaml")])


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"label_smoothing.*batch_size.*save_total_limit"):
        TrainConfig(batch_size=0, label_smoothing=2, save_total_limit=1).validate()
    with pytest.raises(ConfigError, match="exclude"):
        TrainConfig(resume=True, overwrite=True).validate()


@pytest.mark.parametrize("cls", [TrainConfig, EvalConfig])
def test_help_shows_every_setting(cls: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(cls, ["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    for field in dataclasses.fields(cls):
        assert f"--{field.name}" in shown and field.metadata["help"]
        if field.default not in (None, ""):
            assert f"(default: {field.default})" in " ".join(shown.split())


def test_files_with_known_names_pass() -> None:
    values = dataclasses.asdict(TrainConfig().resolved())
    assert TrainConfig(**check(TrainConfig, values, "x")) == TrainConfig().resolved()
