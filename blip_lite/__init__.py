"""blip_lite: fine-tune, evaluate and run BLIP image captioning.

The names below bring torch, tokenizers, safetensors, Pillow and numpy, and nothing else, when they are first asked for:
torch takes seconds to import, and a command speaks before. `train` is in
`blip_lite.training.loop`, `evaluate` in `blip_lite.evaluation.evaluate`; they need `pip install "blip_lite[train]"`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blip_lite.captioner import Captioner
    from blip_lite.model.pretrained import load_pretrained, save_pretrained

__all__ = ["Captioner", "load_pretrained", "save_pretrained"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name == "Captioner":
        from blip_lite.captioner import Captioner

        return Captioner
    if name in __all__:
        from blip_lite.model import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
