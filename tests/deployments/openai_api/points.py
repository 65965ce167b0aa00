"""Events that a server might have sent, for requests that take an answer up."""

from __future__ import annotations

import time
from typing import Any

from cluster.tenant import NOBODY, Tenant
from deployments.openai_api.answers.answer_digest import AnswerDigest
from deployments.openai_api.answers.event_ids import ResumePoint

ANSWER = "cmpl-" + "0" * 32


def point_of(body: dict[str, Any], prompts: list[list[int]], tenant: Tenant = NOBODY) -> ResumePoint:
    """The event after which the client of ``body`` has what its field resume says."""
    digest = AnswerDigest(tenant.event_key, prompts, body.get("max_tokens"), body.get("n", 1))
    choices = body["resume"]["choices"]
    for index, has in enumerate(choices):
        digest.add(index, has["token_ids"], has.get("finish_reason"))
    num_tokens = sum(len(has["token_ids"]) for has in choices)
    return ResumePoint(ANSWER, int(time.time()), num_tokens, 0, 0, digest.text(body["resume"]["fingerprint"]))
