"""What the API takes and what it refuses, by name."""

from __future__ import annotations

import pytest
from openai.types.chat import ChatCompletionMessage

from cluster.api_errors import ApiError
from deployments.openai_api.requests.protocol import (
    MAX_STOP_STRINGS,
    ChatCompletionRequest,
    CompletionRequest,
    parse_request,
)
from deployments.openai_api.requests.sampling import ModelLimits, assign_seed, sampling_params

USER = {"role": "user", "content": "hi"}
LIMITS = ModelLimits(max_model_len=64, vocab_size=100)


def refusal(kind, body) -> dict:
    with pytest.raises(ApiError) as caught:
        parse_request(kind, body)
    assert caught.value.status == 400
    return caught.value.body()["error"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"foo": 1}, "foo", "unknown_parameter"),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"temperature": True}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_tokens": "16"}, "max_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 10**9}, "n", "invalid_value"),
        ({"seed": -(2**63) - 1}, "seed", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": ["x"] * (MAX_STOP_STRINGS + 1)}, "stop", "invalid_value"),
        ({"stop": 5}, "stop", "invalid_value"),
        ({"stop": "y" * 5000}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a", ""]}, "stop.1", "invalid_value"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "invalid_value"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"07": 1}}, "logit_bias", "invalid_value"),
        ({"stop_token_ids": list(range(40))}, "stop_token_ids", "invalid_value"),
        ({"stop_token_seqs": [[1], list(range(17))]}, "stop_token_seqs.1", "invalid_value"),
        ({"stop_token_seqs": [[]]}, "stop_token_seqs.0", "invalid_value"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"3": 101}}, "logit_bias", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"structural_tag": {"type": "json_object"}}, "structural_tag", "unsupported_parameter"),
        ({"response_format": "json"}, "response_format", "invalid_value"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"best_of": 3}, "best_of", "unsupported_parameter"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"bar": 1}}, "stream_options.bar", "unknown_parameter"),
        ({"priority": 2**40}, "priority", "invalid_value"),
        ({"user": "u" * 5000}, "user", "invalid_value"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(fields, param, code):
    error = refusal(CompletionRequest, {"prompt": "x", **fields})
    assert (error["param"], error["code"]) == (param, code)
    assert param.split(".")[-1] in error["message"] or param.split(".")[0] in error["message"]
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    "fields",
    [
        {
            "user": "me",
            "metadata": {"a": "b"},
            "store": False,
            "service_tier": "auto",
            "seed": None,
            "tools": [],
            "response_format": {"type": "text"},
            "best_of": 1,
            "suffix": None,
            "temperature": 0,
            "top_k": -1,
        },
        {"stop": "one"},
        {"stream": True, "stream_options": {"include_usage": True}},
    ],
)
def test_harmless_fields_are_accepted(fields):
    parse_request(CompletionRequest, {"prompt": "x", **fields})


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("text", ["text"]),
        ([1, 2], [[1, 2]]),
        (["a", "b"], ["a", "b"]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_the_four_forms_of_a_prompt(prompt, prompts):
    assert parse_request(CompletionRequest, {"prompt": prompt}).prompt.items == prompts


@pytest.mark.parametrize(
    "prompt", [[], [[]], 5, {"a": 1}, [1, "a"], ["a", 1], [1, -2], [1, True], [1.5], [[1], [2**31]]]
)
def test_a_prompt_of_no_form_is_refused(prompt):
    with pytest.raises(ApiError) as caught:
        parse_request(CompletionRequest, {"prompt": prompt})
    assert caught.value.status == 400
    assert caught.value.param.startswith("prompt")


@pytest.mark.parametrize("body", [[], "x", 3, {}])
def test_a_body_that_is_no_request_is_refused(body):
    refusal(CompletionRequest, body)
    refusal(ChatCompletionRequest, body)


def test_messages_take_text_parts_and_nulls():
    message = {
        "role": "assistant",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        "tool_calls": None,
    }
    request = parse_request(ChatCompletionRequest, {"messages": [message, {"role": "developer", "content": "c"}]})
    assert [m.as_template_message() for m in request.messages] == [
        {"role": "assistant", "content": "a\nb"},
        {"role": "system", "content": "c"},
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "content": "x"}, "messages.0.role"),
        ({"role": "user", "content": "x", "tool_call_id": "1"}, "messages.0.tool_call_id"),
        ({"role": "tool", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}, "messages.0.tool_calls"),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}, "messages.0.function_call"),
        ({"role": "user", "content": 5}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}, "messages.0.content.0.type"),
        ({"role": "user", "content": "x", "foo": 1}, "messages.0.foo"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "messages.0.tool_calls.0.function"),
        ({"role": "assistant", "content": "x", "refusal": "no"}, "messages.0.refusal"),
        ({"content": "x"}, "messages.0.role"),
        ("x", "messages.0"),
    ],
)
def test_a_message_of_another_kind_is_refused_by_name(message, param):
    assert refusal(ChatCompletionRequest, {"messages": [message]})["param"] == param


def test_content_of_another_type_hears_both_that_are_allowed():
    error = refusal(ChatCompletionRequest, {"messages": [{"role": "user", "content": 5}]})
    assert error["message"] == "messages.0.content: must be a string or a list of parts, got 5"


@pytest.mark.parametrize("empty", [None, [], {}, ""])
def test_a_message_of_openais_client_can_be_sent_back(empty):
    answer = ChatCompletionMessage(role="assistant", content="x").model_dump()
    assert {"refusal", "annotations", "audio", "function_call", "tool_calls"} <= answer.keys()
    answer = {name: empty if value is None else value for name, value in answer.items()}
    request = parse_request(ChatCompletionRequest, {"messages": [USER, answer, USER]})
    assert request.messages[1].as_template_message() == {"role": "assistant", "content": "x"}


def params_of(kind, body, prompt_len=10):
    request = parse_request(kind, body)
    return sampling_params(request, prompt_len, assign_seed(request), LIMITS)


def test_negative_seeds_are_mapped_and_kept():
    """OpenAI's seed is a signed integer of 64 bits; the engine's is not negative."""
    requests = [parse_request(CompletionRequest, {"prompt": "x", "seed": seed}) for seed in (-1, -(2**63), 7)]
    assert [assign_seed(request) for request in requests] == [-1, -(2**63), 7]
    seeds = [params_of(CompletionRequest, {"prompt": "x", "seed": seed}).seed for seed in (-1, -(2**63), 7)]
    assert seeds == [2**63 - 1, 0, 7]


def test_a_length_of_zero_hears_of_echo_only_where_there_is_echo():
    for kind, body, hint in (
        (ChatCompletionRequest, {"messages": [USER]}, False),
        (CompletionRequest, {"prompt": "x"}, True),
    ):
        with pytest.raises(ApiError, match=r"max_tokens:? must be at least 1, got 0") as caught:
            params_of(kind, {**body, "max_tokens": 0})
        assert ("echo" in caught.value.message) is hint


def test_default_lengths_follow_openai():
    assert params_of(CompletionRequest, {"prompt": "x"}).max_tokens == 16
    assert params_of(ChatCompletionRequest, {"messages": [USER]}).max_tokens == 54
    assert (
        params_of(ChatCompletionRequest, {"messages": [USER], "max_tokens": 5, "max_completion_tokens": 7}).max_tokens
        == 7
    )


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"max_tokens": 55}, "max_tokens", "context_length_exceeded"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens", "invalid_value"),
        ({"logit_bias": {"100": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 1, "01": 2}}, "logit_bias", "invalid_value"),
        ({"stop_token_ids": [1, 100]}, "stop_token_ids.1", "invalid_value"),
        ({"stop_token_seqs": [[1], [2, 100]]}, "stop_token_seqs.1.1", "invalid_value"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(fields, param, code):
    with pytest.raises(ApiError) as caught:
        params_of(CompletionRequest, {"prompt": "x", **fields})
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


@pytest.mark.parametrize(
    ("kind", "body", "param"),
    [(CompletionRequest, {"prompt": "x"}, "prompt"), (ChatCompletionRequest, {"messages": [USER]}, "messages")],
)
def test_a_prompt_that_fills_the_model_is_refused_by_name(kind, body, param):
    with pytest.raises(ApiError) as caught:
        params_of(kind, body, prompt_len=64)
    assert (caught.value.param, caught.value.code) == (param, "context_length_exceeded")


def test_logprobs_of_both_endpoints():
    assert params_of(CompletionRequest, {"prompt": "x", "logprobs": 3}).logprobs == 3
    assert params_of(CompletionRequest, {"prompt": "x", "logprobs": 3, "echo": True}).prompt_logprobs == 3
    assert params_of(ChatCompletionRequest, {"messages": [USER], "logprobs": True}).logprobs == 0
    assert params_of(ChatCompletionRequest, {"messages": [USER], "logprobs": True, "top_logprobs": 4}).logprobs == 4
    with pytest.raises(ApiError):
        params_of(ChatCompletionRequest, {"messages": [USER], "top_logprobs": 4})
