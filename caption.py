"""Caption photographs: `python caption.py photo.jpg`, the same as `blip-lite caption photo.jpg`."""

import sys


def main() -> int:
    from blip_lite.cli import main

    return main(["caption", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
