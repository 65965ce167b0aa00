"""The line of the configuration comes first; what a person changes counts until the line is another."""

from __future__ import annotations

import pytest

from cluster.config import Autoscaling
from cluster.errors import BiremeError
from deployments.autoscaling.live_settings import changed, changes_entry, in_force

LINE = Autoscaling(max_replicas=4)


def test_changes_count_until_the_line_is_another():
    wanted = changed(LINE, {"slo_ttft_s": 1.5, "max_replicas": 6}, LINE)
    entry = changes_entry(LINE, wanted)
    assert in_force(LINE, None) == LINE
    assert in_force(LINE, entry) == wanted
    assert (wanted.slo_ttft_s, wanted.max_replicas, wanted.min_replicas) == (1.5, 6, 1)
    other = Autoscaling(max_replicas=5)
    assert in_force(other, entry) == other
    assert in_force(LINE, changes_entry(LINE, LINE)) == LINE


@pytest.mark.parametrize("entry", [b"", b"[]", b"{}", b"null", b'{"line": 1, "changes": {}}', b"\xff"])
def test_an_entry_that_cannot_be_read_changes_nothing(entry):
    assert in_force(LINE, entry) == LINE


def test_changes_that_no_longer_fit_the_line_change_nothing():
    entry = changes_entry(LINE, LINE).replace(b'"changes": {}', b'"changes": {"min_replicas": 9}')
    assert b"9" in entry
    assert in_force(LINE, entry) == LINE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slo_ttft": 1}, "unknown setting slo_ttft; did you mean slo_ttft_s\\?; allowed: min_replicas, max_replicas"),
        ({"slo_ttft_s": 0}, "slo_ttft_s: must be greater than 0, got 0"),
        ({"slo_share": "x"}, 'slo_share: must be a number, got "x"'),
        ({"min_replicas": 5}, "min_replicas \\(5\\) must be at most max_replicas \\(4\\)"),
        ({"min_replicas": 0}, "min_replicas: 0 only where the application was started with 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, said):
    with pytest.raises(BiremeError, match=said):
        changed(LINE, changes, LINE)


def test_an_application_that_began_with_no_engine_may_go_back_to_it():
    line = Autoscaling(min_replicas=0, max_replicas=4)
    awake = changed(line, {"min_replicas": 2}, line)
    assert changed(awake, {"min_replicas": 0}, line) == line
