"""Caption a split and score it: `python evaluate.py --ckpt best`."""

import sys


# All of it lies behind main(): run from here, this file hides Hugging Face's `evaluate` from whoever imports that.
def main() -> int:
    from blip_lite.cli import main

    return main(["evaluate", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
