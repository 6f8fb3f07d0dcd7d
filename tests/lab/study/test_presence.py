"""The study of presence: areas, a curve learned from known odds, reliability."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lib_decouple.__main__ import main
from lib_decouple.core.presence import Curve, Level
from lib_decouple.lab.evaluate.curve import learn, reliability
from lib_decouple.lab.study.presence import (
    READINGS,
    SCORES,
    areas,
    below_thresholds,
    risen,
    scored,
    thresholds_as_markdown,
)
from lib_decouple.lab.study.sample import embedded, tasks_of


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


def test_what_has_risen_is_told_against_the_last_step_before_guidance() -> None:
    steps = [[0.9, 0.1], [0.5, 0.4], [0.6, 0.2], [0.7, 0.6]]
    image = {"sigmas": [4.0, 3.0, 2.0, 1.0], "missing": [True, False], "scores": {"lead": steps}}
    found = risen(image, start=1)["scores"]
    assert found["lead"] == steps
    np.testing.assert_allclose(found["lead, risen"], [[0.4, -0.3], [0.0, 0.0], [0.1, -0.2], [0.2, 0.2]])
    assert {row["score"]: row["entity"][2] for row in areas(2, "raw", [risen(image, 1)])} == {
        "lead": 0.0, "lead, risen": 0.0,
    }  # fmt: skip


def test_published_thresholds_call_missing_what_lies_below_them_at_their_noise_levels() -> None:
    """At 12, 5 and 2, the nearest of four levels: 0.04 alone lies below 0.05, three below 0.5, all four below 0.8."""
    peaks = [[[0.04, 0.6], [0.9, 0.9], [0.4, 0.5], [0.1, 0.7]], [[0.05, 0.2], [0.9, 0.9], [0.3, 0.49], [0.79, 0.2]]]
    flags = [[True, False], [False, True]]
    made = [{"sigmas": [12.0, 8.0, 5.0, 2.0], "missing": own, "scores": {"peak": p}} for own, p in zip(flags, peaks)]
    rows = below_thresholds(2, made)
    assert [(row["sigma"], row["called"], row["n"]) for row in rows] == [(12.0, 1, 4), (5.0, 3, 4), (2.0, 4, 4)]
    assert [row["precision"] for row in rows] == [1.0, pytest.approx(2 / 3), 0.5]
    assert [row["recall"] for row in rows] == [0.5, 1.0, 1.0]
    whole = below_thresholds(2, [{**own, "missing": [False, False]} for own in made])
    assert [row["recall"] for row in whole] == [None] * 3
    assert "| 2 | 5 | 0.5 | 4 | 3 | 0.00 |  |" in thresholds_as_markdown(whole)


def test_every_reading_has_maps_of_its_own() -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from dataclasses import replace

    from lib_decouple.lab.evaluate.arms import PLAIN

    backend, first = embedded(2).open(""), {}
    for name, how in READINGS.items():
        (task,) = tasks_of("", "tune", 2, 1, replace(PLAIN, **how), observe=True, keep_maps=True)
        (own,) = scored(backend, task)
        first[name] = tuple(own["scores"]["mean"][0])
    assert len(set(first.values())) == len(READINGS)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--arm", "comm"], "arm: 'comm' is not one of plain, iou, com"),
        (["--arm", "com", "--ship"], "arm: 'com' is guided; a curve is learned from plain pictures"),
        (["--arm", "com", "--readings", "treated"], "readings: 'treated' is not one of raw"),
    ],
)
def test_a_wrong_argument_is_named(
    given: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "presence", *given, "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("arm", ["plain", "com"])
def test_each_step_of_an_arm_s_run_is_scored_before_its_update(arm: str) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from lib_decouple.lab.evaluate.arms import tuned

    backend = embedded(6).open("")
    how = {"watch": True} if arm == "com" else {"observe": True}
    (task,) = tasks_of("", "tune", 2, 1, tuned(arm, 2, 6), keep_maps=True, **how)
    (plain,) = tasks_of("", "tune", 2, 1, observe=True, keep_maps=True)
    (own,), (unmoved,) = scored(backend, task), scored(backend, plain)
    assert len(own["sigmas"]) == len(own["scores"]["lead"]) == 6
    alike = [a == pytest.approx(b, abs=1e-6) for a, b in zip(own["scores"]["lead"], unmoved["scores"]["lead"])]
    assert alike == ([True, True, False, False, False, False] if arm == "com" else [True] * 6)


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
