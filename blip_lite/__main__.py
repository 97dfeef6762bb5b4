"""`python -m blip_lite`, the same as `blip-lite`."""

import sys

from blip_lite.cli import main

if __name__ == "__main__":
    sys.exit(main())
