"""The watch over an engine's thread: one that hangs in a step is not one to go on with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.errors import EngineDeadError
from cluster.process.silence_clock import TICK_S, SilenceClock

if TYPE_CHECKING:
    from actors.engine.loop import EngineLoop

logger = logging.getLogger("bireme.runner")

# A step with prefill may take this many times ``hang_timeout_s``: a chunk of prompt is hundreds of tokens of work.
PREFILL_FACTOR = 10


class EngineWatch:
    """Belongs to one event loop.

    Args:
        engine_id: name in logs.
        engine_loop: whose steps are watched.
        hang_timeout_s: how long one may take.
    """

    def __init__(self, engine_id: str, engine_loop: EngineLoop, hang_timeout_s: float) -> None:
        self._engine_id = engine_id
        self._engine_loop = engine_loop
        self._hang_timeout_s = hang_timeout_s
        self._clock = SilenceClock()
        self._watching: asyncio.Task[None] | None = None

    def begin(self, at_each_tick: Callable[[], None], hangs: Callable[[BaseException], None]) -> None:
        """Watch until ``close``.

        Args:
            at_each_tick: called every TICK_S seconds while the engine is well.
            hangs: called once when one step has taken longer than it may.
        """
        self._watching = asyncio.get_running_loop().create_task(self._watch(at_each_tick, hangs))

    def close(self) -> None:
        """Watch no more."""
        if self._watching is not None:
            self._watching.cancel()

    def is_well(self) -> bool:
        """It did not hang when it was looked at last."""
        factor = PREFILL_FACTOR if self._engine_loop.computes_prefill else 1
        return self._clock.silent_s <= self._hang_timeout_s * factor

    def check(self) -> None:
        """Raise EngineDeadError when the loop died or hangs in a step."""
        if self._engine_loop.error is not None:
            raise EngineDeadError(f"the engine loop died: {self._engine_loop.error!r}")
        if not self.is_well():
            raise EngineDeadError(f"the engine hangs: one step has taken {self._engine_loop.seconds_in_step():.0f} s")

    async def _watch(self, at_each_tick: Callable[[], None], hangs: Callable[[BaseException], None]) -> None:
        steps = -1
        while self.is_well():
            await asyncio.sleep(TICK_S)
            self._clock.tick()
            at_each_tick()
            if self._engine_loop.num_steps != steps or not self._engine_loop.seconds_in_step():
                steps = self._engine_loop.num_steps
                self._clock.heard()
        logger.error("%s hangs: one step has taken %.1f s", self._engine_id, self._engine_loop.seconds_in_step())
        hangs(EngineDeadError("one step took longer than hang_timeout_s allows"))
