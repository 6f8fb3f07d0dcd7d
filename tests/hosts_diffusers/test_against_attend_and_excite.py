"""One step's loss, gradient and update equal those of diffusers' own Attend-and-Excite pipeline."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_decouple.core.gradient import LossGradient
from lib_decouple.core.guidance import Guide
from lib_decouple.core.losses import LOSSES
from lib_decouple.core.maps import Entity, ImagePlan, MapReader
from lib_decouple.core.schedule import StepRule
from lib_decouple.hosts.diffusers import cross_attention_layers

module = pytest.importorskip(
    "diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite.pipeline_stable_diffusion_attend_and_excite",
    reason="this diffusers has no Attend-and-Excite pipeline",
)


@pytest.fixture
def theirs(sd1: Any) -> Iterator[Any]:
    """Their pipeline on our tiny model, its attention store in place."""
    pipe = module.StableDiffusionAttendAndExcitePipeline(
        **{name: part for name, part in sd1.components.items() if name != "image_encoder"},
        requires_safety_checker=False,
    )
    usual = pipe.unet.attn_processors
    pipe.attention_store = module.AttentionStore((4, 4))
    pipe.register_attention_control()
    yield pipe
    pipe.unet.set_attn_processor(usual)


@pytest.mark.parametrize("places", [(2, 5), (1, 4), (5, 2, 3)])
def test_loss_gradient_and_update(theirs: Any, places: tuple[int, ...]) -> None:
    ids = theirs.tokenizer("a cat and a dog", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        text = theirs.text_encoder(ids)[0]
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    leaf = latents.clone().requires_grad_()
    theirs.unet(leaf, 700, encoder_hidden_states=text)
    highest = theirs._aggregate_and_get_max_attention_per_token(indices=list(places))
    loss = theirs._compute_loss(max_attention_per_index=highest)
    (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    size = 20 * math.sqrt(torch.linspace(1.0, 0.5, 50)[10])
    updated = theirs._update_latent(latents=leaf, loss=loss, step_size=size).detach()

    layers = [layer for layer in cross_attention_layers(theirs.unet) if layer.factor == 2]
    plan = ImagePlan(tuple(Entity(f"word {place}", (place,)) for place in places))
    gradient_of = LossGradient(theirs.unet, MapReader(layers, [plan], "attend-excite"), LOSSES["intensity"])
    guide = Guide(gradient_of, rule=StepRule("attend-excite", 20))

    def run(x: Tensor, _: Any) -> None:
        theirs.unet(x, 700, encoder_hidden_states=text)

    found_loss, found, *_ = guide.gradient(latents, [0], run)
    assert found_loss.item() == pytest.approx(loss.item(), abs=1e-5)
    # The softmax of 100 times the maps makes 100 times of fp32's rounding.
    assert gradient.norm() > 1e-4
    assert (found - gradient).norm() < 1e-2 * gradient.norm()
    moved, (seen,) = guide.step(latents, 10, 50, run)
    torch.testing.assert_close(moved, updated, rtol=0, atol=1e-4)
    torch.testing.assert_close(seen.maps.flatten(1).amax(1), torch.stack([*highest]).detach(), rtol=1e-4, atol=0)
