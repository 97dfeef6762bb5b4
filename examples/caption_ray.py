"""Caption a data lake on many machines with Ray Data: `pip install "blip_lite[ray]"`, then on the head node

    python examples/caption_ray.py s3://bucket/photos --ckpt runs/x/best --output s3://bucket/captions --num_workers 16 --num_gpus 1

Input is a folder of images, Parquet files (`--format parquet`: a column with image bytes and one with unique ids), or
webdataset shards (`--format webdataset`: keys must be unique over all shards), on disk or in an object store. Output are
Parquet files of (id, caption, error); an image that cannot be read is a row with its error. Started again, with the same
output, it captions only what is missing, whether workers, machines or the driver died. On several machines checkpoint and
output have to be where all of them see them.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig


class CaptionWorker:
    """One model; Ray gives it batches. A plain class: it works in a loop, too, or under another engine."""

    def __init__(self, ckpt: str, id_column: str, image_column: str, threads: int, settings: dict[str, Any]) -> None:
        import torch

        from blip_lite import Captioner

        self.id_column, self.image_column, self.threads, self.settings = id_column, image_column, threads, settings
        if not torch.cuda.is_available():
            torch.set_num_threads(threads)
        self.captioner = Captioner.from_pretrained(ckpt)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        from blip_lite.captioning.bulk import caption_files
        from blip_lite.processing.picture import Picture

        def content(value: Any) -> Any:  # `datasets` keeps an image as {"bytes", "path"}
            return (value.get("bytes") if isinstance(value, dict) else value) or b""

        sources = [Picture(str(i), content(value)) for i, value in enumerate(batch[self.image_column])]
        found = caption_files(self.captioner, sources, len(sources), workers=self.threads, **self.settings)
        rows = {int(result.image): result for result in found}
        captions = [rows[i].captions for i in range(len(rows))]
        several = self.settings["num_return_sequences"] > 1
        kind = pa.list_(pa.string()) if several else pa.string()
        texts = [None if rows[i].error else found if several else found[0] for i, found in enumerate(captions)]
        ids = pa.array(batch[self.id_column].tolist())
        errors = pa.array([rows[i].error for i in range(len(rows))], pa.string())
        return pa.table({self.id_column: ids, "caption": pa.array(texts, kind), "error": errors})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", nargs="+", help="folders or files, local or s3://, gs://, ...")
    add("--ckpt", required=True, help="checkpoint directory that every machine sees, or Hub id")
    add("--output", required=True, help="folder for Parquet files; finished images are noted in OUTPUT-done beside it")
    add("--format", choices=("images", "parquet", "webdataset"), default="images")
    add("--id_column", help="unique ids; default: path (images), __key__ (webdataset), required for parquet")
    add("--image_column", help="image bytes; default: bytes (images), jpg (webdataset), image (parquet)")
    add("--num_workers", type=int, default=1, help="models; on CPUs leave some free for reading")
    add("--num_gpus", type=float, default=0.0, help="of each worker; 0.5 puts two on a GPU")
    add("--num_cpus", type=float, default=1.0, help="of each worker; it decodes images in that many threads")
    add("--batch_size", type=int, default=64, help="images at a time")
    add("--num_beams", type=int, help="default: the checkpoint's, else 5")
    add("--num_captions", type=int, default=1)
    add("--max_new_tokens", type=int, help="default: the checkpoint's, else 30")
    add("--prompt", help="default: the checkpoint's")
    add("--local_cpus", type=int, help="start Ray on this machine alone and let it believe in so many CPUs")
    return parser.parse_args()


def read(args: argparse.Namespace, id_column: str, image_column: str) -> ray.data.Dataset:
    if args.format == "images":
        from blip_lite.processing.images import IMAGE_SUFFIXES

        suffixes = sorted(suffix[1:] for suffix in IMAGE_SUFFIXES)
        return ray.data.read_binary_files(args.images, include_paths=True, file_extensions=suffixes)
    if args.format == "webdataset":
        return ray.data.read_webdataset(args.images, decoder=None).select_columns([id_column, image_column])
    return ray.data.read_parquet(args.images, columns=[id_column, image_column])


def main() -> int:
    args = arguments()
    id_column = args.id_column or {"images": "path", "webdataset": "__key__", "parquet": ""}[args.format]
    image_column = args.image_column or {"images": "bytes", "webdataset": "jpg", "parquet": "image"}[args.format]
    if not id_column:
        print("error: --format parquet needs --id_column, a column of unique ids", file=sys.stderr)
        return 2
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = {"num_cpus": args.local_cpus, "include_dashboard": False} if args.local_cpus else {}
    ray.init(**local, log_to_driver=False)
    total = int(ray.cluster_resources().get("CPU", 0))
    if args.num_workers * args.num_cpus >= total:  # Ray would wait for ever for a CPU to read with
        print(f"error: {args.num_workers} workers of {args.num_cpus:g} CPUs leave none of {total} to read with", file=sys.stderr)  # fmt: skip
        return 2

    context = DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.checkpoint_config = CheckpointConfig(
        id_column=id_column, checkpoint_path=f"{args.output.rstrip('/')}-done", delete_checkpoint_on_success=False
    )
    settings = {
        "num_beams": args.num_beams and max(args.num_beams, args.num_captions),
        "num_return_sequences": args.num_captions,
        "max_new_tokens": args.max_new_tokens,
        "prompt": args.prompt,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    captioned = read(args, id_column, image_column).map_batches(
        CaptionWorker,
        fn_constructor_args=(args.ckpt, id_column, image_column, max(1, int(args.num_cpus)), settings),
        batch_size=args.batch_size,
        compute=ActorPoolStrategy(size=args.num_workers),
        num_cpus=args.num_cpus,
        num_gpus=args.num_gpus,
    )
    captioned.write_parquet(args.output)

    context.checkpoint_config = None
    written = ray.data.read_parquet(args.output, columns=["error"])
    failed = written.filter(lambda row: row["error"] is not None).count()
    print(f"{written.count()} images in {args.output}, {failed} of them failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    from blip_lite.cli import guarded  # an error that users may meet is one line

    sys.exit(guarded(main))
