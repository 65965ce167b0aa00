"""Settings from Python, from a file and from a command line: what they may be, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cluster.config import LLMConfig
from cluster.errors import BiremeError
from deployments.api_errors import ApiError
from deployments.api_keys import API_KEY_VARIABLE, ApiKeys
from deployments.app_arguments import AppArguments, SettingsError
from deployments.llm import build_openai_app
from deployments.serve_config import configured_model

WRONG = [
    ("max_num_seqs", True),
    ("max_num_seqs", 8.0),
    ("block_size", 16.0),
    ("block_size", True),
    ("kv_cache_memory_gb", True),
    ("kv_cache_memory_gb", float("nan")),
    ("enable_prefix_caching", 1),
    ("model_id", ""),
    ("model_id", "a\nb"),
    ("model_id", "a\x7f"),
    ("model", 5),
    ("api_keys", [""]),
    ("api_keys", ["good", "two words"]),
    ("api_keys", ["line\n"]),
    ("api_keys", ["clé"]),
    ("deployment_config", {"replicas": 2}),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_of_another_kind_is_refused_by_name(name, value):
    with pytest.raises(ValidationError) as caught:
        LLMConfig(**{name: value})
    assert caught.value.errors()[0]["loc"][0] == name
    with pytest.raises(SettingsError, match=name):  # as a YAML file has it
        AppArguments.model_validate({name: value})


@pytest.mark.parametrize("text", ["8.0", "1e2", "true", "eight", "0x8", "1_6", "", "\uff18"])
def test_text_of_a_command_line_is_a_plain_decimal(text):
    assert AppArguments.model_validate({"max_num_seqs": "8"}).max_num_seqs == 8
    with pytest.raises(SettingsError, match="max_num_seqs: Input should be a valid integer"):
        AppArguments.model_validate({"max_num_seqs": text})


def test_other_text_of_a_command_line():
    settings = {
        "enable_prefix_caching": "False",
        "kv_cache_memory_gb": "2",
        "model_id": "5",
        "block_size": "32",
        "api_keys": '["k"]',
        "deployment_config": '{"num_replicas": 2}',
        "seed": "7",
    }
    config = AppArguments.model_validate(settings)
    assert (config.enable_prefix_caching, config.kv_cache_memory_gb, config.model_id) == (False, 2.0, "5")
    assert (config.block_size, config.api_keys, config.deployment_config) == (32, ["k"], {"num_replicas": 2})
    with pytest.raises(ValidationError):
        LLMConfig(max_num_seqs="8")


def test_a_wrong_key_is_not_shown():
    with pytest.raises(SettingsError) as caught:
        AppArguments.model_validate({"api_keys": ["a secret"]})
    assert "secret" not in caught.value.message
    assert "visible ASCII" in caught.value.message


@pytest.mark.parametrize("value", ["", " ", "good,", "good,,better", "two words", "clé"])
def test_a_variable_without_a_usable_key_does_not_open_the_api(monkeypatch, value):
    monkeypatch.setenv(API_KEY_VARIABLE, value)
    with pytest.raises(BiremeError, match=API_KEY_VARIABLE):
        ApiKeys.configured([])
    assert ApiKeys.configured(["chosen"]).required


def test_keys_of_the_variable(monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "one, two")
    keys = ApiKeys.configured([])
    keys.check("Bearer two")
    for header in ("Bearer ", "Bearer", "Bearer one,two", None):
        with pytest.raises(ApiError):
            keys.check(header)
    monkeypatch.delenv(API_KEY_VARIABLE)
    assert not ApiKeys.configured([]).required


@pytest.mark.parametrize("setting", ["deployment_config", "ingress_config"])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_replicas": "two"}, "num_replicas"),
        ({"num_replicas": 0}, "num_replicas"),
        ({"num_replicas": True}, "num_replicas"),
        ({"num_replicas": 2.0}, "num_replicas"),
        ({"max_ongoing_requests": 0}, "max_ongoing_requests"),
        ({"max_queued_requests": -5}, "max_queued_requests"),
        ({"health_check_period_s": True}, "health_check_period_s"),
        ({"health_check_period_s": "often"}, "health_check_period_s"),
        ({"autoscaling_config": 5}, "autoscaling_config"),
        ({"autoscaling_config": {"min_replicaz": 1}}, "autoscaling_config: unknown option min_replicaz"),
        ({"autoscaling_config": {"min_replicas": 5, "max_replicas": 2}}, "autoscaling_config"),
        ({"autoscaling_config": {"max_replicas": True}}, "autoscaling_config.max_replicas"),
        ({"autoscaling_config": {"max_replicas": 2}, "num_replicas": 2}, "num_replicas"),
        ({"ray_actor_options": 5}, "ray_actor_options"),
        ({"ray_actor_options": {"num_cpus": -1}}, "num_cpus"),
        ({"logging_config": {"level": "x"}}, "logging_config.level"),
    ],
)
def test_serve_options_are_checked_by_name_where_the_application_is_built(setting, options, named):
    values: dict[str, Any] = {setting: options}
    with pytest.raises(SettingsError) as caught:
        build_openai_app(LLMConfig(**values))
    assert caught.value.message.startswith(setting)
    assert named in caught.value.message
    assert "\n" not in caught.value.message
    with pytest.raises(BiremeError, match=setting):
        configured_model({"applications": [{"args": values}]})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_replicas": "auto"},
        {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}, "logging_config": {"enable_access_log": True}},
        {"autoscaling_config": {"min_replicas": 0, "max_replicas": 4, "upscale_delay_s": 3}},
    ],
)
def test_serve_options_that_are_right_build_an_application(options):
    config = LLMConfig(deployment_config=options, ingress_config=options)
    before = config.model_dump()
    assert build_openai_app(config) is not None
    assert config.model_dump() == before
