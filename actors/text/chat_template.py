"""A model's chat template, rendered in a sandbox: the template is part of a downloaded model and is not trusted."""

from __future__ import annotations

import datetime
import json
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox

from actors.text.tool_arguments import ToolArguments
from cluster.errors import InvalidRequestError, ModelLoadError

MAX_RENDERED_CHARS = 16 * 2**20
_MAX_POWER = 10**6
# What this module gives a template, and Jinja's name for the template.
_OWN_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "self"})
# Under this name, which no template can write, filters find the mark of ``render``.
_MARK = "\0mark"


class TemplateRefusal(jinja2.TemplateError):
    """The template called raise_exception: it does not take these messages."""


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Also bounds the operators with which a short expression makes an enormous value."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and (not _is_small(left) or not _is_small(right)):
            raise jinja2.sandbox.SecurityError("operands of ** are too large")
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if _has_length(sequence) and isinstance(times, int) and len(sequence) * times > MAX_RENDERED_CHARS:
                    raise jinja2.sandbox.SecurityError("result of * is too large")
        return super().call_binop(context, operator, left, right)


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}`` marks the assistant's part for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _has_length(value: Any) -> bool:
    return isinstance(value, (str, bytes, list, tuple))


def _is_small(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= _MAX_POWER


def _raise_exception(message: str) -> None:
    raise TemplateRefusal(message)


@jinja2.pass_context
def _tojson(
    context: jinja2.runtime.Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which would change what the model reads.
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    mark = context.get(_MARK)
    if not mark or not ensure_ascii:
        return text
    escaped = json.dumps(mark)[1:-1]
    return re.sub(rf"\\\\|{re.escape(escaped)}", lambda found: mark if found[0] == escaped else found[0], text)


def _clock(now: float | None = None) -> datetime.datetime:
    return datetime.datetime.now() if now is None else datetime.datetime.fromtimestamp(now)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _clock().strftime  # a name of the template's own; ``render`` says when it is
    return environment


class ChatTemplate:
    """One compiled template.

    Args:
        source: Jinja text.
        special_tokens: bos_token, eos_token and the like, visible to the template.
        where: names the model in errors.
    Attributes:
        variables: names that it reads and does not set.
    Raises:
        ModelLoadError: the text is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: dict[str, str], where: object) -> None:
        try:
            environment = _environment()
            self._template = environment.from_string(source)
            self._reads_tool_calls = "tool_calls" in source
            self._used = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError) as error:
            raise ModelLoadError(
                f"the chat template of {where} is not valid ({error}): mend or remove it.", "tokenizer"
            ) from error
        self._special_tokens = special_tokens
        # Nobody outside this process can write it, and it holds nothing that special tokens are made of.
        self._end = f"{secrets.token_hex(16)} "
        self.variables = frozenset(self._used)
        self._reserved = _OWN_VARIABLES | special_tokens.keys() | self._template.globals.keys()

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        rewrite: Callable[[str], str] | None = None,
        mark: str = "",
        now: float | None = None,
    ) -> str:
        """Return the prompt text.

        Args:
            messages: OpenAI chat messages; content is a string, None, or a list of text parts, which are joined by newlines.
                None becomes an empty string where the template does not know tool calls, whose messages have that.
            continue_final_message: end where the content of the last message ends.
            tools: OpenAI tool definitions, passed on to the template.
            template_kwargs: further variables of the template, e.g. enable_thinking; a name that has a meaning of its own
                there (those above, special tokens, Jinja's functions) is refused, and one that the template does not name is
                left out.
            rewrite: called for every string of the client's that the template gets, roles and names of variables excepted;
                the template gets what it returns.
            mark: what ``rewrite`` puts into strings; it does not count towards MAX_RENDERED_CHARS.
            now: what a template takes for the present, in seconds since the epoch.
        Raises:
            InvalidRequestError: the template refuses the messages, fails on them, or renders more than MAX_RENDERED_CHARS.
        """
        taken = sorted(self._reserved & (template_kwargs or {}).keys())
        if taken:
            raise InvalidRequestError(
                f"chat_template_kwargs may not contain {', '.join(taken)}; these names are the template's own",
                "chat_template_kwargs",
            )
        plain = [_plain(m, i) for i, m in enumerate(messages)]
        if not self._reads_tool_calls:
            # It would write None where an assistant called tools and said nothing.
            plain = [{**m, "content": ""} if m.get("content", "") is None else m for m in plain]
        # Others would be rewritten for nothing, however large.
        own = {name: value for name, value in (template_kwargs or {}).items() if name in self._used}
        if rewrite is not None:
            plain = [_rewritten_message(message, rewrite) for message in plain]
            tools = _rewritten(tools, rewrite, "tools")
            own = {name: _rewritten(value, rewrite, "chat_template_kwargs") for name, value in own.items()}
        if continue_final_message:
            plain[-1] = {**plain[-1], "content": (plain[-1].get("content") or "") + self._end}
        variables = {
            **own,
            **self._special_tokens,
            "messages": plain,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            _MARK: mark,
            "strftime_now": _clock(now).strftime,
        }
        pieces, length = [], 0
        try:
            for piece in self._template.generate(variables):
                length += len(piece) - (piece.count(mark) * len(mark) if mark else 0)
                if length > MAX_RENDERED_CHARS:
                    raise InvalidRequestError(
                        f"messages render to more than {MAX_RENDERED_CHARS} characters", "messages"
                    )
                pieces.append(piece)
        except TemplateRefusal as error:
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}", "messages"
            ) from error
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
            MemoryError,
        ) as error:
            # The error is of the template's own expressions, in words of Python.
            raise InvalidRequestError("the model's chat template cannot render these messages", "messages") from error
        text = "".join(pieces)
        return self._cut(text) if continue_final_message else text

    def _cut(self, text: str) -> str:
        """What stands before the end of the final message's content; without the white space there if the template trims."""
        end = text.rfind(self._end.rstrip())
        if end < 0:
            raise InvalidRequestError(
                "continue_final_message: the chat template does not write the last message's content as it is",
                "continue_final_message",
            )
        return text[:end] if text.startswith(self._end, end) else text[:end].rstrip()


def _plain(message: dict[str, Any], index: int) -> dict[str, Any]:
    """Return the message with a string (or None) as content."""
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return message
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise InvalidRequestError(f"messages.{index}.content may have parts of type text only", "messages")
    return {**message, "content": "\n".join(texts)}


def _rewritten_message(message: dict[str, Any], rewrite: Callable[[str], str]) -> dict[str, Any]:
    # Templates make special tokens of roles, <|user|> for one; which roles there are is not the client's choice.
    return {
        name: value if name == "role" else _rewritten(value, rewrite, "messages") for name, value in message.items()
    }


def _rewritten(value: Any, rewrite: Callable[[str], str], param: str) -> Any:
    """A copy of ``value`` with all strings in it rewritten."""
    try:
        return _rewritten_strings(value, rewrite)
    except RecursionError as error:
        raise InvalidRequestError(f"{param} holds lists or objects that are nested too deeply", param) from error


def _rewritten_strings(value: Any, rewrite: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return rewrite(value)
    if isinstance(value, ToolArguments):
        values = {_rewritten_strings(name, rewrite): _rewritten_strings(item, rewrite) for name, item in value.items()}
        return ToolArguments(values, rewrite(str(value)))
    if isinstance(value, Mapping):
        return {_rewritten_strings(name, rewrite): _rewritten_strings(item, rewrite) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rewritten_strings(item, rewrite) for item in value]
    return value
