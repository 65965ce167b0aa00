"""What a process loads at its start is left out of the garbage collections that Ray asks of all of a node's processes at once.
Serve sees to that in its replicas, the runner itself."""

from __future__ import annotations

import ray

from tests.actor_heap import heap
from tests.deployments.conftest import App


def test_ingress_replica_and_runner_leave_their_modules_out_of_collections(app: App):
    app.client().complete("Hello", max_tokens=2)
    seen = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(("SERVE_REPLICA::default#", "bireme-runner::default::")):
            handle = ray.get_actor(actor["name"], namespace=actor["namespace"])
            seen[actor["name"].rsplit("#" if "#" in actor["name"] else "::", 1)[0]] = ray.get(
                handle.__ray_call__.remote(heap), timeout=30
            )
    assert set(seen) == {
        "SERVE_REPLICA::default#OpenAiIngress",
        "SERVE_REPLICA::default#LLMServer",
        "bireme-runner::default",
    }
    for name, (frozen, walked) in seen.items():
        assert frozen > 50_000, name
        assert walked < frozen / 5, (name, frozen, walked)
