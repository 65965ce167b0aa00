"""Grammar of a call whose arguments are written one by one, each as its schema says: between tags, or as Python's keywords."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from deployments.parsers.tool_formats import SeparateArguments
from deployments.parsers.tools.argument_list import is_text

# What says nothing of values. ``$id`` and the like would change what references mean.
_ANNOTATIONS = {
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema",
}  # fmt: skip
_DEFINITIONS = ("$defs", "definitions")
_OF_OBJECT = {*_ANNOTATIONS, *_DEFINITIONS, "type", "properties", "required", "additionalProperties"}
_OF_TEXT = {*_ANNOTATIONS, "type", "enum", "const", "minLength", "maxLength", "pattern"}
_MOVED = {"$id", "$anchor", "$dynamicRef", "$recursiveRef"}
# What may stand between tags of any family.
_TAGGED_KEY = re.compile(r"[^\s<>\[\]](?:[^<>\[\]\n\r]{0,254}[^\s<>\[\]])?")
_PYTHON_NAME = re.compile(r"[A-Za-z_][\w.\-]*", re.ASCII)
_ESCAPED_OR_SLASH = re.compile(r"(\\.)|[/\n]", re.DOTALL)
_IN_PATTERN = re.compile(r"\\[^bBAzZGkpP<>]|\[(?:\\.|[^\]\\])*\]|\(\?:", re.DOTALL)


class Argument(NamedTuple):
    """One argument of a function.

    Attributes:
        key: its name.
        schema: of its value; True for any.
        is_required: whether it must be there.
    """

    key: str
    schema: dict[str, Any] | bool
    is_required: bool


def arguments_of(name: str, parameters: dict[str, Any], form: SeparateArguments) -> list[Argument] | None:
    """Arguments of the function ``name`` that are written one by one; None if its schema is not to be kept to so."""
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    others = parameters.get("additionalProperties", True)
    if not (isinstance(properties, dict) and isinstance(required, list) and isinstance(others, bool)):
        return None
    if (
        parameters.keys() - _OF_OBJECT
        or parameters.get("type", "object") != "object"
        or not _refers_to_root(parameters)
    ):
        return None
    arguments = [Argument(key, schema, key in required) for key, schema in properties.items() if schema is not False]
    known = {argument.key for argument in arguments}
    missing = [key for key in required if key not in known]
    if missing and (not others or not all(isinstance(key, str) and key not in properties for key in missing)):
        return None
    arguments += [Argument(key, True, True) for key in dict.fromkeys(missing)]
    fits = _fits_python if not form.are_texts_bare else _fits_tags
    if not fits(name, arguments):
        return None
    return arguments


def _fits_python(name: str, arguments: list[Argument]) -> bool:
    words = [argument.key for argument in arguments]
    return _PYTHON_NAME.fullmatch(name) is not None and all(
        word.isascii() and word.isidentifier() and not keyword.iskeyword(word) and word != "__debug__" for word in words
    )


def _fits_tags(name: str, arguments: list[Argument]) -> bool:
    return all(
        _TAGGED_KEY.fullmatch(key) and (not is_text(schema) or _text_parts(schema) is not None)
        for key, schema, _ in arguments
    )


def _refers_to_root(schema: Any) -> bool:
    """Whether every reference in it means a definition of the whole schema."""
    if isinstance(schema, list):
        return all(map(_refers_to_root, schema))
    if not isinstance(schema, dict):
        return True
    to = schema.get("$ref", "#/$defs/")
    return (
        isinstance(to, str)
        and to.startswith(tuple(f"#/{name}/" for name in _DEFINITIONS))
        and not (schema.keys() & _MOVED)
        and all(map(_refers_to_root, schema.values()))
    )


class ArgumentRules:
    """Writes the rules of a call's arguments, in Lark's syntax.

    Args:
        text: an expression for exactly a text.
        is_special: whether a text is a special token, which is no character.
        guidance: what the library is told of every schema.
    """

    def __init__(
        self,
        form: SeparateArguments,
        text: Callable[[str], str],
        is_special: Callable[[str], bool],
        guidance: dict[str, Any],
    ) -> None:
        self.rules: list[str] = []
        self._form, self._text, self._is_special, self._guidance = form, text, is_special, guidance

    def expression(self, prefix: str, arguments: list[Argument], parameters: dict[str, Any]) -> str:
        """An expression for all arguments, in their order; names of its rules begin with ``prefix``, in lower case."""
        for i, argument in enumerate(arguments):
            self.rules.append(f"{prefix}_{i}: {self._argument(f'{prefix}_{i}', argument, parameters)}")
        if not self._form.between:
            return " ".join(f"{prefix}_{i}" + ("" if one.is_required else "?") for i, one in enumerate(arguments))
        # From the last to the first: what may follow where another stood before, and where none did.
        between = self._text(self._form.between)
        behind, first = '""', '""'
        for i in reversed(range(len(arguments))):
            one = f"{prefix}_{i}"
            is_required = arguments[i].is_required
            self.rules.append(f"{one}_first: {one} {behind}" + ("" if is_required else f" | {first}"))
            self.rules.append(f"{one}_more: {between} {one} {behind}" + ("" if is_required else f" | {behind}"))
            behind, first = f"{one}_more", f"{one}_first"
        return first

    def _argument(self, rule: str, argument: Argument, parameters: dict[str, Any]) -> str:
        before, middle, after = self._form.argument
        head = self._text(f"{before}{argument.key}{middle}")
        if self._form.are_texts_bare and is_text(argument.schema):
            return f"{head} {self._bare(rule, argument.schema)}"
        schema = {} if argument.schema is True else argument.schema
        assert isinstance(schema, dict)
        definitions = {name: parameters[name] for name in _DEFINITIONS if name in parameters}
        value = json.dumps({**schema, **definitions, "x-guidance": self._guidance})
        return f"{head} %json {value} {self._text(after)}"

    def _bare(self, rule: str, schema: dict[str, Any] | bool) -> str:
        """A text up to and with its end, which is not in it."""
        after = self._form.argument[2]
        end = after.strip()
        before, _, behind = after.partition(end)
        parts = _text_parts(schema)
        assert parts is not None
        terminal = rule.upper()
        bounds = [f"~{_regex(f'(?s:.)*{re.escape(end)}(?s:.)*')}", *map(_regex, parts)]
        self.rules.append(f"{terminal}: {' & '.join([_regex('(?s:.)*'), *bounds])}")
        # Models leave a line's end before a tag out at times; where it counts how long the text is, they may not.
        line = _regex(f"(?:{re.escape(before)})" + ("" if parts else "?")) if before else ""
        if self._is_special(end):
            if line:
                self.rules.append(f"{terminal}_LINE: {terminal} {line}")
                terminal += "_LINE"
            return f"{terminal} {self._text(end + behind)}"
        self.rules.append(f"{rule}_text[lazy]: {terminal} {line} {json.dumps(end)}")
        return f"{rule}_text {self._text(behind)}"


def _text_parts(schema: dict[str, Any] | bool) -> list[str] | None:
    """Regular expressions that a text has to match whole, all of them; None if its schema says more."""
    if not isinstance(schema, dict):
        return []
    if schema.keys() - _OF_TEXT:
        return None
    parts = []
    for values in ([schema["const"]] if "const" in schema else None, schema.get("enum")):
        if values is not None:
            texts = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
            if not texts or any("\r" in text for text in texts):
                return None
            parts.append("|".join(map(re.escape, texts)))
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    if least or most != "":
        if not all(type(bound) is int and bound >= 0 for bound in (least, 0 if most == "" else most)):
            return None
        parts.append(f"(?s:.{{{least},{most}}})")
    if "pattern" in schema:
        pattern = _searched(schema["pattern"])
        if pattern is None:
            return None
        parts.append(pattern)
    return parts


def _searched(pattern: Any) -> str | None:
    """A regular expression that matches a whole text wherever ``pattern`` is found in it; None for what looks around itself
    elsewhere than at the text's ends."""
    if not isinstance(pattern, str):
        return None
    begin = pattern.startswith("^")
    ending = re.search(r"(?<!\\)(?:\\\\)*(\$)$", pattern)
    body = pattern[begin : len(pattern) - (ending is not None)]
    rest = _IN_PATTERN.sub(lambda found: "(" if found[0] == "(?:" else "", body)
    if re.search(r"[\\^$]|\(\?", rest):
        return None
    while rest != (rest := re.sub(r"\([^()]*\)", "", rest)):
        pass
    if "|" in rest and (begin or ending):
        return None
    anything = "(?s:.)*"
    return ("" if begin else anything) + f"(?:{body})" + ("" if ending else anything)


def _regex(pattern: str) -> str:
    """A terminal's expression."""

    def in_lark(found: re.Match[str]) -> str:
        return {"/": "\\/", "\n": "\\n", "\\\n": "\\n"}.get(found[0], found[0])

    return f"/(?:{_ESCAPED_OR_SLASH.sub(in_lark, pattern)})/"
