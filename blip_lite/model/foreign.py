"""Weights as others wrote them: wrapped, in torch's old format, under the names of BLIP's first release."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import math
import pickle
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip_lite.errors import CheckpointError
from blip_lite.model.location import is_lfs

# Keys under which trainers keep the weights; averaged ones are taken where there are no others.
INNER = (
    *("model", "state_dict", "model_state_dict", "module", "net", "model_state", "model_weights", "weights", "params"),
    *("ema", "model_ema", "ema_state_dict", "state_dict_ema"),
)
# What DDP, torch.compile, PEFT, Lightning and others put before all names is what comes before these.
_FIRST = re.compile(r"(.*?)(?:vision_model\.embeddings|visual_encoder)\.")
# What loops keep beside weights that can do nothing: a metric of numpy's, the command line's settings.
_HARMLESS: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *{np.dtype, *(type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32", "bool"))},
    argparse.Namespace,
    codecs.encode,  # the bytes of a number, in pickle's older protocols
]

# BLIP's own modules (https://github.com/salesforce/BLIP/blob/main/models/vit.py) -> those of `transformers`.
ORIGINAL = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm(\d)\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
)
# Of pretraining: the heads for matching and contrast, and the momentum copies. A captioner has none of them.
HEADS = ("vision_proj.", "itm_head.")
PRETRAINING = re.compile(
    r"(text_encoder|vision_proj|text_proj|itm_head|temp|(image_|text_)?queue|queue_ptr|"
    r"(visual|text)_encoder_m|(vision|text)_proj_m)\b"
)


def read_torch(file: Path) -> dict[str, Tensor]:
    """A file of `torch.save`, of any version. Only tensors are read (`weights_only=True`): nothing in it is run.

    Raises:
        CheckpointError: a Git LFS pointer, Python objects, or no tensors by name.
    """
    if is_lfs(file):
        raise CheckpointError(f"{file}: a Git LFS pointer, not the weights: run `git lfs pull`")
    with torch.serialization.safe_globals(_HARMLESS):
        try:
            content = _load(file)
        except pickle.UnpicklingError as error:
            if not (names := _objects(file) or re.findall(r"GLOBAL (\S+) was not an allowed", str(error))):
                raise
            raise CheckpointError(
                f"{file}: holds Python objects ({names[0]}), which are not unpickled, as that may run anything. Where "
                "it was made, save the weights alone: `model.save_pretrained(FOLDER)` or "
                "`torch.save(model.state_dict(), FILE)`"
            ) from error
    if not (weights := _weights_in(content, file)):
        keys = f"; it has {', '.join(map(str, islice(content, 8)))}" if isinstance(content, Mapping) else ""
        raise CheckpointError(f"{file}: holds no tensors by name, by themselves or under {', '.join(INNER)}{keys}")
    return weights


def _load(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # from before torch 1.6: not a zip file


def _objects(file: Path) -> list[str]:
    """The classes and functions in a file of `torch.save` that are no tensors'."""
    with contextlib.suppress(Exception):  # no zip file, or none of torch's
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    return []


def _weights_in(content: Any, file: Path) -> dict[str, Tensor] | None:
    """The tensors by name, without what trainers keep beside them. Raises CheckpointError where something else is among
    them, rather than take the average that follows."""
    if not isinstance(content, Mapping):
        return None
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return dict(content)
    for key in INNER:
        if found := _weights_in(inner := content.get(key), file):
            return found
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            odd = next(name for name, value in inner.items() if not isinstance(value, Tensor))
            raise CheckpointError(f"{file}: {odd!r} is no tensor, among those of {key!r}")
    return None


def unwrapped(weights: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The weights without what wrappers put before all their names. Raises CheckpointError for an adapter's."""
    prefix = min((found[1] for name in weights if (found := _FIRST.match(name))), key=len, default="")
    if all(name.startswith(prefix) for name in weights):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    if any(".lora_" in name for name in weights):
        raise CheckpointError(f"{file}: a LoRA adapter; merge it into its model first (PEFT's merge_and_unload)")
    return weights


def is_original(weights: dict[str, Tensor]) -> bool:
    return "visual_encoder.pos_embed" in weights and "text_decoder.bert.embeddings.word_embeddings.weight" in weights


def from_original(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of BLIP's own release under the names of `transformers`, those of pretraining left out; others as is.

    Raises:
        CheckpointError: the BLIP that answers questions: its decoder looks at a question instead of the image.
    """
    if any(n.startswith("text_encoder.") for n in weights) and not any(n.startswith(HEADS) for n in weights):
        raise CheckpointError("a BLIP for visual question answering (a text_encoder without heads); it cannot caption")
    if not is_original(weights):
        return weights
    renamed = {}
    for name, tensor in weights.items():
        if PRETRAINING.match(name):
            continue
        for pattern, new in ORIGINAL:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return renamed


def config_of_original(weights: dict[str, Tensor], heads: int) -> dict[str, Any]:
    """`config.json` of weights of BLIP's own release, from their shapes.

    Args:
        weights: under their own names.
        heads: of the text decoder, which no shape tells (12 in BLIP's `configs/med_config.json`).
    """
    words = weights["text_decoder.bert.embeddings.word_embeddings.weight"]
    patch = weights["visual_encoder.patch_embed.proj.weight"]
    side = math.isqrt(weights["visual_encoder.pos_embed"].shape[1] - 1)
    patterns = r"visual_encoder\.blocks\.(\d+)", r"text_decoder\.bert\.encoder\.layer\.(\d+)"
    layers = [max(int(m[1]) for name in weights if (m := re.match(p, name))) + 1 for p in patterns]
    vision = {
        "hidden_size": patch.shape[0],
        "intermediate_size": weights["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": layers[0],
        "num_attention_heads": max(1, patch.shape[0] // 64),
        "patch_size": patch.shape[-1],
        "image_size": side * patch.shape[-1],
        "layer_norm_eps": 1e-6,
    }
    text = {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "intermediate_size": weights["text_decoder.bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "num_hidden_layers": layers[1],
        "num_attention_heads": heads,
        "max_position_embeddings": weights["text_decoder.bert.embeddings.position_embeddings.weight"].shape[0],
        "bos_token_id": words.shape[0] - 2,  # [DEC] and [ENC] come last
    }
    return {"model_type": "blip", "vision_config": vision, "text_config": text}
