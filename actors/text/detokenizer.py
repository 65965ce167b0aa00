"""Text of a growing token sequence, delivered piece by piece."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from actors.text.tokenizer import Tokenizer

_UTF8 = codecs.getincrementaldecoder("utf-8")
# In bytes, and so in tokens.
_LONGEST_CHARACTER = 4


class IncrementalDetokenizer:
    """Turns tokens into text as they come; all pieces joined are ``tokenizer.decode`` of all ids.

    A character whose bytes are spread over several tokens is held back until it is whole; one that the last token leaves
    incomplete is never shown (``decode`` has U+FFFD for it). Time per token is constant.

    Args:
        continues: tokens of a text that was shown before, which those to come continue: a SentencePiece model's first space is
            kept, and a character that they begin is completed.
        shown: special tokens that are part of the text all the same.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        *,
        continues: Sequence[int] | None = None,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        self._bytes = tokenizer.token_bytes_table
        self._skipped = tokenizer.special_ids - shown if skip_special_tokens else frozenset()
        self._decoder = _UTF8("replace")
        self._strip_next = self._bytes.strips_first_space and continues is None
        self._is_amid = False
        for token_id in (continues or ())[-_LONGEST_CHARACTER:]:
            self.push(token_id)

    @property
    def is_amid_character(self) -> bool:
        """Whether the tokens so far end in the middle of one."""
        return bool(self._decoder.getstate()[0])

    @property
    def takes_whole_texts(self) -> bool:
        """Whether a token that has a ``Tokenizer.whole_text`` adds just that now; it then makes no difference to later ones."""
        return not self._is_amid and not self._strip_next

    def push(self, token_id: int) -> str:
        """Return the text that this token completes, often '' or part of a word."""
        if token_id in self._skipped:
            return ""
        if not self._is_amid and not self._strip_next and (plain := self._bytes.ascii_text(token_id)) is not None:
            return plain
        text = self._decoder.decode(self._bytes[token_id])
        self._is_amid = self.is_amid_character
        if self._strip_next and text:
            self._strip_next = False
            return text[1:] if text[0] == " " else text
        return text
