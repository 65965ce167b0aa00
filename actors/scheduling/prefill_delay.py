"""Whether prompts wait for others to be computed with. Where launching its kernels is what a step's time goes into, as with a
small model on a GPU, a step with one prompt takes as long as one with several, and much longer than one that only decodes:
prompts that come one by one make all answers slow.

As SGLang's prefill delayer and TensorRT-LLM's batching wait, counted in steps, so that the same requests get the same plans
however fast the machine is. Nobody waits where nobody decodes, where nobody else is likely to come, or beside enough tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

# Of steps whose time is that of their launches.
DEFAULT_STEPS = 4
# Beside so many tokens of prompts, others save little.
_ENOUGH_TOKENS = 1024
# So many last arrivals say how often they come. Somebody is likely to come where the mean pause between them is no longer than
# twice the wait.
_REMEMBERED_ARRIVALS = 8
_PAUSE_FACTOR = 2


class PrefillDelay:
    """Keeps how often requests come.

    Attributes:
        max_steps: for which a prompt waits at most while others decode; 0: none does.

    Args:
        max_step_tokens: of a step that takes as long with fewer; None: not known.
    """

    def __init__(self, max_steps: int = 0, max_step_tokens: int | None = None) -> None:
        self.max_steps = max_steps
        self._max_step_tokens = max_step_tokens
        self._arrivals: deque[int] = deque(maxlen=_REMEMBERED_ARRIVALS)

    def came(self, step: int) -> None:
        """A request came before ``step`` was planned."""
        if self.max_steps:
            self._arrivals.append(step)

    def waits(self, step: int, num_decoding: int, budget: int, came_at: Iterable[int], tokens: Sequence[int]) -> bool:
        """Whether the prompts that could be computed in ``step``, in which others decode, are left to a later one.

        Args:
            num_decoding: tokens of those.
            budget: tokens that are left beside them.
            came_at: the first step that was planned with each prompt here.
            tokens: what is to be computed of each.
        """
        if not tokens or sum(tokens) >= self._enough(num_decoding, budget) or step - min(came_at) >= self.max_steps:
            return False
        arrivals = self._arrivals
        return (
            len(arrivals) == _REMEMBERED_ARRIVALS
            and step - arrivals[0] <= _PAUSE_FACTOR * self.max_steps * _REMEMBERED_ARRIVALS
        )

    def _enough(self, num_decoding: int, budget: int) -> int:
        """So many tokens of prompts, beside which there is no room or others would take time of their own."""
        enough = min(_ENOUGH_TOKENS, budget)
        return enough if self._max_step_tokens is None else min(enough, self._max_step_tokens - num_decoding)
