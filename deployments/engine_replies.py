"""What an engine replica answers to the ingress besides the engine's own replies; values, because a raised error costs a
traceback in the log and loses its type on the way through two processes."""

from __future__ import annotations

from typing import NamedTuple

from cluster.errors import BiremeError


class RequestRefused(NamedTuple):
    """The engine will not run this request."""

    error: BiremeError


class EngineLost(NamedTuple):
    """The runner under the replica is gone or will not finish the request; another attempt may succeed."""

    engine_id: str
    message: str


class FingerprintMismatch(NamedTuple):
    """The request has tokens made by an engine with another fingerprint; nothing was submitted."""

    engine_id: str
    fingerprint: str
