"""AdamW, and Muon for models that start from nothing; which weights learn how fast, and which decay."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from blip_lite.model.blip import Blip
from blip_lite.settings import OptimisationSettings, RegularisationSettings

MOMENTUM = 0.95  # of Muon's gradients (Jordan)
RMS = 0.2  # of an update's entries, about AdamW's, so that its learning rate and decay suit Muon, too (Liu et al.)
# Of the polynomial ax + bx^3 + cx^5, which applied five times brings singular values of 0.01 and more near 1 (Jordan).
A, B, C = 3.4445, -4.7750, 2.0315


def build_optimizer(
    model: Blip,
    settings: OptimisationSettings,
    regularisation: RegularisationSettings,
    dtype: torch.dtype = torch.float32,
) -> torch.optim.AdamW:
    """AdamW, or Muon for the matrices between embeddings and vocabulary, and AdamW for the others; weight decay on
    matrices and embeddings, none on biases and norms.

    Each group has, besides torch's values, `lr_scale`: its share of the learning rate; Muon's also `muon`.

    Args:
        dtype: that Muon multiplies in.
    """
    muon = settings.optimizer == "muon"
    shares = {name: learning_rate_share(name, model, regularisation) for name, _ in model.named_parameters()}
    groups: list[dict[str, Any]] = []
    for share in sorted(set(shares.values()), reverse=True):
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad and shares[n] == share}
        between = {n: p for n, p in trained.items() if muon and p.ndim == 2 and "embedding" not in n}
        matrices = [p for name, p in trained.items() if p.ndim > 1 and name not in between]
        vectors = [p for p in trained.values() if p.ndim <= 1]
        groups += [
            {"params": [*between.values()], "weight_decay": settings.weight_decay, "lr_scale": share, "muon": True},
            {"params": matrices, "weight_decay": settings.weight_decay, "lr_scale": share},
            {"params": vectors, "weight_decay": 0.0, "lr_scale": share},
        ]
    groups = [group for group in groups if group["params"]]
    values: dict[str, Any] = {"lr": float(settings.learning_rate or 0), "betas": (0.9, 0.999), "fused": True}
    return Muon(groups, dtype, **values) if muon else torch.optim.AdamW(groups, **values)


def learning_rate_share(name: str, model: Blip, settings: RegularisationSettings) -> float:
    """Of the learning rate, that a parameter learns at: each layer `layer_decay` of the one above it (Clark et al.
    2020, https://arxiv.org/abs/2003.10555), counted in each half from its own top, where embeddings lie below the
    first layer; the image encoder `vision_learning_rate_factor` of that. Word embeddings are the vocabulary head, too,
    and learn as it does."""
    vision = name.startswith("vision_model.")
    layers = len(model.vision_model.encoder.layers if vision else model.text_decoder.layers)
    layer = re.search(r"encoder\.layers?\.(\d+)\.", name)
    below = layers - 1 - int(layer[1]) if layer else layers if ".embeddings." in name else 0
    below = 0 if "word_embeddings" in name else below
    return settings.layer_decay**below * (settings.vision_learning_rate_factor if vision else 1)


class Muon(torch.optim.AdamW):
    """AdamW, but for matrices in groups with `muon`: these move along their gradients' momentum with all its singular
    values brought near 1, so that rare directions are learnt as fast as common ones.

    Jordan 2024, https://kellerjordan.github.io/posts/muon/; the size of the step by Liu et al. 2025,
    https://arxiv.org/abs/2502.16982. The encoder's query, key and value are one matrix in BLIP, and taken as one.
    torch's own Muon takes no other parameters, and cannot leave out a step whose gradient is not finite without waiting
    for the GPU, as the fused AdamW does at `found_inf`.

    Args:
        groups: as torch's, some with `"muon": True`.
        dtype: to multiply in; bfloat16 is enough (Jordan).
        values: AdamW's.
    """

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype, **values: Any) -> None:
        super().__init__(groups, **values)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Of the gradients, those of `muon` are gone afterwards, so that AdamW passes these matrices by. Where
        `found_inf` is 1, nothing changes. A closure is not called."""
        found_inf: Tensor = getattr(self, "found_inf", torch.zeros((), device=self.param_groups[0]["params"][0].device))
        for group in self.param_groups:
            for p in group["params"] if group.get("muon") else ():
                if p.grad is not None:
                    self.muon(p, group, 1 - found_inf.view(()))
                    p.grad = None
        super().step()

    def muon(self, p: Tensor, group: dict[str, Any], good: Tensor) -> None:
        """One step of one matrix, if `good` is 1; none if it is 0."""
        state = self.state[p]
        if not state:  # torch's load_state_dict wants each to have a step
            state.update(step=torch.zeros((), device=p.device), momentum=torch.zeros_like(p))
        gradient = torch.where(good > 0, p.grad, 0.0)  # type: ignore[arg-type]
        state["step"] += good
        state["momentum"].lerp_(gradient, (1 - MOMENTUM) * good)
        ahead = gradient.lerp(state["momentum"], MOMENTUM)  # Nesterov's
        size = RMS * max(p.shape) ** 0.5 * group["lr"] * good
        p.mul_(1 - group["lr"] * group["weight_decay"] * good)
        p.sub_(orthogonalised(ahead, self.dtype) * size)


def orthogonalised(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """U V^T of a matrix U S V^T, about: singular values between 0.7 and 1.2, by five Newton-Schulz iterations, which
    multiply in `dtype`."""
    x = (matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix).to(dtype)  # so that x x^T is small
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)  # one pass over each matrix
    return (x.mT if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)
