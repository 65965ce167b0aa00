"""The ways of the newest requests are kept, as many as their sequences allow."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.tenant import NOBODY, tenant_of
from deployments.answers.request_traces import RequestTraces
from deployments.metrics.ingress_metrics import IngressMetrics, SequenceTimes

STRANGER = tenant_of(b"key", b"secret", True, True)


def choices(num_sequences: int) -> Any:
    metrics = IngressMetrics()
    return [
        SimpleNamespace(entry=SimpleNamespace(request_id=uuid.uuid4().hex, marks={}), times=SequenceTimes(metrics, 0.0))
        for _ in range(num_sequences)
    ]


def test_of_usual_requests_far_more_than_a_thousand_are_kept():
    traces = RequestTraces()
    usual = choices(1)
    for number in range(20_000):
        traces.begin((f"cmpl-{number}", "", f"trace-{number}"), NOBODY, usual)
    assert len(traces) == 16_384
    assert all(traces.of(f"{kind}-{number}", NOBODY.id) for kind in ("cmpl", "trace") for number in (19_999, 3_616))
    assert not any(traces.of(f"{kind}-3615", NOBODY.id) for kind in ("cmpl", "trace"))


@pytest.mark.parametrize(
    ("sizes", "kept"), [([1, 1, 1, 1], 4), ([3, 1, 1], 2), ([1, 3, 2], 1), ([2, 2, 9], 1), ([9, 1], 1)]
)
def test_what_is_kept_is_bounded_by_sequences_and_the_newest_request_is_whole(sizes, kept):
    traces = RequestTraces(most_sequences=4)
    for number, size in enumerate(sizes):
        traces.begin((f"r{number}",), NOBODY, choices(size))
    found = [traces.of(f"r{number}", NOBODY.id) for number in range(len(sizes))]
    assert [way is not None for way in found] == [number >= len(sizes) - kept for number in range(len(sizes))]
    assert [len(way["sequences"]) for way in found if way is not None] == sizes[-kept:]


def test_a_name_that_is_used_again_is_of_the_newer_request_and_stays_with_it():
    traces = RequestTraces(most_sequences=3)
    for tenant in (NOBODY, STRANGER, NOBODY):
        traces.begin(("again",), tenant, choices(1))
    newest = traces.of("again", NOBODY.id)
    traces.begin(("other",), NOBODY, choices(1))  # the first one goes
    assert traces.of("again", NOBODY.id) == newest
    traces.begin(("other",), NOBODY, choices(1))
    assert traces.of("again", STRANGER.id) is None and traces.of("again", NOBODY.id) == newest
    traces.begin(("another",), NOBODY, choices(1))
    assert traces.of("again", NOBODY.id) is None
    assert set(traces._named) == {(NOBODY.id, "other"), (NOBODY.id, "another")}
