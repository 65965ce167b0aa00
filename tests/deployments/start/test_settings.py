"""Settings from Python, from a file and from a command line: what they may be, and what is refused by name."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray import cloudpickle

from cluster.api_errors import ApiError
from cluster.config import Autoscaling, LLMConfig
from cluster.errors import BiremeError
from deployments.http.keys import API_KEY_VARIABLE, ApiKeys
from deployments.llm import build_openai_app, engine_options
from deployments.routing.router.engine_router import EngineRouter
from deployments.start.app_arguments import AppArguments, SettingsError
from deployments.start.run_files.key_file import _who_may_read
from deployments.start.serve_config import BUILDER, configured_model, named_after_model, start_timeouts

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
        AppArguments.with_keys({name: value})


def of_every_setting() -> list[tuple[str, Any]]:
    """Of each setting, values of other types, and some below, at and above its bounds."""
    wrong: list[tuple[str, Any]] = []
    for name, field in LLMConfig.model_fields.items():
        odd = (object(), "{\u00e4}\n", "", "x" * 2000, [["x"]], ["x"] * 100, {1: 2}, float("inf"))
        wrong += [(name, value) for value in odd]
        for bound in field.metadata:
            limits = [getattr(bound, kind, None) for kind in ("ge", "gt", "le", "lt")]
            wrong += [(name, type(limit)(limit + off)) for limit in limits if limit is not None for off in (-1, 0, 1)]
    return wrong


def test_every_error_of_every_setting_is_in_own_words():
    said = set()
    for name, value in of_every_setting():
        try:
            LLMConfig(**{name: value})
        except ValidationError as error:
            faults = error.errors()
        else:
            continue
        assert {fault["loc"][0] for fault in faults} == {name}
        said |= {fault["msg"] for fault in faults}
    foreign = re.compile(r"Input|[Vv]alid |should|[Pp]ydantic|NoneType|instance of|is not a value that")
    assert not [message for message in said if foreign.search(message)]
    begins = {" ".join(message.split()[:3]) for message in said}
    assert begins >= {
        "must be at",
        "must be greater",
        "must be less",
        "must be an",
        "must be a",
        "must be true",
        "must have at",
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs: must be at least 1, got 0"),
        ({"gpu_memory_utilization": 2}, "gpu_memory_utilization: must be at most 1, got 2"),
        ({"enable_prefix_caching": "maybe"}, 'enable_prefix_caching: must be true or false, got "maybe"'),
        ({"deployment_config": {1: 2}}, "deployment_config.1: must be a string, got 1"),
        ({"model_id": "a{b}\n"}, "model_id: must be of printable characters, got 'a{b}\\n'"),
        (
            {"max_num_seq": 3},
            "max_num_seq is no setting; did you mean max_num_seqs?; allowed: accelerator_type, allowed_",
        ),
        ({"swap_spice": 3}, "swap_spice is no setting; allowed: accelerator_type, allowed_"),
        (
            {"max_num_seqs": 64, "max_num_batched_tokens": 16},
            "max_num_batched_tokens (16) must be at least max_num_seqs (64): every running sequence",
        ),
        (
            {"autoscaling": {"min_replicas": 5, "max_replicas": 2}},
            "autoscaling: min_replicas (5) must be at most max_replicas (2)",
        ),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size is no setting: an engine computes on one device"),
        (
            {"max_num_seqs": 0, "dtype": "int4"},
            'dtype: must be "auto", "float32", "bfloat16" or "float16", got "int4"; max_num_seqs: must be at',
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_may_be(setting, message):
    with pytest.raises(SettingsError) as refused:
        AppArguments.model_validate(setting)
    assert refused.value.message.startswith(message)


def test_a_routing_policy_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(SettingsError) as refused:
        AppArguments.model_validate({"routing_policy": "round_robin"})
    assert str(refused.value) == 'routing_policy: must be "power_of_two" or "least_tokens", got "round_robin"'


@pytest.mark.parametrize("policy", ["power_of_two", "least_tokens"])
def test_the_engines_router_gets_the_policy(policy):
    options = engine_options(LLMConfig(routing_policy=policy))["request_router_config"]
    assert options["request_router_kwargs"] == {"policy": policy}
    assert options["request_router_class"] == f"{EngineRouter.__module__}:{EngineRouter.__name__}"


AUTOSCALING = {"max_replicas": 4, "slo_ttft_s": 1.5}


@pytest.mark.parametrize(
    "settings",
    [
        {"autoscaling": AUTOSCALING},
        {"autoscaling": '{"max_replicas": 4, "slo_ttft_s": 1.5}'},
        {"autoscaling.max_replicas": "4", "autoscaling.slo_ttft_s": "1.5"},
        {"autoscaling.slo_ttft_s": "1.5", "autoscaling": '{"max_replicas": 4, "slo_ttft_s": 9}'},
    ],
)
def test_the_line_that_turns_autoscaling_on_may_be_a_mapping_or_names_in_it(settings):
    given = dict(settings)
    line = AppArguments.model_validate(settings).autoscaling
    assert line == Autoscaling(**AUTOSCALING)
    assert settings == given
    assert line.min_replicas == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"autoscaling": {}}, "autoscaling.max_replicas: is required"),
        ({"autoscaling": {"max_replicas": 2.0}}, "autoscaling.max_replicas: must be an integer, got 2.0"),
        ({"autoscaling": {"max_replicas": 0}}, "autoscaling.max_replicas: must be at least 1, got 0"),
        ({"autoscaling": {"max_replicas": 2, "min_replicas": 3}}, "autoscaling: min_replicas (3) must be at most"),
        ({"autoscaling": {"max_replicas": 2, "slo_share": 1}}, "autoscaling.slo_share: must be less than 1, got 1"),
        (
            {"autoscaling": {"max_replicas": 2, "slo_ttft": 1}},
            "autoscaling.slo_ttft is no setting; did you mean slo_ttft_s?; allowed: cost_weight, ",
        ),
        ({"autoscaling": 3, "autoscaling.max_replicas": 2}, "autoscaling.max_replicas: autoscaling is no mapping, got 3"),
        (
            {"autoscaling": {"max_replicas": 2}, "deployment_config": {"num_replicas": 2}},
            "autoscaling and deployment_config.num_replicas both say how many engines there are: give one of them",
        ),
        (
            {"autoscaling.max_replicas": 2, "deployment_config.autoscaling_config.max_replicas": 2},
            "autoscaling and deployment_config.autoscaling_config both say how many engines there are: give one of them",
        ),
    ],
)  # fmt: skip
def test_a_line_of_autoscaling_that_cannot_be_is_refused_by_name(settings, said):
    with pytest.raises(SettingsError) as refused:
        AppArguments.model_validate(settings)
    assert said in refused.value.message


def test_options_of_ray_serve_may_be_set_by_name():
    given = {"deployment_config": '{"num_replicas": 2}', "deployment_config.ray_actor_options.num_cpus": "0.5"}
    config = AppArguments.model_validate({**given, "ingress_config.num_replicas": "3"})
    assert config.deployment_config == {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.5}}
    assert config.ingress_config == {"num_replicas": 3}


@pytest.mark.parametrize("text", ["8.0", "1e2", "true", "eight", "0x8", "1_6", "", "\uff18"])
def test_text_of_a_command_line_is_a_plain_decimal(text):
    assert AppArguments.model_validate({"max_num_seqs": "8"}).max_num_seqs == 8
    with pytest.raises(SettingsError, match="max_num_seqs: must be an integer, got "):
        AppArguments.model_validate({"max_num_seqs": text})


def test_other_text_of_a_command_line():
    settings = {
        "enable_prefix_caching": "False",
        "kv_cache_memory_gb": "2",
        "model_id": "5",
        "block_size": "32",
        "api_keys": '["k"]',
        "deployment_config": '{"num_replicas": 2}',
        "dummy_seed": "7",
    }
    config = AppArguments.with_keys(settings)
    assert (config.enable_prefix_caching, config.kv_cache_memory_gb, config.model_id) == (False, 2.0, "5")
    assert (config.block_size, config.api_keys, config.deployment_config) == (32, ["k"], {"num_replicas": 2})
    with pytest.raises(ValidationError):
        LLMConfig(max_num_seqs="8")


@pytest.mark.parametrize(
    "keys", [["a secret"], "secret", '"secret"', ["good", 5, "a secret"], {"secret": "secret"}, [["secret"]]]
)
def test_a_wrong_key_is_not_shown(keys):
    for parse in (AppArguments.with_keys, AppArguments.model_validate):
        with pytest.raises(SettingsError, match=r"^api_keys") as caught:
            parse({"api_keys": keys})
        assert "secret" not in caught.value.message
    with pytest.raises(ValidationError) as refused:
        LLMConfig(api_keys=keys)
    assert "secret" not in str(refused.value)


def test_no_settings_and_no_error_about_them_show_keys():
    config = LLMConfig(api_keys=["secret"])
    assert "secret" not in f"{config!r} {config}"
    with pytest.raises(ValidationError) as refused:
        LLMConfig(api_keys=["secret"], max_num_seqs=0)
    assert "secret" not in str(refused.value)
    with pytest.raises(SettingsError) as unknown:
        AppArguments.with_keys({"api_key": "secret", "api_keys": ["secret"]})
    assert "secret" not in unknown.value.message


def test_of_keys_from_python_ray_keeps_only_digests():
    ingress = build_openai_app(LLMConfig(api_keys=["secret-key"]))._bound_deployment
    kept = cloudpickle.dumps([ingress.init_args, ingress.init_kwargs])
    assert b"secret-key" not in kept
    assert hashlib.sha256(b"secret-key").digest() in kept


@pytest.mark.parametrize("keys", [["secret"], '["secret"]', "secret"])
def test_keys_that_came_through_ray_serve_are_refused_with_what_to_do(keys):
    with pytest.raises(SettingsError) as caught:
        AppArguments.model_validate({"api_keys": keys})
    for way in ("api_keys_file", API_KEY_VARIABLE, "new ones"):
        assert way in caught.value.message
    assert "\n" not in caught.value.message
    assert AppArguments.model_validate({"api_keys": []}).api_keys == []


@pytest.fixture
def key_file(tmp_path) -> Path:
    file = tmp_path / "keys"
    file.write_bytes(b"one\n\n  two\r\n")
    file.chmod(0o600)
    return file


def test_keys_of_a_file(key_file, monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "three")
    keys = ApiKeys.configured(file=str(key_file))
    for key in ("one", "two"):
        keys.check(f"Bearer {key}")
    for key in ("three", "", "onex", "one two"):
        with pytest.raises(ApiError):
            keys.check(f"Bearer {key}")
    with pytest.raises(ValidationError, match="give one of them"):
        LLMConfig(api_keys=["k"], api_keys_file=str(key_file))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "has no key"),
        (b"\n \n", "has no key"),
        (b"good\ntwo secrets\n", "line 2 must be"),
        ("secret-cl\u00e9".encode(), "line 1 must be"),
        (b"secret\xff", "line 1 must be"),
        (b"secret" * 200_000, "longer than"),
    ],
    ids=["empty", "blank", "spaces", "accent", "bytes", "long"],
)
def test_a_file_without_usable_keys_does_not_open_the_api(key_file, content, fault):
    key_file.write_bytes(content)
    with pytest.raises(BiremeError, match=f"api_keys_file: .*{fault}") as caught:
        ApiKeys.configured(file=str(key_file))
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o602, 0o660, 0o644])
def test_a_file_of_keys_that_others_may_read_or_write_is_refused(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(BiremeError, match=rf"open to other users \(mode {mode:04o}\)"):
        ApiKeys.configured(file=str(key_file))


def test_a_secret_that_root_mounted_may_be_readable_by_a_group_and_another_users_file_is_refused(monkeypatch):
    def told(mode: int, user: int) -> str | None:
        return _who_may_read(os.stat_result((stat.S_IFREG | mode, 1, 1, 1, user, 1, 0, 0, 0, 0)))

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert [told(mode, 1000) is None for mode in (0o600, 0o400, 0o440)] == [True, True, False]
    assert [told(mode, 0) is None for mode in (0o400, 0o440, 0o640, 0o644, 0o660)] == [True] * 3 + [False] * 2
    assert told(0o600, 1001) == "belongs to another user (uid 1001)"


@pytest.mark.parametrize("what", ["folder", "missing", "pipe"])
def test_what_is_no_file_of_keys_is_refused_at_once(tmp_path, what):
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path, 0o600)
    with pytest.raises(BiremeError, match="api_keys_file: "):
        ApiKeys.configured(file=str(path))


@pytest.mark.parametrize("value", ["", " ", "good,", "good,,better", "two words", "clé"])
def test_a_variable_without_a_usable_key_does_not_open_the_api(monkeypatch, value):
    monkeypatch.setenv(API_KEY_VARIABLE, value)
    with pytest.raises(BiremeError, match=API_KEY_VARIABLE):
        ApiKeys.configured()
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
        ({"max_ongoing_requests": 0}, "max_ongoing_requests: must be greater than 0, got 0"),
        ({"max_queued_requests": -5}, "max_queued_requests"),
        ({"health_check_period_s": True}, "health_check_period_s"),
        ({"health_check_period_s": "often"}, 'health_check_period_s: must be a number, got "often"'),
        ({"autoscaling_config": 5}, "autoscaling_config"),
        (
            {"autoscaling_config": {"min_replicaz": 1}},
            "autoscaling_config.min_replicaz is no option; did you mean min_replicas?",
        ),
        ({"autoscaling_config": {"min_replicas": 5, "max_replicas": 2}}, "autoscaling_config"),
        ({"autoscaling_config": {"max_replicas": True}}, "autoscaling_config.max_replicas"),
        ({"autoscaling_config": {"max_replicas": 2}, "num_replicas": 2}, "num_replicas"),
        ({"ray_actor_options": 5}, "ray_actor_options"),
        ({"ray_actor_options": {"num_cpus": -1}}, "num_cpus"),
        ({"logging_config": {"level": "x"}}, "logging_config.level is no option; allowed: additional_log"),
        (
            {"logging_config": {"enable_access_log": "x"}},
            'logging_config.enable_access_log: must be true or false, got "x"',
        ),
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


@pytest.mark.parametrize(
    ("names", "model_id", "name"),
    [
        (["default"], "owner/name:8b instruct", "owner-name-8b-instruct"),
        ([None], "tiny", "tiny"),
        (["mine"], "tiny", "mine"),
        (["default"], "//", "default"),
    ],
)
def test_an_application_without_a_name_has_that_of_its_model(names, model_id, name):
    config = {"applications": [{} if given is None else {"name": given} for given in names]}
    assert [one["name"] for one in named_after_model(config, model_id)["applications"]] == [name]


def test_of_several_applications_each_keeps_its_name():
    config = {"applications": [{"name": "default"}, {"name": "second"}]}
    assert named_after_model(config, "tiny") == config


def test_each_application_has_its_own_time_to_start_and_others_the_longest():
    ours, other = {"import_path": BUILDER}, {"import_path": "theirs:app", "name": "theirs"}
    config = {"applications": [{**ours, "name": "small"}, other, {**ours, "name": "large"}]}
    models = [LLMConfig(start_timeout_s=20), LLMConfig(start_timeout_s=600)]
    assert start_timeouts(config, models) == {"small": 20, "theirs": 600, "large": 600}
    assert start_timeouts({"applications": [ours]}, models[:1]) == {"default": 20}
