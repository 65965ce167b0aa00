"""The schemas of /openapi.json take what the server takes, and refuse what it refuses."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from starlette.requests import Request
from starlette.responses import Response

from cluster.api_errors import ApiError
from deployments.openai_api.openapi import Endpoint, openapi
from deployments.openai_api.requests.fields import ROWS
from deployments.openai_api.requests.protocol import ChatCompletionRequest, CompletionRequest, parse_request
from deployments.openai_api.requests.validation import RequestPart, validated
from deployments.openai_api.tokenize import DetokenizeRequest, TokenizeChatRequest, TokenizePromptRequest

USER = {"role": "user", "content": "hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
# The least that each takes, with what other fields may go with alone.
WHOLE = {"stream": True, "return_token_ids": True, "seed": 1}
BODIES: dict[type[RequestPart], dict[str, Any]] = {
    CompletionRequest: {"prompt": "x", **WHOLE},
    ChatCompletionRequest: {"messages": [USER], **WHOLE},
    TokenizePromptRequest: {"prompt": "x"},
    TokenizeChatRequest: {"messages": [USER]},
    DetokenizeRequest: {"tokens": [1]},
}
# Objects inside of bodies: what they are, and the body around them.
INSIDE: dict[str, tuple[Any, Any]] = {
    "messages": ({"role": "assistant", "content": "x"}, lambda part: {"messages": [USER, part]}),
    "messages.content": ({"type": "text", "text": "x"}, lambda part: {"messages": [{"role": "user", "content": [part]}]}),
    "messages.tool_calls": (CALL, lambda part: {"messages": [{"role": "assistant", "tool_calls": [part]}]}),
    "messages.tool_calls.function": (
        CALL["function"],
        lambda part: {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "function": part}]}]},
    ),
    "response_format": (
        {"type": "json_schema", "json_schema": {"schema": {}}},
        lambda part: {"response_format": part},
    ),
    "response_format.json_schema": (
        {"name": "x", "schema": {}},
        lambda part: {"response_format": {"type": "json_schema", "json_schema": part}},
    ),
    "structured_outputs": ({}, lambda part: {"structured_outputs": part}),
    "thinking": ({"type": "enabled"}, lambda part: {"thinking": part}),
    "stream_options": ({}, lambda part: {"stream_options": part}),
    "resume": ({"fingerprint": "f", "choices": [{"token_ids": []}]}, lambda part: {"resume": part}),
    "resume.choices": ({"token_ids": [1]}, lambda part: {"resume": {"fingerprint": "f", "choices": [part]}}),
}  # fmt: skip
# Of other roles than the one that stands around it.
NOT_HERE = {("messages", "tool_call_id"), ("messages", "role")}
# Which of them may stand beside each other.
NOT_ALONE = {("response_format", name) for name in ("type", "json_schema", "format", "structures", "triggers")}
SCALARS = [
    None, True, False, 0, 1, -1, 2.0, 0.5, 20, 21, 300, -(2**63), 2**63, 2**31, 1e300, "", "x", "x" * 2000, "x" * 70_000, "auto",
    "none", "medium", "text", "left", "default", "24h", "enabled", "low", "stop",
]  # fmt: skip
INNER = [None, True, 0, -1, 2.0, 0.5, 101, "", "x", "x" * 2000]
VALUES = [
    *SCALARS, *([value] for value in INNER), *({"a": value} for value in INNER), {"type": "text"}, {"type": "x"}, {"type": None},
    [], [[]], [[1]], [[-1]], {}, [{}], ["a", ""], ["a", [1]], [1, "a"], [1] * 40, ["x"] * 17, ["x"] * 70, [USER], [{"a": None}],
    [{"a": "b"}], [{"a": 1}], {"type": "text", "json": None}, {"type": "disabled", "budget_tokens": 0}, {"max_pattern_size": 0},
    {"type": "disabled", "budget_tokens": None}, {"7": 101}, {str(i): None for i in range(301)}, {"include_usage": None},
    {"effort": "none", "summary": None}, {"effort": "none", "summary": "x"}, [{**USER, "content": None}], [{"text": None}],
]  # fmt: skip


@functools.cache
def document(unknown_fields: str) -> dict[str, Any]:
    async def handler(request: Request) -> Response:
        """Something."""
        return Response()

    endpoints = [Endpoint(f"/{kind.__name__}", handler, ["POST"], [kind]) for kind in BODIES]
    return openapi(endpoints, "1", "", False, unknown_fields)


@functools.cache
def schema_of(kind: type[RequestPart], unknown_fields: str = "refuse") -> Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{kind.__name__}", "components": document(unknown_fields)["components"]}
    return Draft202012Validator(schema)


@functools.cache
def allowed(kind: type[RequestPart], name: str) -> list[bool]:
    """Whether the field's schema allows each of VALUES."""
    schemas = document("refuse")["components"]
    field = schemas["schemas"][kind.__name__]["properties"][name]
    validator = Draft202012Validator({**field, "components": schemas})
    return [validator.is_valid(value) for value in VALUES]


def refusal(kind: type[RequestPart], body: dict[str, Any], unknown_fields: Any = "refuse") -> str | None:
    try:
        if issubclass(kind, (CompletionRequest, ChatCompletionRequest)):
            parse_request(kind, body, {}, unknown_fields)
        else:
            validated(kind, body, unknown_fields)
    except ApiError as error:
        return error.message
    return None


def assert_agreed(kind: type[RequestPart], body: dict[str, Any], unknown_fields: str = "refuse") -> None:
    said = refusal(kind, body, unknown_fields)
    assert schema_of(kind, unknown_fields).is_valid(body) == (said is None), (said, str(body)[:300])


@pytest.mark.parametrize("kind", BODIES)
def test_each_field_takes_what_its_schema_says(kind):
    for name in ROWS[kind.place].keys() - {"best_of"}:  # which must equal n
        for value, may_be in zip(VALUES, allowed(kind, name)):
            said = refusal(kind, {**BODIES[kind], name: value})
            assert may_be == (said is None), (name, said, str(value)[:300])
    for body in ({}, BODIES[kind], {**BODIES[kind], "wat": None}, {**BODIES[kind], "wat": 1}):
        assert_agreed(kind, body)


@pytest.mark.parametrize("place", INSIDE)
def test_each_field_inside_an_object_does_too(place):
    kind = ChatCompletionRequest
    part, around = INSIDE[place]

    def body(**fields: Any) -> dict[str, Any]:
        return {**BODIES[kind], **around({**part, **fields})}

    for name in [*ROWS[place], "wat"]:
        for value in VALUES if (place, name) not in NOT_HERE | NOT_ALONE else ():
            assert_agreed(kind, body(**{name: value}))
    assert refusal(kind, body(wat=None)) is None
    assert refusal(kind, body(wat=1)) is not None
    assert_agreed(kind, body(wat=1), "ignore")
    assert refusal(kind, body(wat=1), "ignore") is None


JSON = st.recursive(
    st.sampled_from(SCALARS), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab7"), inner)
)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_what_the_server_takes_the_schema_allows(data):
    kind = data.draw(st.sampled_from(list(BODIES)))
    names = st.sampled_from([*ROWS[kind.place], "wat"])
    fields = data.draw(st.dictionaries(names, st.sampled_from(VALUES) | JSON, max_size=4))
    body = {**BODIES[kind], **fields}
    if refusal(kind, body) is None:
        schema_of(kind).validate(body)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_fields_that_a_schema_allows_one_by_one_are_refused_for_what_they_are_together(data):
    kind = data.draw(st.sampled_from(list(BODIES)))
    body = dict(BODIES[kind])
    for name in data.draw(st.lists(st.sampled_from(list(ROWS[kind.place])), max_size=6, unique=True)):
        body[name] = data.draw(st.sampled_from([value for value, may_be in zip(VALUES, allowed(kind, name)) if may_be]))
    said = refusal(kind, body)
    assert said is None or any(words in said for words in ("only allowed with", "must equal n", "together with"))
