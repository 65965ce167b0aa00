"""``bireme trace``."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

import typer

from cluster.client import Client
from cluster.client.addresses import without_password
from cluster.client.base import DEFAULT_URL
from cluster.client.errors import NotFoundError
from cluster.errors import BiremeError
from cluster.observability.request_trace import waterfall
from cluster.terminal.app import ApiKey, Url, app, connected, console

# Where ingresses are chosen at random, as by Serve's own proxy, one of two is missed by so many once in 4,096 times.
_QUESTIONS_EACH = 6


@app.command()
def trace(
    answer_id: Annotated[
        str,
        typer.Argument(
            help="Id of an answer (cmpl-..., chatcmpl-...), of a request (X-Request-ID), or of a traceparent's trace."
        ),
    ],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show where the time of a request went until its first token. Asks again for one of another ingress."""
    with connected(url, None, api_key) as client:
        found = _trace(client, answer_id)
    for sequence in found["sequences"]:
        console.print(sequence["request"], highlight=False, markup=False)
        for line in waterfall(sequence["hops"], console.width):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _trace(client: Client, answer_id: str) -> dict[str, Any]:
    """Each question may come to another ingress. A proxy that asks the least busy one may never ask that which had
    the request while it has the most streams."""
    try:
        return client.trace(answer_id)
    except NotFoundError as error:
        not_found = error
    num_ingresses = sum(client.status()["replicas"].get("OpenAiIngress", {}).values())
    if num_ingresses < 2:
        raise not_found
    for _ in range(_QUESTIONS_EACH * num_ingresses):
        with suppress(NotFoundError):
            return client.trace(answer_id)
    raise BiremeError(
        f"none of the ingresses that answered at {without_password(client.url)} ({num_ingresses} are there) knows request "
        f"{answer_id!r} of this API key; each remembers its newest, "
        "one that is busier than others may not be asked until it is less so, and one behind another proxy is asked with --url"
    )
