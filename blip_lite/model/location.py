"""Where a checkpoint lies: a folder, one file of weights, a run, a clone of the Hub's cache, or the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from blip_lite.errors import CheckpointError
from blip_lite.processing.hub import from_hub

HUB_FILES = ["*.json", "vocab.txt", "model*.safetensors", "pytorch_model*.bin"]
WHOLE = ("model.safetensors", "pytorch_model.bin")  # as `transformers` names weights
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # as others save them
NO_WEIGHTS = ("training_args.bin", "optimizer.", "scheduler.", "sampler.", "scaler.", "rng_state")  # trainers' own
BESIDE = "put config.json, preprocessor_config.json and tokenizer.json of the checkpoint that was fine-tuned beside it"
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z")
HUB_PAGE = re.compile(r"(?:https?://)?(?:huggingface\.co/|hf\.co/)?([\w-][\w.-]*/[\w.-]+?)(?:/tree/main)?/?")


class Location(NamedTuple):
    """The folder of a checkpoint, and its file of weights where that was named or has a name of its own."""

    folder: Path
    weights: Path | None = None


def locate(path_or_id: str | Path) -> Location:
    """Find a checkpoint: a folder, a run (its `best/`), a file of weights, a Hub id, or a folder of the Hub's cache.

    Raises:
        CheckpointError: it is none of these, or cannot be had from the Hub; the message says what helps.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        if path.suffix.lower() in SUFFIXES:
            return Location(path.parent, path)
        archive = path.suffix.lower() in ARCHIVES
        raise CheckpointError(
            f"{path}: an archive: unpack it, and name the folder with config.json"
            if archive
            else f"{path}: a file without weights ({', '.join(SUFFIXES)}): name the folder, {path.parent}"
        )
    if not (page := HUB_PAGE.fullmatch(str(path_or_id))):
        raise CheckpointError(f"{path_or_id}: no such directory, and not a Hub id (owner/name)")
    return Location(_of_hub(page[1]))


def _in_folder(path: Path) -> Location:
    """A folder as it is, or the one in it that is meant."""
    if (path / "best" / "config.json").is_file() and not any(path.glob("*.safetensors")):
        return Location(path / "best")  # a run of train.py
    files = weights_in(path)
    whole = any((path / name).is_file() or (path / f"{name}.index.json").is_file() for name in WHOLE)
    own = files[0] if len(files) == 1 and not whole else None
    if own or (path / "config.json").is_file():
        return Location(path, own)
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(f"{path}: an adapter (LoRA), no whole model: `merge_and_unload()` and save that")
    if cached := _snapshot(path):
        return Location(cached)
    if whole:
        raise CheckpointError(f"{path}: weights without their config.json: {BESIDE}")
    inner = sorted((config.parent for config in path.glob("*/config.json")), key=lambda p: (len(p.name), p.name))
    names = ", ".join(folder.name for folder in inner[:5]) + ", ..." * (len(inner) > 5)
    hint = f"; {names} in it {'has' if len(inner) == 1 else 'have'}: name {'that' if len(inner) == 1 else 'one'}"
    raise CheckpointError(f"{path}: not a checkpoint directory, it has no config.json{hint if inner else ''}")


def weights_in(folder: Path) -> list[Path]:
    """The files that may hold a model's weights, by their names."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    return [file for file in files if not file.name.startswith(NO_WEIGHTS)]


def _snapshot(path: Path) -> Path | None:
    """What a folder of the Hub's cache (`models--owner--name`, or its `snapshots`) holds: of its branch `main`, or the
    only one."""
    path = path.parent if path.name == "snapshots" else path
    main, snapshots = path / "refs" / "main", path / "snapshots"
    if main.is_file() and (found := snapshots / main.read_text("utf-8").strip()).is_dir():
        return found
    inner = [folder for folder in snapshots.iterdir() if folder.is_dir()] if snapshots.is_dir() else []
    return inner[0] if len(inner) == 1 else None


def _of_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(f"{name}: no such directory; for a Hub id `pip install huggingface_hub`") from None

    def get() -> str:
        return snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=_only_one_format(name))

    try:
        return Path(from_hub(get))
    except LookupError as error:
        raise CheckpointError(f"{name}: no such directory, and {error}") from error


def _only_one_format(repo: str) -> list[str]:
    """Patterns to leave out, so that weights that are there twice are downloaded once."""
    from huggingface_hub import list_repo_files

    try:
        names = list_repo_files(repo)
    except Exception:  # offline: the cache decides
        return []
    return ["*.bin"] if any(name.endswith(".safetensors") for name in names) else []
