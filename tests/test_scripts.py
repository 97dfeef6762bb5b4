"""The scripts as people run them: exit codes, one clear line for each mistake, output."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from blip_lite.data.sources.shapes import draw_scene, scene_ids
from blip_lite.settings import TrainConfig
from conftest import ROOT


def script(name: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / f"{name}.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.long
def test_train_evaluate_caption(tmp_path: Path) -> None:
    """The thin path through everything, in a working directory of its own."""
    done = script("train", "--dataset", "shapes", "--model", "tiny", "--max_steps", 6, "--max_train_images", 40,
                  "--max_eval_images", 5, "--num_beams", 2, "--logging_steps", 3, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stdout and "best validation sacreBLEU" in done.stdout
    assert "it/s" not in done.stderr, "a progress bar where there is no terminal"
    done = script("evaluate", "--ckpt", "best", "--max_eval_images", 5, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "shapes, test: 5 images" in done.stdout and "sacreBLEU" in done.stdout
    assert (tmp_path / "runs" / "shapes" / "evaluations" / "best_5-images" / "coco_metrics.json").is_file()

    photos = tmp_path / "photos" / "inner"
    photos.mkdir(parents=True)
    for n, scene in enumerate(scene_ids(3, 0)):
        draw_scene(scene).save(photos / f"{n}.png")
    done = script("caption", photos / "0.png", "--ckpt", "runs/shapes/best", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1, done.stderr
    (photos / "1.png").write_bytes(b"broken")
    done = script("caption", "photos", "--ckpt", "runs/shapes/best", "--output", "out/captions.jsonl", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    assert done.returncode == 1 and "2 images captioned, 1 failed" in done.stderr
    assert [line["image"] for line in lines] == [f"photos/inner/{n}.png" for n in range(3)]
    assert lines[1]["caption"] is None and "not a JPEG" in lines[1]["error"] and lines[2]["caption"]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train", ["--dataset", "flickr9k"], "--dataset flickr9k: there is no such file or folder; expected shapes"),
        ("train", ["--dataset", "shapes", "--model", "nowhere/at/all"], "nowhere/at/all: no such directory"),
        ("train", ["--dataset", "shapes", "--model", "."], "not a checkpoint directory, it has no config.json"),
        ("train", ["--data_dir", "/no/such/place"], "--data_dir /no/such/place: there is no such directory"),
        ("train", ["--batch_size", "0", "--save_total_limit", "1"], "--batch_size must be above 0; --save_total_limit"),
        ("train", ["--config", "/no/such.yaml"], "No such file"),
        ("train", ["--split_scheme", "mine"], "invalid choice: 'mine'"),
        ("train", ["--dataset", "shapes", "--model", "tiny", "--max_length", "500"], "the model has 64 positions"),
        ("evaluate", ["--run", "/no/such/run"], "there is no such directory"),
        ("evaluate", ["--split", "dev"], "invalid choice: 'dev'"),
        ("caption", ["photo.jpg", "--ckpt", "/no/such/checkpoint"], "no such directory"),
    ],
)
def test_mistakes_get_one_clear_line(tmp_path: Path, name: str, arguments: list[str], words: str) -> None:
    done = script(name, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").rglob("config.json"))


def test_our_evaluate_hides_hugging_faces_from_nobody_by_running() -> None:
    """Importing evaluate.py (as `import evaluate` from the repository root would) does nothing."""
    done = subprocess.run([sys.executable, "-c", "import evaluate; print(sorted(n for n in dir(evaluate) if n[0] != '_'))"],
                          capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    assert done.stdout.strip() == "['main', 'sys']"


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "accelerate_configs").iterdir()))
def test_accelerate_reads_our_config_files(name: str) -> None:
    """Every key is one that Accelerate knows: at the top level it would refuse another, and we use no nested ones."""
    import dataclasses

    import yaml
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    keys = yaml.safe_load((ROOT / "accelerate_configs" / f"{name}.yaml").read_text())
    assert set(keys) <= {field.name for field in dataclasses.fields(ClusterConfig)}
    assert not any(isinstance(value, dict) for value in keys.values())
    loaded = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
    assert isinstance(loaded, ClusterConfig)
    assert loaded.mixed_precision == ("no" if name == "cpu" else "bf16")


def test_hyperparameters_of_a_job_are_the_settings_flat_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without AWS's SDK: a slip is told, and every setting passes, so that the SDK is asked for."""
    launch = runpy.run_path(str(ROOT / "aws_sagemaker" / "launch_training.py"))["main"]
    monkeypatch.setitem(sys.modules, "boto3", None)
    command = ["launch_training.py", "--role", "role", "--train", "s3://a/b", "--dry_run", "--hyperparameters"]
    monkeypatch.setattr(sys, "argv", [*command, "lerning_rate=1"])
    assert launch() == 2 and "no setting lerning_rate" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, *(f"{name}=1" for name in TrainConfig.settings())])
    with pytest.raises(ModuleNotFoundError, match="boto3"):
        launch()


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize(
    "words, code, told",
    [
        ("caption a.png --ckpt nowhere >&-", 2, "standard output is closed"),
        ("evaluate --list >&-", 2, "standard output is closed"),
        ("caption - --ckpt {ckpt} <&-", 2, "no images in -"),
        ("caption no.png --ckpt {ckpt} 2>&-", 1, ""),
        ("plot a | head -1", 141, "0\n"),
        ("caption a.png --ckpt {ckpt} --num_workers 100000000", 2, "at most 1024"),
        ("bogus", 2, "unknown command 'bogus'"),
    ],
)
def test_streams_that_are_closed(tmp_path: Path, hf_dir: Path, words: str, code: int, told: str) -> None:
    """`>&-` is told, `| head` ends a command without a traceback; `2>&-` puts errors nowhere, not among captions."""
    program = (
        "from blip_lite import cli; import sys\ncli.COMMANDS['plot'] = lambda a: [print(i) for i in range(10**5)] and 0"
    )
    (tmp_path / "run.py").write_text(f"{program}\nsys.exit(cli.main())\n")
    shell = f"{sys.executable} run.py {words.format(ckpt=hf_dir)}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == code and (done.stdout + done.stderr).count("\n") == bool(told), done.stderr
    assert told in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_the_module_of_the_command_line_is_one() -> None:
    done = subprocess.run([sys.executable, "-m", "blip_lite.cli", "bogus"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "unknown command" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the folder")
def test_a_current_folder_that_was_deleted_is_told(tmp_path: Path) -> None:
    shell = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m blip_lite caption a.png --ckpt nowhere"
    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 2 and "the current folder was deleted" in done.stderr
