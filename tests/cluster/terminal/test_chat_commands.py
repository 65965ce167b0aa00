"""Lines of a chat that begin with a slash."""

from __future__ import annotations

import pytest

from cluster.client.chat_fields import CHAT_FIELDS
from cluster.client.conversation import Conversation
from cluster.terminal.chat_commands import ChatCommands
from deployments.openai_api.requests.fields import CHAT, FIELDS


def asked(conversation: Conversation) -> list[dict[str, str]]:
    seen = []
    list(conversation.ask("q", lambda messages: seen.extend(messages) or iter(()), lambda: None))
    return seen


def test_system_new_and_exit():
    conversation = Conversation("old")
    commands = ChatCommands(conversation, {})
    asked(conversation)
    commands.run("/new")
    assert [message["content"] for message in asked(conversation)] == ["old", "q"]
    commands.run("/system be brief")
    assert [message["content"] for message in asked(conversation)] == ["be brief", "q"]
    commands.run("/system")
    assert [message["content"] for message in asked(conversation)] == ["q"]
    assert not commands.wants_exit
    commands.run("/exit")
    assert commands.wants_exit


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("/set temperature=0.5", {"seed": 1, "temperature": 0.5}),
        ("/set seed =", {}),
        ('/set stop=["x"]', {"seed": 1, "stop": ["x"]}),
        ("/set stop=x=y", {"seed": 1, "stop": "x=y"}),
        ("/set stream=false", {"seed": 1}),
        ("/set nothing", {"seed": 1}),
        ("/set temperature=0 seed=3", {"seed": 3, "temperature": 0}),
        ("/set stop=two words", {"seed": 1, "stop": "two words"}),
        ("/set min_tokens=400 max_tokens=500", {"seed": 1, "min_tokens": 400, "max_tokens": 500}),
        ("/set logprobs=true top_logprobs=2", {"seed": 1, "logprobs": True, "top_logprobs": 2}),
        ("/set temprature=0", {"seed": 1}),
        ('/set thinking={"type":"disabled"}', {"seed": 1, "thinking": {"type": "disabled"}}),
        ('/set thinking={"type": "disabled"} seed=2', {"seed": 2, "thinking": {"type": "disabled"}}),
        ("/set seed= temperature=0", {"temperature": 0}),
        ("/set temperature=0 seed=", {"temperature": 0}),
        ('/set stop="a b"', {"seed": 1, "stop": "a b"}),
        ('/set stop="a b" seed=2', {"seed": 2, "stop": "a b"}),
        ("/set stop='x y=z' seed=2", {"seed": 2, "stop": "x y=z"}),
        ('/set stop="x y=z"', {"seed": 1, "stop": "x y=z"}),
        ("/set stop=x y=z", {"seed": 1, "stop": "x"}),
        ('/set stop=["a b", "c d=e"] top_p = 0.5', {"seed": 1, "stop": ["a b", "c d=e"], "top_p": 0.5}),
        ('/set stop=["a b", "c d=e"] top_p=0.5', {"seed": 1, "stop": ["a b", "c d=e"], "top_p": 0.5}),
        ("/set stop=don't seed=2", {"seed": 2, "stop": "don't"}),
        ("/set temperature = 0.5", {"seed": 1, "temperature": 0.5}),
        ("/set temperature=9 seed=5", {"seed": 5}),
        ("/set", {"seed": 1}),
    ],
)
def test_set_changes_fields_of_the_requests(line, options):
    commands = ChatCommands(Conversation(), {"seed": 1})
    assert commands.run(line)
    assert commands.options == options


def test_a_field_that_no_request_may_have_is_told_when_it_is_set():
    commands = ChatCommands(Conversation(), {})
    assert commands.run("/set temprature=0") == "unknown field temprature; did you mean temperature?"
    assert commands.run("/set temperature=9") == "temperature: must be at most 2, got 9"
    assert commands.run("/set temperature=0 top_k=few").splitlines() == [
        "(temperature=0)",
        'top_k: must be an integer, got "few"',
    ]


def test_a_name_that_is_no_field_says_how_a_value_has_it_in_it():
    commands = ChatCommands(Conversation(), {})
    assert commands.run("/set stop=x y=z").splitlines() == [
        '(stop="x")',
        "unknown field y; a value with NAME= in it takes quotes",
    ]


def test_the_fields_are_those_of_the_table():
    assert {row.name for row in FIELDS if CHAT in row.places} == CHAT_FIELDS


def test_what_is_no_command_is_said():
    commands = ChatCommands(Conversation(), {})
    assert "did you mean /help?" in commands.run("/hlep")
    assert all(name in commands.run("/help") for name in commands.names())
