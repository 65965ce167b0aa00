"""``bireme status``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cluster.client import Client
from cluster.client.addresses import without_password
from cluster.client.api_types import Model
from cluster.client.base import DEFAULT_URL
from cluster.errors import BiremeError
from cluster.observability.start_stages import start_line
from cluster.terminal.app import ApiKey, Url, app, connected, console, print_wrapped

_STATES = {"": "loading", "asleep": "asleep: no engine runs, and the next request starts one"}
# For an address beside one that answers.
_LOOK_S, _CONNECT_S = 5.0, 2.0


@app.command()
def status(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object for programs.")] = False,
) -> None:
    """Show whether the server is ready, its models, its engines and what they hold. Exit code 1 if it is not ready.

    Of several addresses it shows what the first says that answers, and of each of the others whether it does.
    """
    with connected(url, None, api_key) as client:
        readiness = client.readiness()
        is_ready, where = bool(readiness), without_password(client.url)
        # Who was left for the next address is asked again, too: nobody else says what is wrong there.
        others = [(without_password(other), _state_of(other, api_key)) for other in client.urls if other != client.url]
        models = client.models() if is_ready else []
        found = client.status() if is_ready else {}
    if as_json:
        rows = [{"id": model.id, "max_model_len": model.max_model_len} for model in models]
        shown = {"url": where, "ready": is_ready, "asleep": readiness == "asleep", "models": rows, **found}
        if others:
            shown["other_urls"] = dict(others)
        console.print(json.dumps(shown, indent=2), highlight=False, markup=False, soft_wrap=True)
    else:
        first = [f"{where}: {_STATES.get(readiness, 'ready')}", *(f"{other}: {state}" for other, state in others)]
        for line in (*first, *(_lines(models, found) if is_ready else ())):
            print_wrapped(line, len(line) - len(line.lstrip()) + 2, begun=len(line) - len(line.lstrip()))
    if not is_ready:
        raise typer.Exit(1)


def _state_of(url: str, api_key: str | None) -> str:
    """In words, of one of several addresses."""
    try:
        with Client(url, api_key=api_key, timeout=_LOOK_S, connect_timeout=_CONNECT_S) as client:
            return _STATES.get(client.readiness(), "ready")
    except BiremeError as error:
        return f"no answer: {error.message}"


def _lines(models: list[Model], found: dict[str, Any]) -> Iterator[str]:
    for model in models:
        yield f"  {model.id} (up to {model.max_model_len} tokens)"
    for deployment, states in found["replicas"].items():
        counts = ", ".join(f"{count} {state.lower()}" for state, count in states.items())
        yield f"  {deployment}: {counts}"
    for engine in found["engines"]:
        yield f"    {_engine_line(engine)}"
        if started := start_line(engine["start"]) if "start" in engine else "":
            yield f"      {started}"
    for keeper in found.get("spares", []):
        yield f"  {_spares_line(keeper)}"
    for line in event_lines(found["events"], found["recoveries"]):
        yield f"  {line}"
    if silent := found.get("silent_ingresses", 0):
        yield f"  {silent} of {silent + len(found['ingresses'])} ingresses did not say what they counted"


def event_lines(events: dict[str, int], recoveries: dict[str, float]) -> Iterator[str]:
    """What happened to requests in the ingresses that answered, since they started."""
    for event, count in sorted(events.items()):
        yield f"{event.removeprefix('bireme_')}: {count}"
    if recoveries["count"]:
        mean_s = recoveries["total_s"] / recoveries["count"]
        yield f"recoveries: {recoveries['count']:.0f}, {mean_s:.2f} s on average, {recoveries['longest_s']:.2f} s at most"


def _spares_line(keeper: dict[str, Any]) -> str:
    """The processes that wait on one node for an engine."""
    kinds = [
        f"{kind} {keeper[kind]['ready']} of {keeper[kind]['wanted']} ready, {keeper[kind]['adopted']} taken, "
        f"{keeper[kind]['lost']} lost"
        for kind in ("replica", "runner")
    ]
    return f"spares on node {keeper['node_id'][:12]}: {'; '.join(kinds)}"


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
