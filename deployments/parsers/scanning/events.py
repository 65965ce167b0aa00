"""What a parser finds in an answer, whatever the wire format that carries it."""

from __future__ import annotations

from typing import NamedTuple


class Content(NamedTuple):
    """Text for the reader."""

    text: str


class Reasoning(NamedTuple):
    """Text in which the model thinks."""

    text: str


class CallBegin(NamedTuple):
    """Call ``call`` of the answer, from 0, is one of the function ``name``."""

    call: int
    name: str


class CallArguments(NamedTuple):
    """More of the arguments of a call; all pieces joined are the text of a JSON object, if the model wrote one."""

    call: int
    text: str


class CallEnd(NamedTuple):
    """The arguments of a call are complete."""

    call: int


Event = Content | Reasoning | CallBegin | CallArguments | CallEnd
