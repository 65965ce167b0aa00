"""``bireme top``: the server as it is now, again and again."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from cluster.client import Client
from cluster.client.addresses import without_password
from cluster.client.base import DEFAULT_URL
from cluster.errors import BiremeError
from cluster.terminal.app import ApiKey, Url, app, connected, console
from cluster.terminal.top_view import TopView


@app.command()
def top(
    every_s: Annotated[float, typer.Option("--every", min=0.2, max=60, help="Seconds between two looks.")] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Show two looks' difference once and leave; as without a terminal.")
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Watch engines, queues, KV cache, tokens a second, targets and events. Ctrl-C leaves."""
    view = TopView()
    with connected(url, None, api_key) as client:
        if once or not console.is_terminal:
            _look(client, view)
            time.sleep(every_s)
            console.print(_look(client, view))
            return
        try:
            with Live(_look(client, view), console=console, screen=True, auto_refresh=False) as live:
                while True:
                    time.sleep(every_s)
                    live.update(_seen(client, view), refresh=True)
        except KeyboardInterrupt:
            raise typer.Exit from None


def _seen(client: Client, view: TopView) -> RenderableType:
    """A server that restarts does not end the view."""
    try:
        return _look(client, view)
    except BiremeError as error:
        return Text(f"{time.strftime('%H:%M:%S')}  {error.message}", style="red")


def _look(client: Client, view: TopView) -> RenderableType:
    return view.show(without_password(client.url), client.status(), time.monotonic(), time.strftime("%H:%M:%S"))
