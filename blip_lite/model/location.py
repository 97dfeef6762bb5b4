"""Where a checkpoint lies: a folder, one file of weights, a run, a folder of the Hub's cache, or the Hub."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from blip_lite.errors import CheckpointError
from blip_lite.processing.file_kinds import head_of
from blip_lite.processing.hub import from_hub

HUB_FILES = ["*.json", "vocab.txt", "model*.safetensors", "pytorch_model*.bin"]
WHOLE = ("model.safetensors", "pytorch_model.bin")  # as `transformers` names weights
LOOPS = (".pt", ".pth", ".ckpt")  # as training loops do
SUFFIXES = (".safetensors", ".bin", *LOOPS)
# What trainers write beside weights; with a point first, what macOS does.
NO_WEIGHTS = re.compile(
    r"\.|training_args|trainer_state|optim(?:izer)?(?:[._\d-]|$)|(?:lr_)?scheduler|sampler|(?:grad_)?scaler|"
    r"rng_state|random_states",
    re.IGNORECASE,
)
_TRAINED = re.compile("best|last|latest|final|model|blip|epoch|step|checkpoint|ckpt|weights|ema|tuned|state_dict")
MAX_TEXT_BYTES = 64 * 2**20  # of any file but the weights
BESIDE = (
    "put these three files of the checkpoint that was fine-tuned beside it: config.json, preprocessor_config.json, "
    "tokenizer.json"
)
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z")
OTHERS = (  # names of other frameworks' weights, and what makes ours of them
    (
        r"zero_to_fp32\.py|global_step\d+",
        "DeepSpeed's shards: `python zero_to_fp32.py . .` in this folder makes weights",
    ),
    (r"pytorch_model_fsdp_\d+", "FSDP's shards: `accelerate merge-weights {} OUTPUT` makes weights"),
    (r".*\.distcp", "FSDP's shards: `accelerate merge-weights {.parent} OUTPUT` makes weights"),
    (r"tf_model.*\.h5", "TensorFlow's weights: `from_pretrained(..., from_tf=True)` of transformers 4 reads them"),
    (r"flax_model.*\.msgpack", "Flax's weights: `from_pretrained(..., from_flax=True)` of transformers 4 reads them"),
    (
        r"(?:model|pytorch_model)-\d+-of-\d+\.(?:safetensors|bin)",
        "shards ({.name}, ...) without their index: download the file that ends in .index.json, too",
    ),
    (r".*\.(?:onnx|gguf|tflite|engine)", "weights for another runtime: name the checkpoint that they were made of"),
)
_SHARD = re.compile(r".+-\d+-of-\d+\.\w+")
_HUB_PAGE = re.compile(
    r"(?:https?://)?(?:(?:www\.)?huggingface\.co/|hf\.co/)?((?!huggingface\.co|hf\.co)[\w-][\w.-]*/[\w.-]+?)"
    r"(?:/tree/main)?/?"
)
_HUB_FILE = re.compile(  # of the repository's own checkpoint
    r"(?:https?://)?(?:(?:www\.)?huggingface\.co|hf\.co)/([\w-][\w.-]*/[\w.-]+)/(?:blob|resolve)/main/"
    r"(?:model(?:-\d+-of-\d+)?\.safetensors|pytorch_model(?:-\d+-of-\d+)?\.bin|[\w.-]+\.json)(?:\?.*)?"
)


class Location(NamedTuple):
    """The folder of a checkpoint, and its file of weights where that was named or has a name of its own."""

    folder: Path
    weights: Path | None = None


def locate(path_or_id: str | Path) -> Location:
    """Find a checkpoint: a folder, a run (its `best/`), a file of weights, a Hub id, or a folder of the Hub's cache.

    Raises:
        CheckpointError: it is none of these, or cannot be had from the Hub; the message says what helps.
    """
    path = Path(os.path.expanduser(path_or_id))
    suffix = path.suffix.lower()
    if os.path.isdir(path):
        return _in_folder(path)
    if os.path.isfile(path):
        if suffix in SUFFIXES:
            return Location(path.parent, None if _SHARD.fullmatch(path.name) else path)
        archive = f"{path}: an archive: unpack it, and name the folder with config.json"
        other = f"{path}: a file without weights ({', '.join(SUFFIXES)}): name the folder, {path.parent}"
        raise CheckpointError(archive if suffix in ARCHIVES else other)
    page = None if suffix in (*SUFFIXES, *ARCHIVES) else _HUB_PAGE.fullmatch(str(path_or_id))
    page = page or _HUB_FILE.fullmatch(str(path_or_id))
    if not page:
        raise CheckpointError(f"{str(path_or_id)[:200]}: no such directory or file, and not a Hub id (owner/name)")
    return Location(_of_hub(page[1]))


def refuse_large(path: Path) -> None:
    """Weights may be large; no other file of a checkpoint is read beyond 64 MiB. Raises CheckpointError."""
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise CheckpointError(
            f"{path}: refused, {path.stat().st_size / 2**20:,.0f} MiB; at most {MAX_TEXT_BYTES / 2**20:.0f} are read"
        )


def is_lfs(file: Path) -> bool:
    """Whether a file is what Git LFS puts in the place of a large one."""
    return head_of(str(file)).startswith(b"version https://git-lfs")


def why_not_read(file: Path, error: Exception) -> str:
    """What is wrong with a file of weights, and what helps."""
    if is_lfs(file):
        return "a Git LFS pointer: run `git lfs pull`"
    if file.is_file() and not file.stat().st_size:
        return "it is empty: download or copy it again"
    if head_of(str(file)).lstrip().startswith(b"<"):
        return "it is a web page, not weights: download it again"
    return str(error) if isinstance(error, OSError) else f"{error}; was it cut off? Then download or copy it again"


def is_of_blip(folder: Path) -> bool:
    """Whether the folder has a `config.json`, and not that of a run, or of the text model whose words it has. Raises
    CheckpointError for one that is too large."""
    try:
        refuse_large(folder / "config.json")
        about = json.loads((folder / "config.json").read_text("utf-8-sig"))
        return str(about.get("model_type")).startswith("blip")
    except (FileNotFoundError, AttributeError):
        return False
    except (OSError, ValueError, RecursionError):
        return True  # damaged; who reads it says so


def _in_folder(path: Path) -> Location:
    """A folder as it is, or the one in it that is meant. Raises CheckpointError where several things may be."""
    described = is_of_blip(path)
    if not described and (path / "best" / "config.json").is_file():
        return Location(path / "best")  # a run of train.py
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{path}: has an adapter (LoRA, adapter_config.json), which is not read: `merge_and_unload()` and save "
            "that; or take it away, if it is merged"
        )
    return _weights_of(path, described) or _inside(path)


def _weights_of(path: Path, described: bool) -> Location | None:
    """The weights that lie in a folder; none where nothing there says that it is a checkpoint. `described`: by its
    `config.json`."""
    files, whole = weights_in(path), whole_in(path)
    if described and whole:
        loops = [file for file in files if file.suffix.lower() in LOOPS and _TRAINED.search(file.stem.lower())]
        if not loops:
            return Location(path)
        files = [path / whole, *loops]
    elif not described and whole and (path / "config.json").is_file() and len(files) == 1:
        return Location(path)  # another model: who reads config.json says which
    elif not described and len(files) > 1:  # BLIP's release has a .pth
        files = [file for file in files if file.suffix.lower() == ".pth"][:2] or files
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5]) + ", ..." * (len(files) > 5)
        raise CheckpointError(f"{path}: which of these weights? Name the file: {names}")
    return Location(path, files[0]) if files else Location(path) if described else None


def _inside(path: Path) -> Location:
    """What a folder without weights holds: a checkpoint in the Hub's cache, or a config.json of another kind, whose
    reader says so. Raises CheckpointError that names the checkpoints in it."""
    if cached := _snapshot(path):
        return Location(cached)
    inner = sorted((config.parent for config in path.glob("*/config.json")), key=lambda p: (len(p.name), p.name))
    inner += sorted(config.parent for config in path.glob("snapshots/*/config.json"))
    if (path / "config.json").is_file() and not inner:
        return Location(path)
    if not inner and (remedy := of_others(path)):
        raise CheckpointError(f"{path}: {remedy}")
    names = ", ".join(str(folder.relative_to(path)) for folder in inner[:5]) + ", ..." * (len(inner) > 5)
    hint = f"; {names} in it {'has' if len(inner) == 1 else 'have'}: name {'that' if len(inner) == 1 else 'one'}"
    raise CheckpointError(f"{path}: not a checkpoint directory, it has no config.json of a BLIP{hint * bool(inner)}")


def whole_in(folder: Path) -> str | None:
    """The file of weights, or its index, under the names that `transformers` gives."""
    names = [name for whole in WHOLE for name in (whole, f"{whole}.index.json")]
    return next((name for name in names if (folder / name).is_file()), None)


def of_others(folder: Path) -> str | None:
    """What helps with another framework's weights, if a folder has some."""
    names = sorted(os.listdir(folder))
    found = ((folder / name, text) for pattern, text in OTHERS for name in names if re.fullmatch(pattern, name))
    return next((f"has {text.format(file)}" for file, text in found), None)


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights, and not a processor alone."""
    return bool(whole_in(folder) or weights_in(folder))


def weights_in(folder: Path) -> list[Path]:
    """The files that may hold a model's weights, by their names; no shards."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    return [file for file in files if not (NO_WEIGHTS.match(file.name) or _SHARD.fullmatch(file.name))]


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
