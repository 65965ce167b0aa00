"""Sums over about the last seconds."""

from __future__ import annotations

import pytest

from cluster.scaling.recent import RecentSum


def test_a_steady_stream_has_its_rate_and_what_is_long_ago_counts_nothing():
    now = [0.0]
    recent = RecentSum(5.0, lambda: now[0])
    assert recent.value == recent.per_s == 0
    for _ in range(600):
        now[0] += 0.1
        recent.add(3)
    assert recent.per_s == pytest.approx(30, rel=0.02)
    now[0] += 5.0
    assert recent.per_s == pytest.approx(30 * 0.368, rel=0.03)
    now[0] += 100.0
    assert recent.value < 1e-4
