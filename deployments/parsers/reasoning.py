"""Reasoning before an answer: between tags, of which the prompt may have the first."""

from __future__ import annotations

from dataclasses import dataclass

from deployments.parsers.scanning.events import Content, Reasoning
from deployments.parsers.scanning.scanner import Emit, Scanner, Steps, goes_on, skip_space, until


@dataclass(frozen=True)
class ReasoningFormat:
    """How a family of models writes it.

    Attributes:
        begins: any of them.
        ends: any of them.
        answer: tags that may stand around what follows; empty if there are none.
        is_open: an answer begins in the middle of it where the prompt does not say otherwise.
    """

    begins: tuple[str, ...] = ("<think>",)
    ends: tuple[str, ...] = ("</think>",)
    answer: tuple[str, ...] = ()
    is_open: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that it looks for."""
        return (*self.begins, *self.ends, *self.answer)

    def begins_in(self, prompt_end: str) -> bool | None:
        """Whether an answer behind this prompt begins in its reasoning; None if the answer itself says so."""
        prompt_end = prompt_end.rstrip()
        if prompt_end.endswith(self.begins):
            return True
        if prompt_end.endswith(self.ends):
            return False
        return True if self.is_open else None


def read_reasoning(scan: Scanner, form: ReasoningFormat, begins: bool | None) -> Steps[None]:
    """Pass the reasoning of an answer, and white space around it.

    Args:
        begins: as ``ReasoningFormat.begins_in`` says.
    """
    if begins is False:
        return
    scan.keep()
    yield from skip_space(scan)
    found = yield from goes_on(scan, form.begins)
    if not found and begins is None:
        scan.rewind()
        return
    scan.forget()
    yield from skip_space(scan)
    if not (yield from until(scan, form.ends, _trimmed(Reasoning))):
        return
    yield from skip_space(scan)
    if form.answer and (yield from goes_on(scan, form.answer[:1])):
        yield from skip_space(scan)
        yield from until(scan, form.answer[1:], _trimmed(Content))
        yield from skip_space(scan)


def _trimmed(kind: type[Content] | type[Reasoning]) -> Emit:
    """Holds white space back until something follows it."""
    held = ""

    def emit(text: str) -> Content | Reasoning | None:
        nonlocal held
        text = held + text
        stripped = text.rstrip()
        held = text[len(stripped) :]
        return kind(stripped) if stripped else None

    return emit


THINK = ReasoningFormat()
FORMATS: dict[str, ReasoningFormat] = {
    "deepseek_r1": ReasoningFormat(is_open=True),
    "qwen3": THINK,
    "glm45": THINK,
    "ernie45": ReasoningFormat(answer=("<response>", "</response>"), is_open=True),
    "ernie_x1": ReasoningFormat(answer=("<response>", "</response>"), is_open=True),
    "granite33": ReasoningFormat(answer=("<response>", "</response>")),
    "granite": ReasoningFormat(
        ("Here is my thought process:", "Here's my thought process:"), ("Here is my response:", "Here's my response:")
    ),
}
