"""How a process of an engine begins: what it imports, and what it leaves to the garbage collector."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from types import SimpleNamespace

from deployments.spares import process_hook, roster
from deployments.spares.engine_processes import REPLICA, RUNNER

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


# A driver that writes down when it is opened and called, as far as a process needs it to begin CUDA.
_DRIVER = """
#include <cstdio>
#include <cstdlib>
static int note(const char* what) {
    FILE* file = std::fopen(std::getenv("DRIVER_NOTES"), "a");
    std::fprintf(file, "%s\\n", what);
    std::fclose(file);
    return 100;  // no device
}
__attribute__((constructor)) static void opened() { note("opened"); }
extern "C" int cuInit(unsigned) { return note("cuInit"); }
extern "C" int cuDriverGetVersion(int*) { return note("cuDriverGetVersion"); }
extern "C" int cuDeviceGetCount(int*) { return note("cuDeviceGetCount"); }
extern "C" int cuGetProcAddress(const char*, void**, int, unsigned long) { return note("cuGetProcAddress"); }
"""
_SPARE_ON_GPU = (
    _BEGIN.split("import gc, httpx")[0].replace('"on_gpu": False', '"on_gpu": True')
    + """
assert begun == [RUNNER], begun
mapped = open("/proc/self/maps").read()
assert "libpaddle.so" in mapped, "Paddle's library is not loaded"
assert "libcuda" not in mapped and "paddle" not in sys.modules, "its import asks the driver for GPUs"
assert not os.path.exists(os.environ["DRIVER_NOTES"]), open(os.environ["DRIVER_NOTES"]).read()
import ctypes
ctypes.CDLL("libcuda.so.1").cuInit(0)  # who begins CUDA is noticed
assert open(os.environ["DRIVER_NOTES"]).read().split() == ["opened", "cuInit"]
"""
)


def test_a_spare_for_a_gpu_has_not_begun_cuda(tmp_path):
    """Its process neither opens the driver nor imports what asks it, though it is there."""
    source, library = tmp_path / "driver.cpp", tmp_path / "libcuda.so.1"
    source.write_text(_DRIVER)
    subprocess.run(["g++", "-shared", "-fPIC", "-o", str(library), str(source)], check=True, timeout=60)
    told = {"LD_LIBRARY_PATH": str(tmp_path), "DRIVER_NOTES": str(tmp_path / "notes")}
    command = [sys.executable, "-W", "ignore", "-c", _SPARE_ON_GPU]
    subprocess.run(command, check=True, timeout=120, env={**os.environ, **told})


def test_each_replica_has_a_runner_started_unless_one_is_there_for_it(tmp_path, monkeypatch):
    asked: list[dict] = []
    monkeypatch.setattr(roster, "private_base", lambda longest: tmp_path)
    monkeypatch.setattr(roster, "has_ended", lambda pid: False)
    monkeypatch.setattr(process_hook._Process, "_watch", lambda self: None)  # it would end this process
    monkeypatch.setattr(
        process_hook, "prestart", lambda variables, keep_alive_s, from_controller: asked.append(variables)
    )
    monkeypatch.setattr(process_hook.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))

    def process(kind: str, pid: int) -> process_hook._Process:
        """As if this were the process with that id."""
        monkeypatch.setattr(roster.os, "getpid", lambda: pid)
        return process_hook._Process(kind, "group")

    first = process(REPLICA, 1)
    first.begin_runner({"of": "the first"})
    assert asked == [{"of": "the first"}]
    second = process(REPLICA, 2)
    second.begin_runner({"of": "the second"})
    assert asked == [{"of": "the first"}, {"of": "the second"}], "the one that comes is the first's"
    runners = [process(RUNNER, 3), process(RUNNER, 4)]
    assert {runner._asker for runner in runners} == {1, 2}, "each ends with the replica that asked for it"
    monkeypatch.setattr(roster.os, "getpid", lambda: 1)
    first.adopt()
    monkeypatch.setattr(roster.os, "getpid", lambda: 3)
    runners[0].adopt()
    process(REPLICA, 5).begin_runner({"of": "the third"})
    assert len(asked) == 3
    process(RUNNER, 6)
    fourth = process(REPLICA, 7)
    process(RUNNER, 8)
    fourth.begin_runner({"of": "the fourth"})
    assert len(asked) == 3, "a spare one is there for it"


def test_a_process_that_prepares_nothing_collects_garbage_as_ever(monkeypatch, caplog):
    monkeypatch.setenv(process_hook.VARIABLE, "{}")
    try:
        process_hook.begin()
        assert gc.isenabled() and "has prepared nothing" in caplog.text
    finally:
        gc.unfreeze()
