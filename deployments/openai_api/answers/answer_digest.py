"""What was asked and what has been answered, in sixteen characters that tell a client nothing: who takes an answer up must have
the very tokens that were sent, and ask the same."""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from binascii import b2a_base64
from collections.abc import Sequence

from deployments.openai_api.answers.event_ids import CONTENT_BYTES

# Packed in one go; more would keep other threads waiting.
_TOKENS_AT_ONCE = 2**12
_PART_BYTES = 16
# No token id is so large.
_END = b"\xff\xff\xff\xff"


class AnswerDigest:
    """A keyed digest that grows with an answer, at a cost that does not depend on how long that is or how many choices it has.

    It depends on the tokens alone, and not on how they were grouped into events.

    Args:
        key: of the digest; without it nobody finds two answers with one digest.
        prompts: token ids.
        max_tokens: as asked for; None if that was left open.
        n: choices of each prompt.
    """

    def __init__(self, key: bytes, prompts: Sequence[Sequence[int]], max_tokens: int | None, n: int) -> None:
        self._key = key
        asked = hashlib.blake2s(digest_size=_PART_BYTES, key=key, person=b"asked")
        asked.update(struct.pack("<3q", len(prompts), n, -1 if max_tokens is None else max_tokens))
        for prompt in prompts:
            asked.update(struct.pack("<q", len(prompt)))
            _update(asked, prompt)
        self._choices: dict[int, hashlib.blake2s] = {}
        self._parts: dict[int, int] = {}
        # Of all choices, in any order: keyed digests, none of which leaves this object, may be added up without carry.
        self._answered = 0
        self._whole = hashlib.blake2s(asked.digest(), digest_size=CONTENT_BYTES, key=key, person=b"answer")

    def add(self, index: int, token_ids: Sequence[int], finish_reason: str | None = None) -> None:
        """These tokens of a choice follow those before, and perhaps its end."""
        if not token_ids and finish_reason is None:
            return
        digest = self._choices.get(index) or self._new(index)
        if len(token_ids) == 1:  # as of most events, and sooner done
            digest.update(token_ids[0].to_bytes(4, sys.byteorder))
        else:
            _update(digest, token_ids)
        if finish_reason is not None:
            digest.update(_END + finish_reason.encode())
        now = int.from_bytes(digest.digest(), "little")
        self._answered ^= now ^ self._parts[index]
        self._parts[index] = now

    def text(self, fingerprint: str) -> str:
        """The digest, of what an engine with this fingerprint has answered."""
        whole = self._whole.copy()
        whole.update(self._answered.to_bytes(_PART_BYTES, "little") + fingerprint.encode())
        return b2a_base64(whole.digest(), newline=False).decode()

    def _new(self, index: int) -> hashlib.blake2s:
        salt = struct.pack("<q", index)
        made = hashlib.blake2s(digest_size=_PART_BYTES, key=self._key, person=b"choice", salt=salt)
        self._choices[index], self._parts[index] = made, 0
        return made


def _update(digest: hashlib.blake2s, token_ids: Sequence[int]) -> None:
    for begin in range(0, len(token_ids), _TOKENS_AT_ONCE):
        digest.update(array("I", token_ids[begin : begin + _TOKENS_AT_ONCE]))
