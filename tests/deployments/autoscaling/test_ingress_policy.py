"""What Serve's controller is told of ingresses: what they said and how old it is, and never an error."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cluster.config import LLMConfig
from cluster.scaling.ingresses import IngressInputs, IngressUse, decide
from deployments.autoscaling.ingress_policy import CPU_SHARE, MOST, IngressPolicy
from deployments.autoscaling.serve_options import ingress_autoscaling_config
from deployments.autoscaling.serve_policy import ServeIngressPolicy
from deployments.llm import ingress_options


def series(*points: tuple[float, float]):
    return [SimpleNamespace(timestamp=timestamp, value=value) for timestamp, value in points]


def context(metrics, target: int = 1, running: tuple[str, ...] = ("a",)):
    return SimpleNamespace(
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=16,
        target_num_replicas=target,
        running_replicas=list(running),
        raw_metrics=metrics,
        app_name="app",
    )


def test_a_word_is_as_old_as_it_is_since_it_was_heard_whatever_the_ingress_s_clock_says():
    known: list[IngressInputs] = []
    at = 100.0

    def look(inputs, state):
        known.append(inputs)
        return decide(inputs, state)

    policy = IngressPolicy("app", look, now=lambda: at)
    said = {
        CPU_SHARE: {"a": series((1.0, 0.2), (2.0, 0.9)), "gone": series((2.0, 1.0))},
        MOST: {"a": series((2.0, 4.0))},
    }
    assert policy.target(context(said)) == 2
    at = 108.0
    policy.target(context(said, target=2))
    said[CPU_SHARE]["a"] = series((4.0, 0.5))
    policy.target(context(said, target=2))
    assert [inputs.uses for inputs in known] == [
        (IngressUse(0.9, 4, 0.0),),
        (IngressUse(0.9, 4, 8.0),),
        (IngressUse(0.5, 4, 0.0),),
    ]
    assert known[1].current_target == 2 and known[1].num_running == 1


@pytest.mark.parametrize("metrics", [None, {}, {CPU_SHARE: {"a": []}}, {CPU_SHARE: {"a": series((1.0, float("nan")))}}])
def test_without_a_word_all_stays(metrics):
    assert IngressPolicy("app", decide).target(context(metrics, target=3, running=("a", "b"))) == 3


def fails(inputs, state):
    raise RuntimeError("this policy always fails")


@pytest.mark.parametrize("name", [f"{__name__}:fails", "no.such.module:decide", "nothing"])
def test_a_policy_that_fails_changes_nothing_and_raises_nothing(name):
    assert ServeIngressPolicy(name)(context({}, target=3)) == (3, {})


def test_a_number_of_one_s_own_or_rules_of_serve_switch_it_off():
    assert ingress_options(LLMConfig())["autoscaling_config"] == ingress_autoscaling_config()
    assert "autoscaling_config" not in ingress_options(LLMConfig(ingress_config={"num_replicas": 2}))
    own = {"min_replicas": 1, "max_replicas": 2}
    assert ingress_options(LLMConfig(ingress_config={"autoscaling_config": own}))["autoscaling_config"] == own
