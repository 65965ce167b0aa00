"""The ``bireme`` command, as far as it must go before anything of the project is imported."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

PACKAGES = ("cluster", "actors", "deployments", "gpu_ops")
# A command that is named loads nothing that the others need.
COMMANDS = {
    **{
        name: f"cluster.terminal.{name}" for name in ("bench", "chat", "complete", "status", "timeline", "top", "trace")
    },
    "run-batch": "cluster.terminal.run_batch",
    **{
        name: f"deployments.commands.{name}"
        for name in ("autoscale", "config", "dashboard", "doctor", "env", "logs", "models", "serve", "simulate")
    },
    "pull": "deployments.commands.models",
    "plan": "deployments.commands.simulate",
    "rm": "deployments.commands.models",
}
_ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def main() -> None:
    """Run the command in ``sys.argv``. A server is watched by a process that has imported next to nothing."""
    serves = sys.argv[1:2] == ["serve"]
    # Paddle and Ray's workers cannot be started from a folder that is gone.
    fault = folder_is_gone() if serves or sys.argv[1:2] == ["doctor"] else None
    fault = fault or another_package() or (package_of_this_folder() if serves else None)
    if fault is not None:
        sys.exit(f"Error: {fault}")
    if serves:
        from deployments.supervision.supervisor import supervised

        supervised()
    app_of(sys.argv[1:])()


def app_of(arguments: list[str]) -> Any:
    """The command line, with all its commands unless ``arguments`` begin with the name of one."""
    module = COMMANDS.get(arguments[0]) if arguments else None
    if module is None:
        from deployments.cli import app
    else:
        importlib.import_module(module)
        from cluster.terminal.app import app
    return app


def folder_is_gone() -> str | None:
    """What to say where the folder that the command is called in was removed; None if it is there."""
    try:
        os.getcwd()
    except OSError:
        return "the folder of this shell was removed, or may not be looked at; change to another (cd)"
    return None


def another_package() -> str | None:
    """What to say where Python would import another package of one of our names; None if it finds ours."""
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        places = [] if found is None else [os.path.realpath(place) for place in found.submodule_search_locations or ()]
        if os.path.join(_ROOT, name) not in places:
            where = places[0] if places else found.origin if found else "nowhere"
            return _another(name, where)
    return None


def package_of_this_folder() -> str | None:
    """The same of Ray's workers: they have the folder that the server is started in on their path, before all others."""
    folder = os.path.realpath(os.getcwd())
    if folder == _ROOT:
        return None
    for name in PACKAGES:
        for path in (os.path.join(folder, name, "__init__.py"), os.path.join(folder, f"{name}.py")):
            if os.path.isfile(path):
                return _another(name, os.path.dirname(path) if path.endswith("__init__.py") else path)
    return None


def _another(name: str, where: str | None) -> str:
    return (
        f"Python finds another {name} in {where} before that of Bireme in {os.path.join(_ROOT, name)}; take its folder out of "
        "PYTHONPATH, start in another folder, or use an environment of your own"
    )


if __name__ == "__main__":
    main()
