"""What a routing policy sees of a request and of the engines, and which of these come into question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.routing.fingerprint import can_continue


@dataclass(frozen=True, slots=True)
class RequestView:
    """A request on its way to an engine.

    Attributes:
        fingerprint: of the engine that began its answer; empty if it has no token yet.
    """

    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class EngineCandidate:
    """An engine that the router knows.

    Attributes:
        engine_id: unique among them.
        fingerprint: engines with the same one continue each other's answers.
        is_avoided: this ingress knows it to be dead, hung, leaving or slow; another one is to be preferred.
        is_open: no request that waits for longer is overtaken there; for requests that others wait behind, always so.
        is_near: Serve's preference for nodes and zones allows it in this round.
        token_weight: of the requests that run or wait there, prompts and answers so far: as it announced last, and of those that
            this ingress has sent since.
    """

    engine_id: str
    fingerprint: str = ""
    is_avoided: bool = False
    is_open: bool = True
    is_near: bool = True
    token_weight: float = 0.0


def candidates(request: RequestView, engines: Sequence[EngineCandidate]) -> list[EngineCandidate]:
    """The engines that come into question; empty only if there is none at all.

    An answer that has begun goes to engines with its fingerprint, to others only where there is none. Of these an avoided one
    comes into question only where all are: it is still better than one that cannot continue the answer. Of what
    is left those that are open, if any is.
    """
    wanted = request.fingerprint
    able = [engine for engine in engines if wanted and can_continue(engine.fingerprint, wanted)]
    able = able or [engine for engine in engines if engine.is_near] or list(engines)
    able = [engine for engine in able if not engine.is_avoided] or able
    return [engine for engine in able if engine.is_open] or able
