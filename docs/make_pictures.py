"""Draw the README's pictures from a finished run: `python docs/make_pictures.py runs/shapes`."""

import json
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from blip_lite.data.sources.shapes import draw_scene

CELL, TEXT = 240, 64  # pixels


def main() -> None:
    lines = (Path(sys.argv[1]) / "captions.jsonl").read_text("utf-8").splitlines()[:8]  # the first ones, not the best
    rows = [json.loads(line) for line in lines]
    sheet = Image.new("RGB", (4 * CELL, 2 * (CELL + TEXT)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, row in enumerate(rows):
        x, y = number % 4 * CELL, number // 4 * (CELL + TEXT)
        sheet.paste(draw_scene(row["image_id"], CELL - 20), (x + 10, y + 10))
        draw.rectangle((x + 10, y + 10, x + CELL - 11, y + CELL - 11), outline="#cccccc")
        draw.multiline_text((x + 12, y + CELL - 4), "\n".join(textwrap.wrap(row["caption"], 30)), "black", font)
    here = Path(__file__).parent
    sheet.save(here / "shapes.png", optimize=True)
    draw_scene(rows[0]["image_id"], 256).save(here / "scene.png", optimize=True)


if __name__ == "__main__":
    main()
