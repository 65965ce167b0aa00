"""What the engine and its device spent, and what the device waited for."""

from __future__ import annotations

import pytest

from actors.engine.stats.totals import StepTotals


def test_idle_times_count_for_nobody_and_late_launches_for_the_host():
    totals = StepTotals()
    totals.begin(10.0)  # launches a step of 1 s
    totals.end(10.1, has_work=True)
    totals.begin(10.1)
    totals.saved(1.0, 10.05, 0.0)
    totals.end(11.2, has_work=True)
    totals.begin(11.2)
    totals.saved(1.0, 11.25, 11.05)  # launched 0.2 s after the one before had ended
    totals.end(12.3, has_work=False)
    totals.begin(50.0)
    totals.saved(0.5, 50.1, 12.25)  # what was before is another time
    totals.end(50.6, has_work=False)
    assert totals.figures() == {
        "num_saved_steps": 3,
        "busy_seconds": pytest.approx(2.3 + 0.6),
        "device_seconds": pytest.approx(2.5),
        "late_seconds": pytest.approx(0.2),
    }
