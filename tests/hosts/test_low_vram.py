"""AUTOMATIC1111 started with its flags for little memory; see conftest.py (DECOUPLE_A1111_ROOT).

Without a GPU nothing is sent anywhere. So dtypes stand for the devices: what is away holds its weights in float64 (XL,
whose values fit, in float16), and a call that meets such a weight fails as one that meets another device's. The hooks
that send and fetch are the host's.
"""

from __future__ import annotations

import pytest

GUIDED = {"entities": ["cat", "dog"], "size": 0.3}
AWAY = """
from types import SimpleNamespace
import torch
from modules import lowvram, shared
there = getattr(torch, THERE)
lowvram.cpu, lowvram.devices = there, SimpleNamespace(device=torch.float32)
autoencoder = shared.sd_model.first_stage_model
autoencoder.to = lambda *given: autoencoder  # the host makes its latents of the dtype that its weights have just then
text_encoder = getattr(shared.sd_model, "conditioner", None) or shared.sd_model.cond_stage_model.wrapped
for module in (text_encoder, shared.sd_model.model):
    module.to(there)
lowvram.module_in_gpu = None
if shared.cmd_opts.lowvram:  # those that have no hook stay on the device
    unet = shared.sd_model.model.diffusion_model
    hooked = [unet.time_embed, *unet.input_blocks, unet.middle_block, *unet.output_blocks]
    shared.sd_model.model.to(torch.float32)
    for module in hooked:
        module.to(there)
result = None
"""
LEFT_AWAY = """
from modules import shared
kinds = [str(one.dtype) for one in shared.sd_model.model.diffusion_model.parameters()]
result = [kinds.count(f"torch.{THERE}"), len(kinds)]
"""


IS_SENT_AWAY = "from modules import lowvram, shared\nresult = lowvram.is_enabled(shared.sd_model)"


@pytest.mark.parametrize(
    ("flag", "checkpoint"),
    [("--lowvram", "decouple-drawn"), ("--medvram", "decouple-drawn"), ("--medvram-sdxl", "small-sdxl")],
    ids=["--lowvram", "--medvram", "--medvram-sdxl"],
)
def test_what_is_sent_away_comes_back_for_the_gradient(start_a1111, flag, checkpoint):
    with start_a1111(flag) as host:
        if checkpoint not in [one["model_name"] for one in host.get("/sdapi/v1/sd-models")]:
            pytest.skip(f"the WebUI has no checkpoint {checkpoint}; tests/hosts/a1111_checkpoints.py makes it")
        assert host.inside(IS_SENT_AWAY) is (flag != "--medvram-sdxl")
        host.post("/sdapi/v1/options", {"sd_model_checkpoint": checkpoint, "show_progress_type": "Approx cheap"})
        assert host.inside(IS_SENT_AWAY)
        there = "float16" if checkpoint == "small-sdxl" else "float64"
        plain, here = host.draw(), host.draw(GUIDED)
        assert f"Model: {checkpoint}" in plain.infotexts[0]
        host.inside(AWAY, THERE=there)
        assert host.draw().pixels == plain.pixels
        away, parameters = host.inside(LEFT_AWAY, THERE=there)
        assert 0.5 * parameters < away
        guided = host.draw(GUIDED)
        assert guided.value("Decouple stood aside") is None
        assert guided.value("Decouple moved")
        assert guided.pixels == here.pixels != plain.pixels
        assert host.draw().pixels == plain.pixels
        kept = host.draw({**GUIDED, "recompute": "off"})
        if flag == "--lowvram":  # nothing would bring the blocks back
            assert flag in kept.value("Decouple stood aside")
            assert kept.pixels == plain.pixels
        else:
            assert kept.pixels == guided.pixels
        late = host.draw({**GUIDED, "gradient": "late"}, steps=12)
        assert late.value("Decouple stood aside") is None
        assert late.value("Decouple moved")
        exact_since = host.get("/decouple/v1/trace/last")["images"][0]["passes"][0]["exact_since"]
        assert ("memory is saved" in exact_since) is (flag == "--lowvram")
        assert host.draw().pixels == plain.pixels
