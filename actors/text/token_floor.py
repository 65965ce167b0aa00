"""The fewest tokens that a text can have, from the vocabulary alone: what cannot fit a model is refused without encoding it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

# Characters looked at in one go: a millisecond or less.
_PIECE_CHARS = 2**16
# Composition across the end of a piece changes one character there, of at most four, at each side.
_LOST_AT_A_CUT = 32
_MARK = "▁"
_UNICODE_FORMS = {
    "NFC": tokenizers.normalizers.NFC,
    "NFD": tokenizers.normalizers.NFD,
    "NFKC": tokenizers.normalizers.NFKC,
    "NFKD": tokenizers.normalizers.NFKD,
}


class TokenFloor:
    """Counts bytes, each weighing one part of the longest token that holds it.

    The bytes of a token then weigh no more than 1 together, so a text has at least as many tokens as its bytes weigh. That needs
    every byte to end up in some token: a tokenizer that drops text in ways not known here has no floor.

    Args:
        backend: the tokenizer.
        token_bytes: what each token id stands for.
    """

    def __init__(self, backend: tokenizers.Tokenizer, token_bytes: Sequence[bytes]) -> None:
        self._forms: list[Any] | None = _unicode_forms(backend)
        self._is_byte_level = _is_byte_level(backend)
        self._drops_spaces = any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values())
        if not _keeps_text(backend) or not (self._is_byte_level or _falls_back_to_bytes(backend)):
            self._forms = None
        self._weights = _weights(token_bytes, self._is_byte_level)

    @property
    def is_known(self) -> bool:
        """Whether this tokenizer has a floor at all; else it is 0 for every text."""
        return self._forms is not None

    def exceeds(self, text: str, num_tokens: int) -> bool:
        """Whether ``text`` certainly has more than ``num_tokens`` tokens. False says nothing."""
        # No character has more than four bytes, and no byte weighs more than a token.
        if self._forms is None or 4 * len(text) <= num_tokens:
            return False
        counts = np.zeros(256, np.int64)
        for begin in range(0, len(text), _PIECE_CHARS):
            data = self._plain(text[begin : begin + _PIECE_CHARS]).encode("utf-8", "surrogatepass")
            counts += np.bincount(np.frombuffer(data, np.uint8), minlength=256)
            cuts = _LOST_AT_A_CUT * (begin // _PIECE_CHARS + 1) if self._forms else 0
            # The sum of products is not exact to the last bit.
            if counts @ self._weights * (1 - 1e-9) - cuts > num_tokens:
                return True
        return False

    def _plain(self, piece: str) -> str:
        """The characters of ``piece`` that end up in tokens."""
        if self._drops_spaces:
            piece = "".join(piece.split())
        for form in self._forms or ():
            piece = form.normalize_str(piece)
        return piece if self._is_byte_level else piece.replace(_MARK, " ")


def _weights(token_bytes: Sequence[bytes], is_byte_level: bool) -> np.ndarray:
    """``[256]`` float64: of each byte, one part of the longest token that holds it.

    A byte-level vocabulary may lack bytes, and they are dropped: they weigh nothing.
    """
    lengths = np.array([len(token) for token in token_bytes], np.int64)
    longest = np.ones(256, np.int64)
    np.maximum.at(longest, np.frombuffer(b"".join(token_bytes), np.uint8), np.repeat(lengths, lengths))
    weights = 1 / longest
    if is_byte_level:
        present = {token[0] for token in token_bytes if len(token) == 1}
        weights[[byte for byte in range(256) if byte not in present]] = 0
    return weights


def _steps(part: Any, name: str) -> list[dict[str, Any]]:
    state = json.loads(part.__getstate__()) if part is not None else None
    if state is None:
        return []
    return state[name] if state["type"] == "Sequence" else [state]


def _unicode_forms(backend: tokenizers.Tokenizer) -> list[Any] | None:
    """The steps that put other characters in the place of a text's; None if one of them may drop any number."""
    forms = []
    for step in _steps(backend.normalizer, "normalizers"):
        kind = step["type"]
        if kind in _UNICODE_FORMS:
            forms.append(_UNICODE_FORMS[kind]())
        elif kind == "Replace":
            if (step["pattern"].get("String"), step["content"]) != (" ", _MARK):
                return None
        elif kind not in ("Prepend", "ByteLevel"):
            return None
    return forms


def _keeps_text(backend: tokenizers.Tokenizer) -> bool:
    """Whether what stands between the words that the tokenizer cuts a text into is kept."""
    for step in _steps(backend.pre_tokenizer, "pretokenizers"):
        if step["type"] in ("Split", "Punctuation"):
            if step.get("behavior", "Isolated") == "Removed":
                return False
        elif step["type"] == "Metaspace":
            if step["replacement"] != _MARK:
                return False
        elif step["type"] not in ("ByteLevel", "Digits", "UnicodeScripts"):
            return False
    return True


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """Whether words become bytes before they become tokens."""
    steps = [*_steps(backend.normalizer, "normalizers"), *_steps(backend.pre_tokenizer, "pretokenizers")]
    return isinstance(backend.model, tokenizers.models.BPE) and any(step["type"] == "ByteLevel" for step in steps)


def _falls_back_to_bytes(backend: tokenizers.Tokenizer) -> bool:
    """Whether a character without a token of its own becomes tokens of bytes; it could share one with others, or have none."""
    is_on = json.loads(backend.model.__getstate__()).get("byte_fallback", False)
    return is_on and all(backend.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
