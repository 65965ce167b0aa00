"""The sampler: what follows a step's forward on the device, from hidden states to the packed outputs."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import paddle

from actors.models.decoder import Decoder
from actors.scheduling.step_plan import PromptLogprobs, SamplingNeeds
from cluster.outputs import TokenLogprobs
from cluster.sampling_params import MAX_LOGPROBS
from gpu_ops import sampling, state
from gpu_ops.slots.share_inputs import ShareInputs

# Rows of all-position logits computed at once: 64 rows of a 150,000-token vocabulary are 38 MB.
_LOGITS_ROWS = 64


class SamplingGraph(IntEnum):
    """What one captured graph of the sampling does; each does what those before it do, too, and slots that want less get less."""

    PLAIN = 0
    PENALTIES = 1
    GRAMMAR = 2
    LOGPROBS = 3

    @classmethod
    def for_needs(cls, needs: SamplingNeeds) -> SamplingGraph | None:
        """The least that serves a step; None where no graph does all that it needs."""
        return next((graph for graph, done in _DONE_BY_GRAPHS if done.covers(needs)), None)

    @property
    def needs(self) -> SamplingNeeds:
        """What the graph does for any step: as many alternatives as a request may ask for."""
        num_logprobs = MAX_LOGPROBS if self >= self.LOGPROBS else -1
        return SamplingNeeds(self >= self.PENALTIES, self >= self.GRAMMAR, num_logprobs)


_DONE_BY_GRAPHS = tuple((graph, graph.needs) for graph in SamplingGraph)


class Sampler:
    """Changes ``share_inputs`` from one step to the next.

    Args:
        processed_logprobs: log-probabilities are of what is drawn from, less what top_k, top_p and min_p leave out, rather than
            of the model's raw distribution; those of prompts are always raw.
        sample_rows, sample_slots: int32 [B], which ``pack_tokens`` fills: last row and slot of each slot that samples.
    """

    def __init__(
        self,
        model: Decoder,
        share_inputs: ShareInputs,
        sample_rows: paddle.Tensor,
        sample_slots: paddle.Tensor,
        processed_logprobs: bool = False,
    ) -> None:
        self._model = model
        self._device = model.device
        self._share = share_inputs
        self._rows = sample_rows
        self._slots = sample_slots
        self._processed_logprobs = processed_logprobs
        # Where every forward leaves what the sampling reads, so that one sampling serves them all.
        self._last_hidden = model.device.empty([sample_rows.shape[0], model.config.hidden_size])
        self._no_tokens = paddle.to_tensor(np.zeros(0, np.int64), place=paddle.CPUPlace())

    def gather(self, hidden: paddle.Tensor, num_samples: int) -> None:
        """Keep the hidden states of the rows that sample, out of a forward's [T, H]; the last part of a forward.

        Args:
            num_samples: rows that sample, or more. What stood in the rows behind them stays.
        """
        sampling.gather_last_tokens(hidden, self._rows[:num_samples], self._last_hidden)

    def run(
        self,
        num_samples: int,
        needs: SamplingNeeds,
        token_masks: paddle.Tensor,
        packed: paddle.Tensor,
    ) -> None:
        """Sample of what was gathered, detect stops, advance the slots and pack the outputs; prompts are scored apart.

        Args:
            num_samples: rows that sample, an upper bound on a GPU.
            token_masks: int32 [B, 1 + words] as in ``gpu_ops.sampling.apply_token_masks``; not looked at without a grammar.
            packed: int64 block for the outputs, as in ``gpu_ops.step_result``.
        """
        share, slots = self._share, self._slots
        tokens, logprobs = self._no_tokens, None
        if num_samples:
            logits = self._model.compute_logits(self._last_hidden[:num_samples])
            wants_logprobs = needs.num_logprobs >= 0
            of_raw = wants_logprobs and not self._processed_logprobs
            shown = self._device.copy_of(logits) if of_raw and needs.changes_logits else logits
            if needs.penalties:
                sampling.apply_penalties(logits, share, slots)
            masks = token_masks if needs.grammar else None
            if wants_logprobs and self._processed_logprobs:
                if masks is not None:
                    sampling.apply_token_masks(logits, masks, slots)
                    masks = None
                shown = self._device.copy_of(logits)
                sampling.apply_temperature(shown, share, slots)
            tokens = sampling.sample(logits, share, slots, masks)
            if wants_logprobs:
                logprobs = sampling.token_logprobs(shown, tokens, needs.num_logprobs)
        state.detect_stop(share, tokens, slots)
        state.update_inputs(share, tokens, slots)
        if logprobs is None:
            state.pack_outputs(share, packed)
        else:
            state.pack_outputs(share, packed, slots, *logprobs)

    def score_prompt(self, hidden: paddle.Tensor, first_row: int, wanted: PromptLogprobs) -> list[TokenLogprobs]:
        """Log-probabilities of prompt tokens from all-position logits, a bounded number of rows at a time. Waits for the
        device: rare requests pay for it."""
        scored: list[TokenLogprobs] = []
        for start in range(0, len(wanted.targets), _LOGITS_ROWS):
            targets = self._device.tensor(np.asarray(wanted.targets[start : start + _LOGITS_ROWS], np.int64))
            row = first_row + start
            logits = self._model.compute_logits(hidden[row : row + targets.shape[0]])
            ids, values, ranks = (t.numpy() for t in sampling.token_logprobs(logits, targets, wanted.num_logprobs))
            scored += [
                TokenLogprobs(float(v[0]), int(r), i[1:].tolist(), v[1:].tolist())
                for i, v, r in zip(ids, values, ranks, strict=True)
            ]
        return scored
