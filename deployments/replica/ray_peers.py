"""Engines of this application on other nodes, asked for a model's files through calls on their runner actors.

Whoever may call an actor belongs to the cluster: Ray asks for its token where that is on. No port and no key is added.
"""

from __future__ import annotations

import contextlib
import random
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.model_files.peers.find_model import find_model
from actors.model_files.peers.replies import Description, Peer, PeerError, Peers, State
from actors.model_files.source import ModelSource
from cluster.config import EngineConfig

# A peer that is well answers at once; a chunk takes a slow network a few seconds.
_DESCRIBE_TIMEOUT_S = 5.0
_CHUNK_TIMEOUT_S = 20.0
# Of many engines so many are asked in a round.
_MAX_ASKED = 16


class RayPeer:
    """One engine's runner. A call that is late counts as lost: its sender is gone or hangs."""

    def __init__(self, engine_id: str, node: str, runner: Any) -> None:
        self.engine_id = engine_id
        self.node = node
        self._runner = runner

    def describe(self, settings: tuple[str, ...]) -> Description:
        """What it offers."""
        return Description(*_answer(self._runner.describe_model_files.remote(settings), _DESCRIBE_TIMEOUT_S))

    def read(self, receiver: str, identity: str, file: int, chunk: int) -> np.ndarray | State:
        """A chunk."""
        return _answer(self._runner.read_model_file.remote(receiver, identity, file, chunk), _CHUNK_TIMEOUT_S)

    def finished(self, receiver: str) -> None:
        """Its place is free for others."""
        self._runner.finished_model_files.remote(receiver)


class RayPeers:
    """Finds runners by the names of their actors.

    Args:
        names: what the names of the application's runners begin with; the engine's id follows.
        own_engine_id: of who asks, if it is an engine.
    """

    def __init__(self, names: str, own_engine_id: str = "") -> None:
        self._names = names
        self._own = own_engine_id

    def find(self) -> list[Peer] | None:
        """Runners on other nodes, in random order, so that many receivers do not all ask the same one first; None where this is
        the only node."""
        try:
            return self._find()
        except RayError as error:
            raise PeerError(f"Ray's directory does not answer: {type(error).__name__}") from None

    def _find(self) -> list[Peer] | None:
        own_node = ray.get_runtime_context().get_node_id()
        if sum(node["Alive"] for node in ray.nodes()) < 2:
            return None
        named = [
            actor
            for actor in ray.util.list_named_actors(all_namespaces=True)
            if actor["name"].startswith(self._names) and actor["name"] != self._names + self._own
        ]
        asked: dict[Any, tuple[str, Any]] = {}
        for actor in random.sample(named, min(len(named), _MAX_ASKED)):
            with contextlib.suppress(ValueError):  # it ended in between
                runner = ray.get_actor(actor["name"], actor["namespace"])
                asked[runner.node_id.remote()] = actor["name"].removeprefix(self._names), runner
        if not asked:
            return []
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_DESCRIBE_TIMEOUT_S, fetch_local=False)
        found: list[Peer] = []
        for call in answered:
            with contextlib.suppress(PeerError):
                node = _answer(call, _DESCRIBE_TIMEOUT_S)
                if node != own_node:
                    found.append(RayPeer(asked[call][0], node[:12], asked[call][1]))
        random.shuffle(found)
        return found


def find_beside_an_event_loop(config: EngineConfig, peers: Peers) -> ModelSource:
    """The model's files, for a caller whose thread has a running event loop, in which Ray must not wait."""
    found: Future[ModelSource] = Future()

    def look() -> None:
        try:
            found.set_result(find_model(config, peers).source)
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=look, name="find-model", daemon=True).start()
    return found.result()


def _answer(call: Any, timeout_s: float) -> Any:
    try:
        return ray.get(call, timeout=timeout_s)
    except GetTimeoutError:
        raise PeerError(f"no answer within {timeout_s:.0f} s") from None
    except RayError as error:
        raise PeerError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from None
