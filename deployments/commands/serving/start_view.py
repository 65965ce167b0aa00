"""The stages of a start as they end, with their times: lines, and on a terminal one that moves below them."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable

from cluster.terminal.app import UNBROKEN

_NAME_WIDTH = 28
_CLEAR = "\r\x1b[K"
_SPINNER = "|/-\\"


class StartView:
    """Writes to a descriptor: whoever puts a file in the place of stdout meanwhile does not meet this.

    Args:
        output: descriptor to write to.
        moves: below the lines stands what goes on at this moment; default: where ``output`` is a terminal.
    """

    def __init__(
        self, output: int, moves: bool | None = None, now: Callable[[], float] = time.monotonic, columns: int = 0
    ) -> None:
        self._output = output
        self._moves = os.isatty(output) if moves is None else moves
        self._now = now
        self._given_columns = columns
        self._began_at = now()
        self._stage: str | None = None
        self._stage_began_at = self._began_at
        self._detail = ""
        self._drawn = False
        self._turns = 0
        self._writing = threading.Lock()

    @property
    def total_s(self) -> float:
        """Seconds since the view was made."""
        return self._now() - self._began_at

    @property
    def columns(self) -> int:
        """Of the terminal that is written to, now; stdout may be a file by then. COLUMNS in the environment comes first. Of
        what is no terminal so many that no line is broken."""
        given = os.environ.get("COLUMNS", "")
        if columns := self._given_columns or (int(given) if given.isdecimal() else 0):
            return columns
        if not os.isatty(self._output):
            return UNBROKEN
        with contextlib.suppress(OSError):
            columns = os.get_terminal_size(self._output).columns
        return columns or shutil.get_terminal_size().columns  # a terminal may not know

    def redirect(self, output: int) -> None:
        """Write to another descriptor of the same terminal or file."""
        self._output = output

    def begin(self, stage: str) -> None:
        """A stage begins; the one before it has ended."""
        self.end()
        self._stage, self._stage_began_at, self._detail = stage, self._now(), ""

    def end(self) -> None:
        """The stage that goes on is over."""
        if self._stage is not None:
            stage, self._stage = self._stage, None
            self.took(stage, self._now() - self._stage_began_at)

    def took(self, stage: str, seconds: float) -> None:
        """A stage that others have watched is over."""
        self.line(f"  {stage:<{_NAME_WIDTH}}{seconds:7.1f} s")

    def tick(self, detail: str = "") -> None:
        """Show that the stage goes on, and what it does."""
        if not self._moves or self._stage is None:
            return
        self._detail = detail
        self._turns += 1
        with self._writing:
            self._draw()

    def line(self, text: str) -> None:
        """A line that stays."""
        with self._writing:
            clear = _CLEAR if self._drawn else ""
            self._drawn = False
            self._write(f"{clear}{text}\n")

    def close(self) -> None:
        """Nothing moves any more."""
        with self._writing:
            if self._drawn:
                self._write(_CLEAR)
            self._drawn = False
            self._moves = False

    def _draw(self) -> None:
        sign = _SPINNER[self._turns % len(_SPINNER)]
        name = f"{self._stage}: {self._detail}" if self._detail else f"{self._stage}"
        seconds = f"{self._now() - self._stage_began_at:7.1f} s"
        width = max(8, min(_NAME_WIDTH, self.columns - len(seconds) - 3))
        self._drawn = True
        self._write(f"{_CLEAR}{sign} {name[:width]:<{width}}{seconds}")

    def _write(self, text: str) -> None:
        data = text.encode(errors="replace")
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._output, data) :]
