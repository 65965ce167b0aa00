"""Where each token's text begins in the text that a client sees, in characters."""

from __future__ import annotations

import codecs

from actors.text.detokenizer import IncrementalDetokenizer
from actors.text.tokenizer import Tokenizer


class TextOffsets:
    """Offsets of a growing answer.

    A token whose bytes are the middle of a character begins where that character does, and one without text (a special
    token that is skipped) where the next text will.

    Args:
        detokenizer: a new one that releases the answer's text.
        start: characters before the answer.
    """

    def __init__(self, detokenizer: IncrementalDetokenizer, start: int) -> None:
        self._detokenizer = detokenizer
        self._next = start

    def push(self, token_id: int) -> int:
        """Return the offset of the answer's next token."""
        offset = self._next
        self._next += len(self._detokenizer.push(token_id))
        return offset


def prompt_offsets(tokenizer: Tokenizer, token_ids: list[int], text: str) -> list[int]:
    """Offsets of a prompt's tokens in ``text``, which the client wrote or which they decode to.

    Tokens that stand for nothing in the text, as a BOS that was put in front of it, take no room.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets = []
    position = 0
    for token_id in token_ids:
        offsets.append(position)
        piece = decoder.decode(tokenizer.token_bytes(token_id))
        if not text.startswith(piece, position):
            piece = piece.removeprefix(" ")  # SentencePiece's, which no text begins with
        if text.startswith(piece, position):
            position += len(piece)
    return offsets
