"""``bireme timeline``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cluster.client.base import DEFAULT_URL
from cluster.terminal.app import ApiKey, Url, app, check_writable, connected, console, given


@app.command()
def timeline(
    output: Annotated[
        Path, typer.Argument(metavar="FILE", help="File for the Chrome trace; open it in https://ui.perfetto.dev.")
    ],
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Engine steps to record.")] = 200,
    timeout_s: Annotated[
        float, typer.Option(min=0.1, max=120, help="Stop after this time; an idle engine has no steps.")
    ] = 10,
    engine: Annotated[str | None, typer.Option(help="Engine id (bireme status) if there are several.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Record what an engine's host side and its device do in the next steps."""
    with connected(url, None, api_key) as client:
        check_writable(output, "FILE")
        trace = client.timeline(**given(steps=steps, timeout_s=timeout_s, engine=engine))
    output.write_text(json.dumps(trace), encoding="utf-8")
    found = trace["otherData"]
    console.print(
        f"{output}: {found['steps']} steps, device busy {found['device_busy_us'] / 1e3:.1f} ms, "
        f"idle between steps {found['device_idle_us'] / 1e3:.1f} ms",
        highlight=False,
        markup=False,
    )
