"""Sampling parameters are refused where they are made, in the words that the API has for the same value."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields
from typing import Any

import pytest

from cluster.api_errors import ApiError
from cluster.errors import InvalidRequestError
from cluster.grammar import REGEX, Grammar
from cluster.sampling_params import SamplingParams
from deployments.openai_api.requests.protocol import CompletionRequest, parse_request

# What is none in a request is a default here, or has another form.
OWN = {
    "max_tokens",
    "logit_bias",
    "allowed_token_ids",
    "bad_token_seqs",
    "grammar",
    "thinking_token_budget",
    "reasoning_marks",
}
LISTS = {"stop", "stop_token_ids", "stop_token_seqs"}
NUMBERS = [field.name for field in fields(SamplingParams) if field.name not in OWN | LISTS | {"ignore_eos"}]


def refusal(**values: Any) -> str | None:
    try:
        SamplingParams(**values)
    except InvalidRequestError as error:
        return error.message if error.message.startswith(str(error.param)) else f"{error.param} is not named first"
    return None


def refusal_of_api(**values: Any) -> str | None:
    try:
        parse_request(CompletionRequest, {"prompt": "x", **values})
    except ApiError as error:
        return error.message
    return None


def tried(name: str) -> list[Any]:
    """Values of other kinds, and some below, at and above each bound of a request's field."""
    field = CompletionRequest.model_fields[name]
    limits = [getattr(bound, kind, None) for bound in field.metadata for kind in ("ge", "gt", "le", "lt")]
    offsets = (-1, -0.001, 0, 0.001, 1) if isinstance(field.default, float) else (-1, 0, 1)
    near = [limit + off for limit in limits if limit is not None for off in offsets]
    return [*near, "text", True, {"a": 1}, 10**300]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_refused_where_the_api_refuses_it(name):
    others = {"max_tokens": 2**31 - 1} if name == "min_tokens" else {}
    said = {str(value): refusal(**{name: value}, **others) for value in tried(name)}
    assert said == {str(value): refusal_of_api(**{name: value}) for value in tried(name)}
    assert sum(message is not None for message in said.values()) >= 5
    assert None in said.values()


def test_a_budget_of_reasoning_is_refused_by_name():
    assert refusal(thinking_token_budget=0) is None
    assert refusal(thinking_token_budget=-1) == "thinking_token_budget: must be at least 0, got -1"
    assert refusal(thinking_token_budget=1.5) == "thinking_token_budget: must be an integer, got 1.5"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", ["x"] * 17),
        ("stop", ["x" * 1025]),
        ("stop", ["x", ""]),
        ("stop", [5]),
        ("stop", ["\ud800"]),
        ("stop", ["x"] * 16),
        ("stop_token_ids", [1, -1]),
        ("stop_token_ids", [2**31]),
        ("stop_token_ids", ["x"]),
        ("stop_token_ids", [True]),
        ("stop_token_ids", [1] * 33),
        ("stop_token_ids", "x"),
        ("stop_token_ids", [0, 2**31 - 1]),
        ("stop_token_seqs", [[]]),
        ("stop_token_seqs", [[1], [1] * 17]),
        ("stop_token_seqs", [[1]] * 9),
        ("stop_token_seqs", [[1, -2]]),
        ("stop_token_seqs", [5]),
        ("allowed_token_ids", [1, -1]),
        ("allowed_token_ids", [1] * 1025),
        ("ignore_eos", 1),
        ("ignore_eos", "yes"),
        ("max_tokens", "x"),
        ("max_tokens", 2**31),
    ],
)
def test_a_list_is_refused_where_the_api_refuses_it(name, value):
    assert refusal(**{name: value}) == refusal_of_api(**{name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: must be at least 1, got 0"),
        ({"max_tokens": None}, "max_tokens: must be an integer, got null"),
        ({"temperature": float("nan")}, "temperature: must be a finite number, got NaN"),
        ({"top_p": float("inf")}, "top_p: must be a finite number, got Infinity"),
        ({"top_k": 1.5}, "top_k: must be an integer, got 1.5"),
        ({"min_tokens": 17}, "min_tokens (17) must be at most max_tokens (16)"),
        ({"stop": "END"}, 'stop: must be a list, got "END"'),
        ({"logit_bias": {"5": 1.0}}, 'logit_bias: keys must be token ids, got "5"'),
        ({"logit_bias": {5: 101}}, "logit_bias.5: must be at most 100, got 101"),
        (
            {"logit_bias": dict.fromkeys(range(301), 1.0)},
            "logit_bias: must have at most 300 items, got an object of 301 items",
        ),
        ({"logit_bias": [5]}, "logit_bias: must be an object, got [5]"),
        ({"bad_token_seqs": [[1] * 9]}, "bad_token_seqs.0: must have at most 8 items, got [1, 1, 1, 1, 1, 1, 1, 1, 1]"),
        ({"grammar": "[a-z]"}, "grammar: must be a Grammar or None"),
    ],
)
def test_what_the_api_has_in_another_form_is_refused_by_name(values, message):
    assert refusal(**values) == message


def test_what_is_right_stays_as_it_is():
    params = SamplingParams(
        temperature=0,
        top_k=-1,
        stop=["a"],
        stop_token_seqs=[[1, 2]],
        logit_bias={3: -1.0},
        grammar=Grammar(REGEX, "a*"),  # type: ignore[arg-type]
    )
    assert (params.top_k, params.stop, params.stop_token_seqs) == (0, ("a",), ((1, 2),))
    hash((params.stop, params.stop_token_seqs))
    for other in (pickle.loads(pickle.dumps(params)), copy.copy(params), params.with_seed(params.seed)):
        assert other == params
    assert params.with_seed(7).seed == 7
    assert params.seed == 0
