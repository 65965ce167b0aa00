"""The bytes that each token stands for, worked out from the tokenizer's decoder.

Decoding is then the concatenation of bytes, which can be done token by token; decoders whose text for a token depends on its
neighbours are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import tokenizers

from cluster.errors import ModelLoadError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Table of token id to bytes, filled as ids are asked for.

    Args:
        backend: the tokenizer.
        size: number of ids; others have no bytes.
        where: names the model in errors.
    Attributes:
        strips_first_space: the decoder drops one space at the beginning of a text (SentencePiece).
    Raises:
        ModelLoadError: the tokenizer has a decoder that is not known.
    """

    def __init__(self, backend: tokenizers.Tokenizer, size: int, where: str) -> None:
        self._backend = backend
        self._table: list[bytes | None] = [None] * size
        self._texts: list[str | None] = [None] * size
        self._to_bytes, self.strips_first_space = _converter(backend, where)

    def ascii_text(self, token_id: int) -> str | None:
        """The token's bytes as text if they are ASCII, and so hold whole characters; else None, as for what was never asked."""
        return self._texts[token_id] if 0 <= token_id < len(self._texts) else None

    def __getitem__(self, token_id: int) -> bytes:
        if not 0 <= token_id < len(self._table):
            return b""
        known = self._table[token_id]
        if known is None:
            token = self._backend.id_to_token(token_id)
            known = self._table[token_id] = b"" if token is None else self._to_bytes(token)
            if known.isascii():
                self._texts[token_id] = known.decode()
        return known


def _converter(backend: tokenizers.Tokenizer, where: str) -> tuple[Callable[[str], bytes], bool]:
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__()) if backend.decoder else {"type": None}
    steps: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _from_byte_level, False
    if kinds == ["Metaspace"]:
        mark = steps[0]["replacement"]
        return lambda token: token.replace(mark, " ").encode(), steps[0].get("prepend_scheme", "always") != "never"
    if kinds in (["Replace", "ByteFallback", "Fuse", "Strip"], ["Replace", "ByteFallback", "Fuse"]):
        strip = steps[3] if len(steps) > 3 else {"content": " ", "start": 0, "stop": 0}
        pattern = steps[0]["pattern"].get("String")
        if pattern and strip["content"] == " " and strip["start"] in (0, 1) and strip["stop"] == 0:
            content = steps[0]["content"]
            return lambda token: _from_sentencepiece(token, pattern, content), strip["start"] == 1
    raise ModelLoadError(
        f"the tokenizer of {where} has a decoder of type {'+'.join(map(str, kinds))}; supported: ByteLevel, "
        "Metaspace, and SentencePiece with byte fallback.",
        "tokenizer",
    )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable Latin-1 characters mean themselves, the other bytes follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


_ALPHABET = _byte_alphabet()


def _from_byte_level(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[char] for char in token])
    except KeyError:  # an added token, written as plain text
        return token.encode()


def _from_sentencepiece(token: str, mark: str, content: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(mark, content).encode()
