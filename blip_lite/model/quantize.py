"""The image encoder in 8-bit integers, for CPUs; and what compiling needs."""

from __future__ import annotations

import os
import shutil

from blip_lite.errors import ConfigError
from blip_lite.model.blip import Blip


def quantize_encoder(model: Blip, kind: str) -> None:
    """Weights and activations of the image encoder's matrix products in 8-bit integers, through torchao, and compiled:
    uncompiled they are slower than float32. One image at a time, because each other batch size would be compiled anew
    and is no faster on a CPU."""
    if kind != "int8":
        raise ConfigError(f"quantize {kind!r}: expected 'int8'")
    need_compiler("quantize")
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise ConfigError("quantize: torchao is not installed; pip install 'blip_lite[int8]'") from error
    quantize_(model.vision_model, Int8DynamicActivationInt8WeightConfig())
    model.requires_grad_(False)  # else the compiler does not lay the weights out for the processor
    model.vision_model.compile(options={"freezing": True})
    model.images_at_a_time = 1


def need_compiler(what: str) -> None:
    """Raises ConfigError on a machine without a C++ compiler: torch would say so after minutes."""
    if not (shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")):
        raise ConfigError(f"{what}: there is no C++ compiler, which this needs; install g++")
