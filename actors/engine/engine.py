"""The engine in one plain process, without Ray: a scheduler and an executor, one ``step`` at a time.

Tests and benchmarks drive it directly; the engine loop drives it inside a runner actor. What computes is given to it: the model
runner on a device (``actors.engine.loading``) or a simulation (``actors.engine.simulated``). Loads no Paddle.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from actors.engine.clock import Clock
from actors.engine.stats.queue_times import QueueTimes
from actors.engine.stats.step_clock import StepClock
from actors.engine.stats.timeline import Span, StepTimeline
from actors.engine.stats.totals import StepTotals
from actors.runner.step_executor import StepExecutor
from actors.scheduling.scheduler import Scheduler
from actors.scheduling.step_plan import StepPlan
from actors.scheduling.turns_to_move import TurnsToMove
from cluster.errors import InvalidRequestError
from cluster.outputs import EngineInfo, StepOutput, TokenDelta
from cluster.request import EngineRequest, RequestKey
from cluster.scaling.balance import is_worth_moving

if TYPE_CHECKING:
    from actors.structured_output.grammars import CompiledGrammar, Grammars


class Engine:
    """One copy of a model that generates for many requests at once.

    Attributes:
        computes_prefill: the step launched or saved now has slots with several tokens, so it may take long.
        timeline: the recording under way, None mostly.

    Args:
        scheduler: of the executor's slots and blocks.
        executor: what computes the steps.
        info: constants that clients of the engine see.
        clock: whose time stamps and waits are of.
        overlap: launch step N before step N-1 is saved.
        record: a list that receives every plan, so that a run can be replayed.
        grammars: compiles those of requests; None where none can be followed.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: StepExecutor,
        info: EngineInfo,
        clock: Clock,
        *,
        overlap: bool = True,
        record: list[StepPlan] | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.info = info
        self.overlap = overlap
        self.record = record
        self.grammars = grammars
        self.timeline: StepTimeline | None = None
        self.totals = StepTotals()
        self.queue_times = QueueTimes()
        self.computes_prefill = self._launched_prefill = False
        self.clock = clock
        self._turns_to_move = TurnsToMove()
        self._step_clock = StepClock()

    def add_request(self, request: EngineRequest) -> list[int]:
        """Queue a request; raises InvalidRequestError or OverloadedError, and returns its tokens (see ``Scheduler.add_request``).

        A grammar that nobody has compiled yet (``compile_grammar``) is compiled now.
        """
        vocab_size = self.info.vocab_size
        check_token_ids("prompt", request.prompt_token_ids, vocab_size)
        check_token_ids("logit_bias", request.params.logit_bias, vocab_size)
        check_token_ids("stop_token_ids", request.params.stop_token_ids, vocab_size)
        self.compile_grammar(request)
        token_ids = self.scheduler.add_request(request, time.time())
        self.queue_times.came(request.request_id, self.clock.now())
        return token_ids

    def compile_grammar(self, request: EngineRequest) -> CompiledGrammar | None:
        """Make what decides on a request's tokens one by one. Returns what the caller holds until the request has ended, so that
        its grammar stays compiled; None without one. Any thread may call it.

        Raises:
            InvalidRequestError: the grammar is not valid, or no grammar and no budget can be followed here.
        """
        params = request.params
        if not params.is_masked:
            return None
        if self.grammars is None:
            param = "thinking_token_budget" if params.grammar is None else params.grammar.param
            raise InvalidRequestError(
                f"{param}: this engine ({self.executor.device_name}) follows no grammar and no budget", param
            )
        return self.grammars.prepare(params)

    @property
    def is_ready_for_grammars(self) -> bool:
        """Whether a first grammar takes no longer than any other."""
        return self.grammars is None or self.grammars.is_ready

    def get_ready_for_grammars(self) -> None:
        """Load what the first grammar needs. Not for the engine's thread; errors as ``Grammars.get_ready``."""
        if self.grammars is not None:
            self.grammars.get_ready()

    def abort(self, request_id: str, attempt: int = 0) -> TokenDelta | None:
        """End a request; its blocks are free at once. None if it is not here."""
        self.queue_times.gone(request_id)
        return self.scheduler.abort(request_id, attempt)

    def has_work(self) -> bool:
        """A step can be launched, or one in flight is still to be saved."""
        return self.scheduler.has_unfinished() or self.executor.has_in_flight()

    def step(self) -> StepOutput:
        """Schedule, launch, save: one pass of the loop. With overlap, what is saved is the step before."""
        started = self.clock.now()
        self.totals.begin(started)
        plan = self.scheduler.schedule()
        planned = self.clock.now()
        for insert in plan.inserts if plan is not None else ():
            self.queue_times.begun(insert.request_id, planned)
        prefills = plan is not None and plan.has_prefill
        # With overlap this pass also waits for the step before.
        self.computes_prefill, self._launched_prefill = prefills or self._launched_prefill, prefills
        if plan is not None and self.record is not None:
            self.record.append(plan)
        if self.overlap:
            result = self.executor.execute_model_overlap(plan)
        else:
            result = None if plan is None else self.executor.execute_model(plan)
        output = StepOutput()
        saved = self.executor.last_saved
        if result is not None and saved is not None:
            device_seconds = saved.device_end - saved.device_start
            self.totals.saved(device_seconds, saved.launched_at, self._step_clock.ended_at)
            self._step_clock.saved(
                saved.num_tokens,
                saved.launched_at,
                saved.waited_from,
                saved.waited_at,
                device_seconds,
                max(0.0, saved.forward_end - saved.device_start),
            )
            output = self.scheduler.update(result)
        launched = self.executor.step_in_flight
        if plan is None:
            self._step_clock.launched_nothing()
        elif launched is not None:
            self._step_clock.launched(started, launched.launched_at)
        self.totals.end(self.clock.now(), self.has_work())
        if self.timeline is not None:
            self.timeline.add(
                Span(started, self.clock.now()),
                Span(started, planned),
                None if plan is None else plan.step,
                None if result is None else result.step,
                saved,
            )
            if self.timeline.full.done():
                self.stop_timeline(self.timeline)
        return output

    def start_timeline(self, num_steps: int) -> StepTimeline:
        """Record the next steps; the recording ends by itself when it is full. Waits for the device.

        Raises:
            InvalidRequestError: ``num_steps`` is out of range, or another recording is under way.
        """
        if self.timeline is not None:
            raise InvalidRequestError("a timeline is being recorded already; wait until it is full", "steps")
        timeline = StepTimeline(num_steps, self.executor.device_name)
        self.executor.align_clocks()
        self.timeline = timeline
        return timeline

    def stop_timeline(self, timeline: StepTimeline) -> None:
        """End ``timeline`` unless it has ended; another recording may have begun since."""
        if self.timeline is timeline:
            self.timeline = None
            self.executor.free_clocks()

    def seconds_to_wait(self) -> float:
        """How long the next ``step`` may wait for arrivals without the device running dry; 0 when it must not wait. To be asked
        again behind that wait: by then it may be known that the step in flight takes longer."""
        in_flight = self.executor.step_in_flight
        if in_flight is None or 0 < in_flight.device_start < in_flight.device_end:  # it is over
            return 0.0
        return self._step_clock.seconds_to_wait(
            self.clock.now(), in_flight.num_tokens, in_flight.launched_at, self.executor.forward_left()
        )

    def requests_to_move(
        self, subscriber: str, count: int, num_tokens: int, waited_s: Mapping[RequestKey, float], masked: bool = True
    ) -> list[RequestKey]:
        """Waiting requests that ``subscriber`` had better bring elsewhere, in the order of service. Those of other
        subscribers that come first have their places first (``TurnsToMove``).

        Args:
            count, num_tokens: for so many there are places and memory elsewhere.
            waited_s: how long each request has waited.
            masked: those under a grammar or a budget are among them.
        """
        scheduler, left = self.scheduler, num_tokens
        chosen: list[RequestKey] = []
        first_of_others: list[RequestKey] = []
        for sequence in scheduler.waiting:
            if len(chosen) + len(first_of_others) == count:
                break
            key, size = sequence.key, len(sequence.token_ids)
            if not sequence.is_movable or size > left or (sequence.request.params.is_masked and not masked):
                continue
            num_cached = scheduler.num_cached_tokens(sequence)  # hashes the prompt, the first time
            if not is_worth_moving(waited_s.get(key, 0.0), num_cached, self.tokens_per_s):
                continue
            if sequence.request.subscriber == subscriber:
                chosen.append(key)
            elif self._turns_to_move.is_left_to(key, self.clock.now()):
                first_of_others.append(key)
            else:
                continue
            left -= size
        self._turns_to_move.keep(sequence.key for sequence in scheduler.waiting)
        return chosen

    @property
    def tokens_per_s(self) -> float:
        """Tokens of prompts and answers computed in a second of the device's time, on average; 0 if unknown."""
        scheduler, seconds = self.scheduler, self.totals.device
        computed = scheduler.num_prefill_tokens + scheduler.num_generated_tokens
        return computed / seconds if seconds else 0.0

    def figures(self) -> dict[str, Any]:
        """Where the engine computes, its time so far, and what holds the device's memory (a GPU's, in bytes)."""
        return {
            **self.executor.figures(),
            **self.totals.figures(),
            "host_lead_seconds": self._step_clock.margin_s,
        }

    def generate(self, requests: Iterable[EngineRequest]) -> dict[str, list[TokenDelta]]:
        """Run these requests, and those queued before, to their end; deltas by request id."""
        deltas: dict[str, list[TokenDelta]] = {}
        for request in requests:
            self.add_request(request)
            deltas[request.request_id] = []
        while self.has_work():
            for delta in self.step():
                deltas.setdefault(delta.request_id, []).append(delta)
        return deltas

    def check_integrity(self) -> None:
        """Raise unless nothing has leaked; for use between steps."""
        self.scheduler.check_integrity()
        if not self.has_work():
            self.executor.check_idle()

    def close(self) -> None:
        self.executor.close()


def check_token_ids(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    """Raise InvalidRequestError naming the first id outside the vocabulary."""
    for token in token_ids:
        if not 0 <= token < vocab_size:
            raise InvalidRequestError(
                f"{name}: token id {token} is outside the vocabulary, 0 to {vocab_size - 1}", name
            )
