"""The study of presence: areas, a curve learned from known odds, reliability."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib_decouple.core.presence import Curve, Level
from lib_decouple.lab.evaluate.curve import learn, reliability
from lib_decouple.lab.study.presence import SCORES, areas


def images(scores: list[list[float]], missing: list[list[bool]]) -> list[dict[str, object]]:
    """One noise level, every score the same."""
    return [
        {"sigmas": [1.0], "missing": flags, "scores": {name: [own] for name in SCORES}}
        for own, flags in zip(scores, missing)
    ]


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_between_0_and_1_for_every_entity(name: str) -> None:
    for maps in (torch.rand(3, 5, 4), torch.zeros(2, 3, 3), torch.ones(2, 3, 3), torch.rand(1, 2, 2)):
        found = SCORES[name](maps)
        assert found.shape == (len(maps),)
        assert bool(((found >= -1e-6) & (found <= 1 + 1e-6)).all())


def test_scores_by_hand() -> None:
    maps = torch.tensor([[[0.8, 0.0, 0.6]], [[0.4, 0.2, 0.0]]])
    expected = {"peak": [0.8, 0.4], "lead": [0.6, 0.2], "won": [1.0, 2 / 3], "blob": [0.8 / 1.4, 0.4 / 0.4]}
    expected["contrast"] = [1 - (1.4 / 3) / 0.8, 1 - 0.2 / 0.4]
    for name, values in expected.items():
        torch.testing.assert_close(SCORES[name](maps), torch.tensor(values), msg=name)


def test_the_image_goes_by_its_weakest_entity_and_each_entity_by_itself() -> None:
    row = areas(2, "raw", images([[0.9, 0.2], [0.5, 0.6], [0.3, 0.8]], [[False, True], [False, False], [False, True]]))[
        0
    ]
    # Weakest: 0.2 (missing), 0.5 (whole), 0.3 (missing): the whole one is above both.
    assert row["image"] == [1.0]
    # Present 0.9, 0.5, 0.6, 0.3; missing 0.2, 0.8: of the 8 pairs the present one is higher in 4 + 1.
    assert row["entity"] == [pytest.approx(5 / 8)]


def test_a_curve_finds_the_odds_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, (4000, 2))
    there = rng.uniform(size=scores.shape) < 1 / (1 + np.exp(-8 * (scores - 0.4)))
    level = learn(images(scores.tolist(), (~there).tolist())).levels[0]
    assert level.middle == pytest.approx(0.4, abs=0.02)
    assert level.slope == pytest.approx(8, rel=0.1)


def test_what_drafts_tell_is_learned_of_theirs_alone() -> None:
    rng = np.random.default_rng(0)
    made = []
    for middle in (0.4, 0.6):
        scores = rng.uniform(0, 1, (4000, 2))
        there = rng.uniform(size=scores.shape) < 1 / (1 + np.exp(-8 * (scores - middle)))
        made.append((scores.tolist(), (~there).tolist()))
    runs = images(*made[0])
    drafts = [{"draft": own, "missing": flags} for own, flags in zip(*made[1])]
    found = learn(runs, drafts)
    assert found.levels == learn(runs).levels
    assert learn(runs).draft is None
    assert found.draft is not None
    assert (found.draft.sigma, found.draft.slope) == (1.6, pytest.approx(8, rel=0.1))
    assert found.draft.middle == pytest.approx(0.6, abs=0.02)
    assert learn([{**run, **draft} for run, draft in zip(images(*made[1]), drafts)]).draft == found.draft
    told_nothing = [{**one, "draft": [0.5, 0.5]} for one in drafts]
    assert learn(runs, told_nothing).draft is None


def test_nothing_is_learned_where_nothing_tells_or_nothing_is_missing() -> None:
    with pytest.raises(ValueError, match="nothing is missing"):
        learn(images([[0.1, 0.2]], [[False, False]]))
    flat = images([[0.5, 0.5]] * 4, [[True, False]] * 4)
    with pytest.raises(ValueError, match="no noise level"):
        learn(flat)


def test_reliability_by_hand() -> None:
    curve = Curve((Level(1.0, 0.5, 10.0),))
    row = reliability(curve, 2, images([[0.9, 0.1], [0.9, 0.1]], [[False, True], [False, False]]))[0]
    high, low = 1 / (1 + np.exp(-4)), 1 / (1 + np.exp(4))
    assert row["told"] == pytest.approx((high + low) / 2)
    assert row["true"] == 0.75
    assert row["brier"] == pytest.approx((2 * (1 - high) ** 2 + low**2 + (1 - low) ** 2) / 4)
    assert (row["flagged"], row["precision"], row["recall"]) == (2, 0.5, 1.0)
