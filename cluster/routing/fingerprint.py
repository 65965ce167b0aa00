"""Which engines go on with an answer exactly. A part of an engine's fingerprint counts for answers under a mask alone: under a
grammar, or a budget of reasoning."""

from __future__ import annotations

_JOINT = "."


def fingerprint_of(answers: str, grammars: str) -> str:
    """Of an engine: of what makes the bits of every answer, and of what follows grammars and budgets besides."""
    return answers + _JOINT + grammars


def of_answer(engine: str, is_masked: bool) -> str:
    """What an answer keeps of the fingerprint of the engine that began it."""
    return engine if is_masked else engine.partition(_JOINT)[0]


def can_continue(engine: str, answer: str) -> bool:
    """Whether the engine with this fingerprint goes on exactly with an answer that kept ``answer`` of the one that began it."""
    return answer in (engine, of_answer(engine, is_masked=False))
