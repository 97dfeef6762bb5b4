"""Shared fixtures: tiny random checkpoints that `transformers` itself saved, small data sets, and the oracle."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker, and what it starts, computes on one core

import pytest
import torch
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blip_lite.data.dataset import DataSet
from blip_lite.data.load import load_data
from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids
from blip_lite.settings import TrainConfig

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


def real_data(*parts: str) -> Path:
    """A folder of the project's real data, or a skip with the reason."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data not here: {path}")
    return path


def charts_of(page: str) -> list[dict[str, Any]]:
    """The data of a page's charts."""
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)
    return list(json.loads(found[1])) if found else []


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def make_hf(
    seed: int = 0,
    *,
    vision_heads: int = 4,
    text_heads: int = 2,
    layers: int = 2,
    vision_size: int = 48,
    text_size: int = 32,
    vocab: int = 99,
    image_size: int = 32,
    act: str = "gelu",
    sep_bias: float = 0.5,
    scale: float = 4.0,
    positions: int = 64,
) -> BlipForConditionalGeneration:
    """A random `transformers` model whose captions depend on the image and end at different lengths."""
    torch.manual_seed(seed)
    vision = {
        "hidden_size": vision_size,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": vision_heads,
        "image_size": image_size,
        "patch_size": 8,
        "initializer_range": 0.02,  # the class default, 1e-10, would make the image irrelevant
        "hidden_act": act,
    }
    text = {
        "vocab_size": vocab,
        "hidden_size": text_size,
        "intermediate_size": 80,
        "num_hidden_layers": layers,
        "num_attention_heads": text_heads,
        "max_position_embeddings": positions,
        "bos_token_id": vocab - 2,
        "sep_token_id": 3,
        "pad_token_id": 0,
        "initializer_range": 0.02,
        "hidden_act": act,
    }
    model = BlipForConditionalGeneration(BlipConfig(vision_config=vision, text_config=text)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                # Words differ more, so that the next token depends on the image and on what was said before.
                parameter.mul_(3 * scale if "word_embeddings" in name else scale)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
        model.text_decoder.cls.predictions.decoder.bias[3] += sep_bias
    return model


@pytest.fixture(scope="session")
def vocabulary() -> list[str]:
    words = sorted({word for scene in scene_ids(300, 0) for c in scene_captions(scene) for word in c.split()})
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, "##s", ".", ",", "-", "'"]


@pytest.fixture(scope="session")
def hf_dir(tmp_path_factory: pytest.TempPathFactory, vocabulary: list[str]) -> Path:
    """A checkpoint directory that `transformers` saved: model, tokenizer and image processor."""
    folder = tmp_path_factory.mktemp("hf")
    (folder / "words.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizer(vocab=str(folder / "words.txt"))
    processor = BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer)
    make_hf(vocab=len(vocabulary) + 2).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of 60 scenes with metadata.jsonl, five captions each."""
    folder = tmp_path_factory.mktemp("scenes")
    with open(folder / "metadata.jsonl", "w") as file:
        for number, scene in enumerate(scene_ids(60, 7)):
            draw_scene(scene, 32).save(folder / f"{number:03d}.png")
            file.write(json.dumps({"file_name": f"{number:03d}.png", "caption": scene_captions(scene)}) + "\n")
    return folder


def tiny_config(tmp_path: Path, **changes: object) -> TrainConfig:
    """Settings of a run of seconds."""
    values = {
        "dataset": "shapes",
        "model": "tiny",
        "output_dir": str(tmp_path / "run"),
        "max_train_images": 32,
        "max_eval_images": 6,
        "batch_size": 4,
        "max_steps": 4,
        "gradient_accumulation_steps": 1,
        "logging_steps": 1,
        "num_workers": 0,
        "num_beams": 2,
        "max_new_tokens": 12,
        "seed": 3,
        **changes,
    }
    return TrainConfig.of(**values)


def load(dataset: object = "flickr8k", **flat: object) -> DataSet:
    """The data set that flat settings name."""
    config = TrainConfig.of(dataset=str(dataset), **flat)
    return load_data(config.data, config.optimisation.seed)
