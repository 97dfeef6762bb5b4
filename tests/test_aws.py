"""SageMaker with AWS's own parts, no account: the SDK against moto, the container's `train`, the container's server.

Needs `pip install "blip_lite[aws]" "moto[s3,sagemaker,iam,sts]" sagemaker-training sagemaker-inference multi-model-server
"setuptools<81"` and Java; `pytest -m slow tests/test_aws.py`.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from blip_lite import Captioner
from conftest import ROOT, free_port

pytestmark = pytest.mark.slow
for module in ("sagemaker.train", "moto", "sagemaker_training", "sagemaker_inference", "mms"):
    pytest.importorskip(module, reason="needs the packages of SageMaker, see above")

sys.path.insert(0, str(ROOT / "aws_sagemaker"))
import deploy_endpoint  # noqa: E402
import launch_training  # noqa: E402

HYPERPARAMETERS = {"model": "tiny", "epochs": "2", "batch_size": "8", "num_beams": "1", "max_new_tokens": "8", "num_workers": "0", "save_every": "3"}  # fmt: skip
ROLE = "arn:aws:iam::111122223333:role/SageMaker"


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory, scenes_folder: Path) -> Path:
    """The channels train and validation: lists, and images in `images/` beside them."""
    folder = tmp_path_factory.mktemp("channels")
    rows = [json.loads(line) for line in (scenes_folder / "metadata.jsonl").read_text().splitlines()]
    for name, part in (("train", rows[:48]), ("validation", rows[48:])):
        (folder / name / "images").mkdir(parents=True)
        for row in part:
            shutil.copy(scenes_folder / row["file_name"], folder / name / "images")
        lines = [json.dumps({"image": row["file_name"], "caption": row["caption"]}) for row in part]
        (folder / name / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def container(base: Path, channels: Path, hyperparameters: dict[str, str], code: Path | None = None) -> dict[str, str]:
    """What SageMaker lays out for a training job; the environment for it."""
    (base / "input" / "config").mkdir(parents=True)
    (base / "input" / "data").mkdir()
    (base / "output").mkdir()
    for name in ("train", "validation"):
        (base / "input" / "data" / name).symlink_to(channels / name)
    if code:
        shutil.copytree(code, base / "code")
    else:
        (base / "code").mkdir()
        launch_training.stage(base / "code")
    (base / "code" / "requirements.txt").unlink()  # all of it is here
    toolkit = {"sagemaker_program": "train_entry.py", "sagemaker_submit_directory": str(base / "code")}
    files = {
        "hyperparameters": {**hyperparameters, **toolkit},
        "resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "lo"},
        "inputdataconfig": {name: {"TrainingInputMode": "File"} for name in ("train", "validation")},
    }
    for name, content in files.items():
        (base / "input" / "config" / f"{name}.json").write_text(json.dumps(content))
    plain = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return {**plain, "SM_STUDIO_LOCAL_MODE": "true", "SAGEMAKER_BASE_DIR": str(base), "PYTHONPATH": ""}


def run_train(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    train = str(Path(sys.executable).parent / "train")
    return subprocess.run([train], env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, channels: Path) -> Path:
    """The directory of a job that the real `train` ran, from the code that the launch script uploaded."""
    base = tmp_path_factory.mktemp("job") / "ml"
    done = run_train(container(base, channels, HYPERPARAMETERS))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return base


def test_the_containers_train(trained: Path) -> None:
    assert (trained / "output" / "success").exists() and not (trained / "output" / "failure").exists()
    assert len(list((trained / "checkpoints" / "run").glob("checkpoint-*"))) == 2
    assert Captioner.from_pretrained(trained / "model", "cpu")(ROOT / "docs" / "scene.png", num_beams=1)
    assert {p.name for p in (trained / "model" / "code").iterdir()} == {"inference.py", "blip_lite"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": "many"}, "ConfigError: hyperparameters: batch_size is 'many'; expected int"),
        ({"batch_sizes": "8"}, "did you mean 'batch_size'?"),
        ({"model": "/nowhere"}, "CheckpointError: /nowhere: no such directory"),
    ],
)
def test_what_goes_wrong_is_told(changes: dict[str, str], told: str, channels: Path, tmp_path: Path) -> None:
    base = tmp_path / "ml"
    done = run_train(container(base, channels, {**HYPERPARAMETERS, **changes}))
    failure = (base / "output" / "failure").read_text()
    assert done.returncode != 0 and told in failure, failure + done.stdout[-2000:]


def test_a_spot_job_goes_on_exactly(trained: Path, channels: Path, tmp_path: Path) -> None:
    """kill -9 in the middle; the service restores /opt/ml/checkpoints into a new container."""
    base = tmp_path / "ml"
    environment = container(base, channels, HYPERPARAMETERS)
    with subprocess.Popen([str(Path(sys.executable).parent / "train")], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as job:  # fmt: skip
        while not list((base / "checkpoints" / "run").glob("checkpoint-*")):
            assert job.poll() is None
            time.sleep(0.01)
        os.killpg(job.pid, signal.SIGKILL)
    assert not (base / "model" / "model.safetensors").exists()
    base.rename(tmp_path / "killed")
    environment = container(base, channels, HYPERPARAMETERS)
    shutil.copytree(tmp_path / "killed" / "checkpoints", base / "checkpoints")
    done = run_train(environment)
    assert done.returncode == 0 and "resum" in (done.stdout + done.stderr).lower(), done.stdout[-2000:]
    weights = [safetensors.torch.load_file(base / "model" / "model.safetensors") for base in (trained, base)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def entry(base: Path, channels: Path, **environment: str) -> tuple[list[str], dict[str, str]]:
    """The command of a container and its environment, where `exec python train_entry.py` is run."""
    found = container(base, channels, HYPERPARAMETERS) | {
        "SM_HPS": json.dumps(HYPERPARAMETERS),
        "SM_MODEL_DIR": str(base / "model"),
        "SM_CHANNEL_TRAIN": str(channels / "train"),
        "SM_CHANNEL_VALIDATION": str(channels / "validation"),
        **environment,
    }
    return [sys.executable, str(base / "code" / "train_entry.py")], found


def test_sigterm_saves_and_the_next_start_goes_on_exactly(trained: Path, channels: Path, tmp_path: Path) -> None:
    base = tmp_path / "ml"
    command, environment = entry(base, channels)
    run = base / "checkpoints" / "run"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        while not list(run.glob("checkpoint-*")):
            assert job.poll() is None
            time.sleep(0.01)
        job.terminate()
    assert job.returncode == 143 and not (base / "output" / "failure").exists() and list(run.glob("checkpoint-*"))
    assert not (base / "model" / "model.safetensors").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "resuming from" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    weights = [safetensors.torch.load_file(base / "model" / "model.safetensors") for base in (trained, base)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_image_outside_the_channel_is_refused(channels: Path, tmp_path: Path) -> None:
    base = tmp_path / "ml"
    bad = tmp_path / "train"
    bad.mkdir()
    (bad / "train.jsonl").write_text(json.dumps({"image": "../../etc/secret.png", "caption": "a\u2028dog"}) + "\n")
    command, environment = entry(base, channels, SM_CHANNEL_TRAIN=str(bad))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "line 1: ../../etc/secret.png lies outside the channel" in done.stderr, done.stderr


def test_two_instances(channels: Path, tmp_path: Path) -> None:
    """Two hosts without a common disk, each with its own directories."""
    port, jobs = free_port(), []
    for host in ("127.0.0.1", "localhost"):
        cluster = {
            "SM_HOSTS": json.dumps(["127.0.0.1", "localhost"]),
            "SM_MASTER_PORT": str(port),
            "SM_NUM_GPUS": "0",
        }
        command, environment = entry(tmp_path / host, channels, SM_CURRENT_HOST=host, OMP_NUM_THREADS="1", **cluster)
        jobs.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = [job.communicate(timeout=200)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    assert (tmp_path / "127.0.0.1" / "model" / "model.safetensors").exists()


# ------------------------------------------------------------------------------------------------ launching


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An account in memory."""
    import boto3
    from moto import mock_aws

    for name, value in {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "SAGEMAKER_VALIDATE_ROLE": "false",
    }.items():
        monkeypatch.setenv(name, value)

    def drop_empty(parsed: Any, **_: Any) -> None:  # moto answers {} where AWS leaves out, which the SDK refuses
        for key in [k for k, v in parsed.items() if v in ({}, [], None)]:
            del parsed[key]

    session = boto3.Session

    class Hooked(session):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.events.register("after-call.sagemaker", drop_empty)

    monkeypatch.setattr(boto3, "Session", Hooked)
    with mock_aws():
        yield boto3


def launch(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["launch_training.py", "--role", ROLE, *arguments])
    return launch_training.main()


def test_launch(aws: Any, channels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    aws.client("s3").create_bucket(Bucket="mine")
    options = [f"{name}={value}" for name, value in HYPERPARAMETERS.items()]
    code = launch(monkeypatch, "--bucket", "mine", "--train", str(channels / "train"), "--validation", str(channels / "validation"), "--spot", "--hyperparameters", *options)  # fmt: skip
    assert code == 0
    client = aws.client("sagemaker")
    (job,) = client.list_training_jobs()["TrainingJobSummaries"]
    job = client.describe_training_job(TrainingJobName=job["TrainingJobName"])
    assert job["AlgorithmSpecification"]["TrainingImage"].endswith("huggingface-pytorch-training:2.9.0-transformers5.3.0-gpu-py312-cu130-ubuntu22.04")  # fmt: skip
    assert job["CheckpointConfig"]["LocalPath"] == "/opt/ml/checkpoints" and job["EnableManagedSpotTraining"]
    assert job["StoppingCondition"]["MaxWaitTimeInSeconds"] > job["StoppingCondition"]["MaxRuntimeInSeconds"]
    assert {c["ChannelName"] for c in job["InputDataConfig"]} == {"train", "validation", "code", "sm_drivers"}

    # the code that was uploaded trains in the container
    prefix = next(c for c in job["InputDataConfig"] if c["ChannelName"] == "code")["DataSource"]["S3DataSource"]["S3Uri"].removeprefix("s3://mine/")  # fmt: skip
    for item in aws.client("s3").list_objects_v2(Bucket="mine", Prefix=prefix)["Contents"]:
        path = tmp_path / "code" / Path(item["Key"]).relative_to(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        aws.client("s3").download_file("mine", item["Key"], str(path))
    values = {name: json.loads(v) if v.startswith('"') else v for name, v in job["HyperParameters"].items()}
    done = run_train(container(tmp_path / "ml", channels, values, tmp_path / "code"))
    assert done.returncode == 0 and (tmp_path / "ml" / "model" / "code" / "inference.py").exists(), done.stdout[-2000:]


def test_a_dry_run_prints_and_uploads_nothing(aws: Any, channels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert launch(monkeypatch, "--train", str(channels / "train"), "--dry_run") == 0
    assert '"TrainingJobName": "blip-lite-' in capsys.readouterr().out
    assert not aws.client("s3").list_buckets()["Buckets"]
    assert not aws.client("sagemaker").list_training_jobs().get("TrainingJobSummaries")
    assert launch(monkeypatch, "--train", "s3://b/x", "--hyperparameters", "epoch=3") == 2
    assert launch(monkeypatch, "--train", "s3://b/x", "--spot", "--max_hours", "9", "--max_wait_hours", "3") == 2


def test_deploy(aws: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["deploy_endpoint.py", "--name", "captions", "--role", ROLE]
    options = ["--model_data", "s3://mine/model.tar.gz", "--instance_type", "ml.g4dn.xlarge"]
    monkeypatch.setattr(sys, "argv", [*base, *options, "--dry_run"])
    assert deploy_endpoint.main() == 0 and not aws.client("sagemaker").list_endpoints().get("Endpoints")
    assert list(json.loads(capsys.readouterr().out)) == ["create_model", "create_endpoint_config", "create_endpoint"]
    monkeypatch.setattr(sys, "argv", [*base, *options])
    assert deploy_endpoint.main() == 0
    client = aws.client("sagemaker")
    assert client.describe_endpoint(EndpointName="captions")["EndpointStatus"] == "InService"
    (model,) = client.list_models()["Models"]
    found = client.describe_model(ModelName=model["ModelName"])["PrimaryContainer"]
    assert found["ModelDataUrl"] == "s3://mine/model.tar.gz" and "HF_TASK" not in found["Environment"]
    assert found["Image"].endswith("huggingface-pytorch-inference:2.6.0-transformers5.5.3-gpu-py312-cu124-ubuntu22.04")
    monkeypatch.setattr(sys, "argv", [*base, "--delete"])
    assert deploy_endpoint.main() == 0 and not client.list_endpoints().get("Endpoints")


# -------------------------------------------------------------------------------------------------- serving


@pytest.fixture(scope="module")
def server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The archive's content behind the container's server, on loopback."""
    base = tmp_path_factory.mktemp("endpoint")
    shutil.copytree(trained / "model", base / "model")
    port = random.randrange(18000, 28000)  # the server refuses those that the system gives out
    (base / "mms.properties").write_text(
        f"inference_address=http://127.0.0.1:{port}\nmanagement_address=http://127.0.0.1:{port}\ndefault_workers_per_model=1\n"
        "default_service_handler=sagemaker_inference.default_handler_service\ndecode_input_request=false\nload_models=ALL\n"
        f"max_request_size={deploy_endpoint.REQUEST_BYTES}\n"
    )
    command = [str(Path(sys.executable).parent / "multi-model-server")]
    start = ["--start", "--foreground", "--model-store", "/", "--mms-config", str(base / "mms.properties"), "--models", f"model={base / 'model'}"]  # fmt: skip
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(base), "SAGEMAKER_PROGRAM": "inference.py", "PYTHONPATH": str(base / "model" / "code"), "BLIP_ALLOW_URLS": "true"}  # fmt: skip
    with subprocess.Popen([*command, *start], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=base) as process:  # fmt: skip
        url = f"http://127.0.0.1:{port}/invocations"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1)
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.2)
        yield url
        subprocess.run([*command, "--stop"], stdout=subprocess.DEVNULL)
        process.terminate()


def post(url: str, body: bytes, kind: str, accept: str = "application/json") -> tuple[int, str]:
    request = urllib.request.Request(url, body, {"Content-Type": kind, "Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_containers_server(server: str, trained: Path) -> None:
    scene = (ROOT / "docs" / "scene.png").read_bytes()
    expected = Captioner.from_pretrained(trained / "model", "cpu")(scene)
    text = base64.b64encode(scene).decode()
    answer = {"predictions": [{"generated_text": expected}]}

    status, body = post(server, scene, "image/png")
    assert (status, json.loads(body)) == (200, answer), body
    for content in ({"instances": [{"b64": text}]}, {"inputs": text}, {"instances": [{"b64": text}], "parameters": {"num_beams": 5}}):  # fmt: skip
        status, body = post(server, json.dumps(content).encode(), "application/json")
        assert (status, json.loads(body)) == (200, answer), body
    lines = "\n".join([json.dumps({"b64": text}), "no json", json.dumps({"b64": text})])
    status, body = post(server, lines.encode(), "application/jsonlines", "application/jsonlines")
    found = [json.loads(line) for line in body.splitlines()]
    assert status == 200 and found == [answer, {"error": "the body is not valid JSON"}, answer]

    for content, kind, told in [
        (b"no image", "image/jpeg", "not an image"),
        (b"", "image/jpeg", "not an image"),
        (b"{", "application/json", "not valid JSON"),
        (b"{}", "application/json", "instances"),
        (json.dumps({"instances": [{"b64": "?"}]}).encode(), "application/json", "image 0: not valid base64"),
        (
            json.dumps({"instances": [{"b64": text}], "parameters": {"num_beams": 99}}).encode(),
            "application/json",
            "99 is more than 10",
        ),
        (
            json.dumps({"instances": [{"url": "http://169.254.169.254/latest/meta-data"}]}).encode(),
            "application/json",
            "only https",
        ),
        (
            json.dumps({"instances": [{"url": "https://127.0.0.1/a.png"}]}).encode(),
            "application/json",
            "no public address",
        ),
    ]:
        status, body = post(server, content, kind)
        assert status == 400 and told in body, (status, body)
    assert post(server, b"a,b", "text/csv")[0] == 415 and post(server, scene, "image/png", "text/html")[0] == 406
    assert post(server, scene[:2000], "image/png")[0] == 400  # torn: it breaks while it is decoded
    large = json.dumps({"inputs": text + "A" * (9 * 2**20)}).encode()
    assert post(server, large, "application/json")[0] in (200, 400)  # 9 MB pass; the server's own limit is 6.5
