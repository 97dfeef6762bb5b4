"""Muon beside torch's own, and parallel prediction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blip_lite.data.batches import Captions, collate
from blip_lite.errors import ConfigError
from blip_lite.model import blip
from blip_lite.model.blip import IGNORE
from blip_lite.model.from_scratch import from_scratch
from blip_lite.reports.model_card import model_card
from blip_lite.settings import OptimisationSettings, RegularisationSettings
from blip_lite.storage import BEFORE
from blip_lite.training.checkpoint import load, save, snapshot
from blip_lite.training.loop import train
from blip_lite.training.optimizer import Muon, build_optimizer, orthogonalised
from blip_lite.training.setup import prepare, start
from conftest import tiny_config

MUON = OptimisationSettings(optimizer="muon", learning_rate=0.01)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_singular_values_come_near_one_and_directions_stay(rows: int, columns: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = scale * torch.randn(rows, columns, generator=generator)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(matrix)
    inside = u.mT @ found @ vt.mT  # diagonal, as U and V are the same
    assert found.shape == matrix.shape
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), atol=2e-3, rtol=0)
    large = s > 0.02 * s.norm()
    assert ((inside.diagonal()[large] > 0.6) & (inside.diagonal()[large] < 1.3)).all()


@pytest.mark.parametrize("shape", [(24, 24), (96, 24), (24, 96)])
def test_steps_are_those_of_torchs_muon(shape: tuple[int, int]) -> None:
    """Its own is the oracle: the same matrix, gradients, rate and decay, ten steps."""
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs = torch.nn.Parameter(ours.detach().clone())
    before = ours.detach().clone()
    group = {"params": [ours], "weight_decay": 0.05, "muon": True}
    a = Muon([group], torch.bfloat16, lr=0.02, betas=(0.9, 0.999), fused=True)
    b = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    for _ in range(10):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    assert (ours - before).norm() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def model_and_gradients(seed: int) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    model, _ = from_scratch("tiny", ["a dog runs", "two red cats sit"], 0)
    generator = torch.Generator().manual_seed(seed)
    return model, [torch.randn(p.shape, generator=generator) for p in model.parameters()]


def test_each_parameter_is_in_one_group_and_the_others_move_as_adamw_moves_them() -> None:
    (a, gradients), (b, _) = model_and_gradients(0), model_and_gradients(0)
    muon = build_optimizer(a, MUON, RegularisationSettings())
    adamw = build_optimizer(b, OptimisationSettings(learning_rate=0.01), RegularisationSettings())
    assert isinstance(muon, Muon) and not isinstance(adamw, Muon)
    grouped = [id(p) for group in muon.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in a.parameters())
    hidden = {id(p) for group in muon.param_groups for p in group["params"] if group.get("muon")}
    for model, optimizer in ((a, muon), (b, adamw)):
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            p.grad = gradient.clone()
        optimizer.step()
    same = {name: torch.equal(p, q) for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True)}
    for name, p in a.named_parameters():
        between = p.ndim == 2 and "embeddings" not in name
        assert (id(p) in hidden) == between and same[name] != between, name


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model, gradients = model_and_gradients(0)
    optimizer = build_optimizer(model, MUON, RegularisationSettings())
    for bad in (0.0, 1.0):
        before = [p.detach().clone() for p in model.parameters()]
        state = {id(p): {k: v.clone() for k, v in optimizer.state[p].items()} for p in model.parameters()}
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            p.grad = gradient * (torch.nan if bad else 1)
        optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(bad)
        optimizer.step()
        unchanged = all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        assert unchanged == bool(bad)
    for p in model.parameters():
        assert all(torch.equal(value, state[id(p)][key]) for key, value in optimizer.state[p].items())


def test_a_checkpoint_holds_its_momentum(tmp_path: Path) -> None:
    run = prepare(config := tiny_config(tmp_path, optimizer="muon").resolved(), start(config))
    for p in run.model.parameters():
        p.grad = torch.ones_like(p)
    run.optimizer.step()
    path = save(tmp_path, 1, snapshot(run.model, run.processor, run.optimizer, {}, {}), 1)
    momentum = run.optimizer.optimizer.state_dict()["state"]
    other = prepare(config, start(config))
    load(path, other.model, other.optimizer)
    found = other.optimizer.optimizer.state_dict()["state"]
    assert momentum.keys() == found.keys()
    for index, values in momentum.items():
        assert all(torch.equal(value, found[index][key]) for key, value in values.items())


def test_the_card_and_the_resumed_run_of_before_there_was_a_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(tmp_path, max_steps=1))
    path = tmp_path / "run" / "config.json"
    about = json.loads(path.read_text())
    for name in BEFORE:
        if name != "scenes":
            del about["settings"][name]
    path.write_text(json.dumps(about))
    card = model_card(tmp_path / "run")
    assert "- `optimizer`: 'adamw'" in card and "- `parallel_prediction`: 0.0" in card
    capsys.readouterr()
    train(tiny_config(tmp_path, max_steps=2, resume=True))
    said = capsys.readouterr().out
    assert "optimizer was" not in said and "parallel_prediction was" not in said


def test_attention_of_a_cpu_that_trains_in_bfloat16_is_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = from_scratch("tiny", ["a dog runs", "two red cats sit"], 0)
    size, generator = model.config.vision.image_size, torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, size, size, generator=generator)
    ids = torch.randint(5, 20, (2, 2, 6), generator=generator)
    seen: list[torch.dtype] = []
    attend = blip.F.scaled_dot_product_attention

    def noted(q: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        found = attend(q, *rest, **options)
        seen.append(found.dtype)
        return found

    monkeypatch.setattr(blip.F, "scaled_dot_product_attention", noted)
    gradients = []
    for on in (False, True):
        model.train().zero_grad()
        with torch.autocast("cpu", torch.bfloat16, on):
            model(pixels, ids, ids)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert seen and set(seen) == {torch.float32}
    assert (gradients[1] - gradients[0]).norm() < 0.03 * gradients[0].norm()
    assert not torch.equal(*gradients)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # nothing comes back, so nothing is slow
        model(pixels, ids, ids)
    assert seen[-1] == torch.bfloat16


# ------------------------------------------------------------------------------------------- parallel prediction


def test_hidden_captions_show_the_decoder_their_start_and_nothing_else(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, captions_per_image=None, prompt="a picture of ").resolved()
    run = prepare(config, start(config))
    images, prompt_length = run.train_set, len(run.processor.prompt_ids("a picture of "))
    plain = collate([images[i] for i in range(6)], run.processor, prompt_length)
    images.parallel_prediction = 1.0
    hidden = collate([images[i] for i in range(6)], run.processor, prompt_length)
    torch.testing.assert_close(hidden.labels, plain.labels)
    torch.testing.assert_close(hidden.input_ids[:, :, :prompt_length], plain.input_ids[:, :, :prompt_length])
    target = plain.labels != IGNORE
    assert target.any() and (hidden.input_ids[target] == run.processor.mask_token_id).all()
    assert torch.equal(hidden.input_ids[~target], plain.input_ids[~target])


@given(st.floats(0, 1), st.integers(0, 5), st.integers(0, 5))
def test_what_is_hidden_is_a_share_and_depends_on_seed_epoch_and_image_alone(
    share: float, seed: int, epoch: int
) -> None:
    _, processor = from_scratch("tiny", ["a dog runs"], 0)

    def drawn(epoch: int) -> list[bool]:
        images = Captions([], processor, "", 40)
        images.parallel_prediction, images.seed, images.epoch = share, seed, epoch
        tokens = processor.encode("a dog runs")
        return [images.read(tokens, f"{i}/0") != tokens for i in range(500)]

    found = drawn(epoch)
    assert found == drawn(epoch)
    assert abs(sum(found) / 500 - share) < 0.12
    if 0.2 < share < 0.8:
        assert found != drawn(epoch + 1)


def test_a_vocabulary_without_mask_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip_lite.model.from_scratch.SPECIAL_TOKENS", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[OTHER]"))
    config = tiny_config(tmp_path, parallel_prediction=0.5).resolved()
    with pytest.raises(ConfigError, match=r"--parallel_prediction: the checkpoint's vocabulary has no \[MASK\]"):
        prepare(config, start(config))
