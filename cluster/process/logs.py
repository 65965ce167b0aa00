"""The project's log lines: shown where nobody else shows them, and such that what a client sent cannot be taken for a field."""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from collections.abc import Callable
from urllib.parse import quote

ROOT = "bireme"
MAX_VALUE_CHARS = 256

# Beside letters and digits: what request ids, addresses and types are made of. No space and no "=".
_PLAIN = "-._~:/+@,%"
_IS_PLAIN = re.compile(rf"[A-Za-z0-9{re.escape(_PLAIN)}]*")


def log_value(value: object) -> str:
    """``value`` as one word of a log line. All but letters, digits and ``-._~:/+@,%`` is percent-encoded; what is longer than
    MAX_VALUE_CHARS characters is cut."""
    raw = value
    if not isinstance(raw, bytes):
        text = str(value)
        if len(text) <= MAX_VALUE_CHARS and _IS_PLAIN.fullmatch(text):
            return text  # as nearly all are, of which a request has a dozen
        raw = text.encode("utf-8", "surrogatepass")
    return quote(raw[:MAX_VALUE_CHARS], safe=_PLAIN)[:MAX_VALUE_CHARS]


def log_fields(**fields: object) -> str:
    """``name=value name=value``, in order; each value is one word."""
    return " ".join(f"{name}={log_value(value)}" for name, value in fields.items())


class OneRecord(logging.Filter):
    """Lets every record through, as one that nobody takes for two: control characters are escaped, lines after the first are
    indented, and the request id, which is the client's, is one word."""

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = getattr(record, "request_id", None)
        if isinstance(request_id, str) and not _IS_PLAIN.fullmatch(request_id):
            record.request_id = log_value(request_id)
        message = record.getMessage()
        if not message.isprintable():
            record.msg, record.args = _visible(message), None
        if record.exc_info and record.exc_info[0] and not record.exc_text:
            text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            record.exc_text = "    " + _visible(text)
        return True


def guard_logs(name: str) -> None:
    """Put ``OneRecord`` behind the filters of the handlers that the logger ``name`` has now."""
    for handler in logging.getLogger(name).handlers:
        if not any(isinstance(each, OneRecord) for each in handler.filters):
            handler.addFilter(OneRecord())


def show_logs() -> None:
    """Write what ``bireme`` and its children log to stderr, from INFO on; Ray keeps it in the worker's log and forwards it.

    The root logger belongs to others, who set it as they like (``import paddle`` does), so it is neither asked nor told.
    """
    logger = logging.getLogger(ROOT)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        guard_logs(ROOT)


def _visible(text: str) -> str:
    lines = text.split("\n")
    return "\n    ".join(
        line if line.isprintable() else "".join(c if c.isprintable() or c == "\t" else _escaped(c) for c in line)
        for line in lines
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


class Seldom:
    """For a line of which a loop might write many: true once, and again after ``seconds`` at the earliest."""

    def __init__(self, seconds: float = 60.0, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._last = float("-inf")

    def __call__(self) -> bool:
        now = self._now()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True
