"""Parts of recorded rates: they begin and end where they were cut."""

from __future__ import annotations

import itertools
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cluster.scaling.traces import Trace, _part, read_trace

RATES = Trace(rates=((0.0, 5.0), (600.0, 7.0), (1200.0, 3.0)))


def requests(trace: Trace) -> float:
    begins = [second for second, _ in trace.rates]
    ends = [*begins[1:], begins[-1] + trace.step_s] if begins else []
    return sum(rate * (end - begin) for (_, rate), begin, end in zip(trace.rates, begins, ends))


def test_a_part_shorter_than_a_step_lasts_as_long_as_was_asked(tmp_path: Path):
    path = tmp_path / "rates.csv"
    path.write_text("second,requests_per_second\n" + "".join(f"{second:g},{rate:g}\n" for second, rate in RATES.rates))
    part = read_trace(path, 650.0, 120.0)
    assert part.rates == ((0.0, 7.0),) and part.step_s == 120.0
    whole = read_trace(path)
    assert whole.rates == RATES.rates and whole.step_s == 600.0


@given(st.floats(0, 1799), st.lists(st.floats(0, 1800), max_size=3))
def test_parts_have_together_what_the_whole_has(start, cuts):
    edges = sorted({start, *(cut for cut in cuts if cut > start), 1800.0})
    found = sum(requests(_part(RATES, begin, end)) for begin, end in itertools.pairwise(edges))
    assert abs(found - requests(_part(RATES, start, float("inf")))) < 1e-6
