"""Answers under a grammar or a budget of reasoning: the same overlapped, plain, alone, preempted and continued; complete, or said
to be cut."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import InvalidRequestError
from cluster.grammar import ANY_OBJECT, CHOICE, JSON_SCHEMA, LARK, REGEX, Grammar
from cluster.outputs import FINISH_LENGTH, FINISH_STOP
from cluster.reasoning import ReasoningMarks
from tests.actors.runner.test_overlap import answers, generate, replay
from tests.actors.structured_output.json_tokenizer import EOS, json_tokenizer, write_json_tokenizer
from tests.actors.structured_output.random_schemas import schemas
from tests.engines import answer, make_engine, request, write_tiny_model

TOKENIZER = json_tokenizer()
LIMIT = 96
PERSON = {
    "type": "object",
    "properties": {
        "ab": {"type": "string", "maxLength": 6},
        "true": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["ab", "true"],
    "additionalProperties": False,
}  # fmt: skip
A_PERSON = Grammar(JSON_SCHEMA, json.dumps(PERSON))
# Of a mark of several tokens.
THOUGHT_END = TOKENIZER.encode("<ab>", add_special_tokens=False)
THOUGHT = ReasoningMarks(("{",), ("<ab>",), tuple(THOUGHT_END), is_open=True)
A_THOUGHT_FIRST = Grammar(LARK, 'start: thought /[01]{3}/\nthought[lazy]: /(.|\n)*/ "<ab>"')
FREE = {"temperature": 2.0, "seed": 5, "max_tokens": 60}
PROMPT = [5, 9, 17, 33]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model that has a tokenizer."""
    return write_json_tokenizer(write_tiny_model(tmp_path_factory.mktemp("json-model")))


def text_of(answer) -> str:
    return TOKENIZER.decode(answer[0])


@pytest.fixture(scope="module")
def alone(folder):
    """Answer of a request that runs alone, plain, with nothing cached."""
    engine = make_engine(
        folder, max_num_seqs=1, num_kv_blocks=8, enable_overlap_schedule=False, enable_prefix_caching=False,
        max_model_len=LIMIT,
    )  # fmt: skip

    def run(one) -> tuple:
        engine.check_integrity()
        return answer(engine.generate([one])[one.request_id])

    yield run
    engine.close()


@st.composite
def workloads(draw):
    """Requests with grammars beside plain ones, in an engine that is often too small for them."""
    # Two that need five blocks each: where there are fewer than ten, one of them has to give way.
    long = {"max_tokens": 60, "ignore_eos": True, "temperature": 1.0}
    requests = [request(f"long{i}", [7 + i] * 20, seed=i, grammar=A_PERSON, **long) for i in range(2)]
    thinking = {"thinking_token_budget": draw(st.integers(0, 20)), "reasoning_marks": THOUGHT}
    requests.append(request("thinks", [9] * 5, seed=3, max_tokens=40, ignore_eos=True, **thinking))
    for index in range(draw(st.integers(1, 3))):
        prompt = draw(st.lists(st.integers(3, 127), min_size=1, max_size=30))
        params = {"max_tokens": draw(st.sampled_from([3, 30, 60])), "seed": index}
        params |= draw(st.sampled_from([{}, {"temperature": 1.0}, {"temperature": 2.0, "top_p": 0.9}]))
        params |= draw(st.sampled_from([{}, {"repetition_penalty": 1.2, "logprobs": 2}, {"frequency_penalty": 1.0}]))
        params |= draw(
            st.sampled_from(
                [
                    {},
                    {},
                    {"min_tokens": min(20, params["max_tokens"])},
                    {"logit_bias": {EOS: 20.0}},
                    {"ignore_eos": True},
                ]
            )
        )
        params |= draw(
            st.sampled_from([{}, {}, {"allowed_token_ids": tuple(range(60, 90))}, {"stop_token_seqs": ((4, 4), (90,))}])
        )
        if draw(st.integers(0, 3)):
            params["grammar"] = Grammar(JSON_SCHEMA, json.dumps(draw(schemas())))
        if draw(st.booleans()):
            params |= {"thinking_token_budget": draw(st.integers(0, 20)), "reasoning_marks": THOUGHT}
        requests.append(request(str(index), prompt, **params))
    engine = {
        "num_kv_blocks": draw(st.sampled_from([6, 7, 8, 30])),
        "max_num_seqs": draw(st.integers(2, 4)),
        "max_num_batched_tokens": draw(st.sampled_from([16, 64])),
        "num_threads": draw(st.integers(1, 2)),
    }
    return requests, engine


def test_overlapped_plain_and_solo_runs_agree_bit_for_bit_and_completed_answers_validate(folder, alone):
    seen = Counter()

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(workloads())
    def check(workload):
        requests, sizes = workload
        overlapped, scheduler = generate(folder, requests, max_model_len=LIMIT, **sizes)
        plain, _ = generate(folder, requests, max_model_len=LIMIT, enable_overlap_schedule=False, **sizes)
        assert overlapped == plain
        seen["preempted"] += scheduler.num_preemptions > 0
        for one in requests:
            assert overlapped[one.request_id] == alone(one)
            grammar = one.params.grammar
            if grammar is None:
                seen["thought"] += ends_its_thought(one, overlapped[one.request_id])
                continue
            _, _, _, reason, matched = overlapped[one.request_id]
            seen[reason] += 1
            if reason == FINISH_STOP and matched == EOS:
                jsonschema.validate(json.loads(text_of(overlapped[one.request_id])), json.loads(grammar.text))
                seen["valid"] += 1

    check()
    assert min(seen["preempted"], seen["valid"], seen[FINISH_LENGTH], seen["thought"]) >= 1, seen


def ends_its_thought(one, got) -> bool:
    """Whether an answer is longer than its reasoning may be; whatever forbids tokens, the end stands behind it then."""
    budget = one.params.thinking_token_budget
    tokens = got[0] if budget is None else got[0][budget : budget + len(THOUGHT_END)]
    if budget is None or not tokens:
        return False
    assert tokens == THOUGHT_END[: len(tokens)]
    return len(tokens) == len(THOUGHT_END)


BOUNDED = {"thinking_token_budget": 7, "reasoning_marks": THOUGHT}


@pytest.mark.parametrize("form", [{"grammar": A_PERSON}, {"grammar": A_THOUGHT_FIRST, **BOUNDED}])
def test_an_answer_preempted_and_continued_at_every_token_is_the_undisturbed_one(folder, alone, form):
    one = request("a", PROMPT, logprobs=2, frequency_penalty=0.5, **form, **FREE)
    beside = request("b", [8, 8, 8], temperature=1.0, max_tokens=60, ignore_eos=True)
    expected, tokens = alone(one), alone(one)[0]
    if form["grammar"] is A_PERSON:
        jsonschema.validate(json.loads(text_of(expected)), PERSON)
    else:
        assert tokens[7 : 7 + len(THOUGHT_END)] == THOUGHT_END and set(text_of(expected)[-3:]) <= {"0", "1"}
    assert expected[3:] == (FINISH_STOP, EOS) and len(tokens) > 10
    free = alone(beside)
    for cut in range(1, len(tokens)):
        got, scheduler = generate(folder, [one, beside], {"a": [cut]})
        assert got == {"a": expected, "b": free} and scheduler.num_preemptions == 1, f"preempted at token {cut}"
        resumed = dataclasses.replace(one, attempt=1, output_token_ids=tokens[:cut])
        got, _ = generate(folder, [resumed])
        assert got["a"] == (tokens[cut:], expected[1][cut:], *expected[2:]), f"continued at token {cut}"


def test_a_recorded_schedule_replays_bit_for_bit_with_late_hosts(folder):
    plans: list = []
    requests = [request(str(i), PROMPT + [i], grammar=A_PERSON if i % 2 else None, **FREE) for i in range(5)]
    engine = make_engine(folder, plans, num_kv_blocks=9, max_model_len=LIMIT)
    expected = answers(engine, requests)
    assert any(plan.preempted for plan in plans)
    late, _ = generate(folder, requests, slow=True, num_kv_blocks=9, max_model_len=LIMIT)
    assert late == expected
    runs = [
        replay(make_engine(folder, num_kv_blocks=9, max_model_len=LIMIT).executor, plans, overlap) for overlap in (0, 1)
    ]
    assert runs[0] == runs[1]


def test_what_a_mask_leaves_out_is_in_the_raw_logprobs(folder):
    one = request("a", PROMPT, logprobs=3, grammar=A_PERSON, **FREE)
    raw, _ = generate(folder, [one])
    processed, _ = generate(folder, [one], logprobs_mode="processed")
    assert raw["a"][0] == processed["a"][0]
    first = raw["a"][1][0], processed["a"][1][0]
    assert first[0].logprob < 0 and first[0].top_ids != first[1].top_ids
    # An object begins with a brace, alone or joined to what comes next.
    assert all("{" in TOKENIZER.token_text(t) for t, v in zip(first[1].top_ids, first[1].top_logprobs) if v > -1e9)
    unbounded, _ = generate(folder, [dataclasses.replace(one, params=dataclasses.replace(one.params, grammar=None))])
    assert unbounded["a"][1][0].top_ids == first[0].top_ids


def finished(alone, grammar, **params) -> tuple[str, str, int]:
    """(text, finish reason, number of tokens) of a greedy answer."""
    got = alone(request("a", PROMPT, **{"max_tokens": 20, "grammar": grammar, **params}))
    return text_of(got), got[3], len(got[0])


def test_the_end_of_a_structure_and_of_the_budget(alone):
    ab = Grammar(CHOICE, '["ab"]')
    assert finished(alone, ab) == ("ab", FINISH_STOP, 2)
    assert finished(alone, ab, max_tokens=1) == ("ab", FINISH_LENGTH, 1)
    # Nothing can follow, so the minimum is reached with ends, and whoever ignores them gets them to the last token.
    assert finished(alone, ab, min_tokens=6) == ("ab", FINISH_STOP, 7)
    assert finished(alone, ab, ignore_eos=True) == ("ab", FINISH_LENGTH, 20)
    # What a grammar asks for goes before what forbids it.
    assert finished(alone, ab, allowed_token_ids=(60,)) == ("ab", FINISH_STOP, 2)
    assert finished(alone, ab, bad_token_seqs=tuple((t,) for t in TOKENIZER.encode("ab", False))) == (
        "ab",
        FINISH_STOP,
        2,
    )
    assert finished(alone, ab, logit_bias={EOS: 100.0}) == ("ab", FINISH_STOP, 2)
    ends_sooner = tuple(TOKENIZER.encode("b", False))
    assert finished(alone, Grammar(REGEX, "a?b{9}"), stop_token_ids=ends_sooner)[1:] in (
        (FINISH_STOP, 1),
        (FINISH_STOP, 2),
    )


def test_an_answer_so_far_that_is_outside_the_grammar_ends_at_once_as_cut(folder):
    got, _ = generate(folder, [request("a", PROMPT, output_token_ids=[60, 61], max_tokens=9, grammar=A_PERSON)])
    assert got["a"][0] == [EOS] and got["a"][3:] == (FINISH_LENGTH, None)


def test_refused_grammars_leave_nothing_behind(folder, tiny_model):
    engine, bare = make_engine(folder), make_engine(tiny_model)
    with pytest.raises(
        InvalidRequestError, match=r"response_format: the json_schema is not supported at #: Unimplemented"
    ):
        engine.add_request(request("a", PROMPT, grammar=Grammar(JSON_SCHEMA, '{"not": {"type": "null"}}')))
    with pytest.raises(InvalidRequestError, match=r"follows no grammar|has no tokenizer"):
        bare.add_request(request("a", PROMPT, grammar=Grammar(JSON_SCHEMA, ANY_OBJECT)))
    for one in (engine, bare):
        assert not one.has_work()
        one.check_integrity()
        one.close()
