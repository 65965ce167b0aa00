"""What a line of a chat that begins with a slash does."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Iterator
from typing import Any

from cluster.client.chat_fields import CHAT_FIELDS
from cluster.client.conversation import Conversation
from cluster.errors import InvalidRequestError
from cluster.sampling_params import NUMBERS, SamplingParams
from cluster.wording import nearest

_COMMANDS = {
    "/help": "this list",
    "/new": "start over; the system message stays",
    "/system": "TEXT: another system message, none without a text; starts over",
    "/set": "NAME=VALUE ...: fields of the requests (temperature, top_p, max_tokens, seed, stop, ...); NAME= takes one back",
    "/exit": "leave, as Ctrl-D does",
}
COMMAND_WIDTH = max(map(len, _COMMANDS)) + 2
_NAME = re.compile(r"\s*([A-Za-z_]\w*)\s*=")
# Where words end: another field begins, or nothing comes; behind JSON and quotes a name may stand before a space, too.
_END = re.compile(r"\s+(?=[A-Za-z_]\w*=)|\s*$")
_AFTER = re.compile(r"\s+(?=[A-Za-z_]\w*\s*=)|\s*$")
_QUOTED = re.compile(r"'([^']*)'")
# A chat's logprobs are a switch.
_NUMBERS = NUMBERS.keys() - {"logprobs"}
_LONGEST = 2**31 - 1
_JSON = json.JSONDecoder()
_NOTHING = object()  # null is a value
# They belong to the chat.
_NOT_SET = frozenset({"messages", "stream", "stream_options", "n", "model", "return_token_ids", "self"})


class ChatCommands:
    """The commands of one chat.

    Attributes:
        options: fields of the requests, which ``/set`` changes.
        wants_exit: ``/exit`` was given.
    """

    def __init__(self, conversation: Conversation, options: dict[str, Any]) -> None:
        self._conversation, self.options = conversation, options
        self.wants_exit = False

    @staticmethod
    def names() -> list[str]:
        return list(_COMMANDS)

    def run(self, line: str) -> str:
        """Do what ``line`` says; what to show for it."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/help":
            return "\n".join(f"{command:{COMMAND_WIDTH}}{text}" for command, text in _COMMANDS.items())
        if name == "/exit":
            self.wants_exit = True
            return ""
        if name == "/new":
            self._conversation.clear()
            return "(a new conversation)"
        if name == "/system":
            self._conversation.set_system(rest or None)
            return (
                "(a new conversation, with this system message)"
                if rest
                else "(a new conversation, without system message)"
            )
        if name == "/set":
            return self._set(rest)
        near = difflib.get_close_matches(name, _COMMANDS, n=1)
        return f"{name} is no command{f'; did you mean {near[0]}?' if near else ''}; /help shows them"

    def _set(self, text: str) -> str:
        if not text:
            return (
                ", ".join(f"{name}={json.dumps(value)}" for name, value in self.options.items()) or "(nothing is set)"
            )
        return "\n".join(self._set_one(name, value) for name, value in _assignments(text))

    def _set_one(self, name: str, wanted: Any) -> str:
        if not name or name in _NOT_SET:
            return f"/set needs NAME=VALUE, a name other than {', '.join(sorted(_NOT_SET - {'self'}))}"
        if wanted is _NOTHING:
            self.options.pop(name, None)
            return f"({name} is the server's)"
        if fault := _fault(name, wanted):
            return fault
        self.options[name] = wanted
        return f"({name}={json.dumps(wanted)})"


def _assignments(text: str) -> Iterator[tuple[str, Any]]:
    """The fields of ``NAME=VALUE ...``, with values as JSON or plain words; ``_NOTHING`` where none is given, and no name where
    this is none. A value reaches to the next NAME=; one that has such in it stands in quotes."""
    at = 0
    while at < len(text):
        match = _NAME.match(text, at)
        if match is None:
            yield "", _NOTHING
            return
        value, at = _value(text, match.end())
        yield match[1], value


def _value(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at ``at``, and where what follows it begins."""
    if end := _END.match(text, at):
        return _NOTHING, end.end()
    at += len(text[at:]) - len(text[at:].lstrip())
    with contextlib.suppress(ValueError):
        value, after = _JSON.raw_decode(text, at)
        if end := _AFTER.match(text, after):
            return value, end.end()
    quoted = _QUOTED.match(text, at)
    if quoted and (end := _AFTER.match(text, quoted.end())):
        return quoted[1], end.end()
    end = _END.search(text, at)
    assert end is not None
    return text[at : end.start()], end.end()


def _fault(name: str, value: Any) -> str | None:
    """What is wrong with a field before it is sent; None where the server will say."""
    if name not in CHAT_FIELDS:
        near = nearest(name, CHAT_FIELDS)
        return f"unknown field {name}; " + (
            f"did you mean {near}?" if near else "a value with NAME= in it takes quotes"
        )
    if name in _NUMBERS:
        try:
            SamplingParams(**{"max_tokens": _LONGEST, name: value})
        except InvalidRequestError as error:
            return error.message
    return None
