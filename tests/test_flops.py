"""The count of floating-point operations, against torch's own count of what runs; a device's peak."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blip_lite.model.blip import IGNORE, Blip
from blip_lite.model.config import BlipConfig
from blip_lite.model.flops import PEAKS, Flops, peak_flops, training_flops
from conftest import make_hf
from test_model import ours


def counted(model: Blip, pixels: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor) -> int:
    """What torch counts (a second a call, so few cases). In plain attention, as the fused one computes a product again in its backward pass, which
    torch counts as work."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss, _ = model.train()(pixels, ids, labels)
        loss.backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("encoder", "images", "captions", "length", "prompt", "text_size", "layers"),
    [
        ("trained", 3, 2, 7, 1, 32, 2),
        ("trained", 1, 3, 5, 3, 48, 1),
        ("frozen", 2, 3, 4, 2, 48, 1),
        ("kept", 2, 1, 6, 1, 32, 1),
    ],
)
def test_the_count_is_torchs_own(
    encoder: str, images: int, captions: int, length: int, prompt: int, text_size: int, layers: int
) -> None:
    model = ours(make_hf(layers=layers, text_size=text_size))
    pixels, ids = torch.randn(images, 3, 32, 32), torch.randint(5, 90, (images, captions, length))
    labels = ids.clone()
    labels[:, :, :prompt] = IGNORE
    if encoder != "trained":
        model.freeze_vision()
    if encoder == "kept":
        pixels = model.encode(pixels)
    assert training_flops(model, encoder == "kept", labels) == counted(model, pixels, ids, labels)


def test_padding_and_what_is_computed_again_are_no_useful_work() -> None:
    model = ours(make_hf(layers=1))
    pixels, ids = torch.randn(2, 3, 32, 32), torch.randint(5, 90, (2, 2, 6))
    labels = ids.clone()
    labels[:, :, 0] = IGNORE
    useful = training_flops(model, False, labels)
    model.gradient_checkpointing = True
    assert training_flops(model, False, labels) == useful < counted(model, pixels, ids, labels)
    padded = torch.nn.functional.pad(labels, (0, 3), value=IGNORE)
    more = torch.cat([padded, torch.full_like(padded, IGNORE)], dim=1)  # captions that are not there
    assert training_flops(model, False, more) == useful
    f = Flops.of(model.config)
    one_shorter = labels.clone()
    one_shorter[0, 0, -1] = IGNORE
    assert useful - training_flops(model, False, one_shorter) == 3 * (f.token + (36 - 25) * f.look + f.head)


def test_a_peak_is_known_by_the_whole_name_or_not_at_all() -> None:
    cuda = torch.device("cuda", 0)

    def peak(name: str, dtype: torch.dtype) -> float | None:
        with mock.patch("torch.cuda.get_device_name", return_value=name):
            return peak_flops(cuda, dtype)

    assert peak("NVIDIA H100 80GB HBM3", torch.bfloat16) == 989.5e12
    assert peak("NVIDIA A100-SXM4-80GB", torch.float16) == 312e12
    assert peak("Tesla T4", torch.float16) == 65e12
    assert peak("Tesla T4", torch.bfloat16) is None
    for name in ("NVIDIA A10G", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "a card"):
        assert peak(name, torch.bfloat16) is None
    assert peak_flops(torch.device("cpu"), torch.float32) is None
    assert peak("NVIDIA A100-SXM4-80GB", torch.float32) == 19.5e12
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert peak("NVIDIA A100-SXM4-80GB", torch.float32) == 156e12
        assert peak("Tesla T4", torch.float32) == 8.1e12
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(half > (tf32 or single) >= single for half, tf32, single in PEAKS.values())


def test_the_published_shape_needs_what_its_papers_layers_say() -> None:
    """BLIP-base at 384 pixels: 111 GFLOP to encode an image, 16 for its keys and values."""
    f = Flops.of(BlipConfig())
    assert f.encode / 1e9 == pytest.approx(111, rel=0.01) and f.cross / 1e9 == pytest.approx(16.3, rel=0.01)
