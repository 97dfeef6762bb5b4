"""Makes `tests/fixtures/run-v1`: a run in today's format that every later version must be able to resume.

Run once per format (`PYTHONPATH=. python tests/make_fixture.py`), and never over an old one.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from transformers import BertTokenizer, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blip_lite.data.sources.shapes import scene_captions, scene_ids
from blip_lite.training.loop import train
from conftest import ROOT, make_hf, tiny_config

if __name__ == "__main__":
    work = Path(tempfile.mkdtemp())
    words = sorted({word for scene in scene_ids(300, 0) for c in scene_captions(scene) for word in c.split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, "##s", ".", ",", "-", "'"]
    (work / "words.txt").write_text("\n".join(vocabulary))
    size = {"vision_size": 16, "text_size": 16, "layers": 1, "vision_heads": 2, "text_heads": 2, "positions": 48}
    make_hf(vocab=len(vocabulary) + 2, **size).save_pretrained(work / "model")
    processor = BlipProcessor(
        BlipImageProcessorPil(size={"height": 32, "width": 32}), BertTokenizer(vocab=str(work / "words.txt"))
    )
    processor.save_pretrained(work / "model")
    run = ROOT / "tests" / "fixtures" / "run-v1"
    train(tiny_config(work, model=str(work / "model"), output_dir=str(run), max_steps=2, learning_rate=1e-3))
    for name in (".lock", "best"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
