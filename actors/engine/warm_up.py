"""First requests after loading: they touch every weight and size every buffer, so that the first client does not."""

from __future__ import annotations

from actors.engine.engine import Engine
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams

# A GPU's libraries choose by the number of rows. On the CPU a few do all there is to do, and each costs milliseconds.
_PROMPT_TOKENS, _CPU_PROMPT_TOKENS = 32, 4


def warm_up(engine: Engine) -> None:
    """Run two short requests, one greedy and one sampled with log-probabilities, and forget their cached blocks."""
    on_cpu = engine.executor.device_name == "cpu"
    length = min(_CPU_PROMPT_TOKENS if on_cpu else _PROMPT_TOKENS, engine.info.max_model_len // 2)
    prompt = [i % engine.info.vocab_size for i in range(length)]
    engine.generate(
        [
            EngineRequest("warm-up-greedy", prompt, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)),
            EngineRequest(
                "warm-up-sampled",
                prompt,
                SamplingParams(
                    temperature=1.0, top_p=0.9, repetition_penalty=1.1, logprobs=1, max_tokens=2, ignore_eos=True
                ),
            ),
        ]
    )
    engine.scheduler.kv_cache.clear_cached()
    engine.check_integrity()
