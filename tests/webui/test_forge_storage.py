"""Weights that Forge casts at each call, half precision and autocast, on the stand-in of forge_host.py."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from lib_decouple.core.gradient import LossScale
from lib_decouple.hosts import detect

from . import forge_host as stand_in
from .test_forge import SHAPE, SMOOTH, drawn, gradients, openaimodel, reference_gradient, untouched

__all__ = ["gradients"]
PROMPT = ["a cat and a dog"]
SMALL = f"{2.0**-10}*com(form=negative)"
"""What means over many layers, heads and pixels make of a loss."""
HERE = replace(SMOOTH, factor=4)
"""The level at which the reference reads its maps."""
LATE = replace(HERE, gradient="late", steps=3)


@pytest.fixture
def opened(monkeypatch):
    """A function: the adapter and ``shared`` of a host that keeps its weights in one dtype and computes in another."""

    def open_host(kept, computed=torch.float32):
        unet = stand_in.make_unet(openaimodel.UNetModel, **SHAPE)
        stand_in.cast_at_each_call(unet, kept)
        unet.dtype = computed
        if computed != torch.float32:
            monkeypatch.setattr(sys.modules[unet.input_blocks[1][1].__module__], "_ATTN_PRECISION", "as it comes")
        shared = stand_in.install(monkeypatch, unet)
        model = shared.sd_model.forge_objects.unet.model
        model.storage_dtype, model.computation_dtype = kept, computed
        return detect.adapter(shared.sd_model), shared, unet

    return open_host


def angle(a, b):
    return float(functional.cosine_similarity(a.double().flatten(), b.double().flatten(), 0))


@pytest.mark.parametrize("recompute", ["off", "on"])
@pytest.mark.parametrize("kept", [torch.float8_e4m3fn, torch.float16, torch.float64], ids=str)
def test_weights_that_are_cast_at_each_call_have_the_gradient_of_their_values(opened, gradients, kept, recompute):
    """float64 stands for weights on another device than the latents'."""
    forge, shared, unet = opened(kept)
    with torch.inference_mode(), pytest.raises(RuntimeError):
        functional.linear(torch.zeros(1, 32), next(unet.time_embed.parameters()))
    before = {name: (one.dtype, one.data_ptr()) for name, one in unet.named_parameters()}
    plain, _, _ = drawn(forge, shared, PROMPT)
    image, job, sampling = drawn(forge, shared, PROMPT, replace(HERE, recompute=recompute))
    assert sampling.stood_aside == ""
    (x, found), _ = gradients
    wanted = reference_gradient(unet, shared, x, torch.tensor(14.0), PROMPT[0])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    assert not torch.equal(image, plain)
    assert {name: (one.dtype, one.data_ptr()) for name, one in unet.named_parameters()} == before
    assert untouched(job)
    assert torch.equal(drawn(forge, shared, PROMPT)[0], plain)


@pytest.mark.parametrize("settings", [HERE, LATE], ids=["exact", "late"])
@pytest.mark.parametrize("kept", [torch.float16, torch.float8_e4m3fn], ids=str)
def test_computed_in_half_precision_a_small_loss_keeps_its_direction(monkeypatch, opened, gradients, kept, settings):
    forge, shared, unet = opened(kept, torch.float16)
    _, job, sampling = drawn(forge, shared, PROMPT, replace(settings, loss=SMALL), steps=6)
    assert sampling.stood_aside == ""
    assert sampling.exact_since == ""
    assert all(trace.steps[0].update_norm > 0 for trace in sampling.traces)
    assert untouched(job)
    if settings is HERE:
        (x, found), *_ = gradients
        wanted = reference_gradient(unet, shared, x, torch.tensor(14.0), PROMPT[0])
        assert angle(found, wanted) > 0.995
        monkeypatch.setattr(LossScale, "factor", 1.0)
        gradients.clear()
        drawn(forge, shared, PROMPT, replace(settings, loss=SMALL), steps=6)
        assert angle(gradients[0][1], wanted) < 0.9


@pytest.mark.parametrize(("dtype", "least"), [(torch.float16, 0.995), (torch.bfloat16, 0.98)], ids=str)
def test_under_autocast_the_gradient_keeps_its_direction(opened, gradients, dtype, least):
    """Forge has none of its own; extensions bring it."""
    forge, shared, unet = opened(torch.float32)
    with torch.autocast("cpu", dtype):
        _, _, sampling = drawn(forge, shared, PROMPT, HERE)
    assert sampling.stood_aside == ""
    (x, found), *_ = gradients
    assert angle(found, reference_gradient(unet, shared, x, torch.tensor(14.0), PROMPT[0])) > least
