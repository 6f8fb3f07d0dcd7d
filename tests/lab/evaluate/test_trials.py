"""Losses on trial, against their formulas written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from lib_decouple.core import losses
from lib_decouple.lab.evaluate.trials import TRIALS, gated, peaked


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


@pytest.mark.parametrize("name", TRIALS)
def test_gradients_are_finite_where_maps_are_nothing(name: str) -> None:
    maps = torch.zeros(2, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(TRIALS[name](maps).sum(), maps)
    assert torch.isfinite(gradient).all()
