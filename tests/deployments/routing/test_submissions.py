"""Who is on which engine is what each submission says of itself, however they come and go."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cluster.journal import JournalEntry
from cluster.outputs import AttachRequired
from cluster.sampling_params import SamplingParams
from deployments.routing.router.engine_choices import EngineChoices
from deployments.routing.submission import Submission
from deployments.routing.submissions import Submissions
from deployments.routing.token_streams import TokenStream


def nobody(*_: Any) -> None:
    """Takes what is delivered."""


@pytest.mark.parametrize("seed", range(20))
async def test_who_shares_an_engine_is_known_through_all_moves(seed):
    rng, submissions = random.Random(seed), Submissions(EngineChoices())
    streams = [TokenStream(AttachRequired(f"engine-{number}", None, "")) for number in range(2)]
    alone: dict[Submission, bool] = {}
    for number in range(200):
        kind = rng.choice(["open", "place", "place", "displace", "close"])
        if kind == "open" or not alone:
            submission = Submission(JournalEntry(f"r{number}", [1], SamplingParams()), nobody, nobody)
            submissions.open(submission)
            alone[submission] = True
            continue
        submission = rng.choice(list(alone))
        if kind == "place":
            stream = rng.choice(streams)
            if submission.stream is stream:
                continue
            others = [other for other in alone if other is not submission and other.stream is stream]
            alone.update(dict.fromkeys(others, False))
            alone[submission] = not others
            submissions.place(submission, stream)
        elif kind == "displace":
            submissions.displace(submission)
        else:
            submissions.close(submission)
            del alone[submission]
            if rng.random() < 0.3:
                # A reply that comes late says where it was; it ran beside others, too.
                stream = rng.choice(streams)
                submissions.place(submission, stream)
                alone.update({other: False for other in alone if other.stream is stream})
        for stream in streams:
            assert set(submissions.on(stream)) == {one for one in alone if one.stream is stream}
        assert {one: one.alone for one in alone} == alone
    for submission in list(alone):
        submissions.close(submission)
    assert not submissions._on
