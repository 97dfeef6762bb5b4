"""Caption photographs: `python caption.py photo.jpg`, `python caption.py photos/ --output captions.jsonl`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blip_lite.bulk import Captioned


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("images", nargs="+", help="image files and folders (searched recursively)")
    add(
        "--ckpt",
        default="Salesforce/blip-image-captioning-base",
        help="checkpoint directory (e.g. runs/shapes/best) or Hub id",
    )
    add("--output", metavar="FILE", help='write lines of {"image", "caption"} here instead of printing the captions')
    add("--prompt", default="", metavar="TEXT", help="how captions shall begin, e.g. 'a photography of'")
    add("--batch_size", type=int, default=8, metavar="N", help="images at a time")
    add("--num_beams", type=int, default=5, metavar="N", help="beams; 1 is greedy")
    add("--max_new_tokens", type=int, default=30, metavar="N", help="longest caption in tokens")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", help="of the weights: auto, float32, bfloat16, float16")
    add("--int8", action="store_true", help="CPU: image encoder in 8-bit integers (needs blip_lite[int8] and g++)")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    from blip_lite import Captioner
    from blip_lite.bulk import caption_files, expand

    try:
        captioner = Captioner.from_pretrained(args.ckpt, args.device, args.dtype, "int8" if args.int8 else None)
        paths = list(expand(args.images))
        if not paths:
            raise ValueError(f"no images in {', '.join(args.images)}")
        found = caption_files(
            captioner, paths, args.batch_size, args.prompt, num_beams=args.num_beams, max_new_tokens=args.max_new_tokens
        )
        return write(found, len(paths), args.output)
    except ValueError as error:  # a checkpoint or settings that cannot be used; a bad image is only reported
        print(f"error: {error}", file=sys.stderr)
        return 2


def write(found: "Iterator[Captioned]", count: int, output: str | None) -> int:
    """Print the captions, or write them to a file; returns the exit code."""
    from tqdm import tqdm

    from blip_lite.bulk import write_lines

    results = tqdm(found, total=count, unit="image", disable=not (output and sys.stderr.isatty()))
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        with open(output, "w", encoding="utf-8") as file:
            captioned, failed = write_lines(results, file)
        print(f"{captioned} images captioned, {failed} failed: {output}", file=sys.stderr)
        return 1 if failed else 0
    failed = 0
    for result in results:
        if result.error:
            failed += 1
            print(f"error: {result.image}: {result.error}", file=sys.stderr)
        else:
            print(result.captions[0] if count == 1 else f"{result.image}: {result.captions[0]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
