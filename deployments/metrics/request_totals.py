"""What one ingress measured of requests, as plain counters: for names that Ray's agent would change."""

from __future__ import annotations

from collections import Counter

from cluster.observability.histogram import Histogram
from cluster.observability.vllm_metrics import (
    BETWEEN_TOKENS_BUCKETS_S,
    CHOICES_BUCKETS,
    FIRST_TOKEN_BUCKETS_S,
    REQUEST_BUCKETS_S,
    TOKENS_BUCKETS,
)


class RequestTotals:
    """Since the ingress began. Times in seconds.

    Attributes:
        first_token, whole: from receiving a request to its first and its last token.
        between_tokens: between two deliveries of a request, one value a delivery.
        mean_between_tokens: of a request's tokens.
        decode: from the first token of a request to its last.
        prefill, inference: from its slot in an engine to the step with its first token, and to its end.
        prompt_tokens, generation_tokens: of a request.
        longest_generation_tokens: of the longest choice of a prompt.
        max_tokens, num_choices: what requests ask for.
        ended: requests by how they ended.
    """

    def __init__(self) -> None:
        self.first_token = Histogram(FIRST_TOKEN_BUCKETS_S)
        self.between_tokens = Histogram(BETWEEN_TOKENS_BUCKETS_S)
        self.mean_between_tokens = Histogram(BETWEEN_TOKENS_BUCKETS_S)
        self.whole = Histogram(REQUEST_BUCKETS_S)
        self.decode = Histogram(REQUEST_BUCKETS_S)
        self.prefill = Histogram(REQUEST_BUCKETS_S)
        self.inference = Histogram(REQUEST_BUCKETS_S)
        self.max_tokens = Histogram(TOKENS_BUCKETS)
        self.num_choices = Histogram(CHOICES_BUCKETS)
        self.prompt_tokens = Histogram(TOKENS_BUCKETS)
        self.generation_tokens = Histogram(TOKENS_BUCKETS)
        self.longest_generation_tokens = Histogram(TOKENS_BUCKETS)
        self.ended: Counter[str] = Counter()
