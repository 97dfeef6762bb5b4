"""Fine-tune BLIP for image captioning: `accelerate launch train.py --dataset flickr8k`."""

import sys


def main() -> int:
    from blip_lite.cli import main

    return main(["train", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
