"""The vocabulary as the grammar library wants it: the bytes of every token, and the tokens that end an answer."""

from __future__ import annotations

from collections.abc import Sequence

import llguidance

from actors.text.tokenizer import Tokenizer


class _Vocabulary:
    """What the library asks a tokenizer for, by the names that it looks up."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        # A model may have more rows than its tokenizer has tokens; those have no bytes, so no grammar allows them.
        self.tokens = [tokenizer.token_bytes(i) for i in range(vocab_size)]
        self.special_token_ids = sorted(i for i in tokenizer.special_ids if i < vocab_size)
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def token_trie(tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> llguidance.LLTokenizer:
    """A trie of the model's tokens; takes a second for a large vocabulary.

    Args:
        eos_token_ids: what the engine stops at; a grammar that may end allows them.
    """
    vocabulary = _Vocabulary(tokenizer, vocab_size, eos_token_ids[0])
    return llguidance.LLTokenizer(vocabulary, n_vocab=vocab_size, eos_token=list(eos_token_ids))  # type: ignore[arg-type]
