"""The thread that owns an engine: nothing else touches engine state, others put messages into its inbox.

One pass: take the inbox, run one engine step, publish what it says in one call. An idle loop sleeps until a message
arrives; it first saves what is in flight, so the last output never waits for the next request, and then checks the engine's
accounting: an engine that leaked is not one to go on with.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from actors.engine.engine import Engine
from actors.scheduling.queue_state import QueueState, queue_state
from cluster.errors import BiremeError, EngineDeadError
from cluster.outputs import StepOutput
from cluster.request import EngineRequest

logger = logging.getLogger("bireme.engine")

# Idle for this long, the engine is checked, once after it had work. Who asks again at once should not wait for that.
_IDLE_CHECK_DELAY_S = 0.1
# While requests wait, their queue is looked through so often; without any it costs nothing.
_QUEUE_LOOK_S = 0.05
# What was told during a step that takes longer is of before it, so that others are told again at its end.
_LONG_STEP_S = 0.25


class _Answer(Protocol):
    """Where a message's outcome goes; as a ``Future``."""

    def set_running_or_notify_cancel(self) -> bool: ...

    def set_result(self, result: Any) -> None: ...

    def set_exception(self, exception: BaseException) -> None: ...


class _OnlyFailure:
    """For a message whose failure alone is news, without a future's locks."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self.set_exception = failed

    def set_running_or_notify_cancel(self) -> bool:
        return True

    def set_result(self, result: Any) -> None:
        pass


class EngineLoop:
    """Runs ``engine`` on its own thread.

    Attributes:
        queue: the queue after a late step; any thread may read it.

    Args:
        engine: no other thread may touch it once the loop has started.
        publish: called on the loop's thread with what a step says.
        on_queue: called on the loop's thread when places open or close, or other numbers of a subscriber's requests wait; and
            after a step that took long.
        on_death: called once, on the loop's thread, when a step failed; the loop is over then.
    """

    def __init__(
        self,
        engine: Engine,
        publish: Callable[[StepOutput], None],
        on_death: Callable[[BaseException], None],
        on_queue: Callable[[], None] = lambda: None,
    ) -> None:
        self.error: BaseException | None = None
        self.num_steps = 0
        self.queue = queue_state(engine.scheduler, engine.clock.now())
        self._engine = engine
        self._clock = engine.clock
        self._publish = publish
        self._on_queue = on_queue
        self._on_death = on_death
        self._inbox: collections.deque[tuple[Callable[[Engine], Any], _Answer]] = collections.deque()
        self._wake = threading.Condition()
        self._closing = False
        self._failure: BaseException | None = None
        self._busy_since: float | None = None
        self._is_idle = False
        self._is_checked = False  # since it had work last
        self._idle_until = 0.0
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)
        self._thread.start()

    def submit(self, request: EngineRequest) -> Future:
        """Queue a request; the future fails with what ``Engine.add_request`` raises."""
        return self.call(lambda engine: engine.add_request(request))

    def abort(self, request_id: str, attempt: int) -> Future:
        """End a request; its last delta (finish reason "abort") is published like any other."""

        def run(engine: Engine) -> None:
            delta = engine.abort(request_id, attempt)
            if delta is not None:
                self._publish(StepOutput([delta]))

        return self.call(run)

    def call(self, function: Callable[[Engine], Any]) -> Future:
        """Run ``function(engine)`` between two steps."""
        future: Future = Future()
        self._send(function, future)
        return future

    def post(self, function: Callable[[Engine], Any], failed: Callable[[BaseException], None]) -> None:
        """As ``call``, where nobody waits for the answer: ``failed`` is called with what was raised, on any thread."""
        self._send(function, _OnlyFailure(failed))

    def _send(self, function: Callable[[Engine], Any], answer: _Answer) -> None:
        with self._wake:
            is_running = self.error is None and not self._closing
            if is_running:
                self._inbox.append((function, answer))
                self._wake.notify()
        if not is_running:
            answer.set_exception(self._not_running())

    def _not_running(self) -> EngineDeadError:
        return EngineDeadError(f"the engine is not running: {self.error or 'it was shut down'}")

    def fail(self, error: BaseException) -> None:
        """The engine must not go on: the loop ends as if its next step had failed with ``error``. Any thread may call it."""
        with self._wake:
            self._failure = self._failure or error
            self._wake.notify()

    def seconds_in_step(self) -> float:
        """How long the present step has been running; 0 when idle. A step that never ends is a hang."""
        since = self._busy_since
        return 0.0 if since is None else self._clock.now() - since

    @property
    def queue_age_s(self) -> float:
        """How long ago ``queue`` was so; 0 while there is nothing to do, since only this thread changes it. To be asked first."""
        return 0.0 if self._is_idle else max(0.0, self._clock.now() - max(self.queue.sampled_at, self._idle_until))

    @property
    def computes_prefill(self) -> bool:
        """The present step computes prompts, so it may take many times as long as one that only decodes."""
        return self._engine.computes_prefill

    @property
    def queue_times(self) -> tuple[tuple[int, ...], float]:
        """``QueueTimes.found`` by now."""
        return self._engine.queue_times.found

    def take_queue_time(self, request_id: str) -> float | None:
        """Seconds that a request which has a token waited for its slot, once."""
        return self._engine.queue_times.take(request_id)

    def close(self) -> None:
        """End the thread and give the engine's device resources back. Requests still inside are dropped."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._take_inbox():
                self._busy_since = began = self._clock.now()
                self._is_checked = self._is_checked and not self._engine.has_work()
                output = self._engine.step()
                self._busy_since = None
                self.num_steps += 1
                if output:
                    self._publish(output)
                if self._queue_differs() or self._clock.now() - began >= _LONG_STEP_S:
                    self._on_queue()
                # Requests that arrive while the device computes are in the next plan if it is made late enough.
                while (wait_s := self._engine.seconds_to_wait()) > 0:
                    self._clock.sleep(wait_s)
            self._engine.close()
        except BaseException as error:
            logger.exception("the engine loop died")
            with self._wake:
                self.error = error
            self._on_death(error)
        finally:
            self._busy_since = None
            for _, answer in self._inbox:
                if answer.set_running_or_notify_cancel():
                    answer.set_exception(self._not_running())
            self._inbox.clear()

    def _queue_differs(self) -> bool:
        """Look at it, unless that was lately; whether others act otherwise on what they see now."""
        scheduler, now = self._engine.scheduler, self._clock.now()
        if scheduler.waiting and self.queue.num_waiting and now - self.queue.sampled_at < _QUEUE_LOOK_S:
            return False
        before, self.queue = self.queue, queue_state(scheduler, now)
        return _matters(before) != _matters(self.queue)

    def _is_idle_for(self, seconds: float | None) -> bool:
        """Wait while there is nothing to do, at most so long; True if there still is nothing."""
        with self._wake:
            is_wanted = lambda: self._inbox or self._closing or self._failure or self._engine.has_work()  # noqa: E731
            self._is_idle = not is_wanted()
            try:
                return not self._wake.wait_for(is_wanted, timeout=seconds)
            finally:
                if self._is_idle:
                    self._idle_until = self._clock.now()
                self._is_idle = False

    def _take_inbox(self) -> bool:
        """Run what others asked for; wait for it while there is nothing to compute. False when closing."""
        if self._is_idle_for(_IDLE_CHECK_DELAY_S):
            if not self._is_checked:
                self._engine.check_integrity()
                self._is_checked = True
            self._is_idle_for(None)
        with self._wake:
            if self._failure is not None and not self._closing:
                raise self._failure
            messages, self._inbox = self._inbox, collections.deque()
            closing = self._closing
        for function, answer in messages:
            if not answer.set_running_or_notify_cancel():
                continue  # whoever asked has gone
            try:
                answer.set_result(function(self._engine))
            except BiremeError as error:
                answer.set_exception(error)
            except BaseException as error:
                answer.set_exception(EngineDeadError(f"the engine failed: {error!r}"))
                raise
        return not closing


def _matters(queue: QueueState) -> tuple[bool, frozenset[tuple[str, int]]]:
    """Whether there are places, and for whom how many requests wait: those of others are not to be overtaken either."""
    return queue.open_places > 0, frozenset(queue.num_movable.items())
