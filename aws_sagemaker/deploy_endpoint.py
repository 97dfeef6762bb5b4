"""Put a trained model behind an endpoint: `pip install "blip_lite[aws]"`, then

    python aws_sagemaker/deploy_endpoint.py --job blip-lite-20261124141941 --name captions --role arn:aws:iam::111122223333:role/SageMaker

`--dry_run` prints the three requests and sends none; `--delete` takes the endpoint down again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

# Full versions: of short ones the SDK makes a tag that was never published.
CONTAINER = {"version": "5.5.3", "base_framework_version": "pytorch2.6.0", "py_version": "py312"}
REQUEST_BYTES = 25 * 2**20  # SageMaker itself takes 25 MB a request


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--name", required=True, help="of the endpoint")
    add("--job", help="training job whose model is deployed")
    add("--model_data", help="s3:// model.tar.gz, instead of --job")
    add("--role", help="ARN of the execution role")
    add("--instance_type", default="ml.g5.xlarge", help="ml.m5.2xlarge has no GPU and is slower")
    add("--instance_count", type=int, default=1)
    add("--allow_urls", action="store_true", help="let the endpoint fetch https URLs, from public addresses only")
    add("--delete", action="store_true", help="delete the endpoint of this name, and nothing else")
    add("--dry_run", action="store_true", help="print the requests, send none")
    return parser.parse_args()


def requests(args: argparse.Namespace, model_data: str, image: str) -> dict[str, dict[str, Any]]:
    """What is sent, by the name of the API's call."""
    name = f"{args.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    environment = {
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_MAX_REQUEST_SIZE": str(REQUEST_BYTES),
        "BLIP_ALLOW_URLS": "true" if args.allow_urls else "false",
    }
    variant = {
        "VariantName": "main",
        "ModelName": name,
        "InstanceType": args.instance_type,
        "InitialInstanceCount": args.instance_count,
    }
    return {
        "create_model": {
            "ModelName": name,
            "ExecutionRoleArn": args.role,
            "PrimaryContainer": {"Image": image, "ModelDataUrl": model_data, "Environment": environment},
        },
        "create_endpoint_config": {"EndpointConfigName": name, "ProductionVariants": [variant]},
        "create_endpoint": {"EndpointName": args.name, "EndpointConfigName": name},
    }


def main() -> int:
    args = arguments()
    import boto3

    client = boto3.client("sagemaker")
    if args.delete:
        client.delete_endpoint(EndpointName=args.name)
        print(f"{args.name} is being deleted")
        return 0
    if not args.role or bool(args.job) == bool(args.model_data):
        print("error: --role, and either --job or --model_data, are needed", file=sys.stderr)
        return 2
    from sagemaker.core import image_uris

    image = image_uris.retrieve("huggingface", client.meta.region_name, instance_type=args.instance_type, image_scope="inference", **CONTAINER)  # fmt: skip
    model_data = args.model_data
    if args.job and args.dry_run:
        model_data = f"(the artifacts of {args.job})"
    elif args.job:
        model_data = client.describe_training_job(TrainingJobName=args.job)["ModelArtifacts"]["S3ModelArtifacts"]
    calls = requests(args, model_data, image)
    if args.dry_run:
        print(json.dumps(calls, indent=2))
        return 0
    for call, parameters in calls.items():
        getattr(client, call)(**parameters)
    print(f"{args.name} is being created; some minutes")
    client.get_waiter("endpoint_in_service").wait(EndpointName=args.name)
    print(f"{args.name} is in service")
    return 0


if __name__ == "__main__":
    from blip_lite.cli import guarded  # a missing extra is one line

    sys.exit(guarded(main))
