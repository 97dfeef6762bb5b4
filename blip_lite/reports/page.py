"""What the pages share: style, search, thumbnails."""

from __future__ import annotations

import base64
import io

from PIL import ImageOps

from blip_lite.processing.images import ImageInput, open_image

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em} table{border-collapse:collapse} td,th{padding:.2em .9em .2em 0;text-align:left}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:1.2em}
.card{overflow-wrap:anywhere} .card img{width:100%;border:1px solid #ddd} .card b{display:block;margin:.3em 0}
.card li,.note{color:#666;font-size:.86em} .card ul{margin:0;padding-left:1.1em}
svg{border:1px solid #ddd;margin-right:1em}
"""


SEARCH = """
const cards = [...document.querySelectorAll('.card')], box = document.querySelector('.cards');
document.querySelector('#find').oninput = e => {
  const words = e.target.value.toLowerCase();
  let n = 0;
  cards.forEach(c => { c.hidden = !c.textContent.toLowerCase().includes(words); n += !c.hidden; });
  document.querySelector('#count').textContent = n + ' images';
};
"""


SORT = """
document.querySelector('#sort').onchange = e => {
  const [key, sign] = e.target.value.split(' ');
  cards.sort((a, b) => sign * (a.dataset[key] - b.dataset[key])).forEach(c => box.append(c));
};
"""


def thumbnail(image: ImageInput, size: int = 256, quality: int = 85) -> str:
    """An image as a `data:` URL, at most `size` pixels a side."""
    small = ImageOps.contain(open_image(image), (size, size))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
