"""The guidance of real pipelines equals the slow reference after every step."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from reference import Recipe
from tiny import SCHEDULE

from lib_decouple.core.losses import LOSSES
from lib_decouple.hosts.diffusers import Drawing
from lib_decouple.settings import Settings

# Prompts with their entities, and the entities' places counted by hand in the tokenizer's output.
PROMPTS: list[tuple[str, list[str], list[list[int]]]] = [
    ("a cat and a dog", ["cat", "dog"], [[2], [5]]),
    ("a red circle beside a blue porcupine and a horse", ["circle", "porcupine", "horse"], [[3], [7, 8, 9], [12]]),
    ("two frogs under a traffic light", ["frogs", "traffic light"], [[2], [5, 6]]),
]
MIDDLE = ("down_blocks.1.", "mid_block.", "up_blocks.0.")
"""The tiny UNet's parts at factor 2."""
FINE = ("down_blocks.0.", "up_blocks.1.")


def scheduler(name: str, **changes: Any) -> Any:
    import diffusers

    extra = {
        "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False},
        "PNDMScheduler": {"skip_prk_steps": True},
    }
    return getattr(diffusers, name)(**SCHEDULE, **extra.get(name, {}), **changes)


def both(pipe: Any, recipe: Recipe, **settings: Any) -> tuple[list[torch.Tensor], list[torch.Tensor], Any]:
    """Latents after every step from the product and from the reference, with the product's result."""
    count = len(recipe.prompts)
    picture = Drawing(
        pipe,
        recipe.prompts,
        [PROMPTS[i][1] for i in range(count)],
        Settings(
            enabled=True,
            loss=recipe.loss,
            steps=recipe.guided,
            rule=recipe.rule,
            size=recipe.size,
            factor=recipe.factor,
            **settings,
        ),
        seeds=recipe.seeds,
        steps=recipe.steps,
        guidance_scale=recipe.scale,
        height=recipe.latents[0] * 8,
        width=recipe.latents[1] * 8,
        negative_prompt=recipe.negative,
        keep_latents=True,
        output="latent",
    ).picture()
    assert picture.stood_aside == ""
    assert len(picture.latents) == len(pipe.scheduler.timesteps)
    return picture.latents, reference.sample(pipe, recipe), picture


def recipe(batch: int, loss: str, **changes: Any) -> Recipe:
    chosen = PROMPTS[:batch]
    values = {
        "prompts": [p[0] for p in chosen],
        "tokens": [p[2] for p in chosen],
        "seeds": [7, 8, 9][:batch],
        "loss": loss,
        "layers": MIDDLE,
        "factor": 2,
    }
    return Recipe(**{**values, **changes})


def assert_agree(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert (a - b).abs().max().item() < 1e-4, f"after step {step}"


def test_places_counted_by_hand(sd1: Any) -> None:
    for prompt, entities, places in PROMPTS:
        pieces = sd1.tokenizer.convert_ids_to_tokens(sd1.tokenizer(prompt).input_ids)
        read = ["".join(pieces[p].replace("</w>", " ") for p in own).strip() for own in places]
        assert read == entities


@pytest.mark.parametrize("size", [(8, 8), (6, 11)], ids=["square", "wide"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_latents_after_every_step(sd1: Any, loss: str, name: str, batch: int, size: tuple[int, int]) -> None:
    sd1.scheduler = scheduler(name)
    wanted = recipe(batch, loss, latents=size)
    ours, theirs, picture = both(sd1, wanted)
    assert_agree(ours, theirs)
    assert [len(trace.steps) for trace in picture.traces] == [2] * batch
    torch.testing.assert_close(torch.stack(list(picture.images)), ours[-1])


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("loss", ["iou", "intensity"])
def test_attend_excite_rule(sd1: Any, loss: str, name: str) -> None:
    sd1.scheduler = scheduler(name)
    wanted = recipe(2, loss, rule="attend-excite", size=10.0)
    ours, theirs, picture = both(sd1, wanted)
    assert_agree(ours, theirs)
    assert min(trace.steps[0].update_norm for trace in picture.traces) > 1e-3


def test_dpm_solver(sd1: Any) -> None:
    sd1.scheduler = scheduler("DPMSolverMultistepScheduler")
    assert_agree(*both(sd1, recipe(2, "kl"))[:2])


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("HeunDiscreteScheduler", {0: 0, 2: 1, 4: 2}),
        ("KDPM2DiscreteScheduler", {0: 0, 2: 1, 4: 2}),
        ("PNDMScheduler", {0: 0, 2: 1, 3: 2}),
    ],
)
@pytest.mark.parametrize("rule", [{}, {"rule": "attend-excite", "size": 10.0}], ids=["relative", "attend-excite"])
def test_samplers_with_several_calls_a_step_are_guided_at_the_first(
    sd1: Any, name: str, opening: dict[int, int], rule: dict[str, Any]
) -> None:
    sd1.scheduler = scheduler(name)
    ours, theirs, picture = both(sd1, recipe(1, "com", opening=opening, **rule))
    assert_agree(ours, theirs)
    assert [record.step for record in picture.traces[0].steps] == [0, 1]


def test_unipc_goes_on_from_the_guided_latents(sd1: Any) -> None:
    """Its corrector would start again from the latents before the update: it is off where guidance moved them."""
    wanted = recipe(1, "com")
    sd1.scheduler = scheduler("UniPCMultistepScheduler")
    ours, _, _ = both(sd1, wanted)
    sd1.scheduler = scheduler("UniPCMultistepScheduler", disable_corrector=[0])
    assert_agree(ours, reference.sample(sd1, wanted))


def test_finest_level_negative_prompt_and_other_scale(sd1: Any) -> None:
    wanted = recipe(2, "com", layers=FINE, factor=1, negative="blurry, a bird", scale=3.0)
    assert_agree(*both(sd1, wanted)[:2])


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("down", ("down_blocks.1.",)),
        ("middle", ("mid_block.",)),
        ("up", ("up_blocks.0.",)),
        ("last", ("up_blocks.0.attentions.1.",)),
        ("early", ("down_blocks.1.", "mid_block.", "up_blocks.0.attentions.0.")),
    ],
)
def test_one_path_of_the_level(sd1: Any, part: str, names: tuple[str, ...]) -> None:
    assert_agree(*both(sd1, recipe(1, "com", layers=names), layers=part)[:2])


def test_one_image_at_a_time_is_the_same(sd1: Any) -> None:
    assert_agree(*both(sd1, recipe(3, "iou"), one_at_a_time=True)[:2])


def test_the_comparison_can_fail(sd1: Any) -> None:
    """Guided and plain latents differ by far more than the tolerance, and so do two losses."""
    guided = reference.sample(sd1, recipe(1, "iou"))[-1]
    plain = reference.sample(sd1, recipe(1, "iou", guided=0))[-1]
    other = reference.sample(sd1, recipe(1, "com"))[-1]
    assert (guided - plain).abs().max() > 1e-2
    assert (guided - other).abs().max() > 1e-2
