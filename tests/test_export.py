"""The model card, and what leaves the house."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from blip_lite.errors import CheckpointError
from blip_lite.evaluation.evaluate import evaluate
from blip_lite.reports import model_card as card
from blip_lite.serving.export import export
from blip_lite.settings import EvalConfig
from blip_lite.training.loop import train
from conftest import ROOT, tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(tmp_path_factory.mktemp("export"), max_steps=6, max_eval_images=9)
    train(config)
    run = Path(str(config.run.output_dir))
    assert "Not evaluated yet" in (run / "README.md").read_text()
    evaluate(EvalConfig.of(run=str(run), max_eval_images=9))
    return run


@pytest.mark.long
def test_the_card_says_what_was_measured_and_the_hub_reads_it(run: Path) -> None:
    read = ModelCard.load(run / "README.md")
    result = json.loads((run / "coco_metrics.json").read_text())
    scores = {r.metric_type: r.metric_value for r in read.data.eval_results}
    assert scores["sacrebleu"] == result["sacrebleu"] and scores["cider"] == result["CIDEr"]
    assert {r.dataset_split for r in read.data.eval_results} == {"test"}
    assert not {"co2_eq_emissions", "license", "base_model"} & set(read.data.to_dict())
    assert f"{result['num_images']} images, 45 references; 2 beams" in read.text
    assert "one human against the others" in read.text and "Energy and CO2: not measured" in read.text
    assert f"| this model | {result['sacrebleu']:.4g} |" in read.text


def test_kilograms_become_the_hubs_grams_and_a_base_is_named(run: Path, tmp_path: Path) -> None:
    settings = json.loads((run / "config.json").read_text())["settings"]
    settings |= {"model": "Salesforce/blip-image-captioning-base"}
    text = card.metadata("x", settings, settings["model"], {"co2_kg": 0.25}, {"device": "H100"}, {})
    (tmp_path / "README.md").write_text(text)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.co2_eq_emissions["emissions"] == 250 and data.co2_eq_emissions["hardware_used"] == "H100"
    assert data.license == "bsd-3-clause" and data.base_model == settings["model"]
    assert "0.25 kg" in card.energy({"co2_kg": 0.25}, {})
    bound = card.energy({"seconds": 7200.0}, {"board_power_watts": 350.0, "processes": 2})
    assert "at most 1.4 kWh, an upper bound" in bound


def test_the_co2_of_a_resumed_runs_segments_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Meter:
        def __init__(self, country_iso_code: str, **_: object) -> None:
            assert country_iso_code == "FRA"

        def start(self) -> None: ...

        def stop(self) -> None: ...

        def flush(self) -> float:
            return 0.25  # kg since the start

    monkeypatch.setitem(sys.modules, "codecarbon", types.SimpleNamespace(OfflineEmissionsTracker=Meter, __spec__=True))
    config = tiny_config(tmp_path, max_steps=2, country="FRA")
    train(config)
    train(config.replace(max_steps=4, resume=True))
    assert "0.5 kg CO2" in (tmp_path / "run" / "README.md").read_text()


def test_an_export_is_checked_and_never_overwrites(run: Path, tmp_path: Path) -> None:
    names = {path.name for path in export(run / "best", tmp_path / "out")}
    assert {"README.md", "coco_metrics.json", "model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not names & {"best.json", "manifest.json"}
    with pytest.raises(CheckpointError, match="is not empty"):
        export(run / "best", tmp_path / "out")


class Hub(BaseHTTPRequestHandler):
    """A stand-in of the Hub's API, as far as an upload asks it."""

    asked: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.path, body))
        answer: dict[str, object] = {"errors": [], "warnings": []}
        if self.path.endswith("/repos/create"):
            answer = {"url": f"http://{self.headers['Host']}/me/captions"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "/commit/" in self.path:
            answer = {
                "commitUrl": f"http://{self.headers['Host']}/me/captions/commit/1",
                "commitOid": "1",
                "hookOutput": "",
                "success": True,
            }
        self.reply(answer)

    def do_GET(self) -> None:
        self.asked.append((self.path, b""))
        self.reply({"id": "me/captions", "sha": "0", "siblings": []})

    def reply(self, answer: dict[str, object]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None: ...


@pytest.mark.long
def test_push_uploads_privately_and_a_dry_run_sends_nothing(run: Path, tmp_path: Path) -> None:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x",
        "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    command = [sys.executable, "-m", "blip_lite", "export", str(run / "best"), "--push", "me/captions", "--to"]
    dry = subprocess.run([*command, str(tmp_path / "a"), "--dry_run"], capture_output=True, text=True, env=environment)
    assert dry.returncode == 0 and "would go to me/captions (private)" in dry.stdout and not Hub.asked, dry.stderr
    done = subprocess.run([*command, str(tmp_path / "b")], capture_output=True, text=True, env=environment)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    [create] = [json.loads(body) for path, body in Hub.asked if path.endswith("/repos/create")]
    assert create["name"] == "captions" and (create.get("private") is True or create.get("visibility") == "private")
    [commit] = [body for path, body in Hub.asked if "/commit/" in path]
    sent = {row["value"]["path"]: row["value"] for row in map(json.loads, commit.splitlines()) if row["key"] == "file"}
    assert base64.b64decode(sent["model.safetensors"]["content"]) == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert set(sent) >= {"README.md", "config.json", "tokenizer.json"}
