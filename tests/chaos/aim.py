"""Signals that a runner sends to itself at the very moment at which its engine is in a phase.

``arm`` and ``disarm`` run inside the runner (Ray's ``__ray_call__``), so that no time passes between what is seen and the signal.
"""

from __future__ import annotations

import os
from typing import Any

# Where each phase shows: attribute of the engine, method, and whether the signal comes after the call.
_PLACES = {
    "queued": ("", "add_request", True),
    "prefill": ("runner", "execute_model_overlap", False),
    "decode": ("runner", "execute_model_overlap", False),
    "saving": ("scheduler", "update", False),
    "handover": ("", "abort", True),
}
# A process has one aim at a time: (owner, method name).
_armed: list[tuple[Any, str]] = []


def arm(actor: Any, phase: str, number: int) -> None:
    """Send signal ``number`` to this process when the engine is in ``phase``; a hand-over is begun for its phase."""
    disarm(actor)
    engine = actor._engine_loop._engine
    part, method, after = _PLACES[phase]
    owner = getattr(engine, part) if part else engine
    call = getattr(owner, method)

    def aimed(*args: Any, **options: Any) -> Any:
        if phase in ("prefill", "decode"):
            plan = args[0]
            if plan is None or plan.has_prefill != (phase == "prefill"):
                return call(*args, **options)
        result = call(*args, **options) if after else None
        disarm(actor)
        os.kill(os.getpid(), number)
        return result if after else call(*args, **options)

    setattr(owner, method, aimed)
    _armed.append((owner, method))
    if phase == "handover":
        actor._loop.create_task(_hand_over(actor, number))


async def _hand_over(actor: Any, number: int) -> None:
    """A drained engine has to go, also if there was nothing to hand over."""
    await actor.drain(0.0)
    if _armed:
        disarm(actor)
        os.kill(os.getpid(), number)


def disarm(actor: Any) -> None:
    """Take the aim back."""
    while _armed:
        owner, method = _armed.pop()
        delattr(owner, method)
