"""What the reply of an engine replica means to a client."""

from __future__ import annotations

import asyncio

from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from cluster.api_errors import ApiError, from_engine, overloaded, unavailable
from cluster.replies import EngineLost, FingerprintMismatch, RequestRefused


async def reply_of(call):
    """The reply of a Serve call; every way to lose the replica becomes EngineLost."""
    try:
        return said(await call)
    except (asyncio.CancelledError, Exception) as error:
        return said_by(error)


def said(reply):
    """What the reply of a replica means."""
    return from_engine(reply.error) if isinstance(reply, RequestRefused) else reply


def said_by(error: BaseException) -> ApiError | EngineLost:
    """What it means that a Serve call raised ``error``. Only Ray knows that a replica died; a call that failed otherwise may have
    failed on a healthy one."""
    if isinstance(error, BackPressureError):
        return overloaded("all engines are busy and the queue is full", error.retry_after_s)
    if isinstance(error, DeploymentUnavailableError):
        return unavailable(f"no engine could be started: {error}")
    if isinstance(error, asyncio.CancelledError):
        return EngineLost("", "the call was cancelled")
    # Serve raises what its transport raised: actor death, gRPC status, cancellation.
    why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return EngineLost("", why, died=isinstance(error, ActorDiedError))


def gave_up(fingerprint: str, outcome: EngineLost | FingerprintMismatch, attempts: int) -> ApiError:
    """What the client is told of the last of ``attempts`` outcomes; ``fingerprint`` is of the answer so far."""
    if isinstance(outcome, FingerprintMismatch):
        return unavailable(
            f"the engine that began this answer is gone and no engine with its fingerprint {fingerprint} "
            f"was found in {attempts} attempts; send the request again",
            code="fingerprint_mismatch",
        )
    return unavailable(
        f"no engine completed the request in {attempts} attempts; the last one ended with: {outcome.message}",
        code="engine_dead",
    )
