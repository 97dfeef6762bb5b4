"""Images from the web: over http and https only, never from this machine or its network, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from string import punctuation
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from blip_lite.errors import ImageError, Refused
from blip_lite.processing.images import size_of
from blip_lite.processing.progress import Progress
from blip_lite.processing.threads import Threads

MAX_BYTES = 64 * 2**20


SECONDS = 30.0  # for one image, redirects included


MAX_REDIRECTS = 5


NAT64 = ipaddress.ip_network("64:ff9b::/96")


AGAIN = (408, 425, 429)  # of the 4xx answers, those that may be others later


def cache_dir() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/blip_lite`, else `~/.cache/blip_lite`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "blip_lite"


def cached(url: str) -> Path:
    """Where the image of a URL is kept."""
    name = hashlib.sha256(url.encode()).hexdigest()
    return cache_dir() / "urls" / name[:2] / name


def is_url(value: object) -> bool:
    """Whether a value is the address of something on the web."""
    return isinstance(value, str) and re.match(r"\s*https?://", value, re.IGNORECASE) is not None


def is_public(address: str) -> bool:
    """Whether an IP address lies outside private, loopback, link-local and other reserved networks; of an IPv6 address
    that carries an IPv4 one (mapped, 6to4, Teredo, NAT64, compatible), that one too."""
    ip = ipaddress.ip_address(address.split("%")[0])
    looked_at: list[ipaddress.IPv4Address | ipaddress.IPv6Address | None] = [ip]
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in NAT64 or int(ip) < 2**32:
            inner.append(ipaddress.IPv4Address(int(ip) % 2**32))
        looked_at = [ip, *inner] if ip.ipv4_mapped is None else [ip.ipv4_mapped]
        if ip.is_site_local:
            return False
    return all(i.is_global and not i.is_multicast for i in looked_at if i is not None)


class Deadline:
    """When an answer has to be whole. Then all connections are cut, since a socket's own timeout begins
    anew with each byte."""

    def __init__(self, seconds: float) -> None:
        self.end, self.sockets = time.monotonic() + seconds, list[socket.socket]()
        self.missed = TimeoutError(f"no whole answer within {seconds:g} s")
        self.timer = threading.Timer(seconds, self.cut)
        self.timer.daemon = True

    def __enter__(self) -> Deadline:
        self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()

    def cut(self) -> None:
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not SSLSocket's, which disturbs a handshake under way

    def check(self) -> None:
        if time.monotonic() >= self.end:
            raise self.missed

    def watch(self, sock: socket.socket) -> None:
        self.sockets.append(sock)
        self.check()  # `cut` may have been before


def _connect(connection: http.client.HTTPConnection, deadline: Deadline) -> socket.socket:
    """Connect to an address that was looked at: a name that answers otherwise the second time gains nothing."""
    found = socket.getaddrinfo(connection.host, connection.port, type=socket.SOCK_STREAM)
    for *_, address in found:
        if not is_public(str(address[0])):
            raise Refused(f"refused: {connection.host} is {address[0]}, which is no public address")
    error: OSError = OSError(f"{connection.host} has no address")
    for family, kind, protocol, _, address in found:
        deadline.check()
        try:
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(max(0.01, deadline.end - time.monotonic()))
            sock.connect(address)
            return sock
        except OSError as failed:
            error = failed
    raise error


class _Http(http.client.HTTPConnection):
    deadline: Deadline

    def connect(self) -> None:
        self.sock = _connect(self, self.deadline)
        self.deadline.watch(self.sock)


class _Https(http.client.HTTPSConnection):
    deadline: Deadline

    def connect(self) -> None:
        plain, context = _connect(self, self.deadline), self._context  # type: ignore[attr-defined]
        self.sock = context.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        self.deadline.watch(self.sock)
        self.sock.do_handshake()


def _connection(url: SplitResult, https_only: bool, deadline: Deadline) -> http.client.HTTPConnection:
    if url.scheme not in (("https",) if https_only else ("http", "https")) or not url.hostname:
        raise Refused(f"refused: only {'' if https_only else 'http and '}https URLs are fetched, not {url.geturl()}")
    kind = _Https if url.scheme == "https" else _Http
    connection = kind(url.hostname, url.port or kind.default_port)
    connection.deadline = deadline
    return connection


def fetch(url: str, seconds: float = SECONDS, max_bytes: int = MAX_BYTES, https_only: bool = False) -> bytes:
    """The bytes of an image on the web.

    Args:
        url: of the image.
        seconds: for the whole answer, redirects included; looking a name up, which cannot be cut short, may add to it.
        max_bytes: of the image.
        https_only: also after redirects.

    Raises:
        ImageError: not http(s), not a public address (after redirects too), an error answer, too slow, too large, or
            not an image.
    """
    at = url.strip()
    with Deadline(seconds) as deadline:
        try:
            for _ in range(MAX_REDIRECTS + 1):
                parts = urlsplit(at)
                with contextlib.closing(_connection(parts, https_only, deadline)) as connection:
                    target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=punctuation)
                    connection.request("GET", target, headers={"User-Agent": "blip_lite", "Connection": "close"})
                    response = connection.getresponse()
                    to = response.headers.get("Location")
                    if response.status not in (301, 302, 303, 307, 308) or not to:
                        return _image_in(response, max_bytes, deadline)
                    # Looked at like the first; what else the answer says is not read. Headers come as Latin-1.
                    at = urljoin(at, quote(to, safe=punctuation, encoding="latin-1"))
            raise Refused(f"more than {MAX_REDIRECTS} redirects")
        except ImageError as error:
            raise type(error)(f"{url}: {error}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a URL that cannot be parsed
            late = time.monotonic() >= deadline.end  # then it only says that the connection was cut
            reason = deadline.missed if late else error
            raise ImageError(f"{url}: {str(reason) or type(reason).__name__}") from error


def _image_in(response: http.client.HTTPResponse, max_bytes: int, deadline: Deadline) -> bytes:
    """The image that an answer holds. Raises ImageError, OSError, HTTPException."""
    if response.status != 200:
        final = 400 <= response.status < 500 and response.status not in AGAIN
        raise (Refused if final else ImageError)(f"HTTP {response.status}, {response.reason}")
    kind, data = response.headers.get_content_type(), bytearray()
    while part := response.read1(2**16):
        data += part
        deadline.check()
        if len(data) > max_bytes:
            raise Refused(f"refused, larger than {max_bytes / 2**20:.0f} MiB")
    if response.length:
        raise OSError(f"the answer was cut short, {response.length} bytes are missing")
    deadline.check()  # a connection that was cut looks like an end
    try:
        size_of(bytes(data))
    except Exception as error:  # Pillow raises many kinds, a decompression bomb among them
        raise Refused(f"the answer is no image ({kind}, {len(data)} bytes)") from error
    return bytes(data)


def fetch_again(url: str, tries: int = 3) -> bytes:
    """`fetch`, up to `tries` times where asking again may help. Raises ImageError."""
    for attempt in range(tries - 1):
        try:
            return fetch(url)
        except Refused:
            raise
        except ImageError:
            pass
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
    with Threads(16) as pool:
        reasons = list(Progress(pool.map(get, missing), "downloaded", len(missing)))
    return {path: reason for path, reason in zip(missing, reasons, strict=True) if reason}
