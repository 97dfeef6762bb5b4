"""Checkpoint directory or Hub id <-> (model, processor), with every key and every shape checked."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.overrides import TorchFunctionMode

from blip_lite.errors import CheckpointError, ConfigError
from blip_lite.model.blip import Blip
from blip_lite.model.config import BlipConfig
from blip_lite.model.foreign import config_of_original, from_original, is_original, read_torch, unwrapped
from blip_lite.model.generation import NUMBERS, GenerationSettings
from blip_lite.model.location import (
    BESIDE,
    WHOLE,
    is_lfs,
    is_of_blip,
    locate,
    of_others,
    refuse_large,
    whole_in,
    why_not_read,
)
from blip_lite.processing.processor import CLIP_MEAN, CLIP_STD, Processor, wordpiece
from blip_lite.settings import DecodingSettings

log = logging.getLogger(__name__)

# The vocabulary head is the word embedding, its bias has two names, and old checkpoints store a constant.
HEAD = "text_decoder.cls.predictions."


DERIVED = {
    HEAD + "decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    HEAD + "decoder.bias": HEAD + "bias",
}


DECODING = tuple(field.name for field in fields(DecodingSettings) if field.name != "prompt")


# What `transformers` may decode with and a checkpoint here may not, and the values that say nothing.
UNKNOWN: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,), "num_beam_groups": (1,), "diversity_penalty": (0.0,), "penalty_alpha": (), "top_k": (50, 0),
    "temperature": (1.0,), "top_p": (1.0,), "num_return_sequences": (1,), "bad_words_ids": (), "suppress_tokens": (),
    "forced_bos_token_id": (), "forced_eos_token_id": (), "exponential_decay_length_penalty": (), "typical_p": (1.0,),
}  # fmt: skip
CONSTANT = re.compile(r".*\.position_ids$")


def read_config(directory: Path) -> BlipConfig:
    """Read `config.json`. Raises CheckpointError."""
    try:
        config = BlipConfig.from_dict(_read_json(directory / "config.json"))
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{directory}: {error}") from error
    for name in ("bos_token_id", "sep_token_id", "pad_token_id"):
        value, size = getattr(config.text, name), config.text.vocab_size
        if not isinstance(value, int) or not 0 <= value < size:
            raise CheckpointError(f"{directory}: text_config.{name} is {value!r}; expected 0 to {size - 1}")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: not a checkpoint directory, it has no {path.name}")
    refuse_large(path)
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = "a Git LFS pointer: run `git lfs pull`" if is_lfs(path) else f"not valid JSON ({error})"
        raise CheckpointError(f"{path}: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content


def read_weights(directory: Path, file: Path | None = None) -> dict[str, Tensor]:
    """All tensors of a checkpoint, under the names that its writer gave them but for wrappings.

    Args:
        directory: with `model.safetensors` or `pytorch_model.bin`, whole or in shards.
        file: of weights under another name.

    Pickles are read with `weights_only=True` alone: nothing in them is run.

    Raises:
        CheckpointError: there are none, or they cannot be read.
    """
    if file:
        return unwrapped(_read_file(file), file)
    whole = whole_in(directory)
    if whole is None:
        there = ", ".join(sorted(path.name for path in directory.iterdir())[:12])
        ours = f"has neither {' nor '.join(WHOLE)}; there are {there}"
        raise CheckpointError(f"{directory}: {of_others(directory) or ours}")
    shards = shards_of(directory / whole) if whole.endswith(".json") else [whole]
    weights = {key: tensor for shard in shards for key, tensor in _read_file(directory / shard).items()}
    return unwrapped(weights, directory / shards[0])


def _read_file(file: Path) -> dict[str, Tensor]:
    read = safetensors.torch.load_file if file.suffix.lower() == ".safetensors" else read_torch
    try:
        return read(file)
    except CheckpointError:
        raise
    except Exception as error:  # torn zip, bad pickle, short header: many types, one meaning
        raise CheckpointError(f"{file}: cannot be read ({why_not_read(file, error)})") from error


def shards_of(index: Path) -> list[str]:
    """The files that an index names; all lie beside it. Raises CheckpointError."""
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index}: has no weight_map of file names")
    if bad := [name for name in names.values() if Path(name).name != name]:
        raise CheckpointError(f"{index}: names a file outside the directory: {bad[0]}")
    return sorted(set(names.values()))


def load_weights(model: Blip, weights: dict[str, Tensor], source: str | Path) -> None:
    """Put tensors into a model (which may be on the meta device).

    Raises:
        CheckpointError: naming missing, unexpected and misshapen tensors, or tied ones that differ.
    """
    weights = {name: tensor for name, tensor in weights.items() if not CONSTANT.match(name)}
    if HEAD + "bias" not in weights and HEAD + "decoder.bias" in weights:
        weights[HEAD + "bias"] = weights[HEAD + "decoder.bias"]
    for copy, original in DERIVED.items():
        tensor = weights.pop(copy, None)
        if tensor is not None and original in weights and not torch.equal(tensor, weights[original]):
            raise CheckpointError(f"{source}: {copy} differs from {original}, to which BLIP ties it")

    wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in DERIVED}
    problems = [f"missing: {name}" for name in wanted if name not in weights]
    problems += [f"unexpected: {name}" for name in weights if name not in wanted]
    problems += [
        f"{name}: shape {list(weights[name].shape)}, config.json asks for {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        more = f"\n  ... and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{source}: the weights do not fit the model\n  " + "\n  ".join(problems[:8]) + more)
    if odd := [name for name, tensor in weights.items() if tensor.is_meta]:
        raise CheckpointError(f"{source}: {len(odd)} tensors were saved without their numbers, e.g. {odd[0]}")
    if odd := [name for name, tensor in weights.items() if not tensor.is_floating_point()]:
        kind = str(weights[odd[0]].dtype).removeprefix("torch.")
        raise CheckpointError(f"{source}: quantized weights ({odd[0]} is {kind}): save them in floating point")
    if odd := [name for name, tensor in weights.items() if not math.isfinite(tensor.sum(dtype=torch.float32))]:
        raise CheckpointError(f"{source}: {len(odd)} tensors hold NaN or infinity, e.g. {odd[0]}")
    weights = {name: tensor.to(wanted[name].dtype) for name, tensor in weights.items()}
    model.load_state_dict(weights, strict=False, assign=True)  # strict above, but for the derived names
    model.text_decoder.cls.predictions.decoder.bias = model.text_decoder.cls.predictions.bias
    model.tie_weights()


class Unfilled(TorchFunctionMode):
    """Modules made in this context do not fill their weights. (On the meta device torch would do that with
    decompositions, whose import alone takes 2 seconds.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def load_pretrained(
    path_or_id: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Blip, Processor]:
    """Load a captioning checkpoint: ours, or one saved by `transformers`, old or new.

    Args:
        path_or_id: a directory, a run, a file of weights beside its `config.json`, a folder of the Hub's cache, or a
            Hub id such as `Salesforce/blip-image-captioning-base`.
        device: where the model goes.
        dtype: of the weights.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        CheckpointError: it cannot be found, or a file, key or shape is wrong; the message names it.
    """
    folder, file = locate(path_or_id)
    if file and not is_of_blip(folder):
        return load_original(file, device, dtype)
    config = read_config(folder)
    processor = load_processor(folder, config)
    with Unfilled(), torch.device("meta"):  # no memory and no time for weights that are replaced at once
        model = Blip(config)
    load_weights(model, from_original(read_weights(folder, file)), path_or_id)
    return model.to(device, dtype).eval(), processor


def load_original(file: Path, device: str | torch.device, dtype: torch.dtype) -> tuple[Blip, Processor]:
    """A `.pth` of BLIP's own release, with the vocabulary beside it (`vocab.txt` or `tokenizer.json` of
    bert-base-uncased; the release has none). Raises CheckpointError."""
    weights = read_weights(file.parent, file)
    if not is_original(weights):
        raise CheckpointError(f"{file}: not of BLIP's own release (visual_encoder.*, text_decoder.*), so {BESIDE}")
    if not any((file.parent / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise CheckpointError(f"{file}: put bert-base-uncased's vocab.txt beside it; BLIP's release has none")
    width = weights["text_decoder.bert.embeddings.word_embeddings.weight"].shape[1]
    config = BlipConfig.from_dict(config_of_original(weights, max(1, width // 64)))
    tokenizer, text = _load_tokenizer(file.parent), config.text
    fits(tokenizer, text.vocab_size, file)
    ids = text.bos_token_id, text.sep_token_id, text.pad_token_id
    processor = Processor(tokenizer, config.vision.image_size, *ids, **read_decoding(file.parent))
    with Unfilled(), torch.device("meta"):
        model = Blip(config)
    load_weights(model, from_original(weights), file)
    return model.to(device, dtype).eval(), processor


def fits(tokenizer: Tokenizer, vocab_size: int, source: Path) -> None:
    """Raises CheckpointError for a tokenizer of another kind than BERT's, or another vocabulary than the model's."""
    kind, tokens = type(tokenizer.model).__name__, tokenizer.get_vocab_size()
    if kind != "WordPiece":
        raise CheckpointError(f"{source}: its tokenizer is {kind}; BLIP's is WordPiece")
    if tokenizer.model.unk_token not in tokenizer.get_vocab():
        raise CheckpointError(f"{source}: the tokenizer's unknown token {tokenizer.model.unk_token!r} is no token")
    if any(number >= vocab_size for number in tokenizer.get_vocab(with_added_tokens=False).values()):
        raise CheckpointError(f"{source}: the tokenizer has ids beyond the model's {vocab_size}")
    if tokens > vocab_size or 2 * tokens < vocab_size:
        raise CheckpointError(f"{source}: the tokenizer has {tokens} tokens, the model {vocab_size}")


def load_processor(directory: Path, config: BlipConfig) -> Processor:
    """Read the tokenizer (`tokenizer.json` or `vocab.txt`) and the image settings (`processor_config.json`, or
    the older `preprocessor_config.json`). Raises CheckpointError."""
    needed = (("preprocessor_config.json", "processor_config.json"), ("tokenizer.json", "vocab.txt"))
    if missing := [names for names in needed if not any((directory / name).is_file() for name in names)]:
        raise CheckpointError(
            f"{directory}: has neither {', and neither '.join(' nor '.join(names) for names in missing)}. A model that "
            f"was saved without its processor gets it by `BlipProcessor.from_pretrained(BASE).save_pretrained("
            f"{str(directory)!r})`, BASE being the checkpoint that was fine-tuned"
        )
    settings: dict[str, Any] = {}
    if (directory / "processor_config.json").is_file():
        settings = _read_json(directory / "processor_config.json").get("image_processor") or {}
    if not isinstance(settings, dict):
        raise CheckpointError(f"{directory / 'processor_config.json'}: image_processor is no JSON object")
    if not settings:
        settings = _read_json(directory / "preprocessor_config.json")
    size = settings.get("size", config.vision.image_size)
    height, width = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
    if height != config.vision.image_size or width != config.vision.image_size:
        raise CheckpointError(
            f"{directory}: images of size {size}, but the model's image_size is {config.vision.image_size}"
        )
    if settings.get("do_resize") is False or settings.get("do_center_crop"):
        what = "do_center_crop" if settings.get("do_center_crop") else "do_resize: false"
        raise CheckpointError(f"{directory}: {what} is not supported: images are resized whole, as BLIP was trained")
    rescale, normalize = settings.get("do_rescale") is not False, settings.get("do_normalize") is not False
    for name, least in (("image_mean", -math.inf), ("image_std", 0.0)) if normalize else ():
        values = settings.get(name, CLIP_MEAN)
        right = isinstance(values, list | tuple) and len(values) == 3
        if not right or not all(isinstance(v, int | float) and least < v < math.inf for v in values):
            positive = " above 0" * (least == 0)
            raise CheckpointError(f"{directory}: {name} is {values!r}; expected three numbers{positive}")
    resample = settings.get("resample")
    if resample is not None and resample not in list(Image.Resampling):
        raise CheckpointError(f"{directory}: resample is {resample!r}; expected a number from 0 to 5, or none")
    factor = settings.get("rescale_factor", 1 / 255)
    if rescale and not (isinstance(factor, int | float) and 0 < factor < math.inf):
        raise CheckpointError(f"{directory}: rescale_factor is {factor!r}; expected a number above 0")
    tokenizer = _load_tokenizer(directory)
    fits(tokenizer, config.text.vocab_size, directory)
    processor = Processor(
        tokenizer,
        config.vision.image_size,
        config.text.bos_token_id,
        config.text.sep_token_id,
        config.text.pad_token_id,
        tuple(settings.get("image_mean", CLIP_MEAN)) if normalize else (0.0, 0.0, 0.0),
        tuple(settings.get("image_std", CLIP_STD)) if normalize else (1.0, 1.0, 1.0),
        Image.Resampling.BICUBIC if resample is None else resample,
        factor if rescale else 1.0,
        **read_decoding(directory),
    )
    room = config.text.max_position_embeddings - len(processor.prompt_ids(processor.prompt))
    if 0 < room < (longest := processor.decoding.get("max_new_tokens", 0)):
        tell(f"{directory}: its max_new_tokens is {longest}; the model has room for {room}")
        least = min(room, processor.decoding.get("min_new_tokens", 0))
        processor.decoding |= {"max_new_tokens": room, "min_new_tokens": least}
    return processor


@cache
def tell(line: str) -> None:
    """Once, however often a checkpoint is read."""
    log.warning(line)


def read_decoding(directory: Path) -> dict[str, Any]:
    """The prompt and the decoding settings that travel with a checkpoint: `captioning.json`, and `transformers`'
    `generation_config.json` as far as it says them. Raises CheckpointError."""
    prompt, decoding = "", {}
    if (directory / "captioning.json").is_file():
        prompt = _read_json(directory / "captioning.json").get("prompt", "")
        if not isinstance(prompt, str):
            raise CheckpointError(f"{directory / 'captioning.json'}: its prompt is {prompt!r}; expected a text")
    if (path := directory / "generation_config.json").is_file():
        decoding = _of_transformers(_read_json(path), path)
        try:
            GenerationSettings(**decoding)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return {"prompt": prompt, "decoding": decoding}


def own_decoding(directory: Path) -> dict[str, Any]:
    """The prompt and the decoding settings that a checkpoint brings, and nothing that it does not say. Raises
    CheckpointError."""
    if is_of_blip(directory):
        processor = load_processor(directory, read_config(directory))
        found: dict[str, Any] = {"prompt": processor.prompt, "decoding": processor.decoding}
    else:
        found = read_decoding(directory)
    prompt = {"prompt": found["prompt"]} if (directory / "captioning.json").is_file() else {}
    return {**found["decoding"], **prompt}


def _of_transformers(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """The decoding settings in a `generation_config.json`, whoever wrote it. What this library has not is told."""
    found = {name: whole(name, value) for name, value in found.items() if value is not None}
    said = "max_new_tokens" in found
    for ours, theirs in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if theirs in found and ours not in found:  # there, with the [BOS] it begins with
            length = found[theirs]
            found[ours] = max(length - 1, int(ours == "max_new_tokens")) if type(length) is int else length
    decoding = {name: found[name] for name in DECODING if name in found}
    other = [f"{name}={value!r}" for name, value in found.items() if name in UNKNOWN and value not in UNKNOWN[name]]
    if decoding.get("early_stopping") == "never":
        decoding["early_stopping"] = False
        other.append("early_stopping='never' (taken as false)")
    if decoding.get("early_stopping") in (0, 1):
        decoding["early_stopping"] = bool(decoding["early_stopping"])
    if "num_beams" in decoding and not (path.parent / "captioning.json").is_file():
        decoding.setdefault("early_stopping", False)  # theirs
    least, most = decoding.get("min_new_tokens", 0), decoding.get("max_new_tokens", GenerationSettings.max_new_tokens)
    if type(least) is type(most) is int and least > most and not said:
        decoding["max_new_tokens"] = least
    if other:
        tell(f"{path}: not decoded with {', '.join(other)}, which blip_lite has not as a checkpoint's setting")
    return decoding


def whole(name: str, value: Any) -> Any:
    """`3.0` of JSON is 3, of what is counted."""
    counted = NUMBERS.get(name) == (int,) or name in ("max_length", "min_length")
    return int(value) if counted and isinstance(value, float) and value.is_integer() else value


def _load_tokenizer(directory: Path) -> Tokenizer:
    for name in ("tokenizer.json", "vocab.txt"):
        if (directory / name).is_file():
            refuse_large(directory / name)
    try:
        if (directory / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(directory / "tokenizer.json"))
        if (directory / "vocab.txt").is_file():
            about = (
                _read_json(directory / "tokenizer_config.json")
                if (directory / "tokenizer_config.json").is_file()
                else {}
            )
            tokenizer = wordpiece(models.WordPiece.read_file(str(directory / "vocab.txt")), about)
            if (directory / "added_tokens.json").is_file():
                known = {*tokenizer.get_vocab(), "[DEC]", "[ENC]"}  # these two may lie beyond the vocabulary
                if other := sorted(set(_read_json(directory / "added_tokens.json")) - known):
                    raise CheckpointError(f"{directory}: added_tokens.json adds {other[0]!r}; needs a tokenizer.json")
            return tokenizer
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        pointer = any(is_lfs(directory / name) for name in ("tokenizer.json", "vocab.txt"))
        reason = "a Git LFS pointer: run `git lfs pull`" if pointer else error
        raise CheckpointError(f"{directory}: the tokenizer cannot be read ({reason})") from error
    raise CheckpointError(f"{directory}: has neither tokenizer.json nor vocab.txt")


def resize(model: Blip, processor: Processor, image_size: int) -> None:
    """Make a model take images of another size: its grid of positions is interpolated bicubically, as BLIP does when it
    goes from 224 to 384 pixels. Raises ConfigError."""
    vision, positions = model.config.vision, model.vision_model.embeddings.position_embedding
    if image_size == vision.image_size:
        return
    if image_size < 1 or image_size % vision.patch_size:
        raise ConfigError(f"--image_size {image_size} is no multiple of the model's patches of {vision.patch_size}")
    old, new = vision.image_size // vision.patch_size, image_size // vision.patch_size
    grid = positions.data[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)  # [1, D, side, side]
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    positions.data = torch.cat([positions.data[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    model.config = replace(model.config, vision=replace(vision, image_size=image_size))
    processor.image_size = image_size


def open_to_others(file: Path) -> None:
    """Give a file the rights that new files have here: safetensors 0.8 writes for its owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    with contextlib.suppress(OSError):
        os.chmod(file, 0o666 & ~umask)


def weights_on_host(model: Blip, copy: bool = False) -> dict[str, Tensor]:
    """What `model.safetensors` holds, tied tensors once. A CPU's are the model's own tensors unless `copy`."""
    state = {name: value for name, value in model.state_dict().items() if name not in DERIVED}
    return {name: value.detach().to("cpu", copy=copy).contiguous() for name, value in state.items()}


def save_pretrained(
    model: Blip, processor: Processor, directory: str | Path, weights: dict[str, Tensor] | None = None
) -> None:
    """Write a directory that loads here and in `transformers` (4 and 5), tied tensors once.

    Weights are stored in the model's dtype. For a write that is whole or not at all see `checkpoint.save`.

    Args:
        weights: `weights_on_host` of an earlier moment; default: the present ones.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = weights_on_host(model) if weights is None else weights
    safetensors.torch.save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    open_to_others(directory / "model.safetensors")

    config = model.config.to_dict()
    config.pop("torch_dtype", None)
    config["dtype"] = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    preprocessor = {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "BlipProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"height": processor.image_size, "width": processor.image_size},
        "resample": int(processor.resample),
        "rescale_factor": processor.rescale_factor,
        "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std),
    }
    special = {
        name: f"[{name[:-6].upper()}]" for name in ("cls_token", "mask_token", "pad_token", "sep_token", "unk_token")
    }
    tokenizer = {
        **special,
        "tokenizer_class": "BertTokenizer",
        "processor_class": "BlipProcessor",
        "do_lower_case": True,
        "model_max_length": model.config.text.max_position_embeddings,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    text = model.config.text
    ids = {"bos_token_id": text.bos_token_id, "eos_token_id": text.sep_token_id, "pad_token_id": text.pad_token_id}
    for name, content in (
        ("generation_config.json", {**ids, **processor.decoding}),
        ("captioning.json", {"prompt": processor.prompt}),
        ("config.json", config),
        ("preprocessor_config.json", preprocessor),
        ("tokenizer_config.json", tokenizer),
        ("special_tokens_map.json", special),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    # not `tokenizer.save`: on a full disk it raises an exception that says nothing of its kind
    (directory / "tokenizer.json").write_text(processor.tokenizer.to_str(pretty=True), "utf-8")
    vocab = sorted(processor.tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    (directory / "vocab.txt").write_text("".join(token + "\n" for token, _ in vocab), "utf-8")
