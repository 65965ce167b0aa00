"""The command ``bireme``, which others register with, and what its commands have in common."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from cluster import __version__
from cluster.client import Client
from cluster.client.api_types import Answer
from cluster.client.base import API_KEY_VARIABLE
from cluster.errors import BiremeError
from cluster.terminal.shown_parts import ShownParts
from cluster.terminal.usage import one_sentence
from cluster.terminal.wrapped_text import WrappedText

# In the order in which a newcomer needs them, below the headings of docs/terminal.md.
_PANELS = {
    "Serve": ("serve", "config", "doctor", "env"),
    "Models": ("models", "pull", "rm"),
    "Look": ("status", "top", "logs", "dashboard", "autoscale", "trace", "timeline", "version"),
    "Ask": ("chat", "complete", "run-batch"),
    "Measure and plan": ("bench", "simulate", "plan"),
}
_PANEL_OF = {name: panel for panel, names in _PANELS.items() for name in names}


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        order = list(_PANEL_OF)
        return sorted(super().list_commands(ctx), key=lambda name: order.index(name) if name in order else len(order))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            command.rich_help_panel = _PANEL_OF.get(cmd_name)  # type: ignore[attr-defined]
        return command

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        if extra.get("resilient_parsing"):  # of completion, which has nobody to tell
            return super().make_context(info_name, args, parent, **extra)
        with one_sentence(_show_error):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        with one_sentence(_show_error):
            return super().invoke(ctx)


# Local variables of a failed command are no business of the screen: an API key may be among them.
app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Bireme: large language models on Paddle and Ray.",
)
# Programs read lines: where nobody looks, none is broken.
UNBROKEN = 100_000


def _console(to_stderr: bool) -> Console:
    stream = sys.stderr if to_stderr else sys.stdout
    is_seen = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=to_stderr, width=None if is_seen else UNBROKEN)


console = _console(to_stderr=False)
errors = _console(to_stderr=True)

Url = Annotated[str, typer.Option(help="Server; several addresses have commas between them.", envvar="BIREME_URL")]
Model = Annotated[str | None, typer.Option(help="Model name; default: the one the server has.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        help="Bearer token; on the command line other users see it, in the variable not.",
        envvar=API_KEY_VARIABLE,
    ),
]
Temperature = Annotated[float | None, typer.Option(min=0, max=2, help="0 takes the most likely token each time.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Makes an answer repeatable.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def connected(url: str, model: str | None, api_key: str | None) -> Iterator[Client]:
    """A client whose errors end the command with one line."""
    try:
        with Client(url, model=model, api_key=api_key) as client:
            yield client
    except BiremeError as error:
        show_error(error)
        raise typer.Exit(1) from None


def check_writable(file: Path, what: str) -> None:
    """Before minutes are spent on what could not be kept.

    Args:
        what: the option or argument that named ``file``.

    Raises:
        BiremeError: it is no file that can be written.
    """
    folder = file.parent
    if file.is_dir() or not folder.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise BiremeError(f"{what}: {file} cannot be written")


def print_wrapped(line: str, indent: int, begun: int = 0, style: str | None = None) -> None:
    """``line``, parted between words where the terminal ends, with what follows ``indent`` columns in. Paths stay whole.

    Args:
        begun: columns of the first line that are written already.
    """
    text = textwrap.fill(
        line,
        console.width,
        initial_indent=" " * begun,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    console.print(text[begun:], style=style, highlight=False, markup=False, soft_wrap=True)


def show_error(error: BiremeError) -> None:
    """One line."""
    _show_error(error.message)


def _show_error(message: str) -> None:
    errors.print(f"Error: {message}", style="red", highlight=False, markup=False)


def print_stream(chunks: Iterator[Answer]) -> str:
    """Print chunks as they come, on a terminal without what it would obey; the whole text."""
    pieces = []
    shown = WrappedText(lambda: console.width, write_at_once) if console.is_terminal else None
    parts = ShownParts()
    for chunk in chunks:
        pieces.append(chunk.text)
        text = parts.text(chunk)
        if shown is not None:
            shown.add(text)
        else:
            console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
    if shown is not None:
        shown.end_word()
    console.print()
    return "".join(pieces)


def write_at_once(text: str) -> None:
    """To the terminal, as it is."""
    console.file.write(text)
    console.file.flush()


def _show_version(asked: bool) -> None:
    if asked:
        console.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def bireme(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Bireme: large language models on Paddle and Ray."""


@app.command()
def version() -> None:
    """Show the version."""
    _show_version(True)
