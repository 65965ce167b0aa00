"""Which engines go on with an answer exactly; a part of an engine's fingerprint counts for answers under a grammar alone."""

from __future__ import annotations

_JOINT = "."


def fingerprint_of(answers: str, grammars: str) -> str:
    """Of an engine: of what makes the bits of every answer, and of what follows grammars besides."""
    return answers + _JOINT + grammars


def of_answer(engine: str, has_grammar: bool) -> str:
    """What an answer keeps of the fingerprint of the engine that began it."""
    return engine if has_grammar else engine.partition(_JOINT)[0]


def can_continue(engine: str, answer: str) -> bool:
    """Whether the engine with this fingerprint goes on exactly with an answer that kept ``answer`` of the one that began it."""
    return answer in (engine, of_answer(engine, has_grammar=False))
