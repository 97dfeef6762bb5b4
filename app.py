"""The page of `blip-lite serve`, as Hugging Face Spaces start it: `BLIP_CKPT=runs/shapes/best python app.py`."""

import sys

from blip_lite.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
