"""A worker process of an engine begins in the process that Ray starts for it; every other one begins as Ray has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config import LLMConfig
from deployments.ray_private import setup_worker
from deployments.ray_private.worker_pool import START_HOOK
from deployments.spares.engine_processes import RUNNER, VARIABLE, engine_processes
from deployments.start.serve_environment import LOOPBACK_CLUSTER

OURS = {START_HOOK: "module.function", VARIABLE: "{}"}
WORKER = ["/ray/default_worker.py", "--node-ip-address=127.0.0.1"]


def arguments(variables: dict[str, str], language: str = "PYTHON", **more: object) -> list[str]:
    context = {"command_prefix": [], "env_vars": variables, "py_executable": sys.executable, "java_jars": [], **more}
    return [*WORKER, f"--language={language}", f"--serialized-runtime-env-context={json.dumps(context)}"]


def test_an_engines_process_becomes_its_worker_with_its_variables():
    assert setup_worker.worker_here(arguments(OURS)) == (WORKER, OURS)
    variables = engine_processes(LLMConfig(), 0.0).variables[RUNNER]
    assert setup_worker.worker_here(arguments(variables)) == (WORKER, variables)


@pytest.mark.parametrize(
    "given",
    [
        WORKER,
        arguments({}),
        arguments({"OTHER": "1"}),
        arguments({**OURS, "LD_PRELOAD": "library.so"}),
        arguments({**OURS, "RAY_X": "${HOME}"}),
        arguments(OURS, language="JAVA"),
        arguments(OURS, py_executable="podman run python"),
        arguments(OURS, command_prefix=["cd", "/folder", "&&"]),
        arguments(OURS, override_worker_entrypoint="/elsewhere.py"),
        ["-m", "ray.util.client.server", *arguments(OURS)[2:]],
        ["-s", *arguments(OURS)],
    ],
)
def test_what_needs_more_is_left_to_rays_script(given):
    assert setup_worker.worker_here(given) is None


def test_the_worker_begins_without_ray_and_without_collections(tmp_path):
    worker = tmp_path / "default_worker.py"
    worker.write_text(
        "import gc, json, os, sys\n"
        "print(json.dumps([sys.argv, __name__, sys.path[0], gc.isenabled(), 'ray' in sys.modules,"
        f" os.environ[{VARIABLE!r}]]))\n"
    )
    given = [str(worker), *arguments(OURS)[1:]]
    done = subprocess.run(
        [sys.executable, setup_worker.__file__, *given], capture_output=True, check=True, timeout=60, text=True
    )
    assert json.loads(done.stdout) == [[str(worker), *WORKER[1:]], "__main__", str(tmp_path), False, False, "{}"]


_CLUSTER = f"""
import json
import ray
from deployments.ray_private.worker_pool import start_engine_processes_at_once
start_engine_processes_at_once()
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

@ray.remote
class Actor:
    def begun(self):
        import os, sys
        return [sys.orig_argv[1], os.environ.get({VARIABLE!r}), os.environ.get("OTHER")]

given = [{{{VARIABLE!r}: "ours"}}, {{"OTHER": "1"}}]
print(json.dumps(ray.get([Actor.options(runtime_env={{"env_vars": one}}).remote().begun.remote() for one in given])))
"""


@pytest.mark.slow
def test_ray_starts_processes_with_it(monkeypatch):
    for name, value in LOOPBACK_CLUSTER.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", _CLUSTER], capture_output=True, check=True, timeout=120, text=True)
    ours, other = json.loads(done.stdout.splitlines()[-1])
    assert ours == [setup_worker.__file__, "ours", None]
    assert Path(other[0]).name == "default_worker.py" and other[1:] == [None, "1"]
