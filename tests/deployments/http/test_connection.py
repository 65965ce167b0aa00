"""Work for a client ends when it leaves, and only then is that said; who cancels for another reason is heard."""

from __future__ import annotations

import asyncio

import pytest

from deployments.http.connection import ClientGoneError, while_connected


class Client:
    """One that sends a body and goes when it is told to."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()
        self._has_sent = False

    async def receive(self) -> dict:
        if not self._has_sent:
            self._has_sent = True
            return {"type": "http.request", "body": b"{}"}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def leave(self) -> None:
        self._gone.set()


class Work:
    """Attributes:
    ended: how it ended.
    """

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.ended = ""

    async def run(self) -> int:
        try:
            await self.done.wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        self.ended = "done"
        return 5


async def test_what_is_done_in_time_is_returned_and_nothing_waits_for_the_client_any_more():
    client, work = Client(), Work()
    asyncio.get_running_loop().call_later(0.01, work.done.set)
    assert await while_connected(client.receive, work.run()) == 5
    client.leave()
    await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) == 1
    assert await while_connected(client.receive, asyncio.sleep(0, 7)) == 7


async def test_a_client_that_leaves_ends_the_work_and_nothing_else():
    client, work = Client(), Work()
    asyncio.get_running_loop().call_later(0.01, client.leave)
    with pytest.raises(ClientGoneError):
        await while_connected(client.receive, work.run())
    assert work.ended == "cancelled"
    task = asyncio.current_task()
    assert getattr(task, "cancelling", int)() == 0 and len(asyncio.all_tasks()) == 1
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("passes", range(5))
async def test_work_that_ends_when_the_client_leaves_has_one_end(passes):
    client, work = Client(), Work()
    task = asyncio.create_task(while_connected(client.receive, work.run()))
    await asyncio.sleep(0.01)
    client.leave()
    for _ in range(passes):
        await asyncio.sleep(0)
    work.done.set()
    (ended,) = await asyncio.gather(task, return_exceptions=True)
    assert (ended == 5 and work.ended == "done") or (isinstance(ended, ClientGoneError) and work.ended == "cancelled")


@pytest.mark.parametrize("passes", [None, 0, 1, 2, 3])
async def test_who_cancels_for_another_reason_is_heard(passes):
    client, work = Client(), Work()
    task = asyncio.create_task(while_connected(client.receive, work.run()))
    await asyncio.sleep(0.01)
    if passes is not None:  # the client leaves, too
        client.leave()
        for _ in range(passes):
            await asyncio.sleep(0)
        if task.done() or not hasattr(task, "cancelling"):
            return
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled() and work.ended == "cancelled"


async def test_an_error_of_the_work_is_its_own():
    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there"):
        await while_connected(Client().receive, fail())
