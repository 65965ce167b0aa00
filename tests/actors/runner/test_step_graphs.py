"""Which graphs a memory budget is spent on first, and which of them serves a step."""

from __future__ import annotations

from dataclasses import fields

import paddle
import pytest

from actors.runner import graph_capture
from actors.runner.graph_capture import GraphCapture
from actors.runner.sampler import SamplingGraph
from actors.runner.step_graphs import PromptSize, StepGraphs, capture_order, decode_sizes, prompt_sizes
from actors.scheduling.step_plan import PromptLogprobs, SamplingNeeds, StepPlan


def test_what_serves_every_step_comes_first_then_what_halves_the_padding():
    order = capture_order(decode_sizes(100))
    assert order[:8] == [100, 64, 32, 16, 8, 4, 2, 1]
    assert sorted(order) == decode_sizes(100)
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

    def graphs(self, monkeypatch, max_bytes: int, prompts=()) -> StepGraphs:
        monkeypatch.setattr(graph_capture, "_new_graph", self.new_graph)
        monkeypatch.setattr(graph_capture, "_shared_pool", lambda: None)
        monkeypatch.setattr(paddle.device.cuda, "synchronize", lambda: None)
        return StepGraphs(
            [1, 2, 4],
            prompts,
            lambda rows: self.enqueue("decode", rows, None),
            lambda size: self.enqueue("prompts", size.tokens, size.slots),
            lambda rows, kind: self.enqueue("sample", rows, kind),
            GraphCapture(lambda: self.free, max_bytes),
        )


def test_every_kind_of_sampling_has_its_graph(monkeypatch):
    gpu = FakeGpu()
    graphs = gpu.graphs(monkeypatch, 1000)
    each = 1 + len(SamplingGraph)  # one for the forward pass
    assert (graphs.decode_rows, graphs.num_graphs, graphs.num_bytes) == ([1, 2, 4], 3 * each, 7 * each)
    for kind in SamplingGraph:
        assert graphs.sample(3, kind)
    assert graphs.sample(0, SamplingGraph.PLAIN)
    assert not graphs.sample(5, SamplingGraph.PLAIN)
    assert gpu.replayed == [*(("sample", 4, kind) for kind in SamplingGraph), ("sample", 1, SamplingGraph.PLAIN)]


def test_further_kinds_take_only_what_plain_steps_leave(monkeypatch):
    gpu = FakeGpu()
    graphs = gpu.graphs(monkeypatch, 2 * 7 + 2)
    assert graphs.decode_rows == [1, 2, 4]
    for rows in (1, 2, 4):
        graphs.sample(rows, SamplingGraph.PLAIN)
    assert [rows for _, rows, _ in gpu.replayed] == [1, 2, 4]
    # The smallest that is there serves those below it, too.
    for rows, found in ((1, True), (2, True), (3, False)):
        assert graphs.sample(rows, SamplingGraph.PENALTIES) == found
    assert gpu.replayed[3:] == [("sample", 2, SamplingGraph.PENALTIES)] * 2
    assert not graphs.sample(1, SamplingGraph.LOGPROBS)
    assert graphs.num_bytes == 10_000 - gpu.free <= 2 * 7 + 2


def test_steps_with_prompts_have_the_smallest_graph_of_their_tokens_and_slots(monkeypatch):
    gpu = FakeGpu()
    graphs = gpu.graphs(monkeypatch, 10_000, [PromptSize(t, s) for t in (16, 64) for s in (2, 4)])
    served = []
    for scheduled in ({0: 9, 1: 1}, {1: 16}, {0: 17}, {3: 5}, {0: 64}):
        graph = graphs.forward(StepPlan(0, scheduled=scheduled))
        assert graph is not None
        graph.replay()
        served.append(gpu.replayed[-1])
    assert served == [("prompts", *size) for size in ((16, 2), (16, 2), (64, 2), (16, 4), (64, 2))]
    assert graphs.forward(StepPlan(0, scheduled={0: 65})) is None
    assert graphs.forward(StepPlan(0, scheduled={4: 2})) is None
    graph = graphs.forward(StepPlan(0, scheduled={5: 1, 9: 1}))  # decodes: its slots do not matter
    assert graph is not None
    graph.replay()
    assert gpu.replayed[-1] == ("decode", 2, None)


def test_a_size_that_was_left_out_replays_a_larger_one(monkeypatch):
    sizes = [PromptSize(t, s) for t in (16, 64) for s in (2, 4)]
    gpu = FakeGpu()
    graphs = gpu.graphs(monkeypatch, 2 * 7 + 64 + 16 + 16, sizes)
    assert graphs.prompts == [PromptSize(16, 2), PromptSize(16, 4), PromptSize(64, 4)]
    graph = graphs.forward(StepPlan(0, scheduled={0: 17}))
    assert graph is not None
    graph.replay()
    assert gpu.replayed == [("prompts", 64, 4)]


def test_prompts_take_what_decode_steps_leave(monkeypatch):
    sizes = [PromptSize(t, s) for t in (16, 64) for s in (2, 4)]
    graphs = FakeGpu().graphs(monkeypatch, 2 * 7 + 16, sizes)
    assert graphs.prompts == [PromptSize(16, 4)]
    assert graphs.forward(StepPlan(0, scheduled={0: 9})) is not None
    assert graphs.forward(StepPlan(0, scheduled={0: 17})) is None
    assert graphs.num_bytes <= 2 * 7 + 16


def test_sizes_of_steps_with_prompts_end_with_the_largest_step():
    assert prompt_sizes(0, 64) == prompt_sizes(1, 64) == []
    assert prompt_sizes(48, 16) == [PromptSize(16, 16), PromptSize(32, 16), PromptSize(48, 16)]
    assert prompt_sizes(2048, 100)[-3:] == [PromptSize(2048, slots) for slots in (16, 64, 100)]
    assert prompt_sizes(100_000, 8)[-1] == PromptSize(4096, 8)
