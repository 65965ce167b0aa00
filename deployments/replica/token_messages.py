"""What travels on a token socket, from an engine to an ingress on its machine, and requests the other way.

Wire: the client sends one frame ``[version, subscriber, resume]``, then a request that is to begin before its call as a frame of
its own, and ``[request id, attempt]`` of one that is to end; the server sends its version, then one frame a message,
``[steps, load]``. A step is ``[plain tokens, deltas]``, all of them arrays. While code is changed on a machine, both sides may be
of different code: neither reads a frame of another version, and the tokens come through Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from cluster.outputs import EngineLoad, PlainTokens, StreamItem, TokenDelta
from cluster.request import EngineRequest
from deployments.replica.frame_version import frame_version

_Request: TypeAlias = EngineRequest | tuple[str, int]
_Step: TypeAlias = tuple[PlainTokens, list[TokenDelta]]
_Message: TypeAlias = tuple[list[_Step], list[EngineLoad]]
VERSION = frame_version(_Request, _Message)
HELLO = msgspec.msgpack.Decoder(tuple[int, str, dict[str, int]])
TOLD_VERSION = msgspec.msgpack.Decoder(int)
REQUEST = msgspec.msgpack.Decoder(_Request)
_MESSAGE = msgspec.msgpack.Decoder(_Message)
_NO_TOKENS = PlainTokens.none()


def to_wire(items: Sequence[StreamItem]) -> _Message:
    """A message as it travels; ``from_wire`` reads it."""
    steps: list[_Step] = []
    loads: list[EngineLoad] = []
    for item in items:
        if isinstance(item, PlainTokens):
            steps.append((item, []))
        elif isinstance(item, EngineLoad):
            loads.append(item)
        else:
            if not steps:
                steps.append((_NO_TOKENS, []))
            steps[-1][1].append(item)
    return steps, loads


def from_wire(frame: bytes) -> list[StreamItem]:
    """The items of a message; msgspec.DecodeError if it is none."""
    steps, loads = _MESSAGE.decode(frame)
    items: list[StreamItem] = []
    for plain, deltas in steps:
        if plain.token_ids:
            items.append(plain)
        items += deltas
    return [*items, *loads]
