"""``bireme chat``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from cluster.client import Client
from cluster.client.api_types import Answer
from cluster.client.base import DEFAULT_URL
from cluster.client.conversation import Conversation, Messages, answer_room
from cluster.errors import BiremeError
from cluster.terminal.app import (
    ApiKey,
    MaxTokens,
    Model,
    Seed,
    Temperature,
    Url,
    app,
    connected,
    console,
    given,
    print_stream,
    print_wrapped,
    show_error,
    write_at_once,
)
from cluster.terminal.chat_commands import COMMAND_WIDTH, ChatCommands
from cluster.terminal.shown_parts import ShownParts
from cluster.terminal.wrapped_text import WrappedText


@app.command()
def chat(
    message: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="Ask this and leave; without it the chat is interactive.")
    ] = None,
    url: Url = DEFAULT_URL,
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    api_key: ApiKey = None,
) -> None:
    """Chat with the model. Ctrl-C stops an answer or clears the line, Ctrl-D leaves, as two Ctrl-C in an empty line do."""
    options = given(temperature=temperature, max_tokens=max_tokens, seed=seed)
    conversation = Conversation(system)
    with connected(url, model, api_key) as client:
        if message is not None:
            print_stream(
                conversation.ask(message, lambda messages: client.stream_chat(messages, **options), _say_forgotten)
            )
            return
        models = client.models()
        served = ", ".join(item.id for item in models)
        if max_tokens is None and models:
            options |= given(max_tokens=answer_room(models[0].max_model_len))
        console.print(f"Chatting with {served}. Ctrl-C stops an answer, Ctrl-D leaves, /help shows more.", style="dim")
        _converse(client, conversation, options)


def _converse(client: Client, conversation: Conversation, options: dict[str, Any]) -> None:
    commands = ChatCommands(conversation, options)
    read = _line_reader()
    is_leaving = False
    while not commands.wants_exit:
        try:
            text = read().strip()
        except EOFError:
            console.print()
            return
        except LineClearedError as cleared:
            if cleared.was_empty and is_leaving:
                return
            is_leaving = cleared.was_empty
            if is_leaving:
                console.print("(Ctrl-C again, or Ctrl-D, leaves)", style="dim")
            continue
        except KeyboardInterrupt:
            console.print()
            return
        is_leaving = False
        if text.startswith("/") and "\n" not in text:
            if said := commands.run(text):
                for line in said.splitlines():
                    print_wrapped(line, COMMAND_WIDTH if line.startswith("/") else 0, style="dim")
        elif text:
            try:
                _answer(
                    conversation.ask(text, lambda messages: _send(client, messages, commands.options), _say_forgotten)
                )
            except KeyboardInterrupt:
                console.print("\n(stopped)", style="dim")
            except BiremeError as error:
                show_error(error)


def _send(client: Client, messages: Messages, options: dict[str, Any]) -> Iterator[Answer]:
    return client.stream_chat(messages, **options)


class LineClearedError(Exception):
    """Ctrl-C where a line is typed; ``was_empty``: there was nothing in it."""

    def __init__(self, was_empty: bool) -> None:
        super().__init__()
        self.was_empty = was_empty


def _line_reader() -> Callable[[], str]:
    """Asks for a line: with editing, history and paste at a terminal. What is typed is kept in memory alone.

    The reader of a terminal raises LineClearedError for Ctrl-C.
    """
    if not (sys.stdin.isatty() and console.is_terminal):
        return lambda: console.input("[bold cyan]> [/]")
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.formatted_text import HTML

    session: PromptSession[str] = PromptSession(
        HTML("<b><ansicyan>&gt; </ansicyan></b>"),
        completer=WordCompleter(ChatCommands.names(), sentence=True),
        complete_while_typing=False,
    )

    def read() -> str:
        try:
            return session.prompt()
        except KeyboardInterrupt:
            raise LineClearedError(not session.default_buffer.text) from None

    return read


def _answer(chunks: Iterator[Answer]) -> None:
    """Show an answer as it comes, and how fast it was."""
    if not console.is_terminal:
        print_stream(chunks)
        return
    shown = WrappedText(lambda: console.width, write_at_once)
    parts = ShownParts()
    seed, num_tokens, first, last = None, 0, 0.0, 0.0
    try:
        for chunk in chunks:
            seed = chunk.seed if seed is None else seed
            num_new = sum(len(choice.token_ids or ()) for choice in chunk.choices)
            if num_new:
                last = time.perf_counter()
                first = first or last
                num_tokens += num_new
            if chunk.choices:
                shown.add(parts.text(chunk))
    finally:
        shown.end_word()
    console.print()
    notes = [f"{num_tokens} tokens"] if num_tokens else []
    if num_tokens > 1 and last > first:
        notes.append(f"{(num_tokens - 1) / (last - first):.1f} tokens/s")
    if seed is not None:
        notes.append(f"seed {seed}")
    if notes:
        console.print(", ".join(notes), style="dim", highlight=False)


def _say_forgotten() -> None:
    console.print("(too long for the model: the oldest messages are left out from now on)", style="dim")
