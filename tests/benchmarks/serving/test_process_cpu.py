"""CPU time of another process, while it runs and when it has ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from benchmarks.serving import process_cpu
from benchmarks.serving.process_cpu import clock_step_s, cpu_seconds

COMPUTES = """
import threading, time
def compute():
    until = time.thread_time() + 0.3
    while time.thread_time() < until: pass
thread = threading.Thread(target=compute)
thread.start()
thread.join()
print(time.process_time(), flush=True)
input()
"""


def test_threads_that_have_ended_count_and_no_process_is_an_error():
    with subprocess.Popen(
        [sys.executable, "-c", COMPUTES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        own = float(process.stdout.readline())
        assert own <= cpu_seconds(process.pid) < own + 0.1
        process.communicate("\n")
    with pytest.raises(OSError):
        cpu_seconds(process.pid)


def test_a_kernel_without_such_clocks_has_ticks(monkeypatch):
    def refuses(clock: int) -> float:
        raise OSError(clock)

    monkeypatch.setattr(process_cpu.time, "clock_gettime", refuses)
    ticks = os.sysconf("SC_CLK_TCK")
    assert abs(cpu_seconds(os.getpid()) - time.process_time()) < 3 / ticks
    assert round(clock_step_s() * ticks, 6) >= 1
