"""OpenAI's client with models of pydantic over HTTP: answers and calls come as objects of these, whatever a model would say."""

from __future__ import annotations

import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field

from cluster.terminal.shown_parts import ShownParts
from tests.deployments.conftest import CALLING, App

ASK = [{"role": "user", "content": "Which lake?"}]
OPTIONS = {"model": CALLING, "messages": ASK, "max_tokens": 400, "seed": 3, "temperature": 1.0}


class Lake(BaseModel):
    name: str = Field(max_length=8)
    size: Literal["small", "large"]
    depths: list[bool] = Field(max_length=3)


class Look(BaseModel):
    """Look at a lake."""

    lake: Lake
    days: Literal[1, 2, 3]


class Note(BaseModel):
    text: str = Field(max_length=8)


TOOLS = [openai.pydantic_function_tool(Look), openai.pydantic_function_tool(Note)]


def calls_of(message) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]


def named(name: str) -> dict[str, object]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_are_all_that_is_offered(calling: App, mode):
    with calling.openai() as client:

        def answer(tools, choice):
            options = {**OPTIONS, "tools": tools, "tool_choice": choice, "parallel_tool_calls": False}
            return client.chat.completions.create(**options)

        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named("Note")]}}
        of_two, of_one = answer(TOOLS, allowed), answer(TOOLS[1:], mode)
        assert of_two.usage.prompt_tokens == of_one.usage.prompt_tokens < answer(TOOLS, mode).usage.prompt_tokens
        one, other = of_two.choices[0], of_one.choices[0]
        assert (calls_of(one.message), one.message.content) == (calls_of(other.message), other.message.content)
        if mode == "required":
            assert [name for name, _ in calls_of(one.message)] == ["Note"]


def test_calls_come_as_models_of_their_tools_whole_and_streamed(calling: App):
    with calling.openai() as client:
        for choice in ("required", {"type": "function", "function": {"name": "Note"}}):
            options = {**OPTIONS, "tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
            whole = client.chat.completions.parse(**options).choices[0]
            assert whole.finish_reason == "tool_calls" and whole.message.content is None
            (call,) = whole.message.tool_calls
            wanted = {"Look": Look, "Note": Note}[call.function.name]
            assert isinstance(call.function.parsed_arguments, wanted)
            assert choice == "required" or wanted is Note
            with client.chat.completions.stream(**options) as stream:
                kinds = {event.type for event in stream}
                streamed = stream.get_final_completion().choices[0]
            assert "tool_calls.function.arguments.delta" in kinds
            assert calls_of(streamed.message) == calls_of(whole.message) and streamed.finish_reason == "tool_calls"
            assert streamed.message.tool_calls[0].function.parsed_arguments == call.function.parsed_arguments


def test_an_answer_is_a_model_or_a_call_where_either_may_come(calling: App):
    found = set()
    with calling.openai() as client:
        for seed in range(6):
            options = {**OPTIONS, "seed": seed, "tools": TOOLS, "parallel_tool_calls": False, "response_format": Lake}
            message = client.chat.completions.parse(**options).choices[0].message
            assert isinstance(message.parsed, Lake) or message.tool_calls[0].function.parsed_arguments is not None
            found.add(message.parsed is None)
        lake = client.chat.completions.parse(**OPTIONS, response_format=Lake).choices[0].message.parsed
    assert isinstance(lake, Lake) and False in found


def post(app: App, **fields):
    body = {
        **OPTIONS,
        "tools": [{"type": "function", "function": t["function"]} for t in TOOLS],
        "tool_choice": "required",
    }
    return app.post("/v1/chat/completions", body | fields)


def test_tools_go_together_with_what_else_a_request_may_ask_for(calling: App):
    several = post(calling, n=3, parallel_tool_calls=False, logprobs=True).json()["choices"]
    for choice in several:
        (call,) = choice["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) and choice["finish_reason"] == "tool_calls"
        assert len(choice["logprobs"]["content"]) > 5
    assert len({choice["message"]["tool_calls"][0]["id"] for choice in several}) == 3
    # Cut in the middle of a call, by length and by a stop string.
    written = several[0]["message"]["tool_calls"][0]["function"]
    cut = post(calling, n=1, parallel_tool_calls=False, max_tokens=25).json()["choices"][0]
    assert cut["finish_reason"] == "length"
    begun = cut["message"]["tool_calls"][0]["function"]
    assert written["name"] == begun["name"] and written["arguments"].startswith(begun["arguments"])
    assert 0 < len(begun["arguments"]) < len(written["arguments"])
    stop = written["arguments"][4:9]
    stopped = post(calling, n=1, parallel_tool_calls=False, stop=[stop]).json()["choices"][0]
    assert stopped["stop_reason"] == stop
    assert stopped["message"]["tool_calls"][0]["function"]["arguments"] == written["arguments"][:4]


@pytest.mark.parametrize("budget", [0, 3, 2**31 - 1])
def test_a_budget_of_thinking_stands_before_a_call(calling: App, budget):
    choice = post(
        calling, parallel_tool_calls=False, thinking_token_budget=budget, enable_thinking=True, max_tokens=120
    ).json()["choices"][0]
    if budget > 3:
        # Nothing ends the thinking of random weights but max_tokens.
        assert choice["finish_reason"] == "length" and choice["message"]["reasoning"]
        return
    assert choice["finish_reason"] == "tool_calls" and bool(choice["message"]["reasoning"]) == (budget > 0)
    json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice.function.name"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "required", "tools": [named("nobody")]},
                }
            },
            "tool_choice.allowed_tools.tools.0.function.name",
        ),
        (
            {
                "tools": [TOOLS[0], {"type": "function", "function": {"name": "f", "parameters": {"type": "objekt"}}}],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named("f")]}},
            },
            "tools.1.function.parameters",
        ),
        ({"tools": []}, "tool_choice"),
        ({"thinking_token_budget": -2, "enable_thinking": True}, "thinking_token_budget"),
        ({"thinking_token_budget": 2**80, "enable_thinking": True}, "thinking_token_budget"),
        *(
            ({"tools": [TOOLS[0], {"type": "function", "function": {"name": "f", "parameters": wrong}}], **more}, place)
            for wrong, place in (
                ({"type": "objekt"}, "tools.1.function.parameters"),
                (
                    {"properties": {"x": {"items": {"type": "objekt"}}}},
                    "tools.1.function.parameters.properties.x.items",
                ),
            )
            for more in ({}, {"stream": True})
        ),
    ],
)
def test_what_cannot_be_called_is_refused_by_its_field(calling: App, fields, param):
    served = post(calling, **fields)
    error = served.json()["error"]
    assert (served.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error


def test_tools_of_one_name_are_called_by_the_last_of_them(calling: App):
    twice = [
        {
            "type": "function",
            "function": {"name": "f", "parameters": {"properties": {"a": {"enum": [x]}}, "required": ["a"]}},
        }
        for x in (1, 2)
    ]
    named = {"type": "function", "function": {"name": "f"}}
    choice = post(calling, tools=twice, tool_choice=named).json()["choices"][0]
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"a": 2}


def test_a_person_sees_thinking_and_calls_as_they_come(calling: App):
    tools = [{"type": "function", "function": t["function"]} for t in TOOLS]
    with calling.client() as client:
        parts = ShownParts()
        options = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False, "seed": 3, "temperature": 1.0,
                   "max_tokens": 200, "thinking_token_budget": 4, "enable_thinking": True}  # fmt: skip
        chunks = list(client.stream_chat(ASK, **options))
        text = "".join(map(parts.text, chunks))
        whole = client.chat(ASK, **options).choices[0]
    (call,) = whole.tool_calls
    assert text == f"[thinking] {whole.reasoning}\n\n[call] {call.name} {call.arguments}"
    assert chunks[-1].choices[0].finish_reason == "tool_calls" or chunks[-2].choices[0].finish_reason == "tool_calls"
