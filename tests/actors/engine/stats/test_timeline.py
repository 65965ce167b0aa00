"""The recording of steps: what the trace file holds, and that it tells overlapped from plain execution."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from actors.engine_actor import RunnerActor
from cluster.config import EngineConfig
from cluster.errors import InvalidRequestError
from tests.engines import make_engine, request
from tests.waiting import until

ROUNDING_US = 0.01  # stamps are rounded to nanoseconds


def record(folder, num_steps, **settings) -> dict:
    """The parsed trace file of a busy engine that was warm."""
    engine = make_engine(folder, max_num_batched_tokens=32, **settings)
    engine.generate([request("warm", list(range(40)), max_tokens=8)])
    timeline = engine.start_timeline(num_steps)
    engine.generate([request(str(i), list(range(i, 60)), max_tokens=40) for i in range(4)])
    assert engine.timeline is None, "a full recording ends by itself"
    assert timeline.full.result() is timeline
    engine.close()
    trace = json.loads(timeline.chrome_trace_json())
    assert trace == timeline.chrome_trace()
    return trace


def slices(trace: dict, row: str, name: str = "") -> list[dict]:
    """Complete events of a row, by name, in order of time."""
    rows = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    found = [e for e in trace["traceEvents"] if e["ph"] == "X" and rows[e["tid"]] == row and e["name"].startswith(name)]
    return sorted(found, key=lambda e: e["ts"])


def end(event: dict) -> float:
    return event["ts"] + event["dur"]


def of_step(trace: dict, row: str, name: str) -> dict[int, dict]:
    return {e["args"]["step"]: e for e in slices(trace, row, name)}


def check_structure(trace: dict) -> None:
    """What holds of every recording."""
    passes = slices(trace, "host", "pass")
    assert all(end(a) <= b["ts"] + ROUNDING_US for a, b in pairwise(passes))
    parts = [e for e in slices(trace, "host") if e["name"] != "pass"]
    assert all(end(a) <= b["ts"] + ROUNDING_US for a, b in pairwise(parts)), "one thread does one thing at a time"
    inside = [
        p for p in parts if any(q["ts"] <= p["ts"] + ROUNDING_US and end(p) <= end(q) + ROUNDING_US for q in passes)
    ]
    assert inside == parts, "a part lies in a pass"
    steps = slices(trace, "device")
    assert all(end(a) <= b["ts"] + ROUNDING_US for a, b in pairwise(steps)), "the device runs one step at a time"
    numbers = [e["args"]["step"] for e in steps]
    assert numbers == list(range(numbers[0], numbers[0] + len(steps)))
    assert all(gap["args"]["waited_for_launch_us"] <= gap["dur"] + ROUNDING_US for gap in slices(trace, "device idle"))
    covered = sum(e["dur"] for e in steps) + sum(e["dur"] for e in slices(trace, "device idle"))
    assert covered == pytest.approx(end(steps[-1]) - steps[0]["ts"], abs=0.1), "steps and gaps fill the row"
    summary = trace["otherData"]
    assert summary["steps"] == len(steps)
    assert summary["device_busy_us"] == pytest.approx(sum(e["dur"] for e in steps), abs=0.1)
    for step, on_device in of_step(trace, "device", "step").items():
        launch, wait = of_step(trace, "host", "launch")[step], of_step(trace, "host", "wait")[step]
        assert launch["ts"] <= on_device["ts"], "launched before it began"
        assert end(on_device) <= end(wait) + ROUNDING_US, "waited for until it was done"
        arrow = [e["ts"] for e in trace["traceEvents"] if e["ph"] in "sf" and e["id"] == step]
        assert arrow == [launch["ts"], on_device["ts"]]


@pytest.mark.parametrize("overlap", [True, False])
def test_a_trace_shows_whether_steps_overlap(tiny_model, overlap):
    trace = record(tiny_model, 25, enable_overlap_schedule=overlap)
    check_structure(trace)
    launches, updates = (of_step(trace, "host", name) for name in ("launch", "update"))
    waits = of_step(trace, "host", "wait")
    steps = sorted(set(launches) & set(waits))
    assert len(steps) == 25
    for step in steps[:-1]:
        if overlap:
            assert launches[step + 1]["ts"] < waits[step]["ts"], (
                "the next step is launched before this one is waited for"
            )
        else:
            assert end(updates[step]) <= launches[step + 1]["ts"] + ROUNDING_US
    if overlap:
        # What the host does for a step happens while the device computes the next one: without that, no overlap.
        device = of_step(trace, "device", "step")
        beside = [s for s in steps[:-1] if updates[s]["ts"] < end(device[s + 1])]
        assert len(beside) > len(steps) // 2


def test_memory_is_bounded_and_the_number_of_steps_is_checked(tiny_model):
    engine = make_engine(tiny_model)
    for steps in (0, 10_001):
        with pytest.raises(InvalidRequestError, match="allowed are 1 to 10000"):
            engine.start_timeline(steps)
    timeline = engine.start_timeline(3)
    with pytest.raises(InvalidRequestError, match="already"):
        engine.start_timeline(3)
    engine.generate([request("a", [1, 2, 3], max_tokens=20)])
    assert len(timeline.steps) == 3 and len(timeline.passes) <= 5
    next_one = engine.start_timeline(1)
    assert len(next_one.steps) == 0, "the next one begins empty"
    engine.stop_timeline(timeline)
    assert engine.timeline is next_one, "who ends a recording that is over leaves the next one alone"
    engine.stop_timeline(next_one)
    assert engine.timeline is None
    engine.close()


def test_a_recording_with_nothing_in_it_is_a_valid_file(tiny_model):
    engine = make_engine(tiny_model)
    trace = engine.start_timeline(1).chrome_trace()
    assert slices(trace, "host") == [] and trace["otherData"]["steps"] == 0
    engine.close()


async def test_a_runner_records_what_it_runs_and_gives_up_in_time(tiny_model):
    config = EngineConfig(model=str(tiny_model), load_format="dummy", num_kv_blocks=64, num_threads=1)
    runner = RunnerActor(config, "e")
    await runner.start()
    empty = json.loads(await runner.record_timeline(5, timeout_s=0.1))
    assert empty["otherData"]["steps"] == 0
    recording = asyncio.create_task(runner.record_timeline(5, timeout_s=20))
    await until(lambda: runner.serving.engine.timeline is not None, 5)
    runner.serving.engine_loop.submit(request("a", [1, 2, 3], max_tokens=20))
    trace = json.loads(await recording)
    check_structure(trace)
    assert trace["otherData"]["steps"] == 5
    with pytest.raises(InvalidRequestError):
        await runner.record_timeline(0, timeout_s=1)
    await runner.shutdown()


def test_a_trace_can_be_drawn(tiny_model, tmp_path):
    trace = record(tiny_model, 25)
    file, picture = tmp_path / "trace.json", tmp_path / "picture.svg"
    file.write_text(json.dumps(trace))
    script = Path(__file__).parents[4] / "docs/lab/draw_timeline.py"
    subprocess.run([sys.executable, str(script), str(file), str(picture), "--first", "3", "--steps", "5"], check=True)
    drawn = [element.text for element in ElementTree.parse(picture).iter() if element.tag.endswith("title")]
    first = slices(trace, "device")[3]["args"]["step"]
    for step in range(first, first + 5):
        assert any(title.startswith(f"step {step}: ") for title in drawn)
    for step in range(first + 2, first + 5):
        assert any(title.startswith(f"plan {step}: ") for title in drawn)
