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
    add(
        "images",
        nargs="+",
        help="image files, folders (searched recursively), patterns, .txt lists of paths, - for paths on standard input",
    )
    add(
        "--ckpt",
        default="Salesforce/blip-image-captioning-base",
        help="checkpoint directory (e.g. runs/shapes/best) or Hub id",
    )
    add(
        "--output",
        metavar="FILE",
        help='write lines of {"image", "caption"} here instead of printing the captions; what is there already is not done again',
    )
    add("--overwrite", action="store_true", help="begin --output anew")
    add("--retry_failed", action="store_true", help="try the images again that --output has with an error")
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
    from blip_lite.bulk import Done, caption_files, expand
    from blip_lite.processing import IMAGE_SUFFIXES

    try:
        captioner = Captioner.from_pretrained(args.ckpt, args.device, args.dtype, "int8" if args.int8 else None)
        done = Done(Path(args.output), args.retry_failed) if args.output and not args.overwrite else None
        if done:
            print(f"{args.output} has {len(done)} images already, {done.failed} of them failed", file=sys.stderr)
        paths = (path for path in expand(args.images) if not done or path not in done)
        found = caption_files(
            captioner, paths, args.batch_size, args.prompt, num_beams=args.num_beams, max_new_tokens=args.max_new_tokens
        )
        alone = len(args.images) == 1 and Path(args.images[0]).suffix.lower() in IMAGE_SUFFIXES
        captioned, failed = write(found, args.output, args.overwrite, alone)
        if captioned + failed == 0 and not done:
            raise ValueError(f"no images in {', '.join(args.images)}")
        return 1 if failed or (done and done.failed) else 0
    except ValueError as error:  # a checkpoint or settings that cannot be used; a bad image is only reported
        print(f"error: {error}", file=sys.stderr)
        return 2


def write(found: "Iterator[Captioned]", output: str | None, overwrite: bool, alone: bool) -> tuple[int, int]:
    """Print the captions (one `alone` without its file's name), or append them to a file; returns (captioned, failed)."""
    from tqdm import tqdm

    from blip_lite.bulk import write_lines

    results = tqdm(found, unit="image", disable=not (output and sys.stderr.isatty()))
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        with open(output, "w" if overwrite else "a", encoding="utf-8") as file:
            captioned, failed = write_lines(results, file)
        print(f"{captioned} images captioned, {failed} failed: {output}", file=sys.stderr)
        return captioned, failed
    captioned = failed = 0
    for result in results:
        if result.error:
            failed += 1
            print(f"error: {result.image}: {result.error}", file=sys.stderr)
        else:
            captioned += 1
            print(result.captions[0] if alone else f"{result.image}: {result.captions[0]}", flush=True)
    return captioned, failed


if __name__ == "__main__":
    sys.exit(main())
