"""What keys of Ray Serve LLM are called here, and what to use instead of those that are nothing here."""

from __future__ import annotations

from deployments.start.vllm_names import ADAPTERS, ELSEWHERE, Elsewhere

# Of Ray's LLMConfig.
CONFIG_ELSEWHERE: dict[str, Elsewhere] = {
    "llm_engine": Elsewhere("the engine is this project's; leave it out", (None, "vLLM")),
    "lora_config": Elsewhere(ADAPTERS),
    "server_cls": Elsewhere("engines are of one class; leave it out"),
    "callback_config": Elsewhere(
        "there are no callbacks; what needs none of them is a step before bireme serve", (None, {})
    ),
    "runtime_env": Elsewhere(
        "the runtime_env of the application, beside import_path in the Serve config, has variables of all its processes",
        (None, {}, {"env_vars": {}}),
    ),
    "log_engine_metrics": Elsewhere("metrics are always there", (None, True, False)),
}
EXPERIMENTS_ELSEWHERE = {
    "stream_batching_interval_ms": Elsewhere("tokens leave with the step that made them; leave it out", (None, 0)),
}
# Of vLLM's engine, what stands elsewhere in this file, too.
ENGINE_ELSEWHERE: dict[str, Elsewhere] = {
    **ELSEWHERE,
    "model": Elsewhere("model_loading_config.model_source is the model"),
    "served_model_name": Elsewhere("model_loading_config.model_id is the name"),
}
