"""Who is to blame when engines die: the request that was there each time, not its neighbours."""

from __future__ import annotations

from cluster.process.silence_clock import SilenceClock
from cluster.routing.suspicion import Suspicion, Verdict


def test_two_engines_that_die_under_a_request_alone_convict_it():
    suspicion = Suspicion()
    assert suspicion.engine_died(0, alone=True, isolated=False) is Verdict.RETRY
    assert suspicion.engine_died(1, alone=True, isolated=False) is Verdict.QUARANTINE


def test_a_request_with_neighbours_is_isolated_first_and_convicted_only_then():
    suspicion = Suspicion()
    suspicion.engine_died(5, alone=False, isolated=False)
    assert suspicion.engine_died(5, alone=False, isolated=False) is Verdict.ISOLATE
    assert suspicion.must_isolate
    assert suspicion.engine_died(6, alone=False, isolated=True) is Verdict.QUARANTINE


def test_progress_clears_a_suspect():
    suspicion = Suspicion()
    suspicion.engine_died(5, alone=True, isolated=False)
    assert not suspicion.progressed(6)
    assert suspicion.progressed(7)
    assert suspicion.engine_died(8, alone=True, isolated=False) is Verdict.RETRY
    assert suspicion.engine_died(12, alone=True, isolated=False) is Verdict.RETRY


def test_a_watcher_that_was_stopped_does_not_take_that_for_silence():
    times = iter([0.0, 0.25, 100.0, 100.25])
    clock = SilenceClock(lambda: next(times))
    clock.tick()
    assert clock.tick() == 0.75
    clock.heard()
    assert clock.tick() == 0.25
