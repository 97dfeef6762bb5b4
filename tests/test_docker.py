"""The Dockerfile and compose.yaml, without Docker: what they copy is there, what they run is understood."""

from __future__ import annotations

import json
import re
import shlex
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

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
