"""While requests wait for the first engine, the controller is asked to look around."""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import textwrap

import pytest
from ray.serve._private.controller import ServeController
from ray.serve._private.router import RouterMetricsManager

from cluster.outputs import AttachRequired, EngineLoad
from deployments.routing import prompt_start
from deployments.routing.prompt_start import PromptStart
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.submission import Submission
from tests.deployments.routing.scripted_engine import Client, Engine, answer
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("this_node")


class Controller:
    def __init__(self) -> None:
        self.looks = self.at_once = self.most_at_once = 0
        self.answers = True

    async def look(self) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if not self.answers:
            raise RuntimeError("it is away")
        self.looks += 1


async def test_the_controller_is_asked_until_there_is_an_engine_and_again_when_there_is_none():
    controller, engines = Controller(), []
    expected = []

    async def expect() -> None:
        expected.append(len(engines))

    start = PromptStart(lambda: not engines, controller.look, expect)
    for _ in range(20):
        start.hurry()  # twenty requests at once ask once
    await until(lambda: controller.looks >= 4, 10)
    assert controller.most_at_once == 1 and expected == [0]
    engines.append("one")
    start.hurry()
    await asyncio.sleep(0.3)
    before = controller.looks
    await asyncio.sleep(0.3)
    assert controller.looks == before, "with an engine nobody asks"
    engines.clear()
    start.hurry()
    await until(lambda: controller.looks > before, 10)
    assert expected == [0, 0]
    start.close()


async def test_the_controller_is_asked_for_one_more_engine_and_for_a_while(monkeypatch):
    monkeypatch.setattr(prompt_start, "_DECIDED_S", 0.3)
    controller, too_few = Controller(), 1
    start = PromptStart(lambda: False, controller.look, too_few=lambda: too_few)
    start.hurry()
    await until(lambda: start._task.done(), 10)
    assert controller.looks >= 3, "two looks, one that decides and one that starts, and a first one that is too early"
    before = controller.looks
    start.hurry()
    assert start._task.done(), "it does not want another engine"
    too_few = 2  # one came, and still
    start.hurry()
    await until(lambda: start._task.done(), 10)
    assert controller.looks > before
    too_few = 0
    start.hurry()
    assert start._task.done()
    start.close()


async def test_engines_are_too_few_where_one_more_would_take_who_waits():
    controller, choices = Controller(), EngineChoices()
    idle_room = EngineLoad(free=4, max_queued=2)
    client = Client(Engine(), choices=choices, idle_room=idle_room, max_engines=3, look=controller.look)
    num_too_few = client._rooms.num_too_few
    assert num_too_few() == 0, "the first one is waited for otherwise"
    choices.set_engines({"a": "f"})
    assert num_too_few() == 0
    client._streams.attach(AttachRequired("a", Engine("a"), "f"))
    client._on_deltas(client.stream, [idle_room._replace(num_waiting=1)])
    assert num_too_few() == 1
    await until(lambda: controller.looks > 1, 10)
    choices.set_engines({"a": "f", "b": "f"})
    assert num_too_few() == 2
    choices.set_engines({"a": "f", "b": "f", "c": "f"})
    assert num_too_few() == 0, "there may be no more"
    await client.close()


async def test_a_controller_that_is_away_is_left_alone_until_the_next_request(caplog):
    controller = Controller()
    controller.answers = False
    start = PromptStart(lambda: True, controller.look)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        start.hurry()
        await until(lambda: "does not look around" in caplog.text, 10)
    await asyncio.sleep(0.3)
    assert len(caplog.records) == 1
    controller.answers = True
    start.hurry()
    await until(lambda: controller.looks >= 2, 10)
    start.close()


async def test_a_client_hurries_while_a_request_has_no_engine_to_go_to():
    controller, expected = Controller(), []

    async def expect() -> None:
        expected.append(1)

    client = Client(Engine(), look=controller.look, expect=expect)
    client._submissions.unplaced.add(Submission(answer(1), lambda _: None, lambda _: None))
    client._prompt_start.hurry()
    await until(lambda: controller.looks > 1 and expected == [1], 10)
    client.choices.set_engines({"e": "f"})
    await until(lambda: client._prompt_start._task.done(), 10)
    client._prompt_start.hurry()
    assert client._prompt_start._task.done() and expected == [1]


def test_a_look_of_serves_controller_is_as_it_was_when_it_was_looked_into():
    controller = ServeController
    step = controller.__dict__["run_control_loop_step"]
    # Where Ray traces calls, it adds one of its own.
    names = [name for name in inspect.signature(step).parameters if not name.startswith("_ray_")]
    assert names == ["self", "start_time", "recovering_timeout", "num_loops"]
    body = ast.parse(textwrap.dedent(inspect.getsource(step)))
    waits = [node for node in ast.walk(body) if isinstance(node, (ast.Await, ast.AsyncFor, ast.AsyncWith))]
    assert not waits, "it is one piece on the controller's loop, so that two never mix"
    assert callable(RouterMetricsManager.push_autoscaling_metrics_to_controller)
    assert callable(RouterMetricsManager._add_autoscaling_metrics_point)
