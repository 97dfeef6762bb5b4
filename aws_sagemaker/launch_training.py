"""Start a training job: `pip install "blip_lite[aws]"`, then

    python aws_sagemaker/launch_training.py --train s3://bucket/data/train --validation s3://bucket/data/validation \\
        --role arn:aws:iam::111122223333:role/SageMaker --spot --hyperparameters epochs=4 learning_rate=5e-5

`--dry_run` prints the request and uploads nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Full versions: of short ones the SDK makes a tag that was never published.
CONTAINER = {"version": "5.3.0", "base_framework_version": "pytorch2.9.0", "py_version": "py312"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--train",
        required=True,
        help="s3:// (or local) folder with train.jsonl and images/, or any that --dataset reads",
    )
    add("--validation", help="the same with validation.jsonl; else a part of train")
    add("--model", help="s3:// folder of a checkpoint to begin with; else BLIP-base from the Hub")
    add("--role", required=True, help="ARN of the execution role")
    add("--bucket", help="for code, checkpoints and models; default: the account's SageMaker bucket")
    add("--name", default="blip-lite", help="what the job's name begins with")
    add("--instance_type", default="ml.g5.2xlarge")
    add("--instance_count", type=int, default=1)
    add("--volume_gb", type=int, default=100)
    add("--max_hours", type=float, default=24.0, help="of running")
    add("--spot", action="store_true", help="cheaper, may be interrupted: goes on from its last checkpoint")
    add("--max_wait_hours", type=float, help="running and waiting for capacity; default: twice --max_hours")
    add("--checkpoints", help="s3:// folder; that of another job continues its run. Default: a new one")
    add("--hyperparameters", nargs="*", default=[], metavar="NAME=VALUE", help="train.py's settings")
    add("--dry_run", action="store_true", help="print the request; upload and start nothing")
    return parser.parse_args()


def stage(folder: Path) -> None:
    """What the container runs: the package and the two entry points."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "blip_lite", folder / "blip_lite", ignore=ignore)
    for name in ("train_entry.py", "inference.py", "requirements.txt"):
        shutil.copy2(ROOT / "aws_sagemaker" / name, folder / name)


class Shown(Exception):
    """Ends a dry run where the request would be sent."""


def show(params: dict[str, Any], **_: Any) -> None:
    print(json.dumps(params, indent=2, default=str))
    raise Shown


def main() -> int:
    args = arguments()
    if args.spot and args.max_wait_hours is not None and args.max_wait_hours < args.max_hours:
        print("error: --max_wait_hours includes the running: it cannot be less than --max_hours", file=sys.stderr)
        return 2
    if wrong := [text for text in args.hyperparameters if "=" not in text]:
        print(f"error: --hyperparameters {' '.join(wrong)}: expected NAME=VALUE", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    from blip_lite.settings import TrainConfig

    values = dict(text.split("=", 1) for text in args.hyperparameters)
    if unknown := values.keys() - TrainConfig.settings().keys():
        print(
            f"error: --hyperparameters: no setting {', '.join(sorted(unknown))}; see train.py --help", file=sys.stderr
        )
        return 2

    import boto3
    from sagemaker.core import image_uris
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import (  # fmt: skip
        CheckpointConfig,
        Compute,
        InputData,
        OutputDataConfig,
        SourceCode,
        StoppingCondition,
    )

    class Dry(Session):
        """Uploads nothing, asks nothing."""

        def default_bucket(self) -> str:
            return str(self._default_bucket_name_override)

        def upload_data(self, path: str, bucket: str | None = None, key_prefix: str = "data", **_: Any) -> str:
            return f"s3://{bucket or self.default_bucket()}/{key_prefix}"

    boto = boto3.Session()
    bucket = args.bucket or (f"sagemaker-{boto.region_name}-ACCOUNT" if args.dry_run else None)
    session = (Dry if args.dry_run else Session)(boto_session=boto, default_bucket=bucket)
    bucket = bucket or session.default_bucket()
    if args.dry_run:
        os.environ["SAGEMAKER_VALIDATE_ROLE"] = "false"
        boto.events.register("provide-client-params.sagemaker.CreateTrainingJob", show)
    image = image_uris.retrieve("huggingface", boto.region_name, instance_type=args.instance_type, image_scope="training", **CONTAINER)  # fmt: skip
    checkpoints = args.checkpoints or f"s3://{bucket}/{args.name}/checkpoints/{time.strftime('%Y%m%d-%H%M%S')}"
    seconds = int(args.max_hours * 3600)
    wait = int((args.max_wait_hours or 2 * args.max_hours) * 3600) if args.spot else None
    with tempfile.TemporaryDirectory() as folder:
        stage(Path(folder) / "code")
        trainer = ModelTrainer(
            training_image=image,
            role=args.role,
            sagemaker_session=session,
            base_job_name=args.name,
            # exec: the script itself is to hear the SIGTERM of a Spot interruption
            source_code=SourceCode(
                source_dir=str(Path(folder) / "code"),
                requirements="requirements.txt",
                command="exec python train_entry.py",
            ),
            compute=Compute(
                instance_type=args.instance_type,
                instance_count=args.instance_count,
                volume_size_in_gb=args.volume_gb,
                enable_managed_spot_training=args.spot,
            ),
            stopping_condition=StoppingCondition(max_runtime_in_seconds=seconds, max_wait_time_in_seconds=wait),
            checkpoint_config=CheckpointConfig(s3_uri=checkpoints, local_path="/opt/ml/checkpoints"),
            output_data_config=OutputDataConfig(s3_output_path=f"s3://{bucket}/{args.name}/output"),
            hyperparameters=values,
            environment={"HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": os.environ.get("WANDB_MODE", "offline")},
        )
        channels = {"train": args.train, "validation": args.validation, "model": args.model}
        data = [InputData(channel_name=name, data_source=uri) for name, uri in channels.items() if uri]
        try:
            trainer.train(input_data_config=data, wait=False)
        except Shown:
            return 0
    print(f"started, checkpoints in {checkpoints}; aws sagemaker list-training-jobs --name-contains {args.name}")
    return 0


if __name__ == "__main__":
    from blip_lite.cli import guarded  # a missing extra is one line

    sys.exit(guarded(main))
