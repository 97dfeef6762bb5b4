"""The handler of a SageMaker endpoint: images in, captions out. It lies in `code/` of the `model.tar.gz` that
`train_entry.py` writes, with the package beside it, so that the inference container has nothing to install.

Requests: `application/json` with `{"instances": [{"b64": ...} | {"url": ...}], "parameters": {...}, "prompt": ...}` or
`{"inputs": "BASE64" | [...]}`; an image itself (`image/jpeg`, `image/png`, ...); `application/jsonlines` with one such object a line
(batch transform). Answers: `{"predictions": [{"generated_text": ...}]}`. What is wrong with a request is a 400 that says so; in
JSON lines it is the `error` of that line.

Environment: BLIP_ALLOW_URLS=true lets the endpoint fetch https URLs (public addresses only).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import time
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the package lies beside this file in model.tar.gz

from blip_lite import Captioner
from blip_lite.errors import ImageError
from blip_lite.model.generation import GenerationSettings
from blip_lite.processing.download import fetch
from blip_lite.processing.encoded import from_base64
from blip_lite.serving.requests import LIMITS, MAX_BYTES, MAX_IMAGES, MAX_PROMPT, URL_SECONDS, look
from blip_lite.settings import did_you_mean

try:
    from sagemaker_inference.errors import BaseInferenceToolkitError
except ImportError:  # the Hugging Face container has another toolkit, which makes a 400 of every exception

    class BaseInferenceToolkitError(Exception):  # type: ignore[no-redef]
        """A status code and what the client is told."""

        def __init__(self, status_code: int, message: str, phrase: str) -> None:
            super().__init__(message)
            self.status_code, self.message, self.phrase = status_code, message, phrase


MAX_IMAGES_A_BODY = 10_000  # in JSON lines
ALL_URLS_SECONDS = 30  # for all URLs of a body; SageMaker gives an answer 60
PARAMETERS = {f.name for f in dataclasses.fields(GenerationSettings)} - {"banned_words"}
IMAGE_TYPES = ("image/", "application/x-image", "application/octet-stream")


@dataclasses.dataclass
class Request:
    """Images of one JSON object (or the reason why it is refused), and how to caption them."""

    images: list[bytes]
    prompt: str | None = None  # None: the checkpoint's own
    parameters: dict[str, Any] = dataclasses.field(
        default_factory=dict
    )  # that were asked for; others are the checkpoint's
    error: str | None = None
    is_line: bool = False  # of JSON lines: what is wrong with it is its answer


def refuse(message: str, status: int = 400) -> BaseInferenceToolkitError:
    return BaseInferenceToolkitError(status, message, message)


def model_fn(model_dir: str, context: Any = None) -> Captioner:
    """Load the checkpoint, once a worker. The model server deals its workers out to the GPUs and tells each the number of
    its own, none without a GPU; both toolkits pass their context to a `model_fn` of two arguments."""
    gpu = context.system_properties.get("gpu_id") if context else None
    return Captioner.from_pretrained(model_dir, "auto" if gpu is None or int(gpu) < 0 else int(gpu))


def input_fn(body: bytes | bytearray | str, content_type: str) -> list[Request]:
    """The requests in a body. Raises BaseInferenceToolkitError (400, 415)."""
    kind = (content_type or "").split(";")[0].strip().lower()
    if kind.startswith(IMAGE_TYPES):
        data = bytes(body) if not isinstance(body, str) else body.encode("latin-1")
        return [Request([checked(lambda: data, "the image")])]
    deadline = time.monotonic() + ALL_URLS_SECONDS
    if kind in ("application/jsonlines", "application/jsonl"):
        found, room = list[Request](), MAX_IMAGES_A_BODY
        for line in text_of(body).split("\n"):  # not splitlines: JSON may hold U+2028
            if line.strip():
                found.append(line_request(line, deadline, room))
                room -= len(found[-1].images)
        return found
    if kind != "application/json":
        raise refuse(f"content type {content_type!r}: expected application/json, application/jsonlines or image/*", 415)
    return [request_of(parse(text_of(body)), deadline)]


def text_of(body: bytes | bytearray | str) -> str:
    try:
        text = body if isinstance(body, str) else bytes(body).decode("utf-8")  # the toolkit may have decoded it
        return text.removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise refuse("the body is not UTF-8") from None


def parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise refuse("the body is not valid JSON") from None


def line_request(line: str, deadline: float, room: int) -> Request:
    """One line, of a body with room for so many images; what is wrong with it is its answer, and the others go on."""
    try:
        if not room:
            raise refuse(f"more than {MAX_IMAGES_A_BODY} images in one body")
        return dataclasses.replace(request_of(parse(line), deadline, room), is_line=True)
    except BaseInferenceToolkitError as error:
        return Request([], error=error.message, is_line=True)


def request_of(content: Any, deadline: float, room: int = MAX_IMAGES) -> Request:
    """`{"instances": [...]}`, `{"inputs": ...}`, or one instance by itself; at most `room` images, and their URLs fetched before
    `deadline`, in the time of `time.monotonic()`."""
    if not isinstance(content, dict):
        raise refuse('expected an object with "instances" or "inputs"')
    instances: Any = content.get("instances", [content] if {"b64", "url"} & content.keys() else None)
    if "inputs" in content:
        inputs = content["inputs"] if isinstance(content["inputs"], list) else [content["inputs"]]
        instances = [{"b64": item} if isinstance(item, str) else item for item in inputs]
    if not isinstance(instances, list) or not instances:
        raise refuse(
            'expected "instances": [{"b64": ...} or {"url": ...}], or "inputs": a base64 text or a list of them'
        )
    if len(instances) > (most := min(room, MAX_IMAGES)):
        raise refuse(
            f"{len(instances)} images; at most {most} {'a request' if most == MAX_IMAGES else 'more in this body'}"
        )
    prompt, parameters = content.get("prompt"), content.get("parameters") or {}
    if isinstance(parameters, dict):  # beside the images, as `blip-lite serve` takes them, or apart
        parameters = {name: content[name] for name in PARAMETERS & content.keys()} | parameters
    known = (*PARAMETERS, "prompt", "parameters", "instances", "inputs")
    for name in content.keys() - {*known, "id"}:  # others, like an id, are the client's
        if meant := did_you_mean(name, known, 0.85):
            raise refuse(f"unknown {name!r}{meant}")
    for i, item in enumerate(instances):
        if item is not content and isinstance(item, dict) and (odd := {*known} & item.keys()):
            raise refuse(f"image {i}: {min(odd)!r} is for all images of a request: put it beside them")
    if prompt is not None and (not isinstance(prompt, str) or len(prompt) > MAX_PROMPT):
        raise refuse(f'"prompt" is to be a text of at most {MAX_PROMPT} characters')
    check(parameters)
    images = [image_of(item, f"image {i}", deadline) for i, item in enumerate(instances)]
    return Request(images, prompt, parameters)


def check(parameters: Any) -> None:
    """Their names, kinds and limits. Whether they make sense together the checkpoint's own decide, in `predict`."""
    if not isinstance(parameters, dict):
        raise refuse('"parameters" is to be an object')
    if unknown := parameters.keys() - PARAMETERS:
        raise refuse(f"unknown parameters {', '.join(sorted(unknown))}; known are {', '.join(sorted(PARAMETERS))}")
    kinds = typing.get_type_hints(GenerationSettings)
    for name, value in parameters.items():
        kind = (float, int) if kinds[name] is float else int if name == "seed" else kinds[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise refuse(f"parameter {name}: {value!r} is no {'number' if kind is not bool else 'true or false'}")
        if name in LIMITS and value > LIMITS[name]:
            raise refuse(f"parameter {name}: {value} is more than {LIMITS[name]}")


def image_of(item: Any, name: str, deadline: float) -> bytes:
    """The bytes of `{"b64": ...}` or `{"url": ...}`."""
    if not isinstance(item, dict) or not isinstance(item.get("b64", item.get("url")), str):
        raise refuse(f'{name}: expected {{"b64": ...}} or {{"url": ...}}')
    if "b64" in item:
        return checked(partial(from_base64, item["b64"]), name)
    if os.environ.get("BLIP_ALLOW_URLS", "").lower() not in ("1", "true"):
        raise refuse(f"{name}: this endpoint fetches no URLs; send the image as b64")
    if (left := deadline - time.monotonic()) < 0.1:
        raise refuse(f"{name}: the URLs of this request took {ALL_URLS_SECONDS} s")
    seconds = min(URL_SECONDS, left)
    return checked(partial(fetch, item["url"], seconds=seconds, max_bytes=MAX_BYTES, https_only=True), name)


def checked(read: Callable[[], bytes], name: str) -> bytes:
    """The bytes of an image, after a look at its size; nothing is decoded yet. Raises BaseInferenceToolkitError."""
    try:
        return look(read())
    except ImageError as error:
        raise refuse(f"{name}: {error}") from error


def predict_fn(requests: list[Request], captioner: Captioner) -> list[dict[str, Any]]:
    """One answer a request. Raises BaseInferenceToolkitError (400) for a single one that cannot be answered."""

    def alike(request: Request) -> tuple[Any, ...]:  # what is drawn depends on the batch
        asked = json.dumps(request.parameters, sort_keys=True)
        return request.error, request.prompt, asked, request.parameters.get("do_sample") and id(request)

    groups = [list(group) for _, group in itertools.groupby(requests, alike)]
    return [answer for group in groups for answer in predict(captioner, group)]


def predict(captioner: Captioner, requests: list[Request]) -> list[dict[str, Any]]:
    """The answers to requests with the same settings, all in one; if that fails, in halves, to find the one at fault."""
    first = requests[0]
    try:
        if first.error is not None:
            raise ValueError(first.error)
        images = [image for request in requests for image in request.images]
        found = iter(captioner(images, prompt=first.prompt, **first.parameters))
        return [{"predictions": [prediction(next(found)) for _ in request.images]} for request in requests]
    except ValueError as error:  # an image that breaks while it is decoded; a prompt that leaves no room; settings
        if len(requests) > 1:
            half = len(requests) // 2
            return predict(captioner, requests[:half]) + predict(captioner, requests[half:])
        reason = str(error).removeprefix("<bytes>: ")
        if not first.is_line:
            raise refuse(reason) from error
        return [{"error": reason}]


def prediction(caption: str | list[str]) -> dict[str, Any]:
    return {"generated_text": caption} if isinstance(caption, str) else {"generated_text": caption[0], "all": caption}


def output_fn(answers: list[dict[str, Any]], accept: str) -> str:
    """JSON, or JSON lines. Raises BaseInferenceToolkitError (406)."""
    kinds = [part.split(";")[0].strip().lower() for part in (accept or "*/*").split(",")]
    if not {"*/*", "application/*", "application/json", "application/jsonlines", "application/jsonl"} & set(kinds):
        raise refuse(f"Accept {accept!r}: the answer can be application/json or application/jsonlines", 406)
    if len(answers) == 1 and "application/jsonlines" not in kinds and "application/jsonl" not in kinds:
        return json.dumps(answers[0], ensure_ascii=False)
    return "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
