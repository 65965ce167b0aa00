"""The ``bireme`` commands that talk to a running server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cluster import __version__
from cluster.client import Client
from cluster.client.addresses import without_password
from cluster.client.api_types import Answer
from cluster.client.base import API_KEY_VARIABLE, DEFAULT_URL
from cluster.client.conversation import Conversation, Messages, answer_room
from cluster.errors import BiremeError
from cluster.request_trace import waterfall
from cluster.start_stages import start_line

# Local variables of a failed command are no business of the screen: an API key may be among them.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Bireme: large language models on Paddle and Ray.",
)
console = Console()
errors = Console(stderr=True)

Url = Annotated[str, typer.Option(help="Server; several addresses have commas between them.", envvar="BIREME_URL")]
Model = Annotated[str | None, typer.Option(help="Model name; default: the one the server has.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        help="Bearer token; on the command line other users see it, in the variable not.",
        envvar=API_KEY_VARIABLE,
    ),
]
Temperature = Annotated[float | None, typer.Option(min=0, max=2, help="0 takes the most likely token each time.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Makes an answer repeatable.")]


def _options(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def _connected(url: str, model: str | None, api_key: str | None) -> Iterator[Client]:
    """A client whose errors end the command with one line."""
    try:
        with Client(url, model=model, api_key=api_key) as client:
            yield client
    except BiremeError as error:
        errors.print(f"Error: {error.message}", style="red", highlight=False, markup=False)
        raise typer.Exit(1) from None


def _print_stream(chunks: Iterator[Answer]) -> str:
    """Print chunks as they come; the whole text."""
    pieces = []
    for chunk in chunks:
        pieces.append(chunk.text)
        console.print(chunk.text, end="", markup=False, highlight=False, soft_wrap=True)
    console.print()
    return "".join(pieces)


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
    options = _options(temperature=temperature, max_tokens=max_tokens, seed=seed)
    conversation = Conversation(system)
    with _connected(url, model, api_key) as client:
        if message is not None:
            _print_stream(
                conversation.ask(message, lambda messages: client.stream_chat(messages, **options), _say_forgotten)
            )
            return
        models = client.models()
        served = ", ".join(item.id for item in models)
        if max_tokens is None and models:
            options |= _options(max_tokens=answer_room(models[0].max_model_len))
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
                _print_stream(conversation.ask(text, send, _say_forgotten))
            except KeyboardInterrupt:
                console.print("\n(stopped)", style="dim")
            except BiremeError as error:
                errors.print(f"Error: {error.message}", style="red", highlight=False, markup=False)


def _say_forgotten() -> None:
    console.print("(too long for the model: the oldest messages are left out from now on)", style="dim")


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
    options = _options(temperature=temperature, max_tokens=max_tokens, seed=seed, stop=stop or None)
    with _connected(url, model, api_key) as client:
        _print_stream(client.stream_complete(prompt, **options))


@app.command()
def status(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Show whether the server is ready, its models, its engines and what they hold. Exit code 1 if it is not ready."""
    with _connected(url, None, api_key) as client:
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
        for keeper in found.get("spares", []):
            console.print(f"  {_spares_line(keeper)}", highlight=False, markup=False)
        for line in _event_lines(found["events"], found["recoveries"]):
            console.print(f"  {line}", highlight=False, markup=False)


def _event_lines(events: dict[str, int], recoveries: dict[str, float]) -> Iterator[str]:
    """What happened to requests in the ingress that answered, since it started."""
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


@app.command()
def timeline(
    output: Annotated[Path, typer.Argument(help="File for the Chrome trace; open it in https://ui.perfetto.dev.")],
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Engine steps to record.")] = 200,
    timeout_s: Annotated[
        float, typer.Option(min=0.1, max=120, help="Stop after this time; an idle engine has no steps.")
    ] = 10,
    engine: Annotated[str | None, typer.Option(help="Engine id (bireme status) if there are several.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Record what an engine's host side and its device do in the next steps."""
    with _connected(url, None, api_key) as client:
        trace = client.timeline(**_options(steps=steps, timeout_s=timeout_s, engine=engine))
    output.write_text(json.dumps(trace), encoding="utf-8")
    found = trace["otherData"]
    console.print(
        f"{output}: {found['steps']} steps, device busy {found['device_busy_us'] / 1e3:.1f} ms, "
        f"idle between steps {found['device_idle_us'] / 1e3:.1f} ms",
        highlight=False,
        markup=False,
    )


@app.command()
def trace(
    answer_id: Annotated[
        str, typer.Argument(help="Id of an answer (cmpl-..., chatcmpl-...), or of a traceparent's trace.")
    ],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show where the time of a request went until its first token; the ingress that had it must be the one that answers."""
    with _connected(url, None, api_key) as client:
        found = client.trace(answer_id)
    for sequence in found["sequences"]:
        console.print(sequence["request"], highlight=False, markup=False)
        for line in waterfall(sequence["hops"]):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def version() -> None:
    """Show the version."""
    console.print(__version__, highlight=False)
