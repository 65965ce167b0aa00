"""On the CPU an answer depends on its request alone: not on neighbours, chunks, preemptions, cache hits or threads."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.engine.loading import load_engine
from cluster.config import EngineConfig
from gpu_ops.kv_cache import CPU_TYPES
from tests.actors.runner.test_overlap import generate, preempt_at
from tests.engines import OTHER_MODELS, answer, make_engine, request, write_tiny_model

LIMIT = 96  # tokens a request may have: six blocks


@pytest.fixture(scope="module")
def solo(tiny_model):
    """Answer of a request that runs alone, plain, with a pool to itself and nothing cached; remembered by its content."""
    engines = {
        dtype: make_engine(
            tiny_model, max_num_seqs=1, num_kv_blocks=8, enable_overlap_schedule=False, enable_prefix_caching=False,
            kv_cache_dtype=dtype,
        )
        for dtype in CPU_TYPES
    }  # fmt: skip

    @functools.cache
    def run(prompt: tuple[int, ...], items: tuple, dtype: str) -> tuple:
        return answer(engines[dtype].generate([request("solo", list(prompt), **dict(items))])["solo"])

    yield lambda prompt, params, dtype="float32": run(tuple(prompt), tuple(sorted(params.items())), dtype)
    for engine in engines.values():
        engine.close()


@st.composite
def workloads(draw):
    """Requests with arrival steps, priorities, aborts, and an engine that is often too small for them."""
    # A few shared beginnings, so that prefixes are found in the cache.
    heads = [[11] * 20, [12, 13] * 16, [], [], []]
    requests, is_crowded = [], draw(st.booleans())
    if is_crowded:
        # Two that begin at once and need five blocks each: one of them has to give way. A third begins as they do.
        prompt = draw(st.lists(st.integers(0, 127), min_size=20, max_size=20))
        for name, arrival, max_tokens in (("long", 0, 60), ("longer", 0, 60), ("later", 2, 12)):
            params = {"max_tokens": max_tokens, "ignore_eos": True}
            prompt = [*prompt[:19], len(requests)]
            requests.append(
                {"name": name, "prompt": prompt, "params": params, "arrival": arrival, "priority": 0, "abort": None}
            )
    for index in range(draw(st.integers(3, 7) if not is_crowded else st.integers(1, 4))):
        prompt = draw(st.sampled_from(heads)) + draw(st.lists(st.integers(0, 127), min_size=1, max_size=20))
        params = {"max_tokens": draw(st.sampled_from([1, 24, 40, 40]))}
        params["max_tokens"] = min(params["max_tokens"], LIMIT - len(prompt))
        if draw(st.booleans()):
            params |= {"temperature": draw(st.sampled_from([0.5, 1.0])), "seed": draw(st.integers(0, 3))}
            params |= draw(st.sampled_from([{}, {"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.1}]))
        params |= draw(st.sampled_from([{}, {"repetition_penalty": 1.2}, {"presence_penalty": 1.0}, {"logprobs": 2}]))
        params |= draw(st.sampled_from([{}, {"min_tokens": params["max_tokens"] // 2}, {"stop_token_ids": (17, 40)}]))
        if draw(st.booleans()):
            params["stop_token_seqs"] = ((67, 11), (11, 11, 11))
        requests.append(
            {
                "name": str(index), "prompt": prompt, "params": params,
                "arrival": draw(st.sampled_from([0, 0, 0, 2, 45])), "priority": draw(st.integers(0, 2)),
                "abort": draw(st.sampled_from([None, None, None, None, 17, 30])),
            }
        )  # fmt: skip
    engine = {
        "num_kv_blocks": draw(st.sampled_from([6, 7] if is_crowded else [6, 7, 12])),
        "max_num_seqs": draw(st.integers(3, 5)),
        "max_num_batched_tokens": draw(st.sampled_from([16, 24, 64])),
        "num_threads": draw(st.integers(1, 2)),
        "enable_prefix_caching": draw(st.sampled_from([True, True, False])),
    }
    return requests, engine


def drive(engine, requests) -> dict:
    """Answers of the requests that were not aborted."""
    deltas: dict[str, list] = {r["name"]: [] for r in requests}
    aborted = set()
    for step in range(5000):
        for r in requests:
            if r["arrival"] == step:
                engine.add_request(request(r["name"], r["prompt"], priority=r["priority"], **r["params"]))
            if r["abort"] == step and engine.abort(r["name"]) is not None:
                aborted.add(r["name"])
        for delta in engine.step():
            deltas[delta.request_id].append(delta)
        engine.scheduler.check_integrity()
        if step > 45 and not engine.has_work():
            break
    engine.check_integrity()
    assert engine.scheduler.kv_cache.num_available == engine.scheduler.kv_cache.num_blocks
    return {name: answer(d) for name, d in deltas.items() if name not in aborted}


def test_overlapped_plain_and_solo_runs_agree_bit_for_bit(tiny_model, solo):
    seen = Counter()

    @settings(max_examples=30 // len(CPU_TYPES), deadline=None)
    @given(workloads())
    def check(dtype, workload):
        requests, settings_ = workload
        settings_ |= {"kv_cache_dtype": dtype}
        answers = []
        for overlap in (True, False):
            engine = make_engine(tiny_model, max_model_len=LIMIT, enable_overlap_schedule=overlap, **settings_)
            try:
                answers.append(drive(engine, requests))
            finally:
                engine.close()
        for r in requests:
            for got in answers:
                if r["name"] in got:
                    assert got[r["name"]] == solo(r["prompt"], r["params"], dtype)
        seen["preempted"] += engine.scheduler.num_preemptions > 0
        seen["prefix found"] += engine.scheduler.num_cached_prompt_tokens > 0
        seen["aborted"] += len(answers[1]) < len(requests)

    for dtype in CPU_TYPES:
        check(dtype)
    # A workload that never gets into trouble proves little.
    assert min(seen["preempted"], seen["prefix found"], seen["aborted"]) > 1, seen


@pytest.mark.parametrize("dtype", CPU_TYPES)
def test_a_continuation_on_another_engine_goes_on_exactly(tiny_model, dtype):
    params = {
        "temperature": 0.9,
        "seed": 4,
        "frequency_penalty": 0.7,
        "min_tokens": 10,
        "max_tokens": 16,
        "logprobs": 1,
    }
    _continue_everywhere(tiny_model, params, kv_cache_dtype=dtype)


def _continue_everywhere(folder, params, **settings) -> list[int]:
    """The tokens of an answer, after a look whether it goes on exactly from each of them."""
    whole, _ = generate(folder, [request("a", [3, 4, 5], **params)], **settings)
    tokens, logprobs, *end = whole["a"]
    for cut in range(1, len(tokens)):
        resumed = request("a", [3, 4, 5], attempt=1, output_token_ids=tokens[:cut], **params)
        got, _ = generate(folder, [resumed], **settings)
        assert got["a"] == (tokens[cut:], logprobs[cut:], *end)
    return tokens


# Of few tokens, so that what is forbidden would come soon.
FEW = {"temperature": 2.0, "seed": 3, "max_tokens": 40, "ignore_eos": True, "allowed_token_ids": (40, 41, 42, 43)}
BAD = ((43,), (40, 41), (41, 42, 42), (42, 40, 42, 41))


def pieces_of(tokens: list[int]) -> set[tuple[int, ...]]:
    return {tuple(tokens[i : i + n]) for n in (1, 2, 3, 4) for i in range(len(tokens) - n + 1)}


def test_bounded_answers_keep_their_bounds_beside_others_preempted_and_continued(tiny_model, solo):
    free, _ = generate(tiny_model, [request("a", [3, 4, 5], **FEW)])
    assert set(free["a"][0]) == set(FEW["allowed_token_ids"])
    assert len(pieces_of(free["a"][0]) & set(BAD)) >= 3
    params = {**FEW, "bad_token_seqs": BAD, "max_tokens": 16, "logprobs": 1}
    tokens = _continue_everywhere(tiny_model, params)
    assert set(tokens) <= {40, 41, 42} and not pieces_of(tokens) & set(BAD)
    requests = [request(f"r{i}", [3, 4, 5 + i], **{**params, "seed": i, "max_tokens": 40}) for i in range(3)]
    plain = [request(f"p{i}", [7 + i] * 9, max_tokens=40, ignore_eos=True, temperature=1.0, seed=i) for i in range(2)]
    for overlap in (True, False):
        got, scheduler = generate(
            tiny_model, [*requests, *plain], num_kv_blocks=11, max_model_len=LIMIT, enable_overlap_schedule=overlap,
            max_num_seqs=5,
        )  # fmt: skip
        assert scheduler.num_preemptions > 0
        for i, r in enumerate(requests):
            assert got[r.request_id] == solo(r.prompt_token_ids, {**params, "seed": i, "max_tokens": 40})
            assert not pieces_of(got[r.request_id][0]) & set(BAD)
        for i, r in enumerate(plain):
            alone = {"max_tokens": 40, "ignore_eos": True, "temperature": 1.0, "seed": i}
            assert got[r.request_id] == solo(r.prompt_token_ids, alone)


def test_each_bound_works_alone(tiny_model):
    free, _ = generate(tiny_model, [request("a", [3, 4, 5], max_tokens=4)])
    first, second, *_ = free["a"][0]
    bounds = {"bad_token_seqs": ((first, second),)}, {"bad_token_seqs": ((first,),)}, {"allowed_token_ids": (second,)}
    after, before, only = (
        generate(tiny_model, [request("a", [3, 4, 5], max_tokens=4, **bound)])[0]["a"][0] for bound in bounds
    )
    assert after[0] == first and after[1] != second
    assert before[0] != first and first not in before
    assert only == [second] * 4


def test_processed_logprobs_are_of_what_is_drawn_from(tiny_model):
    params = {**FEW, "bad_token_seqs": ((43,),), "logprobs": 4, "max_tokens": 12, "presence_penalty": 1.0}
    drawn, greedy = request("a", [3, 4], **params), request("b", [3, 4], **{**params, "temperature": 0.0})
    raw, _ = generate(tiny_model, [drawn, greedy])
    got, _ = generate(tiny_model, [drawn, greedy], logprobs_mode="processed")
    plain, _ = generate(tiny_model, [drawn, greedy], logprobs_mode="processed", enable_overlap_schedule=False)
    assert got == plain
    for name in ("a", "b"):
        assert got[name][0] == raw[name][0]
        for entry in got[name][1]:
            likely = [value for value in entry.top_logprobs if np.isfinite(value)]
            assert set(entry.top_ids[: len(likely)]) == {40, 41, 42}
            assert np.exp(likely).sum() == pytest.approx(1, abs=1e-5)
        assert all(np.exp(entry.top_logprobs).sum() < 0.9 for entry in raw[name][1])
    # Twice the temperature halves what parts two tokens.
    first, greedy_first = got["a"][1][0].top_logprobs, got["b"][1][0].top_logprobs
    assert first[0] - first[2] == pytest.approx((greedy_first[0] - greedy_first[2]) / 2, abs=1e-5)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((family, "auto") for family in OTHER_MODELS), ("llama", "bfloat16"), ("llama", "int8"), ("olmo2", "int8")],
)
def test_other_models_and_caches_give_the_same_bits_overlapped_preempted_and_alone(tmp_path, family, dtype):
    """Beside neighbours, in chunks of other sizes, with prefixes found in the cache, on two threads, and on a pool too small."""
    folder = write_tiny_model(tmp_path, family)
    params = [{}, {"temperature": 1.0, "seed": 9}]
    requests = [
        request(
            str(i), [11] * 20 + list(range(3, 10 + 9 * i)), max_tokens=30, logprobs=3, ignore_eos=True, **params[i % 2]
        )
        for i in range(4)
    ]
    plain = {"max_num_seqs": 1, "enable_overlap_schedule": False, "enable_prefix_caching": False}
    expected, _ = generate(folder, requests, kv_cache_dtype=dtype, **plain)
    for budget, overlap, threads in ((16, True, 1), (33, True, 2), (64, False, 2)):
        got, scheduler = generate(
            folder, requests, max_num_seqs=4, max_num_batched_tokens=budget, num_threads=threads, num_kv_blocks=11,
            max_model_len=LIMIT, enable_overlap_schedule=overlap, kv_cache_dtype=dtype,
        )  # fmt: skip
        assert got == expected
        assert scheduler.num_preemptions > 0


@pytest.mark.parametrize("dtype", CPU_TYPES)
def test_neighbours_and_chunk_sizes_do_not_change_a_bit(tiny_model, solo, dtype):
    params = {"temperature": 1.0, "seed": 9, "logprobs": 4, "max_tokens": 10}
    prompt = list(range(1, 80))
    for budget in (16, 17, 33, 64, 128):
        for neighbours in (0, 3):
            others = [request(f"n{i}", [i + 1] * (i + 5), max_tokens=10) for i in range(neighbours)]
            got, _ = generate(
                tiny_model, [*others, request("a", prompt, **params)], max_num_batched_tokens=budget, num_threads=2,
                kv_cache_dtype=dtype,
            )  # fmt: skip
            assert got["a"] == solo(prompt, params, dtype)


def test_the_types_of_a_cache_are_not_the_same_by_another_name(solo):
    params = {"logprobs": 4, "max_tokens": 10}
    assert len({str(solo(list(range(1, 80)), params, dtype)) for dtype in CPU_TYPES}) == len(CPU_TYPES)


@pytest.mark.slow
@pytest.mark.parametrize("num_threads", [1, 2])
def test_smollm2_preempted_at_every_token_equals_the_undisturbed_run(smollm2_source, num_threads):
    config = EngineConfig(num_threads=num_threads, num_kv_blocks=64, max_num_batched_tokens=128, max_num_seqs=8)
    engine = load_engine(config)
    prompt = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    base = request("base", prompt, max_tokens=21, temperature=0.8, seed=11, logprobs=2, ignore_eos=True)
    expected = answer(engine.generate([base])["base"])
    preempt_at(engine, {str(point): [point] for point in range(1, 21)})
    points = list(range(1, 21))
    for together in (points[first::4] for first in range(4)):
        deltas = engine.generate([dataclasses.replace(base, request_id=str(point)) for point in together])
        for point in together:
            assert answer(deltas[str(point)]) == expected, f"preempted at token {point}"
    assert engine.scheduler.num_preemptions == 20
    engine.check_integrity()
    engine.close()
