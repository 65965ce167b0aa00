"""What an engine takes and has to do now, as its subscribers are told it: ``EngineLoad``, from its queue and from the books."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from actors.requests.arrivals import Arrivals
from actors.requests.live_requests import LiveRequests
from cluster.config import EngineConfig
from cluster.outputs import EngineLoad

if TYPE_CHECKING:
    from actors.engine.loop import EngineLoop


class EngineLoads:
    """Reads what others own. Room is counted here rather than in the scheduler, so that what is on its way to it has its place
    already.

    Args:
        config: settings of the engine.
        engine_loop: has the queue as its thread saw it last.
        live, arrivals: the books.
        is_draining: the engine takes nothing any more.
        is_ready_for_grammars: a first grammar takes no longer than any other.
    """

    def __init__(
        self,
        config: EngineConfig,
        engine_loop: EngineLoop,
        live: LiveRequests,
        arrivals: Arrivals,
        is_draining: Callable[[], bool],
        is_ready_for_grammars: Callable[[], bool],
    ) -> None:
        self._config = config
        self._engine_loop = engine_loop
        self._live = live
        self._arrivals = arrivals
        self._is_draining = is_draining
        self._is_ready_for_grammars = is_ready_for_grammars

    def now(self) -> Callable[[str], EngineLoad]:
        """The load as each subscriber is told it: all of them the same, but for those requests of its own that could move."""
        age_s = self._engine_loop.queue_age_s
        config, queue, arrivals = self._config, self._engine_loop.queue, self._arrivals
        arrivals.seen(queue.sampled_at)
        queue_time_counts, queue_time_s = self._engine_loop.queue_times
        coming, coming_priority = arrivals.line(queue.open_places)
        line_length = sum(queue.num_movable.values())
        priorities = [queue.line_priority] * bool(line_length) + [coming_priority] * bool(coming)
        load = EngineLoad(
            free=config.max_num_seqs + config.max_queued_requests - self._live.num_unfinished,
            max_queued=config.max_queued_requests,
            num_ended=self._live.num_ended,
            num_tokens=self._live.num_tokens,
            open_places=0 if self._is_draining() else max(0, queue.open_places - arrivals.num_unexpected),
            sampled_at=time.time() - age_s,
            num_running=queue.num_running,
            num_waiting=queue.num_waiting + len(arrivals),
            waiting_tokens=queue.waiting_tokens + arrivals.num_tokens,
            longest_wait_s=round(max(self._live.wait_s(queue.first_come), arrivals.longest_wait_s), 3),
            kv_tokens=queue.kv_tokens,
            free_kv_tokens=queue.free_kv_tokens,
            num_arrived=arrivals.num_taken,
            num_prompt_tokens=queue.num_prompt_tokens,
            num_cached_prompt_tokens=queue.num_cached_prompt_tokens,
            num_generated_tokens=queue.num_generated_tokens,
            num_preemptions=queue.num_preemptions,
            num_steps=queue.num_steps,
            num_prefill_tokens=queue.num_prefill_tokens,
            queue_time_counts=queue_time_counts,
            queue_time_s=round(queue_time_s, 3),
            line_length=line_length + coming,
            line_priority=min(priorities, default=0),
            ready_for_grammars=self._is_ready_for_grammars(),
            told_after_s=age_s,
            uncomputed_tokens=queue.uncomputed_tokens + arrivals.num_tokens,
        )

        def of(subscriber: str) -> EngineLoad:
            num_movable = queue.num_movable.get(subscriber, 0)
            if not num_movable:
                return load
            oldest_wait_s = self._live.wait_s(queue.oldest.get(subscriber))
            return load._replace(num_movable=num_movable, oldest_wait_s=oldest_wait_s)

        return of
