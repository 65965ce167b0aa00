"""The quick way of tokens into a stream of events, past Python: from the engine's message to the next chunk of the connection.

Only of tokens with which nothing changes but the text: the slow way (``Generation.put_token``) does all else, and gives the
same bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from json.encoder import encode_basestring
from typing import Any

from deployments.answers.choice import Choice
from deployments.answers.chunk_template import ChunkTemplate
from deployments.answers.response_builder import ResponseBuilder
from deployments.http.body_writer import BodyWriter
from deployments.native.step_writer import Outlet, TokenLane, native_module

# The line ends outside ASCII that splitters of text know, and JSON does not escape.
_LINE_ENDS = {char: f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


def encoded(text: str) -> bytes:
    """Text of events as it is sent."""
    if not text.isascii():
        for char, escaped in _LINE_ENDS.items():
            text = text.replace(char, escaped)
    return text.encode()


class TokenLanes:
    """Of one stream of events without ids, one lane a choice that is in the middle of its text.

    Args:
        native: the module that has them.
        slow: takes the index of a token of a choice, and the token, where a lane does not.
        writer: of the connection.
    """

    def __init__(
        self,
        native: Any,
        choices: Sequence[Choice],
        slow: Callable[[Choice, int, int], None],
        answer: ResponseBuilder,
        writer: BodyWriter,
    ) -> None:
        self._native = native
        self._choices = choices
        self._slow = slow
        self._answer = answer
        self._writer = writer
        self._texts = _texts(native, answer.whole_text)
        self._lanes: dict[int, tuple[ChunkTemplate, TokenLane]] = {}
        self._are_open = False

    def open(self) -> None:
        """Nothing waits to be read or written."""
        outlet = self._writer.chunk_outlet
        if outlet is None:
            return
        self._are_open = True
        for choice in self._choices:
            if choice.output.is_plain and choice.submission is not None and self._answer.is_plain(choice.index):
                self._lane(choice, outlet).is_open = choice.output.takes_whole_texts

    def close(self) -> None:
        """Each token goes the slow way."""
        if self._are_open:
            self._are_open = False
            for _, lane in self._lanes.values():
                lane.is_open = False

    def took(self, choice: Choice, may_open: bool) -> None:
        """A token of ``choice`` went the slow way and was written there; unless ``may_open``, it waits for a slow client."""
        if not may_open:
            self.close()
        elif self._are_open and choice.index in self._lanes:
            self._lanes[choice.index][1].is_open = choice.output.takes_whole_texts

    def have_written(self) -> bool:
        """Whether one has since this was asked last."""
        written = [lane for _, lane in self._lanes.values() if lane.has_written]
        for lane in written:
            lane.has_written = False
        return bool(written)

    def _lane(self, choice: Choice, outlet: Outlet) -> TokenLane:
        template = self._answer.plain_template(choice.index)
        known = self._lanes.get(choice.index)
        if known is not None and known[0] is template:
            return known[1]
        before, between, after = template.parts
        lane = self._native.TokenLane(
            partial(self._slow, choice),
            choice.times.arrived,
            choice,
            *choice.output.grown,
            self._texts,
            outlet,
            encoded(f'data: {before}"'),
            encoded(f'"{between}') if between else b"",
            encoded(f"{after}\n\n" if between else f'"{after}\n\n'),
        )
        self._lanes[choice.index] = template, lane
        assert choice.submission is not None
        choice.submission.deliver_token = lane.put
        return lane


def token_lanes(
    choices: Sequence[Choice], slow: Callable[[Choice, int, int], None], answer: ResponseBuilder, writer: BodyWriter
) -> TokenLanes | None:
    """None where nothing could be compiled."""
    native = native_module()
    return None if native is None else TokenLanes(native, choices, slow, answer, writer)


@functools.lru_cache(maxsize=4)
def _texts(native: Any, whole_text: Callable[[int], str | None]) -> Any:
    """The table of a tokenizer, whose texts are the same in every answer."""

    def learn(token_id: int) -> tuple[str, bytes] | None:
        text = whole_text(token_id)
        return None if text is None else (text, encoded(encode_basestring(text)[1:-1]))

    return native.TokenTexts(learn)
