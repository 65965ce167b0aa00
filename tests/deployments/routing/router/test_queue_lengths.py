"""How long Serve thinks an engine's queue is never decides which engine a request goes to.

What it remembers is what a replica said when it took its last call, and calls sent and ended since. A call that is for several
requests is taken off as one when it ends, though what was said meanwhile counts all of them: until the replica says it again, or
ten seconds have passed, the number is too large.
"""

from __future__ import annotations

import pytest

from deployments.routing.router.engine_router import EngineRouter
from tests.deployments.routing.router.test_engine_router import Replica, pending_request, routed, router_to
from tests.waiting import until


class AskedReplica(Replica):
    """Counts how often Serve asks for the length of its queue."""

    def __init__(self, engine_id: str) -> None:
        super().__init__(engine_id)
        self.times_asked = 0

    async def get_queue_len(self, *, deadline_s: float) -> int:
        self.times_asked += 1
        return await super().get_queue_len(deadline_s=deadline_s)


def remembered(router: EngineRouter, replica: Replica) -> int | None:
    return router.replica_queue_len_cache.get(replica.replica_id)


async def test_a_call_of_several_that_has_ended_is_remembered_until_the_replica_takes_another():
    replica = Replica("e1")
    router, _ = router_to(replica)
    router.on_send_request(replica.replica_id)
    router.on_new_queue_len_info(
        replica.replica_id, 1
    )  # as Serve says it, before the call's eight requests are counted
    router.on_send_request(replica.replica_id)
    router.on_new_queue_len_info(replica.replica_id, 9)
    for _ in range(2):
        router.decrement_queue_len_cache(replica.replica_id)
    assert remembered(router, replica) == 7, "Serve has changed: nothing is left"
    router.on_send_request(replica.replica_id)
    router.on_new_queue_len_info(replica.replica_id, 1)
    router.decrement_queue_len_cache(replica.replica_id)
    assert remembered(router, replica) == 0


@pytest.mark.parametrize(("length", "times_asked"), [(0, 0), (7, 0), (99, 0), (100, 1), (5000, 1)])
async def test_a_length_that_is_too_large_costs_at_most_one_question(length, times_asked):
    best, other = AskedReplica("e1"), AskedReplica("e2")
    router, choices = router_to(best, other, policy="least_tokens")
    await until(lambda: best.times_asked == other.times_asked == 1, 5)  # as Serve does with new ones
    choices.open("before")
    choices.chose(pending_request("before", num_tokens=900).args[0], "e2")
    router.on_new_queue_len_info(best.replica_id, length)
    router.on_new_queue_len_info(other.replica_id, 0)
    assert await routed(router, pending_request("r")) == "e1"
    assert (best.times_asked, other.times_asked) == (1 + times_asked, 1)
    assert remembered(router, best) == (0 if times_asked else length)
