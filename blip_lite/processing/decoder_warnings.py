"""What image decoders say of a picture: with its name, once. Pillow warns and logs, libtiff writes to the terminal."""

from __future__ import annotations

import ctypes
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

decoding = threading.local()  # .name: of the picture that this thread decodes
messages: set[tuple[str, str]] = set()
kept: list[Any] = []  # libtiff calls it


@contextmanager
def about(name: str) -> Iterator[None]:
    """What decoders say in here is about this picture; the outermost name counts."""
    outer = getattr(decoding, "name", None)
    decoding.name = outer or name
    try:
        yield
    finally:
        decoding.name = outer


def tell(text: str) -> bool:
    """Say it of the picture that is decoded, once; False if none is."""
    name, text = getattr(decoding, "name", None), " ".join(text.split())
    if name and (name, text) not in messages:
        messages.add((name, text))
        print(f"warning: {name}: {text}", file=sys.stderr)
    return name is not None


def name_pictures() -> None:
    """Have decoders' warnings name their picture, from here on, in this process: for commands, not for a library."""
    if kept:
        return
    show = warnings.showwarning

    def named(message: Warning | str, *where: Any, **more: Any) -> None:
        if not tell(str(message)):
            show(message, *where, **more)

    class Log(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not tell(record.getMessage()):
                print(record.getMessage(), file=sys.stderr)

    kept.append(named)
    if not sys.warnoptions:  # else as was asked for
        warnings.filterwarnings("always", module=r"PIL\.")  # not the first picture's alone
    warnings.showwarning = named
    logging.getLogger("PIL").addHandler(Log(logging.WARNING))
    quiet_libtiff()


def quiet_libtiff() -> None:
    """Have libtiff's errors told the same way, without the numbers in them, where Pillow brings libtiff as a file of
    its own (the wheels for Linux and macOS)."""
    pillow = find_spec("PIL")
    folder = Path(pillow.origin).parent if pillow and pillow.origin else Path()
    for path in (*folder.parent.glob("pillow.libs/libtiff*"), *folder.glob(".dylibs/libtiff*")):

        def error(module: bytes | None, form: bytes, _: Any) -> None:  # the numbers are C's variable arguments
            text = re.sub(r"%[-+ #0-9.*]*[hljzt]*[a-zA-Z]", "...", form.decode("utf-8", "replace"))
            if not tell(text):
                print(text, file=sys.stderr)

        kept.append(ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)(error))
        ctypes.CDLL(str(path)).TIFFSetErrorHandler(kept[-1])
