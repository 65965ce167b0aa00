"""Taking up an answer where a client's connection broke: what the client must send with the id of the last event."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.api_errors import bad_request, shown
from cluster.client.resumable import RESUMABLE_HEADER
from cluster.outputs import FINISH_STOP
from deployments.answers.choice import Choice
from deployments.openai_api.answers.answer_digest import AnswerDigest
from deployments.openai_api.answers.event_ids import LAST_EVENT_ID_HEADER, ResumePoint
from deployments.openai_api.requests.protocol import GenerationRequest, Resume, ResumedChoice
from deployments.openai_api.requests.sampling import check_prompt_ids

# With separators, more than the digits of any vocabulary's ids.
_BYTES_A_TOKEN = 12
# Field names, reason of the end and brackets, and some room for a client that indents.
_BYTES_A_CHOICE = 200
_MAX_RESUME_BYTES = 2**25


def wants_event_ids(header: str | None, last_event_id: str | None) -> bool:
    """Whether a client means to take its stream up if it breaks: it says so, or it does so. Others get no ids: some readers
    know nothing but ``data``.

    Raises:
        ApiError: the header ``RESUMABLE_HEADER`` is neither 0 nor 1.
    """
    if header not in (None, "0", "1"):
        raise bad_request(f"the header {RESUMABLE_HEADER} must be 0 or 1, got {shown(header)}", RESUMABLE_HEADER)
    return header == "1" or last_event_id is not None


def max_resume_bytes(point: ResumePoint | None, max_choices: int, max_model_len: int) -> int:
    """How much longer the body of a request may be because of what its client has of the answer: as many tokens as came with the
    event; nothing for a request from the beginning."""
    if point is None:
        return 0
    num_tokens = min(point.num_tokens, max_choices * max_model_len)
    return min(_BYTES_A_TOKEN * num_tokens + _BYTES_A_CHOICE * max_choices, _MAX_RESUME_BYTES)


def check_resume(request: GenerationRequest, point: ResumePoint | None, id_prefix: str) -> None:
    """Look whether ``request`` can go on after the event of its header; one from the beginning has neither header nor field.

    Raises:
        ApiError: header and field do not belong together, or the event is of another endpoint.
    """
    resume = request.resume
    if resume is None and point is None:
        return
    if resume is None or point is None:
        raise bad_request(f"the header {LAST_EVENT_ID_HEADER} and the field resume must come together", "resume")
    if not point.answer_id.startswith(f"{id_prefix}-"):
        raise bad_request(
            f"the event in the header {LAST_EVENT_ID_HEADER} is none of this endpoint's: {point.answer_id}",
            LAST_EVENT_ID_HEADER,
        )
    if resume.num_tokens != point.num_tokens:
        raise bad_request(
            f"resume has {resume.num_tokens} tokens, but the event in {LAST_EVENT_ID_HEADER} came with token "
            f"{point.num_tokens}",
            "resume",
        )


def check_content(resume: Resume, point: ResumePoint, digest: AnswerDigest) -> None:
    """Look whether the client has what was sent, and asks what was asked. ``digest`` has no answer yet, and has that afterwards.

    Raises:
        ApiError: it does not.
    """
    for index, has in enumerate(resume.choices):
        digest.add(index, has.token_ids, has.finish_reason)
    if digest.text(resume.fingerprint) != point.content:
        raise bad_request(
            f"this is not what had been asked and answered with the event in {LAST_EVENT_ID_HEADER}: the request must have the "
            "same prompt or messages, n and max_tokens, and resume the fingerprint, token_ids and finish_reason of each choice "
            "as they came",
            "resume",
        )


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
    # An answer that ends with calls is one that its engine ended.
    finish_reason = FINISH_STOP if has.finish_reason == "tool_calls" else has.finish_reason
    if not choice.output.resume(has.token_ids, finish_reason, params.logprobs is not None):
        raise bad_request(f"{where}: these tokens complete a stop string", f"{where}.finish_reason")
    entry.output_token_ids = list(has.token_ids)
    entry.finish_reason = finish_reason
    entry.fingerprint = fingerprint
