"""A budget of reasoning: its end comes after so many tokens, wherever an answer is taken up, whichever tokens write a mark."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.structured_output.grammars import Grammars
from actors.structured_output.thinking import Matcher
from actors.text.vocabulary import Vocabulary
from cluster.errors import InvalidRequestError, ModelLoadError
from cluster.grammar import LARK, Grammar
from cluster.reasoning import ReasoningMarks
from cluster.sampling_params import SamplingParams
from tests.deployments.openai_api.tool_tokenizer import tool_tokenizer

TOKENIZER = tool_tokenizer()
(EOS,) = TOKENIZER.eos_token_ids
VOCAB_SIZE = TOKENIZER.vocab_size
GRAMMARS = Grammars(lambda: Vocabulary.of(TOKENIZER, VOCAB_SIZE), VOCAB_SIZE, (EOS,))
# One token of the vocabulary, and a text of several, as some families have it.
ENDS = ("</think>", "So:")
THOUGHT_AND_DIGITS = Grammar(LARK, 'start: thought /[0-9]{3}/\nthought[lazy]: /(.|\\n)*/ "</think>"')


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def params(budget: int, end: str = "</think>", is_open: bool = True, grammar: Grammar | None = None) -> SamplingParams:
    marks = ReasoningMarks(("<think>", "Hm:"), ENDS, tuple(ids(end)), is_open)
    return SamplingParams(thinking_token_budget=budget, reasoning_marks=marks, grammar=grammar)


def allowed(matcher: Matcher) -> list[int] | None:
    """Ids of the tokens that may come; None for any."""
    mask = np.full(1 + -(-VOCAB_SIZE // 32), -1, np.int32)
    matcher.fill(mask)
    if not mask[0]:
        return None
    return np.flatnonzero(np.unpackbits(mask[1:].view(np.uint8), bitorder="little")[:VOCAB_SIZE]).tolist()


def written(one: SamplingParams, wanted: list[int]) -> list[int]:
    """What comes of an answer whose model wants ``wanted``: where one may not come, the first that may does."""
    matcher, tokens = GRAMMARS.matcher_of(one), []
    queue = list(wanted)
    while queue and len(tokens) < 60:  # what is wanted may never be allowed
        may = allowed(matcher)
        if may == [EOS]:
            break
        token = queue.pop(0) if may is None or queue[0] in may else may[0]
        matcher.accept(token)
        tokens.append(token)
    return tokens


@pytest.mark.parametrize("end", ENDS)
def test_the_end_comes_after_so_many_tokens_and_what_follows_is_free(end):
    for budget in range(5):
        assert written(params(budget, end), ids("abcdefgh")) == ids("abcdefgh"[:budget] + end + "abcdefgh"[budget:])
    assert written(params(9, end), ids("abcdefgh")) == ids("abcdefgh")


def test_an_end_of_the_models_own_before_that_leaves_nothing_to_force():
    for text in ("ab</think>cdefgh", "abSo:cdefgh", "</think>" + "x" * 9, "<think>ab</think>c"):
        assert written(params(5), ids(text)) == ids(text)
    # An end that has only begun counts as reasoning.
    assert written(params(2, "So:"), ids("SoX")) == ids("SoSo:X")


def test_reasoning_begins_where_the_answer_says_so_and_nowhere_else():
    for text in ("abcdef", "a<think>bcdef", "Hm, abcdef", " \n Hm abcdef"):
        assert written(params(1, is_open=False), ids(text)) == ids(text)
    for begin in ("<think>", "\n <think>", "Hm:", " Hm:"):
        assert written(params(2, is_open=False), ids(begin + "abcdef")) == ids(begin + "ab</think>cdef")
    # Special tokens that nobody sees are no text.
    assert written(params(2, is_open=False), [EOS, *ids("<think>abcd")]) == [EOS, *ids("<think>ab</think>cd")]


def test_a_grammar_goes_on_behind_the_end_and_its_characters_are_completed():
    assert written(params(2, grammar=THOUGHT_AND_DIGITS), ids("abcdef"))[:3] == ids("ab</think>")
    tokens = written(params(2, grammar=THOUGHT_AND_DIGITS), ids("a😀cdef"))
    # The budget ends in a character of four bytes, of which this grammar wants all.
    assert tokens[:6] == ids("a😀</think>") and TOKENIZER.decode(tokens[6:9]).isdigit()
    assert written(params(2), ids("a😀cd"))[2] == ids("</think>")[0]


@given(
    st.integers(0, 12),
    st.sampled_from(ENDS),
    st.booleans(),
    st.lists(st.sampled_from([*ids("<think></think>Hm:So: \nä"), EOS, *range(20, 30)]), max_size=30),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_any_cut_is_taken_up_exactly_and_no_reasoning_is_longer(budget, end, is_open, wanted, has_grammar):
    one = params(budget, end, is_open, THOUGHT_AND_DIGITS if has_grammar else None)
    tokens = written(one, wanted)
    live, masks = GRAMMARS.matcher_of(one), []
    for token in tokens:
        masks.append(allowed(live))
        live.accept(token)
    for cut in range(len(tokens)):
        assert allowed(GRAMMARS.matcher_of(one, tokens[:cut])) == masks[cut]
    if is_open and not has_grammar:
        parts = [b"" if token == EOS else TOKENIZER.token_bytes(token) for token in tokens]
        texts = [b"".join(parts[:count]) for count in range(len(parts) + 1)]
        closed = [any(end.encode() in text for end in ENDS) for text in texts]
        # As long as the reasoning goes on, what is behind the budget is its end.
        for count in range(budget, len(tokens)):
            if not closed[count]:
                assert tokens[budget : count + 1] == ids(end)[: count + 1 - budget]


def test_a_model_without_a_tokenizer_bounds_nothing():
    def missing():
        raise ModelLoadError("there is no tokenizer", "tokenizer")

    with pytest.raises(
        InvalidRequestError, match="thinking_token_budget: cannot be followed by this model: there is no"
    ):
        Grammars(missing, VOCAB_SIZE, (EOS,)).prepare(params(1))
