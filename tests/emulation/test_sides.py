"""What each min and max of a loss takes, held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_decouple.core.losses import LOSSES, WeightedLoss
from lib_decouple.lab.study.sides import Sides

PEAKS = {"intensity": 3, "intensity(pool=mean)": 2, "intensity(peak=mean)": 1, "kl(pool=max)": 1}
"""Places of two entities: a peak each, and the weakest of them."""
KINKED = ["iou", "iou(form=union)", "iou(normalise=false)", "cc", "cc(normalise=false)", "0.5*iou + com"]
SMOOTH = ["com", "kl", "kl(form=js)", "intensity(peak=mean, pool=mean)", "spread", "iou(form=product)"]


def maps(seed: int, entities: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, entities, 5, 7, generator=generator, dtype=torch.float64)


def slope(loss: object, at: Tensor) -> tuple[Tensor, Tensor]:
    leaf = at.clone().requires_grad_()
    value = loss(leaf)  # type: ignore[operator]
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


@pytest.mark.parametrize("entities", [2, 3])
@pytest.mark.parametrize("text", KINKED)
def test_held_at_its_own_maps_a_loss_is_itself(text: str, entities: int) -> None:
    loss, sides, at = WeightedLoss.parse(text), Sides(), maps(0, entities)
    plain = slope(loss, at)
    for looked in (sides.noted, sides.compared, sides.held):
        for found, expected in zip(slope(looked(loss), at), plain):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert (sides.changed, sides.apart) == (0, 0.0)
    assert sides.places in (35, 3 * 35, 70, 6 * 35)


@pytest.mark.parametrize("text", KINKED)
def test_where_a_map_passes_another_the_side_stays(text: str) -> None:
    """Held, the gradient at one pixel is what it would be with the other pixels' order, which nothing changed."""
    loss, sides, at = WeightedLoss.parse(text), Sides(), maps(0)
    at[0, :, 2, 3] = torch.tensor([0.5005, 0.4995])
    at /= at.sum((-2, -1), keepdim=True)
    crossed = at.clone()
    crossed[0, :, 2, 3] = crossed[0, [1, 0], 2, 3]
    before = slope(sides.noted(loss), at)[1]
    jumped = slope(sides.compared(loss), crossed)[1]
    torch.testing.assert_close(jumped, slope(loss, crossed)[1], rtol=0, atol=0)
    held = slope(sides.held(loss), crossed)[1]
    assert float((jumped - before).norm() / before.norm()) > 0.05
    assert float((held - before).norm() / before.norm()) < 0.01
    assert sides.changed == sides.places // 35
    a, b = (float(one) for one in crossed[0, :, 2, 3])
    assert sides.apart == pytest.approx(abs(a - b) / (a + b), rel=0.1)


@pytest.mark.parametrize(("text", "places"), PEAKS.items())
def test_peaks_and_the_weakest_are_held(text: str, places: int) -> None:
    loss, sides, at, other = WeightedLoss.parse(text), Sides(), maps(0), maps(1)
    before = slope(sides.noted(loss), at)
    assert sides.places == places
    for found, expected in zip(slope(sides.held(loss), at), before):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    value, gradient = slope(sides.held(loss), other)
    if places > 1:  # where the peaks stood before, not where they are now
        assert torch.equal(gradient != 0, before[1] != 0)
        assert not torch.equal(gradient != 0, slope(loss, other)[1] != 0)
        assert value > slope(loss, other)[0]
        assert sides.changed >= 2


@pytest.mark.parametrize("text", SMOOTH)
def test_a_loss_without_min_and_max_has_no_sides(text: str) -> None:
    sides = Sides()
    value = sides.noted(WeightedLoss.parse(text))(maps(0))
    torch.testing.assert_close(value, WeightedLoss.parse(text)(maps(0)), rtol=0, atol=0)
    assert sides.places == 0


def test_every_loss_is_one_or_the_other() -> None:
    assert {WeightedLoss.parse(text).terms[0].name for text in (*KINKED, *PEAKS, *SMOOTH)} == set(LOSSES)


def test_nothing_is_held_behind_it() -> None:
    sides, loss = Sides(), WeightedLoss.parse("iou")
    sides.noted(loss)(maps(0))
    sides.held(loss)(maps(1))
    assert sides.changed > 0
    a, b = maps(1)[0]
    assert torch.equal(torch.minimum(a, b), torch.where(a < b, a, b))
