"""``bireme complete``."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.client.base import DEFAULT_URL
from cluster.terminal.app import ApiKey, MaxTokens, Model, Seed, Temperature, Url, app, connected, given, print_stream


@app.command()
def complete(
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    url: Url = DEFAULT_URL,
    model: Model = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = 64,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    api_key: ApiKey = None,
) -> None:
    """Continue a text."""
    options = given(temperature=temperature, max_tokens=max_tokens, seed=seed, stop=stop or None)
    with connected(url, model, api_key) as client:
        print_stream(client.stream_complete(prompt, **options))
