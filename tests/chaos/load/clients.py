"""Clients of all kinds, and what each of them saw."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
from openai import AsyncOpenAI

from cluster.client import AsyncClient
from cluster.client.api_types import Answer
from cluster.client.errors import ApiStatusError, BrokenStreamError, ClientError
from cluster.errors import BiremeError
from tests.chaos.load.openai_streams import OPENAI, OPENAI_ERRORS, OPENAI_WITH_IDS, is_break, openai_stream
from tests.chaos.load.requests import (
    NUM_REQUESTS,
    calls_tools,
    cut_at,
    ends_with_call,
    has_stops,
    is_chat,
    num_choices,
    reasons,
    request_body,
    stop_string,
)
from tests.chaos.load.seen import Seen, Twin

# The code of a request whose body the way to the ingress lost; nothing was begun.
REQUEST_LOST = "request_lost"
KINDS = {"resuming": 6, "whole": 1, "slow": 1, "vanishing": 1, "plain": 1, OPENAI: 2, OPENAI_WITH_IDS: 2}
# A connection that nobody takes is refused at once; who was waited for longer had the request.
REFUSED_S, MAX_REFUSED_S = 3.0, 60.0
# Undisturbed answers and stop strings of all applications in this process, by the fingerprint of their engines, which is the same
# where the answers are, and by max_tokens.
_known: dict[tuple[str, int], tuple[dict[int, Twin], dict[int, str]]] = {}
DECODING = 4  # chunks after which an answer is well under way


@dataclass
class Load:
    """Requests from ``num_clients`` clients, one after the other, until it is stopped.

    Attributes:
        learning: every third client knows the first address only, and learns the second from its answers.
        seen: all requests that ended.
        refused: connections that nobody answered; the client just asked again.
        running: requests under way by client, and the task of each.
        stops: the stop string that ends a request, by number; known once ``twins`` has found them.
    """

    url: str
    num_clients: int
    max_tokens: int
    seed: int
    learning: bool = False
    seen: list[Seen] = field(default_factory=list)
    refused: int = 0
    stopping: bool = False
    running: dict[int, tuple[Seen, asyncio.Task]] = field(default_factory=dict)
    waiting: dict[str, list[asyncio.Future]] = field(default_factory=dict)
    stops: dict[int, str] = field(default_factory=dict)

    async def twins(self) -> dict[int, Twin]:
        """The answers without any fault, by number, asked for once; the dict is shared."""
        async with AsyncClient(self.url, timeout=120) as client:
            key = (await client.complete("x", max_tokens=1)).fingerprint, self.max_tokens
            if key not in _known:
                found = await self._twins(client)
                _known[key] = found, self.stops
        found, self.stops = _known[key]
        return found

    async def _twins(self, client: AsyncClient) -> dict[int, Twin]:
        """Where a stop string is to end an answer, it is taken from the answer without."""

        async def twin(number: int) -> Seen:
            seen = Seen(number, "resuming")
            await self.ask(client, seen, random.Random(0))
            assert seen.error is None, seen.error
            assert len(seen.choices) == num_choices(number)
            assert all(bool(choice.calls) == calls_tools(number) for choice in seen.choices.values())
            assert all(
                (choice.finish_reason == "tool_calls") == ends_with_call(number) for choice in seen.choices.values()
            )
            assert all(bool(choice.reasoning) == reasons(number) for choice in seen.choices.values())
            return seen

        found = {}
        for first in range(0, NUM_REQUESTS, 4):
            for seen in await asyncio.gather(*map(twin, range(first, first + 4))):
                found[seen.number] = seen.answer
        texts = {number: found[number][0][0].text for number in filter(has_stops, found)}
        self.stops = {number: stop_string(number, text) for number, text in texts.items()}
        for seen in await asyncio.gather(*map(twin, texts)):
            stop, choice = self.stops[seen.number], seen.choices[0]
            included = self.body(seen.number)["include_stop_str_in_output"]
            assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
            assert choice.text == cut_at(texts[seen.number], stop, included)
            found[seen.number] = seen.answer
        return found

    def body(self, number: int) -> dict:
        """The request of that number."""
        return request_body(number, self.max_tokens, self.stops)

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
        able = [seen for seen, _ in list(self.running.values()) if seen.kind in ("resuming", "slow")]
        chosen = random.Random(choice).sample(able, min(count, len(able)))
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
        learns = self.learning and index % 3 == 0
        urls = urls[:1] if learns else urls[index % len(urls) :] + urls[: index % len(urls)]
        async with (
            AsyncClient(urls, timeout=60, max_resumes=30) as patient,
            AsyncClient(urls, timeout=60, max_resumes=0) as plain,
            AsyncOpenAI(base_url=f"{urls[0]}/v1", api_key="unused", timeout=60) as official,
        ):
            clients = {"plain": plain, OPENAI: official, OPENAI_WITH_IDS: official}
            await self._requests(chance, index, {**dict.fromkeys(KINDS, patient), **clients})

    async def _requests(self, chance: random.Random, index: int, clients: dict[str, AsyncClient | AsyncOpenAI]) -> None:
        while not self.stopping:
            kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
            seen = Seen(chance.randrange(NUM_REQUESTS), kind)
            task = asyncio.create_task(self.ask(clients[kind], seen, chance))
            self.running[index] = seen, task
            # Waited for like this, a client that vanishes ends its task, and the end of the test ends the client.
            await asyncio.wait((task,))
            if not task.cancelled():
                task.result()
            del self.running[index]
            seen.ended = time.monotonic()
            self.seen.append(seen)
            await asyncio.sleep(0.02)

    async def ask(self, client: AsyncClient | AsyncOpenAI, seen: Seen, chance: random.Random) -> None:
        """Send the request that ``seen`` names and note in it what comes; an error is noted too."""
        body = self.body(seen.number)
        leave_after = chance.randint(1, 40) if seen.kind == "vanishing" else 10**9
        first_sent = time.monotonic()
        while True:
            seen.times = [time.monotonic()]
            asyncio.get_running_loop().call_soon(self._reached, "sent")
            try:
                if isinstance(client, AsyncOpenAI):
                    chunks = openai_stream(client, seen.number, body, seen.kind)
                    await self._read(chunks, seen, leave_after, chance)
                elif seen.kind == "whole":
                    seen.note(await (client.chat if is_chat(seen.number) else client.complete)(**body))
                else:
                    ask = client.stream_chat if is_chat(seen.number) else client.stream_complete
                    chunks = ask(**body, stream_options={"include_usage": True})
                    await self._read(chunks, seen, leave_after, chance)
                return
            except OPENAI_ERRORS as error:
                seen.error = f"{type(error).__name__}: {error}"
                seen.is_break = is_break(error, {None, REQUEST_LOST})
                return
            except BiremeError as error:
                nobody_there = isinstance(error, ClientError) and "ConnectError" in repr(error.__cause__)
                at_once = time.monotonic() - seen.times[0] < REFUSED_S
                soon = time.monotonic() - first_sent < MAX_REFUSED_S
                if nobody_there and at_once and soon and not seen.choices:
                    self.refused += 1
                    await asyncio.sleep(0.3)
                    continue
                seen.error = f"{type(error).__name__}: {error.message}"
                seen.is_break = _is_break(error)
                return

    async def _read(self, stream: AsyncIterator[Answer], seen: Seen, leave_after: int, chance: random.Random) -> None:
        async for chunk in stream:
            seen.note(chunk)
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


def _is_break(error: BiremeError) -> bool:
    """An error of the way to the ingress; this API's own errors have a code and are never excused, but for the one that says that
    the request did not arrive."""
    if isinstance(error, ApiStatusError):
        return error.code in (ApiStatusError.code, REQUEST_LOST)
    return isinstance(error, BrokenStreamError) or isinstance(error.__cause__, httpx.TransportError)
