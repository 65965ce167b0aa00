"""Configurations of Ray Serve LLM, as its documentation has them, become settings, or errors that name what cannot."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from cluster.config import LLMConfig
from cluster.errors import BiremeError
from deployments.llm import build_llm_deployment, build_openai_app
from deployments.start.app_arguments import AppArguments, SettingsError
from deployments.start.ray_llm_config import settings_of
from deployments.start.ray_llm_keys import CONFIG_ELSEWHERE, ENGINE_ELSEWHERE
from deployments.start.serve_config import configured_model, serve_config
from deployments.start.vllm_names import MEANS_NOTHING, VALUES
from tests.test_docs import shown_block

# The quick start, with one model.
QUICK = """
applications:
- args:
    llm_configs:
        - model_loading_config:
            model_id: qwen-0.5b
            model_source: Qwen/Qwen2.5-0.5B-Instruct
          accelerator_type: A10G
          deployment_config:
            autoscaling_config:
                min_replicas: 1
                max_replicas: 2
  import_path: deployments.llm:build_openai_app
  name: llm_app
  route_prefix: "/"
"""
PRODUCTION = """
applications:
- args:
    llm_configs:
        - model_loading_config:
            model_id: my-llama
            model_source: meta-llama/Llama-3.1-8B-Instruct
            tokenizer_source: meta-llama/Llama-3.1-8B-Instruct
          accelerator_config: {kind: gpu}
          llm_engine: vLLM
          engine_kwargs:
            tensor_parallel_size: 1
            max_model_len: 8192
            max-num-seqs: 64
            gpu_memory_utilization: 0.85
            dtype: half
            enable_chunked_prefill: true
            enable_prefix_caching: true
            num_gpu_blocks_override: 4096
            async_scheduling: false
            logprobs_mode: processed_logprobs
            disable_log_stats: false
            seed: 0
          deployment_config:
            num_replicas: 4
            max_ongoing_requests: 128
            ray_actor_options: {num_cpus: 2}
          placement_group_config:
            bundle_per_worker: {CPU: 4, GPU: 1}
            strategy: PACK
          experimental_configs: {num_ingress_replicas: 2}
          log_engine_metrics: true
          runtime_env: {}
    ingress_deployment_config: {max_ongoing_requests: 256}
  import_path: deployments.llm:build_openai_app
"""


def settings(config: dict[str, Any], **others: Any) -> dict[str, Any]:
    base = {"model_loading_config": {"model_id": "m", "model_source": "a/b"}}
    return settings_of({"llm_configs": [{**base, **config}], **others})


def file_of(folder: Path, text: str) -> str:
    path = folder / "serve.yaml"
    path.write_text(text)
    return str(path)


def test_the_quick_start_runs_after_its_import_path_is_changed(tmp_path: Path):
    found = configured_model(serve_config([file_of(tmp_path, QUICK)]))
    assert LLMConfig(**{name: getattr(found, name) for name in LLMConfig.model_fields}) == LLMConfig(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        model_id="qwen-0.5b",
        accelerator_type="A10G",
        device="gpu",
        deployment_config={"autoscaling_config": {"min_replicas": 1, "max_replicas": 2}},
    )


def test_an_import_path_that_is_still_rays_is_told(tmp_path: Path):
    with pytest.raises(
        BiremeError, match=r"import_path is ray.serve.llm:build_openai_app.*deployments.llm:build_openai_app"
    ):
        serve_config([file_of(tmp_path, QUICK.replace("deployments.llm", "ray.serve.llm"))])


def test_an_import_path_that_is_nearly_ours_is_told(tmp_path: Path):
    for nearly in ("deployments.llm:build_openapi_app", "deployment.llm:build_openai_app"):
        with pytest.raises(BiremeError, match=r"import_path: got .*; did you mean deployments.llm:build_openai_app\?"):
            serve_config([file_of(tmp_path, QUICK.replace("deployments.llm:build_openai_app", nearly))])


def test_what_has_another_name_here_gets_it_and_the_command_line_wins(tmp_path: Path):
    found = configured_model(serve_config([file_of(tmp_path, PRODUCTION), "--max-num-seqs", "32", "num_replicas=2"]))
    assert found.model_dump(exclude_defaults=True) == {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "model_id": "my-llama",
        "tokenizer": "meta-llama/Llama-3.1-8B-Instruct",
        "device": "gpu",
        "dtype": "float16",
        "max_model_len": 8192,
        "max_num_seqs": 32,
        "num_kv_blocks": 4096,
        "gpu_memory_utilization": 0.85,
        "enable_overlap_schedule": False,
        "logprobs_mode": "processed",
        "deployment_config": {"num_replicas": 2, "max_ongoing_requests": 128, "ray_actor_options": {"num_cpus": 2}},
        "ingress_config": {"num_replicas": 2, "max_ongoing_requests": 256},
        "runner_num_cpus": 4.0,
        "runner_num_gpus": 1.0,
    }


def test_what_cannot_be_carried_over_is_named_by_its_path_all_at_once():
    with pytest.raises(SettingsError) as error:
        AppArguments.model_validate(
            {
                "llm_configs": [
                    {
                        "model_loading_config": {"model_id": "m", "model_source": {"bucket_uri": "s3://b/m"}},
                        "engine_kwargs": {"tensor_parallel_size": 2, "max_num_seq": 3, "speculative_config": {"model": "x"}},
                        "lora_config": {"dynamic_lora_loading_path": "s3://b/l"},
                        "accelerator_type": "TPU-V6E",
                        "deployment_config": {"user_config": {}, "request_router_config": {
                            "request_router_class": "ray.serve.llm.request_router:PrefixCacheAffinityRouter"}},
                        "placement_group_config": {"bundles": [{"GPU": 1}] * 2},
                        "runtime_env": {"env_vars": {"A": "1"}},
                    },
                    {"model_loading_config": {"model_id": "n"}},
                ],
                "ingress_cls_config": {"ingress_cls": "a:B"},
                "max_num_sequences": 3,
            }
        )  # fmt: skip
    said = error.value.message.split("; ")
    for part in (
        "llm_configs[0].model_loading_config.model_source: buckets are not read",
        "llm_configs[0].engine_kwargs.tensor_parallel_size: an engine computes on one device",
        "llm_configs[0].engine_kwargs.max_num_seq: nothing here has this name",
        "did you mean max_num_seqs?",
        "llm_configs[0].engine_kwargs.speculative_config: speculative decoding is not supported",
        "llm_configs[0].lora_config: adapters are not supported",
        "llm_configs[0].accelerator_type: TPUs are not supported",
        "llm_configs[0].deployment_config.user_config: nothing here has this name",
        "llm_configs[0].deployment_config.request_router_config: Ray's routers",
        "llm_configs[0].placement_group_config.bundles: an engine computes on one device",
        "llm_configs[0].runtime_env: the runtime_env of the application",
        "llm_configs[1]: an application serves one model",
        "ingress_cls_config: the ingress is of one class",
        "max_num_sequences: nothing here has this name",
    ):
        assert any(sentence.startswith(part) for sentence in said), (part, said)


def test_values_that_say_what_is_so_anyway_are_left_out():
    plain = settings({})
    for name, elsewhere in ENGINE_ELSEWHERE.items():
        for value in elsewhere.same:
            assert settings({"engine_kwargs": {name: value}}) == plain, name
        with pytest.raises(Exception, match=f"engine_kwargs.{name}: "):
            settings({"engine_kwargs": {name: ["something", "else"]}})
    assert settings({"engine_kwargs": dict.fromkeys(MEANS_NOTHING, True)}) == plain


def test_what_is_called_otherwise_here_is_valid_here():
    for (name, value), ours in VALUES.items():
        found = settings({"engine_kwargs": {name: value}})
        assert found[name] == ours
        LLMConfig(**found)


def test_every_key_of_rays_schema_is_decided():
    """Of the installed Ray, without importing it: its module wants packages that nothing else here does."""
    configs = Path(ray.__file__).parent / "llm/_internal/serve/core"
    for file, name, known in (
        ("configs/llm_config.py", "ModelLoadingConfig", {"model_id", "model_source", "tokenizer_source"}),
        (
            "configs/llm_config.py",
            "LLMConfig",
            {
                "model_loading_config", "engine_kwargs", "accelerator_type", "accelerator_config", "placement_group_config",
                "deployment_config", "experimental_configs", *CONFIG_ELSEWHERE,
            },
        ),
        ("ingress/builder.py", "LLMServingArgs", {"llm_configs", "ingress_cls_config", "ingress_deployment_config"}),
    ):  # fmt: skip
        tree = ast.parse((configs / file).read_text())
        (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
        fields = {
            node.target.id
            for node in found.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        assert {field for field in fields if not field.startswith("_")} == known


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"llm_configs": []}, "llm_configs: needs a list with one configuration"),
        ({"llm_configs": [{}]}, r"llm_configs\[0\].model_loading_config is missing"),
        ({"llm_configs": ["nowhere.yaml"]}, "'nowhere.yaml' is no YAML file"),
        ({"llm_configs": [{"model_loading_config": {"model_id": "m"}, "engine_kwargs": {"max_num_seqs": 0}}]},
         "max_num_seqs: must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_is_no_configuration_is_one_error(config: dict[str, Any], error: str):
    with pytest.raises(SettingsError, match=error):
        AppArguments.model_validate(config)


def test_a_configuration_may_be_a_file_of_its_own(tmp_path: Path):
    config = yaml.safe_load(QUICK)["applications"][0]["args"]["llm_configs"][0]
    path = file_of(tmp_path, yaml.safe_dump(config))
    assert settings_of({"llm_configs": [path]}) == settings_of({"llm_configs": [config]})


def test_both_builders_make_the_application_that_own_settings_make():
    config = {
        "model_loading_config": {"model_id": "m", "model_source": "smollm2-135m-instruct"},
        "accelerator_config": {"kind": "cpu"},
        "engine_kwargs": {"max_num_seqs": 4},
    }
    wanted = LLMConfig(
        model="smollm2-135m-instruct", model_id="m", device="cpu", max_num_seqs=4, deployment_config={"num_replicas": 2}
    )
    one = build_openai_app({"llm_configs": [{**config, "deployment_config": {"num_replicas": 2}}]})  # type: ignore[arg-type]
    other = build_llm_deployment(config, override_serve_options={"num_replicas": 2})
    own = build_openai_app(wanted)  # type: ignore[arg-type]
    for app in (one, other):
        assert app._bound_deployment.init_args[0] == own._bound_deployment.init_args[0] == wanted.for_ingress()
        engines, own_engines = (built._bound_deployment.init_args[1]._bound_deployment for built in (app, own))
        assert engines.num_replicas == own_engines.num_replicas == 2
    with pytest.raises(SettingsError, match="name_prefix: deployments keep their names"):
        build_llm_deployment(config, name_prefix="x")


def test_the_error_of_the_page_is_what_is_said():
    shown = " ".join(shown_block("docs/ray_serve_llm.md", __file__).split())
    config = {
        "model_loading_config": {"model_id": "m"},
        "engine_kwargs": {"tensor_parallel_size": 2},
        "lora_config": {"max_num_adapters_per_replica": 4},
    }
    with pytest.raises(BiremeError) as raised:
        settings_of({"llm_configs": [config]})
    assert shown == f"Error: {raised.value.message}"
