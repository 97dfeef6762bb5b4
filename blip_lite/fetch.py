"""Images from the web: over http and https only, never from this machine or its network, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import io
import ipaddress
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from blip_lite.processing import ImageError

MAX_BYTES = 64 * 2**20
SECONDS = 30.0  # for one image, redirects included


def cache_dir() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/blip_lite`, else `~/.cache/blip_lite`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "blip_lite"


def cached(url: str) -> Path:
    """Where the image of a URL is kept."""
    name = hashlib.sha256(url.encode()).hexdigest()
    return cache_dir() / "urls" / name[:2] / name


def is_public(address: str) -> bool:
    """Whether an IP address lies outside private, loopback, link-local and other reserved networks."""
    ip = ipaddress.ip_address(address.split("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_global and not ip.is_multicast


def _connect(connection: http.client.HTTPConnection) -> socket.socket:
    """Connect to an address that was looked at: a name that answers otherwise the second time gains nothing."""
    found = socket.getaddrinfo(connection.host, connection.port, type=socket.SOCK_STREAM)
    for *_, address in found:
        if not is_public(str(address[0])):
            raise OSError(f"refused: {connection.host} is {address[0]}, which is no public address")
    error: OSError = OSError(f"{connection.host} has no address")
    for family, kind, protocol, _, address in found:
        try:
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(connection.timeout)
            sock.connect(address)
            return sock
        except OSError as failed:
            error = failed
    raise error


class _Http(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = _connect(self)


class _Https(http.client.HTTPSConnection):
    def connect(self) -> None:
        self.sock = self._context.wrap_socket(_connect(self), server_hostname=self.host)  # type: ignore[attr-defined]


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Http, request)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Https, request)


def _opener(https_only: bool) -> urllib.request.OpenerDirector:
    """urllib without `file:`, `ftp:` and proxies; each redirect is looked at like the first address."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        *(() if https_only else (_HttpHandler,)),
        _HttpsHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def fetch(url: str, seconds: float = SECONDS, max_bytes: int = MAX_BYTES, https_only: bool = False) -> bytes:
    """The bytes of an image on the web.

    Args:
        url: of the image.
        seconds: for the whole answer, redirects included.
        max_bytes: of the image.
        https_only: also after redirects.

    Raises:
        ImageError: not http(s), not a public address (after redirects too), an error answer, too slow, too large, or
            not an image.
    """
    if not url.lower().startswith("https://" if https_only else ("http://", "https://")):
        raise ImageError(f"{url}: refused, only {'' if https_only else 'http and '}https URLs are fetched")
    deadline = time.monotonic() + seconds
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "blip_lite"})
        with _opener(https_only).open(request, timeout=seconds) as response:
            kind, data = response.headers.get_content_type(), bytearray()
            while part := response.read1(2**16):
                data += part
                if len(data) > max_bytes:
                    raise ImageError(f"{url}: refused, larger than {max_bytes / 2**20:.0f} MiB")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no whole answer within {seconds:g} s")
            if response.length:
                raise OSError(f"the answer was cut short, {response.length} bytes are missing")
    except ImageError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a URL that cannot be parsed
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        code = f"HTTP {error.code}, " if isinstance(error, urllib.error.HTTPError) else ""
        raise ImageError(f"{url}: {code}{reason or type(error).__name__}") from error
    try:
        Image.open(io.BytesIO(data)).close()  # the header only
    except Exception as error:  # Pillow raises many kinds, a decompression bomb among them
        raise ImageError(f"{url}: the answer is no image ({kind}, {len(data)} bytes)") from error
    return bytes(data)


def fetch_again(url: str, tries: int = 3) -> bytes:
    """`fetch`, up to `tries` times where asking again may help. Raises ImageError."""
    for attempt in range(tries - 1):
        try:
            return fetch(url)
        except ImageError as error:
            if any(final in str(error) for final in ("refused", "HTTP 4", "no image")):
                raise
        time.sleep(2**attempt)
    return fetch(url)


def download(wanted: Mapping[Path, str]) -> dict[Path, str]:
    """Fetch URLs into files, 16 at a time; files that are there already stay.

    Args:
        wanted: URL by path.

    Returns:
        Why each that could not be had could not, by path.
    """

    def get(path: Path) -> str | None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part-{os.getpid()}")
        try:
            part.write_bytes(fetch_again(wanted[path]))
            os.replace(part, path)
        except ImageError as error:
            return str(error)
        except OSError as error:  # of the disk
            return f"{path}: {error.strerror}"
        return None

    missing = [path for path in wanted if not path.is_file()]
    quiet = not (missing and sys.stderr.isatty())
    with ThreadPoolExecutor(16) as pool:
        reasons = list(tqdm(pool.map(get, missing), "downloading", len(missing), unit="image", disable=quiet))
    return {path: reason for path, reason in zip(missing, reasons, strict=True) if reason}
