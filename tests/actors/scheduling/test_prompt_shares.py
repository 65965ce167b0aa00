"""A step's prompt tokens are divided so that nobody stands still and a short prompt waits for no long one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.scheduling.prompt_shares import Prompt, has_tokens_for, prompt_shares

ANY = st.builds(Prompt, st.integers(-2, 2), st.booleans(), st.integers(1, 5000))
STEPS = st.sampled_from([1, 2, 30, 4000])
PROMPTS = st.lists(ANY, max_size=20)
WAITING = st.lists(st.tuples(ANY, STEPS), max_size=20)


def prompt(remaining: int, priority: int = 0, to_begin: bool = True) -> Prompt:
    return Prompt(priority, to_begin, remaining)


def equal_share(prompts: list, budget: int) -> int:
    return max(1, budget // (4 * len(prompts)))


@settings(deadline=None)
@given(WAITING, st.integers(0, 3000))
def test_shares_fill_the_budget_and_nobody_gets_more_than_it_needs(waiting, budget):
    prompts, steps = [p for p, _ in waiting], [steps for _, steps in waiting]
    shares = prompt_shares(prompts, steps, budget)
    assert sum(shares) == min(budget, sum(p.remaining for p in prompts))
    assert all(0 <= share <= p.remaining for share, p in zip(shares, prompts, strict=True))


@settings(deadline=None)
@given(WAITING.filter(len), st.integers(0, 3000))
def test_everybody_advances_by_an_equal_share(waiting, more):
    prompts, steps = [p for p, _ in waiting], [steps for _, steps in waiting]
    budget = len(prompts) + more
    shares = prompt_shares(prompts, steps, budget)
    assert all(
        share >= min(p.remaining, equal_share(prompts, budget)) for share, p in zip(shares, prompts, strict=True)
    )


@settings(deadline=None)
@given(WAITING.filter(len), st.integers(0, 3000))
def test_who_is_no_longer_and_has_waited_no_less_goes_first(waiting, more):
    prompts, steps = [p for p, _ in waiting], [steps for _, steps in waiting]
    budget = len(prompts) + more
    shares = prompt_shares(prompts, steps, budget)
    for i, mine in enumerate(prompts):
        if shares[i] > equal_share(prompts, budget):
            for j, other in enumerate(prompts):
                if other[:2] < mine[:2] or (
                    other[:2] == mine[:2]
                    and (other.remaining, -steps[j], j) < (mine.remaining, -steps[i], i)
                    and steps[j] >= steps[i]
                ):
                    assert shares[j] == other.remaining, (i, j)


@settings(deadline=None)
@given(WAITING, st.integers(0, 3000), st.randoms())
def test_shares_depend_on_what_is_left_and_waits_alone(waiting, budget, random):
    """Not on the order, but for which of two that are alike is meant."""
    shares = prompt_shares([p for p, _ in waiting], [steps for _, steps in waiting], budget)
    shuffled = list(waiting)
    random.shuffle(shuffled)
    other = prompt_shares([p for p, _ in shuffled], [steps for _, steps in shuffled], budget)
    assert sorted(zip(waiting, shares, strict=True)) == sorted(zip(shuffled, other, strict=True))


def test_six_tokens_beside_three_thousand_are_computed_at_once():
    assert prompt_shares([prompt(3000), prompt(6)], [60, 1], 64) == [58, 6]
    assert prompt_shares([prompt(3000), prompt(6, priority=9)], [1, 1], 64) == [58, 6]
    assert prompt_shares([prompt(3000, to_begin=False), prompt(6)], [1, 1], 64) == [58, 6]


def test_who_has_waited_for_longer_than_the_square_of_their_lengths_says_goes_first():
    prompts = [prompt(400), prompt(100)]
    assert prompt_shares(prompts, [1, 1], 64) == [8, 56]
    assert prompt_shares(prompts, [47, 3], 64) == [8, 56]
    assert prompt_shares(prompts, [49, 3], 64) == [56, 8]
    assert prompt_shares([prompt(100), prompt(100)], [1, 2], 64) == [8, 56]


def test_a_long_prompt_beside_endless_short_ones_has_its_turn():
    remaining, waited, short = 600, 0, [50, 60, 40]
    while remaining:
        waited += 1
        prompts = [prompt(remaining), *map(prompt, short)]
        share = prompt_shares(prompts, [waited, 1, 1, 1], 64)[0]
        if all(waited / remaining**2 > 1 / length**2 for length in short):
            assert share == min(remaining, 64 - 3 * 4)
        remaining -= share
    assert waited < 600 / 4


def test_urgent_prompts_and_answers_in_the_middle_get_the_rest_first():
    assert prompt_shares([prompt(500, 0), prompt(400, 1)], [1, 60], 64) == [56, 8]
    found = prompt_shares([prompt(400, 1), prompt(300, 1), prompt(200, 1, to_begin=False)], [60, 60, 1], 60)
    assert found == [5, 5, 50]


def test_of_equal_prompts_the_earlier_ones_go_first():
    assert prompt_shares([prompt(100)] * 4, [7] * 4, 64) == [52, 4, 4, 4]


@settings(deadline=None)
@given(
    PROMPTS.filter(len),
    st.integers(0, 3000),
    ANY,
)
def test_a_newcomer_has_tokens_unless_those_before_it_need_them_all(prompts, more, newcomer):
    budget = len(prompts) + 1 + more
    if has_tokens_for(newcomer, prompts, budget):
        assert sum(p.remaining for p in prompts if p <= newcomer) < budget
    else:
        share = prompt_shares([*prompts, newcomer], [1] * (len(prompts) + 1), budget)[-1]
        assert share <= equal_share([*prompts, newcomer], budget)
