"""Which noise is drawn, by hand: drafts' scores and runs' chances in, numbers out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_decouple.core.drafts import Draft
from lib_decouple.core.insist import Noises
from lib_decouple.core.presence import SCORE, Curve, Level

CURVE = Curve((Level(1.6, 0.3, 10.0),), Level(1.6, 0.5 - math.log(9) / 20, 20.0))
"""A draft of 0.5 has a chance of 0.9."""


def accepts(one: Draft) -> bool:
    return CURVE.accepts(one.scores.values(), one.sigma)


def noises(*weakest: float, count: int = 4) -> Noises:
    return Noises(count, accepts, [Draft({"cat": 0.9, "dog": own}, torch.zeros(1)) for own in weakest])


def test_a_draft_is_accepted_whose_every_entity_is_surely_there_by_what_drafts_tell() -> None:
    assert CURVE.accepts([0.501, 0.9], 1.6)
    assert not CURVE.accepts([0.499, 0.9], 1.6)
    assert not CURVE.accepts([math.nan, 0.9], 1.6)
    assert CURVE.accepts([], 1.6)
    assert not CURVE.accepts([0.9, 0.9], 3.6)  # of drafts that end there nobody has learned anything
    assert not Curve(CURVE.levels).accepts([0.9], 1.6)


def test_drafts_are_made_until_one_is_accepted_and_no_more_than_may_be() -> None:
    assert noises().wants_draft
    assert noises(0.2, 0.4).wants_draft
    assert not noises(0.2, 0.6).wants_draft
    assert not noises(0.2, 0.4, 0.1, 0.3).wants_draft


@pytest.mark.parametrize(
    ("weakest", "number"), [((0.6,), 0), ((0.2, 0.6), 1), ((0.2, 0.4, 0.1, 0.3), 1), ((0.2, 0.6, 0.8), 1)]
)
def test_the_first_that_is_accepted_is_drawn_else_the_best(weakest: tuple[float, ...], number: int) -> None:
    assert noises(*weakest).next() == number


def test_of_a_model_of_which_nothing_was_learned_the_best_of_all_is_drawn() -> None:
    own = Noises(3)
    for weakest in (0.6, 0.9):
        own.drafts.append(Draft({"cat": weakest}, torch.zeros(1)))
        assert own.wants_draft
    own.drafts.append(Draft({"cat": 0.7}, torch.zeros(1)))
    assert (own.wants_draft, own.next()) == (False, 1)


def test_where_its_run_lacks_an_entity_the_next_is_drafted_for_and_drawn() -> None:
    own = noises(0.2, 0.6)
    own.runs[1] = {"cat": 0.9, "dog": 0.3}
    assert own.lacks(1)
    assert not own.lacks(0)  # was not run
    assert (own.left, own.wants_draft, own.is_spent) == ([0], True, False)
    own.drafts.append(Draft({"cat": 0.3, "dog": 0.3}, torch.zeros(1)))
    own.drafts.append(Draft({"cat": 0.7, "dog": 0.8}, torch.zeros(1)))
    assert (own.wants_draft, own.next()) == (False, 3)
    own.runs[3] = {"cat": 0.2, "dog": 0.9}
    assert (own.next(), own.surest()) == (2, 1)
    own.runs |= {2: {"cat": 0.3, "dog": 0.8}, 0: {"cat": 0.31, "dog": 0.31}}
    assert (own.is_spent, own.surest()) == (True, 0)
    own.runs[0] = {"cat": math.nan, "dog": 0.9}
    assert own.lacks(0)
    assert own.surest() == 1  # of equals the first


@given(
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.integers(0, 4),
)
def test_none_is_drawn_that_scores_below_the_seed_asked_for(
    weakest: list[float], chances: list[float], restarts: int
) -> None:  # fmt: skip
    own = noises()
    while True:
        while own.wants_draft:
            own.drafts.append(Draft({"dog": weakest[len(own.drafts)]}, torch.zeros(1)))
        number = own.next()
        own.runs[number] = {"dog": chances[number]}
        if not own.lacks(number) or own.is_spent or not restarts:
            break
        restarts -= 1
    drawn = own.surest()
    if 0 in own.runs:
        assert chances[drawn] >= chances[0]
    else:
        assert weakest[drawn] >= weakest[0]


@pytest.mark.parametrize("draft", [[1.6, 0.5], [1.6], 3.0])
def test_what_is_no_level_of_drafts_is_refused_by_name(draft: object) -> None:
    with pytest.raises(ValueError, match="levels"):
        Curve.from_dict({"score": SCORE, "levels": [[1.0, 0.5, 2.0]], "draft": draft})


def test_a_curve_that_knows_of_drafts_comes_back_from_its_json() -> None:
    assert Curve.from_dict(CURVE.as_dict()) == CURVE
