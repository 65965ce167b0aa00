"""What scaling and balance decide from: raw values with the time of each sample, as one ingress knows them."""

from __future__ import annotations

from typing import NamedTuple

from cluster.outputs import EngineLoad

# Nothing is decided from what an engine said longer ago.
MAX_LOAD_AGE_S = 0.5


class EngineSample(NamedTuple):
    """What an engine said of itself last.

    Attributes:
        engine_id: unique among them.
        load: as it was told; ``load.sampled_at`` is of the engine's machine.
        age_s: how long ago it was so, as well as this ingress can tell.
    """

    engine_id: str
    load: EngineLoad
    age_s: float


class TargetCount(NamedTuple):
    """Answers for which a time was measured that has a target.

    Attributes:
        num_met, num_missed: since the ingress started.
        recent_share: of the answers of about the last half minute, those within the target; None if there were none.
    """

    num_met: int
    num_missed: int
    recent_share: float | None


class IngressLoad(NamedTuple):
    """What an ingress knows of the load that comes through it. A sequence is one answer: a prompt times ``n`` has several.

    Attributes:
        sampled_at: seconds since 1970, on the ingress's machine.
        num_arrived: sequences received since it started, refused ones too.
        arrivals_per_s: sequences a second, over about the last two seconds.
        prompt_tokens_per_s: of their prompts.
        num_running: sequences that are not finished.
        num_held: of these, those that no engine is known to have.
        ttft, tpot: answers within the targets for the time to the first token, and for each token after it; None without one.
    """

    sampled_at: float
    num_arrived: int
    arrivals_per_s: float
    prompt_tokens_per_s: float
    num_running: int
    num_held: int
    ttft: TargetCount | None
    tpot: TargetCount | None


class ScalingInputs(NamedTuple):
    """One ingress and the engines that it hears of."""

    ingress: IngressLoad
    engines: tuple[EngineSample, ...]
