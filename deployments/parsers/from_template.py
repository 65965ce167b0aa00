"""Which parsers a model wants, by what its chat template says of calls and reasoning."""

from __future__ import annotations

# In this order: some templates of later families also have words of earlier ones.
_TOOLS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("[TOOL_CALLS]",), "mistral"),
    (("<｜tool▁calls▁begin｜>", "```json"), "deepseek_v3"),
    (("<｜tool▁calls▁begin｜>",), "deepseek_v31"),
    (("<function=", "<parameter="), "qwen3_coder"),
    (("<arg_key>",), "glm45"),
    (("<|tool_call|>",), "granite"),
    (("<tool_call>",), "hermes"),
    (("[func_name1(",), "pythonic"),
    (("<|python_start|>",), "pythonic"),
    (("<|python_tag|>",), "llama3_json"),
    (('{"name": function name, "parameters":',), "llama3_json"),
)
_REASONING: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|start_of_role|>", "</think>", "<response>"), "granite33"),
    (("</think>", "<response>"), "ernie45"),
    (("</think>",), "qwen3"),
    (("<think>",), "qwen3"),
    (("Here is my thought process:",), "granite"),
)


def tool_parser_of(template: str) -> str | None:
    """The name of a parser for a model with this chat template; None if that tells of no calls that are known here."""
    return _named(_TOOLS, template)


def reasoning_parser_of(template: str) -> str | None:
    """As ``tool_parser_of``, for reasoning."""
    return _named(_REASONING, template)


def _named(rows: tuple[tuple[tuple[str, ...], str], ...], template: str) -> str | None:
    return next((name for words, name in rows if all(word in template for word in words)), None)
