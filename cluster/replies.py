"""What a replica answers to an ingress besides the engine's own replies (``cluster.outputs``): values, because a raised error
costs a traceback in the log and loses its type on the way through two processes."""

from __future__ import annotations

from typing import NamedTuple

from cluster.errors import BiremeError


class RequestRefused(NamedTuple):
    """The engine will not run this request."""

    error: BiremeError


class EngineLost(NamedTuple):
    """The runner under the replica is gone or will not finish the request; another attempt may succeed.

    ``died`` says that the engine went down, by a crash or a hang, rather than that this request could not go on there.
    """

    engine_id: str
    message: str
    died: bool = False


class HandedOver(NamedTuple):
    """The engine leaves on purpose; the request goes on elsewhere at once, and nobody failed."""

    engine_id: str


class Moved(NamedTuple):
    """The request waited in an engine that is full; another one keeps a place for it."""

    engine_id: str


class NotTaken(NamedTuple):
    """The ingress's own verdict: the engine did not say in time that it has the request, and there are others."""

    engine_id: str
    message: str = "the engine did not take the request in time"


class FingerprintMismatch(NamedTuple):
    """The request has tokens made by an engine with another fingerprint; nothing was submitted."""

    engine_id: str
    fingerprint: str
