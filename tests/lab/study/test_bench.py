"""The benchmark's arithmetic, counter and loops; no timings."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from tiny import CONTEXT, tiny_unet

from lib_decouple.core.schedule import StepRule
from lib_decouple.hosts.base import make_guide
from lib_decouple.hosts.diffusers import Drawing, cross_attention_layers, default_level
from lib_decouple.hosts.diffusers_prompts import plan_image
from lib_decouple.lab.evaluate.backends import About, Drawn
from lib_decouple.lab.evaluate.backends.base import as_png
from lib_decouple.lab.evaluate.prompts.splits import Case
from lib_decouple.lab.study.bench import costs as bench_costs
from lib_decouple.lab.study.bench import overhead, pictures, rival
from lib_decouple.lab.study.bench.arms import ARMS, Arm, draw
from lib_decouple.lab.study.bench.command import check_plan
from lib_decouple.lab.study.bench.costs import apart, calls, measure_costs
from lib_decouple.lab.study.bench.counting import count_flops, run_cost
from lib_decouple.lab.study.bench.pictures import summarise
from lib_decouple.lab.study.bench.report import cost_table, loss_table, verdict
from lib_decouple.lab.study.bench.ways import SAME_ON_SD15, WAYS, guide_of
from lib_decouple.lab.study.late import generate_late
from lib_decouple.lab.study.unets import UNetWithInputs
from lib_decouple.settings import Settings

PROMPT, ENTITIES = "a cat and a dog", ["cat", "dog"]


@pytest.fixture
def stand() -> UNetWithInputs:
    """A tiny UNet: down 1, middle 1, up 2 cross-attentions, all at half of 8x8 latents."""
    generator = torch.Generator().manual_seed(1)
    unet = tiny_unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")
    )
    return UNetWithInputs(
        unet, torch.randn(1, 4, 8, 8, generator=generator), torch.randn(2, 77, CONTEXT, generator=generator)
    )


@pytest.fixture
def pipe(sd1: Any) -> Any:
    """The tiny pipeline with a sampler of its own, whatever the session's other tests left there."""
    before = sd1.scheduler
    sd1.scheduler = DDIMScheduler.from_config(before.config)
    yield sd1
    sd1.scheduler = before


def test_a_run_composed_by_hand() -> None:
    # 50 steps at 10, and 25 of them at 15 instead: (25 * 15 + 25 * 10) / 500.
    assert run_cost(10, 15, 10) == pytest.approx(1.25)
    # A pass of 4 at every step and an update of 5 at 25: (25 * 19 + 25 * 14) / 500.
    assert run_cost(10, 19, 14, passes=50) == pytest.approx(1.65)
    # 20 steps, 3 guided, then one with 7 passes and 2 gradients: (200 + 7 * 4 + 2 * 5) / 200.
    assert run_cost(10, 15, 10, steps=20, gradients=3) == pytest.approx(1.075)
    assert run_cost(10, 19, 14, steps=20, passes=7, gradients=2) == pytest.approx(1.19)
    assert run_cost(10, 10, 10) == 1


def test_the_counter_sees_attention_and_its_backward() -> None:
    q, k, v = (torch.randn(1, 2, 8, 4, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 8 * 8 * 4  # a multiply-add is 2; 2 heads, 8 x 8 places, 4 channels
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attend(q, k, v)) == 2 * product
    assert count_flops(lambda: torch.autograd.grad(attend(q, k, v).sum(), [q, k, v])) == (2 + 4) * product


def test_a_pass_costs_less_the_sooner_it_ends(stand: UNetWithInputs) -> None:
    found = {name: count_flops(calls(way, stand).guided) for name, way in WAYS.items()}
    order = ["plain", "down path alone", "up to the middle", "up to the first up layer", "all layers", "whole pass"]
    assert [found[name] for name in order] == sorted({found[name] for name in order})
    assert found["first up layer alone"] < found["up to the first up layer"]
    # The late gradient is all of the whole pass but one row's forward, of which a plain step has two.
    assert found["whole pass"] - found["one step late"] == found["plain"] // 2
    # The rival reads its maps inside the attention: the whole pass but the maps recomputed beside it.
    assert found["one step late"] < found["diffusers Attend-and-Excite"] < found["whole pass"]


def test_which_layers_each_way_reads(stand: UNetWithInputs) -> None:
    def names(way: str) -> list[str]:
        return [layer.name.split(".attentions")[0] for layer in guide_of(stand, WAYS[way]).gradient.reader.layers]

    down, middle, up = "down_blocks.1", "mid_block", "up_blocks.0"
    assert names("all layers") == names("whole pass") == [down, middle, up, up]
    assert names("up to the first up layer") == [down, middle, up]
    assert names("first up layer alone") == [up]
    assert names("up to the middle") == [down, middle]
    assert names("down path alone") == [down]
    with pytest.raises(ValueError, match="none on the path 'down'"):
        WAYS["down path alone"].layers(guide_of(stand, WAYS["first up layer alone"]).gradient.reader.layers)


def test_the_rival_collects_maps_of_the_level_and_leaves_no_processors(
    stand: UNetWithInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(stand.unet.attn_processors)
    kept = []
    make = rival.make_rival
    monkeypatch.setattr(rival, "make_rival", lambda **parts: kept.append(make(**parts)) or kept[-1])
    calls(WAYS["diffusers Attend-and-Excite"], stand).guided()
    store = kept[0].attention_store.attention_store
    assert {place: [m.shape[1:] for m in maps] for place, maps in store.items()} == {
        "down": [(16, 77)],
        "mid": [(16, 77)],
        "up": [(16, 77)] * 2,
    }
    assert stand.unet.attn_processors == before


def test_whole_passes_come_out_as_ended_ones(stand: UNetWithInputs) -> None:
    ended, whole = (
        guide_of(stand, WAYS[way]).step(stand.latents, 0, 50, lambda x, _: stand.run(x)).latents
        for way in ("all layers", "whole pass")
    )
    assert torch.equal(whole, ended)
    assert (ended - stand.latents).abs().max() > 1e-4


def late(pipe: Any, settings: Settings, steps: int = 4) -> torch.Tensor:
    drawn = generate_late(pipe, [PROMPT] * 2, [ENTITIES] * 2, settings, seeds=[3, 4], steps=steps, output="latent")
    assert [trace.passes for trace in drawn.traces] == [0, 0]
    return torch.stack(drawn.images)


def plain(pipe: Any, steps: int = 4) -> list[torch.Tensor]:
    return (
        Drawing(pipe, [PROMPT] * 2, [[], []], Settings(), seeds=[3, 4], steps=steps, output="latent", keep_latents=True)
        .picture()
        .latents
    )


def test_late_without_a_step_is_the_plain_pipeline(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, hooks_are_off: Any
) -> None:
    expected = plain(pipe)[-1]
    torch.testing.assert_close(late(pipe, Settings()), expected, rtol=0, atol=1e-5)
    assert (late(pipe, Settings(enabled=True)) - expected).abs().max() > 1e-2
    monkeypatch.setattr(StepRule, "update", lambda _, latents, *__: torch.zeros_like(latents))
    with hooks_are_off(pipe.unet):
        still = late(pipe, Settings(enabled=True))
    torch.testing.assert_close(still, expected, rtol=0, atol=1e-5)


def test_late_applies_the_first_gradient_before_the_second_step(pipe: Any) -> None:
    settings = Settings(enabled=True, loss="com", steps=1)
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (3, 4)])
    moved = Drawing(
        pipe, [PROMPT] * 2, [ENTITIES] * 2, settings, seeds=[3, 4], steps=2, output="latent", keep_latents=True
    ).picture()
    shares = [trace.steps[0].update_norm for trace in moved.traces]
    named, unnamed = pipe.encode_prompt([PROMPT] * 2, "cpu", 1, True, negative_prompt=[""] * 2)
    guide = make_guide(
        settings,
        pipe.unet,
        cross_attention_layers(pipe.unet),
        [plan_image(pipe, PROMPT, ENTITIES)] * 2,
        default_level(pipe.unet),
    )
    pipe.scheduler.set_timesteps(2)
    first, second = pipe.scheduler.timesteps
    _, gradient, *_ = guide.gradient(noise, [0, 1], lambda x, _: pipe.unet(x * 1, first, encoder_hidden_states=named))
    after_first = plain(pipe, 2)[0]
    lengths = [s * z.norm() / g.norm() for s, z, g in zip(shares, after_first, gradient)]
    z = after_first - torch.stack(lengths).view(-1, 1, 1, 1) * gradient
    with torch.no_grad():
        with_text, without = (pipe.unet(z, second, encoder_hidden_states=c).sample for c in (named, unnamed))
    expected = pipe.scheduler.step(without + 7.5 * (with_text - without), second, z).prev_sample
    torch.testing.assert_close(late(pipe, settings, 2), expected, rtol=0, atol=1e-4)


def test_late_refuses_a_sampler_that_scales_its_input(pipe: Any) -> None:
    from diffusers import EulerDiscreteScheduler

    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="sampler: EulerDiscreteScheduler scales"):
        late(pipe, Settings(enabled=True))


def test_what_each_way_of_drawing_uses(pipe: Any) -> None:
    group = (Case(("cat", "dog"), 1), Case(("bear", "cat"), 2))
    enabled = Settings(enabled=True)

    def used(arm: Arm) -> tuple[list[float], list[float]]:
        drawn = draw(pipe, arm, group, steps=4)
        assert len(drawn.images) == 2
        return drawn.passes, drawn.gradients

    assert used(Arm(Settings(), "plain")) == ([0, 0], [0, 0])
    # Two gradients, and as few steps are guided a look at what each update does.
    assert used(Arm(enabled)) == ([4, 4], [2, 2])
    assert used(Arm(enabled, "one step late")) == ([0, 0], [2, 2])
    rival = "diffusers Attend-and-Excite"
    # A pass at each of 4 steps, an update at the first.
    assert used(Arm(Settings(), rival, (("max_iter_to_alter", 1), ("thresholds", {})))) == ([4, 4], [1, 1])
    # The same, its first step refined towards what cannot be reached: 20 passes with updates, and a last look.
    assert used(Arm(Settings(), rival, (("max_iter_to_alter", 1), ("thresholds", {0: 2.0})))) == ([25, 25], [21, 21])
    assert sum(len(module._forward_pre_hooks) for module in pipe.unet.modules()) == 0


def record(arm: str, seed: int, missing: bool, passes: float = 0, gradients: float = 0) -> dict[str, Any]:
    return {
        "arm": arm, "count": 2, "seed": seed, "missing": ["cat"] * missing, "extra": 0,
        "passes": passes, "gradients": gradients,
    }  # fmt: skip


def test_the_joined_table_by_hand() -> None:
    records = [record("exact", s, s < 1, 10, 10) for s in range(8)]
    records += [record("down path alone", s, s < 6, 10, 10) for s in range(8)]
    records += [record("one step late", s, s < 1, 0, 10) for s in range(8)]
    cost = {"flops": {"plain": 100, "guided": 130, "unguided": 100}}
    costs = [{"model": "sd15", "way": "down path alone", **cost}, {"model": "embedded", "way": "one step late", **cost}]
    exact, down, delayed = summarise(records, costs)
    assert (exact["missing"], down["missing"]) == (1 / 8, 6 / 8)
    assert "missing_p" not in exact
    assert down["missing_p"] == pytest.approx(2 / 2**5)
    assert delayed["missing_p"] == 1
    # 10 of 20 steps guided is 25 of 50: (50 * 100 + 25 * 30) / 5000; on 20 steps the same share.
    assert down["sd15_flops"] == pytest.approx(1.15)
    assert delayed["embedded_flops"] == pytest.approx(1.15)
    assert "sd15_flops" not in delayed
    assert "| 2 | down path alone | 8 | 75.0 [" in loss_table([exact, down, delayed])
    assert set(ARMS["plain"].settings.as_dict()) == set(Settings().as_dict())


def test_pictures_are_a_run_of_evaluate(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[tuple[str, str, int]] = []

    class Painter:
        batch = 25

        def about(self) -> About:
            return About("toy", "1", "0123456789")

        def tokens(self, prompt: Any) -> dict[str, list[int]]:
            return {}

        def seconds_a_step(self) -> float:
            return 0.1

        def draw(self, jobs: Any) -> list[Drawn]:
            painted.extend(job.key for job in jobs)
            image = as_png(Image.new("RGB", (128, 128), "white"))
            return [
                Drawn(image, job.prompt.entities, {}, 0.1, 2.5, {"gradients": 1.5}, "", self.about()) for job in jobs
            ]

    monkeypatch.setattr(pictures.WaysOpener, "open", lambda self, name: Painter())
    assert pictures.draw_arms(tmp_path, 0, 1) == []
    found = pictures.draw_arms(tmp_path, 2, 1)
    arms = {name for name, arm in ARMS.items() if WAYS[arm.way].kind != "rival" or rival.rival_class() is not None}
    assert len(found) == len(painted) == len(set(painted)) == 4 * len(arms)
    assert {one["arm"] for one in found} == arms
    assert {(one["passes"], one["gradients"], tuple(one["missing"]) != ()) for one in found} == {(2.5, 1.5, True)}
    assert pictures.draw_arms(tmp_path, 0, 1) == found
    rows = summarise(found, [])
    assert [row["arm"] for row in rows] == [name for name in ARMS if name in arms] * 2
    monkeypatch.setitem(ARMS, "exact", Arm(Settings(enabled=True)))
    with pytest.raises(ValueError, match=r"4 images of .* were drawn otherwise"):
        pictures.draw_arms(tmp_path, 2, 1)


def test_the_embedded_model_is_drawn_as_the_arm_says() -> None:
    from lib_decouple.lab.evaluate.plan import BackendPart, Job, Sampling
    from lib_decouple.lab.evaluate.prompts import of_split

    backend = pictures.WaysOpener(BackendPart(), Sampling(4, 4.0), Path()).open("")
    prompt, seed = of_split("tune", 2, 1)[0]
    (late,), (plain,) = (
        backend.draw([Job(prompt, name, ARMS[name].settings, seed, name)]) for name in ("one step late", "plain")
    )
    start = ARMS["one step late"].settings.start
    assert (late.passes, late.trace) == (0, {"gradients": float(4 - start)})
    assert (plain.passes, plain.trace) == (0, {"gradients": 0.0})
    assert late.image != plain.image


def test_a_folder_refuses_an_arm_with_other_settings(tmp_path: Any) -> None:
    path = tmp_path / "plan.json"
    check_plan(path, {"split": "report", "arms": {"iou": Settings(loss="iou").as_dict()}})
    check_plan(path, {"split": "report", "arms": {"com": Settings(loss="com").as_dict()}})
    with pytest.raises(ValueError, match="arms: 'iou' had other settings"):
        check_plan(path, {"split": "report", "arms": {"iou": Settings(loss="iou", size=0.3).as_dict()}})


def test_costs_are_measured_once_and_survive_an_interrupt(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(_: Any, model: str, name: str, rounds: int) -> dict[str, Any]:
        if name == "whole pass":
            raise RuntimeError("the process ended with code -9")
        asked.append((model, name))
        figures = {"plain": 100, "guided": 150, "unguided": 100}
        return {"model": model, "way": name, "flops": figures, "seconds": figures, "memory": None, "last": "up"}

    monkeypatch.setattr(bench_costs, "apart", fake)
    log = tmp_path / "costs.jsonl"
    costs = measure_costs(log, ["sd15"])
    assert asked == [("sd15", name) for name in WAYS if name not in ("whole pass", *SAME_ON_SD15)]
    log.write_text(log.read_text() + '{"model": "sd')
    asked.clear()
    assert measure_costs(log, ["sd15"]) == costs
    assert asked == []
    assert [json.loads(line)["way"] for line in log.read_text().splitlines()] == [cost["way"] for cost in costs]
    assert "1.2500; target, at most 1.25: yes" in verdict(costs)
    assert "not measured" in verdict([])
    assert "| all layers | up | 25 | 0.00 | 1.500 | 1.250 | 1.25 | not measured |" in cost_table(costs, "sd15")


def test_a_process_that_dies_is_told() -> None:
    with pytest.raises(RuntimeError, match="ended with code 3"):
        apart(os._exit, 3)


def test_telling_is_timed_on_a_pass_that_is_read(stand: UNetWithInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    spent, told = [10.0, 13.0], []

    def milliseconds(body: Any) -> float:
        told.append(body())
        return spent[len(told) - 1]

    monkeypatch.setattr(overhead, "_milliseconds", milliseconds)
    found = overhead.measure_telling(stand, "a tiny one")
    assert list(found.values()) == spent
    assert torch.equal(told[0], stand.host())
    assert list(told[1].scores) == [entity.name for entity in stand.entities]
    assert overhead.told_over_plain(found, "a tiny one") == pytest.approx(1 + 2 * 3 / (50 * 10))
    assert "over a plain run, a tiny one: 1.0120" in overhead.table(found)
