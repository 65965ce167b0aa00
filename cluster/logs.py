"""The project's own log lines in processes where nobody else shows them."""

from __future__ import annotations

import logging
import sys

ROOT = "bireme"


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
