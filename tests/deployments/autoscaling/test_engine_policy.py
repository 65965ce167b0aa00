"""What Serve's controller is told: integers within the bounds, whatever fails, and what was kept is found again."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest

from cluster.config import Autoscaling
from cluster.outputs import EngineLoad
from cluster.scaling.fleet import Decision, FleetInputs, PolicyState, signal_age_s
from cluster.scaling.inputs import EngineSample, IngressLoad, ScalingInputs
from cluster.scaling.log import replay
from cluster.scaling.policy import decide
from deployments.autoscaling.engine_policy import EnginePolicy
from deployments.autoscaling.live_settings import changed, changes_entry
from deployments.autoscaling.serve_policy import ServePolicy
from deployments.autoscaling.store import LATEST, SETTINGS, STATE, report_name
from deployments.autoscaling.store_thread import Seen

LINE = Autoscaling(max_replicas=4)


class Kept:
    """In place of the thread: what it has seen, and what it was given to keep."""

    def __init__(self, seen: Seen | None = None) -> None:
        self.seen = seen
        self.entries: dict[str, bytes] = {}
        self.lines: list[bytes] = []

    def keep(self, entries, line):
        self.entries |= entries
        self.lines.append(line)


def context(target: int = 1, ready: tuple[str, ...] = ("a",), lowest: int = 1, highest: int = 10_000):
    replicas = [SimpleNamespace(unique_id=name) for name in ready]
    return SimpleNamespace(
        capacity_adjusted_min_replicas=lowest,
        capacity_adjusted_max_replicas=highest,
        current_num_replicas=len(ready),
        target_num_replicas=target,
        running_replicas=replicas,
        app_name="app",
    )


def report(num_held: int = 0, arrivals_per_s: float = 0.0, engines=("engine-a",), age_s: float = 0.1) -> ScalingInputs:
    ingress = IngressLoad(0.0, 0, arrivals_per_s, 0.0, 0, num_held, None, None)
    return ScalingInputs(ingress, tuple(EngineSample(name, EngineLoad(2, 4), age_s) for name in engines))


def seen(
    *reports: ScalingInputs, settings: bytes | None = None, state: bytes | None = None, ago_s: float = 0.0
) -> Seen:
    heard_at = time.monotonic() - ago_s
    return Seen(settings, state, {report_name(str(number)): (one, heard_at) for number, one in enumerate(reports)})


def policy(kept: Kept, decide=decide, line: Autoscaling = LINE) -> EnginePolicy:
    return EnginePolicy(line, "model on cpu", 2, 64, decide, kept, "log")  # type: ignore[arg-type]


def test_nothing_changes_before_anything_is_known():
    kept = Kept()
    assert policy(kept).target(context(target=3)) == 3
    kept.seen = seen()
    assert policy(kept).target(context(target=3, ready=())) == 3, "as after a restart of the controller"
    kept.seen = seen(report(), ago_s=60)
    assert policy(kept).target(context(target=3)) == 3
    assert json.loads(kept.entries[LATEST])["reason"].startswith("hold")


def test_held_requests_want_engines_and_the_bounds_in_force_count():
    kept = Kept(seen(report(num_held=500)))
    assert policy(kept).target(context()) == 4
    more = changes_entry(LINE, changed(LINE, {"max_replicas": 9, "min_replicas": 2}, LINE))
    kept.seen = seen(report(num_held=500), settings=more)
    assert policy(kept).target(context()) == 9
    assert policy(kept).target(context(highest=3)) == 3, "where Serve gives the application less"
    kept.seen = seen(report(), settings=more)
    assert policy(kept).target(context(ready=())) == 2


def test_what_engines_said_is_as_old_as_both_ways_together_and_only_serve_s_own_count():
    known: list[FleetInputs] = []

    def look(inputs, state, settings):
        known.append(inputs)
        return decide(inputs, state, settings)

    kept = Kept(seen(report(engines=("engine-a", "engine-gone")), report(age_s=0.3), ago_s=1.0))
    policy(kept, look).target(context(target=3, ready=("a", "b")))
    (inputs,) = known
    (engine,) = inputs.engines
    assert (engine.engine_id, inputs.num_ready, inputs.num_starting) == ("engine-a", 2, 1)
    assert inputs.num_unknown == 1, "the other one has said nothing"
    assert engine.age_s == pytest.approx(1.1, abs=0.2)
    assert [inputs.now - ingress.sampled_at for ingress in inputs.ingresses] == pytest.approx([1.0, 1.0], abs=0.2)
    assert signal_age_s(inputs) == pytest.approx(1.1, abs=0.2) and signal_age_s(FleetInputs(1.0)) == 0


def test_what_was_remembered_outlives_the_controller():
    kept = Kept(seen(report(arrivals_per_s=3.0)))
    policy(kept).target(context())
    remembered: list[PolicyState] = []

    def look(inputs, state, settings):
        remembered.append(state)
        return decide(inputs, state, settings)

    kept.seen = seen(report(), state=kept.entries[STATE])
    policy(kept, look).target(context())
    assert remembered[0].arrivals_per_s == 3.0 and remembered[0].at > 0
    assert json.loads(kept.entries[LATEST])["sequence"] == 2
    kept.seen = seen(report(), state=b'{"sequence": "x"}')
    assert policy(kept).target(context()) == 1


@pytest.mark.parametrize("target", [None, "x", float("nan"), float("inf")])
def test_a_policy_that_fails_holds_and_its_log_says_so(target):
    def wrong(inputs, state, settings):
        return Decision(target, "", state)

    kept = Kept(seen(report()))
    assert policy(kept, wrong).target(context(target=3)) == 3
    assert policy(kept, wrong).target(context(target=99)) == 4
    assert b'"error":""' not in kept.lines[0]


@pytest.mark.parametrize("given", [-5, 10**9, 2.7, True])
def test_serve_gets_integers_within_the_bounds(given):
    kept = Kept(seen(report()))
    found = policy(kept, lambda inputs, state, settings: Decision(given, "", state)).target(context())
    assert type(found) is int and 1 <= found <= 4


def test_what_is_logged_is_decided_again_to_the_same_and_not_every_tick_is_told():
    kept = Kept(seen(report(num_held=5)))
    ours = policy(kept)
    for _ in range(5):
        ours.target(context(target=4))
    assert len(kept.lines) == 1, "the same outcome is told once a second"
    kept.seen = seen(report())
    ours.target(context(target=2))
    assert len(kept.lines) == 2
    result = replay(kept.lines)
    assert (result.num_replayed, result.num_different) == (2, 0)


def test_serve_s_own_call_raises_nothing_and_keeps_to_its_bounds():
    broken = ServePolicy({"max_replicas": "x"}, "", 1, 64, "nowhere:nothing")
    assert broken(context(target=3)) == (3, {})
    assert broken(context(target=0, lowest=1)) == (1, {})
    assert broken(context(target=9, highest=5)) == (5, {})


def test_a_decision_costs_the_controller_a_millisecond_at_most():
    names = tuple(f"engine-{number}" for number in range(8))
    kept = Kept(seen(*[report(engines=names) for _ in range(2)]))
    ours = policy(kept, lambda inputs, state, settings: Decision(1, "", state))
    ours.target(context())
    took = []
    for _ in range(50):
        began = time.perf_counter()
        ours.target(context(ready=tuple(name.removeprefix("engine-") for name in names)))
        took.append(time.perf_counter() - began)
    assert sorted(took)[25] < 0.005, "five times the millisecond: the machine is shared"
    assert SETTINGS not in kept.entries


def test_an_idle_application_may_sleep_and_stays_asleep_until_somebody_asks():
    line = Autoscaling(min_replicas=0, max_replicas=4)
    kept, seconds = Kept(), [1000.0]
    clock = lambda: seconds[0]  # noqa: E731
    ours = EnginePolicy(line, "k", 2, 64, decide, kept, "", clock, clock)  # type: ignore[arg-type]

    def after_a_second(told: ScalingInputs, target: int, ready: tuple[str, ...]) -> int:
        seconds[0] += 1
        kept.seen = Seen(None, None, {report_name("0"): (told, clock())})
        return ours.target(context(target=target, ready=ready, lowest=0))

    assert 0 in [after_a_second(report(), 1, ("a",)) for _ in range(300)]
    assert {after_a_second(report(engines=()), 0, ()) for _ in range(5)} == {0}
    assert after_a_second(report(num_held=1, engines=()), 1, ()) >= 1


def test_the_policy_knows_a_step_s_tokens_and_how_long_engines_took_to_start_also_after_a_restart():
    known: list[tuple[int, float]] = []
    kept, seconds = Kept(), [1000.0]
    clock = lambda: seconds[0]  # noqa: E731

    def look(inputs, state, settings):
        known.append((inputs.max_num_batched_tokens, settings.start_s))
        return decide(inputs, state, settings)

    def made() -> EnginePolicy:
        return EnginePolicy(LINE, "k", 2, 64, look, kept, "", clock, clock)  # type: ignore[arg-type]

    def after(later_s: float, target: int, ready: tuple[str, ...]) -> None:
        seconds[0] += later_s
        kept.seen = Seen(None, kept.entries.get(STATE), {report_name("0"): (report(), clock())})
        ours.target(context(target=target, ready=ready))

    ours = made()
    for later_s, target, ready in [(1, 1, "a"), (1, 3, "a"), (4, 3, "ab"), (4, 3, "abc")]:
        after(later_s, target, tuple(ready))
    assert known == [(64, 15.0), (64, 15.0), (64, 4.0), (64, 6.0)]
    ours = made()
    after(2, 3, ("a", "b", "c"))
    assert known[-1] == (64, 6.0)
