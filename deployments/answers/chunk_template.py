"""Chunks of a stream that differ in their text and token ids alone: the rest is written once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring
from typing import Any

from deployments.http.json_pieces import write_json

# Nobody else knows it, so no part of a chunk that clients choose can hold it.
_TEXT = uuid.uuid4().hex
_TOKEN = uuid.uuid4().int


class ChunkTemplate:
    """JSON of a chunk around its text, and around its token ids if it has some.

    Args:
        chunk: builds the chunk for a text, and for token ids.
    """

    __slots__ = ("_after", "_before", "_between")

    def __init__(self, chunk: Callable[[str, list[int]], dict[str, Any]]) -> None:
        (written,) = write_json(chunk(_TEXT, [_TOKEN]))
        self._before, _, rest = written.partition(f'"{_TEXT}"')
        self._between, has_tokens, self._after = rest.partition(str(_TOKEN))
        if not has_tokens:
            self._after, self._between = self._between, ""

    @property
    def parts(self) -> tuple[str, str, str]:
        """What stands before the text's JSON string, between it and the token ids, and behind; nothing is between where a chunk
        has no token ids."""
        return self._before, self._between, self._after

    def write(self, text: str, token_ids: Sequence[int]) -> str:
        """The JSON that ``write_json`` makes of such a chunk."""
        if self._between:
            ids = ",".join(map(str, token_ids))
            return f"{self._before}{encode_basestring(text)}{self._between}{ids}{self._after}"
        return f"{self._before}{encode_basestring(text)}{self._after}"
