"""The SageMaker handler by itself: what comes in as text or bytes, the limits, the answers. With AWS's server: test_aws.py."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from blip_lite import Captioner
from blip_lite.processing import download as fetch
from blip_lite.serving import requests
from conftest import ROOT

sys.path.insert(0, str(ROOT / "aws_sagemaker"))
import inference

SCENE = (ROOT / "docs" / "scene.png").read_bytes()
TEXT = base64.b64encode(SCENE).decode()


@pytest.fixture(scope="module")
def captioner(hf_dir: Path) -> Captioner:
    return inference.model_fn(str(hf_dir))


def ask(captioner: Captioner, content: object, kind: str = "application/json", accept: str = "application/json") -> str:
    body = content if isinstance(content, (bytes, bytearray, str)) else json.dumps(content)
    return inference.output_fn(inference.predict_fn(inference.input_fn(body, kind), captioner), accept)


def refused(captioner: Captioner, content: object, kind: str = "application/json", **options: str) -> str:
    with pytest.raises(inference.BaseInferenceToolkitError) as caught:
        ask(captioner, content, kind, **options)
    return f"{caught.value.status_code} {caught.value.message}"


def test_each_form_of_a_request(captioner: Captioner) -> None:
    answer = {"predictions": [{"generated_text": captioner(SCENE)}]}
    request = {"instances": [{"b64": TEXT}]}
    for content in (request, json.dumps(request).encode(), bytearray(json.dumps(request).encode()), {"inputs": TEXT},
                    {"inputs": [TEXT]}, {"b64": TEXT}, {"inputs": {"b64": f"data:image/png;base64,{TEXT}"}}):  # fmt: skip
        assert json.loads(ask(captioner, content)) == answer
    assert (
        json.loads(ask(captioner, SCENE, "image/png"))
        == json.loads(ask(captioner, SCENE, "application/x-image"))
        == answer
    )
    several = {**request, "prompt": "a", "parameters": {"num_return_sequences": 2, "num_beams": 3, "length_penalty": 2}}
    found = json.loads(ask(captioner, several))["predictions"][0]
    expected = captioner(SCENE, prompt="a", num_return_sequences=2, num_beams=3, length_penalty=2)
    assert found == {"generated_text": expected[0], "all": expected}
    in_lines, url_safe = base64.encodebytes(SCENE).decode(), base64.urlsafe_b64encode(SCENE).decode().rstrip("=")
    assert "\n" in in_lines and "_" in url_safe
    for text in (in_lines, url_safe, f"data:image/png;base64,{in_lines}"):
        assert json.loads(ask(captioner, {"inputs": text})) == answer
    sampled = {**request, "parameters": {"do_sample": True, "num_beams": 1, "seed": 3, "temperature": 2}}
    assert ask(captioner, sampled) == ask(captioner, sampled)


def test_a_bad_line_does_not_end_a_batch_transform(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"b64": TEXT}), "{", json.dumps({"b64": TEXT[:4000]}), "", json.dumps({"instances": [{"b64": TEXT}] * 2})]  # fmt: skip
    found = [json.loads(line) for line in ask(captioner, "\n".join(lines), "application/jsonlines").splitlines()]
    assert [list(row) for row in found] == [["predictions"], ["error"], ["error"], ["predictions"]]
    assert len(found[3]["predictions"]) == 2 and "not valid JSON" in found[1]["error"]
    # lines with the same settings are one batch, in halves around the one that breaks
    lines = [json.dumps({"b64": TEXT[:4000] if i == 5 else TEXT, "prompt": "a" * (i > 8)}) for i in range(11)]
    batches: list[int] = []
    call = Captioner.__call__

    def counted(self: Captioner, images: list[bytes], **options: object) -> object:
        batches.append(len(images))
        return call(self, images, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Captioner, "__call__", counted)
    found = [json.loads(line) for line in ask(captioner, "\n".join(lines), "application/jsonlines").splitlines()]
    assert [i for i, row in enumerate(found) if "error" in row] == [5] and batches == [9, 4, 5, 2, 1, 1, 3, 2]
    assert found[10]["predictions"] == [{"generated_text": call(captioner, SCENE, prompt="a")}]


def test_lines_that_come_alone_and_lines_with_too_many(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in ("{", json.dumps({"b64": TEXT[:4000]})):  # a batch of one line
        assert list(json.loads(ask(captioner, content, "application/jsonlines"))) == ["error"]
    line = json.dumps({"b64": TEXT, "note": "\u2028"}, ensure_ascii=False)  # what `splitlines` would cut
    assert "predictions" in ask(captioner, line, "application/jsonlines")
    monkeypatch.setattr(inference, "MAX_IMAGES_A_BODY", 2)
    found = [
        json.loads(answer) for answer in ask(captioner, "\n".join([line] * 3), "application/jsonlines").splitlines()
    ]
    assert [list(row) for row in found] == [["predictions"], ["predictions"], ["error"]]
    assert found[2]["error"] == "more than 2 images in one body"


def test_what_is_refused(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    def instances(**parameters: object) -> dict[str, object]:
        return {"instances": [{"b64": TEXT}], "parameters": parameters}

    for content, told in [
        ("[1]", "expected an object"),
        ({"instances": []}, 'expected "instances"'),
        ({"instances": [{"b64": TEXT}] * 33}, "33 images; at most 32"),
        ({"instances": [{}]}, "image 0: expected"),
        ({"instances": [{"b64": TEXT}, {"b64": "%%"}]}, "image 1: not valid base64"),
        ({"instances": [{"url": "https://example.org/a.jpg"}]}, "fetches no URLs"),
        ({"instances": [{"b64": TEXT}], "prompt": "x" * 101}, "at most 100 characters"),
        ({"instances": [{"b64": TEXT}], "prompt": 3}, '"prompt"'),
        (instances(num_beams=11), "11 is more than 10"),
        (instances(num_beams="3"), "'3' is no number"),
        (instances(num_beams=True), "True is no number"),
        (instances(early_stopping=1), "true or false"),
        (instances(max_new_tokens=0), "max_new_tokens must be at least 1"),
        (instances(length_penalty=10**10), "length_penalty must be -10 to 10"),
        (instances(length_penalty=1e308), "length_penalty must be -10 to 10"),
        (instances(do_sample=True, num_beams=1, temperature=float("nan")), "temperature must be 0.01 to 100"),
        (instances(do_sample=True, num_beams=1, top_p=float("nan")), "top_p must be above 0"),
        (instances(do_sample=True, num_beams=1, seed=2**70), "seed must be 0 to 2**63 - 1"),
        (instances(banned_words=["a"]), "unknown parameters banned_words"),
        (instances(beams=3), "unknown parameters beams; known are"),
        ({"instances": [{"b64": TEXT}], "parameters": [1]}, '"parameters" is to be an object'),
        (b"\xff", "not UTF-8"),
        ("[" * 100_000, "not valid JSON"),
    ]:
        assert refused(captioner, content).startswith("400") and told in refused(captioner, content), content
    assert refused(captioner, "a,b", "text/csv").startswith("415")
    assert refused(captioner, SCENE, "image/png", accept="text/html").startswith("406")
    assert "cannot be decoded" in refused(captioner, SCENE[:2000], "image/png")  # its header is whole
    monkeypatch.setattr(requests, "MAX_BYTES", 100)
    assert "at most 100" in refused(captioner, SCENE, "image/png")
    monkeypatch.setattr(requests, "MAX_BYTES", 10**9)
    monkeypatch.setattr(requests, "MAX_PIXELS", Image.open(ROOT / "docs" / "scene.png").width)
    assert "pixels; at most" in refused(captioner, SCENE, "image/png")


def test_urls_when_allowed_https_only(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_ALLOW_URLS", "true")
    for url, told in [
        ("http://example.org/a.png", "only https URLs"),
        ("file:///etc/passwd", "only https URLs"),
        ("https://127.0.0.1/a.png", "127.0.0.1, which is no public address"),
        ("https://[::ffff:169.254.169.254]/a.png", "no public address"),
    ]:
        assert told in refused(captioner, {"instances": [{"url": url}]})
    with fetch.Deadline(1) as deadline, pytest.raises(fetch.Refused, match="only https"):  # where a redirect goes, too
        fetch._connection(urlsplit("http://example.org/"), True, deadline)
    monkeypatch.setattr(inference, "fetch", lambda url, **options: SCENE)
    assert "generated_text" in ask(captioner, {"instances": [{"url": "https://example.org/a.png"}]})
    monkeypatch.setattr(inference, "ALL_URLS_SECONDS", 0)
    assert "the URLs of this request took 0 s" in refused(captioner, {"instances": [{"url": "https://example.org/a"}]})


def test_settings_beside_the_images_count_and_none_is_dropped(captioner: Captioner) -> None:
    settings = {"num_beams": 1, "max_new_tokens": 2}
    expected = {"predictions": [{"generated_text": captioner(SCENE, **settings)}]}
    assert json.loads(ask(captioner, {"inputs": TEXT, **settings})) == expected
    assert json.loads(ask(captioner, {"inputs": TEXT, "max_new_tokens": 9, "parameters": settings})) == expected
    assert json.loads(ask(captioner, {"b64": TEXT, "id": "7", "group": "a", **settings})) == expected
    text = json.dumps({"inputs": TEXT, **settings})
    for body in (b"\xef\xbb\xbf" + text.encode(), "\ufeff" + text):
        assert json.loads(ask(captioner, body)) == expected
    assert json.loads(ask(captioner, "\ufeff" + text + "\n" + text, "application/jsonlines").split("\n")[0]) == expected
    assert "400 unknown 'num_beam'; did you mean 'num_beams'?" in refused(captioner, {"inputs": TEXT, "num_beam": 1})
    for name, value in (("prompt", "a"), ("parameters", settings), ("num_beams", 2)):
        content = {"instances": [{"b64": TEXT, name: value}]}
        assert f"400 image 0: '{name}' is for all images of a request" in refused(captioner, content)
