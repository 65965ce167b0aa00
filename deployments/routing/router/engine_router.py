"""Serve's router for engines: asks the routing policy, with what this ingress knows of engines that are dead, hung or leaving.

Serve's own router learns that a replica is gone from a call that failed, and of a hung one nothing until its health check; both
look idle and would draw the requests that have just lost their engine.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from cluster.outputs import ServedModel
from cluster.request import EngineRequest, Followed
from cluster.routing.candidates import EngineCandidate, RequestView
from cluster.routing.policies import POLICIES, choose
from cluster.scaling.ingresses import EngineHost

# Serve copies this module's classes, globals included, into the processes that route; other modules are imported there, and
# what such a process has only one of is in them.
from deployments.metrics import routing_errors
from deployments.ray_private.serve import PinnedRouter
from deployments.routing.router import engine_choices


class EngineRouter(PinnedRouter):
    """Routes ``generate(request, fingerprint, ...)`` by a policy of ``cluster.routing.policies``; other calls, which have no
    request, likewise.

    The setting ``routing_policy`` names the policy: ``power_of_two``, of two engines at random the one whose requests have fewer
    tokens; or ``least_tokens``, of all the one with the fewest. Both pass over engines that are
    avoided, as long as there are others, and send an answer that has begun to engines with its fingerprint. A policy that fails
    is counted in ``bireme_routing_errors``, and the power of two decides.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._choices = engine_choices.choices_of(*self.deployment)
        self._rng = random.Random()
        self.initialize_state()
        self._choices.first_choice = self.first_choice

    def initialize_state(self, policy: str = "power_of_two") -> None:
        """Called by Serve with ``request_router_kwargs``.

        Raises:
            KeyError: there is no policy of this name.
        """
        self._policy_name, self._policy = policy, POLICIES[policy]

    def ranks(self, call, near):
        """As the policy says."""
        by_id = {self._engine_id(replica): replica for replica in self.known_replicas}
        if call and isinstance(call[0], Followed):
            # Where they are not, they are answered as not begun.
            own = [replica for engine_id, replica in by_id.items() if engine_id == call[0].engine_id]
            return [own, list(by_id.values())] if own else [list(by_id.values())]
        request = _request(call)
        has_it = request is not None and self._choices.is_pinned(request.request_id)
        # What an engine has already overtakes nobody on the way of its call.
        open_to = None if has_it else self._open_to(request)
        views = [self._view(engine_id, replica, near, open_to) for engine_id, replica in by_id.items()]
        wanted = RequestView("" if request is None else call[1])
        order = [view.engine_id for view in choose(self._policy, wanted, views, self._rng, self.ranks_failed)]
        place = self._choices.place(request.request_id) if request is not None else ""
        if place in by_id and (has_it or not self._choices.is_avoided(place)):
            order.insert(0, place)
        if request is not None and order:
            # Counted now: others are routed while Serve asks the engine how busy it is.
            self._choices.sends(request, order[0])
        return [[by_id[engine_id]] for engine_id in order]

    def first_choice(self, request: EngineRequest) -> str:
        """The engine that the policy likes best. Empty if there is none, or the choice fails."""
        known = self.known_replicas
        if len(known) == 1:
            # Whatever the policy; to have it say so takes a seventh of a millisecond.
            engine_id = self._engine_id(known[0])
            self._choices.sends(request, engine_id)
            return engine_id
        try:
            near, open_to = self.near, self._open_to(request)
            views = [self._view(self._engine_id(replica), replica, near, open_to) for replica in known]
            order = choose(self._policy, RequestView(""), views, self._rng, self.ranks_failed)
        except Exception as error:
            self.ranks_failed(error)
            return ""
        if not order:
            return ""
        self._choices.sends(request, order[0].engine_id)
        return order[0].engine_id

    def meant_for(self, call):
        """The replica of the engine that has the request already, or has those that a call follows."""
        engine_id = call[0].engine_id if call and isinstance(call[0], Followed) else ""
        request = _request(call)
        if request is not None and self._choices.is_pinned(request.request_id):
            engine_id = self._choices.place(request.request_id)
        known = self.known_replicas if engine_id else ()
        return next((replica for replica in known if self._engine_id(replica) == engine_id), None)

    def ranks_failed(self, error):
        """Count it."""
        routing_errors.count(self._policy_name, error)

    def chose(self, call, replica):
        """The ingress waits for that engine from now on."""
        request = _request(call)
        if request is not None:
            self._choices.chose(request, self._engine_id(replica))

    def replicas_changed(self):
        """The ingress hears of new engines before the first request goes there."""
        known = self.known_replicas
        metadata = [replica.replica_metadata for replica in known]
        self._choices.set_engines({m["engine_id"]: m["fingerprint"] for m in metadata if "engine_id" in m})
        self._choices.model = next(filter(None, map(ServedModel.of, metadata)), self._choices.model)
        hosts = (EngineHost.of(replica.replica_metadata, replica.node_id or "") for replica in known)
        self._choices.hosts = [host for host in hosts if host is not None]

    def _open_to(self, request: EngineRequest | None) -> frozenset[str] | None:
        return None if request is None else self._choices.open_to(request)

    def _view(self, engine_id: str, replica, near, open_to: frozenset[str] | None) -> EngineCandidate:
        return EngineCandidate(
            engine_id,
            fingerprint=replica.replica_metadata.get("fingerprint", ""),
            is_avoided=self._choices.is_avoided(engine_id),
            is_open=open_to is None or engine_id in open_to,
            is_near=replica.replica_id in near,
            token_weight=self._choices.token_weight(engine_id),
        )

    @staticmethod
    def _engine_id(replica) -> str:
        # A replica says its metadata once it has started.
        return replica.replica_metadata.get("engine_id") or replica.replica_id.unique_id


def _request(call: Sequence[Any]) -> EngineRequest | None:
    """What ``generate`` is called with; other calls have none."""
    return call[0] if len(call) > 1 and isinstance(call[0], EngineRequest) else None
