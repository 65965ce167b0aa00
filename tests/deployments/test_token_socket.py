"""The token socket carries what ``attach`` yields, and notices when either side goes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from ray._private import worker

from cluster.outputs import TokenDelta, TokenLogprobs
from deployments.token_socket import TokenSocket, read_messages
from tests.deployments.conftest import App

ENTRY = TokenLogprobs(-0.5, 1, [7, 8], [-0.5, float("-inf")])
MESSAGES = [
    [TokenDelta("a", 0, 0, [1]), TokenDelta("b", 2, 5, [2, 3], [ENTRY, ENTRY])],
    [TokenDelta("a", 0, 1, [4], None, "stop", [1, 4], 16, [None, ENTRY])],
    [TokenDelta("c", 0, 0, list(range(50_000)))],
]


class Source:
    """Stands where the runner's ``attach`` is: yields the messages, then waits until it is cancelled."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, int]]] = []
        self.detached = asyncio.Event()

    async def attach(self, subscriber: str, resume: dict[str, int]):
        self.calls.append((subscriber, resume))
        try:
            for message in MESSAGES:
                yield message
            if subscriber != "short":
                await asyncio.Event().wait()
        finally:
            self.detached.set()


async def test_messages_arrive_as_they_were_sent():
    source = Source()
    socket = TokenSocket(source.attach)
    await socket.open()
    assert [message async for message in read_messages(socket.path, "short", {"a": 3})] == MESSAGES
    assert source.calls == [("short", {"a": 3})]
    await socket.close()
    assert not os.path.exists(socket.path)


async def test_a_client_that_goes_away_is_detached():
    source = Source()
    socket = TokenSocket(source.attach)
    await socket.open()
    messages = read_messages(socket.path, "long", {})
    assert await anext(messages) == MESSAGES[0]
    await messages.aclose()
    await asyncio.wait_for(source.detached.wait(), 5)
    await socket.close()


async def test_only_this_user_may_connect():
    socket = TokenSocket(Source().attach)
    assert os.stat(os.path.dirname(socket.path)).st_mode & 0o077 == 0
    await socket.close()
    with pytest.raises(OSError, match="No such file"):
        await anext(read_messages(socket.path, "x", {}))


def test_a_runner_keeps_its_socket_in_rays_session(app: App):
    """So that a killed one leaves nothing outside it."""
    sockets = Path(worker._global_node.get_sockets_dir_path())
    inodes = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{app.stats()['pid']}/fd") if entry.is_symlink()}
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    mine = [row[7] for row in rows if len(row) > 7 and f"socket:[{row[6]}]" in inodes]
    assert [Path(path).name for path in mine if path.startswith(str(sockets / "t-"))].count("s") >= 1
    # CUDA's own has a name that is no file.
    assert [path for path in mine if not path.startswith((str(sockets), "@cuda"))] == []
