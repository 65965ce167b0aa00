"""What the weights of two engines on one machine take of its memory, as multiples of the model's file.

    python -m benchmarks.held_weights [MODEL]

Each engine is a process that has answered once. Their weights are the file of ready weights that both map, so each page counts
once however many engines read it (the system's proportional share, PSS); what a process has written to is its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from actors.engine.starting import start_engine
from actors.model_files.source import resolve_model
from cluster.config import DEFAULT_MODEL, EngineConfig
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams

_ROOT = Path(__file__).parents[1]
# Everything that an engine allocates beside weights is made small, so that weights would show.
_SETTINGS = {"weight_format": "stored", "max_num_seqs": 1, "max_model_len": 64, "num_kv_blocks": 16, "num_threads": 1}


class Held(NamedTuple):
    """Bytes.

    Attributes:
        mapped: of the file of ready weights, in memory and in this engine's page tables.
        share: of ``mapped``, each page divided by the processes that have it, others on the machine among them.
        own: of ``mapped``, pages that this process has written to, so that nobody shares them.
        grown: anonymous memory that came with the start and the first answer: weights, if any were copied, and all else.
    """

    mapped: int
    share: int
    own: int
    grown: int


def engines(model: str, count: int = 2) -> list[Held]:
    """``count`` engines side by side, all measured while all live.

    Raises:
        RuntimeError: an engine did not start.
    """
    # An engine that finds no ready file writes one, and keeps its own weights: this one is for the others.
    _end(_start(model))
    running = [_start(model) for _ in range(count)]
    try:
        for process in running:
            process.stdin.write("measure\n")
            process.stdin.flush()
        return [Held(*json.loads(process.stdout.readline())) for process in running]
    finally:
        for process in running:
            _end(process)


def _start(model: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.held_weights", "--engine", model],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT,
    )  # fmt: skip
    if process.stdout.readline() != "ready\n":
        _end(process)
        raise RuntimeError(f"an engine of {model} did not start")
    return process


def _end(process: subprocess.Popen) -> None:
    process.stdin.close()
    process.wait()
    process.stdout.close()


def _engine(model: str) -> None:
    """A process of ``engines``: answers once, says so, and measures itself when it is asked."""
    import paddle  # noqa: F401 - what loading it takes is not the engine's

    before = _anonymous()
    engine = start_engine(EngineConfig(model=model, **_SETTINGS), "engine")
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    list(engine.generate([EngineRequest("a", list(range(100, 132)), params)]))
    for thread in threading.enumerate():
        if thread.name == "ready-weights":  # writes the file that the next process maps
            thread.join()
    print("ready", flush=True)
    if sys.stdin.readline():
        print(json.dumps([*_of_ready_weights(), _anonymous() - before]), flush=True)
        sys.stdin.readline()  # until all are measured
    engine.close()


def _anonymous() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("this system does not say what memory is anonymous")


def _of_ready_weights() -> tuple[int, int, int]:
    totals = dict.fromkeys(("Rss", "Pss", "Private_Dirty"), 0)
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in totals:
            totals[name] += int(value.split()[0]) << 10 if inside else 0
        elif "-" in name.split(" ")[0]:  # a mapping's first line begins with its addresses
            inside = line.endswith(".weights")
    return totals["Rss"], totals["Pss"], totals["Private_Dirty"]


def print_held(model: str) -> None:
    """A line an engine, and one of both."""
    path = resolve_model(model).path
    num_bytes = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
    held = engines(model)
    print(f"{num_bytes / 1e6:.1f} MB of files; two engines:")
    for one in held:
        print(
            f"  mapped {one.mapped / num_bytes:.3f} of them, its share {one.share / num_bytes:.3f}, "
            f"written to {one.own / num_bytes:.3f}; anonymous memory beside them {one.grown / 1e6:.0f} MB"
        )
    print(f"  weights of both together {sum(one.share for one in held) / num_bytes:.3f} (wanted: at most 1.2)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--engine"]:
        _engine(sys.argv[2])
    else:
        print_held(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL)
