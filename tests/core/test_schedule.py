"""When steps are guided and how far one goes, and that both units mean the same move."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lib_decouple.core.schedule import Schedule, StepRule, flow_scale


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestSchedule:
    @pytest.mark.parametrize(
        ("schedule", "total", "expected"),
        [
            (Schedule(), 50, list(range(25))),
            (Schedule(), 5, [0, 1]),
            (Schedule(), 1, [0]),
            (Schedule(3), 50, [0, 1, 2]),
            (Schedule(99), 4, [0, 1, 2, 3]),
            (Schedule(7, 3), 50, [0, 3, 6]),
            (Schedule(6, 3), 50, [0, 3]),
            (Schedule(0, 2), 10, [0, 2, 4]),
            (Schedule(2, 9), 10, [0]),
        ],
    )
    def test_guided_steps(self, schedule: Schedule, total: int, expected: list[int]) -> None:
        assert [step for step in range(total) if schedule.guided(step, total)] == expected

    @given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 60))
    def test_places_number_the_guided_steps(self, steps: int, every: int, total: int) -> None:
        schedule = Schedule(steps, every)
        guided = [step for step in range(total) if schedule.guided(step, total)]
        assert [schedule.place(step, total) for step in guided] == [(i, len(guided)) for i in range(len(guided))]

    @pytest.mark.parametrize(
        ("values", "message"),
        [((-1, 1), "steps: -1 must be 0 .* or more"), ((5, 0), "every: 0 must be 1 or more")],
    )
    def test_errors(self, values: tuple[int, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Schedule(*values)


class TestStepRule:
    @given(st.integers(1, 100), st.floats(1e-3, 10))
    def test_relative_shares_sum_to_the_size_and_fall_linearly(self, places: int, size: float) -> None:
        shares = [StepRule("relative", size).share(place, places) for place in range(places)]
        assert sum(shares) == pytest.approx(size)
        falls = [a - b for a, b in zip(shares, [*shares[1:], 0.0])]
        assert falls == pytest.approx([shares[-1]] * places)
        assert min(shares) > 0

    def test_relative_by_hand(self) -> None:
        latents, gradient = rand(2, 4, 3, 5), rand(2, 4, 3, 5, seed=1)
        update = StepRule("relative", 0.3).update(latents, gradient, 5, 50, (1, 3), None)
        for i in range(2):  # shares of three places: 1/2, 1/3, 1/6
            expected = -0.3 / 3 * latents[i].norm() * gradient[i] / gradient[i].norm()
            torch.testing.assert_close(update[i], expected, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("scale", [1e-12, 1.0, 1e8])
    def test_relative_ignores_the_gradients_size(self, scale: float) -> None:
        latents, gradient = rand(2, 4, 3, 5), rand(2, 4, 3, 5, seed=1)
        rule = StepRule("relative", 0.3)
        plain = rule.update(latents, gradient, 0, 50, (0, 25), None)
        torch.testing.assert_close(rule.update(latents, gradient * scale, 0, 50, (0, 25), None), plain)

    @pytest.mark.parametrize(("step", "expected"), [(0, 20.0), (49, 20 * math.sqrt(0.5)), (24.5, 20 * math.sqrt(0.75))])
    def test_attend_excite_by_hand(self, step: float, expected: float) -> None:
        latents, gradient = rand(2, 4, 3, 5), rand(2, 4, 3, 5, seed=1)
        update = StepRule("attend-excite", 20).update(latents, gradient, step, 50, (0, 25), None)  # type: ignore[arg-type]
        torch.testing.assert_close(update, -expected * gradient)

    def test_attend_excite_of_a_single_step(self) -> None:
        gradient = rand(1, 4, 3, 5)
        update = StepRule("attend-excite", 2).update(gradient, gradient, 0, 1, (0, 1), None)
        torch.testing.assert_close(update, -2 * gradient)

    @pytest.mark.parametrize("name", ["relative", "attend-excite"])
    @pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6])
    def test_both_units_make_the_same_move(self, name: Any, sigma: float) -> None:
        """z = x / sqrt(1+sigma²), so dL/dx = dL/dz / sqrt(1+sigma²): stepping either ends at the same place."""
        rule, root = StepRule(name, 0.7), math.sqrt(1 + sigma**2)
        z, gradient_z = rand(2, 4, 3, 5), rand(2, 4, 3, 5, seed=1)
        moved_z = z + rule.update(z, gradient_z, 3, 20, (3, 10), None)
        x, gradient_x = z * root, gradient_z / root
        level = torch.tensor(sigma, dtype=torch.float64)
        moved_x = x + rule.update(x, gradient_x, 3, 20, (3, 10), level)
        torch.testing.assert_close(moved_x / root, moved_z, rtol=1e-6, atol=1e-6)
        assert (moved_z - z).abs().max() > 1e-3

    @pytest.mark.parametrize("name", ["relative", "attend-excite"])
    @pytest.mark.parametrize("t", [0.02, 0.4, 0.97])
    def test_a_rectified_flow_makes_the_move_of_the_picture_and_noise_it_is_made_of(self, name: Any, t: float) -> None:
        """Of one picture, one noise and one loss of the model's own input: k-diffusion's latents at the same ratio of
        noise to picture, x = x0 + sigma e, end where the flow's do, in either's own units."""
        rule, sigma, time = StepRule(name, 0.7), t / (1 - t), torch.tensor(t, dtype=torch.float64)
        picture, noise, aim = (rand(2, 4, 3, 5, seed=seed).double() for seed in range(3))

        def moved(latents: Tensor, into_z: float | Tensor, level: Tensor | None) -> Tensor:
            leaf = latents.clone().requires_grad_()
            (gradient,) = torch.autograd.grad((leaf * into_z - aim).square().sum() / 100, leaf)
            return (latents + rule.update(latents, gradient, 3, 20, (3, 10), level)) * into_z

        flow = (1 - time) * picture + time * noise
        by_flow = moved(flow / flow_scale(time), 1.0, None)
        by_k = moved(picture + sigma * noise, (1 + sigma**2) ** -0.5, torch.tensor(sigma, dtype=torch.float64))
        torch.testing.assert_close(by_flow, by_k, rtol=1e-6, atol=1e-6)
        assert (by_flow - flow / flow_scale(time)).abs().max() > 1e-3

    @pytest.mark.parametrize("name", ["relative", "attend-excite"])
    @pytest.mark.parametrize("sigma", [None, torch.tensor(2.0)])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_zero_gradient_gives_no_update_and_the_dtype_stays(
        self, name: Any, sigma: Tensor | None, dtype: torch.dtype
    ) -> None:
        latents = rand(2, 4, 3, 5).to(dtype)
        gradient = rand(2, 4, 3, 5, seed=1).to(dtype)
        gradient[0] = 0
        update = StepRule(name, 0.5).update(latents, gradient, 0, 20, (0, 10), sigma)
        assert update.dtype == dtype
        assert update[0].abs().max() == 0
        assert update[1].abs().max() > 0

    @pytest.mark.parametrize("name", ["relative", "attend-excite"])
    def test_images_do_not_touch_each_other(self, name: Any) -> None:
        latents, gradient = rand(3, 4, 3, 5), rand(3, 4, 3, 5, seed=1)
        rule = StepRule(name, 0.5)
        together = rule.update(latents, gradient, 2, 20, (2, 10), torch.tensor(3.0))
        for i in range(3):
            alone = rule.update(latents[i : i + 1], gradient[i : i + 1], 2, 20, (2, 10), torch.tensor(3.0))
            assert torch.equal(together[i : i + 1], alone)

    @pytest.mark.parametrize(
        ("name", "size", "message"),
        [
            ("adam", 1.0, "rule: 'adam' is not one of relative, attend-excite"),
            ("relative", 0.0, "size: 0.0 must be a finite number above 0"),
            ("relative", -1.0, "size: -1.0"),
            ("attend-excite", math.nan, "size: nan"),
            ("attend-excite", math.inf, "size: inf"),
        ],
    )
    def test_errors(self, name: Any, size: float, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            StepRule(name, size)


@pytest.mark.parametrize(
    ("schedule", "run", "levels", "expected"),
    [
        # The second pass also has what lies above it; the last the first step that has come as far.
        (Schedule(5), [14.0, 9.0, 7.0, 5.0, 3.0, 1.0], [14.0, 6.0, 3.35], [[], [0, 1, 2, 3], [4]]),
        (Schedule(5, start=2), [14.0, 9.0, 7.0, 5.0, 3.0, 1.0], [14.0, 6.0, 3.35], [[], [2, 3], [4]]),
        (Schedule(5, every=2), [14.0, 9.0, 7.0, 5.0, 3.0, 1.0], [14.0, 6.0, 3.35], [[], [0, 2], [4]]),
        (Schedule(6), [6.0, 3.35, 1.0, 0.5, 0.2, 0.1], [6.0, 3.35], [[], [0, 1]]),
        (Schedule(2), [3.0, 2.0, 1.0], [3.0], [[0]]),
        (Schedule(2), [9.0, 8.0, 7.0], [9.0, 6.0, 3.35], [[], [0, 1], []]),
        (Schedule(3, start=2), [14.0, 3.0, 1.0], [14.0, 6.0, 3.35], [[], [], []]),
    ],
)
def test_a_coarser_run_s_passes_stand_for_the_guided_steps_up_to_where_it_ends(schedule, run, levels, expected):
    assert schedule.pooled(run, levels) == expected


def test_pooled_steps_are_all_that_a_run_guides_until_it_has_come_as_far():
    run = [14.6 * 0.9**k for k in range(50)]
    for schedule in (Schedule(), Schedule(30, start=5), Schedule(20, every=3)):
        found = [step for own in schedule.pooled(run, [14.6, 6.0, 3.35]) for step in own]
        reached = next(k for k, sigma in enumerate(run) if sigma <= 3.35)
        assert found == [step for step in range(reached + 1) if schedule.guided(step, 50)]
