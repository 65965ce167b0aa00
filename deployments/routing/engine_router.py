"""Serve's router for engines: the less busy of two, but not one that this ingress knows to be dead, hung or leaving.

Serve's own router learns that a replica is gone from a call that failed, and of a hung one nothing until its health check; both
look idle and would draw the requests that have just lost their engine.
"""

from __future__ import annotations

import asyncio
import random
import weakref

from ray.serve._private.request_router.common import ReplicaQueueLengthCache
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter

# Serve copies this module's classes, globals included, into the processes that route; another module is imported there.
from deployments.routing import engine_choices as shared

# What Serve has for a default: who hangs is known otherwise here, so that engines need not be asked for every request.
_QUEUE_LENGTHS_REMEMBERED_S = 10.0


class EngineRouter(PowerOfTwoChoicesRequestRouter):
    """Power of two choices among the engines that are not avoided; among all of them where there is no other."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # A shorter time may be set for proxies, by a variable that counts for all routers of the cluster.
        self._replica_queue_len_cache = ReplicaQueueLengthCache(
            staleness_timeout_s=_QUEUE_LENGTHS_REMEMBERED_S, get_curr_time_s=kwargs.get("get_curr_time_s")
        )
        self._routed_by: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # routing task -> pending request

    async def choose_replicas(self, candidate_replicas, pending_request=None):
        """As the base class; Serve asks the two for their queue lengths and takes the shorter."""
        self._routed_by[asyncio.current_task()] = pending_request
        ids = self._with_fingerprint(pending_request) or list(
            self.apply_locality_routing(pending_request=pending_request)
        )
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # else Serve asks again without a pause
        replicas = [self._replicas[i] for i in ids if i in self._replicas]
        well = [r for r in replicas if not shared.engine_choices.is_avoided(self._engine_id(r))] or replicas
        return [random.sample(well, min(2, len(well)))] if well else []

    def _fulfill_next_pending_request(self, replica, request_metadata=None):
        """Give the replica to the request that it was chosen for; the base class gives it to the one that waits longest,
        for which it may have the wrong fingerprint."""
        pending_request = self._routed_by.get(asyncio.current_task())
        if pending_request is None:
            super()._fulfill_next_pending_request(replica, request_metadata)
        elif not pending_request.future.done():
            self._record_queue_wait_time(pending_request)
            pending_request.future.set_result(replica)
            self._remove_pending_request_from_indices(pending_request)

    def update_replicas(self, replicas):
        """As the base class; the ingress hears of new engines before the first request goes there."""
        super().update_replicas(replicas)
        self._tell()

    def on_replica_actor_died(self, replica_id):
        """As the base class; the ingress is told too."""
        super().on_replica_actor_died(replica_id)
        self._tell()

    def _tell(self) -> None:
        metadata = [replica.replica_metadata for replica in self._replicas.values()]
        shared.engine_choices.set_engines({m["engine_id"]: m["fingerprint"] for m in metadata if "engine_id" in m})

    async def _choose_replica_for_request(self, pending_request, *, is_retry=False):
        replica = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        request_id = getattr(pending_request.args[0], "request_id", None) if pending_request.args else None
        if request_id is not None:
            shared.engine_choices.chose(request_id, self._engine_id(replica))
        return replica

    def _with_fingerprint(self, pending_request) -> list:
        """Of a request that has begun, the engines that may continue it: ``generate`` has their fingerprint as its second
        argument. Others are asked only where there is none."""
        if pending_request is None or len(pending_request.args) < 2 or not pending_request.args[1]:
            return []
        wanted = pending_request.args[1]
        return [i for i, replica in self._replicas.items() if replica.replica_metadata.get("fingerprint") == wanted]

    @staticmethod
    def _engine_id(replica) -> str:
        return replica.replica_metadata.get("engine_id", "")
