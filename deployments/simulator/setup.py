"""What is simulated: an engine's capacities, how engines start, and the shape of the load. The defaults are documented."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.routing.policies import POLICIES
from cluster.routing.token_weight import PROMPT_WEIGHT
from cluster.scaling.capacity import PRIOR_COSTS, RequestShape, StepCosts, most_rows
from cluster.scaling.fleet import PolicySettings

# So many engines that the bound is none.
_UNBOUNDED = PolicySettings(max_replicas=10_000)
FIDELITIES = ("fluid", "exact")


@dataclass(frozen=True)
class SimulatorSettings:
    """An engine, its start, and lengths where a recording has none.

    Attributes:
        costs: what a step really takes; the policy begins with ``policy.costs``.
        max_num_seqs, max_num_batched_tokens, max_model_len, kv_tokens, block_size: of an engine. Longer requests are cut.
        oldest_first_every, routing_policy: as the serving settings of these names.
        prefill_weight: tokens of prompts to compute count so often where engines are compared by their tokens.
        balance: requests that wait go to engines where they begin at once, or into one line.
        max_queued_requests: of an engine, as the serving setting: a line that is half as long takes nobody from others. Nobody is
            refused.
        engines_per_node: so many engines are lost with a node.
        death_seen_s: from the death of an engine until its requests go to others.
        drain_timeout_s: an engine that is not needed finishes what it has for so long; others go on with the rest.
        start_times_s: from a decision to an engine that serves; one is drawn for each start.
        replace_times_s: from the death of an engine until another one serves in its stead; without any, that is started with the
            next tick of the controller.
        prompt_tokens, output_tokens: mean lengths for rates without requests.
        length_sigma: of the logarithm of those lengths.
        mooncake_divisor: Mooncake's lengths are divided by it.
        spread_s: copies of a request, where the load is scaled up, come within so many seconds before or after it.
        seed: of all that is drawn.
        policy: objectives and bounds.
    """

    costs: StepCosts = PRIOR_COSTS
    max_num_seqs: int = 128
    # A full step with half of the slots and of the memory in use takes as long as the objective for a token allows.
    max_num_batched_tokens: int = 640
    max_model_len: int = 16384
    kv_tokens: int = 200_000
    block_size: int = 16
    oldest_first_every: int = 8
    routing_policy: str = "power_of_two"
    prefill_weight: float = PROMPT_WEIGHT
    balance: bool = True
    max_queued_requests: int = 256
    engines_per_node: int = 8
    death_seen_s: float = 1.0
    drain_timeout_s: float = 20.0
    start_times_s: tuple[float, ...] = (8.0, 10.0, 12.5, 14.0, 17.0)
    replace_times_s: tuple[float, ...] = ()
    prompt_tokens: float = 1000.0
    output_tokens: float = 250.0
    length_sigma: float = 0.8
    mooncake_divisor: int = 16
    spread_s: float = 30.0
    seed: int = 0
    policy: PolicySettings = _UNBOUNDED

    def __post_init__(self) -> None:
        """Raises ValueError with the setting that makes no sense."""
        for name in (
            "max_num_seqs",
            "max_model_len",
            "block_size",
            "oldest_first_every",
            "engines_per_node",
            "mooncake_divisor",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, allowed: at least 1")
        if self.max_queued_requests < 0:
            raise ValueError(f"max_queued_requests: got {self.max_queued_requests}, allowed: at least 0")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens: got {self.max_num_batched_tokens}, allowed: at least max_num_seqs"
            )
        if self.kv_tokens < self.max_model_len + self.block_size:
            raise ValueError(f"kv_tokens: got {self.kv_tokens}, allowed: at least max_model_len and a block")
        if not self.start_times_s or min(self.start_times_s) < 0:
            raise ValueError("start_times_s: allowed: one or more numbers of seconds, none below 0")
        if min(self.replace_times_s, default=0.0) < 0:
            raise ValueError("replace_times_s: allowed: numbers of seconds, none below 0")
        if self.routing_policy not in POLICIES:
            raise ValueError(f"routing_policy: got {self.routing_policy!r}, allowed: {', '.join(POLICIES)}")
        for name in ("death_seen_s", "drain_timeout_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, allowed: at least 0")

    def rows_limit(self, shape: RequestShape) -> float:
        """Rows that an engine holds on average."""
        return most_rows(shape, self.max_num_seqs, self.kv_tokens, self.max_num_batched_tokens)

    @property
    def mean_start_s(self) -> float:
        return sum(self.start_times_s) / len(self.start_times_s)
