"""Create .venv and install what requirements.lock pins. Needs only the standard library; a second run does nothing.

Two keys in .venv say what it was made from: one for the environment itself (interpreter and place), one for the
packages (contents of the files that name them). Contents, not dates: a fresh checkout or a switched branch changes
every date.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from pip_progress import PipError, install

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements.lock"


def environment_key() -> str:
    """What the environment depends on: a venv names its interpreter and its own place in its scripts."""
    return f"{sys.version}\n{sys.base_prefix}\n{VENV}\n"


def packages_key() -> str:
    """Hash of the files that decide what is installed."""
    key = hashlib.sha256()
    for path in (LOCK, ROOT / "pyproject.toml", ROOT / "cluster" / "__init__.py"):
        key.update(path.read_bytes() + b"\0")
    return key.hexdigest() + "\n"


def is_current(stamp: Path, key: str) -> bool:
    return PYTHON.exists() and stamp.exists() and stamp.read_text() == key


def base_python() -> str:
    """The interpreter outside any environment, so that .venv can be replaced by its own Python."""
    return getattr(sys, "_base_executable", sys.executable)


def create() -> None:
    """Make an empty .venv with pip in it, also where Debian's python3-venv is not installed."""
    shutil.rmtree(VENV, ignore_errors=True)
    python = base_python()
    result = subprocess.run([python, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if result.returncode == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([python, "-m", "venv", "--without-pip", str(VENV)], check=True)
    # pip can install itself into another environment; it is all that a bare interpreter with pip offers.
    fallback = subprocess.run([python, "-m", "pip", "--python", str(PYTHON), "install", "--quiet", "pip"])
    if fallback.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        sys.exit(
            f"{result.stdout}{result.stderr}{VENV.name}: {python} has neither ensurepip nor a pip >= 22.3. "
            "Install the missing part (Debian: apt-get install python3-venv) and try again."
        )


def install_packages() -> None:
    """Install the pinned packages, then this project as an editable package, so that Ray's workers find it anywhere."""
    pins = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    pip_pin = next(pin for pin in pins if pin.startswith("pip=="))
    subprocess.run([str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", pip_pin], check=True)
    install(PYTHON, ["--no-deps", "--requirement", str(LOCK)])
    install(PYTHON, ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)], quiet=True)


def main() -> None:
    created, installed = VENV / "environment.key", VENV / "packages.key"
    start = time.monotonic()
    if not is_current(created, environment_key()):
        print(f"Environment: creating {VENV.name} with Python {sys.version.split()[0]} ({base_python()})", flush=True)
        create()
        created.write_text(environment_key())
    if is_current(installed, packages_key()):
        return
    if installed.exists():
        print("Dependencies: requirements.lock or pyproject.toml changed, updating", flush=True)
    else:
        print("Dependencies: 455 MB to download, 1.7 GB on disk; 1 to 5 minutes", flush=True)
    # A half-installed environment must not look finished to the next run.
    installed.unlink(missing_ok=True)
    try:
        install_packages()
    except PipError as error:
        sys.exit(str(error))
    installed.write_text(packages_key())
    print(f"Dependencies: ready after {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    os.chdir(ROOT)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
