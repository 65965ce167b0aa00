"""``bireme doctor``: whether this machine can serve, and what to do where it cannot."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from actors.model_files.kept import kept_models
from cluster.client.proxies import proxy_of_others
from cluster.errors import BiremeError
from cluster.process.cache import cache_dir
from cluster.process.trusted_path import other_writer
from cluster.terminal.app import app, console, print_wrapped
from deployments.commands.config import gpu_memory
from deployments.commands.models import size_text
from deployments.start.preflight import (
    OwnServerError,
    check_cache,
    check_descriptors,
    check_port,
    check_temporary_folder,
)
from deployments.start.ray_session import ray_base
from deployments.start.ready_line import url_host
from deployments.start.serve_config import DEFAULT_HOST, DEFAULT_PORT
from gpu_ops.build import OpBuildError, library_path

_RAY = "2.60"
_LEAST_FREE_BYTES = 2_000_000_000
_LEAST_SHARED_BYTES = 256 << 20
_LEAST_LOG_BYTES = 200_000_000  # Ray's sockets and logs; with less it does not start, or dies while it runs
# Paddle says in its own process what it thinks of the GPU: a driver that does not fit ends the process that asks.
_PADDLE = """
import paddle
print(paddle.__version__)
if paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count():
    paddle.set_device("gpu")
    x = paddle.ones([64, 64], dtype="bfloat16")
    assert float(paddle.matmul(x, x).astype("float32")[0, 0]) == 64
    print("gpu " + paddle.device.cuda.get_device_name())
else:
    print("cuda" if paddle.is_compiled_with_cuda() else "cpu")
"""


# Of a line, and its colour. FAULT: a server would not start, or not do what it should.
OK, WARN, FAULT = ("ok", "green"), ("warn", "yellow"), ("FAULT", "red")


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    found: str
    sign: tuple[str, str] = OK


class _Doubt(BiremeError):
    """A server would run, and a person should know this."""


def findings(host: str, port: int) -> list[Finding]:
    """A finding for everything that is looked at, in the order in which it matters."""
    looks: list[tuple[str, Callable[[], str]]] = [
        ("Python", _python),
        ("Ray", _ray),
        ("Paddle", _paddle),
        ("native ops", _ops),
        ("port", lambda: _port(host, port)),
        ("open files", _descriptors),
        ("temporary files", _temporary),
        ("Ray's folder", _ray_folder),
        ("shared memory", _shared_memory),
        ("cache", _cache),
        ("proxies", lambda: _proxies(f"http://{url_host(host)}:{port}")),
    ]
    found = []
    for what, look in looks:
        try:
            found.append(Finding(what, look()))
        except (BiremeError, OpBuildError) as error:
            found.append(Finding(what, str(error), WARN if isinstance(error, _Doubt) else FAULT))
    return found


@app.command()
def doctor(
    host: Annotated[str, typer.Option(help="Address that a server would listen on.")] = DEFAULT_HOST,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = DEFAULT_PORT,
) -> None:
    """Look at everything that a server needs here. Exit code 1 if something is wrong; its line says what to do."""
    found = findings(host, port)
    for finding in found:
        sign, style = finding.sign
        console.print(f"{sign:5}", style=style, end=" ", highlight=False)
        print_wrapped(f"{finding.what}: {finding.found}", 6, begun=6)
    if any(finding.sign == FAULT for finding in found):
        raise typer.Exit(1)


def _python() -> str:
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        raise BiremeError(f"{platform.python_version()} is not supported; make the environment with 3.10, 3.11 or 3.12")
    return f"{platform.python_version()} in {sys.prefix}"


def _ray() -> str:
    version = importlib.metadata.version("ray")
    if version.split(".")[:2] != _RAY.split("."):
        raise BiremeError(
            f"{version} is installed and {_RAY} is what this was made for; pip install 'ray[serve]=={_RAY}.*'"
        )
    return version


def _paddle() -> str:
    try:
        ran = subprocess.run([sys.executable, "-c", _PADDLE], capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        raise BiremeError("did nothing for 300 s; look at the GPU with nvidia-smi, or serve with device=cpu") from None
    lines = ran.stdout.split("\n")
    if ran.returncode or len(lines) < 2:
        last = (ran.stderr.strip() or f"it ended with {ran.returncode}").splitlines()[-1]
        if "No module named 'paddle'" in last:
            raise BiremeError("is not installed; install the extra cpu or gpu (docs/install.md)")
        raise BiremeError(
            f"its kernels do not run here ({last}); install the paddlepaddle-gpu for this driver, or device=cpu"
        )
    version, device = lines[:2]
    if device.startswith("gpu "):
        return f"{version}, its kernels run on {device.removeprefix('gpu ')}"
    gpus = gpu_memory()
    if gpus:
        why = "sees none" if device == "cuda" else "is the package for CPUs"
        raise BiremeError(
            f"{version} {why}, and nvidia-smi shows {len(gpus)} GPU; install paddlepaddle-gpu, or serve with device=cpu"
        )
    return f"{version}, on the CPU; there is no GPU"


def _ops() -> str:
    if library_path().exists():
        return f"built, in {library_path().parent}"
    compiler = os.environ.get("CXX", "g++")
    where = shutil.which(compiler)
    if where is None:
        raise BiremeError(
            f"not built, and there is no compiler {compiler}; install g++ (apt-get install g++), or set CXX"
        )
    return f"not built yet, which takes a minute, with {where}"


def _port(host: str, port: int) -> str:
    try:
        check_port(host, port, ray_base())
    except OwnServerError as error:
        raise _Doubt(error.message) from None
    return f"{port} of {host} is free"


def _descriptors() -> str:
    check_descriptors()
    return "enough"


def _temporary() -> str:
    check_temporary_folder()
    return os.environ.get("TMPDIR", "/tmp")


def _ray_folder() -> str:
    folder = ray_base()
    _check_room(folder, _LEAST_LOG_BYTES, "make room, or set TMPDIR to a folder of your own")
    return str(folder)


def _shared_memory() -> str:
    if not os.path.isdir("/dev/shm"):
        return "there is no /dev/shm; Ray takes temporary files"
    total = shutil.disk_usage("/dev/shm").total
    if total < _LEAST_SHARED_BYTES:
        raise BiremeError(f"/dev/shm has {size_text(total)}; start the container with --shm-size=2g")
    return size_text(total)


def _cache() -> str:
    check_cache()
    folder = cache_dir()
    if (fault := other_writer(folder)) is not None:
        raise BiremeError(f"{fault}; take that away, or set BIREME_CACHE to a folder of your own")
    free = _check_room(folder, _LEAST_FREE_BYTES, "make room (bireme rm), or set BIREME_CACHE")
    return f"{folder}, {len(kept_models())} entries, {size_text(free)} free"


def _check_room(folder: Path, least: int, remedy: str) -> int:
    """Bytes that are free where ``folder`` is or will be.

    Raises:
        BiremeError: they are fewer than ``least``, or this user cannot write there.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise BiremeError(f"{folder}: {existing} cannot be written; {remedy}")
    free = shutil.disk_usage(existing).free
    if free < least:
        raise BiremeError(f"{folder}: {size_text(free)} are free on its disk; {remedy}")
    return free


def _proxies(url: str) -> str:
    if note := proxy_of_others(url):
        raise _Doubt(note)
    return "none that clients of this machine would go through"
