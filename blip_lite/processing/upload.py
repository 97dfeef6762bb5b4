"""The way of data from the host to a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def upload(values: Tensor | Sequence[Any], device: torch.device) -> Tensor:
    """A tensor, or integers, on a device. The host does not wait for a CUDA device: it copies from pinned memory."""
    found = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.long)
    to_cuda = device.type == "cuda" and found.device.type == "cpu"
    return (found.pin_memory() if to_cuda else found).to(device, non_blocking=to_cuda)
