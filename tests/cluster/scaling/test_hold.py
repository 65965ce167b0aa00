"""What ingresses hold together while there is no engine: never more than the whole, and nothing of it is nobody's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.scaling.hold import HoldShare, hold_share

names = st.sets(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=16)


@given(names, st.integers(0, 1000))
def test_the_parts_are_the_whole_and_nearly_equal(ingresses, total):
    parts = [hold_share(name, dict.fromkeys(ingresses, 0)).part(total) for name in ingresses]
    assert sum(parts) == total
    assert max(parts) - min(parts) <= 1


@given(st.integers(1, 500), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 100)), max_size=60))
def test_ingresses_that_come_one_after_the_other_hold_no_more_than_the_whole(total, arrivals):
    """Each takes what its part and the others' leave, and all have heard of all before."""
    held = {"i0": 0}
    for ingress, count in arrivals:
        name = f"i{ingress}"
        held.setdefault(name, 0)
        share = hold_share(name, held)
        free = share.part(total) - held[name] - share.excess(total, share.part(total))
        held[name] += max(0, min(count, free))
        assert sum(held.values()) <= total


def test_what_another_ingress_holds_beyond_its_part_is_taken_off():
    share = hold_share("new", {"old": 9, "new": 0})
    assert share == HoldShare(0, 2, 9)
    assert (share.part(10), share.excess(10, 5)) == (5, 4)
    assert hold_share("new", {"old": 5}).excess(10, 5) == 0
    assert hold_share("only", {}) == HoldShare()
