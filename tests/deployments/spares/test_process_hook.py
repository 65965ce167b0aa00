"""How a process of an engine begins: what it imports, and what it leaves to the garbage collector."""

from __future__ import annotations

import gc
import subprocess
import sys

from deployments.spares import process_hook

_BEGIN = """
import json, os, sys
from cluster.config import EngineConfig
from deployments.spares import process_hook
from deployments.spares.engine_processes import RUNNER, VARIABLE
begun = []
process_hook._Process = lambda kind, group: type("Process", (), {"prepared": lambda self: begun.append(kind)})()
told = {"kind": RUNNER, "group": "g", "module": "json", "on_gpu": False, "engine": EngineConfig().model_dump(mode="json")}
os.environ[VARIABLE] = json.dumps(told)
process_hook.begin()
import gc, httpx
assert begun == [RUNNER], begun
assert gc.isenabled() and gc.get_freeze_count() > 100_000
assert "paddle" in sys.modules and "rich" not in sys.modules and "httpx._main" not in sys.modules
httpx.Client().close()
"""


def test_a_runner_imports_paddle_without_a_command_line_and_leaves_it_out_of_collections():
    subprocess.run([sys.executable, "-W", "ignore", "-c", _BEGIN], check=True, timeout=120)


def test_a_process_that_prepares_nothing_collects_garbage_as_ever(monkeypatch, caplog):
    monkeypatch.setenv(process_hook.VARIABLE, "{}")
    try:
        process_hook.begin()
        assert gc.isenabled() and "has prepared nothing" in caplog.text
    finally:
        gc.unfreeze()
