"""What is to end before libraries do when Python ends."""

from __future__ import annotations

import atexit
from collections.abc import Callable


def first_at_exit(function: Callable[[], None]) -> None:
    """Have ``function`` called once when Python ends, before all that was put off until then so far: what is put off last is done
    first. Called again, it moves to the front again."""
    atexit.unregister(function)
    atexit.register(function)
