"""The ``bireme`` commands that talk to a running server."""

from __future__ import annotations

from cluster.terminal import bench, chat, complete, run_batch, status, timeline, top, trace
from cluster.terminal.app import app, console, errors

__all__ = ["app", "bench", "chat", "complete", "console", "errors", "run_batch", "status", "timeline", "top", "trace"]
