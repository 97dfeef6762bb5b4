"""`blip-lite serve`: captions over HTTP, by `POST /caption`; requests that wait with the same settings are one batch.

`/health` and `/metrics` are for machines, `/docs` describes it all, `/` is the page of `app.py` where gradio is there.
"""

from __future__ import annotations

import asyncio
import codecs
import importlib.util
import json
import math
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import h11
import prometheus_client as prometheus
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from blip_lite import __version__
from blip_lite.captioner import Captioner
from blip_lite.errors import ConfigError, Stopped
from blip_lite.processing.download import fetch
from blip_lite.processing.encoded import from_base64
from blip_lite.processing.picture import Picture
from blip_lite.reports.page import render
from blip_lite.serving.requests import MAX_BYTES, MAX_IMAGES, URL_SECONDS
from blip_lite.serving.schema import BODY, Answer, Body, Failed, Health, Parameters, Problem, described
from blip_lite.serving.service import Options, Service, sentence, told, within

JSON = "application/json"
MOST_PARTS = 1000  # of a form, so that what has too many images is told so
bearer = HTTPBearer(auto_error=False, description="the server's BLIP_LITE_TOKEN")


async def read(request: Request, options: Options) -> tuple[list[Picture], dict[str, Any]]:
    """The images of a request, and the parameters of its body. Raises HTTPException (400, 403, 413, 415, 422)."""
    head, more = parse_options_header(request.headers.get("content-type", ""))
    kind, boundary = head.decode("latin-1"), more.get(b"boundary")
    if (coding := request.headers.get("content-encoding", "identity")).lower() != "identity":
        raise HTTPException(415, f"Content-Encoding {coding!r}; send the body as it is")
    once(request.query_params.multi_items())
    limited = Request(request.scope, at_most(options.max_body * 2**20, request.receive))
    parameters: dict[str, Any] = {}
    try:
        if kind == "application/json":
            content = (await limited.body()).removeprefix(codecs.BOM_UTF8)
            with told():
                body = Body.model_validate_json(content, strict=True)
            json.loads(content, object_pairs_hook=once)  # pydantic keeps the last of two
            pictures = [picture_of(text, options) for text in body.images]
            parameters = body.model_dump(exclude={"images"}, exclude_none=True)
        elif kind == "multipart/form-data":
            if boundary and b"--" + boundary + b"--" not in await limited.body():
                raise HTTPException(400, "the form has no end: it was cut off, or has another boundary")
            async with limited.form(max_files=MOST_PARTS, max_fields=MOST_PARTS) as form:
                parts = form.multi_items()
                files = [await part.read() for _, part in parts if isinstance(part, UploadFile)]
            pictures = [Picture("", data) for data in files]
            with told():
                texts = once([(name, part) for name, part in parts if isinstance(part, str)])
                if "image" in texts:
                    raise HTTPException(422, "image: a text, not a file; with curl: -F image=@FILE")
                parameters = Parameters.model_validate_strings(texts).model_dump(exclude_none=True)
        elif kind.startswith("image/") or kind == "application/octet-stream":
            pictures = [Picture("", await limited.body())]
        else:
            wanted = "image/*, application/octet-stream, multipart/form-data or application/json"
            raise HTTPException(415, f"Content-Type {kind!r}; expected {wanted}")
    except ClientDisconnect:
        raise HTTPException(400, "the request was cut off") from None
    if not pictures:
        raise HTTPException(422, "no image in the request; with curl: -F image=@FILE")
    if len(pictures) > (most := min(MAX_IMAGES, options.max_queue)):
        raise HTTPException(413, f"{len(pictures)} images; at most {most} a request")
    return pictures, parameters


def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Parameters by name. Raises HTTPException 422 for one that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise HTTPException(422, f"{next(name for name in names if names.count(name) > 1)}: given twice")
    return found


def picture_of(text: str, options: Options) -> Picture:
    """An image of JSON: base64 or a URL. Raises HTTPException 403 for a URL where none is fetched."""
    if not re.match(r"(?!data:)[a-z][a-z0-9+.-]*:", text, re.IGNORECASE):  # base64 has no colon
        return Picture("", partial(from_base64, text))
    if not options.allow_urls:
        raise HTTPException(403, "this server fetches no URLs (--allow_urls); send the image itself")
    seconds = min(URL_SECONDS, options.timeout)
    return Picture("", partial(fetch, text, seconds=seconds, max_bytes=MAX_BYTES, https_only=True))


def at_most(size: int, receive: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """`receive` of a request's body, which raises HTTPException 413 beyond `size` bytes."""
    taken = 0

    async def limited() -> Any:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken <= size:
            return message
        while message.get("more_body"):  # a client that is cut off while it sends does not hear why
            message = await receive()
        raise HTTPException(413, f"more than {size / 2**20:g} MiB in one request")

    return limited


class Counted:
    """Counts and times the answers of /caption, whoever gives them."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start = time.perf_counter()

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start" and scope["path"] == "/caption":
                self.service.requests.labels(message["status"]).inc()
                self.service.seconds.observe(time.perf_counter() - start)
            await send(message)

        await self.app(scope, receive, counted)


def build(service: Service) -> FastAPI:
    """The application around a service."""
    options = service.options
    about = f"Captions images with {options.name}."
    app = FastAPI(title="blip_lite", version=__version__, description=about, docs_url=None, redoc_url=None)
    app.add_middleware(Counted, service=service)

    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        # Headers come as Latin-1.
        if not (given and secrets.compare_digest(given.credentials.encode("latin-1"), str(options.token).encode())):
            raise HTTPException(401, "expected Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    guard = [Depends(check)] if options.token else []
    statuses = (400, 403, 408, 413, 415, 422, 500, 503, *((401,) if guard else ()))

    @app.post(
        "/caption",
        dependencies=guard,
        responses={200: {"model": Answer}, **{status: {"model": Problem} for status in statuses}},
        openapi_extra={"requestBody": BODY},
    )
    async def caption(request: Request, query: Annotated[Parameters, Query()]) -> Response:
        """Caption images. Parameters may be in the URL; those of a form or of JSON go before them.

        The status is 200 if an image was captioned; else that of the first image's error.
        """
        end = time.monotonic() + options.timeout
        with service.places(1):
            late = f"the request was not whole within {options.timeout:g} s"
            pictures, parameters = await within(end, read(request, options), 408, late)
        results = await service.caption(pictures, {**query.model_dump(exclude_none=True), **parameters}, end)
        failed = [result for result in results if isinstance(result, Failed)]
        if len(failed) == len(results):
            problem = Problem(error=failed[0].error, results=failed)
            return Response(problem.model_dump_json(exclude_none=True), failed[0].status, media_type=JSON)
        return Response(Answer(results=results).model_dump_json(exclude_none=True), media_type=JSON)

    @app.api_route("/caption", methods=["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"], include_in_schema=False)
    async def not_so() -> None:
        raise HTTPException(405, "send images by POST; /docs describes it", {"Allow": "POST"})

    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses={503: {"model": Problem}})
    async def health() -> Health:
        """Whether captions are made, for load balancers."""
        if not service.batcher.thread.is_alive():
            raise HTTPException(503, "the thread that captions has ended; the log says why")
        return Health(status="ok", model=options.name, images_inside=service.inside)

    exposition: Any = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    refusal: Any = {401: {"model": Problem}} if guard else {}

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        """FastAPI's own page is empty without a network."""
        url = str(request.base_url).rstrip("/")
        return HTMLResponse(render("api.html", title=about, url=url, charts=(), guarded=bool(guard), **described()))

    @app.get("/metrics", dependencies=guard, response_class=Response, responses={**exposition, **refusal})
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(prometheus.generate_latest(service.registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    @app.exception_handler(AnyHTTPException)
    async def problem(request: Request, error: AnyHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": sentence(error)}, 422)

    return app


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to an address, on which the server listens when the model is loaded. Raises ConfigError."""
    if not 0 <= port < 2**16:  # getaddrinfo would take a part of it
        raise ConfigError(f"--port {port}: expected 0 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        # Until it listens: who loads at the same time could bind the same port, and would fail when it listens.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: {error.strerror}; --port 0 takes any that is free") from error
    return sock


class Connection(H11Protocol):
    """Ends when the head of a request is not whole in time; uvicorn itself would wait for ever."""

    seconds = 60.0
    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.forget()

    def watch(self) -> None:
        """The time runs from the first byte, or from the connection's begin, to the end of the head."""
        if self.conn.their_state is not h11.IDLE:
            self.forget()
        elif self.timer is None:
            self.timer = self.loop.call_later(self.seconds, self.transport.close)

    def forget(self) -> None:
        if self.timer:
            self.timer.cancel()
        self.timer = None


class Server(uvicorn.Server):
    """Says where it listens, once it does."""

    note = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        for sock in sockets or []:  # connections take it over, and so a restart finds the port free at once
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await super().startup(sockets)
        for sock in sockets or []:
            host, port, *_ = sock.getsockname()
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            print(f"{url} answers POST /caption, {url}/docs describes it; {self.note}", flush=True)


def serve(ckpt: str, host: str, port: int, device: str, dtype: str, page: bool, **limits: Any) -> int:
    """Load a checkpoint and answer until a signal comes; then answer what is in flight.

    Args:
        ckpt: directory or Hub id.
        host, port: where to listen; port 0 is any that is free.
        device, dtype: as for `Captioner.from_pretrained`.
        page: whether to show the page, too, if gradio is there.
        **limits: the fields of `Options`.

    Raises:
        ConfigError, CheckpointError: nothing was served.
        Stopped: a SIGTERM ended it.
    """
    name = "/".join(Path(ckpt).resolve().parts[-2:]).strip("/") if Path(ckpt).exists() else ckpt
    options = Options(name, token=os.environ.get("BLIP_LITE_TOKEN"), **limits)
    sock = bound(host, port)

    def stop(number: int, _: Any) -> NoReturn:  # uvicorn hands the signal on when all is answered
        raise Stopped(number)

    signal.signal(signal.SIGTERM, stop)
    service = Service(Captioner.from_pretrained(ckpt, device, dtype), options)
    app = build(service)
    connection = type("Connection", (Connection,), {"seconds": options.timeout})
    server = Server(
        uvicorn.Config(
            app,
            http=connection,  # h11, which limits headers; httptools, where it is installed, takes any
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(options.timeout),
        )
    )
    why_not = "--no_page" if not page else "it could not ask for the token" if options.token else ""
    if not why_not and not importlib.util.find_spec("gradio"):
        why_not = "pip install 'blip_lite[demo]'"
    if why_not:
        app.add_api_route("/", lambda: RedirectResponse("/docs"), include_in_schema=False)
    else:
        from blip_lite.serving.app import mount

        mount(app, service)
    server.note = f"no page ({why_not})" if why_not else "the page is there, too"
    if not options.token and host not in ("127.0.0.1", "localhost", "::1"):
        print("warning: who reaches this port may use it; BLIP_LITE_TOKEN asks for a token", file=sys.stderr)
    server.run(sockets=[sock])
    return 0 if server.started else 1
