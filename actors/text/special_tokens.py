"""Special tokens that are written out in what a client says: they stay the characters that they are.

A chat template joins its own text with the client's, and the tokenizer cannot tell whose ``<|im_end|>`` it reads. So the
client's are broken by a mark before the template sees them, and the marks are taken out again once it is known where the
template's own are.

A tokenizer may look for special tokens in normalized text, where full-width or capital letters become those of a control token.
Templates write theirs out as they are named: whatever else is read as one is the client's, and text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer, models

# Braille patterns: printable, so that repr() in a template leaves them alone, no letters and no space.
_MARKS = [chr(code) for code in range(0x2800, 0x2900)]


# Encoding this many characters takes about a millisecond.
_SHORT = 4096
# Marks are put into so many at a time: replacing keeps the interpreter to itself, and in a long text others are to run meanwhile.
_PIECE_CHARS = 2**16


class SpecialTokens:
    """The special tokens of one tokenizer. A token of a single character cannot be broken, and always stays one.

    Args:
        backend: the tokenizer; shared, not changed.
    """

    def __init__(self, backend: Tokenizer) -> None:
        added = backend.get_added_tokens_decoder()
        self._ids = {token.content: i for i, token in added.items() if token.special}
        normal = _normal_forms(backend, [token for token in added.values() if token.special])
        forms = {**self._ids, **{form: self._ids[text] for text, form in normal.items() if form not in self._ids}}
        self._texts = sorted((text for text in forms if len(text) > 1), key=lambda text: (-len(text), text))
        self._first = sorted({text[0] for text in self._texts})
        self._last = sorted({text[-1] for text in self._texts})
        tokens = [added[i] for i in sorted(added)]
        # Finds added tokens exactly where the tokenizer does, and does nothing else.
        self._finder = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
        self._finder.add_tokens(tokens)
        self._finder.add_tokens([AddedToken(form, special=True) for form in forms if form not in self._ids])
        self._found = {self._finder.token_to_id(text): i for text, i in forms.items()}
        self._normalizing_finder = None
        if normal:
            self._normalizing_finder = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
            self._normalizing_finder.normalizer = backend.normalizer
            self._normalizing_finder.add_tokens(tokens)
            names = {self._normalizing_finder.token_to_id(text): text for text in self._ids}
            self._written = {i: {text, normal.get(text, text)} for i, text in names.items()}
        # Stands where a special token of the template is; nobody outside this process can write it.
        self._stand_in = f"\U0010ffff{secrets.token_hex(16)}\U0010ffff"
        self._plain = _twin(backend, backend.model, tokens)
        if self._makes_special_tokens(self._plain):
            self._plain = _twin(backend, _model_without(backend, self._ids), tokens)
        self._plain.add_tokens([AddedToken(self._stand_in, normalized=False, special=False)])
        self._stand_in_id = self._plain.token_to_id(self._stand_in)
        ids = {self._plain.token_to_id(token.content): i for i, token in added.items() if not token.special}
        self._renumbered = {plain: i for plain, i in ids.items() if plain != i}

    def may_begin_or_end_in(self, texts: Iterable[str]) -> bool:
        """Whether a special token could have its first or its last character from one of these."""
        ends = {*self._first, *self._last}
        return any(char in text for text in texts for char in ends)

    def break_whole(self, text: str, mark: str) -> str:
        """``text`` with a mark in every special token that is written out in it."""
        for special in self._texts:
            text = _replaced(text, special, special[0] + mark + special[1:])
        return text

    def break_all(self, text: str, mark: str) -> str:
        """``text`` with marks such that nothing which a template makes of it has a special token that begins or ends in it."""
        # Single characters are replaced, so that pieces make the same of it as the whole.
        pieces = [text[begin : begin + _PIECE_CHARS] for begin in range(0, len(text), _PIECE_CHARS)]
        return "".join([self._break_piece(piece, mark) for piece in pieces])

    def _break_piece(self, text: str, mark: str) -> str:
        for char in self._first:
            text = text.replace(char, char + mark)
        for char in self._last:
            text = text.replace(char, mark + char)
        return text

    def found(self, text: str) -> list[int]:
        """Ids of the special tokens that the tokenizer sees in ``text``, in order."""
        ids = _encoded(self._finder, text).ids
        return [self._found[i] for i in ids if i in self._found]

    def reads_more(self, text: str) -> bool:
        """Whether the tokenizer takes something in ``text`` for a special token that is not written as one."""
        if self._normalizing_finder is None:
            return False
        found = _encoded(self._normalizing_finder, text, offsets=True)
        return any(
            i in self._written and text[start:stop].strip() not in self._written[i]
            for i, (start, stop) in zip(found.ids, found.offsets)
        )

    def encode(self, text: str, mark: str, add_special_tokens: bool) -> list[int]:
        """Token ids of ``text`` without its marks; what they break is plain text, the other special tokens are themselves.

        Raises:
            TypeError, UnicodeEncodeError: the text is not valid Unicode.
        """
        pieces, specials, end = [], [], 0
        found = _encoded(self._finder, text, offsets=True)
        for i, (start, stop) in zip(found.ids, found.offsets):
            if i in self._found:
                specials.append(self._found[i])
                pieces += [text[end:start], self._stand_in]
                end = stop
        pieces.append(text[end:])
        ids = _encoded(self._plain, "".join(pieces).replace(mark, ""), add_special_tokens).ids
        own = iter(specials)
        changed = {self._stand_in_id, *self._renumbered}
        return [i if i not in changed else next(own) if i == self._stand_in_id else self._renumbered[i] for i in ids]

    def _makes_special_tokens(self, plain: Tokenizer) -> bool:
        return any(
            len(text) > 1 and i in plain.encode(text, add_special_tokens=False).ids for text, i in self._ids.items()
        )


def _encoded(backend: Tokenizer, text: str, add_special_tokens: bool = True, offsets: bool = False) -> Encoding:
    if len(text) <= _SHORT:
        return backend.encode(text, add_special_tokens=add_special_tokens)
    # A batch is encoded without the interpreter's lock.
    encode = backend.encode_batch if offsets else backend.encode_batch_fast
    return encode([text], add_special_tokens=add_special_tokens)[0]


def _replaced(text: str, old: str, new: str) -> str:
    """``text.replace(old, new)`` in pieces."""
    if len(text) <= _PIECE_CHARS:
        return text.replace(old, new)
    pieces, begin = [], 0
    while begin < len(text):
        # Holds all that begins within the piece, and nothing that begins behind it.
        piece = text[begin : begin + _PIECE_CHARS + len(old) - 1]
        parts = piece.split(old)
        # The last one may reach beyond the piece.
        end = max(min(_PIECE_CHARS, len(piece)), len(piece) - len(parts[-1]))
        parts[-1] = parts[-1][: len(parts[-1]) - (len(piece) - end)]
        pieces.append(new.join(parts))
        begin += end
    return "".join(pieces)


def unused_mark(texts: list[str]) -> str:
    """A mark that occurs in none of ``texts``."""
    for mark in _MARKS:
        if not any(mark in text for text in texts):
            return mark
    return "".join(secrets.choice(_MARKS) for _ in range(32))


def _normal_forms(backend: Tokenizer, tokens: Iterable[AddedToken]) -> dict[str, str]:
    """How those tokens that are looked for in normalized text are written there."""
    normalizer = backend.normalizer
    if normalizer is None:
        return {}
    forms = {token.content: normalizer.normalize_str(token.content) for token in tokens if token.normalized}
    # What changes again, as with a space that is put before any text, is written so by nobody.
    return {text: form if normalizer.normalize_str(form) == form else text for text, form in forms.items()}


def _twin(backend: Tokenizer, model: Any, tokens: list[AddedToken]) -> Tokenizer:
    """A tokenizer that shares the backend's parts and reads special tokens as text."""
    twin = Tokenizer(model)
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        if getattr(backend, part) is not None:
            setattr(twin, part, getattr(backend, part))
    twin.add_tokens(tokens)
    twin.encode_special_tokens = True
    return twin


def _model_without(backend: Tokenizer, specials: Iterable[str]) -> Any:
    """The backend's model where it would put special tokens together from characters: they get names that no text has."""
    saved = json.loads(backend.to_str())
    renamed = {text: f"\U0010ffff{secrets.token_hex(16)}" for text in specials}
    model = saved["model"]
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in vocab]
    else:
        model["vocab"] = {renamed.get(piece, piece): i for piece, i in vocab.items()}
    if "merges" in model:
        merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [m for m in merges if not renamed.keys() & {*m, "".join(m)}]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    saved["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(saved)).model
