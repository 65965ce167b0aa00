"""Engines that a test plays, where an ingress has its EngineClient."""

from __future__ import annotations

from types import SimpleNamespace

from cluster.outputs import FINISH_LENGTH, TokenDelta, TokenLogprobs
from deployments.metrics.ingress_metrics import IngressMetrics


class Engines:
    """Every sequence gets the same tokens at once, and log-probabilities if asked for.

    Args:
        entry: what every token's and every prompt token's log-probabilities are.
    """

    subscriber = "test"

    def __init__(self, token_ids: list[int], entry: TokenLogprobs | None = None) -> None:
        self.metrics = IngressMetrics()
        self._token_ids = token_ids
        self._entry = entry or TokenLogprobs(-1.0, 1, [0], [-1.0])

    def check_room(self, num_sequences, tenant=""):
        pass

    def submit(self, entry, deliver, fail):
        logprobs = None if entry.params.logprobs is None else [self._entry] * len(self._token_ids)
        num_prompt = len(entry.prompt_token_ids)
        of_prompt = None if entry.params.prompt_logprobs is None else [None, *[self._entry] * (num_prompt - 1)]
        delta = TokenDelta(entry.request_id, entry.attempt, 0, self._token_ids, logprobs, FINISH_LENGTH)
        deliver(delta._replace(prompt_logprobs=of_prompt))
        return SimpleNamespace(entry=entry)

    def cancel(self, submission):
        pass


class SlowEngines(Engines):
    """Engines that say nothing until the test does."""

    def __init__(self) -> None:
        super().__init__([])

    def submit(self, entry, deliver, fail):
        self.fail = fail
        self.submission = SimpleNamespace(is_admitted=False)
        num_delivered = 0

        def deliver_next(tokens, end=None):
            nonlocal num_delivered
            if num_delivered and len(tokens) == 1 and end is None:  # as nearly all come
                self.submission.deliver_token(num_delivered, tokens[0])
            else:
                deliver(TokenDelta(entry.request_id, 0, num_delivered, tokens, None, end))
            num_delivered += len(tokens)

        self.deliver = deliver_next
        return self.submission
