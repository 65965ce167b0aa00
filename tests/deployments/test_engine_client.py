"""Corners of the way between ingress and engine, with a few lines in the engine's place."""

from __future__ import annotations

import asyncio
import time

from cluster.journal import JournalEntry
from cluster.outputs import AttachRequired, GenerateReply
from cluster.sampling_params import SamplingParams
from deployments.api_errors import ApiError
from deployments.engine_client import EngineClient


class DyingEngine:
    """Handle, replica and runner in one: it answers the call and is gone before its token stream was opened."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __getattr__(self, name: str) -> DyingEngine:
        return self

    def remote(self, *arguments) -> asyncio.Future:
        if not arguments:  # where is the token socket?
            return asyncio.ensure_future(self._gone())
        self.num_calls += 1
        reply = AttachRequired("e", self, "f") if self.num_calls == 1 else GenerateReply(1, "length", "e")
        return asyncio.ensure_future(asyncio.sleep(0, reply))

    async def _gone(self) -> None:
        raise OSError("no such socket")


def entry(**fields) -> JournalEntry:
    return JournalEntry("r", [1], SamplingParams(max_tokens=1), **fields)


async def test_a_reply_whose_token_stream_never_opened_is_another_attempt_at_once():
    engine, failed = DyingEngine(), asyncio.get_running_loop().create_future()
    client = EngineClient(engine, max_attempts=2)
    started = time.monotonic()
    client.submit(entry(), deliver=lambda delta: None, fail=failed.set_result)
    error = await asyncio.wait_for(failed, 20)
    await client.close()
    assert isinstance(error, ApiError)
    assert (error.status, error.code) == (503, "engine_dead")
    # The first attempt waits for the stream's own attempts to open, the second finds it gone.
    assert time.monotonic() - started < 5
    assert client.events.counts["bireme_request_attempts"] == 2
