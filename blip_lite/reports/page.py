"""What the pages share: templates, thumbnails."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from blip_lite.errors import ImageError
from blip_lite.processing.images import ImageInput, open_image

FOLDER = Path(__file__).parent


def source(name: str) -> Markup:
    """A style sheet or script of ours, as it stands."""
    return Markup((FOLDER / name).read_text("utf-8"))


ENVIRONMENT = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.globals["source"] = source


def render(template: str, **values: Any) -> str:
    """A page that needs no other file and no network. Texts are escaped; only `Markup` is not."""
    return ENVIRONMENT.get_template(template).render(values)


def thumbnail(image: ImageInput, size: int = 256, quality: int = 80) -> str:
    """An image as a `data:` URL, at most `size` pixels a side."""
    small = open_image(image).copy()
    small.thumbnail((size, size))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(load: Callable[[], ImageInput], size: int = 256, quality: int = 80) -> str | None:
    """`thumbnail` of what `load` returns; None if it cannot be opened."""
    try:
        return thumbnail(load(), size, quality)
    except (ImageError, OSError):
        return None
