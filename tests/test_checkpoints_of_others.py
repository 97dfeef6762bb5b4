"""Checkpoints as people have them: wrapped, old, of BLIP's own release, with settings of their own; and the settings of a
run, which are the same through every door."""

from __future__ import annotations

import argparse
import base64
import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint
import transformers
from accelerate.utils import merge_fsdp_weights
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from blip_lite import Captioner
from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from blip_lite.errors import CheckpointError, ConfigError
from blip_lite.evaluation.evaluate import prepare as prepare_evaluation
from blip_lite.model.foreign import ORIGINAL
from blip_lite.model.from_scratch import from_scratch
from blip_lite.model.generation import generate
from blip_lite.model.location import NO_WEIGHTS, has_weights, locate
from blip_lite.model.pretrained import load_pretrained, save_pretrained
from blip_lite.reports.model_card import model_card
from blip_lite.settings import EvalConfig, TrainConfig
from blip_lite.training.run import Progress
from blip_lite.training.validate import Validation
from conftest import ROOT

PNG = {"content-type": "image/png"}
PICTURES = [np.asarray(draw_scene(name)) for name in scene_ids(6, 11)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    model, processor = from_scratch("tiny", [c for n in scene_ids(200, 1) for c in scene_captions(n)], 0)
    save_pretrained(model, processor, folder)
    return folder


def copied(tiny: Path, to: Path, weights: Any, name: str) -> Path:
    to.mkdir()
    for file in tiny.iterdir():
        if file.name != "model.safetensors":
            (to / file.name).write_bytes(file.read_bytes())
    if name.endswith("safetensors"):
        save_file(weights, to / name)
    else:
        torch.save(weights, to / name, _use_new_zipfile_serialization=not name.startswith("old-"))
    return to


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."])
@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_wrappings_are_taken_off(tiny: Path, tmp_path: Path, prefix: str, form: str) -> None:
    weights = {prefix + name: tensor for name, tensor in load_file(tiny / "model.safetensors").items()}
    inner: Any = weights if form.endswith("tensors") else {"epoch": 3, "model": {"state_dict": weights}}
    expected = Captioner.from_pretrained(tiny)(PICTURES)
    assert Captioner.from_pretrained(copied(tiny, tmp_path / "c", inner, form))(PICTURES) == expected and any(expected)


def test_torchs_old_format_is_read(tiny: Path, tmp_path: Path) -> None:
    folder = copied(tiny, tmp_path / "c", load_file(tiny / "model.safetensors"), "old-pytorch_model.bin")
    (folder / "old-pytorch_model.bin").rename(folder / "pytorch_model.bin")
    assert Captioner.from_pretrained(folder)(PICTURES) == Captioner.from_pretrained(tiny)(PICTURES)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_what_cannot_be_used_is_named(tiny: Path, tmp_path: Path, name: str) -> None:
    weights = load_file(tiny / "model.safetensors")
    folder = copied(tiny, tmp_path / "c", weights, name)
    whole = (folder / name).read_bytes()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer.*git lfs pull"):
        load_pretrained(folder)
    for content, told in (
        (b"", "it is empty: download or copy it again"),
        (b"\n<!DOCTYPE html>", "it is a web page, not weights"),
        (whole[: len(whole) // 2], "was it cut off. Then download"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: cannot be read .*{told}"):
            load_pretrained(folder)
    part = name.replace(".", "-00001-of-00002.")
    (folder / part).write_bytes(whole)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"has shards .{part}, .... without their index: download the file"):
        load_pretrained(folder)
    (folder / part).unlink()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    tokenizer = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes((folder / name).read_bytes())
    with pytest.raises(CheckpointError, match="tokenizer cannot be read .a Git LFS pointer"):
        load_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer)
    first = next(iter(weights))
    odd = {**weights, first: torch.full_like(weights[first], torch.nan)}
    save_file(odd, folder / name) if name.endswith("tensors") else torch.save(odd, folder / name)
    with pytest.raises(CheckpointError, match=f"1 tensors hold NaN or infinity, e.g. {re.escape(first)}"):
        load_pretrained(folder)


def test_an_adapter_quantized_weights_and_ids_that_are_none_are_named(tiny: Path, tmp_path: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    first = next(iter(weights))
    folder = copied(tiny, tmp_path / "c", {**weights, first: weights[first].to(torch.int8)}, "model.safetensors")
    with pytest.raises(CheckpointError, match=f"quantized weights .{re.escape(first)} is int8"):
        load_pretrained(folder)
    about = json.loads((folder / "config.json").read_text())
    for config, says in (
        (
            {**about, "text_config": {**about["text_config"], "bos_token_id": 10**6}},
            "text_config.bos_token_id is 1000000",
        ),
        ({**about, "vision_config": None}, "config.json has no vision_config"),
    ):
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=says):
            load_pretrained(folder)
    (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match="config.json: a Git LFS pointer"):
        load_pretrained(folder)
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(CheckpointError, match="an adapter"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "file, at, value, says",
    [
        ("config.json", ["architectures"], ["BlipForQuestionAnswering"], "a BlipForQuestionAnswering, not a captioner"),
        ("config.json", ["quantization_config"], {"quant_method": "hqq"}, "quantized weights .hqq"),
        ("config.json", ["text_config", "layer_norm_eps"], "x", "text_config.layer_norm_eps is x; expected 0 to 1"),
        ("config.json", ["vision_config", "attention_dropout"], -1, "vision_config.attention_dropout is -1"),
        ("config.json", ["text_config", "hidden_act"], ["gelu"], "text_config.hidden_act"),
        ("preprocessor_config.json", ["resample"], "bicubic", "resample is 'bicubic'"),
        ("preprocessor_config.json", ["rescale_factor"], None, "rescale_factor is None"),
        ("preprocessor_config.json", ["rescale_factor"], 0, "rescale_factor is 0"),
        (
            "tokenizer.json",
            ["model"],
            {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
            "tokenizer is WordLevel",
        ),
        ("tokenizer.json", ["model", "unk_token"], "<unk>", "unknown token '<unk>' is no token"),
        ("tokenizer.json", ["model", "vocab", "dog"], 10**6, "ids beyond the model's"),
    ],
)
def test_a_setting_that_makes_no_captioner_is_named(
    tiny: Path, tmp_path: Path, file: str, at: list[str], value: Any, says: str
) -> None:
    folder = copied(tiny, tmp_path / "c", load_file(tiny / "model.safetensors"), "model.safetensors")
    content = inner = json.loads((folder / file).read_text())
    for name in at[:-1]:
        inner = inner[name]
    inner[at[-1]] = value
    (folder / file).write_text("\ufeff" * (file == "config.json") + json.dumps(content))
    with pytest.raises(CheckpointError, match=says):
        load_pretrained(folder)


def test_shards_of_nothing_and_tensors_without_numbers_are_named(tiny: Path, tmp_path: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    first = next(iter(weights))
    folder = copied(tiny, tmp_path / "c", {**weights, first: weights[first].to("meta")}, "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="1 tensors were saved without their numbers"):
        load_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="has no weight_map"):
        load_pretrained(folder)


def original_name(name: str) -> str:
    """The name in BLIP's own release: the mapping of `foreign.ORIGINAL` backwards, written out."""
    for old, new in (
        ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
        ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
        ("vision_model.embeddings.patch_embedding.", "visual_encoder.patch_embed.proj."),
        ("vision_model.post_layernorm.", "visual_encoder.norm."),
        ("vision_model.encoder.layers.", "visual_encoder.blocks."),
        (".layer_norm1.", ".norm1."), (".layer_norm2.", ".norm2."),
        (".self_attn.qkv.", ".attn.qkv."), (".self_attn.projection.", ".attn.proj."),
    ):  # fmt: skip
        name = name.replace(old, new)
    return name


def test_the_original_release_loads_with_a_vocabulary_beside_it(tmp_path: Path) -> None:
    model, processor = from_scratch("small", [c for n in scene_ids(200, 1) for c in scene_captions(n)], 0)
    save_pretrained(model, processor, tmp_path / "ours")
    weights = {original_name(n): t for n, t in load_file(tmp_path / "ours/model.safetensors").items()}
    assert all("vision_model" not in name for name in weights) and len(ORIGINAL) == 8
    heads = model.config.text.num_attention_heads, model.config.vision.num_attention_heads
    if heads != (model.config.text.hidden_size // 64, model.config.vision.hidden_size // 64):
        pytest.skip("this preset has heads of another width than BLIP's 64")
    (tmp_path / "theirs").mkdir()
    torch.save({"model": {**weights, "itm_head.weight": torch.zeros(2)}}, tmp_path / "theirs/model_base_caption.pth")
    with pytest.raises(CheckpointError, match="vocab.txt beside it"):
        load_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs/vocab.txt").write_bytes((tmp_path / "ours/vocab.txt").read_bytes())
    one, two = load_pretrained(tmp_path / "ours")[0], load_pretrained(tmp_path / "theirs/model_base_caption.pth")[0]
    (tmp_path / "theirs/config.json").write_text('{"model_type": "bert"}')  # where the vocabulary comes from
    torch.save({"x": torch.ones(1)}, tmp_path / "theirs/features.pt")
    three = load_pretrained(tmp_path / "theirs")[0].state_dict()
    for state in (two.state_dict(), three):
        assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    "setting, says",
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"image_std": [0.0, 1.0, 1.0]}, "image_std is .*three numbers above 0"),
        ({"image_mean": 0.5}, "image_mean is 0.5; expected three numbers"),
    ],
)
def test_image_settings_are_refused_by_name_or_honoured(
    tiny: Path, tmp_path: Path, setting: dict[str, Any], says: str
) -> None:
    folder = copied(tiny, tmp_path / "c", load_file(tiny / "model.safetensors"), "model.safetensors")
    about = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**about, **setting}))
    with pytest.raises(CheckpointError, match=says):
        load_pretrained(folder)
    for off, low, high in (({"do_normalize": False}, 0.0, 1.0), ({"do_normalize": False, "do_rescale": False}, 0, 255)):
        (folder / "preprocessor_config.json").write_text(json.dumps({**about, **off}))
        pixels = load_pretrained(folder)[1].pixels(np.array([[[0] * 3, [255] * 3]], np.uint8))
        assert pixels.min() >= low and pixels.max() == high


def test_a_mute_tokenizer_is_refused_and_added_tokens_named(tiny: Path, tmp_path: Path) -> None:
    folder = copied(tiny, tmp_path / "c", load_file(tiny / "model.safetensors"), "model.safetensors")
    (folder / "tokenizer.json").unlink()
    (folder / "added_tokens.json").write_text('{"[DEC]": 300, "<dog>": 301}')
    with pytest.raises(CheckpointError, match="added_tokens.json adds '<dog>'"):
        load_pretrained(folder)
    (folder / "added_tokens.json").unlink()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(CheckpointError, match="the tokenizer has 5 tokens"):
        load_pretrained(folder)


WRAPPED = {
    "by itself": lambda weights: weights,
    "of a loop": lambda weights: {"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": {"lr": 1e-5}},
    "of Lightning": lambda weights: {"state_dict": {f"model.{name}": tensor for name, tensor in weights.items()}},
}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.from_regex(r"[a-zA-Z0-9_.-]{0,12}[a-z0-9]", fullmatch=True).filter(lambda n: not n.startswith((".", "-"))),
    st.sampled_from([".pt", ".pth", ".ckpt", ".bin", ".PT", ".safetensors"]),
    st.sampled_from(sorted(WRAPPED)),
)
def test_weights_of_any_name_beside_their_config_are_found(tiny: Path, stem: str, suffix: str, form: str) -> None:
    weights = load_file(tiny / "model.safetensors")
    with tempfile.TemporaryDirectory() as made:
        folder = copied(tiny, Path(made) / "c", weights, "model.safetensors")
        (folder / "model.safetensors").unlink()
        for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
            torch.save({"seed": 1}, folder / name)  # a trainer's; no weights
        file = folder / (stem + suffix)
        save_file(weights, file) if suffix == ".safetensors" else torch.save(WRAPPED[form](weights), file)
        assume(not NO_WEIGHTS.match(file.name))
        for named in (folder, file):
            state = load_pretrained(named)[0].state_dict()
            assert all(torch.equal(tensor, state[name]) for name, tensor in weights.items())


def test_weights_without_their_surroundings_say_what_to_put_beside_them(tiny: Path, tmp_path: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    for name in ("model.safetensors", "pytorch_model.bin", "last.ckpt"):
        folder = copied(tiny, tmp_path / name, weights, name)
        (folder / "config.json").unlink()
        for named in (folder, folder / name):
            with pytest.raises(CheckpointError, match="put these three files .*config.json, preprocessor"):
                load_pretrained(named)
    bare = copied(tiny, tmp_path / "bare", weights, "model.safetensors")
    for name in ("preprocessor_config.json", "tokenizer.json", "vocab.txt"):
        (bare / name).unlink()
    with pytest.raises(
        CheckpointError, match="neither preprocessor_config.* and neither tokenizer.*BlipProcessor"
    ) as e:
        load_pretrained(bare)
    told = re.search(r"`BlipProcessor.*?`", str(e.value))
    assert told
    exec(told[0].strip("`").replace("BASE", "tiny"), {"BlipProcessor": transformers.BlipProcessor, "tiny": tiny})
    pictures = Captioner.from_pretrained(bare)(PICTURES)  # what the message says is enough
    assert pictures == Captioner.from_pretrained(tiny)(PICTURES) and any(pictures)


def test_the_folder_that_is_meant_is_taken_or_named(tiny: Path, tmp_path: Path) -> None:
    trainers = tmp_path / "out"
    for step in (500, 1000):
        shutil.copytree(tiny, trainers / f"checkpoint-{step}")
    with pytest.raises(
        CheckpointError, match="no config.json of a BLIP; checkpoint-500, checkpoint-1000 in it have: name one"
    ):
        load_pretrained(trainers)
    cache = tmp_path / "models--me--blip"
    for name in ("old", "new"):
        shutil.copytree(tiny, cache / "snapshots" / name)
    with pytest.raises(CheckpointError, match="no config.json"):  # which of the two?
        load_pretrained(cache)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("new\n")
    assert locate(cache).folder == locate(cache / "snapshots").folder == cache / "snapshots/new"
    (tmp_path / "model.tar.gz").write_bytes(b"\x1f\x8b")
    for named, says in (
        (tmp_path / "model.tar.gz", "an archive: unpack it"),
        (tiny / "config.json", "name the folder"),
    ):
        with pytest.raises(CheckpointError, match=says):
            load_pretrained(named)


def test_what_loops_keep_beside_weights_is_passed_over(tiny: Path, tmp_path: Path) -> None:
    """In torch's old format and its new one: metrics of numpy, settings, averaged weights; any prefix of all names."""
    weights = load_file(tiny / "model.safetensors")
    mine = {f"model.blip.{name}": tensor for name, tensor in weights.items()}
    beside = {"cider": np.float64(0.5), "step": np.int64(3), "better": np.bool_(True), "args": argparse.Namespace(lr=1)}
    averaged = {"ema": {name: tensor + 1 for name, tensor in mine.items()}}
    for new, inner in itertools.product((True, False), ("model", "model_state", "params")):
        folder = copied(tiny, tmp_path / f"{new}-{inner}", {}, "none.bin")
        (folder / "none.bin").unlink()
        content = {**beside, **averaged, "model": {"name": "blip"}, inner: mine}
        torch.save(content, folder / "last.ckpt", _use_new_zipfile_serialization=new)
        state = load_pretrained(folder)[0].state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in weights.items())
        torch.save({"cfg": {}, "epoch": 3}, folder / "last.ckpt", _use_new_zipfile_serialization=new)
        with pytest.raises(CheckpointError, match="no tensors by name, .*; it has cfg, epoch"):
            load_pretrained(folder)


def test_which_of_several_weights_is_asked(tiny: Path, tmp_path: Path) -> None:
    """Never the base that lies beside what was trained, without a word."""
    weights = load_file(tiny / "model.safetensors")
    folder = copied(tiny, tmp_path / "c", weights, "model.safetensors")
    tuned = {name: tensor + 1 for name, tensor in weights.items()}
    torch.save(tuned, folder / "best.pth")
    (folder / "._best.pth").write_bytes(b"macOS")
    for present in (["model.safetensors", "best.pth"], ["best.pth", "last.pth"]):
        with pytest.raises(CheckpointError, match=f"which of these weights. Name the file: {', '.join(present)}$"):
            load_pretrained(folder)
        (folder / "model.safetensors").unlink(missing_ok=True)
        torch.save(weights, folder / "last.pth")
    first = next(iter(weights))
    assert torch.equal(load_pretrained(folder / "best.pth")[0].state_dict()[first], tuned[first])
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an adapter"):
        load_pretrained(folder)


def test_what_else_lies_beside_a_whole_checkpoint_is_passed_over(tiny: Path, tmp_path: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    folder = copied(tiny, tmp_path / "c", weights, "model.safetensors")
    for name in ("features.pt", "Optimizer.pt", "trainer_state.pt", "model.fp16.safetensors", "pytorch_model.bin"):
        torch.save({}, folder / name)
    assert locate(folder) == (folder, None) and has_weights(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.fp16.safetensors").unlink()
    (folder / "pytorch_model.bin").unlink()
    assert locate(folder) == locate(folder / "model-00001-of-00001.safetensors") == (folder, None)
    load_pretrained(folder)
    torch.save(weights, folder / "optimal.ckpt")  # no optimizer's
    (folder / "optimal.ckpt").rename(folder / "last.ckpt")
    with pytest.raises(CheckpointError, match="Name the file: model.safetensors.index.json, last.ckpt"):
        load_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_of_another_kind_is_called_by_its_name(tiny: Path, tmp_path: Path, name: str) -> None:
    folder = copied(tiny, tmp_path / "c", load_file(tiny / "model.safetensors"), name)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(CheckpointError, match="config.json describes a 'llava' model"):
        load_pretrained(folder)


def test_averaged_weights_are_not_taken_for_damaged_ones(tiny: Path, tmp_path: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    folder = copied(tiny, tmp_path / "c", {"model": {**weights, "step": 3}, "ema": weights}, "last.ckpt")
    with pytest.raises(CheckpointError, match="'step' is no tensor, among those of 'model'"):
        load_pretrained(folder)


def test_a_run_without_a_best_names_its_checkpoints(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"settings": {}}')
    shutil.copytree(tiny, tmp_path / "checkpoint-000002")
    with pytest.raises(CheckpointError, match="checkpoint-000002 in it has: name that"):
        load_pretrained(tmp_path)
    shutil.copytree(tiny, tmp_path / "best")
    (tmp_path / "link.safetensors").symlink_to(tiny / "model.safetensors")
    assert locate(tmp_path).folder == tmp_path / "best"


@pytest.mark.parametrize(
    "name", ["~nobody-of-this-name/x", "x" * 5000, "pth/none.pth", "a/b.safetensors", "huggingface.co/x"]
)
def test_what_is_nowhere_is_one_line(name: str) -> None:
    with pytest.raises(CheckpointError, match="no such directory or file, and not a Hub id") as error:
        load_pretrained(name)
    assert len(str(error.value)) < 300


def test_a_pickled_model_is_not_run_and_the_remedy_said(tiny: Path, tmp_path: Path) -> None:
    model = transformers.BlipForConditionalGeneration.from_pretrained(tiny)
    for name in ("model.pt", "pytorch_model.bin", "old-model.pt"):
        folder = copied(tiny, tmp_path / name, model, name)
        with pytest.raises(CheckpointError, match=r"holds Python objects .*torch\.save\(model\.state_dict\(\), FILE\)"):
            load_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("global_step500/", "DeepSpeed's shards: `python zero_to_fp32.py"),
        ("zero_to_fp32.py", "DeepSpeed's shards"),
        ("pytorch_model_fsdp_0/", "FSDP's shards: `accelerate merge-weights"),
        ("__0_0.distcp", "FSDP's shards"),
        ("tf_model.h5", "TensorFlow's weights"),
        ("flax_model-00001-of-00002.msgpack", "Flax's weights"),
        ("decoder_model.onnx", "has weights for another runtime"),
        ("notes.md", "has neither model.safetensors nor pytorch_model.bin; there are"),
    ],
)
def test_weights_of_other_frameworks_are_told_what_helps(tiny: Path, tmp_path: Path, name: str, says: str) -> None:
    folder = copied(tiny, tmp_path / "c", {}, "none.bin")
    (folder / "none.bin").unlink()
    (folder / name).mkdir() if name.endswith("/") else (folder / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=says):
        load_pretrained(folder)
    for file in tiny.iterdir():
        (folder / file.name).unlink(missing_ok=True)
    says = says if "has neither" not in says else "it has no config.json of a BLIP"
    with pytest.raises(CheckpointError, match=says):
        load_pretrained(folder)


def test_the_remedy_for_shards_of_fsdp_helps(tiny: Path, tmp_path: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    folder = copied(tiny, tmp_path / "c", {}, "none.bin")
    (folder / "none.bin").unlink()
    torch.distributed.checkpoint.save(weights, checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)
    with pytest.raises(CheckpointError, match="FSDP") as error:
        load_pretrained(folder)
    command = re.search("`(accelerate .*)`", str(error.value))
    assert command
    inner, output = command[1].replace("OUTPUT", str(tmp_path / "out")).split()[2:]
    merge_fsdp_weights(inner, output)
    shutil.copy(tmp_path / "out/model.safetensors", folder)
    state = load_pretrained(folder)[0].state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in weights.items())


@pytest.mark.parametrize(
    "named",
    [
        *("https://huggingface.co/me/blip", "hf.co/me/blip/", "me/blip/", "me/blip"),
        "https://huggingface.co/me/blip/tree/main/",
        "https://huggingface.co/me/blip/blob/main/model.safetensors",
        "https://huggingface.co/me/blip/resolve/main/config.json?download=true",
        "hf.co/me/blip/blob/main/pytorch_model.bin",
    ],
)
def test_an_address_of_the_hub_is_its_id(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    asked = []
    monkeypatch.setattr("blip_lite.model.location.from_hub", lambda get: get())
    monkeypatch.setattr("blip_lite.model.location._only_one_format", lambda name: [])
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or "/there")
    assert locate(named).folder == Path("/there") and asked == ["me/blip"]
    with pytest.raises(
        CheckpointError, match="no such directory or file, and not a Hub id"
    ):  # another revision is not `main`
        locate("https://huggingface.co/me/blip/blob/v2/model.safetensors")
    for other in ("tree/main/checkpoint-500", "blob/main/best.pth", "blob/main/sub/model.safetensors"):
        with pytest.raises(CheckpointError, match="not a Hub id"):  # not what its root holds
            locate(f"https://huggingface.co/me/blip/{other}")


def test_weights_have_the_rights_of_new_files(tiny: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tiny / "model.safetensors").stat().st_mode) == 0o666 & ~umask


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with a prompt and decoding of its own, long enough that captions differ."""
    from blip_lite.training.loop import train

    folder = tmp_path_factory.mktemp("travel") / "run"
    train(
        TrainConfig.of(
            dataset="shapes", scenes=300, model="tiny", epochs=6, prompt="a picture of ", num_beams=2, max_new_tokens=6,
            output_dir=str(folder), num_workers=0,
        )
    )  # fmt: skip
    return folder


@pytest.mark.long
def test_captions_are_the_same_through_every_door(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from blip_lite.cli import main
    from blip_lite.data.load import load_data
    from blip_lite.evaluation.evaluate import evaluate

    evaluate(EvalConfig.of(ckpt=str(run / "best"), spice=False, num_workers=0))
    rows = [json.loads(line) for line in (run / "captions.jsonl").read_text().splitlines()]
    expected = {row["image_id"]: row["caption"] for row in rows}
    assert len(set(expected.values())) > 2 and all(expected.values())
    about = json.loads((run / "config.json").read_text())["settings"]
    data = load_data(TrainConfig.of(dataset="shapes", scenes=300).data, about["seed"])
    sources = {e.image_id: e.open() for e in data.splits["test"]}

    def captioner_door() -> dict[str, str]:
        return dict(zip(sources, Captioner.from_pretrained(run / "best")(list(sources.values())), strict=True))

    def command_door() -> dict[str, str]:
        (tmp_path / "p").mkdir()
        for image_id, source in sources.items():
            from blip_lite.processing.images import open_image

            open_image(source).save(tmp_path / f"p/{image_id}.png")
        main(["caption", str(tmp_path / "p"), "--ckpt", str(run / "best"), "--output", str(tmp_path / "o.jsonl")])
        lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
        return {Path(line["image"]).stem: line["caption"] for line in lines}

    def files() -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in (tmp_path / "p").iterdir()}

    def sagemaker_door() -> dict[str, str]:
        monkeypatch.syspath_prepend(str(ROOT / "aws_sagemaker"))
        import inference

        loaded = inference.model_fn(str(run / "best"))
        answers = [
            json.loads(inference.output_fn(inference.predict_fn(inference.input_fn(data, "image/png"), loaded), "*/*"))
            for data in files().values()
        ]
        return {name: a["predictions"][0]["generated_text"] for name, a in zip(files(), answers, strict=True)}

    def http_door() -> dict[str, str]:
        from fastapi.testclient import TestClient

        from blip_lite.serving.http import build
        from blip_lite.serving.service import Options, Service

        with TestClient(build(Service(Captioner.from_pretrained(run / "best"), Options("model")))) as client:
            posted = {name: client.post("/caption", content=data, headers=PNG) for name, data in files().items()}
        return {name: answer.json()["results"][0]["caption"] for name, answer in posted.items()}

    def ray_door() -> dict[str, str]:
        monkeypatch.syspath_prepend(str(ROOT / "examples"))
        from caption_ray import CaptionWorker

        worker = CaptionWorker(str(run / "best"), "path", "bytes", 1, {"num_return_sequences": 1})
        found = worker({"path": np.array(list(files())), "bytes": np.array(list(files().values()), object)})
        return dict(zip(found["path"].to_pylist(), found["caption"].to_pylist(), strict=True))

    doors: dict[str, Callable[[], dict[str, str]]] = {
        "Captioner": captioner_door, "caption": command_door, "SageMaker": sagemaker_door,
    }  # fmt: skip
    if importlib.util.find_spec("fastapi"):
        doors["HTTP"] = http_door  # and the page, which asks the same service
    if importlib.util.find_spec("ray"):
        doors["Ray"] = ray_door
    for name, door in doors.items():
        assert door() == expected, name
    settings = json.loads((run / "best/generation_config.json").read_text())
    assert settings["num_beams"] == 2 and settings["max_new_tokens"] == 6
    explicit = Captioner.from_pretrained(run / "best")(PICTURES, prompt="there are", num_beams=1, max_new_tokens=3)
    assert all(caption.startswith("there are") for caption in explicit)


def test_a_run_that_was_resumed_with_other_decoding_has_one_truth_for_each_checkpoint(
    run: Path, tmp_path: Path
) -> None:
    """`best/` keeps what it was chosen with, in `evaluate`, `Captioner` and the card; later checkpoints have the new."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    about = json.loads((folder / "config.json").read_text())
    about["settings"] |= {"num_beams": 1, "max_new_tokens": 3}
    (folder / "config.json").write_text(json.dumps(about))
    own = Captioner.from_pretrained(folder / "best").settings()
    plan = prepare_evaluation(EvalConfig.of(run=str(folder), split="test"))
    assert (own.num_beams, own.max_new_tokens) == (2, 6)
    assert (plan.config.decoding.num_beams, plan.config.decoding.max_new_tokens) == (2, 6) and not plan.differs
    assert "max_new_tokens=6, " in model_card(folder)
    asked = prepare_evaluation(EvalConfig.of(run=str(folder), split="test", num_beams=3))
    assert asked.config.decoding.num_beams == 3 and asked.differs == {"num_beams": 3}


@pytest.mark.parametrize(
    ("theirs", "ours", "told"),
    [
        ({"num_beams": 4, "length_penalty": 0}, {"num_beams": 4, "length_penalty": 0.0, "early_stopping": False}, ""),
        ({"num_beams": 3, "length_penalty": -1}, {"length_penalty": -1.0}, ""),
        ({"num_beams": 4, "early_stopping": "never"}, {"early_stopping": False}, "early_stopping='never'"),
        ({"num_beams": 3.0, "early_stopping": 1}, {"num_beams": 3, "early_stopping": True}, ""),
        ({"max_length": 10, "min_length": 4}, {"max_new_tokens": 9, "min_new_tokens": 3, "num_beams": 5}, ""),
        ({"max_length": 10, "max_new_tokens": 4}, {"max_new_tokens": 4}, ""),
        ({"min_new_tokens": 40}, {"min_new_tokens": 40, "max_new_tokens": 40}, ""),
        ({"max_new_tokens": 4000}, {"max_new_tokens": 63}, "room for 63"),
        ({"do_sample": True, "top_p": 0.9, "top_k": 50}, {"num_beams": 5, "do_sample": False}, "top_p=0.9"),
        ({"do_sample": False, "temperature": 1.0, "num_beam_groups": 1}, {"num_beams": 5}, ""),
    ],
)
def test_decoding_that_transformers_wrote(
    tiny: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    theirs: dict[str, Any],
    ours: dict[str, Any],
    told: str,
) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(tiny, folder)
    (folder / "generation_config.json").write_text(json.dumps(theirs))
    (folder / "captioning.json").unlink(missing_ok=True)
    captioner = Captioner.from_pretrained(folder)
    settings = captioner.settings()
    assert {name: getattr(settings, name) for name in ours} == ours
    assert told in caplog.text and bool(told) == bool(caplog.text)
    assert captioner(PICTURES[0]) == captioner(PICTURES[0], **{n: v for n, v in ours.items() if n != "do_sample"})
    assert captioner(PICTURES[0], num_beams=1, max_new_tokens=2, min_new_tokens=0)


@pytest.mark.parametrize("penalty", [0, -1, -2])
def test_a_whole_number_is_a_length_penalty(tiny: Path, penalty: int) -> None:
    captioner = Captioner.from_pretrained(tiny)
    found = [
        captioner(PICTURES[0], num_beams=3, length_penalty=p, return_scores=True) for p in (penalty, float(penalty))
    ]
    assert found[0] == found[1] and found[0][0]


@pytest.mark.parametrize("name", ["max_new_tokens", "num_return_sequences", "num_beams", "length_penalty"])
@pytest.mark.parametrize("value", ["5", None, [1], True])
def test_settings_of_another_type_are_told(tiny: Path, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .*expected a number"):
        Captioner.from_pretrained(tiny)(PICTURES[0], **{name: value})


def test_what_is_asked_for_wins_and_fits(run: Path) -> None:
    captioner = Captioner.from_pretrained(run / "best")
    assert captioner.settings().num_beams == 2 and captioner.settings(num_beams=4).num_beams == 4
    assert captioner.settings(do_sample=True).num_beams == 1
    assert captioner.settings(num_return_sequences=5).num_beams == 5
    assert len(captioner(PICTURES[0], num_return_sequences=3)) == 3


def test_several_captions_are_of_the_beams_that_the_checkpoint_has(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line, too, and through SageMaker."""
    from blip_lite.cli import main

    monkeypatch.syspath_prepend(str(ROOT / "aws_sagemaker"))
    import inference

    model, processor = load_pretrained(tiny)
    processor.decoding = {"num_beams": 8, "max_new_tokens": 40}
    save_pretrained(model, processor, tmp_path / "eight")
    draw_scene(scene_ids(1, 11)[0]).save(tmp_path / "a.png")
    asked: list[tuple[int, int]] = []

    def noted(model: Any, pixels: Any, prompt: Any, settings: Any, forbidden: Any) -> Any:
        asked.append((settings.num_beams, settings.num_return_sequences))
        return generate(model, pixels, prompt, settings, forbidden)

    monkeypatch.setattr("blip_lite.captioner.generate", noted)
    assert main(["caption", str(tmp_path / "a.png"), "--ckpt", str(tmp_path / "eight"), "--num_captions", "2"]) == 0
    captioner, image = inference.model_fn(str(tmp_path / "eight")), (tmp_path / "a.png").read_bytes()
    for parameters in ({"num_return_sequences": 7}, {"min_new_tokens": 35}, {"do_sample": True}):
        body = json.dumps({"inputs": base64.b64encode(image).decode(), "parameters": parameters})
        inference.predict_fn(inference.input_fn(body, "application/json"), captioner)
    assert asked == [(8, 2), (8, 7), (8, 1), (1, 1)]


@pytest.mark.long
def test_an_export_is_compared_with_its_own_settings(run: Path, tmp_path: Path) -> None:
    from blip_lite.serving.export import export

    export(run / "best", tmp_path / "to")
    assert json.loads((tmp_path / "to/captioning.json").read_text()) == {"prompt": "a picture of "}
    assert safetensors.torch.load_file(tmp_path / "to/model.safetensors")


def test_a_temporary_file_is_one_image(tiny: Path) -> None:
    from PIL import Image

    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        Image.fromarray(PICTURES[0]).save(file, "PNG")
        file.seek(0)
        assert isinstance(Captioner.from_pretrained(tiny)(file), str)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "losses, best", [([3.0, 2.0, 2.5], 2), ([math.nan, 2.0, 3.0], 2), ([math.inf, math.nan, 1.0], 3)]
)
def test_few_images_choose_by_loss_even_after_one_that_is_no_number(
    losses: list[float], best: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert chosen(Progress(), losses, monkeypatch, tmp_path) == best


def test_an_older_run_goes_on_to_choose_by_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = Progress(best_step=1, best_bleu=5.0)  # its version knew no best_loss
    assert chosen(before, [1.0, 0.5, 0.1], monkeypatch, tmp_path, bleus=[6.0, 5.5, 5.0]) == 1


def test_a_run_that_is_to_choose_by_loss_from_now_on_keeps_a_best_that_is_better(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "best.json").write_text('{"step": 1, "val_loss": 0.7}')
    before = Progress(best_step=1, best_bleu=5.0)  # chosen by its score
    assert chosen(before, [1.0, 0.8, 0.75], monkeypatch, tmp_path, metric="loss") == 0
    assert chosen(before, [1.0, 0.5, 0.6], monkeypatch, tmp_path, metric="loss") == 2


def chosen(
    progress: Progress,
    losses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    bleus: list[float] | None = None,
    metric: str = "auto",
) -> int:
    """Which validation (from 1) of a run with 5 images was kept as the best."""
    import blip_lite.training.loop as loop

    monkeypatch.setattr(loop, "save_best", lambda *a: None)
    accelerator = SimpleNamespace(is_main_process=True)
    run: Any = SimpleNamespace(
        progress=progress, accelerator=accelerator, folder=folder, shown=None, processor=None, saving_seconds=0.0,
        config=SimpleNamespace(run=SimpleNamespace(best_metric=metric)),
        writing=None,
        data=SimpleNamespace(splits={"validation": [None] * 5}),
    )  # fmt: skip
    log: Any = SimpleNamespace(evaluation=lambda *a: None)
    kept = 0
    for number, loss in enumerate(losses, 1):
        found = {"val_bleu": (bleus or [9.0, 8.0, 7.0])[number - 1], "val_loss": loss, "val_cider": 1.0}
        monkeypatch.setattr(loop, "validate", lambda *a, found=found: Validation(found, [], ([], [])))
        progress.step = 100 + number
        loop.evaluate_and_keep_best(run, log, SimpleNamespace(asked=lambda _: 0))
        kept = number if progress.best_step == progress.step else kept
    return kept
