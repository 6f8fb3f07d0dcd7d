"""What is on trial: losses against their formulas written out in numpy, arms against what they are to draw."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import jensenshannon

from lib_decouple.core import losses
from lib_decouple.core.schedule import Schedule
from lib_decouple.hosts.seeds import seeds_to_draft
from lib_decouple.lab.evaluate.arms import ARMS, tuned
from lib_decouple.lab.evaluate.flops import times_plain
from lib_decouple.lab.evaluate.plan import ArmPart, BackendPart, Job, Sampling, settings_of
from lib_decouple.lab.evaluate.prompts import Prompt
from lib_decouple.lab.evaluate.trials import TRIALS, gated, led, led_apart, peaked
from lib_decouple.lab.model.judge import judged
from lib_decouple.settings import Settings


def random_maps(seed: int, entities: int, highest: float) -> torch.Tensor:
    return torch.rand(1, entities, 4, 5, generator=torch.Generator().manual_seed(seed)) * highest


@pytest.mark.parametrize("seed", range(3))
def test_peaked_of_two_is_scipys_jensen_shannon_divergence(seed: int) -> None:
    maps = random_maps(seed, 2, 0.6)
    a, b = (one.numpy().ravel().astype(float) ** 3 for one in maps[0])
    assert float(peaked(maps)) == pytest.approx(1 - jensenshannon(a, b) ** 2 / np.log(2), abs=1e-5)


def test_peaked_is_one_where_all_are_alike_and_none_where_nobody_shares_a_place() -> None:
    alike = random_maps(0, 1, 0.6).expand(1, 3, 4, 5)
    apart = torch.zeros(1, 3, 4, 5)
    for k in range(3):
        apart[0, k, k, k] = 0.4
    assert float(peaked(alike)) == pytest.approx(1, abs=1e-5)
    assert float(peaked(apart)) == pytest.approx(0, abs=1e-5)


def test_gated_leaves_the_overlap_out_while_an_entity_is_neglected() -> None:
    weak, strong = random_maps(1, 2, 0.3), random_maps(1, 2, 0.9)
    assert float(losses.intensity_loss(weak)) > 0.5 >= float(losses.intensity_loss(strong))
    assert float(gated(weak)) == pytest.approx(float(losses.intensity_loss(weak)))
    both = float(losses.intensity_loss(strong)) + 0.3 * float(losses.com(strong))
    assert float(gated(strong)) == pytest.approx(both)
    assert float(gated(strong)) != pytest.approx(float(losses.intensity_loss(strong)))


def test_led_is_what_the_weakest_lacks_of_a_place_of_its_own() -> None:
    """Leads 0.4 and -0.1: the weakest is 1.1 short of a place where nothing else is; with com, 0.3 times that more."""
    maps = torch.tensor([[[[0.5, 0.3]], [[0.1, 0.2]]]])
    assert float(led(maps)) == pytest.approx(1.1)
    assert float(led_apart(maps)) == pytest.approx(1.1 + 0.3 * float(losses.com(maps)))


@pytest.mark.parametrize("name", [name for name, trial in TRIALS.items() if trial.loss])
def test_gradients_are_finite_where_maps_are_nothing(name: str) -> None:
    maps = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = TRIALS[name].loss
    assert loss is not None
    (gradient,) = torch.autograd.grad(loss(maps).sum(), maps)
    assert torch.isfinite(gradient).all()


def test_every_trial_has_an_arms_settings() -> None:
    assert set(TRIALS) <= set(ARMS[2]) & set(ARMS[3])


@pytest.mark.parametrize("entities", [2, 3])
def test_of_more_steps_the_same_share_is_guided(entities: int) -> None:
    com, refined = tuned("com", entities), tuned("late refinement", entities)
    assert tuned("com", entities, 20) == com
    at_50 = tuned("com", entities, 50)
    assert at_50 == replace(com, start=5, steps=30)
    assert [Schedule(at_50.steps, at_50.every, at_50.start).window(50), at_50.start] == [30, 5]
    late = tuned("late refinement", entities, 50)
    schedule = Schedule(late.steps, late.every, late.start)
    assert [step for step in range(50) if schedule.guided(step, 50)] == list(late.refine_steps) == [20]
    assert refined.refine_steps == (8,)
    for name in ("plain", "choose", "attend-excite"):  # nothing to stretch: unguided, or the first half of any run
        assert tuned(name, entities, 50) == tuned(name, entities)


@pytest.fixture(scope="module")
def embedded() -> Any:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from lib_decouple.lab.evaluate.backends.embedded import Embedded

    return Embedded(BackendPart(batch=4), Sampling(steps=6, cfg=4.0))


def jobs_of(arm: str, seeds: Sequence[int]) -> list[Job]:
    prompt = Prompt("a mouse and a car", ("mouse", "car"), "here")
    how = settings_of(ArmPart(arm, tuned=arm), 2, steps=6) if arm != "plain" else Settings()
    return [Job(prompt, arm, how, seed, arm if arm in TRIALS else "") for seed in seeds]


def test_the_best_of_four_is_one_of_the_drafted_seeds_plain_pictures_and_none_of_them_lacks_less(embedded: Any) -> None:
    def lacking(images: Sequence[bytes]) -> list[int]:
        opened = [Image.open(io.BytesIO(image)) for image in images]
        return [len(one.missing) for one in judged(opened, [("mouse", "car")] * len(opened))]

    asked = [5, 6, 7]
    found = embedded.draw(jobs_of("best of 4", asked))
    chosen_elsewhere = 0
    for seed, best in zip(asked, found):
        plain = [one.image for one in embedded.draw(jobs_of("plain", seeds_to_draft(seed, 4)))]
        assert best.image in plain
        assert lacking([best.image]) == [min(lacking(plain))]
        chosen_elsewhere += plain.index(best.image) > 0
        row = {"settings": Settings(enabled=True, gradient="none", look="off").as_dict()}
        assert times_plain({**row, "trace": best.trace, "passes": best.passes}, 20) == 4
    assert chosen_elsewhere


def test_drafts_without_cfg_score_otherwise_and_cost_half(embedded: Any) -> None:
    (own,), (halved,) = embedded.draw(jobs_of("choose", [3])), embedded.draw(jobs_of("choose conditional", [3]))
    assert own.trace["draft"] != halved.trace["draft"]
    assert own.trace["drafts"] == halved.trace["drafts"] == 4
    settings = jobs_of("choose", [3])[0].settings.as_dict()
    costs = [times_plain({"settings": settings, "trace": one.trace, "passes": 0}, 20) for one in (own, halved)]
    assert costs == pytest.approx([1 + 16 / 20, 1 + 8 / 20])


def test_drafts_of_a_guided_run_are_guided_unless_the_trial_says_otherwise(embedded: Any) -> None:
    (own,), (unguided,) = embedded.draw(jobs_of("com choose", [3])), embedded.draw(jobs_of("com choose unguided", [3]))
    (plain,) = embedded.draw(jobs_of("choose", [3]))
    assert own.trace["draft_moves"] > 0
    assert unguided.trace["draft_moves"] == plain.trace["draft_moves"] == 0
    if unguided.image != own.image:
        assert own.trace["draft"] != unguided.trace["draft"]


def test_late_refinement_moves_at_one_step_alone(embedded: Any) -> None:
    (drawn,) = embedded.draw(jobs_of("late refinement", [4]))
    assert drawn.trace["step"] == [2]
    assert 5 < drawn.passes <= 20  # five gradients, and a look or more at where each leads
