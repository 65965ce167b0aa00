"""Which nodes have spares, and a runner that is begun early."""

from __future__ import annotations

from types import SimpleNamespace

from deployments.spares import keepers, roster
from deployments.spares.engine_processes import RUNNER, EngineProcesses
from deployments.spares.keepers import SpareKeepers, nodes_for


def node(name: str, alive: bool = True, **resources: float) -> dict:
    return {"NodeID": name, "Alive": alive, "Resources": resources}


def test_spares_are_kept_where_an_engine_can_be():
    nodes = [
        node("head without CPUs"),
        node("small", CPU=1.0),
        node("one", CPU=1.5),
        node("gone", alive=False, CPU=8.0),
        node("gpu", CPU=8.0, GPU=1.0, **{"accelerator_type:H200": 1.0}),
    ]
    assert nodes_for({"CPU": 1.5}, nodes) == ["one", "gpu"]
    assert nodes_for({"CPU": 1.5, "GPU": 1.0, "accelerator_type:H200": 0.001}, nodes) == ["gpu"]
    assert nodes_for({"CPU": 1.5, "GPU": 2.0}, nodes) == []


async def test_a_first_runner_that_could_not_be_started_is_asked_for_again_at_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(roster, "private_base", lambda longest: tmp_path)
    monkeypatch.setattr(keepers.ray, "nodes", lambda: [node("here", CPU=1.0)])
    monkeypatch.setattr(keepers.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    asked: list[dict] = []

    def fail_once(variables, keep_alive_s, from_controller):
        asked.append(variables)
        if len(asked) == 1:
            raise ConnectionError("the node does not answer")

    monkeypatch.setattr(keepers, "prestart", fail_once)
    of_one = SpareKeepers(EngineProcesses("group", {RUNNER: {"of": "runner"}}, {"CPU": 1.0}), 1)
    for _ in range(3):
        await of_one.prepare_first()
    assert "no_early_runner" in caplog.text
    assert asked == [{"of": "runner"}] * 2, "asked for again, and not a third time while it is coming"
