"""A chat longer than the model's context."""

from __future__ import annotations

import pytest

from cluster.client.api_types import Answer, AnswerChoice
from cluster.client.conversation import CONTEXT_EXCEEDED, Conversation, answer_room
from cluster.client.errors import BadRequestError


class Model:
    """Answers in capitals; takes so many characters of messages."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.seen: list[list[str]] = []

    def __call__(self, messages):
        contents = [message["content"] for message in messages]
        if sum(map(len, contents)) > self.limit:
            raise BadRequestError("too long", "messages", CONTEXT_EXCEEDED, 400)
        self.seen.append(contents)
        for letter in contents[-1].upper():
            yield Answer("id", "m", [AnswerChoice(0, letter)], None, None, None, {})


def talk(conversation: Conversation, model: Model, *questions: str) -> tuple[str, int]:
    said, notices = "", []
    for question in questions:
        said += "".join(chunk.text for chunk in conversation.ask(question, model, lambda: notices.append(1)))
    return said, len(notices)


def test_the_oldest_turns_are_left_out_with_one_notice():
    conversation, model = Conversation("be kind"), Model(limit=7 + 8 + 3)
    assert talk(conversation, model, "aa", "bb", "ccc", "ddd") == ("AABBCCCDDD", 1)
    assert model.seen == [
        ["be kind", "aa"],
        ["be kind", "aa", "AA", "bb"],
        ["be kind", "aa", "AA", "bb", "BB", "ccc"],
        ["be kind", "ccc", "CCC", "ddd"],
    ]
    assert conversation.num_forgotten == 2
    conversation.clear()
    assert talk(conversation, model, "e") == ("E", 0)
    assert model.seen[-1] == ["be kind", "e"]


def test_a_question_that_is_too_long_alone_is_refused_and_forgotten():
    conversation, model = Conversation(), Model(limit=8)
    talk(conversation, model, "ab")
    with pytest.raises(BadRequestError, match="too long"):
        talk(conversation, model, "x" * 9)
    assert talk(conversation, model, "ok") == ("OK", 0)
    assert model.seen[-1] == ["ok"]


def test_an_answer_that_was_stopped_is_no_part_of_the_conversation():
    conversation, model = Conversation(), Model(limit=100)
    chunks = conversation.ask("hello", model, lambda: None)
    next(chunks)
    chunks.close()
    talk(conversation, model, "again")
    assert model.seen[-1] == ["again"]


def test_an_answer_may_take_a_quarter_of_the_context():
    assert [answer_room(length) for length in (None, 2, 8192)] == [None, 1, 2048]
