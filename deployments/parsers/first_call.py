"""Where an answer's first call ends, for requests that want no second one."""

from __future__ import annotations

from deployments.parsers.answer_parser import AnswerFormat, AnswerParser


class FirstCall:
    """Reads the text of one answer as it comes."""

    __slots__ = ("_parser",)

    def __init__(self, form: AnswerFormat) -> None:
        self._parser = AnswerParser(form)

    def end_in(self, text: str) -> int | None:
        """How much of the next piece of text belongs to the answer where its first call is complete; None where it is not yet."""
        unread = self._parser.unread_behind_call(text)
        return None if unread is None else max(0, len(text) - unread)
