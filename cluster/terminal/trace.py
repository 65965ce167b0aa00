"""``bireme trace``."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.client.base import DEFAULT_URL
from cluster.observability.request_trace import waterfall
from cluster.terminal.app import ApiKey, Url, app, connected, console


@app.command()
def trace(
    answer_id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="Id of an answer (cmpl-..., chatcmpl-...), of a request (X-Request-ID), or of a traceparent's trace.",
        ),
    ],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show where the time of a request went until its first token."""
    with connected(url, None, api_key) as client:
        found = client.trace(answer_id)
    for sequence in found["sequences"]:
        console.print(sequence["request"], highlight=False, markup=False)
        for line in waterfall(sequence["hops"], console.width):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
