"""Which nodes have spares."""

from __future__ import annotations

from deployments.spares.keepers import nodes_for


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
