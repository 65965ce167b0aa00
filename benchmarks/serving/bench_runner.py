"""What a runner's process spends beside its device: CPU time of a token, and of a request, of an engine that computes nothing.

    python -m benchmarks.serving.bench_runner [--clients 64] [--ingresses 1] [--answers 16,256] [--seconds 4] [--step-ms 2]

One process plays the ingresses and the engine replica: it attaches to the token socket, once for each ingress, sends requests
ahead of their calls, and makes the calls as a replica does, those of a quarter of a second together. Clients are a closed loop
with prompts of token ids. Lengths of answers take turns; two lengths tell a token's cost from a request's. Figures are of /proc,
medians over rounds. What the event loop's thread computes, and how often it goes to sleep and is woken, keeps the interpreter's
lock from the engine's thread.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import ray
import typer

from benchmarks.serving.process_cpu import cpu_seconds, thread_cpu_seconds
from cluster.config import EngineConfig
from cluster.outputs import PlainTokens, StreamItem, TokenDelta
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams
from deployments.replica.runner_calls import RunnerCalls
from deployments.replica.streaming_runner import StreamingRunner
from deployments.replica.token_listener import RequestSender, listen
from deployments.routing.shared_calls import FOLLOW_AFTER_S


class MeasuredRunner(StreamingRunner):
    """Says which of its threads does what."""

    async def threads(self) -> dict[str, int]:
        """The kernel's ids of the event loop's thread and of the engine's."""
        engine = next(thread for thread in threading.enumerate() if thread.name == "engine-loop")
        return {"loop": threading.get_native_id(), "engine": engine.native_id or 0}


class Load:
    """A closed loop of clients of one runner."""

    def __init__(self, calls: RunnerCalls, ray_calls: bool, prompt: int) -> None:
        self._calls = calls
        self._ray_calls = ray_calls
        self._prompt = list(range(3, 3 + prompt))
        self._number = 0
        self._senders: dict[str, RequestSender] = {}
        self._ends: dict[str, asyncio.Future[None]] = {}
        self.num_tokens = self.num_messages = 0

    async def listen(self, path: str, subscriber: str, attached: asyncio.Future[int]) -> None:
        """Count what comes to one ingress."""

        def reached(pid: int, sender: RequestSender) -> None:
            self._senders[subscriber] = sender
            attached.set_result(pid)

        def count(items: list[StreamItem]) -> None:
            self.num_messages += 1
            for item in items:
                if isinstance(item, TokenDelta | PlainTokens):
                    self.num_tokens += len(item.token_ids)
                if isinstance(item, TokenDelta) and item.finish_reason:
                    self._ends.pop(item.request_id).set_result(None)

        await listen(path, subscriber, {}, count, reached)

    async def run(self, clients: int, answer: int, seconds: float, spread_s: float) -> int:
        """The number of requests that ended; the clients' first ones come within ``spread_s``."""
        until, ended = time.monotonic() + seconds, 0
        answered: list[EngineRequest] = []
        replies: list[asyncio.Future[Any]] = []

        def call() -> None:
            if self._ray_calls:
                replies.extend(asyncio.ensure_future(self._calls.generate(request)) for request in answered)
            elif answered:
                replies.extend(self._calls.follow([(request.request_id, request.attempt) for request in answered]))
            answered.clear()

        async def follow() -> None:
            while True:
                await asyncio.sleep(FOLLOW_AFTER_S)
                call()

        async def client(subscriber: str, delay_s: float) -> None:
            nonlocal ended
            await asyncio.sleep(delay_s)
            while time.monotonic() < until:
                self._number += 1
                params = SamplingParams(max_tokens=answer, ignore_eos=True, temperature=0.0)
                request = EngineRequest(f"r{self._number}", self._prompt, params, subscriber=subscriber)
                self._senders[subscriber].send(request)
                end = self._ends[request.request_id] = asyncio.get_running_loop().create_future()
                await end
                answered.append(request)
                ended += 1

        ingresses = itertools.cycle(self._senders)
        following = asyncio.create_task(follow())
        await asyncio.gather(*(client(next(ingresses), spread_s * i / clients) for i in range(clients)))
        following.cancel()
        call()
        assert all(reply.num_tokens == answer for reply in await asyncio.gather(*replies))
        return ended


def _thread_waits(pid: int, thread: int) -> int:
    """How often it gave its core up because it had to wait."""
    status = Path(f"/proc/{pid}/task/{thread}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("voluntary_ctxt")).split()[1])


async def _measure(
    clients: int, answers: list[int], seconds: float, step_ms: float, prompt: int, rounds: int, ray_calls: bool,
    ingresses: int, apart: bool,
) -> None:  # fmt: skip
    config = EngineConfig(
        device="simulated", simulated_step_s=step_ms / 1000, max_num_seqs=clients, max_queued_requests=4096, max_model_len=4096
    )  # fmt: skip
    runner = ray.remote(MeasuredRunner).options(num_cpus=0, max_concurrency=10_000).remote(config, "engine")
    await runner.start.remote()
    _, path = await runner.token_socket.remote()
    calls = RunnerCalls(runner)
    if not ray_calls:
        await calls.open(await runner.call_socket.remote(), print)
    load = Load(calls, ray_calls, prompt)
    loop = asyncio.get_running_loop()
    attached: list[asyncio.Future[int]] = [loop.create_future() for _ in range(ingresses)]
    listening = [loop.create_task(load.listen(path, f"ingress-{i}", future)) for i, future in enumerate(attached)]
    pid = (await asyncio.gather(*attached))[0]
    while (await runner.stats.remote())["num_subscribers"] < ingresses:
        await asyncio.sleep(0.01)
    threads = await runner.threads.remote()
    costs: dict[int, list[tuple[float, float]]] = {answer: [] for answer in answers}
    for _ in range(rounds):
        for answer in answers:
            began, before, own = time.monotonic(), cpu_seconds(pid), time.process_time()
            parts = {
                name: (thread_cpu_seconds(pid, thread), _thread_waits(pid, thread)) for name, thread in threads.items()
            }
            tokens, messages = load.num_tokens, load.num_messages
            ended = await load.run(clients, answer, seconds, answer * step_ms / 1000 if apart else 0.0)
            wall, spent, own = time.monotonic() - began, cpu_seconds(pid) - before, time.process_time() - own
            costs[answer].append((spent / ended, own / ended))
            tokens_per_s, per_token_us = (load.num_tokens - tokens) / wall, 1e6 * spent / ended / answer
            print(
                f"answers of {answer:4d}: {tokens_per_s:8,.0f} tokens/s, runner {1e3 * spent / ended:6.3f} ms a request "
                f"= {per_token_us:5.1f} µs a token, this process {1e3 * own / ended:6.3f} ms, "
                f"{(load.num_messages - messages) / wall:,.0f} messages/s; "
                + ", ".join(
                    f"{name} {1e6 * (thread_cpu_seconds(pid, thread) - parts[name][0]) / ended:.0f} µs and "
                    f"{(_thread_waits(pid, thread) - parts[name][1]) / ended:.1f} waits a request"
                    for name, thread in threads.items()
                ),
                flush=True,
            )
    if len(answers) > 1:
        short, long = min(answers), max(answers)
        by_length = {a: [statistics.median(c) for c in zip(*costs[a], strict=True)] for a in (short, long)}
        token = (by_length[long][0] - by_length[short][0]) / (long - short)
        print(
            f"runner: {1e6 * token:.1f} µs a token and {1e3 * (by_length[short][0] - short * token):.2f} ms a request"
        )
    for task in listening:
        task.cancel()
    calls.close()
    await runner.shutdown.remote()
    ray.kill(runner)


def main(
    clients: int = 64,
    answers: Annotated[str, typer.Option(help="Lengths, separated by commas.")] = "16,256",
    seconds: float = 4.0,
    step_ms: float = 2.0,
    prompt: int = 256,
    rounds: int = 3,
    ray_calls: Annotated[
        bool, typer.Option(help="Calls go through Ray, as those do that do not fit into a frame.")
    ] = False,
    ingresses: int = 1,
    apart: Annotated[
        bool, typer.Option(help="Requests begin one by one, step by step, and not all of them in one.")
    ] = False,
) -> None:
    """Start Ray and a runner, and measure."""
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    try:
        asyncio.run(
            _measure(
                clients,
                [int(a) for a in answers.split(",")],
                seconds,
                step_ms,
                prompt,
                rounds,
                ray_calls,
                ingresses,
                apart,
            )
        )
    finally:
        ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
