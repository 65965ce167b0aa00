"""Spares a process that has started the garbage collector's walks through everything it loaded.

Ray has all its processes of a node collect garbage at once when resources run short, as after a death while a successor is being
placed. A collection holds the interpreter lock, and over the objects of Paddle's or Serve's modules it takes 0.1 to 0.3 s of a
core: with two busy cores and a dozen processes every stream of the node stood still for 1 to 1.7 s.
"""

from __future__ import annotations

import gc


def settle_heap() -> None:
    """Collect once more, then leave what is there now out of every later collection. Call it when all is loaded."""
    gc.collect()
    gc.freeze()
