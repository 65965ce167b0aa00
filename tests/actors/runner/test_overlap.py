"""The step contract: overlapped and plain execution, the preemption handshake, stop cells. One test a rule."""

from __future__ import annotations

import threading

import pytest

from actors.runner.sampler import Sampler, SamplingGraph
from actors.scheduling.scheduler import Scheduler
from cluster.outputs import PREEMPTED
from tests.engines import answer, make_engine, request, tokens_of

PROMPT = [5, 9, 17, 33]
# No test here needs a tenth of them; a request that never ends is noticed after them.
MOST_STEPS = 2000


class PreemptAt(Scheduler):
    """Preempts a running request once it has the given number of output tokens, in flight ones included."""

    at: dict[str, list[int]]

    def _schedule_decodes(self, plan, owners):
        for sequence in list(self.running):
            name, generated = sequence.request.request_id, sequence.num_tokens - sequence.num_prompt_tokens
            if self.at.get(name, [None])[0] == generated and not sequence.will_have_finished:
                self.at[name].pop(0)
                self._preempt(sequence, plan, owners)
        super()._schedule_decodes(plan, owners)


def preempt_at(engine, at: dict[str, list[int]]) -> None:
    old = engine.scheduler
    engine.scheduler = PreemptAt(old.kv_cache, old.max_num_seqs, old.max_num_batched_tokens, old.max_model_len)
    engine.scheduler.at = {name: [*points, -1] for name, points in at.items()}


def slow_host(engine) -> None:
    """The device is always done with the next step, too, before the host reads a step's output."""
    save = engine.executor._save_output

    def save_late(out):
        engine.executor.stream.synchronize()
        return save(out)

    engine.executor._save_output = save_late


def generate_in_steps(engine, requests) -> dict[str, list]:
    """As ``generate`` of the engine, and fails where that would not end."""
    deltas: dict[str, list] = {}
    for one in requests:
        engine.add_request(one)
        deltas[one.request_id] = []
    for _ in range(MOST_STEPS):
        for delta in engine.step():
            deltas[delta.request_id].append(delta)
        if not engine.has_work():
            return deltas
    pytest.fail(f"no end after {MOST_STEPS} steps")


def answers(engine, requests, at=None, slow=False) -> dict[str, tuple]:
    """What an engine, which is closed then, says to requests that all come at once."""
    if at:
        preempt_at(engine, at)
    if slow:
        slow_host(engine)
    try:
        return {name: answer(deltas) for name, deltas in generate_in_steps(engine, requests).items()}
    finally:
        engine.check_integrity()
        engine.close()


def generate(folder, requests, at=None, slow=False, **settings):
    engine = make_engine(folder, **settings)
    return answers(engine, requests, at, slow), engine.scheduler


def replay(runner, plans, overlap: bool) -> list:
    """The results of recorded plans; the runner is closed then."""
    if overlap:
        saved = [runner.execute_model_overlap(plan) for plan in [*plans, None]][1:]
    else:
        saved = [runner.execute_model(plan) for plan in plans]
    runner.close()
    return saved


def mixed_requests():
    return [
        request("greedy", PROMPT, max_tokens=24),
        request("sampled", list(range(3, 90)), temperature=1.0, top_p=0.9, seed=7, max_tokens=24, logprobs=3),
        request(
            "penalised", PROMPT, temperature=0.8, seed=1, presence_penalty=0.5, repetition_penalty=1.3, max_tokens=24
        ),
        request("short", [7], max_tokens=1),
        request("biased", list(range(40)), logit_bias={11: 4.0}, min_tokens=6, max_tokens=12),
        request(
            "bounded",
            [9, 8],
            temperature=1.0,
            seed=5,
            max_tokens=24,
            ignore_eos=True,
            logprobs=1,
            allowed_token_ids=tuple(range(20, 26)),
            bad_token_seqs=((20,), (21, 22), (23, 23, 24), (25, 21)),
        ),
        request("scored", list(range(50, 90)), prompt_logprobs=2, max_tokens=3),
    ]


@pytest.mark.parametrize("num_kv_blocks", [64, 8])
def test_overlapped_and_plain_runs_agree_bit_for_bit(tiny_model, num_kv_blocks):
    settings = {"num_kv_blocks": num_kv_blocks, "max_num_batched_tokens": 32}
    plain, _ = generate(tiny_model, mixed_requests(), enable_overlap_schedule=False, **settings)
    overlapped, _ = generate(tiny_model, mixed_requests(), **settings)
    assert overlapped == plain


def test_a_recorded_schedule_replays_bit_for_bit_overlapped_and_plain(tiny_model):
    plans: list = []
    engine = make_engine(tiny_model, plans, num_kv_blocks=8, max_num_batched_tokens=32)
    engine.generate(mixed_requests())
    assert any(plan.preempted for plan in plans)
    engine.close()
    plain, overlapped = (
        replay(make_engine(tiny_model, num_kv_blocks=8, max_num_batched_tokens=32).executor, plans, overlap)
        for overlap in (False, True)
    )
    assert overlapped == plain


def test_a_step_may_be_sampled_after_the_one_before_was_saved(tiny_model):
    """What the host learns from a step can go into the sampling of the next, whose forward runs meanwhile."""
    plans: list = []
    engine = make_engine(tiny_model, plans, num_kv_blocks=8, max_num_batched_tokens=32)
    engine.generate(mixed_requests())
    engine.close()
    plain = replay(make_engine(tiny_model, num_kv_blocks=8, max_num_batched_tokens=32).executor, plans, overlap=False)
    runner = make_engine(tiny_model, num_kv_blocks=8, max_num_batched_tokens=32).executor
    saved = []
    for plan in plans:
        runner.launch_forward(plan)
        if plan is not plans[0]:
            saved.append(runner.save_output())
        runner.launch_sampling()
    saved.append(runner.save_output())
    runner.close()
    assert saved == plain


def test_what_a_graph_does_beyond_a_steps_needs_changes_no_bit(tiny_model, monkeypatch):
    """A captured graph of the sampling has the penalties and the most alternatives; here its ops run one by one."""
    exact, _ = generate(tiny_model, mixed_requests(), max_num_batched_tokens=32)
    run, graphs = Sampler.run, set()

    def as_captured(self, num_samples, needs, masks, packed):
        graph = SamplingGraph.for_needs(needs)
        graphs.add(graph)
        run(self, num_samples, needs if graph is None else graph.needs, masks, packed)

    monkeypatch.setattr(Sampler, "run", as_captured)
    captured, _ = generate(tiny_model, mixed_requests(), max_num_batched_tokens=32)
    assert captured == exact
    assert graphs >= {SamplingGraph.PENALTIES, SamplingGraph.LOGPROBS}


def test_saving_a_step_reads_its_own_output_object_not_live_state(tiny_model):
    expected, _ = generate(tiny_model, mixed_requests(), enable_overlap_schedule=False)
    late, _ = generate(tiny_model, mixed_requests(), slow=True)
    assert late == expected


def test_the_marker_does_not_swallow_the_token_of_the_step_before(tiny_model):
    undisturbed, _ = generate(tiny_model, [request("a", PROMPT, max_tokens=12)])
    engine = make_engine(tiny_model)
    preempt_at(engine, {"a": [5]})
    engine.add_request(request("a", PROMPT, max_tokens=12))
    deltas, marked_step = [], None
    for _ in range(60):
        deltas += engine.step()
        sequence = next(iter(engine.scheduler.leaving.values()), None)
        if sequence is not None and marked_step is None:
            # The token of the step before the marker has just been saved, while the marker is in flight.
            marked_step = len(deltas)
            assert sequence.num_output_tokens == 5
        if not engine.has_work():
            break
    assert marked_step is not None
    assert answer(deltas) == undisturbed["a"]
    engine.close()


def test_preempted_idx_is_reset_only_after_the_marker_was_emitted(tiny_model):
    engine = make_engine(tiny_model)
    engine.add_request(request("a", PROMPT))
    engine.step()
    slot = engine.scheduler.running[0].slot
    engine.abort("a")
    plan = engine.scheduler.schedule()
    saved = [engine.executor.execute_model_overlap(plan)]
    assert engine.executor.preempted_idx[slot] == plan.step, "set while the step that carries the marker is in flight"
    saved.append(engine.executor.execute_model_overlap(None))
    assert [output.token for output in saved[1].outputs] == [PREEMPTED]
    assert engine.executor.preempted_idx[slot] == -1
    for result in saved:
        engine.scheduler.update(result)
    engine.check_integrity()
    assert not engine.has_work()
    engine.close()


def test_prompt_length_penalties_and_straddling_stops_survive_a_preemption(tiny_model):
    params = {"temperature": 0.7, "seed": 3, "presence_penalty": 1.5, "frequency_penalty": 0.4, "max_tokens": 20}
    free, _ = generate(tiny_model, [request("a", PROMPT, **params)])
    tokens = free["a"][0]
    stop = tuple(tokens[9:13])
    expected, _ = generate(tiny_model, [request("a", PROMPT, stop_token_seqs=(stop,), **params)])
    assert expected["a"][3:] == ("stop", list(stop)) and len(expected["a"][0]) == 13
    for point in range(1, 13):
        got, scheduler = generate(tiny_model, [request("a", PROMPT, stop_token_seqs=(stop,), **params)], {"a": [point]})
        assert got == expected, f"preempted at token {point}"
        assert scheduler.num_preemptions == 1


def test_markers_are_emitted_when_the_whole_batch_is_preempted(tiny_model):
    undisturbed, _ = generate(tiny_model, [request("a", PROMPT), request("b", [8, 8, 8])])
    engine = make_engine(tiny_model)
    preempt_at(engine, {"a": [4], "b": [4]})
    deltas = {"a": [], "b": []}
    for name, prompt in (("a", PROMPT), ("b", [8, 8, 8])):
        engine.add_request(request(name, prompt))
    for _ in range(60):
        for delta in engine.step():
            deltas[delta.request_id].append(delta)
        if not engine.has_work():
            break
    assert not engine.has_work(), "a request waits for a marker that never came"
    assert engine.scheduler.num_preemptions == 2
    assert {name: answer(d) for name, d in deltas.items()} == undisturbed
    engine.close()


def test_the_last_output_does_not_wait_for_the_next_request(tiny_model):
    engine = make_engine(tiny_model)
    engine.add_request(request("a", PROMPT, max_tokens=3))
    deltas = []
    for _ in range(10):
        deltas += engine.step()
    assert len(tokens_of(deltas)) == 3 and deltas[-1].finish_reason == "length"
    assert not engine.has_work()
    engine.check_integrity()
    engine.close()


def test_a_report_in_flight_does_not_overwrite_the_hosts_intent(tiny_model):
    engine = make_engine(tiny_model)
    runner = engine.executor
    gates = [threading.Event(), threading.Event()]
    runner.stream.run(gates[0].wait)
    engine.add_request(request("a", PROMPT, max_tokens=1))
    runner.execute_model_overlap(engine.scheduler.schedule())  # a's only step: the device will report "nothing runs"
    runner.stream.run(gates[1].wait)
    engine.add_request(request("b", PROMPT, max_tokens=2))
    # The host intends to run b; a's report comes after that.
    runner.launch_forward(engine.scheduler.schedule())
    runner.launch_sampling()
    gates[0].set()
    engine.scheduler.update(runner._save_output(runner._in_flight[0]))
    assert not runner.is_idle(), "the step of b is in flight"
    gates[1].set()
    engine.generate([])
    assert runner.is_idle()
    engine.close()


def test_nothing_of_a_discarded_step_comes_back(tiny_model):
    engine = make_engine(tiny_model)
    runner = engine.executor
    engine.add_request(request("a", PROMPT))
    runner.execute_model_overlap(engine.scheduler.schedule())
    runner.preempted_idx[3] = 0
    runner.discard_in_flight()
    assert not runner.has_in_flight() and (runner.preempted_idx == -1).all()
    fresh = make_engine(tiny_model)
    fresh.add_request(request("b", [1, 2, 3]))
    plan = fresh.scheduler.schedule()
    assert runner.execute_model_overlap(plan) is None, "the output of a's step was dropped"
    result = runner.execute_model_overlap(None)
    assert [plan.request_ids[slot] for slot in result.plain_slots] == ["b"] and not result.outputs
    for one in (engine, fresh):
        one.close()


def test_an_error_on_the_device_stream_reaches_the_host(tiny_model):
    engine = make_engine(tiny_model)
    engine.executor.model.forward = lambda rows, kv_cache: (_ for _ in ()).throw(RuntimeError("device fault"))
    engine.add_request(request("a", PROMPT))
    with pytest.raises(RuntimeError, match="device fault"):
        engine.generate([])
    engine.close()


@pytest.mark.parametrize("can_fuse", [True, False])
def test_the_host_sees_how_much_of_a_forward_is_left(tiny_model, can_fuse):
    engine = make_engine(tiny_model)
    runner, model = engine.executor, engine.executor.model
    model.__dict__["_can_fuse"] = can_fuse
    assert runner.forward_left() is None
    engine.add_request(request("a", PROMPT, max_tokens=3))
    begins, goes_on, forward = threading.Event(), threading.Event(), model.forward

    def held(rows, kv_cache):
        begins.set()
        goes_on.wait(60)
        return forward(rows, kv_cache)

    model.forward = held
    engine.step()
    assert begins.wait(60)
    assert runner.forward_left() == 1.0
    goes_on.set()
    runner.stream.synchronize()
    assert runner.forward_left() == 0.0
    assert model.layers_done.array[0] == len(model.layers)
    out = runner.step_in_flight
    assert out.device_start <= out.forward_end <= out.device_end
    while engine.has_work():
        engine.step()
    engine.check_integrity()
    engine.close()
