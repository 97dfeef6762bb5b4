"""The model card, and what leaves the house."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from blip_lite import Captioner
from blip_lite.data.sources.shapes import draw_scene, scene_ids
from blip_lite.errors import CheckpointError
from blip_lite.evaluation.coco_process import COCO_METRICS
from blip_lite.evaluation.evaluate import evaluate
from blip_lite.reports import model_card as card
from blip_lite.serving.export import export
from blip_lite.settings import EvalConfig
from blip_lite.training.loop import train
from conftest import ROOT, tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(tmp_path_factory.mktemp("export"), max_steps=6, eval_every=3, max_eval_images=9, scenes=300)
    train(config)
    run = Path(str(config.run.output_dir))
    assert "Not evaluated yet" in (run / "README.md").read_text()
    evaluate(EvalConfig.of(run=str(run)))
    return run


@pytest.mark.long
def test_the_card_says_what_was_measured_and_the_hub_reads_it(run: Path) -> None:
    read = ModelCard.load(run / "README.md")
    result = json.loads((run / "coco_metrics.json").read_text())
    scores = {r.metric_type: r.metric_value for r in read.data.eval_results}
    assert scores["sacrebleu"] == pytest.approx(result["sacrebleu"], abs=0.5) and len(str(scores["sacrebleu"])) < 6
    assert scores["cider"] == pytest.approx(100 * result["CIDEr"], abs=5) and len(str(scores["cider"])) < 6
    assert {r.dataset_split for r in read.data.eval_results} == {"test"} and read.data.license == "unknown"
    assert not {"co2_eq_emissions", "base_model"} & set(read.data.to_dict())
    assert f"{result['num_images']} images, {5 * result['num_images']} references; 2 beams" in read.text
    assert "one human against the others" in read.text and "Energy and CO2: not measured" in read.text
    assert "Precision: float32" in read.text and "--dataset shapes --scenes 300 --split test" in read.text
    assert all(verdict["text"] in read.text for verdict in result["verdicts"]) and result["verdicts"]
    assert str(run.parent) not in (run / "README.md").read_text()


def test_six_pictures_stand_in_the_card_and_go_with_an_export(run: Path, tmp_path: Path) -> None:
    names = re.findall(r"!\[[^]]*\]\((.*?)\)", (run / "README.md").read_text())
    export(run / "best", tmp_path / "out")
    captions = {json.loads(line)["caption"] for line in (run / "captions.jsonl").read_text().splitlines()}
    assert len(names) == 6 and set(json.loads((run / "examples" / "captions.json").read_text())) <= captions
    for name in names:
        assert Image.open(tmp_path / "out" / name).size == (192, 192)


def test_the_card_of_local_data_and_a_local_base_names_no_place(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(other / "examples")
    about = json.loads((other / "config.json").read_text())
    about["settings"] |= {"dataset": str(tmp_path / "photos"), "model": str(tmp_path / "base"), "seed": 7}
    (other / "config.json").write_text(json.dumps(about))
    text = card.model_card(other)
    assert str(tmp_path) not in text and "fine-tuned from `base` on photos" in text and "base_model" not in text
    assert (
        "No pictures" in text
        and "--seed 7" in text
        and {"photos"} == {r.dataset_type for r in ModelCard(text).data.eval_results}
    )


@pytest.mark.long
def test_what_the_card_says_of_transformers_is_true(run: Path, tmp_path: Path) -> None:
    """Its code runs and decodes as `Captioner`; without the settings, `generate` is greedy."""
    text = (run / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[1]
    draw_scene(scene_ids(3, 1)[0], 96).save(tmp_path / "photo.jpg")
    space: dict[str, Any] = {}
    exec(code.replace("THIS", str(run / "best")).replace("photo.jpg", str(tmp_path / "photo.jpg")), space)
    model, inputs = space["model"], space["inputs"]
    assert model.generation_config.num_beams == 2, "the checkpoint says so"
    plain, greedy = model.generate(**inputs), model.generate(**inputs, num_beams=1, max_length=21)
    assert plain.tolist() == greedy.tolist() and model.text_decoder.generation_config.num_beams in (None, 1)
    ours = Captioner.from_pretrained(run / "best", device="cpu").caption_pixels(
        inputs["pixel_values"], Captioner.from_pretrained(run / "best", device="cpu").settings(), [""]
    )
    assert space["processor"].decode(space["ids"][0], skip_special_tokens=True) == ours[0][0]


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


@pytest.mark.long
def test_an_export_names_no_place_and_has_the_numbers_of_its_own_checkpoint(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exported(ckpt: str, folder: str) -> tuple[str, set[str]]:
        files = export(run / ckpt, tmp_path / folder)
        for file in files:
            assert str(run).encode() not in file.read_bytes(), file.name
        return (tmp_path / folder / "README.md").read_text(), {file.name for file in files}

    text, names = exported("best", "best")
    sent = json.loads((tmp_path / "best" / "coco_metrics.json").read_text())
    assert sent["checkpoint"] == "best" and sent["sacrebleu"] == pytest.approx(
        json.loads((run / "coco_metrics.json").read_text())["sacrebleu"]
    )
    [last] = run.glob("checkpoint-000006")
    text, names = exported(last.name, "last")
    assert (
        "--ckpt checkpoint-000006`. The numbers of the run's `best` are not" in text
        and "coco_metrics.json" not in names
    )
    assert ModelCard(text).data.eval_results is None and "test scene 1" not in text and "examples" not in names
    monkeypatch.setattr(
        "blip_lite.evaluation.evaluate.coco_metrics", lambda *_, **__: {"reasons": dict.fromkeys(COCO_METRICS, "")}
    )
    evaluate(EvalConfig.of(run=str(run), ckpt=last.name))
    text, names = exported(last.name, "evaluated")
    assert f"test: `{last.name}`, step 6" in text and "coco_metrics.json" in names


def test_numbers_of_an_earlier_best_are_not_in_the_card(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    assert card.results_of(other)
    why = json.loads((other / "best" / "best.json").read_text())
    (other / "best" / "best.json").write_text(json.dumps({**why, "step": 999}))
    assert not card.results_of(other)


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


def test_a_run_of_an_older_version_has_a_card() -> None:
    """Its config.json lacks the settings that came later."""
    text = card.model_card(Path(__file__).parent / "fixtures" / "run-v1")
    assert "optimizer steps" in text and "repetition_penalty=1.0" in text
