"""What a peer answers, and what a receiver needs of one."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, Protocol

import numpy as np


class State(str, Enum):
    """Why there is a chunk or a manifest, or none."""

    STARTING = "starting"  # does not know yet whether it has the files
    SEARCHING = "searching"  # has none, and asks others
    HASHING = "hashing"
    OFFERED = "offered"
    BUSY = "busy"  # sends to as many as it may
    OTHER_MODEL = "other model"  # or files that have changed, or that cannot be offered


class Description(NamedTuple):
    """A peer's state, its manifest where it is OFFERED, and the bytes it has hashed so far."""

    state: State
    manifest: str = ""
    num_hashed: int = 0


class PeerError(Exception):
    """The peer is gone, hangs, or sent what it did not promise."""


class Peer(Protocol):
    """An engine on a node that may have the files. Calls end within seconds; all raise PeerError."""

    engine_id: str
    node: str

    def describe(self, settings: tuple[str, ...]) -> Description: ...

    def read(self, receiver: str, identity: str, file: int, chunk: int) -> np.ndarray | State: ...

    def finished(self, receiver: str) -> None: ...


class Peers(Protocol):
    """Finds them."""

    def find(self) -> list[Peer] | None:
        """Those that are there now, in the order in which to ask; None where there is no other node. Raises PeerError."""
