"""Answers that ended lately, so that an ingress whose stream broke can fetch their ends: few bytes each, and bounded in all."""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from cluster.outputs import FINISH_HANDOVER, TokenDelta
from cluster.request import RequestKey

# An ended answer is kept this long.
RETENTION_S = 60.0
# No more of their words, encoded, than so many bytes: 64,000 answers of 256 tokens whose ids take two bytes, or 800 with 20
# log-probabilities a token.
MAX_KEPT_BYTES = 64 << 20
# What follows the tokens of a delta that says nothing else.
_NO_MORE = TokenDelta("", 0, 0, [])[4:]


class Said(NamedTuple):
    """What an engine has said of a request's answer.

    Attributes:
        deltas: all but plain tokens.
        num_begun, num_said: tokens that it came with, and of these and what was said.
        tokens, first: the answer's begin at ``first`` of ``tokens``; those before ``num_begun`` need not be there.
    """

    request_id: str
    attempt: int
    deltas: list[TokenDelta]
    num_begun: int
    num_said: int
    tokens: Sequence[int]
    first: int

    def encoded(self) -> bytes:
        """All that ``following`` needs."""
        request_id, attempt, deltas, num_begun, num_said, tokens, first = self
        told = tokens[first + num_begun : first + num_said]
        return _ENCODER.encode((request_id, attempt, deltas, num_begun, num_said, told, -num_begun))

    @staticmethod
    def decoded(words: bytes) -> Said:
        """What ``encoded`` returned, as it was."""
        return _DECODER.decode(words)

    def following(self, index: int) -> list[TokenDelta]:
        """What was said of tokens from ``index`` on, of each one by one, and how it ended."""
        said: list[TokenDelta] = []
        position = max(index, self.num_begun)
        for delta in self.deltas:
            end = delta.index + len(delta.token_ids)
            if end <= index and not delta.finish_reason:
                continue
            said += self._plain(position, delta.index)
            if delta[4:] == _NO_MORE:
                said += self._one_by_one(max(index, delta.index), delta.token_ids[max(0, index - delta.index) :])
            else:
                said.append(delta)
            position = max(position, end)
        return said + self._plain(position, self.num_said)

    def _plain(self, start: int, end: int) -> list[TokenDelta]:
        return self._one_by_one(start, self.tokens[self.first + start : self.first + end]) if start < end else []

    def _one_by_one(self, index: int, tokens: Sequence[int]) -> list[TokenDelta]:
        return [TokenDelta(self.request_id, self.attempt, index + i, [token]) for i, token in enumerate(tokens)]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Said)


class _Ended(NamedTuple):
    subscriber: str
    at: float  # of ``time.monotonic``
    words: bytes


class EndedAnswers:
    """Belongs to one event loop; any thread may ask for a ``subscriber``.

    That a request was here is known for ``RETENTION_S`` in any case, so that nobody begins it again. What was said of it may go
    before: who asks for that is told to continue the request as one that was handed over.

    Attributes:
        num_bytes: of what is kept of their words.
    """

    def __init__(self) -> None:
        # In the order in which they ended, those without words before all others; they go from the front.
        self._wordless: OrderedDict[RequestKey, _Ended] = OrderedDict()
        self._kept: OrderedDict[RequestKey, _Ended] = OrderedDict()
        self.num_bytes = 0

    def __contains__(self, key: RequestKey) -> bool:
        return self._get(key) is not None

    def __len__(self) -> int:
        return len(self._kept) + len(self._wordless)

    def _get(self, key: RequestKey) -> _Ended | None:
        return self._kept.get(key) or self._wordless.get(key)

    def subscriber(self, key: RequestKey) -> str | None:
        """Whose request it was; None if it is not here."""
        ended = self._get(key)
        return None if ended is None else ended.subscriber

    def add(self, subscriber: str, said: Said) -> None:
        """An answer ends, which is not here."""
        words = said.encoded()
        key = said.request_id, said.attempt
        self._kept[key] = _Ended(sys.intern(subscriber), time.monotonic(), words)
        self.num_bytes += len(words)
        while self.num_bytes > MAX_KEPT_BYTES:
            oldest, ended = next(iter(self._kept.items()))
            self._wordless[oldest] = ended._replace(words=b"")
            self._take_words(oldest)

    def following(self, key: RequestKey, subscriber: str, index: int) -> list[TokenDelta]:
        """As ``Said.following``, if the request was ``subscriber``'s."""
        ended = self._get(key)
        if ended is None or ended.subscriber != subscriber:
            return []
        if not ended.words:
            return [TokenDelta(*key, index, [], finish_reason=FINISH_HANDOVER)]
        return Said.decoded(ended.words).following(index)

    def discard(self, key: RequestKey) -> None:
        """Nobody will ask for it, if it is here."""
        if key in self._kept:
            self._take_words(key)
        else:
            self._wordless.pop(key, None)

    def old(self) -> list[RequestKey]:
        """Those that ended more than ``RETENTION_S`` ago."""
        before = time.monotonic() - RETENTION_S
        found = []
        for ended_answers in (self._wordless, self._kept):
            for key, ended in ended_answers.items():
                if ended.at >= before:
                    break
                found.append(key)
        return found

    def _take_words(self, key: RequestKey) -> None:
        self.num_bytes -= len(self._kept.pop(key).words)
