"""What others may know of an engine's queue without touching the engine: a snapshot between two steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from actors.scheduling.scheduler import Scheduler
from cluster.request import RequestKey


@dataclass(frozen=True, slots=True)
class QueueState:
    """Immutable, so that any thread may read it.

    Attributes:
        open_places: requests that would begin at once.
        num_movable: by subscriber, requests that wait, have not begun and for which no place was kept here.
        line_priority: of the most urgent of all of them; 0 if there are none.
        oldest: by subscriber, the key of the first of these in the order of service.
        sampled_at: of the engine's clock.
        num_running, num_waiting: requests with a slot and without.
        waiting_tokens: of the prompts, and answers so far, of those that wait.
        uncomputed_tokens: these, and what is left of the prompts that are being computed.
        first_come: of all that wait, the key of the one that came first; None if nobody waits.
        kv_tokens, free_kv_tokens: that the cache holds, and of these those that nobody owns.
        num_prompt_tokens, num_cached_prompt_tokens, num_generated_tokens, num_preemptions, num_steps, num_prefill_tokens: since
            the start.
    """

    open_places: int = 0
    num_movable: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    oldest: Mapping[str, RequestKey] = field(default_factory=lambda: MappingProxyType({}))
    line_priority: int = 0
    sampled_at: float = 0.0
    num_running: int = 0
    num_waiting: int = 0
    waiting_tokens: int = 0
    uncomputed_tokens: int = 0
    first_come: RequestKey | None = None
    kv_tokens: int = 0
    free_kv_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_steps: int = 0
    num_prefill_tokens: int = 0


def queue_state(scheduler: Scheduler, now: float = 0.0) -> QueueState:
    """Of ``scheduler``, when a step has been planned: whoever still waits found no place in it."""
    num_movable: Counter[str] = Counter()
    oldest: dict[str, RequestKey] = {}
    waiting_tokens, first, line_priority = 0, None, 0
    for sequence in scheduler.waiting:
        waiting_tokens += len(sequence.token_ids)
        if first is None or sequence.seniority < first.seniority:
            first = sequence
        if sequence.is_movable:
            subscriber, priority = sequence.request.subscriber, sequence.request.priority
            line_priority = min(line_priority, priority) if num_movable else priority
            num_movable[subscriber] += 1
            oldest.setdefault(subscriber, sequence.key)
    kv_cache = scheduler.kv_cache
    return QueueState(
        open_places=scheduler.num_open_places,
        num_movable=MappingProxyType(num_movable),
        oldest=MappingProxyType(oldest),
        line_priority=line_priority,
        sampled_at=now,
        num_running=len(scheduler.running),
        num_waiting=len(scheduler.waiting),
        waiting_tokens=waiting_tokens,
        uncomputed_tokens=waiting_tokens + scheduler.num_uncomputed_prompt_tokens,
        first_come=None if first is None else first.key,
        kv_tokens=kv_cache.num_blocks * kv_cache.block_size,
        free_kv_tokens=kv_cache.num_available * kv_cache.block_size,
        num_prompt_tokens=scheduler.num_prompt_tokens,
        num_cached_prompt_tokens=scheduler.num_cached_prompt_tokens,
        num_generated_tokens=scheduler.num_generated_tokens,
        num_preemptions=scheduler.num_preemptions,
        num_steps=scheduler.num_steps,
        num_prefill_tokens=scheduler.num_prefill_tokens,
    )
