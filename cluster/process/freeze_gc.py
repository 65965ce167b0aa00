"""Spares a process that has started the garbage collector's walks through everything it loaded.

Ray has all its processes of a node collect garbage at once when resources run short, as after a death while a successor is being
placed. A collection holds the interpreter lock, and over the objects of Paddle's or Serve's modules it takes 0.1 s of an idle
core; with two busy cores and a dozen processes the one whose pauses were looked into stood still for 1 to 1.7 s. Serve does
this in its replicas and proxies (RAY_SERVE_FREEZE_GC_ON_STARTUP); actors of our own do it themselves.
"""

from __future__ import annotations

import gc


def freeze_gc() -> None:
    """Collect once more, then leave what is there now out of every later collection. Call it when all is loaded."""
    gc.collect()
    gc.freeze()
