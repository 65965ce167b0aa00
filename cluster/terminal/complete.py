"""``bireme complete``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cluster.client.base import DEFAULT_URL
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
    given,
    print_stream,
    show_error,
)


@app.command()
def complete(
    prompt: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="Text to continue; without it, or -, what comes in a pipe.")
    ] = None,
    url: Url = DEFAULT_URL,
    model: Model = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = 64,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    api_key: ApiKey = None,
) -> None:
    """Continue a text."""
    if prompt in (None, "-"):
        prompt = _piped()
    options = given(temperature=temperature, max_tokens=max_tokens, seed=seed, stop=stop or None)
    with connected(url, model, api_key) as client:
        print_stream(client.stream_complete(prompt, **options))


def _piped() -> str:
    """What stdin holds, without the end of its last line."""
    if sys.stdin.isatty():
        show_error(BiremeError("there is no prompt; give it as an argument, or in a pipe"))
        raise typer.Exit(2)
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        show_error(BiremeError(f"the prompt is not UTF-8: byte {error.start}"))
        raise typer.Exit(2) from None
    return text.removesuffix("\n").removesuffix("\r")
