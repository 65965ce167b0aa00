"""Text to token ids and back, and chat prompts. Loads in a fraction of a second and knows no tensor library."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tokenizers

from actors.model_files.end_tokens import eos_token_ids
from actors.model_files.gguf.file import read_gguf
from actors.model_files.gguf.split import is_gguf
from actors.model_files.gguf.tokens import special_token_text
from actors.model_files.json_file import read_optional_json, special_tokens
from actors.model_files.source import ModelSource
from actors.text.chat_template import ChatTemplate
from actors.text.gguf_tokenizer import build_tokenizer
from actors.text.special_tokens import SpecialTokens, unused_mark
from actors.text.token_bytes import TokenBytes
from actors.text.token_floor import TokenFloor
from cluster.errors import InvalidRequestError, ModelLoadError

# One text at a time is encoded here; the library would start a thread a core for it.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """What the files of a model say about its tokenizer, before it is put together.

    Attributes:
        special_tokens: bos_token, eos_token, ... to their text.
    """

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()
    chat_template: str | None = None


class Tokenizer:
    """A loaded tokenizer; safe to use from several threads.

    Attributes:
        vocab_size: one more than the largest id; the model's vocabulary may be larger (padding).
        bos_token_id: or None.
        eos_token_ids: ids that end a generation by default.
        special_ids: ids that decode leaves out with skip_special_tokens.
        special_tokens: bos_token, eos_token, ... to their text.
        chat_template: of the model, as Jinja text; None without one.
    """

    def __init__(self, parts: TokenizerParts, name: str) -> None:
        self._backend = parts.backend
        self._backend.no_truncation()
        self._backend.no_padding()
        self._name = name
        added = self._backend.get_added_tokens_decoder()
        self.vocab_size = 1 + max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.bos_token_id = self._backend.token_to_id(parts.special_tokens.get("bos_token", ""))
        self.eos_token_ids = parts.eos_token_ids
        self.token_bytes_table = TokenBytes(self._backend, self.vocab_size, name)
        self._special = SpecialTokens(self._backend)
        self.special_tokens = dict(parts.special_tokens)
        self.chat_template_source = template = parts.chat_template
        self._template = ChatTemplate(template, parts.special_tokens, name) if template is not None else None

    @functools.cached_property
    def floor(self) -> TokenFloor:
        """The fewest tokens that a text can have; made at the first use, which takes a fraction of a second."""
        return TokenFloor(self._backend, [self.token_bytes(i) for i in range(self.vocab_size)])

    @property
    def has_chat_template(self) -> bool:
        """Whether apply_chat_template can be used."""
        return self._template is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of ``text``; special tokens written out in it become their ids.

        Args:
            add_special_tokens: add what the model wants around a prompt (BOS). Off for rendered chat templates, which write
                it themselves.
        """
        with _valid_unicode():
            # Of the library's ways to encode the one that lets other threads run meanwhile.
            return self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Return the text of ``ids``; bytes that are not UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        skipped = self.special_ids if skip_special_tokens else ()
        text = b"".join([self.token_bytes(i) for i in ids if i not in skipped]).decode("utf-8", "replace")
        return text[1:] if self.token_bytes_table.strips_first_space and text.startswith(" ") else text

    def token_text(self, token_id: int) -> str:
        """Return one token as text; parts of a character become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_spelling(self, token_id: int) -> str:
        """Return one token as the vocabulary spells it, e.g. with ``Ġ`` for a space; empty for none of it."""
        return self._backend.id_to_token(token_id) or ""

    def added_tokens(self) -> dict[int, dict[str, Any]]:
        """Return the tokens that stand beside the vocabulary proper, by id, with how they are found in a text."""
        return {
            i: {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for i, token in sorted(self._backend.get_added_tokens_decoder().items())
        }

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for; those of all tokens of a text, joined, are its UTF-8."""
        return self.token_bytes_table[token_id]

    def whole_text(self, token_id: int) -> str | None:
        """What the token adds to every text that does not begin with it, nor end in the middle of a character; None for special
        tokens, those without text and parts of characters, for which it takes an ``IncrementalDetokenizer``."""
        if token_id in self.special_ids:
            return None
        said = self.token_bytes(token_id)
        try:
            return self.token_bytes_table.ascii_text(token_id) or said.decode() or None
        except UnicodeDecodeError:
            return None

    def special_id(self, text: str) -> int | None:
        """The special token that is written so; None if there is none."""
        token_id = self._backend.token_to_id(text)
        return token_id if token_id in self.special_ids else None

    def apply_chat_template(
        self, messages: list[dict[str, Any]], template: ChatTemplate | None = None, **options: Any
    ) -> str:
        """Render the model's chat template, or ``template``, with ``options`` of ``ChatTemplate.render``; encode the result
        with ``add_special_tokens=False``.

        Raises:
            InvalidRequestError: the model has no template, or it does not take these messages or variables.
        """
        return (template or self.chat_template()).render(messages, **options)

    def chat_template(self, source: str | None = None) -> ChatTemplate:
        """The model's chat template, or one of a request's.

        Raises:
            InvalidRequestError: the model has none, or ``source`` is not valid.
        """
        if source is not None:
            try:
                return ChatTemplate(source, self.special_tokens, "this request")
            except ModelLoadError as error:
                raise InvalidRequestError(f"chat_template: {error.message}", "chat_template") from None
        if self._template is None:
            raise InvalidRequestError(
                f"model {self._name} has no chat template: use completions, or put a chat_template.jinja beside its "
                "tokenizer.json",
                "messages",
                "no_chat_template",
            )
        return self._template

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        add_special_tokens: bool = False,
        special_tokens_as_text: bool = True,
        check: Callable[[str], None] | None = None,
        **options: Any,
    ) -> list[int]:
        """Return the token ids of the rendered chat template. The template's special tokens become their ids; those written
        out in what the client says stay text, and so do those that the template would put together from it.

        Takes time for long messages: call it in a thread.

        Args:
            special_tokens_as_text: off: they become their ids, whoever wrote them.
            check: called with what was rendered before it is encoded; raises where that is not to be done.
            options: those of ``ChatTemplate.render``.
        Raises:
            InvalidRequestError: as ``apply_chat_template``, or a message is not valid Unicode.
        """
        theirs: list[str] = []

        def note(text: str) -> str:
            theirs.append(text)
            return text

        text = self.apply_chat_template(messages, rewrite=note, **options)
        if check is not None:
            check(text)
        if not special_tokens_as_text:
            return self.encode(text, add_special_tokens)
        with _valid_unicode():
            reads_more = self._special.reads_more(text)
        if not reads_more and not self._special.may_begin_or_end_in(theirs):
            return self.encode(text, add_special_tokens)
        mark = unused_mark(theirs)

        def rendered(break_up: Callable[[str, str], str]) -> str:
            return self.apply_chat_template(messages, rewrite=lambda t: break_up(t, mark), mark=mark, **options)

        with _valid_unicode():
            # Marks everywhere hide from a template what it looks for, </think> for one, but what is whole then is its own.
            # So the rendering with the fewest marks is taken that has the same special tokens.
            if any(self._special.break_whole(t, mark) != t for t in theirs):
                text = rendered(self._special.break_whole)
            broken = rendered(self._special.break_all)
            if self._special.found(text) != self._special.found(broken):
                text = broken
            if mark not in text and not reads_more:
                return self.encode(text, add_special_tokens)
            return self._special.encode(text, mark, add_special_tokens)


@contextmanager
def _valid_unicode() -> Iterator[None]:
    try:
        yield
    except (TypeError, UnicodeEncodeError) as error:  # which one depends on the library's version
        raise InvalidRequestError("text is not valid Unicode: it holds half of a surrogate pair", "prompt") from error


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """Load the tokenizer of a model, or the one that was chosen instead.

    Raises:
        ModelLoadError: there is none, or it is damaged or of a kind that is not supported.
    """
    path = source.tokenizer
    if path is None:
        raise ModelLoadError(
            f"{source.path} has no tokenizer.json: copy it there, or set tokenizer to one.", "tokenizer"
        )
    parts = _from_gguf(path) if is_gguf(path) else _from_json(path)
    return Tokenizer(replace(parts, eos_token_ids=eos_token_ids(source)), source.name)


def _from_gguf(path: Path) -> TokenizerParts:
    metadata = read_gguf(path).metadata
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {name: special_token_text(metadata, key) for name, key in names.items()}
    template = metadata.get("tokenizer.chat_template")
    return TokenizerParts(
        build_tokenizer(metadata, path),
        {name: text for name, text in special.items() if text},
        chat_template=template if isinstance(template, str) else None,
    )


def _from_json(path: Path) -> TokenizerParts:
    file = path if path.is_file() else path / "tokenizer.json"
    folder = file.parent
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise ModelLoadError(
            f"{file} is damaged or of a newer format ({error}): download or copy it again.", "tokenizer"
        ) from error
    return TokenizerParts(backend, special_tokens(folder), chat_template=_template_text(folder))


def _template_text(folder: Path) -> str | None:
    """The template of a model directory: a file of its own goes before the one inside tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except ValueError as error:
            raise ModelLoadError(f"{file} is not UTF-8 text ({error}): copy it again.", "tokenizer") from error
    settings = (read_optional_json(folder / name) for name in ("chat_template.json", "tokenizer_config.json"))
    template = next((found for file in settings if (found := file.get("chat_template"))), None)
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
