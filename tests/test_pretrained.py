"""Checkpoints in and out: what `transformers` saved loads here, what we save loads there."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import BlipForConditionalGeneration, BlipProcessor

from blip_lite import Captioner, load_pretrained, save_pretrained
from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from blip_lite.errors import CheckpointError
from blip_lite.model.from_scratch import PRESETS, from_scratch
from blip_lite.model.generation import GenerationSettings, generate
from conftest import real_data


def same_weights(model: torch.nn.Module, hf: torch.nn.Module) -> bool:
    a, b = model.state_dict(), hf.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_loads_what_transformers_saved(hf_dir: Path) -> None:
    model, processor = load_pretrained(hf_dir)
    assert same_weights(model, BlipForConditionalGeneration.from_pretrained(hf_dir))
    theirs = BlipProcessor.from_pretrained(hf_dir)
    text = "There is a large red circle to the left of a small blue star ."
    assert processor.words(text) == theirs.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert processor.image_size == 32


def test_loads_shards_and_bin_files(hf_dir: Path, tmp_path: Path) -> None:
    hf = BlipForConditionalGeneration.from_pretrained(hf_dir)
    hf.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    (tmp_path / "bin").mkdir()
    torch.save(hf.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    for name in ("shards", "bin"):
        for file in hf_dir.iterdir():
            if file.suffix == ".json" and not (tmp_path / name / file.name).exists():
                shutil.copy(file, tmp_path / name)
        assert same_weights(load_pretrained(tmp_path / name)[0], hf)


def test_old_checkpoints_with_preprocessor_config_and_vocab_txt(
    hf_dir: Path, vocabulary: list[str], tmp_path: Path
) -> None:
    shutil.copytree(hf_dir, tmp_path / "old")
    for name in ("processor_config.json", "tokenizer.json"):
        (tmp_path / "old" / name).unlink()
    (tmp_path / "old" / "preprocessor_config.json").write_text(json.dumps({"size": 32, "image_mean": [0.5] * 3}))
    (tmp_path / "old" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    weights = safetensors.torch.load_file(hf_dir / "model.safetensors")
    weights["text_decoder.bert.embeddings.position_ids"] = torch.arange(64)[None]  # a constant that old ones store
    safetensors.torch.save_file(weights, tmp_path / "old" / "model.safetensors")
    processor = load_pretrained(tmp_path / "old")[1]
    assert processor.image_mean == (0.5, 0.5, 0.5)
    text = "three large red circles on a white background"
    assert processor.words(text) == load_pretrained(hf_dir)[1].words(text)


@pytest.mark.parametrize("source", ["transformers", "scratch"])
def test_transformers_loads_what_we_save(hf_dir: Path, tmp_path: Path, source: str) -> None:
    if source == "transformers":
        model, processor = load_pretrained(hf_dir)
    else:
        captions = [c for scene in scene_ids(50, 1) for c in scene_captions(scene)]
        model, processor = from_scratch("tiny", captions, 0)
    save_pretrained(model, processor, tmp_path)
    assert len(safetensors.torch.load_file(tmp_path / "model.safetensors")) == len(list(model.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hf, info = BlipForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert same_weights(model, hf)
    theirs = BlipProcessor.from_pretrained(tmp_path, backend="pil")
    image, text = draw_scene(scene_ids(1, 0)[0]), "a large red circle to the left of a small blue star"
    assert theirs.tokenizer(text, add_special_tokens=False)["input_ids"] == processor.words(text)
    pixels = theirs(images=image, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels[0], processor.pixels(image))

    hf.eval()
    start = torch.tensor([[processor.bos_token_id, processor.sep_token_id]])
    expected = hf.generate(pixels, input_ids=start.clone(), num_beams=3, max_new_tokens=9, early_stopping=True)
    found = generate(model, pixels, start[:, :1], GenerationSettings(num_beams=3, max_new_tokens=9))
    assert processor.decode(found.sequences[0, 0].tolist()) == processor.decode(expected[0].tolist())

    again, _ = load_pretrained(tmp_path)
    assert same_weights(again, hf)


def test_tied_weights_stay_tied(hf_dir: Path) -> None:
    model, _ = load_pretrained(hf_dir)
    predictions = model.text_decoder.cls.predictions
    assert predictions.decoder.weight is model.text_decoder.bert.embeddings.word_embeddings.weight
    assert predictions.bias is predictions.decoder.bias


def edited(hf_dir: Path, folder: Path, edit) -> Path:
    shutil.copytree(hf_dir, folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    edit(weights)
    safetensors.torch.save_file({k: v.contiguous().clone() for k, v in weights.items()}, folder / "model.safetensors")
    return folder


def test_wrong_checkpoints_are_refused_by_name(hf_dir: Path, tmp_path: Path) -> None:
    key = "vision_model.encoder.layers.0.mlp.fc1.weight"
    missing = edited(hf_dir, tmp_path / "missing", lambda w: w.pop(key))
    with pytest.raises(CheckpointError, match=f"(?s)missing: missing.*{key}|{missing}.*missing: {key}"):
        load_pretrained(missing)
    with pytest.raises(CheckpointError, match=r"fc1.weight: shape \[3, 48\], config.json asks for \[64, 48\]"):
        load_pretrained(edited(hf_dir, tmp_path / "shape", lambda w: w.update({key: w[key][:3]})))
    with pytest.raises(CheckpointError, match="unexpected: extra"):
        load_pretrained(edited(hf_dir, tmp_path / "extra", lambda w: w.update(extra=torch.zeros(1))))

    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not a checkpoint directory, it has no config.json"):
        load_pretrained(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no such directory"):
        load_pretrained(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="not to be had from the Hub"):
        load_pretrained("nobody/no-such-model-anywhere")

    torn = tmp_path / "torn"
    shutil.copytree(hf_dir, torn)
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="model.safetensors: cannot be read"):
        load_pretrained(torn)
    (torn / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither model.safetensors nor pytorch_model.bin"):
        load_pretrained(torn)
    (torn / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../x.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside the directory"):
        load_pretrained(torn)
    (torn / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_pretrained(torn)


def test_a_pickle_that_would_run_code_is_refused(hf_dir: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was-run",))

    shutil.copytree(hf_dir, tmp_path / "evil")
    (tmp_path / "evil" / "model.safetensors").unlink()
    torch.save({"weights": Payload()}, tmp_path / "evil" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds Python objects .*not unpickled"):
        load_pretrained(tmp_path / "evil")
    assert not (tmp_path / "was-run").exists()


def test_presets_have_the_sizes_they_claim() -> None:
    captions = [c for scene in scene_ids(200, 1) for c in scene_captions(scene)]
    model, processor = from_scratch("tiny", captions, 0)
    assert model.config.text.vocab_size == processor.tokenizer.get_vocab_size() + 2
    assert all(processor.tokenizer.id_to_token(i) != "[UNK]" for c in captions for i in processor.words(c))
    assert PRESETS["base"][1].num_attention_heads == 12
    twin, _ = from_scratch("tiny", captions, 0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])
def test_the_published_files_with_full_size_weights(size: str, tmp_path: Path) -> None:
    """The real config, preprocessor and tokenizer files beside full-size random weights, as `pytorch_model.bin`."""
    from transformers import BlipConfig

    source = real_data("hf_configs", size)
    photo = next((real_data("flickr8k") / "Flicker8k_Dataset").glob("*.jpg"))
    for file in source.iterdir():
        shutil.copy(file, tmp_path)
    torch.manual_seed(0)
    config = BlipConfig.from_pretrained(source)
    config.vision_config.initializer_range = 0.02
    hf = BlipForConditionalGeneration(config).eval()
    torch.save(hf.state_dict(), tmp_path / "pytorch_model.bin")
    captioner = Captioner.from_pretrained(tmp_path, device="cpu")
    assert same_weights(captioner.model, hf)
    pixels = captioner.processor.pixel_values([photo])
    expected = hf.generate(pixels, max_new_tokens=8, num_beams=3, early_stopping=True)
    assert captioner(photo, max_new_tokens=8, num_beams=3) == captioner.processor.decode(expected[0].tolist())
