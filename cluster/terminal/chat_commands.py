"""What a line of a chat that begins with a slash does."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

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
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=\S")
# A chat's logprobs are a switch.
_NUMBERS = NUMBERS.keys() - {"logprobs"}
# A server has more, and tells what it does not know.
_FIELDS = (*_NUMBERS, "stop", "stop_token_ids", "ignore_eos", "logit_bias", "logprobs")
_LONGEST = 2**31 - 1
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
        parts = text.split()
        return "\n".join(map(self._set_one, parts if all(map(_ASSIGNMENT.match, parts)) else [text]))

    def _set_one(self, text: str) -> str:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier() or name in _NOT_SET:
            return f"/set needs NAME=VALUE, a name other than {', '.join(sorted(_NOT_SET - {'self'}))}"
        if not value:
            self.options.pop(name, None)
            return f"({name} is the server's)"
        try:
            wanted = json.loads(value)
        except ValueError:
            wanted = value
        if fault := _fault(name, wanted):
            return fault
        self.options[name] = wanted
        return f"({name}={json.dumps(wanted)})"


def _fault(name: str, value: Any) -> str | None:
    """What is wrong with a field before it is sent; None where the server will say."""
    if name not in _FIELDS:
        near = nearest(name, _FIELDS)
        return f"unknown field {name}; did you mean {near}?" if near else None
    if name in _NUMBERS:
        try:
            SamplingParams(**{"max_tokens": _LONGEST, name: value})
        except InvalidRequestError as error:
            return error.message
    return None
