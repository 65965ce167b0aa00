"""Log-probabilities under grammars and budgets, in both modes, with all that changes logits beside them: the same bits wherever
an answer goes on, and of the distribution that the mode names."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest

from cluster.grammar import CHOICE, LARK, REGEX, Grammar
from tests.actors.engine.test_grammar import A_PERSON, A_THOUGHT_FIRST, BOUNDED, EOS, PROMPT, TOKENIZER
from tests.actors.runner.test_overlap import generate, generate_in_steps, preempt_at
from tests.actors.structured_output.json_tokenizer import write_json_tokenizer
from tests.engines import answer, make_engine, request, write_tiny_model

MODES = ("raw", "processed")
LIMIT = 64
PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.2}
(B,) = TOKENIZER.encode("b", add_special_tokens=False)
BESIDE = {
    "alone": {},
    "penalties": PENALTIES,
    "bias": {"logit_bias": {EOS: 8.0, B: -4.0, 60: 3.0}, "min_tokens": 18, "ignore_eos": False},
    "forbidden": {"bad_token_seqs": ((B,), (61, 62)), "allowed_token_ids": tuple(range(3, 120)), **PENALTIES},
    "stops": {"stop_token_seqs": ((B, B), (90, 4)), "min_tokens": 4, "logit_bias": {B: 1.0}},
    "filters": {"top_k": 9, "top_p": 0.9, "min_p": 0.01},
}
FORMS = {
    "json": {"grammar": A_PERSON},
    "free text with a tag": {"grammar": Grammar(LARK, 'start: (/[a-f0-9]{1,4}/ "{" /[tb]{2}/ "}")+ ')},
    "thought": BOUNDED,
    "thought, then a form": {"grammar": A_THOUGHT_FIRST, **BOUNDED},
}
# Each form beside a third of what else changes logits, and all of that.
PAIRS = [(form, beside) for i, form in enumerate(FORMS) for j, beside in enumerate(BESIDE) if (i + j) % 3 == 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_json_tokenizer(write_tiny_model(tmp_path_factory.mktemp("json-model")))


def choices(form: str, beside: str, n: int = 3) -> list:
    """What ``n`` choices of a request are to an engine: the same under seeds of their own."""
    params = {"temperature": 1.3, "max_tokens": 20, "logprobs": 5, **FORMS[form], **BESIDE[beside]}
    return [request(str(i), PROMPT, seed=11 + i, **params) for i in range(n)]


@pytest.mark.parametrize("mode", MODES)
def test_choices_are_the_same_overlapped_plain_preempted_and_continued(folder, mode):
    settings = {"max_model_len": LIMIT, "logprobs_mode": mode}
    alone = make_engine(folder, max_num_seqs=1, enable_overlap_schedule=False, enable_prefix_caching=False, **settings)
    preempting, other = make_engine(folder, **settings), make_engine(folder, **settings)
    preempted = 0
    for form, beside in PAIRS:
        what, several = f"{mode}, {form}, {beside}", choices(form, beside)
        expected = {one.request_id: answer(alone.generate([one])[one.request_id]) for one in several}
        assert len({tuple(got[0]) for got in expected.values()}) > 1, what
        assert all(len(got[1]) == len(got[0]) for got in expected.values()), what
        preempt_at(preempting, {one.request_id: [1 + i, 9 + i] for i, one in enumerate(several)})
        got = {name: answer(deltas) for name, deltas in generate_in_steps(preempting, several).items()}
        assert got == expected, what
        preempted += preempting.scheduler.num_preemptions
        # Another engine goes on, at every fourth token.
        for one in several:
            tokens, logprobs, *ends = expected[one.request_id]
            for cut in range(1, len(tokens), 4):
                resumed = dataclasses.replace(one, attempt=1, output_token_ids=tokens[:cut])
                got = answer(other.generate([resumed])[one.request_id])
                assert got == (tokens[cut:], logprobs[cut:], *ends), f"{what}, continued at {cut}"
    assert preempted > 3 * len(PAIRS)
    for engine in (alone, preempting, other):
        engine.check_integrity()
        engine.close()


def test_raw_logprobs_are_those_of_the_same_text_as_a_prompt(folder):
    """A prompt is scored without grammar, penalties and temperature."""
    engine = make_engine(folder, max_model_len=LIMIT)
    for form, beside in itertools.product(FORMS, BESIDE):
        (one,) = choices(form, beside, n=1)
        tokens, logprobs, *_ = answer(engine.generate([one])["0"])
        scored = request("scored", PROMPT + tokens, prompt_logprobs=5, max_tokens=1)
        (of_prompt,) = answer(engine.generate([scored])["scored"])[2]
        assert list(of_prompt)[-len(tokens) :] == logprobs, f"{form}, {beside}"
    engine.close()


def test_processed_logprobs_are_of_what_is_allowed_at_its_temperature(folder):
    digits = request(
        "a", PROMPT, temperature=0.7, seed=3, logprobs=20, max_tokens=4, grammar=Grammar(REGEX, "[0-3]{9}")
    )
    processed, _ = generate(folder, [digits], logprobs_mode="processed")
    warmer = dataclasses.replace(digits, params=dataclasses.replace(digits.params, temperature=1.4))
    warm, _ = generate(folder, [warmer], logprobs_mode="processed")
    raw, _ = generate(folder, [digits])
    for position, one in enumerate(processed["a"][1]):
        left = {t: v for t, v in zip(one.top_ids, one.top_logprobs) if v > -math.inf}
        assert 4 <= len(left) < 20 and {TOKENIZER.token_text(t)[0] for t in left} <= set("0123")
        assert sum(map(math.exp, left.values())) == pytest.approx(1, abs=1e-5)
        assert one.logprob == left[processed["a"][0][position]]
    # Between two tokens a temperature divides what there is of the model's own, and of nothing else.
    cold, warm_first, of_model = processed["a"][1][0], warm["a"][1][0], raw["a"][1][0]
    first, second = cold.top_ids[:2]
    between = [one.top_logprobs[0] - one.top_logprobs[1] for one in (cold, warm_first)]
    assert between[0] == pytest.approx(2 * between[1], rel=1e-4) and warm_first.top_ids[:2] == [first, second]
    seen = dict(zip(of_model.top_ids, of_model.top_logprobs))
    if {first, second} <= seen.keys():
        assert between[0] == pytest.approx((seen[first] - seen[second]) / 0.7, rel=1e-4)


def test_a_bias_is_in_processed_logprobs_and_not_in_raw_ones(folder):
    ab = request(
        "a", PROMPT, temperature=1.0, logprobs=3, max_tokens=1, grammar=Grammar(CHOICE, json.dumps(["a", "b"]))
    )
    biased = dataclasses.replace(ab, params=dataclasses.replace(ab.params, logit_bias={B: 2.5}))
    by_mode = {}
    for mode in MODES:
        got = [generate(folder, [one], logprobs_mode=mode)[0]["a"][1][0] for one in (ab, biased)]
        by_mode[mode] = [dict(zip(one.top_ids, one.top_logprobs)) for one in got]
    assert by_mode["raw"][0] == by_mode["raw"][1]
    (a,) = TOKENIZER.encode("a", add_special_tokens=False)
    odds = [one[B] - one[a] for one in by_mode["processed"]]
    assert odds[1] - odds[0] == pytest.approx(2.5, abs=1e-4)
