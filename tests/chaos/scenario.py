"""A scenario: load, faults, checks, report."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import ray
from ray import serve

from actors.model_source import resolve_model
from cluster.config import DEFAULT_MODEL, LLMConfig
from deployments.engine_replica import RUNNER_NAME_PREFIX
from deployments.llm import build_openai_app
from tests.chaos.faults import Fault
from tests.chaos.load import Load, Seen
from tests.chaos.processes import pids_of, send
from tests.chaos.report import Report
from tests.engines import TINY_CONFIG

MODEL = {**TINY_CONFIG, "vocab_size": 49152, "max_position_embeddings": 2048}


@dataclass(frozen=True)
class Setup:
    """The application under test: a random two-layer model with SmolLM2's tokenizer."""

    num_engines: int = 3
    num_ingresses: int = 2
    num_clients: int = 8
    max_tokens: int = 400

    def config(self, folder: Path, model: dict = MODEL, **changes: object) -> LLMConfig:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(model))
        settings: dict = {
            "model": str(folder),
            "load_format": "dummy",
            "tokenizer": str(resolve_model(DEFAULT_MODEL).tokenizer),
            "model_id": "tiny",
            "max_num_seqs": 8,
            "max_num_batched_tokens": 128,
            "num_kv_blocks": 256,
            "num_threads": 1,
            "runner_num_cpus": 0.1,
            "deployment_config": {"num_replicas": self.num_engines},
            "ingress_config": {"num_replicas": self.num_ingresses, "health_check_period_s": 1.0},
        }
        return LLMConfig(**{**settings, **changes})


@contextlib.contextmanager
def application(setup: Setup, folder: Path, model: dict = MODEL, **changes: object) -> Iterator[str]:
    """Run the application in a Ray of its own; the URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build_openai_app(setup.config(folder, model, **changes)))
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while not is_healthy(url):
            assert time.monotonic() < deadline, "the application is not ready"
            time.sleep(0.2)
        yield url
    finally:
        serve.shutdown()
        ray.shutdown()


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def runners() -> list:
    """Handles of the runner actors that Ray knows."""
    named = [
        actor
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith(RUNNER_NAME_PREFIX)
    ]
    found = []
    for actor in named:
        with contextlib.suppress(ValueError):
            found.append(ray.get_actor(actor["name"], namespace=actor["namespace"]))
    return found


def idle_stats(num_engines: int, timeout_s: float) -> list[dict]:
    """Counters of every engine, integrity checked, once they are as many as there should be and idle; else the last seen."""
    deadline, stats = time.monotonic() + timeout_s, []
    while time.monotonic() < deadline:
        stats = []
        for runner in runners():
            with contextlib.suppress(ray.exceptions.RayError):
                stats.append(ray.get(runner.check_integrity.remote(), timeout=5))
        if len(stats) == num_engines and not any(s["num_requests_running"] + s["num_requests_waiting"] for s in stats):
            break
        time.sleep(0.5)
    return stats


def num_warm_engines() -> int:
    """Engines that answer at once."""
    count = 0
    for runner in runners():
        with contextlib.suppress(ray.exceptions.RayError):
            count += ray.get(runner.stats.remote(), timeout=0.5)["state"] == "running"
    return count


async def inject(fault: Fault, min_engines: int, report: Report) -> float | None:
    """Let ``fault`` happen once enough engines are warm; when it did, of ``time.monotonic``. None if nothing was there to hit."""
    await asyncio.sleep(fault.pause_s)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if await asyncio.to_thread(num_warm_engines) >= min_engines and pids_of("ingress") and pids_of("proxy"):
            break
        await asyncio.sleep(0.2)
    pids = pids_of(fault.target)
    if not pids:
        return None
    pid = pids[int(fault.choice * len(pids))]
    moment = time.monotonic()
    report.faults[f"{fault.action} {fault.target}"] += 1
    send(pid, signal.SIGKILL if fault.action == "kill" else signal.SIGSTOP)
    if fault.action == "stop":
        await asyncio.sleep(fault.stopped_s)
        send(pid, signal.SIGCONT)
    return moment


async def run_scenario(url: str, setup: Setup, faults: list[Fault], seed: int) -> Report:
    """Load and faults together, then the checks."""
    report = Report(seed)
    load = Load(url, setup.num_clients, setup.max_tokens, seed)
    twins = await load.twins()
    running = asyncio.create_task(load.run())
    moments: list[tuple[Fault, float]] = []
    for number, fault in enumerate(faults):
        moment = await inject(fault, 2, report)
        if moment is not None:
            moments.append((fault, moment))
        print(f"fault {number + 1}/{len(faults)}: {fault}; {len(load.seen)} requests ended", flush=True)
    await asyncio.sleep(1.0)
    load.stopping = True
    await asyncio.wait_for(running, 240)
    judge(report, load, twins)
    recoveries(report, load.seen, moments)
    leaks(report, await asyncio.to_thread(idle_stats, setup.num_engines, 90), setup)
    return report


def judge(report: Report, load: Load, twins: dict[int, tuple]) -> None:
    """Compare every answer with its undisturbed twin."""
    report.refused = load.refused
    for seen in load.seen:
        report.ended[seen.kind] += 1
        tokens = twins[seen.number][0]
        if seen.token_ids != tokens[: len(seen.token_ids)]:
            report.changed.append(f"request {seen.number} ({seen.kind}) has other tokens")
        elif seen.error is not None and seen.kind == "plain":
            report.honest += 1
        elif seen.error is not None:
            report.lost.append(f"request {seen.number} ({seen.kind}) after {len(seen.token_ids)} tokens: {seen.error}")
        elif seen.kind != "vanishing" and seen.answer != twins[seen.number]:
            report.changed.append(
                f"request {seen.number} ({seen.kind}): {seen.answer[1:]} is not {twins[seen.number][1:]}"
            )


def recoveries(report: Report, seen: list[Seen], moments: list[tuple[Fault, float]]) -> None:
    """For every fault, how long the streams that ran at that moment waited for their next token; those that noticed."""
    for fault, moment in moments:
        gaps = [
            gap for one in seen if one.kind == "resuming" and (gap := one.gap_at(moment)) is not None and gap > 0.25
        ]
        if gaps:
            what = f"{fault.action} {fault.target}" + (f" for {fault.stopped_s:g} s" if fault.stopped_s else "")
            report.recovery_s.setdefault(what, []).extend(gaps)


def leaks(report: Report, stats: list[dict], setup: Setup) -> None:
    """What the engines hold when nobody asks for anything."""
    if len(stats) != setup.num_engines:
        report.leaks.append(f"{len(stats)} engines instead of {setup.num_engines}")
    for one in stats:
        held = {
            "blocks": one["num_blocks"] - one["num_blocks_available"],
            "slots": one["num_slots_leaving"],
            "requests": one["num_requests_running"] + one["num_requests_waiting"],
        }
        report.leaks += [f"{one['engine_id']} holds {count} {what}" for what, count in held.items() if count]
    if len(pids_of("runner")) != setup.num_engines:
        report.leaks.append(f"{len(pids_of('runner'))} runner processes instead of {setup.num_engines}")
