"""Stop strings: the same outcome however the text is cut, nothing of a stop string ever leaks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deployments.answers.stop_strings import StopStringMatcher

SMALL = st.text(alphabet="abc", max_size=24)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=4)


def first_match(text: str, stops: list[str], unarmed: int = 0) -> tuple[int, int, str] | None:
    """(start, end, stop) by brute force: earliest end beyond ``unarmed`` characters, then the longest."""
    for end in range(unarmed + 1, len(text) + 1):
        matching = [stop for stop in stops if text[:end].endswith(stop)]
        if matching:
            longest = max(matching, key=len)
            return end - len(longest), end, longest
    return None


def run(
    pieces: list[str], stops: list[str], unarmed_pieces: int = 0, include: bool = False
) -> tuple[list[str], str | None]:
    matcher = StopStringMatcher(stops, include)
    released = [matcher.push(piece, armed=i >= unarmed_pieces) for i, piece in enumerate(pieces)]
    if matcher.matched is None:
        released.append(matcher.finish())
    return released, matcher.matched


@given(st.lists(SMALL, max_size=8), STOPS, st.integers(0, 8), st.booleans())
def test_pieces_equal_brute_force_on_the_whole_text(pieces, stops, unarmed_pieces, include):
    text = "".join(pieces)
    match = first_match(text, stops, len("".join(pieces[:unarmed_pieces])))
    released, matched = run(pieces, stops, unarmed_pieces, include)
    if match is None:
        assert ("".join(released), matched) == (text, None)
    else:
        start, end, stop = match
        assert ("".join(released), matched) == (text[: end if include else start], stop)


@given(SMALL, STOPS)
def test_text_that_cannot_begin_a_stop_is_released_at_once(text, stops):
    matcher = StopStringMatcher(stops)
    released = ""
    for i, char in enumerate(text):
        released += matcher.push(char)
        if matcher.matched is not None:
            return
        seen = text[: i + 1]
        held = max((n for stop in stops for n in range(len(stop)) if seen.endswith(stop[:n]) and n), default=0)
        assert released == seen[: len(seen) - held]


def test_after_a_match_everything_is_swallowed():
    matcher = StopStringMatcher(["END"])
    assert matcher.push("one E") == "one "
    assert matcher.push("ND two") == ""
    assert matcher.push("three") == ""
    assert matcher.matched == "END"


def test_overlapping_candidate_takes_over_when_the_first_fails():
    assert run(["aa", "ab"], ["aab"]) == (["", "a"], "aab")


def test_of_two_stops_that_end_together_the_longer_is_cut():
    assert run(["xab"], ["b", "ab"]) == (["x"], "ab")
