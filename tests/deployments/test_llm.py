"""What a new configuration replaces: Serve starts a replica anew when what it is bound with, or its environment, changes."""

from __future__ import annotations

import pytest
from ray import cloudpickle

from cluster.config import LLMConfig
from deployments import llm
from deployments.replica.gpu_placement import ClusterGpus


@pytest.fixture
def bound(monkeypatch):
    """What ingresses and engines of a configuration are bound with and started in."""
    monkeypatch.setattr(llm, "cluster_gpus", lambda: ClusterGpus(0, nodes=1))

    def of(**settings):
        ingress = llm.build_openai_app(LLMConfig(**settings))._bound_deployment
        config, engines, *others = ingress.init_args
        engines = engines._bound_deployment
        return (
            (cloudpickle.dumps((config, others, ingress.ray_actor_options)), ingress.version),
            (cloudpickle.dumps((engines.init_args, engines.ray_actor_options)), engines.version),
        )

    return of


def test_another_number_of_engines_or_ingresses_replaces_none(bound):
    before = bound(deployment_config={"num_replicas": 2}, ingress_config={"num_replicas": 1})
    assert bound(deployment_config={"num_replicas": 3}, ingress_config={"num_replicas": 2}) == before
    scaling = {"min_replicas": 1, "max_replicas": 4}
    ingress, engine = bound(deployment_config={"autoscaling_config": scaling})
    assert engine == before[1]
    slower = {**scaling, "downscale_delay_s": 5}
    assert bound(deployment_config={"autoscaling_config": slower}) == (ingress, engine)
    more = {**scaling, "max_replicas": 8}
    assert bound(deployment_config={"autoscaling_config": more})[1] == engine
    ingress, engine = bound(autoscaling={"max_replicas": 4})
    assert engine == before[1]
    assert bound(autoscaling={"max_replicas": 4, "slo_ttft_s": 1.0}) == (ingress, engine)
    assert bound(autoscaling={"max_replicas": 5})[1] == engine
    ingress, engine = bound()
    for changed in (bound(max_num_seqs=3), bound(api_keys=["another-key"]), bound(model_aliases=["another"])):
        assert all(new != old for new, old in zip(changed[0], ingress, strict=True))
    assert all(new != old for new, old in zip(bound(max_num_seqs=3)[1], engine, strict=True))
    assert bound(api_keys=["another-key"])[1] == bound(model_aliases=["another"])[1] == engine


def test_an_ingress_knows_how_many_engines_serve_may_start():
    scaling = {"min_replicas": 0, "max_replicas": 4, "downscale_delay_s": 300}
    assert LLMConfig(deployment_config={"autoscaling_config": scaling}).for_ingress().engine_counts == (0, 4)
    assert LLMConfig(autoscaling={"min_replicas": 0, "max_replicas": 4}).for_ingress().engine_counts == (0, 4)
    kept = LLMConfig(deployment_config={"num_replicas": 2, "graceful_shutdown_timeout_s": 7}).for_engines()
    assert kept.deployment_config == {"graceful_shutdown_timeout_s": 7}
