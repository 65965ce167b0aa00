"""Signals that a runner sends to itself, or to its replica, at the very moment at which its engine is in a phase.

``arm`` and ``disarm`` run inside the runner (Ray's ``__ray_call__``), so that no time passes between what is seen and the signal.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

# Where each phase shows: attribute of the engine, or with a dot before it of what serves it; method, and whether the signal comes
# after the call.
_PLACES = {
    "ahead": (".requests", "begin", True),
    "queued": ("", "add_request", True),
    "prefill": ("executor", "execute_model_overlap", False),
    "decode": ("executor", "execute_model_overlap", False),
    "saving": ("scheduler", "update", False),
    "handover": ("", "abort", True),
    "reserve": ("scheduler", "reserve", True),
    "move": ("", "requests_to_move", False),
}
# A drained engine takes nothing any more: one that was only stopped meanwhile ends when the longest stop is over.
_LEAVES_AFTER_S = 7.0
# A process has one aim at a time: (owner, method name).
_armed: list[tuple[Any, str]] = []


def pid_of(actor: Any, target: str) -> int:
    """Process id of the runner itself, or of the "engine", its replica."""
    return actor._replica.pid if target == "engine" else os.getpid()


def arm(actor: Any, phase: str, number: int, pid: int, once: str = "") -> None:
    """Send signal ``number`` to process ``pid`` when the engine is in ``phase``; a hand-over is begun for its phase.

    Of several runners that are given the same path ``once``, the first makes the file there and sends its signal, and no other.
    """
    disarm(actor)
    engine = actor.serving.engine
    part, method, after = _PLACES[phase]
    owner = getattr(actor.serving, part[1:]) if part.startswith(".") else getattr(engine, part) if part else engine
    call = getattr(owner, method)

    def aimed(*args: Any, **options: Any) -> Any:
        if phase in ("prefill", "decode"):
            plan = args[0]
            if plan is None or plan.has_prefill != (phase == "prefill"):
                return call(*args, **options)
        result = call(*args, **options) if after else None
        disarm(actor)
        if not once or _is_first(once):
            os.kill(pid, number)
        return result if after else call(*args, **options)

    setattr(owner, method, aimed)
    _armed.append((owner, method))
    if phase == "handover":
        asyncio.get_running_loop().create_task(_hand_over(actor, number, pid))


def _is_first(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def arm_start(stage: str, actor: Any) -> int:
    """Kill this runner, whose engine starts, when the stage has ended; its process id, or 0 if that stage is over."""
    stages = actor.starting.stages
    if stage in stages._ends:
        return 0
    end = stages.end

    def aimed(ended: str, now: float) -> None:
        end(ended, now)
        if ended == stage:
            os.kill(os.getpid(), signal.SIGKILL)

    stages.end = aimed
    return os.getpid()


def arm_ingress(number: int, replica: Any) -> int:
    """Send signal ``number`` to this ingress when an engine has promised it places for requests that it is about to move."""
    balancer = _balancer_of(replica)
    if balancer is not None:
        answer = balancer._answer

        async def aimed(call: Any, otherwise: Any) -> Any:
            found = await answer(call, otherwise)
            if isinstance(found, tuple) and found[0]:
                disarm_ingress(replica)
                os.kill(os.getpid(), number)
            return found

        balancer._answer = aimed
    return os.getpid()


def disarm_ingress(replica: Any) -> None:
    """Take that aim back."""
    balancer = _balancer_of(replica)
    if balancer is not None:
        vars(balancer).pop("_answer", None)


def _balancer_of(replica: Any) -> Any:
    ingress = replica._replica_impl._user_callable_wrapper._callable
    client = None if ingress is None else ingress._client
    return None if client is None else client._balancer


async def _hand_over(actor: Any, number: int, pid: int) -> None:
    """A drained engine has to go, also if there was nothing to hand over."""
    await actor.drain(0.0)
    if _armed:
        disarm(actor)
        os.kill(pid, number)
    await asyncio.sleep(_LEAVES_AFTER_S)
    os.kill(os.getpid(), signal.SIGKILL)


def disarm(actor: Any) -> None:
    """Take the aim back."""
    while _armed:
        owner, method = _armed.pop()
        delattr(owner, method)
