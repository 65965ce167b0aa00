"""How much an engine has to do, in tokens: what the router compares and the simulator, too."""

from __future__ import annotations

# A prompt costs its tokens before anybody's next token; one that was computed costs only that answers look back at it. With a
# weight of 1 a new engine would get every prompt until it had as many tokens as the others.
PROMPT_WEIGHT = 10.0


def token_weight(num_tokens: float, prompt_tokens: float, prompt_weight: float = PROMPT_WEIGHT) -> float:
    """
    Args:
        num_tokens: of requests, prompts and answers so far.
        prompt_tokens: of these, those that are still to be computed.
        prompt_weight: how many others one of these counts for.
    """
    return num_tokens + (prompt_weight - 1) * prompt_tokens
