"""First requests after loading: they touch every weight and size every buffer, so that the first client does not."""

from __future__ import annotations

from actors.engine.engine import Engine
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams


def warm_up(engine: Engine) -> None:
    """Run two short requests, one greedy and one sampled with log-probabilities, and forget their cached blocks."""
    length = min(32, engine.info.max_model_len // 2)
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
