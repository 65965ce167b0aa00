"""Answers under a grammar on the GPU: masks in graphs, beside plain rows, preempted and continued."""

from __future__ import annotations

import dataclasses
import json

import jsonschema
import pytest

from actors.runner.sampler import SamplingGraph
from tests.actors.engine.test_grammar import A_PERSON, FREE, PERSON, PROMPT, text_of
from tests.actors.runner.test_overlap import answers, replay
from tests.actors.structured_output.json_tokenizer import write_json_tokenizer
from tests.engines import request
from tests.gpu.parts.engines import gpu_engine, write_tiny_gpu_model

INVARIANT = {"batch_invariant": True, "max_num_batched_tokens": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_json_tokenizer(write_tiny_gpu_model(tmp_path_factory.mktemp("json-gpu-model")))


def requests_of(num: int) -> list:
    """Every other one has a grammar."""
    return [request(str(i), PROMPT + [i], grammar=A_PERSON if i % 2 else None, **FREE) for i in range(num)]


def generate(folder, requests, at=None, slow=False, **settings):
    return answers(gpu_engine(folder, **INVARIANT, **settings), requests, at, slow)


@pytest.mark.parametrize("more", [{}, {"logprobs": 3}, {"repetition_penalty": 1.2}])
def test_masked_steps_replay_graphs_with_the_bits_of_their_ops(folder, more):
    requests = [request(str(i), PROMPT + [i], grammar=A_PERSON, **FREE, **more) for i in range(4)]
    engine, replayed = gpu_engine(folder, **INVARIANT), set()
    replay_graph = engine.executor.graphs.sample

    def noted(num_samples, kind):
        found = replay_graph(num_samples, kind)
        replayed.add((kind, found))
        return found

    engine.executor.graphs.sample = noted
    got = answers(engine, requests)
    assert got == generate(folder, requests, enforce_eager=True)
    assert replayed == {(SamplingGraph.LOGPROBS if "logprobs" in more else SamplingGraph.GRAMMAR, True)}
    for one in got.values():
        jsonschema.validate(json.loads(text_of(one)), PERSON)


def test_plain_rows_beside_masked_ones_keep_their_bits(folder):
    together = generate(folder, requests_of(5))
    for one in requests_of(5):
        assert generate(folder, [one])[one.request_id] == together[one.request_id]
    free = [dataclasses.replace(one, params=dataclasses.replace(one.params, grammar=None)) for one in requests_of(5)]
    without = generate(folder, free)
    assert [without[str(i)] for i in (0, 2, 4)] == [together[str(i)] for i in (0, 2, 4)]
    assert without["1"] != together["1"]


def test_a_preempted_or_continued_answer_is_the_undisturbed_one(folder):
    one = request("a", PROMPT, logprobs=2, frequency_penalty=0.5, grammar=A_PERSON, **FREE)
    expected = generate(folder, [one])["a"]
    tokens = expected[0]
    assert len(tokens) > 10
    for cut in range(1, len(tokens), 3):
        assert generate(folder, [one], {"a": [cut]})["a"] == expected, f"preempted at token {cut}"
        resumed = dataclasses.replace(one, attempt=1, output_token_ids=tokens[:cut])
        continued = generate(folder, [resumed])["a"]
        assert continued == (tokens[cut:], expected[1][cut:], *expected[2:]), f"continued at token {cut}"


def test_a_recorded_schedule_replays_bit_for_bit_with_late_hosts(folder):
    plans: list = []
    settings = {"num_kv_blocks": 9, "max_model_len": 96}
    expected = answers(gpu_engine(folder, plans, **settings), requests_of(5))
    assert any(plan.preempted for plan in plans)
    plain, overlapped = (replay(gpu_engine(folder, **settings).executor, plans, over) for over in (False, True))
    assert plain == overlapped
    invariant = generate(folder, requests_of(5))
    assert generate(folder, requests_of(5), slow=True) == invariant
    assert expected.keys() == invariant.keys()
