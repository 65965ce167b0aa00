"""Taking up an answer where a client's connection broke: the ids of events, and what the client must send with the last one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from cluster.api_errors import bad_request
from cluster.client.resumable import RESUMABLE_HEADER
from deployments.http.choice import Choice
from deployments.openai_api.protocol import GenerationRequest, Resume, ResumedChoice
from deployments.openai_api.sampling import check_prompt_ids

# With separators, more than the digits of any vocabulary's ids.
_BYTES_A_TOKEN = 12
# Field names, reason of the end and brackets, and some room for a client that indents.
_BYTES_A_CHOICE = 200
_MAX_RESUME_BYTES = 2**25

_EVENT_ID = re.compile(r"([a-z]{1,16}-[0-9a-f]{32}):([0-9]{1,12}):([0-9]{1,12}):([0-9]{1,12})")


class ResumePoint(NamedTuple):
    """An event of an answer: what the answer is called, when it began, how many tokens all choices had by then, and how many
    tokens of its prompts were found in the prefix cache."""

    answer_id: str
    created: int
    num_tokens: int
    num_cached_tokens: int

    def __str__(self) -> str:
        return ":".join(map(str, self))


def wants_event_ids(header: str | None, last_event_id: str | None) -> bool:
    """Whether a client means to take its stream up if it breaks: it says so, or it does so. Others get no ids: some readers
    know nothing but ``data``.

    Raises:
        ApiError: the header ``RESUMABLE_HEADER`` is neither 0 nor 1.
    """
    if header not in (None, "0", "1"):
        raise bad_request(f"the header {RESUMABLE_HEADER} must be 0 or 1, got {header[:80]!r}", RESUMABLE_HEADER)
    return header == "1" or last_event_id is not None


def max_resume_bytes(last_event_id: str | None, max_choices: int, max_model_len: int) -> int:
    """How much longer the body of a request may be because of what its client has of the answer: as many tokens as the event's
    id tells; nothing for what is no event id."""
    match = _EVENT_ID.fullmatch(last_event_id or "")
    if match is None:
        return 0
    num_tokens = min(int(match[3]), max_choices * max_model_len)
    return min(_BYTES_A_TOKEN * num_tokens + _BYTES_A_CHOICE * max_choices, _MAX_RESUME_BYTES)


def resume_point(request: GenerationRequest, last_event_id: str | None, id_prefix: str) -> ResumePoint | None:
    """The event that ``request`` goes on after; None for a request from the beginning.

    Raises:
        ApiError: header and field do not belong together, or the header is none of this server's ids.
    """
    resume = request.resume
    if resume is None and last_event_id is None:
        return None
    if resume is None or last_event_id is None:
        raise bad_request("the header Last-Event-ID and the field resume must come together", "resume")
    match = _EVENT_ID.fullmatch(last_event_id)
    if match is None or not match[1].startswith(f"{id_prefix}-"):
        raise bad_request(f"Last-Event-ID is none of this endpoint's event ids: {last_event_id[:80]!r}", "resume")
    point = ResumePoint(match[1], *map(int, match.groups()[1:]))
    if resume.num_tokens != point.num_tokens:
        raise bad_request(
            f"resume has {resume.num_tokens} tokens, but the event in Last-Event-ID came with token {point.num_tokens}",
            "resume",
        )
    return point


def resume_choices(resume: Resume, choices: Sequence[Choice], vocab_size: int) -> None:
    """Bring new choices to where the client is.

    Raises:
        ApiError: a choice cannot have been answered so.
    """
    has_begun = any(has.token_ids or has.finish_reason for has in resume.choices)
    for choice, has in zip(choices, resume.choices):
        _resume_choice(choice, has, resume.fingerprint, vocab_size)
        # Not the first attempt: an answer that has begun is not refused for a full queue; any other is.
        choice.entry.attempt = int(has_begun)


def _resume_choice(choice: Choice, has: ResumedChoice, fingerprint: str, vocab_size: int) -> None:
    entry = choice.entry
    where, params = f"resume.choices.{choice.index}", entry.params
    check_prompt_ids(has.token_ids, f"{where}.token_ids", vocab_size)
    num_tokens, finished = len(has.token_ids), has.finish_reason is not None
    if num_tokens > params.max_tokens or (num_tokens == params.max_tokens and not finished):
        raise bad_request(f"{where} has {num_tokens} tokens; max_tokens is {params.max_tokens}", f"{where}.token_ids")
    if not choice.output.resume(has.token_ids, has.finish_reason, params.logprobs is not None):
        raise bad_request(f"{where}: these tokens complete a stop string", f"{where}.finish_reason")
    entry.output_token_ids = list(has.token_ids)
    entry.finish_reason = has.finish_reason
    entry.fingerprint = fingerprint
