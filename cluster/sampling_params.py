"""How one request wants its tokens chosen and its generation ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.grammar import Grammar
from cluster.reasoning import ReasoningMarks

MAX_LOGIT_BIAS = 300
# Of the model; 32 are one look of a warp.
MAX_EOS_TOKEN_IDS = 32
MAX_STOP_TOKEN_IDS = 32
MAX_STOP_SEQS = 8
MAX_STOP_SEQ_LEN = 16
MAX_ALLOWED_TOKEN_IDS = 1024
MAX_BAD_SEQS = 128
MAX_BAD_SEQ_LEN = 8
MAX_LOGPROBS = 20


@dataclass(slots=True, frozen=True)
class SamplingParams:
    """Validated sampling and stopping parameters; names follow OpenAI and vLLM.

    Attributes:
        temperature: 0 selects the most likely token; otherwise logits are divided by it.
        top_p: smallest set of tokens whose probability reaches it, (0, 1].
        top_k: number of most likely tokens kept; 0 keeps all.
        min_p: tokens below min_p times the best probability are dropped, [0, 1].
        presence_penalty, frequency_penalty: over generated tokens, [-2, 2].
        repetition_penalty: over prompt and generated tokens, (0, inf), 1 is off.
        logit_bias: token id to additive bias, at most MAX_LOGIT_BIAS entries.
        allowed_token_ids: the only tokens that may be sampled, at most MAX_ALLOWED_TOKEN_IDS; empty allows all.
        bad_token_seqs: token sequences that may not be generated: the last token of one is out of the question where those
            before it have just been generated. At most MAX_BAD_SEQS of at most MAX_BAD_SEQ_LEN tokens.
        seed: always assigned by the ingress; with the absolute position it fixes every random draw.
        max_tokens, min_tokens: bounds of the generated length; no kind of stop takes effect on the first min_tokens tokens.
        stop: stop strings, matched on text by the ingress.
        stop_token_ids: ids that end generation, reported as matched_stop.
        stop_token_seqs: token sequences that end generation, matched on the device.
        ignore_eos: do not end at the model's end-of-sequence tokens.
        grammar: what the text of the answer must be like; the end of its structure ends the answer. It goes before all that
            forbids tokens: where nothing that it allows is left, one of what it allows is taken.
        thinking_token_budget: most tokens of reasoning; the tokens that end it come behind them. None for no bound.
        reasoning_marks: where the reasoning begins and ends, assigned by the ingress; None where there is nothing to bound.
        logprobs: number of alternatives reported with each token, None for no log-probabilities.
        prompt_logprobs: the same for prompt tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    bad_token_seqs: tuple[tuple[int, ...], ...] = ()
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_token_seqs: tuple[tuple[int, ...], ...] = ()
    ignore_eos: bool = False
    grammar: Grammar | None = None
    thinking_token_budget: int | None = None
    reasoning_marks: ReasoningMarks | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    @property
    def has_penalties(self) -> bool:
        """Penalties, a bias, or forbidden tokens change the logits of every token."""
        return bool(
            self.logit_bias
            or self.allowed_token_ids
            or self.bad_token_seqs
            or self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1
        )

    @property
    def bounds_reasoning(self) -> bool:
        """Whether its tokens of reasoning are counted."""
        return self.thinking_token_budget is not None and self.reasoning_marks is not None

    @property
    def is_masked(self) -> bool:
        """Whether the tokens before it decide which one may come next."""
        return self.grammar is not None or self.bounds_reasoning
