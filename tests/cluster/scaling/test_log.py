"""A log of decisions is decided again to the same, or it is said where not."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from cluster.outputs import EngineLoad
from cluster.scaling.fleet import Decision, FleetInputs, PolicySettings, PolicyState
from cluster.scaling.inputs import EngineSample, IngressLoad
from cluster.scaling.log import Record, described, replay, source_hash
from cluster.scaling.policy import decide


def recorded(num_decisions: int = 40) -> list[bytes]:
    """Lines of a load that comes and goes."""
    lines, state, settings = [], PolicyState(), PolicySettings(max_replicas=4, cost_weight=30.0)
    for number in range(num_decisions):
        busy = 10 < number < 25
        load = EngineLoad(2, 4, num_running=2 * busy, num_arrived=3 * number, num_generated_tokens=100 * number)
        inputs = FleetInputs(
            now=1000.1 + number,
            engines=(EngineSample("e", load, 0.1),),
            ingresses=(IngressLoad(1000.0 + number, 0, 9.7 * busy, 0.0, 0, 30 * busy, None, None),),
            current_target=max(1, state.target),
            kind="k",
            max_num_seqs=2,
        )
        found = decide(inputs, state, settings)
        record = Record(
            number, inputs.now, source_hash(), settings, inputs, state, found.target, found.reason, found.state
        )
        lines.append(record.line())
        state = found.state
    return lines


def test_a_log_is_decided_again_to_the_same():
    lines = recorded()
    result = replay(lines)
    assert (result.num_replayed, result.num_different, result.num_unreadable) == (len(lines), 0, 0)
    assert result.policies == [source_hash()]
    targets = {msgspec.json.decode(line, type=Record).target for line in lines}
    assert min(targets) == 1 and max(targets) > 1, "the load moves the target"


def test_another_decision_is_shown_with_the_field_that_differs():
    def one_more(inputs, state, settings):
        found = decide(inputs, state, settings)
        return Decision(found.target + (found.target > 1), found.reason, replace(found.state, num_met=5))

    result = replay(recorded(), one_more)
    assert result.num_different == result.num_replayed == 40
    assert {found.field for found in result.differences} == {"target", "next_state.num_met"}
    assert any("target was" in line for line in result.lines())
    assert len(result.differences) == 20


def test_lines_that_are_no_records_are_counted_and_others_hashes_said():
    lines = [b"{}", b"", b"no", *recorded(2), recorded(1)[0][:50]]
    lines[3] = lines[3].replace(source_hash().encode(), b"another")
    result = replay(lines)
    assert (result.num_replayed, result.num_unreadable) == (2, 3)
    assert any("another" in line for line in result.lines())


def test_a_policy_that_failed_fails_again_or_that_is_the_difference():
    def fails(inputs, state, settings):
        raise ValueError("no\nsecond line")

    error = described(ValueError("no\nsecond line"))
    assert error == "ValueError: no"
    record = Record(1, 0.0, "", PolicySettings(), FleetInputs(0.0), PolicyState(), 3, "hold", None, error)
    assert replay([record.line()], fails).num_different == 0
    assert {found.field for found in replay([record.line()]).differences} >= {"error"}


@pytest.mark.parametrize("number", [0.1 + 0.2, 1e-300, 1e300])
def test_numbers_stay_what_they_were(number):
    state = PolicyState(arrivals_per_s=number, demands=((number, number),))
    record = Record(1, number, "", PolicySettings(), FleetInputs(number), state, 1, "", state)
    assert replay([record.line()]).num_unreadable == 0
