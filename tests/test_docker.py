"""The Dockerfile and compose.yaml, without Docker: what they copy is there, what they run is understood, and runs."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import threading
import venv
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from blip_lite.command_line import parse
from conftest import ROOT, free_port

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = None  # type: ignore[assignment]

STEPS = [
    (word, rest.strip())
    for line in re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text("utf-8")).splitlines()
    if line.strip() and not line.startswith("#")
    for word, _, rest in [line.partition(" ")]
]


def step(name: str) -> str:
    [found] = [rest for word, rest in STEPS if word == name]
    return found


@pytest.mark.slow
def test_the_steps_run_and_the_server_answers_until_it_is_stopped(hf_dir: Path, tmp_path: Path) -> None:
    """COPY, RUN pip, ENTRYPOINT, HEALTHCHECK and compose's command, in a virtual environment that sees this one's
    packages, so that pip fetches nothing."""
    venv.create(tmp_path / "venv")
    own = next((tmp_path / "venv").rglob("site-packages"))
    (own / "all.pth").write_text(sysconfig.get_paths()["purelib"])  # pip, too
    (pip := tmp_path / "venv" / "bin" / "pip").write_text('#!/bin/sh\nexec python -m pip "$@"\n')
    pip.chmod(0o755)
    environment = {"PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}", "HOME": str(tmp_path), "PIP_NO_INDEX": "1"}
    environment |= {"PIP_NO_BUILD_ISOLATION": "0", "BLIP_LITE_TOKEN": "secret"}  # pip's 0 is: none
    for word, rest in STEPS:
        if word == "COPY":
            *names, target = shlex.split(rest)
            for name in names:
                to = tmp_path / target.lstrip("/")
                whole = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                to.mkdir(parents=True, exist_ok=True) if target.endswith("/") else None
                whole(ROOT / name, to)
        if word == "RUN" and rest.startswith("pip "):
            command = rest.replace("/src", f"{tmp_path}/src").replace("$TORCH", step("ARG").partition("=")[2])
            subprocess.run(command, shell=True, env=environment, cwd=tmp_path, check=True)
    shutil.rmtree(tmp_path / "src")  # what is installed suffices
    service = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]["captions"]
    port = str(free_port())
    words = [*json.loads(step("ENTRYPOINT")), *service["command"]]
    words = [{step("EXPOSE"): port, "/model": str(hf_dir)}.get(word, word) for word in words]
    health = [word.replace(step("EXPOSE"), port) for word in json.loads(step("HEALTHCHECK").partition("CMD ")[2])]
    assert not subprocess.run([f"{tmp_path}/venv/bin/python", "-c", "import blip_lite as b; assert 'venv' in b.__file__"], cwd=tmp_path, env=environment).returncode  # fmt: skip
    with subprocess.Popen([f"{tmp_path}/venv/bin/{words[0]}", *words[1:]], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as server:  # fmt: skip
        assert server.stdout and f":{port} answers POST /caption" in server.stdout.readline()
        subprocess.run(health, env=environment, cwd=tmp_path, check=True)
        answers = []
        for token in ("wrong", "secret"):
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
            headers = {"Content-Type": "image/png", "Authorization": f"Bearer {token}"}
            connection.request("POST", "/caption", (ROOT / "docs" / "scene.png").read_bytes(), headers)
            answers.append(connection.getresponse().status)
            connection.close()
        server.terminate()
        assert server.wait(int(service["stop_grace_period"].removesuffix("s"))) == 143 and answers == [401, 200]


@pytest.mark.skipif(tomllib is None, reason="needs Python 3.11 to read pyproject.toml")
def test_the_python_is_one_that_we_support() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    version = re.fullmatch(r"python:(3\.\d+)-slim", step("FROM"))
    assert version and f"Programming Language :: Python :: {version[1]}" in project["classifiers"]


def test_the_command_of_each_is_understood() -> None:
    entry, command = json.loads(step("ENTRYPOINT")), json.loads(step("CMD"))
    service = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]["captions"]
    for words in (command, service["command"]):
        args = parse([*entry, *words][1:])
        assert (args.command, args.ckpt, args.host) == ("serve", "/model", "0.0.0.0")
        assert str(args.port) == step("EXPOSE") == service["ports"][0].rpartition(":")[2]
    assert int(service["stop_grace_period"].removesuffix("s")) > args.timeout  # Docker kills after it
    assert service["volumes"][0].endswith(":/model:ro")
    assert ":?" in service["environment"]["BLIP_LITE_TOKEN"]  # none, no start


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    for word, rest in STEPS:
        if word == "COPY":
            for name in shlex.split(rest)[:-1]:
                assert (ROOT / name).exists() and f"!{name}" in ignored, name


@pytest.mark.skipif(tomllib is None, reason="needs Python 3.11 to read pyproject.toml")
def test_the_extras_it_installs_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [m[1] for word, rest in STEPS if word == "RUN" for m in re.finditer(r"/src\[([\w,]+)\]", rest)]
    assert wanted and set(",".join(wanted).split(",")) <= set(project["optional-dependencies"])
    copied = " ".join(rest for word, rest in STEPS if word == "COPY")
    for name in (project["readme"], *project["license-files"]):
        assert name in copied or name.startswith("blip_lite/")  # the build reads them


def test_the_health_check_tells_health_from_sickness(monkeypatch: pytest.MonkeyPatch) -> None:
    words = json.loads(step("HEALTHCHECK").partition("CMD ")[2])
    assert words[:2] == ["python", "-c"] and "http://127.0.0.1:7860/health" in words[2]
    status = 200

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", free_port()), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = words[2].replace("7860", str(server.server_port))
        exec(code, {})
        status = 503
        with pytest.raises(OSError, match="503"):
            exec(code, {})
        server.shutdown()
