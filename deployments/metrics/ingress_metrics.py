"""Metrics of requests as clients see them: a few observations a request, none a token."""

from __future__ import annotations

import re
import time
from functools import lru_cache

from cluster.observability.metrics import INGRESS_METRICS
from cluster.outputs import FINISH_ABORT
from cluster.scaling.inputs import IngressLoad
from cluster.scaling.recent import RecentSum
from deployments.metrics.latency_target import LatencyTarget
from deployments.metrics.metrics_export import GatheredCounter, ray_metrics
from deployments.metrics.request_totals import RequestTotals

FINISH_ERROR = "error"
_ARRIVALS_MEMORY_S = 2.0


class IngressMetrics:
    """The metrics of one ingress replica. Every method belongs to its event loop.

    Attributes:
        totals: the same for vLLM's names.

    Args:
        ttft_target_s, tpot_target_s: within which answers are counted as in time; None: not counted.
    """

    def __init__(self, ttft_target_s: float | None = None, tpot_target_s: float | None = None) -> None:
        metrics = ray_metrics(INGRESS_METRICS)
        self.totals = RequestTotals()
        self._gathered = {
            name: GatheredCounter(metrics[name])
            for name in (
                "bireme_requests_received", "bireme_requests",
                "bireme_time_to_first_token_target_requests", "bireme_time_per_output_token_target_requests",
            )
        }  # fmt: skip
        self._received = self._gathered["bireme_requests_received"]
        self._held = metrics["bireme_num_requests_held"]
        self._arrival_rate = metrics["bireme_request_arrivals_per_second"]
        self._signal_age = metrics["bireme_signal_age_seconds"]
        self._ttft, self._tpot = (
            None if target_s is None else LatencyTarget(target_s, self._gathered[name])
            for target_s, name in (
                (ttft_target_s, "bireme_time_to_first_token_target_requests"),
                (tpot_target_s, "bireme_time_per_output_token_target_requests"),
            )
        )
        self._num_arrived = 0
        self._arrivals, self._arrived_tokens = RecentSum(_ARRIVALS_MEMORY_S), RecentSum(_ARRIVALS_MEMORY_S)
        self._requests = self._gathered["bireme_requests"]
        self._attempts = metrics["bireme_request_attempts"]
        self._first_token = metrics["bireme_time_to_first_token_seconds"]
        self._per_token = metrics["bireme_time_per_output_token_seconds"]
        self._whole = metrics["bireme_e2e_request_latency_seconds"]

    def aim(self, ttft_s: float, tpot_s: float) -> None:
        """Count answers against these from now on, where they are counted at all."""
        for target, seconds in ((self._ttft, ttft_s), (self._tpot, tpot_s)):
            if target is not None:
                target.target_s = seconds

    def count_arrivals(self, num_sequences: int, num_prompt_tokens: int) -> None:
        """Sequences were asked for, with prompts of so many tokens together. Each of them ends (``count_end``)."""
        self._num_arrived += num_sequences
        self._arrivals.add(num_sequences)
        self._arrived_tokens.add(num_prompt_tokens)
        self._received.inc(num_sequences)

    def count_refused(self, num_sequences: int, num_prompt_tokens: int) -> None:
        """Such sequences were asked for when there was no room."""
        self.count_arrivals(num_sequences, num_prompt_tokens)
        self.count_end(FINISH_ABORT, num_sequences)

    def count_params(self, max_tokens: int, num_choices: int) -> None:
        """A prompt came, with what its request asks for."""
        self.totals.max_tokens.observe(max_tokens)
        self.totals.num_choices.observe(num_choices)

    def count_longest(self, num_tokens: int) -> None:
        """All choices of a prompt are over, of which the longest has so many tokens."""
        self.totals.longest_generation_tokens.observe(num_tokens)

    def load(self, num_running: int, num_held: int) -> IngressLoad:
        """At this moment, with so many sequences."""
        return IngressLoad(
            sampled_at=time.time(),
            num_arrived=self._num_arrived,
            arrivals_per_s=self._arrivals.per_s,
            prompt_tokens_per_s=self._arrived_tokens.per_s,
            num_running=num_running,
            num_held=num_held,
            ttft=None if self._ttft is None else self._ttft.found,
            tpot=None if self._tpot is None else self._tpot.found,
        )

    def record(self, load: IngressLoad) -> None:
        """Export what changes without an event, and what was counted."""
        self.tell()
        self._held.set(load.num_held)
        self._arrival_rate.set(load.arrivals_per_s)

    def tell(self) -> None:
        """Export what was counted."""
        for counter in self._gathered.values():
            counter.tell()

    def record_age(self, decides: str, age_s: float) -> None:
        """How old the oldest word of an engine was that was decided from: in "routing" here, or in "scaling"."""
        self._signal_age.set(age_s, {"decides": decides})

    def count_attempt(self, outcome: object) -> None:
        """A sequence is submitted again because of ``outcome``, whose type is the cause: EngineLost is ``engine_lost``."""
        self._attempts.inc(1, {"cause": _snake_case(type(outcome).__name__)})

    def count_end(self, finish_reason: str, num_sequences: int = 1) -> None:
        """Sequences are over."""
        self._requests.inc(num_sequences, {"finish_reason": finish_reason})
        self.totals.ended[finish_reason] += num_sequences

    def observe_engine(self, scheduled: float, first_step: float, ended: float) -> None:
        """An engine has answered a sequence; seconds since 1970, the last by this machine's clock."""
        self.totals.prefill.observe(max(0.0, first_step - scheduled))
        self.totals.inference.observe(max(0.0, ended - scheduled))

    def observe(
        self, received: float, first: float | None, last: float, num_tokens: int, num_prompt_tokens: int = 0
    ) -> None:
        """A sequence was answered. Times are of ``time.monotonic``; ``first`` is None if it had no token."""
        totals = self.totals
        self._whole.observe(last - received)
        totals.whole.observe(last - received)
        totals.prompt_tokens.observe(num_prompt_tokens)
        totals.generation_tokens.observe(num_tokens)
        if first is not None:
            self._first_token.observe(first - received)
            totals.first_token.observe(first - received)
            totals.decode.observe(last - first)
            if self._ttft is not None:
                self._ttft.count(first - received)
            if num_tokens > 1:
                per_token_s = (last - first) / (num_tokens - 1)
                self._per_token.observe(per_token_s)
                totals.mean_between_tokens.observe(per_token_s)
                if self._tpot is not None:
                    self._tpot.count(per_token_s)

    def count_without_token(self, waited_s: float, failed: bool) -> None:
        """A sequence ended before its first token came: it failed, or its client left."""
        if self._ttft is not None:
            self._ttft.count_missing(waited_s, failed)


class SequenceTimes:
    """When one sequence's tokens came. Any thread may make one; the rest belongs to the event loop.

    Attributes:
        received: when its request came in.
        is_counted: its arrival is, so that its end is, too.
        ended: how it ended; empty before.
        first, last: when the first token and the last delta came; ``first`` is None before.

    Args:
        num_prompt_tokens: of its prompt.
    """

    __slots__ = ("_metrics", "_num_prompt_tokens", "ended", "first", "is_counted", "last", "received")

    def __init__(self, metrics: IngressMetrics, received: float, num_prompt_tokens: int = 0) -> None:
        self.received = received
        self.is_counted = False
        self._metrics = metrics
        self._num_prompt_tokens = num_prompt_tokens
        self.first: float | None = None
        self.last = received
        self.ended = ""

    def arrived(self, has_tokens: bool) -> None:
        """A delta came."""
        now = time.monotonic()
        if has_tokens:
            if self.first is None:
                self.first = now
            else:
                self._metrics.totals.between_tokens.observe(now - self.last)
        self.last = now

    def finished(self, finish_reason: str, num_tokens: int) -> None:
        """The sequence is answered; what comes after is not counted."""
        if not self.ended:
            self.ended = finish_reason
            self._metrics.count_end(finish_reason)
            self._metrics.observe(self.received, self.first, self.last, num_tokens, self._num_prompt_tokens)

    def given_up(self, failed: bool) -> None:
        """The request is over; a sequence that is not, failed, was refused or was left by its client."""
        if self.is_counted and not self.ended:
            self.ended = FINISH_ERROR if failed else FINISH_ABORT
            self._metrics.count_end(self.ended)
            if self.first is None:
                self._metrics.count_without_token(time.monotonic() - self.received, failed)


@lru_cache(maxsize=32)
def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
