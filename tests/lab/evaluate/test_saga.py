"""SAGA's rule: its parts against diffusers' scheduler and against the method written out in numpy, the arm against what
it is to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lib_decouple.core.gradient import LossAndGradient
from lib_decouple.core.guidance import Guide
from lib_decouple.core.schedule import Schedule, StepRule
from lib_decouple.lab.evaluate import saga
from lib_decouple.lab.evaluate.arms import tuned
from lib_decouple.lab.evaluate.plan import BackendPart, Job, Sampling
from lib_decouple.lab.evaluate.prompts import Prompt
from lib_decouple.lab.evaluate.saga import MOMENTUM, NOISES, ROUNDS, Point, Saga, held, learn, predicted


def noise(seed: int, images: int = 2) -> torch.Tensor:
    return torch.randn(images, 4, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("place", [0, 7, 17])
def test_predicted_is_what_diffusers_ddim_step_went_by(place: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(20)
    now, after = scheduler.timesteps[place], scheduler.timesteps[place + 1]
    before, out = noise(1), noise(2)
    made = scheduler.step(out, now, before)

    def level(timestep: torch.Tensor) -> float:
        kept = float(scheduler.alphas_cumprod[timestep])
        return math.sqrt((1 - kept) / kept)

    found = predicted(Point(before, level(now)), Point(made.prev_sample, level(after)))
    torch.testing.assert_close(found, made.pred_original_sample, rtol=1e-4, atol=1e-4)


def test_a_signal_varies_no_more_than_its_image_s_reference() -> None:
    reference = torch.stack([noise(3)[0], 4 * noise(4)[0]])
    signal = torch.stack([3 * reference[0], reference[1] / 2])
    found = held(signal, reference)
    torch.testing.assert_close(found[0], reference[0])
    torch.testing.assert_close(found[1], signal[1])
    assert torch.isfinite(held(torch.zeros_like(reference), reference)).all()


def test_held_has_the_gradient_of_what_it_does() -> None:
    reference, signal = noise(5) / 3, noise(6).requires_grad_()
    assert held(signal, reference).std() < signal.std()
    assert torch.autograd.gradcheck(lambda one: held(one, reference), (signal,))


def in_numpy(reference: np.ndarray, slope: Any, size: float) -> np.ndarray:
    """The method for one image whose signal never outgrows the reference: SGD with momentum, written out."""
    signal = np.zeros_like(reference) + reference.mean((-1, -2), keepdims=True)
    velocity = np.zeros_like(signal)
    for _ in range(ROUNDS):
        velocity = MOMENTUM * velocity + slope(signal)
        signal = signal - size * velocity
    return signal


def test_a_signal_goes_down_the_mean_slope_from_each_channel_s_mean() -> None:
    reference, target = 9 * noise(7, 1), noise(8, 1)
    found = learn(reference, lambda signal: signal - target, 0.1)
    wanted = in_numpy(reference.numpy(), lambda signal: signal - target.numpy(), 0.1)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)
    assert float((found - target).norm()) < float((reference.mean((-1, -2), keepdim=True) - target).norm())


class Slopes:
    """In the place of a gradient of maps: half of the squared distance of each image's latents from ``target``."""

    def __init__(self, target: torch.Tensor, named: Sequence[int]) -> None:
        plans = [SimpleNamespace(names=("cat", "dog"))] * len(target)
        self.target, self.reader = target, SimpleNamespace(named=list(named), images=plans)
        self.seen: list[torch.Tensor] = []

    def __call__(self, latents: torch.Tensor, images: Sequence[int], run: Any) -> LossAndGradient:
        self.seen.append(latents)
        gradient = latents - self.target[list(images)]
        losses = gradient.flatten(1).pow(2).sum(1) / 2
        return LossAndGradient(losses, gradient, [torch.zeros(2, 3, 3)] * len(images))


def guided(target: torch.Tensor, named: Sequence[int], start: int = 1) -> tuple[Saga, Slopes]:
    slopes = Slopes(target, named)
    guide = Guide(slopes, Schedule(start + 1, 1, start), StepRule("attend-excite", 0.1))  # type: ignore[arg-type]
    return Saga.instead(guide, [11, 12]), slopes


def test_latents_are_drawn_anew_at_one_step_and_of_named_images_alone() -> None:
    target, first, second, third = noise(9), noise(10), noise(11), noise(12)
    guide, slopes = guided(target, [1])
    levels = [8.0, 2.0, 1.0]
    run = lambda latents, images: None  # noqa: E731
    assert guide.step(first, 0, 3, run, noise=levels[0]).latents is first
    made = guide.step(second, 1, 3, run, noise=levels[1])
    assert guide.step(third, 2, 3, run, noise=levels[2]).latents is third
    assert torch.equal(made.latents[0], second[0])
    assert len(slopes.seen) == ROUNDS * NOISES
    (seen,) = made.seen
    assert (seen.image, seen.step, seen.passes) == (1, 1, ROUNDS * NOISES)
    assert seen.update == pytest.approx(float((made.latents[1] - second[1]).norm() / second[1].norm()))

    deviation = 2 / math.sqrt(5)
    far, near = first[1] * math.sqrt(65), second[1] * math.sqrt(5)
    reference = ((8 * near - 2 * far) / 6 / math.sqrt(5))[None]
    source = torch.Generator().manual_seed(12 ^ saga._STREAM)
    drawn = iter([torch.randn(first.shape[1:], generator=source) for _ in range(ROUNDS * NOISES)])

    def slope(signal: np.ndarray) -> np.ndarray:
        each = [signal[0] + deviation * next(drawn).numpy() - target[1].numpy() for _ in range(NOISES)]
        return np.mean(each, 0)[None]

    wanted = in_numpy(reference.numpy(), slope, 0.1)
    assert wanted.std() < reference.numpy().std()  # so that nothing had to be held back
    np.testing.assert_allclose(made.latents[1], wanted[0] + deviation * first[1].numpy(), atol=1e-5)


def test_what_it_cannot_do_is_said() -> None:
    guide, _ = guided(noise(9), [0, 1], start=0)
    with pytest.raises(ValueError, match="start: 0 is not allowed"):
        guide.step(noise(1), 0, 3, lambda latents, images: None, noise=8.0)
    for more in ({"noise": math.inf}, {"noise": 8.0, "sigma": torch.tensor(8.0)}):
        with pytest.raises(ValueError, match="saga: needs a sampler"):
            guide.step(noise(1), 0, 3, lambda latents, images: None, **more)  # type: ignore[arg-type]


def test_the_arm_draws_another_picture_by_so_many_passes() -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from lib_decouple.lab.evaluate.backends.embedded import Embedded
    from lib_decouple.settings import Settings

    prompt, settings = Prompt("a mouse and a car", ("mouse", "car"), "here"), tuned("saga", 2)
    backend = Embedded(BackendPart(batch=2), Sampling(steps=20, cfg=4.0))
    plain = backend.draw([Job(prompt, "plain", Settings(), seed) for seed in (1, 2)])
    made = backend.draw([Job(prompt, "saga", settings, seed, "saga") for seed in (1, 2)])
    for one, own in zip(made, plain):
        assert one.image != own.image
        assert (one.passes, one.stood_aside) == (ROUNDS * NOISES, "")
        assert one.trace is not None
        assert one.trace["step"] == [settings.start]
