"""Structural tags in both of vLLM's forms as a grammar in Lark's syntax: parts between tags that are bound, in any text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from actors.structured_output.white_space import lark_pattern
from cluster.grammar import JSON_SCHEMA, JSON_WHITESPACE, REGEX, Grammar

_ANY = "ANY: /(.|\\n)*/"
_MAYBE_SPECIAL = re.compile(r"(<[^<>\s]+>|\[[A-Z_]+\])")
SpecialId = Callable[[str], int | None]


class WrongPart(ValueError):
    """Of a structural tag.

    Attributes:
        where: the part, as a field of the tag's object.
    """

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where


def structural_tag_grammar(text: str, special_id: SpecialId) -> tuple[str, list[Grammar]]:
    """The grammar, and the schemas and regular expressions in it, whose fields are those of the tag's object.

    Args:
        text: the object, as JSON.
        special_id: of a special token, by its text; such tokens are no characters.

    Raises:
        WrongPart: a part is not understood, or not supported.
        ValueError: the whole is not.
    """
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("a structural tag is an object")
    written = _Written(special_id)
    if "format" in value:
        start = written.part(_object(value["format"], "format"), "format", is_last=True)
    elif "structures" in value:
        tags = [_of_old(tag, f"structures[{i}]") for i, tag in enumerate(_list(value, "structures", ""))]
        start = written.triggered({"triggers": value.get("triggers"), "structures": tags}, "", "structures")
    else:
        raise ValueError("a structural tag has format, or structures and triggers")
    return "\n".join([f"start: {start}", *written.rules, _ANY]), written.parts


def _of_old(value: Any, where: str) -> dict[str, Any]:
    tag = _object(value, where)
    content = {"type": "json_schema", "json_schema": tag.get("schema", {})}
    return {"type": "tag", "begin": tag.get("begin"), "content": content, "end": tag.get("end")}


class _Written:
    """Rules, as parts need them."""

    def __init__(self, special_id: SpecialId) -> None:
        self.rules: list[str] = []
        self.parts: list[Grammar] = []
        self._special_id = special_id

    def part(self, value: dict[str, Any], where: str, is_last: bool) -> str:
        """An expression for a format; ``is_last``: nothing comes behind it, so that it may be any text."""
        kind = value.get("type")
        if kind == "const_string":
            return self._literal(_text(value, "value", where))
        if kind == "json_schema":
            return self._json(value, where)
        if kind == "regex":
            pattern = _text(value, "pattern", where)
            self.parts.append(Grammar(REGEX, pattern, f"{where}.pattern"))
            return self._terminal(pattern)
        if kind == "any_text" and not value.get("excludes"):
            if not is_last:
                raise WrongPart(where, "any_text stands in a tag, or where nothing comes behind it")
            return "ANY"
        if kind == "sequence":
            parts = _list(value, "elements", where)
            return self._group(
                " ".join(
                    self._inner(part, f"{where}.elements[{i}]", is_last and i == len(parts) - 1)
                    for i, part in enumerate(parts)
                )
            )
        if kind == "or":
            parts = _list(value, "elements", where)
            return self._group(
                " | ".join(self._inner(part, f"{where}.elements[{i}]", is_last) for i, part in enumerate(parts))
            )
        if kind in ("optional", "star", "plus"):
            mark = {"optional": "?", "star": "*", "plus": "+"}[kind]
            return self._inner(value.get("content"), f"{where}.content", False) + mark
        if kind == "tag":
            return self._tag(value, where, _text(value, "begin", where))
        if kind == "triggered_tags" and not value.get("excludes"):
            if not is_last:
                raise WrongPart(where, "triggered_tags stand where nothing comes behind them")
            return self.triggered(value, where)
        if kind == "tags_with_separator":
            return self._separated(value, where)
        excludes = ", with excludes," if value.get("excludes") else ""
        raise WrongPart(f"{where}.type", f"{json.dumps(kind)}{excludes} is not supported")

    def triggered(self, value: dict[str, Any], where: str, name: str = "tags") -> str:
        """Any text in which a trigger begins one of the tags, which ``value`` has under ``name``."""
        triggers = _list(value, "triggers", where)
        by_trigger: dict[str, list[str]] = {}
        for i, tag in enumerate(_list(value, name, where)):
            place = _join(where, f"{name}[{i}]")
            begin = _text(_object(tag, place), "begin", place)
            trigger = next((one for one in triggers if isinstance(one, str) and one and begin.startswith(one)), None)
            if trigger is None:
                raise WrongPart(f"{place}.begin", "begins with none of the triggers")
            by_trigger.setdefault(trigger, []).append(self._tag(tag, place, begin[len(trigger) :]))
        cases = []
        for trigger, tags in by_trigger.items():
            cases.append(f"{self._up_to(trigger)} {self._group(' | '.join(tags))}")
        once = self._group(" | ".join(cases))
        if value.get("stop_after_first"):
            return once if value.get("at_least_one") else self._group(f"{once} | ANY")
        return f"{once}{'+' if value.get('at_least_one') else '*'} ANY"

    def _separated(self, value: dict[str, Any], where: str) -> str:
        tags = [self._inner(tag, f"{where}.tags[{i}]", False) for i, tag in enumerate(_list(value, "tags", where))]
        one = self._group(" | ".join(tags))
        more = "" if value.get("stop_after_first") else f" ({self._literal(value.get('separator') or '')} {one})*"
        return f"({one}{more}){'' if value.get('at_least_one') else '?'}"

    def _tag(self, value: dict[str, Any], where: str, begin: str) -> str:
        content = _object(value.get("content"), f"{where}.content")
        ends = value.get("end")
        ends = [ends] if isinstance(ends, str) else ends
        if not isinstance(ends, list) or not ends or not all(isinstance(end, str) for end in ends):
            raise WrongPart(f"{where}.end", "must be a string")
        if content.get("type") == "any_text" and not content.get("excludes"):
            if not all(ends):
                raise WrongPart(f"{where}.end", "must not be empty behind any_text")
            inner = self._group(" | ".join(map(self._up_to, ends)))
        else:
            last = " | ".join(map(self._literal, ends))
            inner = f"{self.part(content, f'{where}.content', False)} {self._group(last)}"
        return self._group(f"{self._literal(begin)} {inner}")

    def _inner(self, value: Any, where: str, is_last: bool) -> str:
        return self.part(_object(value, where), where, is_last)

    def _group(self, expression: str) -> str:
        """Through a rule of its own, so that it may be empty and repeated."""
        return self._rule(expression)

    def _rule(self, body: str, lazy: bool = False) -> str:
        name = f"r{len(self.rules)}"
        self.rules.append(f"{name}{'[lazy]' if lazy else ''}: {body}")
        return name

    def _terminal(self, pattern: str) -> str:
        name = f"T{len(self.rules)}"
        self.rules.append(f"{name}: {lark_pattern(pattern)}")
        return name

    def _literal(self, text: str) -> str:
        if not text:
            return '""'
        found = [(part, self._special_id(part)) for part in _MAYBE_SPECIAL.split(text) if part]
        return " ".join(json.dumps(part) if token_id is None else f"<[{token_id}]>" for part, token_id in found)

    def _up_to(self, end: str) -> str:
        """Any text up to and with ``end``, of which the first counts."""
        return self._rule(f"ANY {self._literal(end)}", lazy=self._special_id(end) is None)

    def _json(self, value: dict[str, Any], where: str) -> str:
        if value.get("style", "json") != "json":
            raise WrongPart(f"{where}.style", f"{json.dumps(value['style'])} is not supported")
        schema = value.get("json_schema")
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise WrongPart(f"{where}.json_schema", "must be a JSON schema")
        text = json.dumps({"x-guidance": {"whitespace_pattern": JSON_WHITESPACE}, **schema})
        self.parts.append(Grammar(JSON_SCHEMA, text, f"{where}.json_schema"))
        return self._rule(f"%json {text}")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WrongPart(where, "must be an object")
    return value


def _list(value: dict[str, Any], name: str, where: str) -> list[Any]:
    found = value.get(name)
    if not isinstance(found, list) or not found:
        raise WrongPart(_join(where, name), "must be a list with at least 1 item")
    return found


def _text(value: dict[str, Any], name: str, where: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        raise WrongPart(_join(where, name), "must be a string")
    return found
