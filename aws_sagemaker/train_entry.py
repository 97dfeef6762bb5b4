"""Training inside a SageMaker container: its directories and hyperparameters -> the same `train` as anywhere.

Channels: `train` (and `validation`) with `train.jsonl` (`validation.jsonl`), lines of {"image", "caption"} with images relative to the
file or to `images/` beside it; or any folder that `--dataset` reads; `model`, a checkpoint. Hyperparameters are train.py's settings.
Checkpoints go to /opt/ml/checkpoints, which a Spot job finds again, and every start resumes from the newest. The model
directory gets the best checkpoint and `code/`, ready for an endpoint; what went wrong is told in /opt/ml/output/failure.
Started on an instance with several GPUs, or on several instances, it becomes torchrun.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE if (HERE / "blip_lite").is_dir() else HERE.parent))

BASE = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
TOOLKIT = ("sagemaker_", "sm_")  # hyperparameters with which the toolkits talk to themselves


def hosts() -> list[str]:
    return sorted(json.loads(os.environ.get("SM_HOSTS", '["localhost"]')))


def torchrun(gpus: int) -> None:
    """Become torchrun, so that a signal for this process reaches it: a process for each GPU of each instance."""
    names, me = hosts(), os.environ.get("SM_CURRENT_HOST", "localhost")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "110")  # SageMaker kills 120 s after SIGTERM
    if not gpus:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    port = os.environ.get("SM_MASTER_PORT", "7777")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(max(1, gpus))]
    command += ["--nnodes", str(len(names)), "--node_rank", str(names.index(me))]
    command += ["--master_addr", names[0], "--master_port", port, str(HERE / "train_entry.py")]
    os.execv(sys.executable, command)


def settings() -> dict[str, Any]:
    """TrainConfig's values: hyperparameters, over what the channels say. Raises ConfigError."""
    import yaml

    from blip_lite.settings import TrainConfig, check

    values: dict[str, Any] = {"resume": True, "output_dir": str(BASE / "checkpoints" / "run")}
    if channel := os.environ.get("SM_CHANNEL_TRAIN"):
        values |= dataset(Path(channel), os.environ.get("SM_CHANNEL_VALIDATION"))
    if channel := os.environ.get("SM_CHANNEL_MODEL"):
        values["model"] = channel
    known = TrainConfig.settings()
    for name, value in json.loads(os.environ.get("SM_HPS", "{}")).items():
        if name in known:  # one toolkit hands over texts, another what they mean in JSON
            values[name] = str(value) if known[name].kind is str else yaml.safe_load(str(value))
        elif not name.startswith(TOOLKIT):
            values[name] = value  # `check` says that there is no such setting
    return check(TrainConfig, values, "hyperparameters")


def dataset(train: Path, validation: str | None) -> dict[str, str]:
    """The settings `dataset` and `image_root` for the channels: both lists in one, with absolute paths and the split."""
    from blip_lite.data.sources.encoding import utf8
    from blip_lite.data.sources.table import read_table
    from blip_lite.errors import ConfigError

    if not (train / "train.jsonl").is_file():
        return {"dataset": str(train)}  # a folder that --dataset reads by itself
    lists = [("train", train / "train.jsonl")]
    if validation:
        lists.append(("validation", Path(validation) / "validation.jsonl"))
    # Always at the same place, as a job that goes on asks whether its data set is still the same.
    merged = Path(tempfile.gettempdir()) / "blip_lite" / "channels.jsonl"
    merged.parent.mkdir(exist_ok=True)
    part = merged.with_name(f"channels-{os.getpid()}")  # each process of a host writes it
    with open(part, "w", encoding="utf-8") as file:
        for split, path in lists:
            if not path.is_file():
                raise ConfigError(f"channel {split}: there is no {path}")
            for where, row in utf8(path, read_table(path)):
                name, caption = row.get("image"), row.get("caption")
                if not isinstance(name, str) or caption is None:
                    raise ConfigError(f'{where}: expected {{"image": ..., "caption": ...}}')
                beside = path.parent / name
                image = Path(os.path.normpath(beside if beside.exists() else path.parent / "images" / name))
                if not image.is_relative_to(path.parent):
                    raise ConfigError(f"{where}: {name} lies outside the channel")
                row = {"image": str(image), "caption": caption, **({"split": split} if validation else {})}
                file.write(json.dumps(row) + "\n")
    os.replace(part, merged)
    return {"dataset": str(merged), "image_root": "/"}


def deliver(run: Path) -> None:
    """The best checkpoint and the handler -> SM_MODEL_DIR, which becomes `model.tar.gz`."""
    import blip_lite

    model = Path(os.environ.get("SM_MODEL_DIR", BASE / "model"))
    # Without our manifest.json, which the container's model server would take for one of its own, and stop.
    shutil.copytree(run / "best", model, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
    for name in ("README.md", "metrics.jsonl", "config.json"):
        if (run / name).is_file():
            (model / "run").mkdir(exist_ok=True)
            shutil.copy2(run / name, model / "run" / name)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(blip_lite.__file__).parent, model / "code" / "blip_lite", dirs_exist_ok=True, ignore=ignore)
    shutil.copy2(HERE / "inference.py", model / "code" / "inference.py")


def failed(text: str) -> None:
    """SageMaker shows the first 1,024 characters of this file as the reason; the first process to fail has the word."""
    path = BASE / "output" / "failure"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(text[:1024], "utf-8")


def main() -> int:
    gpus = int(os.environ.get("SM_NUM_GPUS") or 0)
    if "RANK" not in os.environ and (gpus > 1 or len(hosts()) > 1):
        torchrun(gpus)
    from blip_lite.errors import CheckpointError, ConfigError, DataError, Stopped, TrainingError
    from blip_lite.settings import TrainConfig
    from blip_lite.training.loop import train

    try:
        config = TrainConfig.of(**settings())
        train(config)
        if int(os.environ.get("RANK", 0)) == 0:
            deliver(Path(str(config.resolved().run.output_dir)))
    except (ConfigError, DataError, CheckpointError, TrainingError) as error:
        failed(f"{type(error).__name__}: {error}")
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:  # a Spot interruption: the checkpoint is saved, the next start goes on
        return 128 + stopped.number
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        failed(
            f"{type(error).__name__}: {error}\nin {last.filename}, line {last.lineno}\n\n{traceback.format_exc()[-700:]}"
        )
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
