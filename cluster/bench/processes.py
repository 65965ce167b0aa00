"""A load in several processes: one event loop cannot load a server that has many."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from cluster.bench.driver import Driver, Progress, Seen, run_in_loop
from cluster.bench.load import Load, Sample

_PROGRESS_S = 0.25
# From the word that all are ready to the first request.
_BEGIN_S = 0.1
_STOP = "stop"


@dataclass
class Result:
    """What all processes saw together.

    Attributes:
        begin, end: of the run, of ``time.perf_counter``.
        cpu_shares: CPU time of each process, of the whole run's time: one that has no stream is over at once.
        is_stopped: whether it was ended before its time.
    """

    samples: list[Sample] = field(default_factory=list)
    begin: float = 0.0
    end: float = 0.0
    cpu_shares: list[float] = field(default_factory=list)
    warm_up_errors: list[str] = field(default_factory=list)
    is_stopped: bool = False

    @property
    def seconds(self) -> float:
        """From the beginning to the last byte, or to where the run was cut."""
        return self.end - self.begin


def together(parts: list[Seen], is_stopped: bool = False) -> Result:
    """What each process saw, as one run."""
    begin, end = min(part.begin for part in parts), max(part.end for part in parts)
    return Result(
        [sample for part in parts for sample in part.samples],
        begin,
        end,
        [part.cpu_s / (end - begin) if end > begin else 0.0 for part in parts],
        [error for part in parts for error in part.warm_up_errors],
        is_stopped,
    )


class ProcessDiedError(RuntimeError):
    """A load process ended without a result."""


class LoadProcesses:
    """Processes that stay between loads.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes: list[Any] = []
        self._commands: list[Connection] = []
        self._pipes: list[Connection] = []
        for _ in range(count):
            # Two pipes: an event loop listens to one, which makes it non-blocking, and results are too large for such a pipe.
            heard, commands = context.Pipe(duplex=False)
            results, told = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(heard, told), daemon=True)
            process.start()
            heard.close()
            told.close()
            self._processes.append(process)
            self._commands.append(commands)
            self._pipes.append(results)
        self._is_stopped = False
        self._receive()

    def __enter__(self) -> LoadProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def count(self) -> int:
        """How many processes there are."""
        return len(self._pipes)

    def start(self, load: Load, begin: float | None = None) -> float:
        """Warm up, and begin. When the run begins, of ``time.perf_counter``.

        Args:
            begin: of ``time.perf_counter``; None: as soon as all are ready.
        """
        self._is_stopped = False
        count = len(self._pipes)
        for number, pipe in enumerate(self._commands):
            pipe.send((load.share(number, count), count))
        self._receive()
        begin = time.perf_counter() + _BEGIN_S if begin is None else begin
        for pipe in self._commands:
            pipe.send(begin)
        return begin

    def result(self, show: Callable[[Progress], None] | None = None) -> Result:
        """Wait for the end of the load; ``show`` is called a few times a second with what there is."""
        seen: dict[int, Seen] = {}
        progress = [Progress() for _ in self._pipes]
        while len(seen) < len(self._pipes):
            for pipe in wait([pipe for i, pipe in enumerate(self._pipes) if i not in seen], _PROGRESS_S):
                number = self._pipes.index(pipe)  # type: ignore[arg-type]
                message = self._one(number)
                if isinstance(message, Seen):
                    seen[number] = message
                else:
                    progress[number] = message
            if show is not None:
                show(Progress(*(sum(values) for values in zip(*(vars(part).values() for part in progress)))))
        return together([seen[number] for number in sorted(seen)], self._is_stopped)

    def stop(self) -> None:
        """End the run now; ``result`` has what there is."""
        if not self._is_stopped:
            self._is_stopped = True
            for pipe in self._commands:
                pipe.send(_STOP)

    def close(self) -> None:
        """End the processes."""
        for pipe in [*self._commands, *self._pipes]:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

    def _receive(self) -> list[Any]:
        return [self._one(number) for number in range(len(self._pipes))]

    def _one(self, number: int) -> Any:
        try:
            return self._pipes[number].recv()
        except (EOFError, OSError):
            self._processes[number].join(5)
            code = self._processes[number].exitcode
            raise ProcessDiedError(f"load process {number} ended with exit status {code}") from None


def _work(commands: Connection, told: Connection) -> None:
    """The loads of one process, one after the other, until its parent closes the pipes."""
    # Ctrl-C goes to every process of a terminal; the parent says what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        told.send(None)
        while True:
            message = commands.recv()
            if message == _STOP:  # of a load that was over already
                continue
            run_in_loop(_run(commands, told, *message))
            os.set_blocking(commands.fileno(), True)
    except (EOFError, BrokenPipeError):
        pass


async def _run(commands: Connection, told: Connection, load: Load, processes: int) -> None:
    driver, loop = Driver(load, processes), asyncio.get_running_loop()
    begin: asyncio.Future[float] = loop.create_future()

    def heard() -> None:
        try:
            message = commands.recv()
        except EOFError:  # the parent is gone
            loop.remove_reader(commands.fileno())
            message = _STOP
        if message == _STOP:
            driver.stop()
            if not begin.done():
                begin.set_result(time.perf_counter())
        else:
            begin.set_result(message)

    loop.add_reader(commands.fileno(), heard)
    try:
        await driver.warm_up()
        told.send(None)
        at = await begin
        running = asyncio.ensure_future(driver.run(at))
        while not running.done():
            await asyncio.wait((running,), timeout=_PROGRESS_S)
            if not running.done():
                told.send(driver.progress)
        seen = running.result()
    finally:
        loop.remove_reader(commands.fileno())
    told.send(seen)
