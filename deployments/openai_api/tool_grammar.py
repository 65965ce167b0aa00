"""The grammar of an answer that calls tools: what a family writes around a call, and the schema of its arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from cluster.api_errors import ApiError, bad_request
from cluster.grammar import JSON_SCHEMA, JSON_WHITESPACE, LARK, MAX_GRAMMAR_CHARS, Grammar
from deployments.openai_api.argument_grammar import ArgumentRules, arguments_of
from deployments.openai_api.requests.protocol import ChatCompletionRequest
from deployments.openai_api.requests.tools import AUTO, ChosenTool, FunctionDefinition
from deployments.parsers.answer_parser import AnswerFormat
from deployments.parsers.reasoning import ReasoningFormat
from deployments.parsers.tool_formats import ToolFormat, Wrapping

# Arguments are written as templates show them to the model: a space behind commas and colons, and none else, so that no run of
# white space goes on for ever.
_SPACING = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_ANY_TEXT = "/(.|\\n)*/"
SpecialId = Callable[[str], int | None]


def tool_grammar(
    request: ChatCompletionRequest, form: AnswerFormat, own: Grammar | None, special_id: SpecialId
) -> Grammar | None:
    """What an answer to a request with tools must be like; None if anything may come.

    Args:
        own: what the request itself asks for, which an answer without a call follows.
        special_id: of a special token, by its text.
    Raises:
        ApiError: 400, its grammar and its tools do not go together.
    """
    assert form.tools is not None
    wrapping, choice = form.tools.wrapping, request.tool_choice
    functions = [tool.function for tool in request.tools]
    if isinstance(choice, ChosenTool):
        functions = [function for function in functions if function.name == choice.function.name][-1:]
    is_bound = binds(form.tools, functions)
    if own is not None and (own.kind != JSON_SCHEMA or choice != AUTO or not is_bound):
        raise bad_request(
            f"{own.param}: does not go together with tools, unless it is JSON, tool_choice is auto, and a grammar can "
            "describe calls of these tools as the model writes them",
            own.param,
            "unsupported_parameter",
        )
    is_free = choice == AUTO and own is None
    if choice == AUTO and not is_bound and any(function.strict for function in functions):
        raise _not_strict(form.tools, functions, request.tool_places)
    if not is_bound or (is_free and not any(function.strict for function in functions)):
        return None
    written = _Written(special_id, wrapping.no_words)
    parts = _parts(request, functions, own)
    rules = [rule for i, function in enumerate(functions) for rule in written.call(i, wrapping, function)]
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(functions))))
    several = request.parallel_tool_calls and not isinstance(choice, ChosenTool)
    before = written.reasoning(form.reasoning, _may_reason(request, form), rules)
    calls = written.calls(wrapping, several)
    if not is_free:
        answer = calls
        if own is not None:
            rules.append(f"own: %json {_bounded(own)}")
            answer = f"({calls} | own)"
    elif not wrapping.marker:
        # The whole answer is calls or is none.
        rules.append(r"WORDS: /[^\s{\[](.|\n)*/")
        answer = f"({calls} | WORDS?)"
    else:
        rules += written.marked(wrapping, several)
        answer = f"marked* {written.words}" if several else f"(marked | {written.words})"
    rules.append(f"start: {before} {answer}")
    text = "\n".join(rules)
    if len(text) > MAX_GRAMMAR_CHARS:
        raise bad_request(
            f"tools: names and parameters make a grammar of {len(text)} characters; at most {MAX_GRAMMAR_CHARS} are allowed",
            "tools",
        )
    return Grammar(LARK, text, "tools", parts)


def _parts(
    request: ChatCompletionRequest, functions: Sequence[FunctionDefinition], own: Grammar | None
) -> tuple[Grammar, ...]:
    """What the request says of the form of an answer, each with its place there."""
    parts = []
    for i, tool in zip(request.tool_places, request.tools, strict=True):
        if any(tool.function is function for function in functions):
            text = json.dumps(_object_schema(tool.function))
            parts.append(Grammar(JSON_SCHEMA, text, f"tools.{i}.function.parameters"))
    return tuple(parts) if own is None else (*parts, own)


def _object_schema(function: FunctionDefinition) -> dict[str, Any]:
    """Of its arguments."""
    # A client that did not ask for it need not know what the grammars' library can.
    return {"type": "object", **(function.parameters or {}), "x-guidance": _guidance(function)}


def _guidance(function: FunctionDefinition) -> dict[str, Any]:
    return {**_SPACING, "lenient": not function.strict}


def _may_reason(request: ChatCompletionRequest, form: AnswerFormat) -> bool | None:
    """As ``AnswerFormat.begins_in_reasoning``; what the prompt leaves open, a request without thinking decides."""
    is_off = request.asked_thinking_budget[1] == 0 or request.wants_thinking is False
    return False if is_off and form.begins_in_reasoning is None else form.begins_in_reasoning


def binds(tools: ToolFormat, functions: Sequence[FunctionDefinition]) -> bool:
    """Whether a grammar can describe calls of these functions in the family's own form."""
    form = tools.wrapping.arguments
    if form is None:
        return True
    # Arguments are read by what the last function of a name says of them.
    return len({function.name for function in functions}) == len(functions) and all(
        arguments_of(function.name, function.parameters or {}, form) is not None for function in functions
    )


def _not_strict(tools: ToolFormat, functions: Sequence[FunctionDefinition], places: Sequence[int]) -> ApiError:
    unbound = next((i for i, function in zip(places, functions) if not binds(tools, [function])), None)
    why = "two have the same name" if unbound is None else f"not those of tools.{unbound}"
    strict = next(i for i, function in zip(places, functions) if function.strict)
    return bad_request(
        f"tools.{strict}.function.strict: a grammar cannot describe calls of these tools as this model writes them ({why}); "
        "leave strict out, or ask for a call (tool_choice required), which is JSON then",
        f"tools.{strict}.function.strict",
        "unsupported_parameter",
    )


def _bounded(own: Grammar) -> str:
    """Its schema with its white space, or that of all JSON; what is no object, the library refuses."""
    schema = json.loads(own.text)
    if not isinstance(schema, dict):
        return own.text
    if own.white_space is None:
        return json.dumps({"x-guidance": {"whitespace_pattern": JSON_WHITESPACE}, **schema})
    said = schema.get("x-guidance")
    guidance = {**(said if isinstance(said, dict) else {}), "whitespace_pattern": own.white_space.text}
    return json.dumps({**schema, "x-guidance": guidance})


class _Written:
    """Parts of a grammar in Lark's syntax. Special tokens of the model are tokens there, not characters."""

    def __init__(self, special_id: SpecialId, no_words: Sequence[str]) -> None:
        self._special_id = special_id
        self._no_words = no_words
        self.words = "WORDS" if no_words else "ANY"

    def text(self, text: str) -> str:
        """Exactly this text."""
        parts = []
        for part in re.split(r"(<[^<>\s]+>|\[[A-Z_]+\])", text):
            token_id = self._special_id(part) if part else None
            if token_id is not None:
                parts.append(f"<[{token_id}]>")
            elif part:
                parts.append(json.dumps(part))
        return " ".join(parts)

    def call(self, index: int, wrapping: Wrapping, function: FunctionDefinition) -> list[str]:
        """The rules of one call of ``function``."""
        before, between, after = wrapping.call
        name = json.dumps(function.name)[1:-1]
        head = self.text(f"{before}{name}{between}")
        if wrapping.arguments is None:
            return [f"call_{index}: {head} %json {json.dumps(_object_schema(function))} {self.text(after)}"]
        schema = function.parameters or {}
        arguments = arguments_of(function.name, schema, wrapping.arguments)
        assert arguments is not None
        rules = ArgumentRules(
            wrapping.arguments, self.text, lambda text: self._special_id(text) is not None, _guidance(function)
        )
        inner = rules.expression(f"a{index}", arguments, schema)
        return [*rules.rules, f"call_{index}: {head} {inner} {self.text(after)}"]

    def calls(self, wrapping: Wrapping, several: bool) -> str:
        """Calls and nothing else."""
        mark = self.text(wrapping.marker)
        each, once = (mark, "") if wrapping.is_each_marked else ("", mark)
        more = f"({self.text(wrapping.between)} {each} call)*" if several else ""
        return f"{once} {self.text(wrapping.begin)} {each} call {more} {self.text(wrapping.end)}"

    def marked(self, wrapping: Wrapping, several: bool) -> list[str]:
        """Rules of any text up to a marker and, behind it, calls; further calls with a marker of their own are not among them."""
        more = f"({self.text(wrapping.between)} call)*" if several and not wrapping.is_each_marked else ""
        marked = f"marked: to_marker {self.text(wrapping.begin)} call {more} {self.text(wrapping.end)}"
        return [*self.until("to_marker", wrapping.marker, self.words), marked]

    def until(self, rule: str, end: str, words: str = "ANY") -> list[str]:
        """Rules for any text up to and with ``end``, of which the first counts."""
        if self._special_id(end) is not None:
            return [f"{rule}: {words} {self.text(end)}"]
        return [f"{rule}[lazy]: {words} {json.dumps(end)}"]

    def reasoning(self, form: ReasoningFormat | None, begins: bool | None, rules: list[str]) -> str:
        """What may stand before an answer; its rules go to ``rules``.

        Args:
            begins: as ``ReasoningFormat.begins_in`` says; False for none.
        """
        rules.append(f"ANY: {_ANY_TEXT}")
        if self._no_words:
            rules.append("WORDS: ANY" + "".join(f" & ~/(.|\\n)*{re.escape(word)}(.|\\n)*/" for word in self._no_words))
        if form is None or begins is False:
            return ""
        rules += [*self.until("thought", form.ends[0]), "SPACE: /[ \\n]{1,4}/"]
        return "thought SPACE?" if begins else f"({self.text(form.begins[0])} thought SPACE?)?"
