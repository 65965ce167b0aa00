"""An event loop whose clock jumps: what takes seconds is tested in none, and to the moment."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class JumpingLoop(asyncio.SelectorEventLoop):
    """Never waits: where it would, its clock is later."""

    def __init__(self) -> None:
        super().__init__(_Jumps(self))
        self.now = 1000.0

    def time(self) -> float:
        return self.now


class _Jumps(selectors.DefaultSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._of = loop

    def select(self, timeout: float | None = None) -> Any:
        self._of.now += timeout or 0.0
        return super().select(0)
