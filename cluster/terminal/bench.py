"""``bireme bench``."""

from __future__ import annotations

import json
import math
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Column

from cluster import __version__
from cluster.bench.compare import read_run
from cluster.bench.connection import Target
from cluster.bench.driver import Progress
from cluster.bench.lengths import FORMS, Lengths
from cluster.bench.load import Load
from cluster.bench.plan import Shape, make_requests
from cluster.bench.processes import LoadProcesses, ProcessDiedError, Result
from cluster.bench.prompts import PromptKind
from cluster.bench.text_fit import fitted
from cluster.client.base import DEFAULT_URL
from cluster.errors import BiremeError
from cluster.scaling.traces import read_trace
from cluster.terminal.app import ApiKey, app, check_writable, connected, console, errors, show_error
from cluster.terminal.bench_view import (
    comparison_table,
    difference_lines,
    latency_table,
    lines,
    short_names,
    warnings,
)

bench_app = typer.Typer(invoke_without_command=True)
app.add_typer(bench_app, name="bench")
_STREAMS = 16
_NUM_PROMPTS = 100


class Backend(str, Enum):
    """Which endpoint is asked, by vLLM's names."""

    openai = "openai"
    vllm = "vllm"
    chat = "openai-chat"


class PromptForm(str, Enum):
    """What prompts are."""

    ids = "ids"
    text = "text"


class Dataset(str, Enum):
    """vLLM's name of the prompts that are made here."""

    random = "random"


def _load(panel: str, *names: str, **options: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **options)


@bench_app.callback()
def bench(
    context: typer.Context,
    url: Annotated[
        str, _load("Server", "--url", "--base-url", envvar="BIREME_URL", help="Server, with or without /v1.")
    ] = DEFAULT_URL,
    host: Annotated[str | None, _load("Server", help="With --port, in place of --url; default: 127.0.0.1.")] = None,
    port: Annotated[int | None, _load("Server", min=1, max=65535, help="In place of --url.")] = None,
    model: Annotated[
        str | None, _load("Server", "--model", "--served-model-name", help="Default: the server's first.")
    ] = None,
    api_key: ApiKey = None,
    backend: Annotated[Backend, _load("Server", help="openai, vllm: completions; openai-chat: chat.")] = Backend.openai,
    endpoint: Annotated[
        str | None, _load("Server", help="Path; default: /v1/completions or /v1/chat/completions.")
    ] = None,
    header: Annotated[list[str] | None, _load("Server", metavar="NAME=VALUE", help="Header of every request.")] = None,
    num_prompts: Annotated[
        int | None,
        _load(
            "Load",
            min=1,
            max=2_000_000,
            help=f"Requests in all; default: {_NUM_PROMPTS}, all of a recording, or with --max-seconds as many as fit.",
        ),
    ] = None,
    max_seconds: Annotated[
        float | None,
        _load("Load", min=0.1, max=1e6, help="The run ends after so long, whatever is under way; default: 600."),
    ] = None,
    max_concurrency: Annotated[
        int | None,
        _load(
            "Load",
            min=1,
            max=100_000,
            help=f"Requests at the same time; default: {_STREAMS}, with a rate or recording any number.",
        ),
    ] = None,
    request_rate: Annotated[
        float, _load("Load", help="Requests a second; inf: each stream asks again when it is answered.")
    ] = math.inf,
    burstiness: Annotated[
        float,
        _load(
            "Load", min=0.01, max=1e4, help="1: Poisson; less: in bursts; more: evenly. Of --request-rate and rates."
        ),
    ] = 1.0,
    processes: Annotated[
        int, _load("Load", min=1, max=256, help="Client processes; several for hundreds of streams.")
    ] = 1,
    num_warmups: Annotated[int, _load("Load", min=0, max=100_000, help="Requests before the clock starts.")] = 2,
    random_input_len: Annotated[
        str, _load("Lengths", "--random-input-len", "--input-len", metavar="LENGTHS", help=f"Prompt tokens: {FORMS}.")
    ] = "512",
    random_output_len: Annotated[
        str, _load("Lengths", "--random-output-len", "--output-len", metavar="LENGTHS", help="Answer tokens, likewise.")
    ] = "128",
    random_range_ratio: Annotated[
        float,
        _load("Lengths", min=0, max=0.999, help="Lengths evenly from (1 - R) to (1 + R) times those that are numbers."),
    ] = 0.0,
    random_prefix_len: Annotated[
        int, _load("Lengths", min=0, max=10**7, help="Tokens before those of --random-input-len that prompts share.")
    ] = 0,
    num_prefixes: Annotated[
        int,
        _load("Lengths", "--num-prefixes", "--prefix-repetition-num-prefixes", min=1, help="So many different ones."),
    ] = 1,
    prompts: Annotated[
        PromptForm | None,
        _load("Lengths", help="Token ids (default; completions only) or text of words (default of chat)."),
    ] = None,
    token_ids: Annotated[
        str, _load("Lengths", metavar="LOW-HIGH", help="Token ids are from LOW to below HIGH.")
    ] = "1000-30000",
    trace: Annotated[
        Path | None,
        _load(
            "Recorded load", dir_okay=False, exists=True, help="Azure's CSV, Mooncake's JSON lines or ServeGen's rates."
        ),
    ] = None,
    trace_start: Annotated[float, _load("Recorded load", min=0, help="Second of the recording to begin at.")] = 0.0,
    trace_speed: Annotated[
        float, _load("Recorded load", min=1e-3, max=1e6, help="So many times faster than recorded.")
    ] = 1.0,
    trace_share: Annotated[
        float, _load("Recorded load", min=1e-6, max=1e6, help="This part of the requests, drawn; rates times this.")
    ] = 1.0,
    length_scale: Annotated[
        float, _load("Recorded load", min=1e-6, max=1e3, help="Recorded lengths times this.")
    ] = 1.0,
    temperature: Annotated[float, _load("Answers", min=0, max=2, help="0: greedy.")] = 0.0,
    ignore_eos: Annotated[
        bool, _load("Answers", help="Answers go on to their full length; a field of vLLM and of this project.")
    ] = False,
    extra_body: Annotated[str | None, _load("Answers", metavar="JSON", help="Fields of every request.")] = None,
    slo_ttft: Annotated[
        float | None, _load("Result", min=0, metavar="SECONDS", help="Target of the first token.")
    ] = None,
    slo_tpot: Annotated[
        float | None, _load("Result", min=0, metavar="SECONDS", help="Target of the mean time per token after it.")
    ] = None,
    json_file: Annotated[
        Path | None,
        _load(
            "Result",
            "--json",
            "--result-filename",
            metavar="FILE",
            dir_okay=False,
            help="Figures and each request, for programs.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        _load(
            "Load", min=0, help="Of lengths, times and prompts; default: a new one, so that no cache knows the prompts."
        ),
    ] = None,
    dataset_name: Annotated[Dataset, _load("Load", hidden=True)] = Dataset.random,
) -> None:
    """Load a server that speaks OpenAI's API, and show how it answers."""
    if context.invoked_subcommand is not None:
        return
    config = {name: value for name, value in context.params.items() if name not in ("api_key", "header", "json_file")}
    config = {name: _plain(value) for name, value in config.items()}
    config["seed"] = seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    is_chat = backend is Backend.chat
    try:
        _check(config, is_chat)
        if json_file is not None:
            check_writable(json_file, "--json")
        input_lengths = Lengths.parse(random_input_len, "--random-input-len").spread(random_range_ratio)
        output_lengths = Lengths.parse(random_output_len, "--random-output-len").spread(random_range_ratio)
        low, high = _id_range(token_ids)
        recorded = None if trace is None else read_trace(trace, trace_start)
        if recorded is not None and recorded.requests and trace_share > 1:
            raise BiremeError("--trace-share: recorded requests can be left out, not made; allowed: up to 1")
        ends_by_time = num_prompts is None and recorded is None and max_seconds is not None and math.isinf(request_rate)
        seconds = 600.0 if max_seconds is None else max_seconds
        count = _NUM_PROMPTS if num_prompts is None and recorded is None and max_seconds is None else num_prompts
        shape = Shape(
            seed, input_lengths, output_lengths, count,
            None if math.isinf(request_rate) else request_rate, burstiness, random_prefix_len, num_prefixes,
            recorded, trace_speed, trace_share, length_scale,
        )  # fmt: skip
        requests = make_requests(shape, seconds, closed_count=1000)
        if requests[0].due_s is None:
            max_concurrency = config["max_concurrency"] = max_concurrency or _STREAMS
        if max_concurrency is not None and processes > max_concurrency:
            raise BiremeError(f"--processes: got {processes}, allowed: up to --max-concurrency, {max_concurrency}")
        fields, headers = _fields(extra_body, temperature, ignore_eos), _headers(header, api_key)
        if host is not None and port is None:
            raise BiremeError("--host: needs --port, too; or give --url http://HOST:PORT")
        if port is not None:
            url = f"http://{host or '127.0.0.1'}:{port}"
        server = url.split(",")[0].rstrip("/").removesuffix("/v1")
        if urlsplit(server).scheme not in ("http", "https") or not urlsplit(server).hostname:
            raise BiremeError(f"--url: got {url!r}, allowed: http://HOST:PORT or https://HOST")
        if model is None:
            with connected(server, None, api_key) as client:
                model = next((found.id for found in client.models()), None)
        if model is None:
            raise BiremeError("the server has no model; name one with --model")
        config["model"] = model
        path = endpoint or ("/v1/chat/completions" if is_chat else "/v1/completions")
        target = Target(server, path, headers)
        form = prompts or (PromptForm.text if is_chat else PromptForm.ids)
        load = Load(
            target, json.dumps({**fields, "model": model})[1:-1], is_chat,
            PromptKind(form is PromptForm.text, seed, low, high), requests, max_concurrency, seconds,
            ends_by_time, num_warmups,
        )  # fmt: skip
        from cluster.bench.summary import Targets, details, summarise  # with NumPy, which only runs need

        result = _run(load, processes)
    except (BiremeError, ProcessDiedError) as error:
        show_error(error if isinstance(error, BiremeError) else BiremeError(str(error)))
        raise typer.Exit(2 if isinstance(error, BiremeError) and error.__class__ is BiremeError else 1) from None
    except KeyboardInterrupt:
        errors.print("Stopped before the first request was counted.", highlight=False)
        raise typer.Exit(130) from None
    run = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "version": __version__,
        "config": config,
        **summarise(result, Targets(slo_ttft, slo_tpot)),
    }
    _show(run)
    if json_file is not None:
        json_file.write_text(json.dumps({**run, **details(result)}) + "\n", encoding="utf-8")
    if result.is_stopped:
        raise typer.Exit(130)
    if run["failed"] or not run["completed"]:
        raise typer.Exit(1)


@bench_app.command(name="compare")
def compare_runs(
    first: Annotated[Path, typer.Argument(metavar="A", help="File of a run, from --json.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="File of another one.")],
) -> None:
    """Show two runs side by side."""
    try:
        runs = read_run(first), read_run(second)
    except BiremeError as error:
        show_error(error)
        raise typer.Exit(2) from None
    console.print(comparison_table(*runs, short_names(first, second)))
    different = difference_lines(*runs)
    if different:
        console.print("asked for differently:", highlight=False)
        for line in different:
            console.print(f"  {line}", highlight=False, markup=False)


def _check(config: dict[str, Any], is_chat: bool) -> None:
    rate = float(config["request_rate"])
    if math.isnan(rate) or rate <= 0:
        raise BiremeError(f"--request-rate: got {rate:g}, allowed: more than 0, or inf")
    if config["trace"] is not None and not math.isinf(rate):
        raise BiremeError("--request-rate: a recording has its own; --trace-speed and --trace-share change it")
    if is_chat and config["prompts"] == "ids":
        raise BiremeError("--prompts ids: chat takes text; allowed with --backend openai-chat: text")
    if config["endpoint"] is not None and not config["endpoint"].startswith("/"):
        raise BiremeError(f"--endpoint: got {config['endpoint']!r}, allowed: a path that begins with /")


def _id_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not low.isdecimal() or not high.isdecimal() or not int(low) < int(high) <= 2**31:
        raise BiremeError(f"--token-ids: got {text!r}, allowed: LOW-HIGH, LOW less than HIGH")
    return int(low), int(high)


def _headers(given: list[str] | None, api_key: str | None) -> tuple[tuple[str, str], ...]:
    found = [("Authorization", f"Bearer {api_key}")] if api_key else []
    for text in given or []:
        name, equals, value = text.partition("=")
        sound = equals and name and text.isascii() and text.isprintable() and not set(name) & set(" :")
        if not sound:
            raise BiremeError(f"--header: got {text!r}, allowed: NAME=VALUE in printable ASCII")
        found.append((name, value))
    return tuple(found)


def _fields(extra: str | None, temperature: float, ignore_eos: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "temperature": temperature,
        **({"ignore_eos": True} if ignore_eos else {}),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if extra is None:
        return fields
    try:
        more = json.loads(extra)
    except ValueError:
        more = None
    if not isinstance(more, dict):
        raise BiremeError(f"--extra-body: got {extra!r}, allowed: a JSON object")
    taken = sorted(set(more) & {"prompt", "messages", "stream", "stream_options", "n", "best_of"})
    if taken:
        raise BiremeError(f"--extra-body: {', '.join(taken)} cannot be set: what is measured is one stream a request")
    return {**fields, **more}


def _run(load: Load, count: int) -> Result:
    with LoadProcesses(count) as processes:
        with errors.status("warming up") if errors.is_terminal else _nothing():
            if load.prompts.is_text:
                load = fitted(load, processes)
            processes.start(load)
        with _progress(load) as show, _interruptible(processes) as check:

            def look(progress: Progress) -> None:
                show(progress)
                check()

            return processes.result(look)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _progress(load: Load) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(table_column=Column(min_width=7)))
    total = load.max_seconds if load.repeats else len(load.requests)
    with Bar(*columns, console=errors, disable=not errors.is_terminal, transient=True) as bar:
        task = bar.add_task("0 requests", total=total)

        def show(now: Progress) -> None:
            done = now.completed + now.failed
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = now.output_tokens / elapsed if elapsed else 0.0
            text = f"{done:,} requests, {now.failed:,} errors, {now.running:,} under way, {rate:,.0f} tokens/s"
            bar.update(task, completed=elapsed if load.repeats else done, description=text)

        yield show


@contextmanager
def _interruptible(processes: LoadProcesses) -> Iterator[Any]:
    """The first Ctrl-C, or SIGTERM, ends the run with what there is, the second one at once."""
    asked = False

    def heard(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: processes.stop() if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(run: dict[str, Any]) -> None:
    for line in lines(run):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(latency_table(run))
    for warning in warnings(run):
        errors.print(f"Note: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    """As JSON has it: infinity is no number there."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return value
