"""Which engines a router passes over, and for how long."""

from __future__ import annotations

from cluster.outputs import EngineLoad
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams
from deployments.routing.router.engine_choices import EngineChoices, choices_of


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def request(request_id: str) -> EngineRequest:
    return EngineRequest(request_id, [1, 2, 3], SamplingParams(), output_token_ids=[4])


def test_an_engine_is_avoided_for_a_time_and_the_longer_time_wins():
    clock = Clock()
    choices = EngineChoices(clock)
    choices.avoid("a", 5.0)
    choices.avoid("a", 1.0)
    clock.time += 4.9
    assert choices.is_avoided("a")
    clock.time += 0.2
    assert not choices.is_avoided("a")


def test_an_engine_that_takes_a_request_is_trusted_again():
    choices = EngineChoices()
    choices.avoid("a", 5.0)
    choices.trust("a")
    assert not choices.is_avoided("a")


def test_another_engine_is_one_that_the_router_knows_and_that_is_not_avoided():
    choices = EngineChoices()
    choices.set_engines({"a": "f", "b": "f"})
    assert choices.has_other("a")
    choices.avoid("b", 5.0)
    assert not choices.has_other("a")
    choices.set_engines({"a": "f", "c": "f"})
    assert choices.has_other("a")
    assert choices.has_other("a", "f")
    assert not choices.has_other("a", "another fingerprint")


def test_the_time_without_any_engine_is_known():
    clock = Clock()
    choices = EngineChoices(clock)
    clock.time += 2.0
    assert choices.seconds_without() == 2.0
    choices.set_engines({"a": "f"})
    assert choices.seconds_without() == 0.0
    for _ in range(2):
        choices.set_engines({})
        clock.time += 3.0
    assert choices.seconds_without() == 6.0


def test_a_choice_is_noted_for_open_requests_only_and_forgotten_with_them():
    choices = EngineChoices()
    choices.chose(request("late"), "a")
    assert choices.chosen("late") == ""
    choices.open("r")
    choices.chose(request("r"), "a")
    assert choices.chosen("r") == "a"
    choices.close("r")
    assert choices.chosen("r") == ""


def test_an_engine_has_the_tokens_that_it_announced_and_those_that_were_sent_since():
    choices = EngineChoices()
    choices.set_engines({"a": "f"})
    choices.announced("a", EngineLoad(9, 9, num_tokens=10))
    choices.open("r")
    choices.sends(request("r"), "a")
    choices.chose(request("r"), "a")
    assert choices.token_weight("a") == 50
    choices.took("r")
    choices.announced("a", EngineLoad(9, 9, num_tokens=14, waiting_tokens=3, uncomputed_tokens=4))
    assert choices.token_weight("a") == 50
    choices.open("r")
    choices.chose(request("r"), "a")
    choices.close("r")
    assert choices.token_weight("a") == 50
    choices.set_engines({"b": "f"})
    assert choices.token_weight("a") == 0


def test_an_arrival_has_the_lines_built_once_while_no_queue_is_full(monkeypatch):
    choices, built = EngineChoices(), []
    line = choices._line
    monkeypatch.setattr(choices, "_line", lambda engine_id: built.append(engine_id) or line(engine_id))
    choices.set_engines({"full": "f", "free": "f"})
    choices.announced("full", EngineLoad(1, 9, line_length=8))
    choices.announced("free", EngineLoad(9, 9, open_places=2))
    assert not choices.must_wait(0) and choices.open_engines(0) == {"full"}
    assert sorted(built) == ["free", "full"]
    choices.open("r")
    choices.sends(request("r"), "full")
    assert choices.must_wait(0), "the last place of the queue is taken, though its engine has yet to say so"


def test_each_deployment_has_choices_of_its_own_in_a_process():
    one, other = choices_of("app", "small"), choices_of("app", "large")
    assert choices_of("app", "small") is one
    one.set_engines({"a": "f"})
    other.set_engines({"b": "g"})
    one.avoid("b", 60.0)
    assert (one.engines, other.engines) == ({"a": "f"}, {"b": "g"})
    assert not other.is_avoided("b")
    assert choices_of("another app", "small").engines == {}
