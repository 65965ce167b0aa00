"""Text of a growing answer: equal for every grouping of tokens into deltas, and cut where a stop says so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.outputs import TokenDelta, TokenLogprobs
from cluster.sampling_params import SamplingParams
from deployments.answers.sequence_output import SequenceOutput

EOS = 0


class Letters:
    """Id n is the n-th small letter; the end-of-sequence token has no text."""

    def push(self, token_id: int) -> str:
        return "" if token_id == EOS else chr(96 + token_id)


def ids(text: str) -> list[int]:
    return [ord(char) - 96 for char in text]


def run(
    groups: list[list[int]], finish_reason: str, matched=None, include=False, **params
) -> tuple[str, SequenceOutput]:
    """Feed the groups as deltas; the last one carries the finish. Returns the streamed text and the output."""
    output = SequenceOutput(Letters(), SamplingParams(**params), eos_token_ids=(EOS,), include_stop=include)
    streamed, index = "", 0
    for i, group in enumerate(groups):
        last = i == len(groups) - 1
        logprobs = [TokenLogprobs(-1.0, 1, [], []) for _ in group]
        streamed += output.push(
            TokenDelta("r", 0, index, group, logprobs, finish_reason if last else None, matched if last else None)
        )
        index += len(group)
    return streamed, output


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(0, 20))
def test_a_token_alone_is_pushed_as_a_delta_is(tokens, ended_after):
    outputs = [SequenceOutput(Letters(), SamplingParams(), eos_token_ids=(EOS,)) for _ in range(2)]
    assert all(output.is_plain for output in outputs)
    for index, token in enumerate(tokens):
        delta = TokenDelta("r", 0, index, [token], None, "length" if index == ended_after else None)
        if index == 0 or delta.finish_reason:
            texts = [output.push(delta) for output in outputs]
        else:
            texts = [outputs[0].push(delta), outputs[1].push_token(token)]
        assert texts[0] == texts[1]
    seen = [(output.text, output.token_ids, output.finish_reason) for output in outputs]
    assert seen[0] == seen[1]


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=20),
    st.lists(st.integers(1, 4), min_size=1, max_size=20),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple), max_size=2),
    st.integers(0, 6),
)
def test_grouping_of_tokens_changes_nothing(tokens, sizes, stops, sequences, min_tokens):
    groups, rest = [], list(tokens)
    for size in sizes:
        groups.append(rest[:size])
        rest = rest[size:]
    groups.append(rest)
    params = {"stop": tuple(stops), "stop_token_seqs": tuple(sequences), "min_tokens": min_tokens}
    streamed, output = run(groups, "length", **params)
    _, whole = run([tokens], "length", **params)
    assert streamed == output.text == whole.text
    assert output.token_ids == whole.token_ids
    assert len(output.logprobs) == len(output.token_ids)
    assert (output.finish_reason, output.stop_reason) == (whole.finish_reason, whole.stop_reason)


def test_stop_string_cuts_text_tokens_and_logprobs():
    streamed, output = run([ids("ab"), ids("cd"), ids("ef")], "length", stop=("cd",))
    assert streamed == "ab"
    assert output.token_ids == ids("abcd")
    assert len(output.logprobs) == 4
    assert (output.finish_reason, output.stop_reason) == ("stop", "cd")


@pytest.mark.parametrize(("min_tokens", "text"), [(1, ""), (2, "ab"), (3, "ab"), (4, "abab"), (6, "ababab")])
def test_a_stop_string_must_end_after_min_tokens(min_tokens, text):
    assert run([ids("ababab")], "length", stop=("ab",), min_tokens=min_tokens)[0] == text


def test_end_of_sequence_has_no_text_and_no_stop_reason():
    streamed, output = run([ids("ab"), [EOS]], "stop", matched=EOS)
    assert (streamed, output.finish_reason, output.stop_reason) == ("ab", "stop", None)
    assert output.token_ids == [1, 2, EOS]


def test_stop_token_is_reported_and_not_part_of_the_text():
    assert run([ids("ab"), ids("c")], "stop", matched=3)[0] == "ab"
    streamed, output = run([ids("abc")], "stop", matched=3, include=True)
    assert (streamed, output.stop_reason) == ("abc", 3)


def test_stop_sequence_never_shows_its_first_tokens():
    groups = [ids("a"), ids("b"), ids("c"), ids("d")]
    streamed, output = run(groups, "stop", matched=[2, 3, 4], stop_token_seqs=((2, 3, 4),))
    assert (streamed, output.stop_reason) == ("a", [2, 3, 4])
    assert run(groups, "length", stop_token_seqs=((2, 3, 4, 5),))[0] == "abcd"


def test_nothing_changes_after_the_end():
    _, output = run([ids("ab")], "length")
    assert output.push(TokenDelta("r", 0, 2, ids("c"), None, "length")) == ""
    assert output.text == "ab"
