"""Lines for the person at the terminal: Ray forwards what its workers write to stderr to where ``serve run`` runs."""

from __future__ import annotations

import logging
import sys

from cluster.errors import CANNOT_SERVE


def terminal_logger() -> logging.Logger:
    """A logger of plain lines. Serve's own log is full of other things and may be turned off at the terminal."""
    logger = logging.getLogger("bireme.terminal")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def cannot_start(reason: str) -> RuntimeError:
    """Say at the terminal, in one line, why this replica cannot start; the error to raise.

    Serve wraps whatever a constructor raises in tracebacks of several processes, in which the reason is hard to find.
    """
    message = CANNOT_SERVE + reason
    terminal_logger().error("ERROR: %s", message)
    return RuntimeError(message)
