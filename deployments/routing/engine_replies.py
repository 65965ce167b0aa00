"""What an engine replica answers to the ingress besides the engine's own replies; values, because a raised error costs a
traceback in the log and loses its type on the way through two processes. And what each of them means to a client."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from cluster.api_errors import ApiError, from_engine, overloaded, unavailable
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


class NotTaken(NamedTuple):
    """The ingress's own verdict: the engine did not say in time that it has the request, and there are others."""

    engine_id: str
    message: str = "the engine did not take the request in time"


class FingerprintMismatch(NamedTuple):
    """The request has tokens made by an engine with another fingerprint; nothing was submitted."""

    engine_id: str
    fingerprint: str


async def reply_of(call):
    """The reply of a Serve call; every way to lose the replica becomes EngineLost.

    Only Ray knows that a replica died; a call that failed otherwise may have failed on a healthy one.
    """
    try:
        reply = await call
    except BackPressureError as error:
        return overloaded("all engines are busy and the queue is full", error.retry_after_s)
    except DeploymentUnavailableError as error:
        return unavailable(f"no engine could be started: {error}")
    except asyncio.CancelledError:
        return EngineLost("", "the call was cancelled")
    except Exception as error:  # Serve raises what its transport raised: actor death, gRPC status, cancellation
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return EngineLost("", why, died=isinstance(error, ActorDiedError))
    return from_engine(reply.error) if isinstance(reply, RequestRefused) else reply


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
