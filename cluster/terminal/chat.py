"""``bireme chat``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

import typer

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
    show_error,
)


@app.command()
def chat(
    message: Annotated[
        str | None, typer.Argument(help="Ask this and leave; without it the chat is interactive.")
    ] = None,
    url: Url = DEFAULT_URL,
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    api_key: ApiKey = None,
) -> None:
    """Chat with the model. Ctrl-C stops an answer, Ctrl-D leaves."""
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
        console.print(f"Chatting with {served}. Ctrl-C stops an answer, Ctrl-D leaves, /new starts over.", style="dim")
        _converse(conversation, lambda messages: client.stream_chat(messages, **options))


def _converse(conversation: Conversation, send: Callable[[Messages], Iterator[Answer]]) -> None:
    while True:
        try:
            text = console.input("[bold cyan]> [/]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if text == "/new":
            conversation.clear()
        elif text:
            try:
                print_stream(conversation.ask(text, send, _say_forgotten))
            except KeyboardInterrupt:
                console.print("\n(stopped)", style="dim")
            except BiremeError as error:
                show_error(error)


def _say_forgotten() -> None:
    console.print("(too long for the model: the oldest messages are left out from now on)", style="dim")
