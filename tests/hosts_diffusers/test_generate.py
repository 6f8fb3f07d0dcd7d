"""What `generate` promises around the guidance: nothing touched when off, standing aside, other model families."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SCHEDULE
from torch import Tensor, nn

from lib_decouple.core import insist, presence
from lib_decouple.core.drafts import Draft
from lib_decouple.core.maps import ImagePlan, MapReader
from lib_decouple.core.presence import Curve
from lib_decouple.core.presence import Level as CurveLevel
from lib_decouple.hosts import diffusers as adapter
from lib_decouple.hosts import diffusers_drafts
from lib_decouple.hosts.base import Level, choose_layers, make_guide, unet_level
from lib_decouple.hosts.checkpoints import FAMILIES
from lib_decouple.hosts.diffusers import Drawing, cross_attention_layers, default_level
from lib_decouple.hosts.diffusers_prompts import chunks, encoded, pieces, plan_image
from lib_decouple.hosts.seeds import seeds_to_draft
from lib_decouple.profiles import UNKNOWN
from lib_decouple.prompt.align import EntityNotFound
from lib_decouple.settings import Settings

PROMPTS = ["a cat and a dog", "a red circle beside a blue porcupine", "a frog"]
ENTITIES = [["cat", "dog"], ["circle", "porcupine"], []]
ON = Settings(enabled=True, loss="com", steps=2, size=0.3)
OFF = Settings()


def use(pipe: Any, name: str) -> None:
    import diffusers

    extra = {"clip_sample": False} if name in ("DDIMScheduler", "DDPMScheduler") else {}
    pipe.scheduler = getattr(diffusers, name)(**{k: v for k, v in SCHEDULE.items() if k != "steps_offset"}, **extra)


def draw(pipe: Any, settings: Settings = ON, count: int = 1, **more: Any) -> Any:
    values = {"seeds": [7, 8, 9][:count], "steps": 4, "output": "latent", "keep_latents": True}
    return Drawing(pipe, PROMPTS[:count], ENTITIES[:count], settings, **{**values, **more}).picture()


def by_the_pipeline_alone(pipe: Any, count: int = 1, output: str = "latent") -> Any:
    """The same pictures from the pipeline as anyone calls it."""
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (7, 8, 9)[:count]])
    return pipe(
        prompt=PROMPTS[:count],
        negative_prompt=[""] * count,
        num_inference_steps=4,
        height=64,
        width=64,
        latents=noise,
        output_type=output,
    ).images


class TestOff:
    @pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
    def test_disabled_is_the_pipeline_alone_bit_for_bit(self, sd1: Any, name: str) -> None:
        use(sd1, name)
        picture = draw(sd1, Settings(enabled=False, loss="com"), 2)
        assert torch.equal(picture.images[0], by_the_pipeline_alone(sd1, 2)[0])
        assert torch.equal(picture.images[1], by_the_pipeline_alone(sd1, 2)[1])
        assert picture.stood_aside == ""
        assert [trace.steps for trace in picture.traces] == [[], []]

    def test_pictures_too(self, sd1: Any) -> None:
        ours = np.asarray(draw(sd1, Settings(), output="pil").images[0])
        assert np.array_equal(ours, np.asarray(by_the_pipeline_alone(sd1, output="pil")[0]))
        assert ours.shape == (64, 64, 3)
        assert not np.array_equal(ours, np.asarray(draw(sd1, output="pil").images[0]))

    @pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
    def test_observing_changes_nothing(self, sd1: Any, name: str) -> None:
        use(sd1, name)
        picture = draw(sd1, Settings(loss="com"), 2, observe=True, keep_maps=True)
        plain = by_the_pipeline_alone(sd1, 2)
        assert torch.equal(torch.stack(list(picture.images)), plain)
        for trace in picture.traces:
            assert [record.step for record in trace.steps] == [0, 1, 2, 3]
            assert all(record.maps.shape == (2, 8, 8) for record in trace.steps)

    @pytest.mark.parametrize("scale", [1.0, 5.0])
    def test_looks_cost_no_call_of_the_unet_and_see_what_a_pass_of_their_own_would(
        self, sd1: Any, scale: float
    ) -> None:
        calls: list[tuple[Any, Any]] = []
        handle = sd1.unet.register_forward_pre_hook(
            lambda _, args, given: calls.append((args, given)), with_kwargs=True
        )
        try:
            picture = draw(sd1, Settings(loss="com"), 2, observe=True, keep_maps=True, guidance_scale=scale)
        finally:
            handle.remove()
        assert len(calls) == 4
        layers = choose_layers(cross_attention_layers(sd1.unet), 0, "auto", default_level(sd1.unet))
        reader = MapReader(layers, [plan_image(sd1, *own) for own in zip(PROMPTS[:2], ENTITIES)])
        for step, (args, given) in enumerate(calls):
            x, timestep = args
            with torch.no_grad(), reader.reading() as capture:
                sd1.unet(x[-2:], timestep, encoder_hidden_states=given["encoder_hidden_states"][-2:])
            for trace, expected in zip(picture.traces, reader.maps(capture, x.shape[-2:], [0, 1])):
                torch.testing.assert_close(trace.steps[step].maps, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
    def test_what_is_told_costs_no_call_and_changes_nothing(self, sd1: Any, name: str) -> None:
        calls: list[int] = []
        use(sd1, name)
        curve = presence.Curve((presence.Level(2.0, 0.0, 100.0),))
        handle = sd1.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
        try:
            told = draw(sd1, ON, 3, curve=curve)
            with_it = len(calls)
            silent = draw(sd1, replace(ON, look="off"), 3)
        finally:
            handle.remove()
        assert torch.equal(torch.stack(list(told.images)), torch.stack(list(silent.images)))
        assert with_it == len(calls) - with_it
        assert [one and one.words() for one in told.told] == ["cat ✓, dog ✓", "circle ✓, porcupine ✓", None]
        assert all(one.sigma <= 0.5 for one in told.told[:2])
        assert silent.told == [None] * 3

    def test_watching_sees_the_unguided_steps_too(self, sd1: Any) -> None:
        guided, watched = draw(sd1), draw(sd1, watch=True)
        assert torch.equal(guided.images[0], watched.images[0])
        assert [(r.step, r.update_norm > 0) for r in watched.traces[0].steps] == [
            (0, True),
            (1, True),
            (2, False),
            (3, False),
        ]

    def test_image_without_entities_is_the_plain_one(self, sd1: Any) -> None:
        guided, plain = draw(sd1, count=3), draw(sd1, Settings(), 3)
        assert torch.equal(guided.images[2], plain.images[2])
        assert not torch.equal(guided.images[0], plain.images[0])


def in_guided_passes(module: nn.Module, act: Any) -> Any:
    """Act on a module's output whenever the pass is one with gradients, that is, a guided one."""

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        return act(output) if torch.is_grad_enabled() else None

    return module.register_forward_hook(after)


def raising(error: BaseException) -> Any:
    def act(_: Any) -> Any:
        raise error

    return act


def weights(pipe: Any) -> list[bool]:
    return [parameter.requires_grad for parameter in pipe.unet.parameters()]


class TestStandingAside:
    @pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
    @pytest.mark.parametrize(
        ("act", "reason"),
        [
            (raising(torch.OutOfMemoryError("CUDA out of memory")), "out of memory"),
            (raising(MemoryError()), "out of memory"),
            (raising(RuntimeError("a conflicting extension")), "an unexpected error"),
            (lambda output: output * float("nan"), "numbers ran over"),
        ],
        ids=["oom", "memory", "runtime", "nan"],
    )
    def test_at_the_first_step_the_image_is_the_plain_one(
        self, sd1: Any, name: str, act: Any, reason: str, caplog: Any, hooks_are_off: Any
    ) -> None:
        use(sd1, name)
        calls: list[int] = []

        def counted(output: Any) -> Any:
            calls.append(1)
            return act(output)

        before = weights(sd1)
        handle = in_guided_passes(sd1.unet.down_blocks[0].resnets[0], counted)
        try:
            with hooks_are_off(sd1.unet), caplog.at_level(logging.WARNING, "lib_decouple"):
                picture = draw(sd1, count=2)
        finally:
            handle.remove()
        assert torch.equal(torch.stack(list(picture.images)), by_the_pipeline_alone(sd1, 2))
        assert picture.stood_aside.startswith("at step 1 of 4: ")
        assert reason in picture.stood_aside
        assert picture.stood_aside in caplog.text
        # Memory that ends is tried for with one image a pass, and again with its blocks computed twice.
        assert len(calls) == (3 if reason == "out of memory" else 1)  # and nothing at the steps behind
        assert weights(sd1) == before

    def test_at_a_later_step_the_rest_goes_on_plainly(self, sd1: Any) -> None:
        passes: list[int] = []

        def second(_: Any) -> Any:
            passes.append(1)
            if len(passes) >= 2:
                raise torch.OutOfMemoryError("CUDA out of memory")

        handle = in_guided_passes(sd1.unet.down_blocks[0].resnets[0], second)
        try:
            picture = draw(sd1)
        finally:
            handle.remove()
        assert picture.stood_aside.startswith("at step 2 of 4: out of memory")
        assert len(picture.latents) == 4
        whole = draw(sd1)
        assert torch.equal(picture.latents[0], whole.latents[0])
        assert not torch.equal(picture.latents[1], whole.latents[1])
        assert torch.isfinite(picture.images[0]).all()

    def test_the_next_run_is_guided_again(self, sd1: Any) -> None:
        handle = in_guided_passes(sd1.unet.down_blocks[0].resnets[0], raising(RuntimeError("once")))
        assert draw(sd1).stood_aside
        handle.remove()
        picture = draw(sd1)
        assert picture.stood_aside == ""
        assert picture.traces[0].steps[0].update_norm > 0

    def test_control_c_is_no_failure_to_stand_aside_from(self, sd1: Any, hooks_are_off: Any) -> None:
        before = weights(sd1)
        handle = in_guided_passes(sd1.unet.down_blocks[0].resnets[0], raising(KeyboardInterrupt()))
        try:
            with hooks_are_off(sd1.unet), pytest.raises(KeyboardInterrupt):
                draw(sd1)
        finally:
            handle.remove()
        assert weights(sd1) == before

    def test_control_c_between_steps(self, sd1: Any, hooks_are_off: Any) -> None:
        def progress(done: int, total: int) -> None:
            assert total == 4
            if done == 2:
                raise KeyboardInterrupt

        before = weights(sd1)
        with hooks_are_off(sd1.unet), pytest.raises(KeyboardInterrupt):
            draw(sd1, progress=progress)
        assert weights(sd1) == before


class TestBatchAndSeeds:
    @pytest.mark.parametrize("name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler", "DDPMScheduler"])
    def test_each_image_comes_out_as_it_would_alone(self, sd1: Any, name: str) -> None:
        """Also where the sampler adds noise on the way: it is the noise of the image's own seed."""
        use(sd1, name)
        together = draw(sd1, count=2)
        for i in range(2):
            alone = Drawing(sd1, [PROMPTS[i]], [ENTITIES[i]], ON, seeds=[7 + i], steps=4, output="latent").picture()
            assert (together.images[i] - alone.images[0]).abs().max() < 1e-4

    def test_same_seed_same_image_and_another_seed_another(self, sd1: Any) -> None:
        use(sd1, "EulerAncestralDiscreteScheduler")
        first, second, other = draw(sd1), draw(sd1), draw(sd1, seeds=[70])
        assert torch.equal(first.images[0], second.images[0])
        assert (first.images[0] - other.images[0]).abs().max() > 0.1

    def test_noise_on_the_way_is_not_the_first_noise_again(self, sd1: Any) -> None:
        use(sd1, "EulerAncestralDiscreteScheduler")
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
        sigmas: list[Tensor] = []
        draw(sd1, Settings(), progress=lambda *_: sigmas.append(sd1.scheduler.sigmas))
        picture = draw(sd1, Settings())
        added = picture.latents[0] - noise * sd1.scheduler.init_noise_sigma
        likeness = torch.nn.functional.cosine_similarity(added.flatten(), noise.flatten(), dim=0)
        fresh = draw(sd1, Settings(), seeds=[7]).latents[0]
        assert torch.equal(picture.latents[0], fresh)
        assert likeness < 0  # the step takes noise away; repeating the first noise would add it

    def test_progress_counts_to_the_end(self, sd1: Any) -> None:
        seen: list[tuple[int, int]] = []
        draw(sd1, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


class TestFamilies:
    @pytest.mark.parametrize("size", [(64, 64), (48, 88)], ids=["square", "wide"])
    @pytest.mark.parametrize("family", ["sd2", "sdxl"])
    def test_guided(self, request: Any, family: str, size: tuple[int, int]) -> None:
        pipe = request.getfixturevalue(family)
        options = {"height": size[0], "width": size[1], "watch": True, "count": 2}
        guided, plain = draw(pipe, **options), draw(pipe, Settings(loss="com"), observe=True, **options)
        assert guided.stood_aside == plain.stood_aside == ""
        assert guided.images[0].shape == (4, size[0] // 8, size[1] // 8)
        for ours, theirs in zip(guided.traces, plain.traces):
            assert ours.steps[0].loss == pytest.approx(theirs.steps[0].loss, abs=1e-5)
            assert ours.steps[2].loss < theirs.steps[2].loss
        for i in range(2):
            values = {"seeds": [7 + i], "steps": 4, "output": "latent"}
            alone = Drawing(pipe, [PROMPTS[i]], [ENTITIES[i]], ON, height=size[0], width=size[1], **values).picture()
            assert (alone.images[0] - guided.images[i]).abs().max() < 1e-4

    @pytest.mark.parametrize("family", ["sd2", "sdxl"])
    def test_maps_are_those_of_the_pipelines_own_pass(self, request: Any, family: str) -> None:
        """The text, the size conditioning and the timestep of a look are those the pipeline itself uses."""
        pipe = request.getfixturevalue(family)
        factor = default_level(pipe.unet).factor
        layers = [layer for layer in cross_attention_layers(pipe.unet) if layer.factor == factor]
        seen: list[list[Tensor]] = []

        def note(module: Any, args: Any, kwargs: Any) -> None:
            if seen and args[0].shape[0] == 2:  # the pipeline's own pass has unconditional and conditional rows
                text = kwargs["encoder_hidden_states"]
                q = module.to_q(args[0]).unflatten(-1, (module.heads, -1)).transpose(1, 2)
                k = module.to_k(text).unflatten(-1, (module.heads, -1)).transpose(1, 2)
                seen[-1].append((q @ k.mT * module.scale).softmax(-1).mean(1)[1])

        handle = layers[0].module.register_forward_pre_hook(lambda *_: seen.append([]))
        handles = [layer.module.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
        try:
            picture = draw(pipe, Settings(layers="all"), observe=True, keep_maps=True, height=48, width=88)
        finally:
            for one in (handle, *handles):
                one.remove()
        passes = [torch.stack(found).mean(0) for found in seen if found]
        assert len(passes) == 4
        for record, probs in zip(picture.traces[0].steps, passes):
            expected = torch.stack([probs[:, 2], probs[:, 5]]).unflatten(
                -1, (math.ceil(6 / factor), math.ceil(11 / factor))
            )
            torch.testing.assert_close(record.maps, expected, rtol=1e-4, atol=1e-5)


class TestLayers:
    def sizes(self, **config: Any) -> list[tuple[str, int]]:
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            unet = UNet2DConditionModel(**config)
        return [(layer.name, layer.factor) for layer in cross_attention_layers(unet)]

    def test_sd1(self) -> None:
        layers = self.sizes(cross_attention_dim=768)
        assert [factor for _, factor in layers] == [1, 1, 2, 2, 4, 4, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1]
        assert [name.split(".attentions")[0] for name, factor in layers if factor == 4] == [
            *["down_blocks.2"] * 2,
            *["up_blocks.1"] * 3,
        ]

    def test_sdxl(self) -> None:
        layers = self.sizes(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
        )
        assert [factor for _, factor in layers] == [2] * 4 + [4] * 20 + [4] * 10 + [4] * 30 + [2] * 6

    def test_order_is_that_of_execution(self, sdxl: Any) -> None:
        layers = cross_attention_layers(sdxl.unet)
        ran: list[str] = []
        handles = [
            layer.module.register_forward_pre_hook(lambda *_, name=layer.name: ran.append(name)) for layer in layers
        ]
        draw(sdxl, Settings(), steps=1)
        for handle in handles:
            handle.remove()
        assert ran == [layer.name for layer in layers]
        assert len(layers) > 5

    @pytest.mark.parametrize(("family", "count", "last"), [("sd1", 3, "up_blocks.1"), ("sdxl", 40, "up_blocks.0")])
    def test_early_ends_with_the_first_transformer_on_the_way_up(self, family: str, count: int, last: str) -> None:
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(dict(FAMILIES[family]["unet"]))
        layers = cross_attention_layers(unet)
        level, early = (choose_layers(layers, 0, part, unet_level(layers)) for part in ("all", "early"))
        assert level[:count] == early
        assert early[-1].transformer == f"{last}.attentions.0"
        assert level[count].transformer == f"{last}.attentions.1"

    def test_choice_of_a_level(self, sd1: Any) -> None:
        layers = cross_attention_layers(sd1.unet)
        assert {layer.factor for layer in choose_layers(layers, 0, "auto", Level(2))} == {2}
        assert {layer.factor for layer in choose_layers(layers, 1, "auto", Level(2))} == {1}
        assert {layer.factor for layer in choose_layers(layers, 0, "auto", Level(8))} == {2}  # the nearest there is
        with pytest.raises(ValueError, match="factor: 4 is not allowed; this model has 1, 2"):
            choose_layers(layers, 4, "auto", Level(2))
        with pytest.raises(ValueError, match="no cross-attention"):
            choose_layers([], 0, "auto", Level(4))

    @pytest.mark.parametrize(
        ("part", "expected"),
        [
            ("all", ["down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.0"]),
            ("down", ["down_blocks.1"]),
            ("middle", ["mid_block"]),
            ("up", ["up_blocks.0", "up_blocks.0"]),
            ("last", ["up_blocks.0"]),
        ],
    )
    def test_choice_of_a_path(self, sd1: Any, part: Any, expected: list[str]) -> None:
        layers = cross_attention_layers(sd1.unet)
        for chosen in (choose_layers(layers, 2, part, Level(1)), choose_layers(layers, 0, "auto", Level(2, part))):
            assert [layer.name.split(".attentions")[0] for layer in chosen] == expected
        assert choose_layers(layers, 2, "last", Level(1))[0].name.startswith("up_blocks.0.attentions.1.")

    def test_path_without_layers_at_this_level(self, sd1: Any) -> None:
        with pytest.raises(ValueError, match=r"layers: 'middle' is not allowed; at factor 1 this model has .*down, up"):
            choose_layers(cross_attention_layers(sd1.unet), 1, "middle", Level(2))


class TestLayersOfAProfile:
    """A model whose profile reads the early layers; what is told reads all of the level whatever guidance does."""

    @pytest.mark.parametrize(
        ("settings", "more", "read"),
        [
            (Settings(enabled=True), {}, 2),
            (Settings(enabled=True, gradient="late", look="choose"), {}, 2),
            (ON, {}, 3),
            (OFF, {"observe": True}, 3),
            (replace(ON, loss="auto", layers="last"), {}, 1),
            (Settings(enabled=True, stop="presence"), {"curve": Curve((CurveLevel(2.0, 0.0, 100.0),))}, 3),
        ],
        ids=["auto", "late and choose", "a loss by name", "only looked at", "layers by name", "presence"],
    )
    def test_guidance_reads_them_where_loss_and_layers_are_left_open(
        self, sd1: Any, monkeypatch: pytest.MonkeyPatch, settings: Settings, more: dict[str, Any], read: int
    ) -> None:
        begun = []

        class Noted(adapter.Loop):
            def __post_init__(self) -> None:
                super().__post_init__()
                begun.append(self.beside)

        monkeypatch.setattr(adapter, "profile_of", lambda _: replace(UNKNOWN, layers="early"))
        monkeypatch.setattr(adapter, "Loop", Noted)
        picture = draw(sd1, settings, steps=8, **more)
        assert picture.stood_aside == ""
        (beside,) = begun
        assert len(beside.session.guide.gradient.reader.layers) == read
        assert len(beside.reader.layers) == 3


class TestSettingsReachTheGuide:
    def test_every_field(self, sd1: Any) -> None:
        settings = Settings(
            enabled=True,
            loss="iou + 0.5*intensity",
            steps=7,
            rule="attend-excite",
            size=20.0,
            factor=1,
            treatment="attend-excite",
            combine="max",
            refine_steps=(0, 3),
            refine_threshold=0.25,
            refine_rounds=4,
            stop=True,
            stop_below=0.125,
            every=2,
            one_at_a_time=True,
        )
        plan = ImagePlan(())
        guide = make_guide(settings, sd1.unet, cross_attention_layers(sd1.unet), [plan], Level(2))
        gradient, reader = guide.gradient, guide.gradient.reader
        assert str(gradient.loss) == "iou + 0.5*intensity"
        assert (guide.schedule.steps, guide.schedule.every) == (7, 2)
        assert (guide.rule.name, guide.rule.size) == ("attend-excite", 20.0)
        assert {layer.factor for layer in reader.layers} == {1}
        assert (reader.treatment, reader.combine) == ("attend-excite", "max")
        assert (guide.refinement.steps, guide.refinement.threshold, guide.refinement.rounds) == ((0, 3), 0.25, 4)
        assert (guide.stop_below, gradient.learned.thrift.one_at_a_time) == (0.125, True)
        assert make_guide(Settings(stop_below=0.1), sd1.unet, reader.layers, [plan], Level(1)).stop_below is None

    @pytest.mark.parametrize(
        "changes",
        [
            {"treatment": "attend-excite", "loss": "intensity"},
            {"combine": "max"},
            {"refine_steps": (0,), "refine_threshold": -2.0, "refine_rounds": 3},
            {"factor": 2},
            {"loss": "iou + 0.5*intensity"},
            {"every": 2, "steps": 4},
            {"rule": "attend-excite", "size": 3.0},
        ],
        ids=lambda c: next(iter(c)),
    )
    def test_each_changes_the_image(self, sd1: Any, changes: dict[str, Any]) -> None:
        base = {"enabled": True, "loss": "com", "steps": 2, "size": 0.3}
        plain = draw(sd1, Settings(**base), 2)
        changed = draw(sd1, Settings(**{**base, **changes}), 2)
        assert changed.stood_aside == ""
        assert (plain.images[1] - changed.images[1]).abs().max() > 1e-3


class TestErrors:
    def test_entity_not_in_the_prompt(self, sd1: Any) -> None:
        with pytest.raises(EntityNotFound, match=r"horse.*cat"):
            Drawing(sd1, ["a cat and a dog"], [["cat", "horse"]], ON, seeds=[1], steps=2).picture()

    def test_lengths_that_differ(self, sd1: Any) -> None:
        with pytest.raises(ValueError, match="prompts: 2, but entities: 2 and seeds: 1"):
            Drawing(sd1, PROMPTS[:2], ENTITIES[:2], ON, seeds=[1], steps=2).picture()

    def test_size(self, sd1: Any) -> None:
        with pytest.raises(ValueError, match="width: 60 is not allowed; a multiple of 8 pixels"):
            draw(sd1, height=64, width=60)

    def test_level_that_the_model_has_not(self, sd1: Any) -> None:
        with pytest.raises(ValueError, match="factor: 8 is not allowed; this model has 1, 2"):
            draw(sd1, Settings(enabled=True, factor=8))

    def test_plan(self, sd1: Any) -> None:
        plan = plan_image(sd1, "a red circle beside a blue porcupine", ["porcupine", "circle"])
        assert plan.names == ("porcupine", "circle")
        assert [entity.tokens for entity in plan.entities] == [(7, 8, 9), (3,)]
        assert plan.end == 10
        assert plan.parts == 1


LONG = "a cat, " + "very nice, " * 30 + "a bird"


class TestLongPrompts:
    def test_chunks_end_behind_a_comma_and_lose_nothing(self, sd1: Any) -> None:
        found = chunks(sd1, LONG)
        comma = sd1.tokenizer.convert_tokens_to_ids(",</w>")
        assert [len(own) for own in found] == [75, 20]
        assert found[0][-1] == comma
        assert [token for own in found for token in own] == sd1.tokenizer(LONG, add_special_tokens=False).input_ids
        assert [len(own) for own in chunks(sd1, "nice " * 160)] == [75, 75, 10]
        assert chunks(sd1, "") == [[]]

    def test_an_entity_behind_the_first_chunk_is_found(self, sd1: Any) -> None:
        plan = plan_image(sd1, LONG, ["cat", "bird"])
        assert [entity.tokens for entity in plan.entities] == [(2,), (77 + 20,)]
        assert plan.end == 77 + 21
        assert pieces(sd1, LONG)[74].position == 75
        assert [piece.chunk for piece in pieces(sd1, LONG)] == [0] * 75 + [1] * 20

    @pytest.mark.parametrize("name", ["sd1", "sdxl"])
    def test_each_chunk_is_encoded_as_the_pipeline_would_it_alone(self, request: Any, name: str) -> None:
        pipe = request.getfixturevalue(name)
        second = pipe.tokenizer.decode(chunks(pipe, LONG)[1])
        with torch.no_grad():
            given = encoded(pipe, [LONG], "")
            alone = pipe.encode_prompt(
                second, device=pipe.unet.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        assert given["prompt_embeds"].shape[1] == given["negative_prompt_embeds"].shape[1] == 154
        assert torch.allclose(given["prompt_embeds"][:, 77:], alone[0], atol=1e-6)

    def test_a_long_prompt_is_guided_and_short_ones_beside_it(self, sd1: Any) -> None:
        use(sd1, "DDIMScheduler")
        picture = Drawing(
            sd1, [LONG, "a cat and a bird"], [["cat", "bird"]] * 2, ON, seeds=[7, 8], steps=4, output="latent"
        ).picture()
        assert picture.stood_aside == ""
        assert all(record.update_norm > 0 for trace in picture.traces for record in trace.steps[:2])


class TestDoubts:
    """``--decouple-debug``: the first gradient is held against finite differences."""

    def test_a_whole_gradient_raises_none_and_the_picture_is_the_same(self, sd1: Any) -> None:
        told: list[str] = []
        looked = draw(sd1, doubts=told.append)
        assert told == []
        assert torch.equal(looked.images[0], draw(sd1).images[0])

    def test_one_that_is_cut_behind_the_guards_back_is_told_once(
        self, sd1: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Detached:
            def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **_: Any) -> Any:
                context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
                parts = [attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)]
                split = [one.detach().unflatten(-1, (attn.heads, -1)).transpose(1, 2) for one in parts]
                return attn.to_out[0](nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))

        monkeypatch.setattr("lib_decouple.core.gradient.Proof.check", lambda *_: True)
        before, told = sd1.unet.attn_processors, []
        sd1.unet.set_attn_processor(Detached())
        # So strong that the maps move by what the cut attention adds.
        with torch.no_grad():
            for name, parameter in sd1.unet.named_parameters():
                if "attn1.to_out.0.weight" in name or "attn2.to_out.0.weight" in name:
                    parameter.mul_(20)
        try:
            draw(sd1, doubts=told.append)
        finally:
            with torch.no_grad():
                for name, parameter in sd1.unet.named_parameters():
                    if "attn1.to_out.0.weight" in name or "attn2.to_out.0.weight" in name:
                        parameter.div_(20)
            sd1.unet.set_attn_processor(before)
        assert len(told) == 1
        assert told[0].startswith("The gradient does not fit what the loss does")
        assert "at step 1" in told[0]


CHOOSE = Settings(enabled=True, loss="com", gradient="none", look="choose", drafts=3)


def along_the_run(sd1: Any, monkeypatch: Any) -> list[list[Draft]]:
    """Has drafts go through the levels of a run of four steps, and the first of each image drawn; gives a list of each
    image's as they are made."""
    sd1.scheduler.set_timesteps(4)
    kept = sd1.scheduler.alphas_cumprod[sd1.scheduler.timesteps]
    levels = ((1 - kept) / kept).sqrt().tolist()
    monkeypatch.setattr("lib_decouple.core.drafts.levels", lambda first, guided=False: [first, *levels[1:]])
    seen: list[list[Draft]] = []
    monkeypatch.setattr(insist, "best", lambda drafts: seen.append(list(drafts)) or 0)
    return seen


class TestChoose:
    @pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
    def test_the_drawn_seeds_give_the_same_pictures_without_drafts(self, sd1: Any, name: str) -> None:
        use(sd1, name)
        picture = draw(sd1, CHOOSE, 3)
        assert picture.stood_aside == ""
        assert [one and one.asked for one in picture.choices] == [7, 8, None]  # the third prompt names nothing
        for choice in picture.choices[:2]:
            assert list(choice.scores) == seeds_to_draft(choice.asked, 3)
            weakest = {seed: min(own.values()) for seed, own in choice.scores.items()}
            assert weakest[choice.drawn] == max(weakest.values())
        seeds = [one.drawn if one else 9 for one in picture.choices]
        use(sd1, name)
        assert torch.equal(torch.stack(list(picture.images)), torch.stack(list(draw(sd1, OFF, 3, seeds=seeds).images)))

    @pytest.mark.parametrize("scale", [1.0, 5.0])
    @pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
    def test_a_draft_along_the_run_s_own_levels_is_the_run(
        self, sd1: Any, monkeypatch: Any, prediction: str, scale: float
    ) -> None:
        use(sd1, "DDIMScheduler")
        sd1.scheduler.register_to_config(prediction_type=prediction)
        seen = along_the_run(sd1, monkeypatch)
        run = draw(sd1, CHOOSE, 2, guidance_scale=scale)
        for drafts, whole in zip(seen, run.images):
            assert torch.allclose(drafts[0].x0, whole, atol=2e-3 * float(whole.abs().max()))
            assert not torch.allclose(drafts[1].x0, whole, atol=1e-1 * float(whole.abs().max()))

    def test_a_guided_draft_along_the_run_s_own_levels_is_the_guided_run(self, sd1: Any, monkeypatch: Any) -> None:
        use(sd1, "DDIMScheduler")
        seen = along_the_run(sd1, monkeypatch)
        settings = replace(CHOOSE, gradient="exact", rule="attend-excite", size=3.0, start=1, steps=4)
        run, plain = draw(sd1, settings, 2), draw(sd1, OFF, 2)
        assert [choice.moves for choice in run.choices] == [3 * 3] * 2
        for drafts, guided, unguided in zip(seen, run.images, plain.images):
            far = float((guided - unguided).abs().max())
            assert torch.allclose(drafts[0].x0, guided, atol=0.05 * far)

    def test_an_image_that_is_not_guided_is_drafted_without_though_the_others_are_guided(self, sd1: Any) -> None:
        guided = replace(CHOOSE, gradient="exact")
        both = Drawing(
            sd1, PROMPTS[:2], [["cat"], ENTITIES[1]], guided, seeds=[7, 8], steps=4, output="latent"
        ).picture()
        alone = Drawing(sd1, PROMPTS[:1], [["cat"]], CHOOSE, seeds=[7], steps=4, output="latent").picture()
        assert [one.moves for one in both.choices] == [0, 3]
        (expected,) = alone.choices
        for seed, own in both.choices[0].scores.items():
            assert own == pytest.approx(expected.scores[seed], rel=1e-4)

    @pytest.mark.parametrize(("known", "most"), [(None, 2), (2**40, 6)])
    def test_of_many_drafts_the_gradient_is_had_at_once_where_the_memory_is_known(
        self, sd1: Any, monkeypatch: Any, known: int | None, most: int
    ) -> None:
        seen, whole = [], diffusers_drafts.draft

        def spying(denoise: Any, x: Any, *given: Any, **more: Any) -> Any:
            seen.append(len(x))
            return whole(denoise, x, *given, **more)

        monkeypatch.setattr(diffusers_drafts, "draft", spying)
        monkeypatch.setattr(diffusers_drafts, "free", lambda device: known)
        draw(sd1, replace(CHOOSE, gradient="exact"), 2)
        assert (sum(seen), max(seen)) == (6, most)

    def test_where_guidance_begins_behind_the_drafts_they_are_as_without_it(self, sd1: Any) -> None:
        late = draw(sd1, replace(CHOOSE, gradient="exact", start=3, steps=4), 2)
        expected = draw(sd1, CHOOSE, 2)
        assert [one.scores for one in late.choices] == [one.scores for one in expected.choices]
        assert [one.moves for one in late.choices] == [0, 0]

    def test_where_guidance_fails_in_a_draft_all_are_made_without_it(self, sd1: Any, monkeypatch: Any) -> None:
        def fail(*given: Any, **more: Any) -> None:
            raise ValueError("cut")

        monkeypatch.setattr(diffusers_drafts.Guide, "drafted", fail)
        found = draw(sd1, replace(CHOOSE, gradient="exact"), 2)
        expected = draw(sd1, CHOOSE, 2)
        assert [one.scores for one in found.choices] == [one.scores for one in expected.choices]
        assert found.no_drafts == ""

    def test_a_failure_draws_the_seeds_that_were_asked_for_and_says_so(self, sd1: Any, monkeypatch: Any) -> None:
        def fail(*given: Any) -> None:
            raise MemoryError("out of memory")

        plain = draw(sd1, OFF, 2)
        monkeypatch.setattr(diffusers_drafts, "draft", fail)
        picture = draw(sd1, CHOOSE, 2)
        assert torch.equal(torch.stack(list(picture.images)), torch.stack(list(plain.images)))
        assert picture.choices == [None] * 2
        assert "out of memory" in picture.no_drafts

    def test_one_that_only_looks_on_draws_the_seeds_that_were_asked_for(self, sd1: Any) -> None:
        assert draw(sd1, CHOOSE, 2, observe=True).choices == [None] * 2
        assert draw(sd1, replace(CHOOSE, look="tell"), 2).choices == [None] * 2


INSIST = replace(CHOOSE, look="insist")


class Scripted:
    """A curve that accepts every draft, and tells each image's second entity as each run is scripted."""

    draft = CurveLevel(1.6, -1.0, 1000.0)
    most = 3

    def __init__(self, *runs: list[float]) -> None:
        self.left = [chance for run in runs for _ in range(2) for own in run for chance in (0.9, own)]
        """Each run of four steps is read twice."""

    def accepts(self, scores: Any, sigma: float) -> bool:
        return Curve((self.draft,), self.draft).accepts(scores, sigma)

    def was_learned_of(self, entity: str) -> bool:
        return True

    def probability(self, score: float, sigma: float) -> float:
        return self.left.pop(0)


class TestInsist:
    def test_what_lacks_an_entity_is_drawn_again_by_itself_from_its_next_seed(self, sd1: Any) -> None:
        curve = Scripted([0.2, 0.9], [0.8])
        picture = draw(sd1, INSIST, 2, curve=curve)
        plain, again = draw(sd1, OFF, 2), draw(sd1, OFF, 1, seeds=seeds_to_draft(7, 2)[1:])
        assert curve.left == []
        assert torch.equal(picture.images[0], again.images[0])
        assert torch.equal(picture.images[1], plain.images[1])
        assert torch.equal(picture.latents[-1], torch.stack(list(picture.images)))
        first, second = picture.choices
        assert (first.drawn, [run.seed for run in first.runs]) == (seeds_to_draft(7, 2)[1], seeds_to_draft(7, 2))
        assert (second.drawn, second.begun_again(), len(second.scores)) == (8, "", 1)
        assert [list(one.chances.values())[1] for one in picture.told] == [0.8, 0.9]
        assert picture.not_insisted == ""

    @pytest.mark.parametrize(("restarts", "runs"), [(0, [[0.2]]), (1, [[0.2], [0.1]]), (8, [[0.2], [0.1], [0.15]])])
    def test_the_surest_run_is_delivered(self, sd1: Any, restarts: int, runs: list[list[float]]) -> None:
        curve = Scripted(*runs)
        picture = draw(sd1, replace(INSIST, restarts=restarts), 1, curve=curve)
        assert torch.equal(picture.images[0], draw(sd1, OFF, 1).images[0])
        assert (picture.choices[0].drawn, len(picture.choices[0].runs), curve.left) == (7, len(runs), [])

    @pytest.mark.parametrize("failing", ["drafts", "attempt"])
    def test_what_fails_later_delivers_what_there_is_and_says_so(
        self, sd1: Any, monkeypatch: Any, failing: str
    ) -> None:  # fmt: skip
        calls: list[int] = []

        def fails_at_the_second(own: Any) -> Any:
            def call(*given: Any, **more: Any) -> Any:
                calls.append(1)
                if len(calls) == 2:
                    raise MemoryError("out of memory")
                return own(*given, **more)

            return call

        where = (diffusers_drafts, "draft") if failing == "drafts" else (type(sd1), "__call__")
        monkeypatch.setattr(*where, fails_at_the_second(getattr(*where)))
        picture = draw(sd1, INSIST, 1, curve=Scripted([0.2]))
        monkeypatch.undo()
        assert torch.equal(picture.images[0], draw(sd1, OFF, 1).images[0])
        assert "out of memory" in picture.not_insisted
        assert picture.choices[0].drawn == 7

    def test_without_a_curve_the_best_draft_is_drawn(self, sd1: Any) -> None:
        insisted, chosen = draw(sd1, INSIST, 2), draw(sd1, CHOOSE, 2)
        assert torch.equal(torch.stack(list(insisted.images)), torch.stack(list(chosen.images)))
        assert insisted.choices == chosen.choices
        assert "nobody has learned" in insisted.not_insisted
        assert chosen.not_insisted == ""
