"""Do the slow, one-time work before the first start, where a person can watch it: build the ops, fetch the model.

``python -m deployments.start.prepare [model]`` does nothing when both are cached; every Ray worker then finds them there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from actors.model_files.source import resolve_model
from actors.scheduling.step_rows import step_rows
from cluster.config import DEFAULT_MODEL
from cluster.errors import ModelLoadError
from deployments.native import frame_writer, step_writer
from gpu_ops.build import OpBuildError, build, build_library, library_path

Report = Callable[[str, int, int], None]
BYTES_FROM = 1_000_000  # totals from here on are bytes, below they count files


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Report]:
    """Yield ``report(what, done, total)``: a bar on a terminal, a line per tenth of the work elsewhere."""
    if not console.is_terminal:
        yield _line_report(console, title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(title, total=None, amount="")

    def report(what: str, done: int, total: int) -> None:
        # Started late, so that work which is already done flashes no empty bar.
        bar.start()
        amount = _amount(done, total)
        bar.update(task, description=f"{title}: {what}", completed=done, total=total or None, amount=amount)

    try:
        yield report
    finally:
        bar.stop()


def _line_report(console: Console, title: str) -> Report:
    printed = -1

    def report(what: str, done: int, total: int) -> None:
        nonlocal printed
        tenth = 10 * done // total if total else 0
        if tenth > printed:
            printed = tenth
            console.out(f"  {title}: {what} {_amount(done, total)}", highlight=False)

    return report


def _amount(done: int, total: int) -> str:
    if max(done, total) < BYTES_FROM:
        return f"{done}/{total}" if total else str(done)
    return f"{done / 1e6:.0f}/{total / 1e6:.0f} MB" if total else f"{done / 1e6:.0f} MB"


def prepare_ops(console: Console) -> None:
    """Build the native ops unless the cache has them."""
    build_library(frame_writer.SOURCE)
    # Without Python's headers there are none, and need not be.
    step_writer.native_module()
    step_rows()
    if library_path().exists():
        build()  # only looks whose it is
        return
    console.out("Native ops: compiling, about a minute", highlight=False)
    start = time.monotonic()
    with progress_bar(console, "Native ops") as report:
        path = build(report)
    console.out(f"Native ops: built in {time.monotonic() - start:.0f} s, kept in {path.parent}", highlight=False)


def prepare_model(console: Console, model: str) -> None:
    """Fetch and check ``model`` unless the cache has it."""
    start = time.monotonic()
    fetched = False
    with progress_bar(console, f"Model {model}") as report:

        def watched(what: str, done: int, total: int) -> None:
            nonlocal fetched
            fetched = True
            report(what, done, total)

        resolve_model(model, load_format="auto", progress=watched)
    if fetched:
        console.out(f"Model {model}: ready after {time.monotonic() - start:.0f} s", highlight=False)


def main() -> None:
    console = Console()
    try:
        prepare_ops(console)
        prepare_model(console, sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL)
    except (OpBuildError, ModelLoadError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
