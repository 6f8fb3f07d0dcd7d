"""Presence: scores by hand, colliding pairs, curves and their probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from lib_decouple.core.presence import SCORE, Curve, Helping, Level, Presence, colliding, leads, presence, read

CURVE = Curve((Level(4.0, 0.3, 10.0), Level(1.0, 0.5, 20.0)))


def test_the_score_is_by_how_much_an_entity_leads_where_it_leads_most() -> None:
    """The first leads by 0.1, not at its peak of 0.4, where the third has 0.35; the second by 0.05 where nobody else
    is; the third, whose peak is the second highest, nowhere."""
    maps = torch.tensor([[[[0.1, 0.4], [0.2, 0.0]], [[0.0, 0.1], [0.0, 0.05]], [[0.0, 0.35], [0.2, 0.0]]]])
    torch.testing.assert_close(presence(maps), torch.tensor([[0.1, 0.05, 0.0]]))


def test_an_entity_alone_is_scored_by_its_highest_attention() -> None:
    torch.testing.assert_close(presence(torch.tensor([[[[0.1, 0.4], [0.2, 0.0]]]])), torch.tensor([[0.4]]))


@given(
    hnp.arrays(np.float32, (2, 3, 4, 5), elements=st.floats(0, 1, width=32)),
)
def test_the_lead_is_what_the_definition_says(maps: np.ndarray) -> None:
    def lead(own: np.ndarray, entity: int) -> float:
        return max(0.0, float(max(own[entity, p] - max(own[j, p] for j in range(3) if j != entity) for p in range(20))))

    flat = maps.reshape(2, 3, 20)
    expected = [[lead(own, entity) for entity in range(3)] for own in flat]
    torch.testing.assert_close(presence(torch.from_numpy(maps)), torch.tensor(expected), atol=1e-6, rtol=0)


def test_who_leads_nowhere_is_pulled_up_where_it_lags_least_and_the_leader_there_down() -> None:
    """The second lags by 0.1 at the second pixel: clamped, its score is 0 and would pull nothing."""
    maps = torch.tensor([[[[0.5, 0.3]], [[0.1, 0.2]]]], requires_grad=True)
    torch.testing.assert_close(leads(maps), torch.tensor([[0.4, -0.1]]))
    (gradient,) = torch.autograd.grad(leads(maps)[0, 1], maps)
    torch.testing.assert_close(gradient, torch.tensor([[[[0.0, -1.0]], [[0.0, 1.0]]]]))


def test_of_one_entity_alone_no_chance_is_told() -> None:
    """Its score is its peak, not a lead, of which a curve was learned."""
    alone = read(("cat",), torch.tensor([[[0.1, 0.9], [0.2, 0.0]]]), 1.0, CURVE)
    assert (alone.chances, alone.words()) == (None, "")
    assert alone.scores == {"cat": pytest.approx(0.9)}


@pytest.mark.parametrize("most", [2, 3])
def test_of_more_entities_than_it_was_learned_of_no_chance_is_told(most: int) -> None:
    """Their leads are smaller, whatever is in the picture."""
    curve = Curve(CURVE.levels, most=most)
    names, maps = ("cat", "dog", "cow", "owl"), torch.eye(4).reshape(4, 2, 2)
    assert set(read(names[:most], maps[:most], 1.0, curve).chances or {}) == set(names[:most])
    more = read(names[: most + 1], maps[: most + 1], 1.0, curve)
    assert (more.chances, more.words().partition(";")[0]) == (None, "attention weakest for cat")
    assert Curve.from_dict(curve.as_dict()).most == most


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("cat", "apple"), True),
        (("red cat", "cats"), True),
        (("cat", "cat@2"), True),
        (("cat", "unicorn"), False),
        (("EasyNegative", "cat"), False),
        (("cat food", "apple"), False),
        (("#2", "cat"), False),
    ],
)
def test_of_a_thing_that_it_was_not_learned_of_no_chance_is_told(names: tuple[str, str], told: bool) -> None:
    curve, maps = Curve(CURVE.levels, things=("cat", "apple")), torch.eye(4).reshape(4, 2, 2)[:2]
    assert (read(names, maps, 1.0, curve).chances is not None) == told
    assert read(names, maps, 1.0, CURVE).chances is not None
    assert Curve.from_dict(curve.as_dict()) == curve


@pytest.mark.parametrize("things", ["cat", [1], None, {"cat": 1}])
def test_things_that_are_no_words_are_refused_by_name(things: object) -> None:
    with pytest.raises(ValueError, match="things: "):
        Curve.from_dict({**CURVE.as_dict(), "things": things})


@pytest.mark.parametrize("most", [0, 1, 2.5, "3", None, True])
def test_a_number_of_entities_that_is_none_is_refused_by_name(most: object) -> None:
    with pytest.raises(ValueError, match="entities: "):
        Curve.from_dict({**CURVE.as_dict(), "entities": most})


def test_what_was_learned_of_another_score_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'peak'.*'lead'.*again"):
        Curve.from_dict({"levels": [[4.0, 0.3, 10.0]]})
    assert Curve.from_dict(CURVE.as_dict()) == CURVE


def test_the_colliding_pair_is_the_one_that_overlaps_most() -> None:
    left, right = [[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]
    middle_and_right = [[0.0, 0.5, 0.5]]
    assert colliding(torch.tensor([left, right, middle_and_right])) == (1, 2)
    assert colliding(torch.tensor([middle_and_right, left, right])) == (0, 2)
    assert colliding(torch.tensor([left])) is None


def test_at_a_level_the_probability_is_the_levels_own() -> None:
    assert CURVE.probability(0.3, 4.0) == pytest.approx(0.5)
    assert CURVE.probability(0.4, 4.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert CURVE.probability(0.55, 1.0) == pytest.approx(1 / (1 + math.exp(-1)))


def test_between_levels_the_odds_are_weighed_by_the_logarithm_of_sigma() -> None:
    # Half-way between 4 and 1 is 2: the mean of 10 * (0.6 - 0.3) = 3 and 20 * (0.6 - 0.5) = 2.
    assert CURVE.probability(0.6, 2.0) == pytest.approx(1 / (1 + math.exp(-2.5)))


def test_above_the_highest_level_nothing_is_told_and_below_the_lowest_its_own_holds() -> None:
    assert CURVE.probability(0.9, 4.01) is None
    assert CURVE.probability(0.9, float("nan")) is None
    assert CURVE.probability(0.55, 0.01) == CURVE.probability(0.55, 1.0)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 4.0))
def test_a_higher_score_is_never_less_probable(one: float, other: float, sigma: float) -> None:
    low, high = sorted((one, other))
    first, second = CURVE.probability(low, sigma), CURVE.probability(high, sigma)
    assert first is not None
    assert second is not None
    assert 0 <= first <= second <= 1


def test_a_curve_comes_back_from_its_json() -> None:
    assert Curve.from_dict(CURVE.as_dict()) == CURVE


@pytest.mark.parametrize(
    "levels", [[], [[1.0, 0.5, 2.0], [4.0, 0.3, 1.0]], [[1.0, 0.5, 2.0]] * 2, [[0.0, 0.5, 2.0]], [[1.0, 0.5]], [1.0]]
)
def test_levels_that_are_none_are_refused_by_name(levels: list[object]) -> None:
    with pytest.raises(ValueError, match="levels"):
        Curve.from_dict({"score": SCORE, "levels": levels})


class TestRead:
    def maps(self) -> Tensor:
        return torch.tensor([[[0.9, 0.1], [0.1, 0.1]], [[0.1, 0.2], [0.1, 0.1]], [[0.1, 0.1], [0.3, 0.3]]])

    def test_without_a_curve_it_ranks_and_names_no_chance(self) -> None:
        found = read(("cat", "dog", "cow"), self.maps(), 0.5)
        assert found.scores == pytest.approx({"cat": 0.8, "dog": 0.1, "cow": 0.2})
        assert (found.chances, found.weakest) == (None, "dog")
        assert found.words() == "attention weakest for dog; closest for dog and cow"
        assert read(("cat",), self.maps()[:1], 0.5).words() == ""

    def test_with_a_curve_it_says_which_is_there(self) -> None:
        curve = Curve((Level(1.0, 0.5, 10.0), Level(0.5, 0.25, 20.0)))
        found = read(("cat", "dog"), self.maps()[:2], 0.5, curve)
        assert found.chances == pytest.approx({"cat": 1 / (1 + math.exp(-11)), "dog": 1 / (1 + math.exp(3))})
        assert found.words() == "cat ✓, dog perhaps missing"
        above = read(("cat", "dog"), self.maps()[:2], 2.0, curve)  # where the curve says nothing
        assert (above.chances, above.words()) == (None, "attention weakest for dog")
        assert found.as_dict()["words"] == found.words()


def test_who_is_there_is_left_without_a_gradient_and_who_is_not_is_moved() -> None:
    helping = Helping(Curve((Level(2.0, 0.4, 10.0), Level(1.0, 0.2, 10.0))))
    maps = torch.zeros(3, 4, 4)
    maps[0, 1, 1], maps[1, 2, 2], maps[2, 3, 3] = 0.5, 0.3, 0.1
    for sigma, moved in ((3.0, [True, True, True]), (2.0, [False, True, True]), (1.0, [False, False, True])):
        leaf = maps.clone().requires_grad_()
        focused = helping.focused(leaf, sigma)
        assert torch.equal(focused, maps)
        (gradient,) = torch.autograd.grad(focused.square().sum(), leaf)
        assert [bool(own.any()) for own in gradient] == moved


def test_an_image_once_whole_stays_so_and_above_the_curve_nothing_is_known() -> None:
    helping = Helping(Curve((Level(2.0, 0.4, 10.0),)))
    high = torch.tensor([[[0.5, 0.0]], [[0.0, 0.5]]])
    low = 0.6 * high
    helping.note([0, 1], [high, low], 3.0)
    assert helping.whole == set()
    helping.note([0, 1], [high, low], 1.5)
    assert helping.whole == {0}
    helping.note([0, 1], [low, low], 1.0)
    assert helping.whole == {0}


def test_weighed_each_entity_pulls_by_its_chance_to_be_missing_and_an_image_by_its_weakest() -> None:
    helping = Helping(Curve((Level(2.0, 0.4, 10.0),)), weighed=True)
    maps = torch.zeros(3, 4, 4)
    maps[0, 1, 1], maps[1, 2, 2], maps[2, 3, 3] = 0.5, 0.4, 0.1
    missing = [1 / (1 + math.exp(1)), 0.5, 1 / (1 + math.exp(-3))]
    leaf = maps.clone().requires_grad_()
    focused = helping.focused(leaf, 2.0)
    assert torch.equal(focused, maps)
    (gradient,) = torch.autograd.grad(focused.sum(), leaf)
    assert gradient[:, 0, 0].tolist() == pytest.approx([own / missing[2] for own in missing])
    assert helping.strengths([maps, maps[:2]], 2.0) == pytest.approx([missing[2], 0.5])
    assert helping.strengths([maps], 3.0) == [1.0]  # above the curve nothing is known
    assert helping.focused(leaf, 3.0) is leaf
    helping.note([0], [torch.tensor([[[0.9, 0.0]], [[0.0, 0.9]]])], 2.0)
    assert helping.whole == set()


@pytest.mark.parametrize("scores", [{"cat": math.nan, "dog": 0.1}, {"dog": 0.1, "cat": math.nan}])
def test_a_score_that_is_no_number_is_the_weakest(scores):
    assert Presence(0.5, scores, None).weakest == "cat"
