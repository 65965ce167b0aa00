"""Token streams are opened as soon as the router knows an engine: the first request that goes there, mostly one that has just
lost its engine, does not wait for that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError

from cluster.outputs import AttachRequired
from cluster.process.silence_clock import TICK_S
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.token_streams import TokenStreams

logger = logging.getLogger("ray.serve")


async def keep_attached(streams: TokenStreams, choices: EngineChoices, find_runner: Callable[[str], Any]) -> None:
    """Attach to every engine that is known and not avoided; runs until it is cancelled.

    Args:
        find_runner: the runner actor of an engine by its id; a blocking call, ValueError if there is none.
    """
    failed: set[str] = set()
    while True:
        await asyncio.sleep(TICK_S)
        failed.intersection_update(choices.engines)
        for engine_id, fingerprint in choices.engines.items():
            if streams.of(engine_id) is not None or choices.is_avoided(engine_id):
                continue
            try:
                runner = await asyncio.to_thread(find_runner, engine_id)
            except (ValueError, RayError):  # it ended in between; the router will hear of it
                continue
            except Exception:  # the other engines still want their streams
                if engine_id not in failed:
                    failed.add(engine_id)
                    logger.exception("no early token stream to engine %s; it is tried again", engine_id)
                continue
            streams.attach(AttachRequired(engine_id, runner, fingerprint))
