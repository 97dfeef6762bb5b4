"""Draw the pictures of the README and of docs/, from finished runs.

python docs/make_pictures.py shapes runs/shapes      # docs/shapes.png, docs/scene.png
python docs/make_pictures.py app runs/white/best     # docs/app.png: needs blip_lite[demo], selenium and Chromium
"""

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from blip_lite.data.sources.shapes import draw_scene

CELL, TEXT = 240, 64  # pixels
HERE = Path(__file__).resolve().parent


def shapes(run: Path) -> None:
    """Eight held-out scenes, and one of three things alone."""
    lines = (run / "captions.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:: len(lines) // 8][:8]]  # every fiftieth, not the best
    sheet = Image.new("RGB", (4 * CELL, 2 * (CELL + TEXT)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, row in enumerate(rows):
        x, y = number % 4 * CELL, number // 4 * (CELL + TEXT)
        sheet.paste(draw_scene(row["image_id"], CELL - 20), (x + 10, y + 10))
        draw.rectangle((x + 10, y + 10, x + CELL - 11, y + CELL - 11), outline="#cccccc")
        draw.multiline_text((x + 12, y + CELL - 4), "\n".join(textwrap.wrap(row["caption"], 30)), "black", font)
    sheet.save(HERE / "shapes.png", optimize=True)
    draw_scene("group-2-large-green-circle-large-orange-circle", 256).save(HERE / "scene.png", optimize=True)


def app(ckpt: Path) -> None:
    """The page of `blip-lite serve`, when the caption of docs/scene.png is there."""
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    command = [sys.executable, "-m", "blip_lite", "serve", str(ckpt), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver") or ""))
        try:
            assert server.stdout
            found = (re.match(r"(http://\S+) .*the page is there", line) for line in server.stdout)
            browser.get(next(match[1] for match in found if match))
            wait = WebDriverWait(browser, 60)
            wait.until(lambda b: b.find_elements("css selector", "input[type=file]"))[0].send_keys(
                str(HERE / "scene.png")
            )
            wait.until(lambda b: b.execute_script("return [...document.querySelectorAll('textarea')].at(-1).value"))
            height = browser.execute_script("return document.documentElement.scrollHeight")
            browser.set_window_size(1200, height + 170)  # a window is higher than its page
            browser.save_screenshot(str(HERE / "app.png"))
        finally:
            browser.quit()
            server.terminate()
    Image.open(HERE / "app.png").convert("P", palette=Image.Palette.ADAPTIVE).save(HERE / "app.png", optimize=True)


if __name__ == "__main__":
    {"shapes": shapes, "app": app}[sys.argv[1]](Path(sys.argv[2]))
