"""A step's prompt tokens are divided so that nobody stands still and a short prompt waits for no long one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.scheduling.prompt_shares import Prompt, has_tokens_for, prompt_shares

PROMPTS = st.lists(st.builds(Prompt, st.integers(-2, 2), st.booleans(), st.integers(1, 5000)), max_size=20)


def prompt(remaining: int, priority: int = 0, to_begin: bool = True) -> Prompt:
    return Prompt(priority, to_begin, remaining)


def quarter(budget: int) -> int:
    return -(-budget // 4)


@settings(deadline=None)
@given(PROMPTS, st.integers(0, 3000))
def test_shares_fill_the_budget_and_nobody_gets_more_than_it_needs(prompts, budget):
    shares = prompt_shares(prompts, budget)
    assert sum(shares) == min(budget, sum(p.remaining for p in prompts))
    assert all(0 <= share <= p.remaining for share, p in zip(shares, prompts, strict=True))


@settings(deadline=None)
@given(PROMPTS.filter(len), st.integers(0, 3000))
def test_everybody_advances_and_the_longest_by_a_quarter(prompts, more):
    budget = len(prompts) + more
    shares = prompt_shares(prompts, budget)
    assert min(shares) >= 1
    longest = max(range(len(prompts)), key=lambda i: (prompts[i].remaining, prompts[i], i))
    left_by_others = budget - (len(prompts) - 1)
    assert shares[longest] >= min(prompts[longest].remaining, quarter(budget), left_by_others)


@settings(deadline=None)
@given(PROMPTS.filter(len), st.integers(0, 3000))
def test_the_shortest_of_the_most_urgent_gets_what_the_others_are_not_sure_of(prompts, more):
    budget = len(prompts) + more
    shares = prompt_shares(prompts, budget)
    first = min(range(len(prompts)), key=lambda i: (prompts[i], i))
    equal_share = max(1, budget // (4 * len(prompts)))
    sure = (len(prompts) - 1) * equal_share + quarter(budget)
    assert shares[first] >= min(prompts[first].remaining, budget - sure)
    # Who gets more than its sure share leaves nobody before it in need.
    for i, mine in enumerate(prompts):
        if shares[i] > max(equal_share, quarter(budget)):
            assert all(shares[j] == p.remaining for j, p in enumerate(prompts) if (p, j) < (mine, i))


@settings(deadline=None)
@given(PROMPTS, st.integers(0, 3000), st.randoms())
def test_shares_depend_on_what_is_left_alone(prompts, budget, random):
    """Not on the order, but for which of two that are alike is meant."""
    shares = prompt_shares(prompts, budget)
    assert shares == prompt_shares(list(prompts), budget)
    order = list(range(len(prompts)))
    random.shuffle(order)
    shuffled = prompt_shares([prompts[i] for i in order], budget)
    alike = sorted(zip(prompts, shares, strict=True))
    assert sorted(zip([prompts[i] for i in order], shuffled, strict=True)) == alike


def test_six_tokens_beside_three_thousand_are_computed_at_once():
    assert prompt_shares([prompt(3000), prompt(6)], 64) == [58, 6]
    assert prompt_shares([prompt(3000), prompt(6, priority=9)], 64) == [58, 6]
    assert prompt_shares([prompt(3000, to_begin=False), prompt(6)], 64) == [58, 6]


def test_a_long_prompt_beside_endless_short_ones_needs_four_times_as_long_at_most():
    remaining, steps = 3000, 0
    while remaining > 60:
        remaining -= prompt_shares([prompt(remaining), prompt(50), prompt(60), prompt(40)], 64)[0]
        steps += 1
    assert steps == -(-(3000 - 60) // 16)


def test_urgent_prompts_and_answers_in_the_middle_get_the_rest_first():
    assert prompt_shares([prompt(500, 0), prompt(400, 1)], 64) == [56, 8]
    assert prompt_shares([prompt(400, 1), prompt(300, 1), prompt(200, 1, to_begin=False)], 60) == [15, 5, 40]


def test_of_equal_prompts_the_earlier_ones_go_first():
    assert prompt_shares([prompt(100)] * 4, 64) == [40, 4, 4, 16]


@settings(deadline=None)
@given(
    PROMPTS.filter(len),
    st.integers(0, 3000),
    st.builds(Prompt, st.integers(-2, 2), st.booleans(), st.integers(1, 5000)),
)
def test_a_newcomer_has_tokens_unless_those_before_it_need_them_all(prompts, more, newcomer):
    budget = len(prompts) + 1 + more
    if has_tokens_for(newcomer, prompts, budget):
        assert sum(p.remaining for p in prompts if p <= newcomer) < budget
    else:
        share = prompt_shares([*prompts, newcomer], budget)[-1]
        assert share <= max(1, budget // (4 * (len(prompts) + 1)), quarter(budget))
