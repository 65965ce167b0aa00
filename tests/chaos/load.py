"""Clients of all kinds, and what each of them saw."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

import httpx

from cluster.client import AsyncClient
from cluster.client_errors import ApiStatusError, BrokenStreamError, ClientError
from cluster.errors import BiremeError

KINDS = {"resuming": 6, "whole": 1, "slow": 1, "vanishing": 1, "plain": 1}
NUM_REQUESTS = 16
# A fault takes effect within this time.
UNDER_WAY_S = 3.0
# A connection that nobody takes is refused at once; who was waited for longer had the request.
REFUSED_S, MAX_REFUSED_S = 3.0, 60.0
AFTERMATH_S = 30.0  # until the last one to know has learned of a process that is gone
DECODING = 4  # chunks after which an answer is well under way


@dataclass
class Seen:
    """One request as its client saw it.

    Attributes:
        kind: "resuming" and "slow" stream and take broken streams up, "whole" asks for the answer as one, "plain" does not take
            anything up, "vanishing" left.
        times: of each chunk, of ``time.monotonic``; the first is the time of sending.
        ended: when the answer was complete, or its client was told that it will not be.
        is_break: the error is that of a connection, or of a proxy that has lost the server behind it.
        logprobs: token log-probabilities as they came.
        stall_s: the client reads nothing for so long before its next chunk.
    """

    number: int
    kind: str
    times: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    usage: tuple[int, int] | None = None
    error: str | None = None
    is_break: bool = False
    logprobs: list[float] = field(default_factory=list)
    stall_s: float = 0.0
    ended: float = 0.0

    @property
    def answer(self) -> tuple:
        return self.token_ids, self.text, self.finish_reason, self.usage, self.logprobs

    def might_feel(self, moment: float) -> bool:
        """Whether a connection that broke at ``moment``, or in its aftermath, may have been this one's."""
        return moment <= self.ended and moment + AFTERMATH_S >= self.times[0]

    def wait_at(self, moment: float) -> tuple[float, float] | None:
        """Begin and end of the longest wait for a chunk that began before ``moment`` or soon after, when chunks that were under
        way had arrived; what was waited before ``moment`` does not make it longer. None if the request was not running."""
        if not self.times or not self.times[0] <= moment < self.times[-1]:
            return None
        waits = [(a, b) for a, b in zip(self.times, self.times[1:]) if b > moment and a < moment + UNDER_WAY_S]
        return max(waits, key=lambda wait: wait[1] - max(wait[0], moment))


def request_body(number: int, max_tokens: int) -> dict:
    """Greedy and sampled requests, with penalties, log-probabilities, stop strings; the number fixes everything."""
    chance = random.Random(number)
    body: dict = {
        "prompt": f"Story number {number}: " + "word " * chance.randint(1, 60),
        "max_tokens": chance.randint(max_tokens // 3, max_tokens),
        "seed": number,
        "temperature": chance.choice([0.0, 0.8, 1.0]),
        "ignore_eos": True,
        "return_token_ids": True,
    }
    if number % 3 == 0:
        body |= {"frequency_penalty": 0.5, "repetition_penalty": 1.1, "min_tokens": 5}
    if number % 4 == 0:
        body |= {"logprobs": 1}
    if number % 5 == 0:
        body |= {"stop": [" xyzzy", "qqqq"]}
    return body


@dataclass
class Load:
    """Requests from ``num_clients`` clients, one after the other, until it is stopped.

    Attributes:
        seen: all requests that ended.
        refused: connections that nobody answered; the client just asked again.
        running: requests under way by client, and the task of each.
    """

    url: str
    num_clients: int
    max_tokens: int
    seed: int
    seen: list[Seen] = field(default_factory=list)
    refused: int = 0
    stopping: bool = False
    running: dict[int, tuple[Seen, asyncio.Task]] = field(default_factory=dict)
    waiting: dict[str, list[asyncio.Future]] = field(default_factory=dict)

    async def twins(self) -> dict[int, tuple]:
        """The answers without any fault, by number."""
        async with AsyncClient(self.url, timeout=120) as client:

            async def twin(number: int) -> Seen:
                seen = Seen(number, "resuming")
                await self.ask(client, seen, random.Random(0))
                assert seen.error is None, seen.error
                return seen

            found = {}
            for first in range(0, NUM_REQUESTS, 4):
                for seen in await asyncio.gather(*map(twin, range(first, first + 4))):
                    found[seen.number] = seen.answer
        return found

    async def run(self) -> None:
        await asyncio.gather(*(self._client(random.Random(self.seed * 1000 + i), i) for i in range(self.num_clients)))

    async def run_for(self, seconds: float) -> None:
        """As ``run``, and nothing of it is kept: fills pools and caches."""
        running = asyncio.create_task(self.run())
        await asyncio.sleep(seconds)
        self.stopping = True
        await running
        self.stopping = False
        self.seen.clear()

    async def next(self, phase: str) -> None:
        """Wait until a client has "sent" a request or is in the middle of an answer ("decode"); "any" does not wait."""
        if phase != "any":
            future = asyncio.get_running_loop().create_future()
            self.waiting.setdefault(phase, []).append(future)
            await future

    def _reached(self, phase: str) -> None:
        for future in self.waiting.pop(phase, []):
            if not future.done():
                future.set_result(None)

    def vanish(self, count: int, choice: float) -> bool:
        """That many clients leave where they are; False if there were none."""
        chosen = self._some(count, choice)
        for seen, task in chosen:
            seen.kind = "vanishing"
            task.cancel()
        return bool(chosen)

    def stall(self, count: int, seconds: float, choice: float) -> bool:
        """That many clients stop reading for a while; False if there were none."""
        chosen = [seen for seen, _ in self._some(count, choice) if seen.kind in ("resuming", "slow")]
        for seen in chosen:
            seen.kind, seen.stall_s = "slow", seconds
        return bool(chosen)

    def _some(self, count: int, choice: float) -> list[tuple[Seen, asyncio.Task]]:
        """Any of those that run, not the ones that have run for longest: what hangs must not be let go."""
        running = list(self.running.values())
        return random.Random(choice).sample(running, min(count, len(running)))

    async def _client(self, chance: random.Random, index: int) -> None:
        # Each begins at another address, if there are several.
        urls = self.url.split(",")
        urls = urls[index % len(urls) :] + urls[: index % len(urls)]
        while not self.stopping:
            kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
            seen = Seen(chance.randrange(NUM_REQUESTS), kind)
            async with AsyncClient(urls, timeout=60, max_resumes=0 if kind == "plain" else 30) as client:
                task = asyncio.create_task(self.ask(client, seen, chance))
                self.running[index] = seen, task
                # Waited for like this, a client that vanishes ends its task, and the end of the test ends the client.
                await asyncio.wait((task,))
                if not task.cancelled():
                    task.result()
                del self.running[index]
            seen.ended = time.monotonic()
            self.seen.append(seen)
            await asyncio.sleep(0.02)

    async def ask(self, client: AsyncClient, seen: Seen, chance: random.Random) -> None:
        """Send the request that ``seen`` names and note in it what comes; an error is noted too."""
        body = request_body(seen.number, self.max_tokens)
        leave_after = chance.randint(1, 40) if seen.kind == "vanishing" else 10**9
        first_sent = time.monotonic()
        while True:
            seen.times = [time.monotonic()]
            asyncio.get_running_loop().call_soon(self._reached, "sent")
            try:
                if seen.kind == "whole":
                    self._note(seen, await client.complete(**body))
                else:
                    await self._stream(client, seen, body, leave_after, chance)
                return
            except BiremeError as error:
                nobody_there = isinstance(error, ClientError) and "ConnectError" in repr(error.__cause__)
                at_once = time.monotonic() - seen.times[0] < REFUSED_S
                soon = time.monotonic() - first_sent < MAX_REFUSED_S
                if nobody_there and at_once and soon and not seen.token_ids:
                    self.refused += 1
                    await asyncio.sleep(0.3)
                    continue
                seen.error = f"{type(error).__name__}: {error.message}"
                seen.is_break = _is_break(error)
                return

    async def _stream(
        self, client: AsyncClient, seen: Seen, body: dict, leave_after: int, chance: random.Random
    ) -> None:
        stream = client.stream_complete(**body, stream_options={"include_usage": True})
        async for chunk in stream:
            self._note(seen, chunk)
            if len(seen.times) == DECODING:
                self._reached("decode")
            if len(seen.times) > leave_after:
                await stream.aclose()
                return
            if seen.stall_s:
                await asyncio.sleep(seen.stall_s)
                seen.stall_s = 0.0
            elif seen.kind == "slow" and chance.random() < 0.05:
                await asyncio.sleep(0.2)

    @staticmethod
    def _note(seen: Seen, chunk) -> None:
        seen.times.append(time.monotonic())
        for choice in chunk.choices:
            seen.token_ids += choice.token_ids or []
            seen.text += choice.text
            seen.finish_reason = choice.finish_reason or seen.finish_reason
            seen.logprobs += (choice.logprobs or {}).get("token_logprobs", [])
        if chunk.usage is not None:
            seen.usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)


def _is_break(error: BiremeError) -> bool:
    """An error of the way to the ingress; this API's own errors have a code and are never excused."""
    if isinstance(error, ApiStatusError):
        return error.code == ApiStatusError.code
    return isinstance(error, BrokenStreamError) or isinstance(error.__cause__, httpx.TransportError)
