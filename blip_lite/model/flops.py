"""How many floating-point operations BLIP needs, by formula, and how many a device could do, by its data sheet or
measured."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from blip_lite.model.blip import IGNORE, Blip
from blip_lite.model.config import BlipConfig


@dataclass(frozen=True)
class Flops:
    """Of the parts of a forward pass: 2 for each multiply-add of every matrix product, nothing else, as in Kaplan et
    al. 2020, section 2.1 (https://arxiv.org/abs/2001.08361), and Chowdhery et al. 2022, appendix B
    (https://arxiv.org/abs/2204.02311). A token looks at all of its caption, as there, also where a mask hides some.

    Attributes:
        patches: of an image, the pixels' projection.
        encode: of an image, that included.
        cross: of an image, the keys and values that all layers of the decoder look at.
        token: of a token in all layers of the decoder, its look at the image included.
        look: of a token's look at another one in all layers.
        head: of a token whose logits are wanted.
    """

    patches: int
    encode: int
    cross: int
    token: int
    look: int
    head: int

    @staticmethod
    def of(config: BlipConfig) -> Flops:
        """A layer has four square matrices (query, key, value, output) and a perceptron's two; looking at a position
        is one product with its key and one with its value."""
        v, t = config.vision, config.text
        patches = (v.image_size // v.patch_size) ** 2
        P, D = patches + 1, v.hidden_size
        project = 2 * patches * 3 * v.patch_size**2 * D
        layer = 2 * P * (4 * D * D + 2 * D * v.intermediate_size) + 4 * P * P * D
        # of the cross-attention's four, query and output are a token's; key and value the image's
        matrices = (4 + 2) * t.hidden_size**2 + 2 * t.hidden_size * t.intermediate_size
        return Flops(
            patches=project,
            encode=project + v.num_hidden_layers * layer,
            cross=t.num_hidden_layers * 2 * P * D * 2 * t.hidden_size,
            token=t.num_hidden_layers * (2 * matrices + 4 * P * t.hidden_size),
            look=t.num_hidden_layers * 4 * t.hidden_size,
            head=2 * t.hidden_size * (t.hidden_size + t.vocab_size),
        )


def training_flops(model: Blip, images_encoded: bool, labels: Tensor) -> int:
    """What the forward and the backward pass of a batch need: the useful work, of which padding and what gradient
    checkpointing computes again are no part (Chowdhery et al. 2022: MFU, not HFU).

    A backward pass has two products for each of the forward's, one for the gradient of each factor. Of three there is
    one only: pixels, and what comes out of a frozen encoder, have no gradient.

    Args:
        model: whose sizes, and whether its encoder is frozen.
        images_encoded: whether the encoder has not to run, as its features were kept.
        labels: `[I, K, T]` on the CPU, as in `Blip.forward`. A caption goes until its last target.
    """
    f, images = Flops.of(model.config), labels.shape[0]
    positions = torch.arange(1, labels.shape[2] + 1)
    lengths = ((labels != IGNORE) * positions).amax(-1)
    tokens, looks = int(lengths.sum()), int((lengths**2).sum())
    targets = int((labels[:, :, 1:] != IGNORE).sum())
    forward = images * f.cross + tokens * f.token + looks * f.look + targets * f.head
    if images_encoded or model.frozen_vision:
        return 3 * forward + images * ((not images_encoded) * f.encode - f.cross)
    return 3 * (forward + images * f.encode) - images * f.patches


# TFLOP/s of dense products by NVIDIA's data sheets (GeForce: its architectures' white papers): half precision that adds
# up in float32, TF32, float32. Where a sheet gives only figures "with sparsity", half of those. Names as
# `torch.cuda.get_device_name()` gives them, whole: an A10G is not an A10, nor a part of a GPU (MIG) a GPU.
PEAKS: dict[str, tuple[float, float | None, float]] = {
    "NVIDIA H200": (989.5, 494.5, 67),
    "NVIDIA H100 80GB HBM3": (989.5, 494.5, 67),
    "NVIDIA H100 NVL": (835.5, 417.5, 60),
    "NVIDIA H100 PCIe": (756.5, 378, 51),
    "NVIDIA A100-SXM4-40GB": (312, 156, 19.5),
    "NVIDIA A100-SXM4-80GB": (312, 156, 19.5),
    "NVIDIA A100-PCIE-40GB": (312, 156, 19.5),
    "NVIDIA A100 80GB PCIe": (312, 156, 19.5),
    "NVIDIA A40": (149.7, 74.8, 37.4),
    "NVIDIA A30": (165, 82, 10.3),
    "NVIDIA A10": (125, 62.5, 31.2),
    "NVIDIA L40S": (362, 183, 91.6),
    "NVIDIA L4": (121, 60, 30.3),
    "Tesla V100-SXM2-16GB": (125, None, 15.7),
    "Tesla V100-SXM2-32GB": (125, None, 15.7),
    "Tesla V100-PCIE-16GB": (112, None, 14),
    "Tesla V100-PCIE-32GB": (112, None, 14),
    "Tesla T4": (65, None, 8.1),
    "NVIDIA GeForce RTX 4090": (165.2, 82.6, 82.6),
    "NVIDIA GeForce RTX 3090": (71, 35.6, 35.6),
}
WITHOUT_BFLOAT16 = ("Tesla V100", "Tesla T4")


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """A GPU's FLOP/s in products of this type by its data sheet; None for one that is not in `PEAKS`, for a type that
    it does not have, and for a CPU, of which no sheet says it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if name not in PEAKS:
        return None
    half, tf32, single = PEAKS[name]
    if dtype == torch.float32:  # TF32 only where somebody asked for it
        fast = torch.get_float32_matmul_precision() != "highest"
        return 1e12 * (tf32 if fast and tf32 else single)
    if dtype not in (torch.float16, torch.bfloat16) or (dtype == torch.bfloat16 and name.startswith(WITHOUT_BFLOAT16)):
        return None
    return 1e12 * half


def bfloat16_gain(model: Blip) -> float:
    """How many times as fast the model's processor multiplies its image encoder's largest matrix in bfloat16 as in
    float32, measured in some 0.1 s: 2 on one that has the instructions, 0.5 on another that has them, too, 0.1 on one
    that has not, so no flag of it can tell."""
    vision = model.config.vision
    patches = torch.randn((vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size)
    matrix = torch.randn(vision.intermediate_size, vision.hidden_size)
    factors = {dtype: (patches.to(dtype), matrix.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    least = dict.fromkeys(factors, math.inf)
    for dtype, (rows, weights) in 3 * list(factors.items()):
        began = time.perf_counter()
        torch.nn.functional.linear(rows, weights)
        least[dtype] = min(least[dtype], time.perf_counter() - began)
    return least[torch.float32] / least[torch.bfloat16]


def bfloat16_slower(model: Blip, instead: str) -> str:
    """A sentence that names what to take `instead`, if the model is on a processor that is slower in bfloat16: up to
    sixteen times on one without its instructions, where a training seems to hang. Else empty."""
    if model.device.type != "cpu" or (gain := bfloat16_gain(model)) >= 0.8:
        return ""
    return f"this processor multiplies {1 / gain:.1f} times as slowly in bfloat16 as in float32: {instead} is faster"
