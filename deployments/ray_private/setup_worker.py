"""Run by Ray's node before each worker process that has a runtime environment, in place of Ray's script of this name.

Ray's own imports all of Ray to read one argument, and then has a shell start Python anew, which imports Ray once more. Here a
process of an engine, whose environment is ours, goes on as the worker at once; every other one gets Ray's script. No module of
this project and none of Ray's is imported here: that is what it is for.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="
_OURS = "BIREME_PROCESS"
# Python has begun already; of these variables it and its libraries have read none.
_READ_LATER = ("BIREME_", "RAY_", "__RAY_")


def worker_here(arguments: list[str]) -> tuple[list[str], dict[str, str]] | None:
    """Script and arguments of a worker that this process can become, and the variables that it gets; None if it cannot.

    Args:
        arguments: what Ray would give its own script: the worker's script, its arguments, and those that say how to begin it.
    """
    context: dict[str, Any] = {}
    language, rest = "", []
    for argument in arguments:
        if argument.startswith(_CONTEXT):
            context = json.loads(argument.removeprefix(_CONTEXT))
        elif argument.startswith(_LANGUAGE):
            language = argument.removeprefix(_LANGUAGE)
        else:
            rest.append(argument)
    variables = context.pop("env_vars", None) or {}
    python = context.pop("py_executable", sys.executable)
    # Whatever else it says (a container, a shell's prefix) is for Ray's script.
    if language != "PYTHON" or python != sys.executable or any(context.values()) or not rest or _OURS not in variables:
        return None
    is_plain = all(name.startswith(_READ_LATER) and "$" not in value for name, value in variables.items())
    return (rest, variables) if is_plain and rest[0].endswith(".py") else None


def main() -> None:
    """Become the worker."""
    found = worker_here(sys.argv[1:])
    if found is None:
        spec = find_spec("ray")
        assert spec is not None and spec.origin is not None
        script = str(Path(spec.origin).parent / "_private" / "workers" / Path(__file__).name)
        sys.argv[0] = script
    else:
        sys.argv, variables = found
        script = sys.argv[0]
        os.environ.update(variables)
        # Until ``spares.process_hook`` has prepared it: collections are a tenth of the imports' time, and find next to nothing.
        gc.disable()
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
