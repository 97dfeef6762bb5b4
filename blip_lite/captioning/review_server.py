"""`blip-lite review`: the page as one file, or served on this machine, for this person's browser only."""

from __future__ import annotations

import argparse
import contextlib
import hmac
import json
import secrets
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from blip_lite.captioning.outputs import try_to_write_page
from blip_lite.captioning.review import Review, read_captions, write_page
from blip_lite.errors import ConfigError, DataError, ImageError
from blip_lite.reports.review import small

MOST_BYTES = 1 << 20  # of a decision
PICTURE = 200_000  # bytes


def review(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C, or write it as one file; see `command_line.add_review`. Returns the exit code."""
    captions = Path(args.captions)
    output = Path(args.output) if args.output else captions.with_name("reviewed.csv")
    if args.html:
        page = Path(args.html)
        try_to_write_page(page)
        write_page(page, read_captions(captions, args.allow_urls, page.parent))
        print(f"open {args.html} in a browser, on any machine")
        return 0
    with Review(captions, output, args.sidecar_suffix if args.sidecars else None, args.allow_urls) as job:
        print(f"{captions}: {job.progress()}")
        if job.remark:
            print(job.remark)
        serve(job, args.port)
        print(f"\n{job.progress()}: {output}. Next: {job.then()}")
    return 0


def serve(review: Review, port: int = 0) -> None:
    """Serve until Ctrl-C. Raises ConfigError if the port is taken.

    Args:
        port: 0 is any that is free.
    """
    try:
        server = Server(review, port)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--port {port}: cannot be listened on ({getattr(error, 'strerror', None) or error})"
        ) from error
    print(f"open {server.url}  (Ctrl-C ends it; each decision is saved at once)", flush=True)
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1 alone; its address holds a token that other pages and users do not know."""

    daemon_threads = True

    def __init__(self, review: Review, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.review, self.token = review, secrets.token_urlsafe(24)
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self.url = f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a browser that went away
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """`GET /TOKEN/`, `GET /TOKEN/picture/KEY`, `POST /TOKEN/decide`."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may be silent

    def allowed(self) -> list[str] | None:
        """The path behind the token; None, and a refusal sent, for whoever does not know it, for another site's request
        and for a name that was made to point here."""
        token, *path = self.path.split("?")[0].lstrip("/").split("/")
        origin = self.headers.get("Origin")
        known = hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())
        here = origin is None or origin.removeprefix("http://") in self.server.hosts
        if known and here and self.headers.get("Host") in self.server.hosts:
            return path
        self.close_connection = True
        self.answer(403, "text/plain", b"Use the address that `blip-lite review` printed.\n")
        return None

    def do_GET(self) -> None:
        path = self.allowed()
        if path == [""]:
            self.answer(200, "text/html; charset=utf-8", self.server.review.page().encode())
        elif path and path[0] == "picture" and len(path) == 2 and (item := self.server.review.by_key.get(path[1])):
            try:
                self.answer(200, "image/jpeg", small(item.picture.open(), PICTURE))
            except (ImageError, OSError) as error:
                self.answer(404, "text/plain; charset=utf-8", str(error).encode("utf-8", "backslashreplace"))
        elif path is not None:
            self.answer(404, "text/plain", b"There is nothing here.\n")

    def do_POST(self) -> None:
        if (path := self.allowed()) is None:
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True
            return self.tell(413, error=f"expected at most {MOST_BYTES} bytes")
        body = self.rfile.read(int(length))
        if path != ["decide"] or self.headers.get_content_type() != "application/json":
            return self.tell(404, error="expected JSON to /decide")
        try:
            said = json.loads(body)
            key, status, captions, seen = said["key"], said["status"], said["captions"], said.get("seen")
            lists = isinstance(captions, list) and isinstance(seen, (list, type(None)))
            if not (lists and all(isinstance(text, str) for text in (key, status, *captions, *(seen or ())))):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            return self.tell(400, error="expected key, status and captions")
        try:
            self.tell(200, note=self.server.review.decide(key, status, captions, seen))
        except (ConfigError, DataError) as error:
            self.tell(400, error=str(error))
        except OSError as error:
            self.tell(507, error=f"cannot be written: {error.strerror or error}")

    def tell(self, code: int, **said: str) -> None:
        self.answer(code, "application/json", json.dumps(said).encode())

    def answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "X-Content-Type-Options": "nosniff"}
        headers |= {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass  # the terminal is for the address and the last line
