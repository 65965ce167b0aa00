"""Text that arrives in pieces, on a terminal: no word is broken at the edge, and nothing commands the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len

_TAB = 8


class WrappedText:
    """Writes pieces of text; a word is held back until it is whole.

    Args:
        width: asked before each word, so that a window may be resized; columns.
        write: receives what is to be shown.
    """

    def __init__(self, width: Callable[[], int], write: Callable[[str], object]) -> None:
        self._width, self._write = width, write
        self._word = ""
        self._column = 0

    def add(self, text: str) -> None:
        """Show ``text``, but for a word at its end that may go on."""
        for sign in text:
            if sign == "\n":
                self.end_word()
                self._put("\n", 0)
            elif sign in " \t":
                self.end_word()
                self._space(sign)
            elif sign.isprintable():
                if cell_len(sign) > 1:  # such scripts have no spaces and break anywhere
                    self.end_word()
                self._word += sign
                if cell_len(sign) > 1 or cell_len(self._word) >= self._width():
                    self.end_word()

    def end_word(self) -> None:
        """Show what was held back: the text is over, or something else is shown behind it."""
        if not self._word:
            return
        length = cell_len(self._word)
        if self._column and self._column + length > self._width():
            self._put("\n", 0)
        self._put(self._word, self._column + length)
        self._word = ""

    def _space(self, sign: str) -> None:
        columns = 1 if sign == " " else _TAB - self._column % _TAB
        if self._column + columns < self._width():
            self._put(" " * columns, self._column + columns)
        else:  # the edge is space enough
            self._put("\n", 0)

    def _put(self, text: str, column: int) -> None:
        self._write(text)
        self._column = column
