"""The update as a whole: gradients, batches, refinement, stopping, traces, and what is left behind."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import Runner, Toy, contexts, noise

from lib_decouple.core import losses
from lib_decouple.core.gradient import LearnedInRun, LossAndGradient, LossGradient, NonFinite, frozen
from lib_decouple.core.guidance import Caution, Guide, Refinement
from lib_decouple.core.host_pass import RowsInOrder
from lib_decouple.core.losses import LOSSES, WeightedLoss
from lib_decouple.core.maps import Entity, ImagePlan, MapReader
from lib_decouple.core.memory import Thrift
from lib_decouple.core.observe import Observation, Observers
from lib_decouple.core.presence import Curve, Helping, Level, presence
from lib_decouple.core.schedule import Schedule, StepRule
from lib_decouple.core.trace import ImageTrace, Tracer, measure
from lib_decouple.hosts.base import Looking, Session

CAT, DOG, COW = Entity("cat", (2,)), Entity("dog", (4, 5)), Entity("cow", (1,))
PLAN = ImagePlan((CAT, DOG))
PLANS = [PLAN, ImagePlan((COW, DOG, CAT)), ImagePlan((DOG, COW))]


@dataclass
class Guided:
    """A guide, the traces of its images, and a host that makes its own pass behind each step when it is looked at."""

    guide: Guide
    traces: list[ImageTrace]
    observers: Observers
    looking: Looking
    host_calls: int = 0

    def step(self, latents: Tensor, step: int, total: int, run: Runner, *given: Any) -> Tensor:
        """Raises what the guide raises, as a session does not."""
        session = Session(self.guide, self.looking, observers=self.observers)
        moved, session._seen = self.guide.step(latents, step, total, run, *given)
        self._by_host(session, moved, step, total, run)
        return moved

    def look(self, latents: Tensor, step: int, run: Runner) -> None:
        session = Session(self.guide, self.looking, lambda *_: True, observers=self.observers)
        self._by_host(session, latents, step, 8, run)

    def _by_host(self, session: Session, latents: Tensor, step: int, total: int, run: Runner) -> None:
        with session.beside_host(latents.shape, step, total, lambda: RowsInOrder(sum(run.parts[: len(latents)]))):
            if session.wanted(step, total):
                self.host_calls += 1
                with torch.no_grad():
                    run.model(*run.rows_of(latents, range(len(latents))))
        assert session.unread == ""

    def gradient(self, latents: Tensor, images: list[int], run: Any) -> Any:
        return self.guide.gradient(latents, images, run)

    def maps(self, latents: Tensor, images: list[int], run: Any) -> list[Tensor]:
        return self.guide.gradient.look(latents, images, run)[1]


def guide_for(model: Toy, plans: list[ImagePlan], **changes: Any) -> Guided:
    values = {
        "loss": LOSSES["iou"], "treatment": "raw", "combine": "mean", "schedule": Schedule(4),
        "rule": StepRule("relative", 0.3), "looking": Looking(), "everything": False, "keep_maps": False,
        "caution": Caution(places=0), **changes,
    }  # fmt: skip
    reader = MapReader(model.layers("coarse", "coarse2"), plans, values.pop("treatment"), values.pop("combine"))
    learned = LearnedInRun(Thrift(one_at_a_time=values.pop("one_at_a_time", False)))
    gradient = LossGradient(model, reader, values.pop("loss"), learned)
    traces, looking = [ImageTrace(plan.names) for plan in plans], values.pop("looking")
    tracer = Tracer(traces, values.pop("everything"), values.pop("keep_maps"), looking.moments)
    return Guided(Guide(gradient, **values), traces, Observers([tracer]), looking)


def explicit_loss(model: Toy, latents: Tensor, context: Tensor) -> Tensor:
    """iou of cat and dog for one image, from the softmax that the model itself used in a full pass."""
    model(latents, context)
    probs = (model.coarse.probs.mean(1) + model.coarse2.probs.mean(1)) / 2
    cat, dog = probs[0, :, 2], (probs[0, :, 4] + probs[0, :, 5]) / 2
    return torch.minimum(cat / cat.sum(), dog / dog.sum()).sum() / 2


class TestGradient:
    @pytest.mark.parametrize("size", [(8, 8), (7, 10)])
    def test_is_the_full_passs_gradient(self, size: tuple[int, int]) -> None:
        model = Toy()
        latents, rows = noise(1, *size), contexts(1)
        leaf = latents.clone().requires_grad_()
        loss = explicit_loss(model, leaf, rows)
        (expected,) = torch.autograd.grad(loss, leaf)
        found_loss, found, *_ = guide_for(model, [PLAN]).gradient(latents, [0], Runner(model, rows))
        assert found_loss.item() == pytest.approx(loss.item(), abs=1e-6)
        assert expected.abs().max() > 1e-5
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)

    @pytest.mark.parametrize(
        "loss",
        [losses.iou, losses.com, losses.kl, losses.cc, losses.intensity_loss, losses.spread_loss],
        ids=lambda f: f.__name__,
    )
    @pytest.mark.parametrize("treatment", ["raw", "attend-excite"])
    def test_central_differences_in_float64(self, loss: Any, treatment: Any) -> None:
        model = Toy(torch.float64)
        latents, run = noise(1, 5, 6, torch.float64), Runner(model, contexts(1, dtype=torch.float64))
        guide = guide_for(model, [PLAN], loss=loss, treatment=treatment)
        _, gradient, *_ = guide.gradient(latents, [0], run)
        assert gradient.dtype == torch.float64

        def value(at: Tensor) -> float:
            with torch.no_grad():
                return loss(guide.maps(at, [0], run)[0][None]).item()

        for seed in range(4):
            way = noise(1, 5, 6, torch.float64, seed=100 + seed)
            way = way / way.norm()
            slope = (value(latents + 1e-6 * way) - value(latents - 1e-6 * way)) / 2e-6
            assert (gradient * way).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-8)
        assert gradient.norm() > 1e-5

    def test_input_and_global_grad_mode_are_left_alone(self) -> None:
        model = Toy()
        latents = noise(2)
        before = latents.clone()
        with torch.no_grad():
            moved = guide_for(model, [PLAN, PLAN]).step(latents, 0, 8, Runner(model, contexts(2)))
            assert not torch.is_grad_enabled()
        assert torch.equal(latents, before)
        assert not latents.requires_grad
        assert not moved.requires_grad
        assert (moved - latents).abs().max() > 0


class TestUpdate:
    @pytest.mark.parametrize("step", [0, 2])
    def test_attend_excite_rule_by_hand(self, step: int) -> None:
        model, rows = Toy(), contexts(1)
        latents = noise(1)
        leaf = latents.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(explicit_loss(model, leaf, rows), leaf)
        a = 50 * math.sqrt(1 - 0.5 * step / 7)
        guide = guide_for(model, [PLAN], rule=StepRule("attend-excite", 50))
        moved = guide.step(latents, step, 8, Runner(model, rows))
        torch.testing.assert_close(moved, latents - a * gradient, rtol=0, atol=1e-5)
        assert (moved - latents).norm() > 1e-2

    def test_relative_rule_by_hand(self) -> None:
        model, rows = Toy(), contexts(1)
        latents = noise(1)
        leaf = latents.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(explicit_loss(model, leaf, rows), leaf)
        moved = guide_for(model, [PLAN]).step(latents, 1, 8, Runner(model, rows))
        share = 0.3 * 3 / (4 + 3 + 2 + 1)
        torch.testing.assert_close(
            moved, latents - share * latents.norm() * gradient / gradient.norm(), rtol=0, atol=1e-5
        )

    @pytest.mark.parametrize("rule", [StepRule("relative", 0.5), StepRule("attend-excite", 20)], ids=lambda r: r.name)
    @pytest.mark.parametrize("sigma", [0.2, 1.5, 14.6])
    def test_scaled_and_k_diffusion_latents_take_the_same_path(self, rule: StepRule, sigma: float) -> None:
        """Whole guide, three rounds: x = z sqrt(1+sigma²) all the way."""
        model, root = Toy(torch.float64), math.sqrt(1 + sigma**2)
        z, rows = noise(2, dtype=torch.float64), contexts(2, dtype=torch.float64)
        options = {"rule": rule, "refinement": Refinement((0,), -1.0, 3), "loss": losses.iou}
        run_z, run_x = Runner(model, rows), Runner(model, rows)
        run_x.shrink = 1 / root
        moved_z = guide_for(model, [PLAN, PLAN], **options).step(z, 0, 8, run_z)
        level = torch.tensor(sigma, dtype=torch.float64)
        moved_x = guide_for(model, [PLAN, PLAN], **options).step(z * root, 0, 8, run_x, level)
        torch.testing.assert_close(moved_x / root, moved_z, rtol=0, atol=1e-6)
        assert (moved_z - z).abs().max() > 1e-2
        assert len(run_z.calls) == len(run_x.calls) == 3

    @pytest.mark.parametrize("name", list(LOSSES))
    def test_each_loss_goes_down(self, name: str) -> None:
        model, rows = Toy(), contexts(1)
        guide = guide_for(model, [PLAN], loss=WeightedLoss.parse(name), rule=StepRule("relative", 0.05))
        latents = noise(1)
        run = Runner(model, rows)
        after = guide.step(latents, 0, 8, run)
        before, later = (guide.gradient(at, [0], run)[0].item() for at in (latents, after))
        assert later < before

    def test_unguided_steps_return_the_latents_and_run_nothing(self) -> None:
        model = Toy()
        run = Runner(model, contexts(1))
        guide = guide_for(model, [PLAN], schedule=Schedule(5, 2))
        moved = []
        for step in range(8):
            latents = noise(1, seed=step)
            after = guide.step(latents, step, 8, run)
            if not torch.equal(after, latents):
                moved.append(step)
        assert moved == [0, 2, 4]
        assert len(run.calls) == 3
        assert [record.step for record in guide.traces[0].steps] == moved

    def test_every_second_step_makes_the_shares_larger(self) -> None:
        model = Toy()
        norms = []
        for every in (1, 2):
            guide = guide_for(model, [PLAN], schedule=Schedule(6, every), rule=StepRule("relative", 0.3))
            latents = noise(1)
            for step in range(12):
                guide.step(latents, step, 12, Runner(model, contexts(1)))
            norms.append(sum(record.update_norm for record in guide.traces[0].steps))
        assert norms == pytest.approx([0.3, 0.3], rel=1e-4)


class TestBatch:
    @pytest.mark.parametrize("one_at_a_time", [False, True])
    @pytest.mark.parametrize("rule", [StepRule("relative", 0.5), StepRule("attend-excite", 50)], ids=lambda r: r.name)
    def test_each_image_comes_out_as_it_would_alone(self, rule: StepRule, one_at_a_time: bool) -> None:
        model, rows, latents = Toy(), contexts(3), noise(3)
        guide = guide_for(model, PLANS, rule=rule, one_at_a_time=one_at_a_time)
        together = latents
        for step in range(4):
            together = guide.step(together, step, 8, Runner(model, rows))
        for i, plan in enumerate(PLANS):
            alone_guide = guide_for(model, [plan], rule=rule)
            alone = latents[i : i + 1]
            for step in range(4):
                alone = alone_guide.step(alone, step, 8, Runner(model, rows[i : i + 1]))
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=2e-6)
            assert (alone - latents[i : i + 1]).abs().max() > 1e-2
            found, expected = guide.traces[i].as_dict(), alone_guide.traces[0].as_dict()
            assert found["entities"] == expected["entities"]
            for ours, theirs in zip(found["steps"], expected["steps"]):
                assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
                assert ours["before"]["iou"] == pytest.approx(theirs["before"]["iou"], abs=1e-5)

    def test_passes(self) -> None:
        model, rows = Toy(), contexts(3)
        run = Runner(model, rows)
        guide_for(model, PLANS).step(noise(3), 0, 8, run)
        assert run.calls == [[0, 1, 2]]
        run = Runner(model, rows)
        guide_for(model, PLANS, one_at_a_time=True).step(noise(3), 0, 8, run)
        assert run.calls == [[0], [1], [2]]

    def test_image_without_entities_is_left_alone_bit_for_bit(self) -> None:
        model = Toy()
        run = Runner(model, contexts(3))
        plans = [PLAN, ImagePlan(()), PLAN]
        latents = noise(3)
        guide = guide_for(model, plans)
        moved = guide.step(latents, 0, 8, run)
        assert run.calls == [[0, 2]]
        assert torch.equal(moved[1], latents[1])
        assert not torch.equal(moved[2], latents[2])
        assert guide.traces[1].steps == []

    @pytest.mark.parametrize("observe", [True, False])
    def test_no_entities_at_all_needs_no_pass(self, observe: bool) -> None:
        model = Toy()
        run = Runner(model, contexts(2))
        guide = guide_for(model, [ImagePlan(()), ImagePlan(())])
        latents = noise(2)
        if observe:
            guide.look(latents, 0, run)
        else:
            assert torch.equal(guide.step(latents, 0, 8, run), latents)
        assert run.calls == []

    @pytest.mark.parametrize("treatment", ["raw", "attend-excite"])
    def test_parts_of_and_prompts(self, treatment: Any) -> None:
        """Rows are image-major with an image's parts consecutive; an entity is read in its own part."""
        model, rows = Toy(), contexts(4)
        split = ImagePlan((Entity("cat", (2,), part=1), Entity("dog", (4, 5), part=0)), parts=2)
        latents = noise(3)
        guide = guide_for(model, [PLAN, split, PLAN], treatment=treatment)
        run = Runner(model, rows, [1, 2, 1])
        with torch.no_grad():
            found = guide.maps(latents, [0, 1, 2], run)
            single = guide_for(model, [PLAN], treatment=treatment)
            by_row = [
                single.maps(latents[image : image + 1], [0], Runner(model, rows[row : row + 1]))[0]
                for row, image in enumerate([0, 1, 1, 2])
            ]
        torch.testing.assert_close(found[0], by_row[0])
        torch.testing.assert_close(found[1][0], by_row[2][0])
        torch.testing.assert_close(found[1][1], by_row[1][1])
        torch.testing.assert_close(found[2], by_row[3])
        moved = guide.step(latents, 0, 8, run)
        assert all((moved[i] - latents[i]).abs().max() > 0 for i in range(3))

    def test_end_token_of_each_image_counts(self) -> None:
        model, rows, latents = Toy(), contexts(1), noise(1)
        with torch.no_grad():
            maps = [
                guide_for(model, [ImagePlan((CAT, DOG), end=end)], treatment="attend-excite").maps(
                    latents, [0], Runner(model, rows)
                )[0]
                for end in (None, 6)
            ]
        # 7 tokens: without one, the last position (6) is the end token.
        assert torch.equal(maps[0], maps[1])


class Recorded:
    """A loss that remembers its values."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def __call__(self, maps: Tensor) -> Tensor:
        value = LOSSES["iou"](maps)
        self.values.append(value.item())
        return value


class TestRefinement:
    def settings(self, threshold: float, rounds: int) -> dict[str, Any]:
        return {"refinement": Refinement((0, 2), threshold, rounds), "rule": StepRule("relative", 0.2)}

    def test_repeats_until_the_rounds_are_spent(self) -> None:
        model, rows = Toy(), contexts(1)
        run, loss = Runner(model, rows), Recorded()
        guide = guide_for(model, [PLAN], loss=loss, **self.settings(-1.0, 5))
        guide.step(noise(1), 0, 8, run)
        assert len(run.calls) == 5
        assert guide.traces[0].steps[0].passes == 5
        assert all(later < earlier for earlier, later in pairwise(loss.values))
        assert guide.traces[0].steps[0].loss == loss.values[0]
        guide.step(noise(1), 1, 8, run)  # not a refined step
        assert len(run.calls) == 6
        assert [record.passes for record in guide.traces[0].steps] == [5, 1]
        assert guide.traces[0].passes == 6

    def test_ends_at_the_threshold_after_the_updates_that_were_needed(self) -> None:
        model, rows, latents = Toy(), contexts(1), noise(1)
        loss = Recorded()
        guide_for(model, [PLAN], loss=loss, **self.settings(-1.0, 5)).step(latents, 0, 8, Runner(model, rows))
        threshold = loss.values[2]  # reached after two updates, seen in the third pass
        run = Runner(model, rows)
        guide = guide_for(model, [PLAN], **self.settings(threshold, 20))
        moved = guide.step(latents, 0, 8, run)
        assert len(run.calls) == 3
        twice = guide_for(model, [PLAN], **self.settings(-1.0, 2)).step(latents, 0, 8, Runner(model, rows))
        assert torch.equal(moved, twice)

    def test_each_image_of_a_batch_ends_on_its_own(self) -> None:
        model, rows, latents = Toy(), contexts(3), noise(3)
        firsts = [
            guide_for(model, PLANS).gradient(latents, [0, 1, 2], Runner(model, rows))[0][i].item() for i in range(3)
        ]
        threshold = sorted(firsts)[1] - 1e-3
        run = Runner(model, rows)
        guide = guide_for(model, PLANS, **self.settings(threshold, 6))
        together = guide.step(latents, 0, 8, run)
        assert len({record.passes for record in (trace.steps[0] for trace in guide.traces)}) > 1
        assert len(run.calls[-1]) < 3
        for i, plan in enumerate(PLANS):
            alone_guide = guide_for(model, [plan], **self.settings(threshold, 6))
            alone = alone_guide.step(latents[i : i + 1], 0, 8, Runner(model, rows[i : i + 1]))
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=2e-6)
            assert guide.traces[i].steps[0].passes == alone_guide.traces[0].steps[0].passes

    def test_interrupt_ends_it_between_rounds(self) -> None:
        model = Toy()
        run = Runner(model, contexts(1))
        guide = guide_for(model, [PLAN], interrupted=lambda: len(run.calls) >= 2, refinement=Refinement((0,), -1.0, 20))
        guide.step(noise(1), 0, 8, run)
        assert len(run.calls) == 2

    def test_update_norms_of_the_rounds_add_up(self) -> None:
        model = Toy()
        guide = guide_for(model, [PLAN], schedule=Schedule(1), **self.settings(-1.0, 3))
        guide.step(noise(1), 0, 8, Runner(model, contexts(1)))
        assert guide.traces[0].steps[0].update_norm == pytest.approx(3 * 0.2, rel=1e-4)


class TestDrafted:
    """A draft's pass is moved by one gradient as far as the run is at several steps."""

    def test_the_rule_s_lengths_of_all_steps_add_up_along_one_gradient(self) -> None:
        model, latents, rows = Toy(), noise(1), contexts(1)
        leaf = latents.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(explicit_loss(model, leaf, rows), leaf)
        run = Runner(model, rows)
        # Shares of four places fall as 4, 3, 2, 1 of 10 parts of 0.3: those of places 1 and 2 are half of it.
        guide = guide_for(model, [PLAN]).guide
        moved = guide.drafted(latents, [1, 2], 8, run)
        torch.testing.assert_close(moved, latents - 0.15 * latents.norm() / gradient.norm() * gradient)
        assert len(run.calls) == 1
        fixed = guide_for(model, [PLAN], rule=StepRule("attend-excite", 2.0)).guide
        factor = 2.0 * sum(math.sqrt(1 - 0.5 * step / 7) for step in (1, 2))
        torch.testing.assert_close(fixed.drafted(latents, [1, 2], 8, run), latents - factor * gradient)

    def test_in_k_diffusion_s_units_it_is_the_same_move(self) -> None:
        model, z, rows = Toy(torch.float64), noise(1, dtype=torch.float64), contexts(1, dtype=torch.float64)
        sigma = torch.tensor(3.0, dtype=torch.float64)
        unit = (1 + sigma**2).sqrt()
        guide = guide_for(model, [PLAN]).guide
        in_z = guide.drafted(z, [0, 1], 8, Runner(model, rows))

        def run(x: Tensor, images: Any) -> None:
            model(x / unit, rows)

        torch.testing.assert_close(guide.drafted(z * unit, [0, 1], 8, run, sigma), in_z * unit)

    def test_without_steps_or_entities_nothing_runs(self) -> None:
        model, latents, run = Toy(), noise(1), Runner(Toy(), contexts(1))
        assert guide_for(model, [PLAN]).guide.drafted(latents, [], 8, run) is latents
        assert guide_for(model, [ImagePlan(())]).guide.drafted(latents, [0], 8, run) is latents
        assert run.calls == []

    def test_who_is_decoupled_or_whole_is_left_alone(self) -> None:
        model, latents, rows = Toy(), noise(2), contexts(2)
        run = Runner(model, rows)
        low, high = sorted(guide_for(model, [PLAN, PLAN]).gradient(latents, [0, 1], run).losses.tolist())
        stopping = guide_for(model, [PLAN, PLAN], stop_below=(low + high) / 2).guide
        moved = stopping.drafted(latents, [0], 8, run)
        assert sorted(bool((own != before).any()) for own, before in zip(moved, latents)) == [False, True]
        surely_there = Helping(Curve((Level(20.0, -1.0, 100.0),)))
        helped = guide_for(model, [PLAN, PLAN], helping=surely_there).guide
        assert torch.equal(helped.of([PLAN, PLAN]).drafted(latents, [0], 8, run, noise=5.0), latents)
        assert surely_there.whole == set()  # of the run's own images nothing is known yet

    def test_a_number_that_is_none_is_refused(self) -> None:
        model = Toy()
        guide = guide_for(model, [PLAN], rule=StepRule("attend-excite", 1e39)).guide
        with pytest.raises(NonFinite):
            guide.drafted(noise(1), [0], 8, Runner(model, contexts(1)))

    def test_memory_that_ends_for_many_drafts_says_nothing_of_the_run(self) -> None:
        guide = guide_for(Toy(), [PLAN]).guide
        of_drafts = guide.of([PLAN] * 8)
        assert of_drafts.gradient.learned.thrift.tighten(8)
        assert of_drafts.gradient.learned.thrift.one_at_a_time
        assert not guide.gradient.learned.thrift.one_at_a_time

    def test_numbers_that_run_over_in_a_draft_leave_the_run_s_scale(self) -> None:
        """Or the seed that is told would not draw the picture again, in which nothing is drafted."""
        guide = guide_for(Toy(), [PLAN]).guide
        of_drafts = guide.of([PLAN] * 8)
        before = guide.gradient.learned.scale.factor
        assert of_drafts.gradient.learned.scale.lower(0)
        assert of_drafts.gradient.learned.scale.factor < before == guide.gradient.learned.scale.factor


class TestCaution:
    """Few guided steps, each long: an update is kept only where it lowers the loss at its own noise level."""

    def stepped(self, size: float, loss: Any = LOSSES["iou"], steps: int = 2, **changes: Any) -> Any:
        model, rows, latents = Toy(), contexts(3), noise(3)
        run = Runner(model, rows)
        guide = guide_for(
            model,
            PLANS,
            schedule=Schedule(steps),
            rule=StepRule("relative", size),
            loss=loss,
            caution=Caution(),
            **changes,
        )
        return guide, run, latents, guide.step(latents, 0, 8, run)

    def test_no_longer_than_allowed(self) -> None:
        guide, _, latents, moved = self.stepped(3.0)
        for trace, before, after in zip(guide.traces, latents, moved):
            share = float((after - before).norm() / before.norm())
            assert any(share == pytest.approx(0.3 * part, rel=1e-4) for part in (1, 0.5, 0.25))
            assert trace.steps[0].update_norm == pytest.approx(share, rel=1e-4)

    def test_every_kept_update_lowers_the_loss_and_the_look_is_what_is_told_behind_it(self) -> None:
        guide, run, latents, moved = self.stepped(0.15)
        assert run.calls == [[0, 1, 2], [0, 1, 2]]  # a gradient, and one look that found all three lower
        before = guide.gradient(latents, [0, 1, 2], run).losses
        after, maps = guide.guide.gradient.look(moved, [0, 1, 2], run)
        assert (after < before).all()
        for trace, own in zip(guide.traces, maps):
            (record,) = trace.steps
            assert not record.taken_back
            assert record.after.iou == pytest.approx(measure(trace.entities, own).iou, abs=1e-5)
            assert (record.passes, trace.looks) == (1, 1)

    def climbing(self, maps: Tensor) -> Tensor:
        """The gradient of a loss, and the value of its opposite: no step along it ever lowers it."""
        value = LOSSES["iou"](maps)
        return 2 * value.detach() * 0 - value.detach() + (value - value.detach())

    def test_what_raises_the_loss_is_halved_then_taken_back_and_the_trace_says_so(self) -> None:
        guide, run, latents, moved = self.stepped(0.2, self.climbing)
        assert torch.equal(moved, latents)
        assert run.calls == [[0, 1, 2]] * 4  # a gradient, and looks at the whole, the half and the quarter
        for trace in guide.traces:
            (record,) = trace.steps
            assert record.taken_back
            assert (record.update_norm, record.after, trace.looks) == (0, None, 3)
            assert trace.as_dict()["steps"][0]["taken_back"] is True

    def test_one_image_is_taken_back_and_the_others_move(self) -> None:
        def third_climbs(maps: Tensor) -> Tensor:
            return LOSSES["iou"](maps) if maps.shape[1] == 2 else self.climbing(maps)

        guide, run, latents, moved = self.stepped(0.2, third_climbs)
        assert [torch.equal(a, b) for a, b in zip(moved, latents)] == [False, True, False]  # the one of three entities
        assert run.calls == [[0, 1, 2], [0, 1, 2], [1], [1]]
        assert [trace.steps[0].taken_back for trace in guide.traces] == [False, True, False]

    def test_a_refined_image_that_is_taken_back_is_not_tried_again(self) -> None:
        _, run, latents, moved = self.stepped(0.2, self.climbing, refinement=Refinement((0,), -9.0, 5))
        assert torch.equal(moved, latents)
        assert len(run.calls) == 4

    @pytest.mark.parametrize("loss", [LOSSES["iou"], climbing], ids=["falling", "rising"])
    def test_where_many_steps_are_guided_nothing_is_looked_at(self, loss: Any) -> None:
        loss = loss if loss is LOSSES["iou"] else self.climbing
        _, run, latents, moved = self.stepped(1.5, loss, steps=5)
        assert run.calls == [[0, 1, 2]]
        assert float((moved[0] - latents[0]).norm() / latents[0].norm()) == pytest.approx(0.5, rel=1e-4)
        assert Caution() == Caution(4, 0.3, 2)


class TestStopping:
    def test_images_below_the_threshold_are_left_alone(self) -> None:
        model, rows, latents = Toy(), contexts(3), noise(3)
        probe = guide_for(model, PLANS)
        values = probe.gradient(latents, [0, 1, 2], Runner(model, rows))[0].tolist()
        lowest = min(range(3), key=values.__getitem__)
        guide = guide_for(model, PLANS, stop_below=values[lowest] + 1e-6)
        moved = guide.step(latents, 0, 8, Runner(model, rows))
        for i in range(3):
            assert torch.equal(moved[i], latents[i]) == (i == lowest)
            assert (guide.traces[i].steps[0].update_norm == 0) == (i == lowest)
            assert guide.traces[i].steps[0].loss == pytest.approx(values[i], abs=1e-6)

    def test_a_stopped_image_is_looked_at_again(self) -> None:
        model, run = Toy(), Runner(Toy(), contexts(1))
        run.model = model
        guide = guide_for(model, [PLAN], stop_below=10.0)
        for step in range(3):
            guide.step(noise(1), step, 8, run)
        assert len(guide.traces[0].steps) == 3


class TestObserve:
    def test_looks_are_seen_at_every_step_and_change_nothing(self) -> None:
        model, rows = Toy(), contexts(3)
        guide = guide_for(model, PLANS, everything=True, keep_maps=True)
        for step in range(8):
            latents = noise(3, seed=step)
            before = latents.clone()
            guide.look(latents, step, Runner(model, rows))
            assert torch.equal(latents, before)
        for trace in guide.traces:
            assert [record.step for record in trace.steps] == list(range(8))
            assert all(record.update_norm == 0 and record.maps is not None for record in trace.steps)
            assert not any(record.guided for record in trace.steps)

    def test_sees_what_a_guided_step_sees(self) -> None:
        model, rows, latents = Toy(), contexts(3), noise(3)
        looking, guiding = guide_for(model, PLANS, everything=True), guide_for(model, PLANS)
        looking.look(latents, 0, Runner(model, rows))
        guiding.step(latents, 0, 8, Runner(model, rows))
        for seen, guided in zip(looking.traces, guiding.traces):
            assert seen.steps[0].loss == pytest.approx(guided.steps[0].loss, abs=1e-6)
            assert seen.steps[0].before.iou == pytest.approx(guided.steps[0].before.iou, abs=1e-6)

    @pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError(), KeyError("names")])
    def test_observers_cannot_disturb(self, error: Exception, caplog: Any) -> None:
        model, rows, latents = Toy(), contexts(3), noise(3)
        expected = guide_for(model, PLANS).step(latents, 0, 8, Runner(model, rows))
        shown: list[Observation] = []

        def failing(_: Observation) -> None:
            raise error

        guide = guide_for(model, PLANS)
        guide.observers = Observers([failing, shown.append])
        run = Runner(model, rows)
        assert torch.equal(guide.step(latents, 0, 8, run), expected)
        assert [(one.step, one.image, one.names) for one in shown] == [(0, i, p.names) for i, p in enumerate(PLANS)]
        assert len(run.calls) == 1
        assert caplog.text.count("is left out of this run") == 1  # told once, and shown no more
        assert type(error).__name__ in caplog.text

    def test_an_observation_is_what_the_step_did(self) -> None:
        model, rows, latents = Toy(), contexts(1), noise(1)
        shown: list[Observation] = []
        guide = guide_for(model, [PLAN], looking=Looking(after=True))
        guide.observers = Observers([shown.append])
        moved = guide.step(latents, 0, 8, Runner(model, rows))
        (seen,) = shown
        losses, _, maps, _ = guide.gradient(latents, [0], Runner(model, rows))
        assert seen.loss == losses.item()
        assert torch.equal(seen.maps, maps[0])
        assert not seen.maps.requires_grad
        assert seen.update == pytest.approx(float((moved - latents).norm() / latents.norm()), rel=1e-5)
        assert seen.after is not None
        torch.testing.assert_close(seen.after, guide.maps(moved, [0], Runner(model, rows))[0], rtol=0, atol=1e-6)

    def test_a_step_that_fails_is_not_shown(self) -> None:
        model, shown = Toy(), list[Observation]()
        guide = guide_for(model, [PLAN], refinement=Refinement((0,), -1.0, 3))
        guide.observers = Observers([shown.append])
        run = Runner(model, contexts(1))

        def second_fails(latents: Tensor, images: Any) -> None:
            if run.calls:
                raise RuntimeError("injected")
            run(latents, images)

        with pytest.raises(RuntimeError, match="injected"):
            guide.step(noise(1), 0, 8, second_fails)
        assert shown == []

    def test_nobody_measures_before_somebody_reads(self, monkeypatch: Any) -> None:
        from lib_decouple.core import trace as module

        measured = []
        monkeypatch.setattr(module, "measure", lambda *given: measured.append(given) or measure(*given))
        model, rows = Toy(), contexts(1)
        guide = guide_for(model, [PLAN], looking=Looking(after=True, moments=True))
        for step in range(3):
            guide.step(noise(1), step, 8, Runner(model, rows))
        assert measured == []
        (first, _, _) = guide.traces[0].steps
        expected = measure(PLAN.names, guide.maps(noise(1), [0], Runner(model, rows))[0])
        assert first.before.iou == pytest.approx(expected.iou)
        assert first.before is first.before
        assert len(measured) == 1


def states(model: torch.nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()]


class TestWeightsAndFailures:
    def mixed(self) -> Toy:
        """A model of which some parameters take gradients and some do not."""
        model = Toy()
        for i, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(i % 3 != 0)
        return model

    def test_weights_take_no_gradient_and_their_state_is_restored(self) -> None:
        model = self.mixed()
        before = states(model)
        inside: list[bool] = []
        hook = model.enter.register_forward_hook(lambda *_: inside.extend(states(model)))
        guide_for(model, [PLAN]).step(noise(1), 0, 8, Runner(model, contexts(1)))
        hook.remove()
        assert inside
        assert not any(inside)
        assert states(model) == before
        assert all(parameter.grad is None for parameter in model.parameters())

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError])
    def test_state_is_restored_after_an_exception(self, error: type[BaseException], hooks_are_off: Any) -> None:
        model = self.mixed()
        before = states(model)

        def run(latents: Tensor, images: Any) -> None:
            raise error("injected")

        latents = noise(1)
        with hooks_are_off(model), pytest.raises(error, match="injected"):
            guide_for(model, [PLAN]).step(latents, 0, 8, run)
        assert states(model) == before

    def test_frozen_nests(self) -> None:
        model = self.mixed()
        before = states(model)
        with frozen(model):
            with frozen(model):
                assert not any(states(model))
            assert not any(states(model))
        assert states(model) == before

    def test_nan_in_the_model(self, hooks_are_off: Any) -> None:
        model = self.mixed()
        before = states(model)
        with torch.no_grad():
            model.coarse.to_q.weight[0, 0] = math.nan
        guide = guide_for(model, [PLAN])
        with hooks_are_off(model), pytest.raises(NonFinite, match="the loss is not finite"):
            guide.step(noise(1), 0, 8, Runner(model, contexts(1)))
        assert states(model) == before

    def test_nan_in_the_gradient_alone(self) -> None:
        model = Toy()

        def loss(maps: Tensor) -> Tensor:
            return (maps.sum((1, 2, 3)) * 0).sqrt()  # 0, with the gradient 0 * inf

        with pytest.raises(NonFinite, match="the gradient is not finite"):
            guide_for(model, [PLAN], loss=loss).step(noise(1), 0, 8, Runner(model, contexts(1)))

    def test_update_too_large_for_the_dtype(self) -> None:
        model = Toy()
        with pytest.raises(NonFinite, match="the update is not finite"):
            guide_for(model, [PLAN], rule=StepRule("attend-excite", 1e300)).step(
                noise(1) * 10, 0, 8, Runner(model, contexts(1)), torch.tensor(1e20)
            )

    def test_token_outside_the_context(self) -> None:
        model = Toy()
        plan = ImagePlan((CAT, Entity("dog", (70,))))
        with pytest.raises(ValueError, match="outside a context of 7 tokens"):
            guide_for(model, [plan]).step(noise(1), 0, 8, Runner(model, contexts(1)))


class TestTrace:
    def test_contents(self) -> None:
        model, rows, latents = Toy(), contexts(3), noise(3)
        guide = guide_for(model, PLANS, keep_maps=True, rule=StepRule("attend-excite", 30))
        moved = guide.step(latents, 0, 8, Runner(model, rows))
        with torch.no_grad():
            maps = guide.maps(latents, [0, 1, 2], Runner(model, rows))
        for i, plan in enumerate(PLANS):
            trace = guide.traces[i]
            (record,) = trace.steps
            assert trace.entities == plan.names
            assert (record.step, record.passes) == (0, 1)
            assert record.loss == pytest.approx(LOSSES["iou"](maps[i][None]).item(), abs=1e-6)
            assert record.maps is not None
            torch.testing.assert_close(record.maps, maps[i])
            assert not record.maps.requires_grad
            for k, name in enumerate(plan.names):
                assert record.before.intensity[name] == pytest.approx(maps[i][k].max().item(), rel=1e-5)
                assert record.before.spread[name] == pytest.approx(losses.spread(maps[i][None])[0, k].item(), rel=1e-5)
            for a in range(len(plan.names)):
                for b in range(a + 1, len(plan.names)):
                    pair = f"{plan.names[a]}/{plan.names[b]}"
                    p, q = (maps[i][k] / maps[i][k].sum() for k in (a, b))
                    union = torch.minimum(p, q).sum() / torch.maximum(p, q).sum()
                    assert record.before.iou[pair] == pytest.approx(union.item(), rel=1e-4)
                    apart = losses.pair_distance(maps[i][[a, b]][None]).item()
                    assert record.before.distance[pair] == pytest.approx(apart, rel=1e-4, abs=1e-6)
            assert len(record.before.iou) == len(record.before.distance) == len(plan.names) * (len(plan.names) - 1) // 2
            assert record.before.mean_iou() == pytest.approx(sum(record.before.iou.values()) / len(record.before.iou))
            length = (moved[i] - latents[i]).norm() / latents[i].norm()
            assert record.update_norm == pytest.approx(length.item(), rel=1e-3)

    def test_is_plain_json_without_maps(self) -> None:
        model = Toy()
        for keep in (True, False):
            guide = guide_for(model, [PLAN], keep_maps=keep)
            guide.step(noise(1), 0, 8, Runner(model, contexts(1)))
            assert (guide.traces[0].steps[0].maps is not None) == keep
            plain = guide.traces[0].as_dict()
            assert json.loads(json.dumps(plain)) == plain
            assert plain["entities"] == ["cat", "dog"]
            assert "maps" not in plain["steps"][0]

    def test_single_entity(self) -> None:
        model = Toy()
        guide = guide_for(model, [ImagePlan((CAT,))], loss=LOSSES["intensity"])
        guide.step(noise(1), 0, 8, Runner(model, contexts(1)))
        (record,) = guide.traces[0].steps
        assert record.before.iou == {}
        assert record.before.mean_iou() == 0
        assert record.update_norm > 0

    def test_overlap_of_a_single_entity_moves_nothing(self) -> None:
        model, latents = Toy(), noise(1)
        moved = guide_for(model, [ImagePlan((CAT,))]).step(latents, 0, 8, Runner(model, contexts(1)))
        assert torch.equal(moved, latents)


class TestLooks:
    """Maps of three moments, and figures after each update."""

    def looking(self, steps: range, images: int = 1, **options: Any) -> tuple[Guided, Runner]:
        model = Toy()
        guide = guide_for(model, PLANS[:images], **options)
        run = Runner(model, contexts(3))
        latents = noise(images)
        for step in steps:
            latents = guide.step(latents, step, 8, run)
        return guide, run

    def test_after_is_a_look_at_the_moved_latents(self) -> None:
        model, rows, latents = Toy(), contexts(3), noise(3)
        guide = guide_for(model, PLANS, looking=Looking(after=True))
        run = Runner(model, rows)
        moved = guide.step(latents, 0, 8, run)
        assert (run.calls, guide.host_calls) == ([[0, 1, 2]], 1)
        seen = guide_for(model, PLANS, everything=True)
        seen.look(moved, 0, Runner(model, rows))
        for ours, theirs in zip(guide.traces, seen.traces):
            (record,), (expected,) = ours.steps, theirs.steps
            assert record.after is not None
            for name, values in asdict(expected.before).items():
                assert getattr(record.after, name) == pytest.approx(values, abs=1e-6)
            assert record.after.distance != record.before.distance
            assert (ours.passes, record.passes, ours.looks) == (1, 1, 0)

    @pytest.mark.parametrize("options", [{}, {"one_at_a_time": True}, {"refinement": Refinement((0,), -1.0, 3)}])
    def test_looks_change_nothing(self, options: dict[str, Any]) -> None:
        plain, _ = self.looking(range(6), 3, **options)
        model, rows, ours, theirs = Toy(), contexts(3), noise(3), noise(3)
        looking = guide_for(model, PLANS, looking=Looking(after=True, moments=True), **options)
        guide = guide_for(model, PLANS, **options)
        state = torch.random.get_rng_state()
        for step in range(6):
            ours = looking.step(ours, step, 8, Runner(model, rows))
            theirs = guide.step(theirs, step, 8, Runner(model, rows))
            assert torch.equal(ours, theirs)
        assert torch.equal(torch.random.get_rng_state(), state)
        for one, other, third in zip(looking.traces, guide.traces, plain.traces):
            assert [r.loss for r in one.steps] == [r.loss for r in other.steps] == [r.loss for r in third.steps]
            assert other.moments == {}

    def test_the_three_moments(self) -> None:
        guide, run = self.looking(range(4), looking=Looking(moments=True), schedule=Schedule(4))
        moments = guide.traces[0].moments
        assert list(moments) == ["unguided", "first"]
        assert len(run.calls) == 4  # none but for gradients
        guide.look(noise(1, seed=3), 4, run)
        assert {name: one.step for name, one in moments.items()} == {"unguided": 0, "first": 0, "last": 4}
        assert all(one.maps.dtype == torch.float16 and one.names == PLANS[0].names for one in moments.values())
        assert not torch.equal(moments["unguided"].maps, moments["first"].maps)

    def test_a_later_start_costs_no_pass(self) -> None:
        model = Toy()
        guide, run = (
            guide_for(model, PLANS[:1], looking=Looking(moments=True), schedule=Schedule(4, start=2)),
            Runner(model, contexts(3)),
        )
        guide.look(noise(1), 0, run)
        for step in range(3):
            guide.step(noise(1), step, 8, run)
        assert {name: one.step for name, one in guide.traces[0].moments.items()} == {
            "unguided": 0,
            "first": 2,
            "last": 2,
        }
        assert [record.step for record in guide.traces[0].steps] == [2]
        assert len(run.calls) == 1
        assert guide.traces[0].looks == 0

    @pytest.mark.parametrize(("every", "guided", "last"), [(1, 8, 7), (2, 4, 6), (3, 3, 6)])
    def test_the_last_moment_where_no_step_follows(self, every: int, guided: int, last: int) -> None:
        guide, run = self.looking(range(8), looking=Looking(moments=True), schedule=Schedule(8, every))
        assert {name: one.step for name, one in guide.traces[0].moments.items()} == {
            "unguided": 0, "first": 0, "last": last,
        }  # fmt: skip
        assert len(run.calls) == guided

    def test_nothing_is_kept_unasked(self) -> None:
        guide, run = self.looking(range(8), schedule=Schedule(8))
        assert guide.traces[0].moments == {}
        assert len(run.calls) == 8
        assert all(record.after is None for record in guide.traces[0].steps)


class TestMeasures:
    def test_by_hand(self) -> None:
        """Shares 1/2 1/2 0 0 and 1/4 1/4 1/4 1/4 of a line of four pixels."""
        maps = torch.tensor([[[0.4, 0.4, 1e-9, 1e-9]], [[0.2, 0.2, 0.2, 0.2]]], dtype=torch.float64)
        found = measure(("cat", "dog"), maps)
        assert found.iou["cat/dog"] == pytest.approx(0.5 / 1.5, abs=1e-6)
        assert found.cc["cat/dog"] == pytest.approx(0.25, abs=1e-6)
        assert found.distance["cat/dog"] == pytest.approx(0.25, abs=1e-6)
        tiny = (1e-9 + losses.EPS) / 0.8
        kl = 0.5 * 2 * ((0.5 - 0.25) * math.log(2) + (tiny - 0.25) * math.log(tiny / 0.25))
        assert found.kl["cat/dog"] == pytest.approx(kl, rel=1e-4)
        assert found.intensity == {"cat": pytest.approx(0.4), "dog": pytest.approx(0.2)}
        assert found.spread["cat"] == pytest.approx(0.125**2, abs=1e-6)
        assert found.spread["dog"] == pytest.approx((0.125**2 + 0.375**2) / 2, abs=1e-6)

    def test_pairs_of_three_by_hand(self) -> None:
        a, b, c = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]
        found = measure(("a", "b", "c"), torch.tensor([[a], [b], [c]]))
        assert list(found.cc) == list(found.kl) == ["a/b", "a/c", "b/c"]
        assert list(found.cc.values()) == pytest.approx([0, 0.25, 0.25], abs=1e-6)
        assert found.kl["a/c"] == pytest.approx(found.kl["b/c"])
        assert found.kl["a/b"] > found.kl["a/c"] > 0

    def test_alike(self) -> None:
        maps = torch.rand(1, 3, 4).repeat(2, 1, 1)
        found = measure(("a", "b"), maps)
        assert (found.kl["a/b"], found.cc["a/b"]) == (pytest.approx(0, abs=1e-7), pytest.approx(0.5, abs=1e-6))


@pytest.mark.parametrize("late", [False, True])
def test_weighed_by_presence_an_update_is_as_long_as_the_weakest_entity_is_likely_to_be_missing(late: bool) -> None:
    model = Toy()
    latents, run = noise(2), Runner(model, contexts(2))
    known = Helping(Curve((Level(2.0, 0.1, 10.0),)), weighed=True)
    for helping, level in ((None, 1.0), (known, 1.0), (known, 3.0)):
        guided = guide_for(model, PLANS[:2], helping=helping, rule=StepRule("relative", 0.3))
        guide = guided.guide
        images = guide.look_for(level)
        losses, gradient, maps, shares = guide.gradient(latents, images, run)
        if late:
            waiting = guide.waiting(0, 8, images, LossAndGradient(losses, gradient, maps, shares), level)
            moved = guide.moved(latents, waiting)
        else:
            moved = guide.step(latents, 0, 8, run, None, level).latents
        lengths = (moved - latents).flatten(1).norm(dim=1) / latents.flatten(1).norm(dim=1)
        usual = guide.rule.share(0, 4)
        expected = [usual] * 2
        if helping and level == 1.0:
            weakest = [float(presence(own[None]).min()) for own in maps]
            expected = [usual / (1 + math.exp(10 * (own - 0.1))) for own in weakest]
            assert all(0.02 * usual < own < 0.98 * usual for own in expected)
        assert lengths.tolist() == pytest.approx(expected, rel=1e-3)
