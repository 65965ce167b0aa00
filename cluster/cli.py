"""The ``bireme`` commands that talk to a running server."""

from __future__ import annotations

from cluster.terminal import chat, complete, run_batch, status, timeline, top, trace
from cluster.terminal.app import app, console, errors

__all__ = ["app", "chat", "complete", "console", "errors", "run_batch", "status", "timeline", "top", "trace"]
