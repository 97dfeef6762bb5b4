"""The state of a run on disk: whole or not at all, rotated, exact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from blip_lite import load_pretrained, storage
from blip_lite.errors import CheckpointError
from blip_lite.training import checkpoint


def trained(hf_dir: Path) -> tuple:
    model, processor = load_pretrained(hf_dir)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, processor, optimizer


def write(run: Path, step: int, state: tuple, keep: int = 2) -> Path:
    fill = checkpoint.snapshot(*state, {"cpu.0": torch.get_rng_state()}, {"step": step})
    return checkpoint.save(run, step, fill, keep)


def test_what_is_saved_comes_back(hf_dir: Path, tmp_path: Path) -> None:
    state = trained(hf_dir)
    random_state = torch.get_rng_state()
    path = write(tmp_path, 7, state)
    model, _, optimizer = trained(hf_dir)
    held = next(model.parameters())
    progress, random_states = checkpoint.load(path, model, optimizer)
    assert progress == {"step": 7} and torch.equal(random_states["cpu.0"], random_state)
    assert held is next(model.parameters()), "the optimizer holds the parameters: they must be filled, not replaced"
    for a, b in zip(model.parameters(), state[0].parameters(), strict=True):
        assert torch.equal(a, b)
    moments, expected = optimizer.state_dict()["state"], state[2].state_dict()["state"]
    assert moments.keys() == expected.keys()
    assert all(torch.equal(moments[i][name], value) for i in expected for name, value in expected[i].items())
    assert storage.problem(path) is None


def test_rotation_keeps_the_newest_by_number_and_leaves_best_alone(hf_dir: Path, tmp_path: Path) -> None:
    state = trained(hf_dir)
    checkpoint.save_best(tmp_path, state[0], state[1], {"step": 9})
    for step in (9, 10, 100):
        write(tmp_path, step, state)
    (tmp_path / "checkpoint-000001.bak").mkdir()
    assert [p.name for p in storage.checkpoints(tmp_path)] == ["checkpoint-000010", "checkpoint-000100"]
    assert json.loads((tmp_path / "best" / "best.json").read_text()) == {"step": 9}
    assert storage.problem(tmp_path / "best") is None


def test_a_failing_save_leaves_no_trace(hf_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = trained(hf_dir)
    write(tmp_path, 1, state)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "_fsync", full)
    with pytest.raises(OSError):
        write(tmp_path, 2, state)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-000001"]
    assert storage.problem(tmp_path / "checkpoint-000001") is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest"])
def test_a_damaged_checkpoint_is_named_and_passed_over(hf_dir: Path, tmp_path: Path, damage: str) -> None:
    state = trained(hf_dir)
    write(tmp_path, 1, state)
    file = write(tmp_path, 2, state) / "state" / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-1])
    elif damage == "flipped":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    else:
        (file.parent.parent / "manifest.json").unlink()
    said: list[str] = []
    assert storage.newest(tmp_path, said.append) == tmp_path / "checkpoint-000001"
    assert len(said) == 1 and "checkpoint-000002 is damaged" in said[0]


def test_recover_finishes_or_undoes_what_a_kill_cut_short(tmp_path: Path) -> None:
    for name in (".old-best", ".tmp-checkpoint-000002-77", ".old-checkpoint-000001", "checkpoint-000001"):
        (tmp_path / name).mkdir()
    storage.recover(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "checkpoint-000001"]


def test_a_model_directory_is_no_checkpoint_to_resume_from(hf_dir: Path) -> None:
    model, _, optimizer = trained(hf_dir)
    with pytest.raises(CheckpointError, match="not a checkpoint to resume from"):
        checkpoint.load(hf_dir, model, optimizer)
