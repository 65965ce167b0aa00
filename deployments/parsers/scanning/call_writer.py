"""Calls and the content around them, in the order in which they stand in an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deployments.parsers.scanning.events import CallArguments, CallBegin, CallEnd, Content
from deployments.parsers.scanning.scanner import Malformed, Scanner, Steps, rest, until

# Characters of what was no call. Each begin of one may be read up to the end of the text: of an answer that is nothing but such
# begins, the work would grow with its square.
MOST_READ_AGAIN = 2**16


class CallWriter:
    """Numbers calls, and leaves out white space that stands between them and words.

    Attributes:
        count: calls so far.
        is_open: the last of them may get more arguments.
        read_again: characters that were taken for something that they were not.
    """

    __slots__ = ("_scan", "_space", "count", "is_open", "read_again")

    def __init__(self, scan: Scanner) -> None:
        self.count = 0
        self.is_open = False
        self.read_again = 0
        self._scan = scan
        self._space = ""

    def content(self, text: str) -> Content | None:
        """More content. White space waits for what follows it: before a call, and at the end behind one, it is nothing."""
        text = self._space + text
        stripped = text.rstrip()
        self._space = text[len(stripped) :]
        return Content(stripped) if stripped else None

    def end_of_text(self) -> Content | None:
        """What is left of the content."""
        space, self._space = self._space, ""
        return Content(space) if space and not self.count else None

    def begin(self, name: str) -> CallBegin:
        """Another call. What stands before it is read no more.

        Raises:
            Malformed: no function has this name.
        """
        if not name or name != name.strip():
            raise Malformed
        self._space = ""
        self.count += 1
        self.is_open = True
        self._scan.forget()
        return CallBegin(self.count - 1, name)

    def arguments(self, text: str) -> CallArguments:
        """More of the last call's arguments."""
        return CallArguments(self.count - 1, text)

    def end(self) -> CallEnd:
        """The last call is complete."""
        self.is_open = False
        return CallEnd(self.count - 1)


Body = Callable[[Scanner, CallWriter, str], Steps[None]]


def marked_calls(scan: Scanner, calls: CallWriter, begins: Sequence[str], end: str, body: Body) -> Steps[None]:
    """An answer whose calls stand behind one of ``begins`` each, and before ``end`` if that is not empty.

    What follows one of ``begins`` and is no call stays content. What a model wrote in place of the arguments of a call that has
    begun goes to them: it is of more use to a client than nothing.

    Args:
        body: reads what stands between; is told which of ``begins`` stood before.
    """
    begin = yield from until(scan, begins, calls.content)
    while begin:
        scan.keep()
        count = calls.count
        try:
            yield from body(scan, calls, begin)
        except Malformed:
            if calls.count == count:
                calls.read_again += scan.rewind()
                yield calls.content(begin)
                if calls.read_again > MOST_READ_AGAIN:
                    yield from rest(scan, calls.content)
                    return
                begin = yield from until(scan, begins, calls.content)
                continue
            if scan.ended:
                # The answer was cut: what is left is part of a mark, and no argument.
                return
        scan.forget()
        behind = (lambda text: calls.arguments(text)) if calls.is_open else (lambda text: None)
        ends = [*begins, end] if end else []
        begin = (yield from until(scan, ends, behind)) if ends else ""
        if calls.is_open and begin:
            yield calls.end()
        calls.is_open = False
        if not begin or begin == end:
            begin = yield from until(scan, begins, calls.content)
