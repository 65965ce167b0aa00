"""What a step does for each of its rows, for all of them at once: most rows of most steps decode one token, drawn from the logits
as they are, of which nothing is said but the token.

``step_rows.cc`` does it; ``PythonRows``, its plain twin, serves where nothing can be compiled.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import cast

from actors.scheduling.sequence import Sequence
from cluster.outputs import PlainTokens
from cluster.request import EngineRequest, RequestState
from gpu_ops.build import OpBuildError
from gpu_ops.extension import load_extension

logger = logging.getLogger("bireme.engine")

SOURCE = Path(__file__).with_suffix(".cc")

_RUNNING, _PREEMPTING = RequestState.RUNNING, RequestState.PREEMPTING


class PythonRows:
    """The loops over a step's rows; ``step_rows.cc`` has functions of the same names."""

    def plan_rows(
        self,
        rows: list[Sequence],
        start: int,
        block_size: int,
        scheduled: dict[int, int],
        request_ids: dict[int, str],
        owners: dict[int, Sequence],
        sampling: list[int],
        not_plain: list[Sequence],
    ) -> int:
        """Plan a token for each of ``rows[start:]`` that still runs and has one to compute.

        Returns where it stopped: at a row that needs a block, else ``len(rows)``.

        Args:
            scheduled, request_ids, sampling: of the ``StepPlan``; filled.
            owners: slot to sequence; filled.
            not_plain: filled with those that sample, and not plainly.
        """
        for index in range(start, len(rows)):
            sequence = rows[index]
            if sequence.state is not _RUNNING or sequence.will_have_finished:
                continue
            if sequence.num_computed_tokens >= len(sequence.block_ids) * block_size:
                return index
            slot = sequence.slot
            scheduled[slot], request_ids[slot], owners[slot] = 1, sequence.request.request_id, sequence
            sequence.num_computed_tokens = computed = sequence.num_computed_tokens + 1
            if computed == sequence.num_tokens:
                sampling.append(slot)
                sequence.num_tokens += 1
                if not sequence.samples_plainly:
                    not_plain.append(sequence)
        return len(rows)

    def rows_with_new_blocks(
        self, scheduled: dict[int, int], owners: dict[int, Sequence], block_size: int
    ) -> list[Sequence]:
        """Those of ``scheduled`` that have computed a block which is not registered."""
        rows = (owners[slot] for slot in scheduled)
        return [s for s in rows if s.num_computed_tokens >= (s.num_registered_blocks + 1) * block_size]

    def saved_rows(
        self, request_ids: dict[int, str], goes_on: list[bool], tokens: list[int]
    ) -> tuple[list[int], list[int], list[int]]:
        """Slots of ``request_ids`` that have a token and go on, their tokens, and the other slots.

        Args:
            goes_on, tokens: by slot.
        """
        plain = [slot for slot in request_ids if goes_on[slot]]
        return plain, [tokens[slot] for slot in plain], [slot for slot in request_ids if not goes_on[slot]]

    def accept_rows(
        self,
        slots: list[int],
        tokens: list[int],
        owners: dict[int, Sequence],
        plain: dict[str, PlainTokens],
    ) -> tuple[int, list[int]]:
        """Append each token to its sequence, and to what its subscriber is told, unless the request has left.

        Returns how many were, and the indices in ``slots`` of those that were not, as theirs is the first token of its attempt.

        Args:
            plain: subscriber to tokens; filled.
        """
        accepted, first = 0, []
        for at, (slot, token) in enumerate(zip(slots, tokens)):
            sequence = owners[slot]
            if sequence.state is not _RUNNING and sequence.state is not _PREEMPTING:
                continue
            request, index = sequence.request, sequence.num_output_tokens
            if index == len(request.output_token_ids):
                first.append(at)
                continue
            sequence.token_ids.append(token)
            lists = plain.get(request.subscriber)
            if lists is None:
                lists = plain[request.subscriber] = PlainTokens.none()
            lists.request_ids.append(request.request_id)
            lists.attempts.append(request.attempt)
            lists.indices.append(index)
            lists.token_ids.append(token)
            accepted += 1
        return accepted, first


@functools.cache
def step_rows() -> PythonRows:
    """``step_rows.cc`` where there is a compiler, or was when the cache was filled; else Python."""
    try:
        native = load_extension(SOURCE)
        native.bind(Sequence, EngineRequest, _RUNNING, _PREEMPTING, PlainTokens.none)
    except (OpBuildError, ImportError, OSError, TypeError) as error:
        logger.warning("rows of a step are planned and accepted one by one by Python, which is slower: %s", error)
        return PythonRows()
    return cast(PythonRows, native)
