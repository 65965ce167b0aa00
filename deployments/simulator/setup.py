"""What is simulated: an engine's capacities, how engines start, and the shape of the load. The defaults are documented."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.scaling.capacity import PRIOR_COSTS, RequestShape, StepCosts, most_rows
from cluster.scaling.fleet import PolicySettings

# So many engines that the bound is none.
_UNBOUNDED = PolicySettings(max_replicas=10_000)


@dataclass(frozen=True)
class SimulatorSettings:
    """An engine, its start, and lengths where a recording has none.

    Attributes:
        costs: what a step really takes; the policy begins with ``policy.costs``.
        max_num_seqs, max_num_batched_tokens, max_model_len, kv_tokens: of an engine. Longer requests are cut.
        prefill_weight: a request goes to the engine with the fewest tokens, of which those of prompts to compute count so often:
            a new engine must not get every prompt until it has as many tokens as the others. 1 is ``least_tokens``.
        start_times_s: from a decision to an engine that serves; one is drawn for each start.
        prompt_tokens, output_tokens: mean lengths for rates without requests.
        length_sigma: of the logarithm of those lengths.
        mooncake_divisor: Mooncake's lengths are divided by it.
        spread_s: copies of a request, where the load is scaled up, come within so many seconds before or after it.
        seed: of all that is drawn.
        policy: objectives and bounds.
    """

    costs: StepCosts = PRIOR_COSTS
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 1024
    max_model_len: int = 16384
    kv_tokens: int = 200_000
    prefill_weight: float = 10.0
    start_times_s: tuple[float, ...] = (8.0, 10.0, 12.5, 14.0, 17.0)
    prompt_tokens: float = 1000.0
    output_tokens: float = 250.0
    length_sigma: float = 0.8
    mooncake_divisor: int = 16
    spread_s: float = 30.0
    seed: int = 0
    policy: PolicySettings = _UNBOUNDED

    def rows_limit(self, shape: RequestShape) -> float:
        """Rows that an engine holds on average."""
        return most_rows(shape, self.max_num_seqs, self.kv_tokens, self.max_num_batched_tokens)

    @property
    def mean_start_s(self) -> float:
        return sum(self.start_times_s) / len(self.start_times_s)
