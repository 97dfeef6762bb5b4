"""What a checkpoint's `config.json` says of the model's two halves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class VisionConfig:
    """The image encoder's sizes. A checkpoint may omit a value that is the default of `transformers`'
    `BlipVisionConfig`, so these defaults are the same."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 384
    patch_size: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0


@dataclass(frozen=True)
class TextConfig:
    """The text decoder's sizes; defaults are those of `transformers`' `BlipTextConfig`, as above."""

    vocab_size: int = 30524
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 512
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    bos_token_id: int = 30522  # [DEC]: what the decoder starts with, in training and in generation
    sep_token_id: int = 102  # [SEP]: what a caption ends with
    pad_token_id: int = 0


CAPTIONER = "BlipForConditionalGeneration"  # in `transformers`


# Beyond these a `config.json` is not of a BLIP, but would have millions of modules built before that is seen.
LIMITS = {
    "hidden_size": 16_384,
    "intermediate_size": 65_536,
    "num_hidden_layers": 256,
    "num_attention_heads": 256,
    "image_size": 4_096,
    "patch_size": 4_096,
    "vocab_size": 1_000_000,
    "max_position_embeddings": 16_384,
}


@dataclass(frozen=True)
class BlipConfig:
    """What `config.json` says about the two halves. `raw` is the whole file, written back with a checkpoint."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    raw: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> BlipConfig:
        """Read the content of a checkpoint's `config.json`.

        Raises:
            ValueError: it is not a BLIP captioning configuration, or names an activation we do not have, or
                sizes that are absurd or do not fit each other.
        """
        kind = raw.get("model_type") if isinstance(raw, dict) else None
        if kind != "blip":
            raise ValueError(f"config.json describes a {kind or 'nameless'!r} model, not a 'blip' captioning one")
        made = raw.get("architectures")
        if (
            isinstance(made, list)
            and made
            and CAPTIONER not in made
            and all(str(name).startswith("Blip") for name in made)
        ):
            raise ValueError(f"config.json describes a {made[0]}, not a captioner ({CAPTIONER})")
        if how := raw.get("quantization_config"):
            method = how.get("quant_method", "by an unnamed method") if isinstance(how, dict) else how
            raise ValueError(f"quantized weights ({method}): save them in floating point, without quantization_config")
        for name in ("text_config", "vision_config"):
            if not isinstance(raw.get(name), dict):
                raise ValueError(f"config.json has no {name}")
        config = BlipConfig(_pick(VisionConfig, raw["vision_config"]), _pick(TextConfig, raw["text_config"]), raw)
        for name, half in (("vision_config", config.vision), ("text_config", config.text)):
            for field_name, most in LIMITS.items():
                value = getattr(half, field_name, 1)
                if not isinstance(value, int) or not 1 <= value <= most:
                    raise ValueError(f"{name}.{field_name} is {str(value)[:40]}; expected 1 to {most:,}")
            for share in dataclasses.fields(half):
                value = getattr(half, share.name)
                if isinstance(share.default, float) and not (isinstance(value, int | float) and 0 <= value <= 1):
                    raise ValueError(f"{name}.{share.name} is {str(value)[:40]}; expected 0 to 1")
            if str(half.hidden_act) not in ACTIVATIONS:
                raise ValueError(f"{name}.hidden_act is {half.hidden_act!r}; known: {', '.join(ACTIVATIONS)}")
            if half.hidden_size % half.num_attention_heads:
                raise ValueError(f"{name}: {half.num_attention_heads} heads do not divide {half.hidden_size} channels")
        return config

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that both this library and `transformers` read."""
        halves = {
            "vision_config": {**self.raw.get("vision_config", {}), **dataclasses.asdict(self.vision)},
            "text_config": {**self.raw.get("text_config", {}), **dataclasses.asdict(self.text)},
        }
        halves["text_config"]["encoder_hidden_size"] = self.vision.hidden_size
        named = {"architectures": [CAPTIONER], "model_type": "blip"}
        return {**self.raw, **named, **halves}


def _pick(cls: Any, values: dict[str, Any]) -> Any:
    names = {f.name for f in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in names and value is not None})
