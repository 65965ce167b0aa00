"""What the HTTP side needs of an API's dialect: how a generation reads as one object, or as the chunks of a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from deployments.answers.chunk_template import ChunkTemplate


class GenerationOptions(Protocol):
    """Of the request.

    Attributes:
        stream: the client wants chunks.
    """

    stream: bool


class ResponseBuilder(Protocol):
    """Builds the answer to one request.

    Attributes:
        event_ids: of the chunks that were built last.
    """

    event_ids: list[str]

    @property
    def request(self) -> GenerationOptions: ...

    def whole(self) -> dict[str, Any]:
        """The answer as one object; every sequence must be finished."""

    def chunks(self, texts: dict[int, str]) -> list[dict[str, Any]]:
        """Chunks for what ``Generation.read`` returned."""

    def is_plain(self, index: int) -> bool:
        """Whether the next chunk of a choice is quickly written."""

    def plain_chunk(self, index: int, text: str) -> str:
        """The JSON that ``chunks({index: text})`` comes to, where ``is_plain``; empty if there is no chunk."""

    def plain_template(self, index: int) -> ChunkTemplate:
        """What ``plain_chunk`` writes texts into that are not empty, with the token ids that were not sent before; another one
        once it changes."""

    @property
    def whole_text(self) -> Callable[[int], str | None]:
        """Tells the text of a token that is whole by itself, as ``SequenceOutput.takes_whole_texts`` means it; None of others.
        The same for all answers."""

    def usage_chunk(self) -> dict[str, Any] | None:
        """The last chunk, if there is one behind those of the text."""

    def num_values(self, texts: dict[int, str] | None = None) -> int:
        """About how many values ``whole``, or ``chunks`` of these texts, will have."""
