"""A process is a spare for engines of exactly its settings, and is told no secret."""

from __future__ import annotations

import json

import pytest

from cluster.config import EngineConfig, LLMConfig
from deployments.spares.engine_processes import KINDS, REPLICA, RUNNER, VARIABLE, engine_processes

CONFIG = LLMConfig(api_keys=["a-secret-key"], num_kv_blocks=64)


def test_what_a_process_is_told_is_enough_and_has_no_key():
    processes = engine_processes(CONFIG, 1.0)
    text = json.dumps(processes)
    assert "a-secret-key" not in text and text.isascii()
    told = json.loads(processes.variables[RUNNER][VARIABLE])
    assert EngineConfig(**told["engine"]) == CONFIG.engine_config() and told["on_gpu"]
    assert "engine" not in json.loads(processes.variables[REPLICA][VARIABLE])
    assert processes == engine_processes(CONFIG.model_copy(update={"api_keys": []}), 1.0)


@pytest.mark.parametrize("changed", [{"num_kv_blocks": 65}, {"model": "another"}, {"warm_spares": 1}])
def test_a_process_for_other_settings_is_none_for_these(changed):
    one, other = engine_processes(CONFIG, 0.0), engine_processes(CONFIG.model_copy(update=changed), 0.0)
    assert one.group != other.group
    assert all(one.variables[kind] != other.variables[kind] for kind in KINDS)
    assert engine_processes(CONFIG, 1.0).variables[RUNNER] != one.variables[RUNNER]


def test_a_model_is_shown_without_its_folders():
    assert engine_processes(CONFIG.model_copy(update={"model": "/models/my model.gguf"}), 0.0).model == "my-model"
    assert engine_processes(CONFIG.model_copy(update={"model_id": "owner/chat"}), 0.0).model == "owner-chat"
