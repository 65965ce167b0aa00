"""``bireme run-batch``."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.client import AsyncClient
from cluster.client.base import DEFAULT_URL
from cluster.client.batch_file import BatchRun, check_names, requests_of
from cluster.client.batch_results import Done, put_in_place, results_of
from cluster.errors import BiremeError
from cluster.terminal.app import ApiKey, Model, Url, app, console, errors, show_error


@app.command(name="run-batch")
def run_batch(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.jsonl",
            exists=True,
            dir_okay=False,
            help="A request a line, as in OpenAI's batch API: custom_id, method, url, body.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Results; default: FILE.results.jsonl. One that is there is gone on with."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=4096, help="Requests under way at the same time.")] = 16,
    url: Url = DEFAULT_URL,
    model: Model = None,
    api_key: ApiKey = None,
) -> None:
    """Send all requests of a file, and write their results in the same order.

    Interrupted, the same command goes on where it was; lines with errors it sends again, as they are by now. Exit code 1 if
    any line of the results is an error, or the server is gone.
    """
    results = output or file.with_suffix(".results.jsonl")
    try:
        if results.exists() and results.samefile(file):
            raise BiremeError(f"{results} is the file of requests; name another with -o")
        num_failed = _run(file, results, concurrency, url, model, api_key)
    except BiremeError as error:
        show_error(error)
        raise typer.Exit(1) from None
    except OSError as error:
        show_error(BiremeError(f"{error.filename or results}: {error.strerror}"))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print("Stopped; the same command goes on from here.", highlight=False)
        raise typer.Exit(130) from None
    if num_failed:
        raise typer.Exit(1)


def _run(file: Path, results: Path, concurrency: int, url: str, model: str | None, api_key: str | None) -> int:
    """How many lines of the results are errors."""
    total = check_names(file)
    done = results_of(file, results) if results.exists() else Done(0)
    if done.num_results:
        note = f", {len(done.failed)} of them with errors: these are sent again" if done.failed else ""
        errors.print(f"{results}: {done.num_results} of {total} are done already{note}", highlight=False, markup=False)
    start = time.monotonic()
    num_failed = num_tokens = num_written = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task("requests", total=total, completed=done.num_results - len(done.failed))

        def written(is_error: bool, tokens: int) -> None:
            nonlocal num_failed, num_tokens, num_written
            num_failed += is_error
            num_tokens += tokens
            num_written += 1
            rate = num_tokens / (time.monotonic() - start)
            bar.update(task, advance=1, description=f"{rate:.0f} tokens/s, {num_failed} errors")

        async def run() -> None:
            async with AsyncClient(url, model=model, api_key=api_key) as client:
                batch = BatchRun(client, concurrency, written)
                if done.failed:
                    await _send_again(batch, file, results, done.failed)
                with open(file, "rb") as requests, open(results, "ab") as output:
                    await batch.run(itertools.islice(requests_of(requests), done.num_results, None), output)

        asyncio.run(run())
    seconds = time.monotonic() - start
    console.print(
        f"{results}: {num_written} results, {num_failed} errors, {num_tokens} tokens in {seconds:.1f} s",
        highlight=False,
        markup=False,
    )
    return num_failed


async def _send_again(batch: BatchRun, file: Path, results: Path, failed: tuple[int, ...]) -> None:
    """The requests whose results are errors; what comes of an interrupted run is kept, too."""
    places = set(failed)
    with open(file, "rb") as requests, tempfile.TemporaryFile() as again:
        try:
            await batch.run((line for i, line in enumerate(requests_of(requests)) if i in places), again)
        finally:
            put_in_place(results, failed, again)
