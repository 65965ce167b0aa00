"""Which decode graphs a memory budget is spent on first, and which of them serves a step."""

from __future__ import annotations

from dataclasses import fields

import paddle
import pytest

from actors.runner import decode_graphs
from actors.runner.decode_graphs import DecodeGraphs, capture_order, decode_buckets
from actors.runner.sampler import SamplingGraph
from actors.scheduling.step_plan import PromptLogprobs, SamplingNeeds


def test_what_serves_every_step_comes_first_then_what_halves_the_padding():
    order = capture_order(decode_buckets(100))
    assert order[:8] == [100, 64, 32, 16, 8, 4, 2, 1]
    assert sorted(order) == decode_buckets(100)
    assert order[8:] == sorted(order[8:], reverse=True)
    assert capture_order([1]) == [1]


@pytest.mark.parametrize(
    ("needs", "graph"),
    [
        (SamplingNeeds(), SamplingGraph.PLAIN),
        (SamplingNeeds(penalties=True), SamplingGraph.PENALTIES),
        (SamplingNeeds(num_logprobs=0), SamplingGraph.LOGPROBS),
        (SamplingNeeds(penalties=True, num_logprobs=20), SamplingGraph.LOGPROBS),
        (SamplingNeeds(prompt_logprobs=[PromptLogprobs(0, 0, (1,), 0)]), None),
    ],
)
def test_the_graph_that_serves_a_step_does_all_that_the_step_needs(needs, graph):
    assert SamplingGraph.for_needs(needs) == graph
    assert graph is None or graph.needs.covers(needs)


@pytest.mark.parametrize("name", [entry.name for entry in fields(SamplingNeeds)])
def test_the_plain_graph_serves_no_step_that_needs_more(name):
    """Whatever there is to need: a graph that does not know of it must not be replayed in its place."""
    nothing = SamplingNeeds()
    some = {bool: True, int: 3, list: [PromptLogprobs(0, 0, (1,), 0)]}[type(getattr(nothing, name))]
    needs = SamplingNeeds(**{name: some})
    assert needs.covers(nothing)
    assert not nothing.covers(needs)
    assert SamplingGraph.for_needs(needs) != SamplingGraph.PLAIN


class FakeGpu:
    """Graphs that remember what was enqueued while they were captured, and take a byte a row."""

    def __init__(self) -> None:
        self.free = 10_000
        self.replayed: list = []
        self.captures: list | None = None

    def new_graph(self, _pool_id):
        gpu = self

        class Graph:
            def capture_begin(self) -> None:
                gpu.captures = self.work = []

            def capture_end(self) -> None:
                gpu.captures = None
                gpu.free -= sum(rows for _, rows, _ in self.work)

            def replay(self) -> None:
                gpu.replayed += self.work

            def reset(self) -> None:
                gpu.free += sum(rows for _, rows, _ in self.work)

        return Graph()

    def enqueue(self, *work) -> None:
        if self.captures is not None:
            self.captures.append(work)

    def graphs(self, monkeypatch, max_bytes: int) -> DecodeGraphs:
        monkeypatch.setattr(decode_graphs, "_new_graph", self.new_graph)
        monkeypatch.setattr(decode_graphs, "_shared_pool", lambda: None)
        monkeypatch.setattr(paddle.device.cuda, "synchronize", lambda: None)
        return DecodeGraphs(
            [1, 2, 4],
            lambda rows: self.enqueue("forward", rows, None),
            lambda rows, _hidden, kind: self.enqueue("sample", rows, kind),
            lambda: self.free,
            max_bytes,
        )


def test_every_kind_of_sampling_has_its_graph(monkeypatch):
    gpu = FakeGpu()
    graphs = gpu.graphs(monkeypatch, 1000)
    each = 1 + len(SamplingGraph)  # one for the forward pass
    assert (graphs.buckets, graphs.num_graphs, graphs.num_bytes) == ([1, 2, 4], 3 * each, 7 * each)
    for kind in SamplingGraph:
        assert graphs.sample(graphs.bucket(3), kind)
    assert gpu.replayed == [("sample", 4, kind) for kind in SamplingGraph]


def test_further_kinds_take_only_what_plain_steps_leave(monkeypatch):
    gpu = FakeGpu()
    graphs = gpu.graphs(monkeypatch, 2 * 7 + 2)
    assert graphs.buckets == [1, 2, 4]
    found = {(rows, kind) for rows in (1, 2, 4) for kind in SamplingGraph if graphs.sample(rows, kind)}
    assert found == {(rows, SamplingGraph.PLAIN) for rows in (1, 2, 4)} | {(2, SamplingGraph.PENALTIES)}
    assert graphs.num_bytes == 10_000 - gpu.free <= 2 * 7 + 2
