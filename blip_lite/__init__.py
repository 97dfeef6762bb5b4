"""blip_lite: fine-tune, evaluate and run BLIP image captioning.

Importing the package brings torch, tokenizers, safetensors, Pillow and numpy, and nothing else. `train` is in
`blip_lite.training.loop`, `evaluate` in `blip_lite.evaluation.evaluate`; they need `pip install "blip_lite[train]"`.
"""

from blip_lite.captioner import Captioner
from blip_lite.model.pretrained import load_pretrained, save_pretrained

__all__ = ["Captioner", "load_pretrained", "save_pretrained"]
__version__ = "0.2.0"
