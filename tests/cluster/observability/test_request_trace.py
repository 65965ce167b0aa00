"""The way of a request adds up, whatever clocks say."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.observability.request_trace import MARKS, hops, trace_id_of, wall_clock, waterfall


@given(st.dictionaries(st.sampled_from(sorted(MARKS)), st.floats(0, 2e9)))
def test_hops_are_in_order_and_add_up(marks):
    found = hops(marks)
    assert [hop["name"] for hop in found] == [name for name in MARKS if name in marks]
    assert all(hop["took_ms"] >= 0 for hop in found)
    so_far = 0.0
    for hop in found:
        so_far += hop["took_ms"]
        assert hop["at_ms"] == pytest.approx(so_far, abs=0.01 * len(found))
    lines = waterfall(found)
    assert len(lines) == len(found)
    assert all(hop["what"] in line for hop, line in zip(found, lines))


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_lines_of_a_trace_fit_the_terminal(columns):
    lines = waterfall(hops({name: 1.0 + 0.5 * number for number, name in enumerate(MARKS)}), columns)
    assert max(map(len, lines)) <= columns
    assert any("#" in line for line in lines) == (columns > 90)


def test_the_wall_clock_of_now_is_now():
    assert wall_clock(time.monotonic() - 5.0) == pytest.approx(time.time() - 5.0, abs=1.0)


@pytest.mark.parametrize(
    ("header", "trace_id"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", ""),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", ""),
        ("nonsense", ""),
        (None, ""),
    ],
)
def test_only_a_valid_traceparent_names_a_trace(header, trace_id):
    assert trace_id_of(header) == trace_id
