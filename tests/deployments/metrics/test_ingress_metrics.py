"""What an ingress knows of its load: arrivals, and answers within their targets."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from cluster.scaling.inputs import TargetCount
from deployments.metrics.ingress_metrics import IngressMetrics, SequenceTimes
from deployments.metrics.metrics_export import GatheredCounter


def answered(metrics: IngressMetrics, first_s: float, per_token_s: float, num_tokens: int = 5) -> None:
    metrics.count_arrivals(1, 7)
    times = SequenceTimes(metrics, 100.0, num_prompt_tokens=7)
    times.first = 100.0 + first_s
    times.last = times.first + per_token_s * (num_tokens - 1)
    times.finished("length", num_tokens)


def asked(metrics: IngressMetrics, received: float) -> SequenceTimes:
    times = SequenceTimes(metrics, received)
    times.is_counted = True
    return times


def test_answers_are_counted_by_whether_they_were_within_their_targets():
    metrics = IngressMetrics(ttft_target_s=1.0, tpot_target_s=0.1)
    found = metrics.load(0, 0)
    assert found.ttft == found.tpot == TargetCount(0, 0, None)
    for first_s, per_token_s in ((0.5, 0.05), (1.0, 0.2), (2.0, 0.05), (0.2, 0.05)):
        answered(metrics, first_s, per_token_s)
    answered(metrics, 0.5, 0.0, num_tokens=1)  # has no time between tokens
    found = metrics.load(3, 2)
    assert found.ttft[:2] == (4, 1) and found.ttft.recent_share == pytest.approx(0.8, abs=0.01)
    assert found.tpot[:2] == (3, 1) and found.tpot.recent_share == pytest.approx(0.75, abs=0.01)
    assert (found.num_arrived, found.num_running, found.num_held) == (5, 3, 2)
    assert found.arrivals_per_s == pytest.approx(2.5, rel=0.2)
    assert found.prompt_tokens_per_s == pytest.approx(17.5, rel=0.2)
    assert abs(found.sampled_at - time.time()) < 5


def test_an_answer_that_never_began_missed_its_target_unless_its_client_left_before():
    metrics, now = IngressMetrics(ttft_target_s=10.0), time.monotonic()
    asked(metrics, now).given_up(failed=False)
    assert metrics.load(0, 0).ttft[:2] == (0, 0)
    asked(metrics, now - 20).given_up(failed=False)
    asked(metrics, now).given_up(failed=True)
    begun = asked(metrics, now)
    begun.arrived(True)
    begun.given_up(failed=False)
    assert metrics.load(0, 0).ttft[:2] == (0, 2)


def test_without_targets_nothing_is_counted_against_them():
    metrics = IngressMetrics()
    answered(metrics, 1.0, 1.0)
    assert metrics.load(0, 0).ttft is metrics.load(0, 0).tpot is None


def test_what_is_counted_is_told_now_and_then_and_each_of_it_once():
    told: list[tuple[float, dict[str, str]]] = []
    counter = GatheredCounter(SimpleNamespace(inc=lambda value, tags: told.append((value, tags))))  # type: ignore[arg-type]
    counter.tell()
    for _ in range(3):
        counter.inc()
    counter.inc(2, {"met": "yes"})
    assert not told
    counter.tell()
    counter.tell()
    assert told == [(3, {}), (2, {"met": "yes"})]
