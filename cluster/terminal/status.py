"""``bireme status``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from cluster.client.addresses import without_password
from cluster.client.base import DEFAULT_URL
from cluster.start_stages import start_line
from cluster.terminal.app import ApiKey, Url, app, connected, console


@app.command()
def status(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Show whether the server is ready, its models, its engines and what they hold. Exit code 1 if it is not ready."""
    with connected(url, None, api_key) as client:
        if not client.health():
            console.print(f"{without_password(client.url)}: loading", highlight=False)
            raise typer.Exit(1)
        console.print(f"{without_password(client.url)}: ready", highlight=False)
        for model in client.models():
            console.print(f"  {model.id} (up to {model.max_model_len} tokens)", highlight=False, markup=False)
        found = client.status()
        for deployment, states in found["replicas"].items():
            counts = ", ".join(f"{count} {state.lower()}" for state, count in states.items())
            console.print(f"  {deployment}: {counts}", highlight=False, markup=False)
        for engine in found["engines"]:
            console.print(f"    {_engine_line(engine)}", highlight=False, markup=False)
            if started := start_line(engine["start"]) if "start" in engine else "":
                console.print(f"      {started}", highlight=False, markup=False)
        for line in _event_lines(found["events"], found["recoveries"]):
            console.print(f"  {line}", highlight=False, markup=False)


def _event_lines(events: dict[str, int], recoveries: dict[str, float]) -> Iterator[str]:
    """What happened to requests in the ingress that answered, since it started."""
    for event, count in sorted(events.items()):
        yield f"{event.removeprefix('bireme_')}: {count}"
    if recoveries["count"]:
        mean_s = recoveries["total_s"] / recoveries["count"]
        yield f"recoveries: {recoveries['count']:.0f}, {mean_s:.2f} s on average, {recoveries['longest_s']:.2f} s at most"


def _engine_line(engine: dict[str, Any]) -> str:
    line = f"{engine['engine_id']}: {engine['state']}"
    if "num_blocks" not in engine:
        return line
    used = engine["num_blocks"] - engine["num_blocks_available"]
    if memory := engine.get("memory"):
        line += f" on {engine['device']} ({memory['free_bytes'] / 2**30:.1f} of {memory['total_bytes'] / 2**30:.1f} GiB free)"
    return (
        f"{line}, {engine['num_requests_running']} running, {engine['num_requests_waiting']} waiting, "
        f"{used} of {engine['num_blocks']} KV blocks, {engine['num_generated_tokens']} tokens generated"
    )
