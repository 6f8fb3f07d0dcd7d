"""What is read off the sampler's own passes in a real WebUI: it costs no call of the UNet and changes no picture."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.hosts.conftest import Host, encoded

LONG = ", ".join(["blurry"] * 60)
"""A negative prompt of two chunks beside a prompt of one."""
GUIDED = {"steps": 6, "size": 0.1}

COUNTED = """
from modules import shared
import torch
model = shared.sd_model
whole = model.forge_objects.unet.model if hasattr(model, "forge_objects") else model.model
unet = whole.diffusion_model
calls = shared.decouple_calls = []
shared.decouple_hook = unet.register_forward_pre_hook(lambda module, args: calls.append(torch.is_grad_enabled()))
result = None
"""
TAKEN_OFF = """
from modules import shared
shared.decouple_hook.remove()
result = [len(shared.decouple_calls), sum(shared.decouple_calls)]
"""


@pytest.fixture(params=["host", "forge"])
def webui(request: pytest.FixtureRequest) -> Host:
    return request.getfixturevalue(request.param)


def counted(webui: Host, *given: Any, **more: Any) -> tuple[Any, list[int]]:
    """A picture; the UNet's calls, and how many of them took a gradient."""
    webui.inside(COUNTED)
    try:
        picture = webui.draw(*given, **more)
    finally:
        calls = webui.inside(TAKEN_OFF)
    return picture, calls


def told(picture: Any, index: int = 0) -> str:
    found = picture.value("Decouple told", index)
    assert found
    assert re.fullmatch(r"weakest: (cat|dog)|(cat|dog) (✓|probably missing), (cat|dog) (✓|probably missing)", found)
    return str(found)


every_kind_of_call = pytest.mark.parametrize(
    "more",
    [
        {},
        {"prompt": "a cat AND a dog"},
        {"negative_prompt": LONG},
        {"sampler_name": "DDIM"},
        {"sampler_name": "Heun"},
        {"batch_size": 2},
        {"cfg_scale": 1},
    ],
    ids=["plain", "AND", "longer negative prompt", "DDIM", "Heun", "batch", "no CFG"],
)
"""Of the host's own pass, by its rows and the sampler that makes it."""


@every_kind_of_call
def test_looks_and_what_is_told_cost_no_call_and_change_no_picture(webui, more):
    more = {"steps": 12, **more}
    _, (without, gradients) = counted(webui, None, **more)
    assert gradients == 0
    silent = webui.draw({**GUIDED, "look": "off"}, **more)
    picture, (calls, gradients) = counted(webui, GUIDED, **more)
    assert (calls - gradients, gradients) == (without, 6)
    assert picture.pixels == silent.pixels
    assert silent.value("Decouple told") is None
    told(picture, len(picture.infotexts) - 1)
    (one, *_) = webui.get("/decouple/v1/trace/last")["images"]
    (only,) = one["passes"]
    assert [step["step"] for step in only["steps"]] == list(range(7))  # the last one behind guidance
    assert only["steps"][0]["after"] is not None
    assert only["presence"]["words"]
    assert only["presence"]["sigma"] <= 1.6


def test_it_is_told_in_both_passes_of_hires_fix_in_img2img_and_where_guidance_stands_aside(webui):
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": webui.upscaler, "denoising_strength": 0.7}
    if webui.name == "forge":
        hires["hr_additional_modules"] = ["Use same choices"]
    both = webui.draw({**GUIDED, "hires": True}, steps=12, **hires)
    told(both)
    (image,) = webui.get("/decouple/v1/trace/last")["images"]
    assert [one["hires"] for one in image["passes"]] == [False, True]
    assert all(one["presence"] for one in image["passes"])
    told(webui.draw(GUIDED, steps=12, init_images=[encoded(both.images[0])], denoising_strength=0.6))
    aside = webui.draw({"start": 20, "steps": 30}, steps=12)
    assert aside.value("Decouple stood aside")
    assert aside.pixels == webui.draw(steps=12).pixels
    told(aside)


def test_a_value_that_does_not_exist_is_refused(webui):
    body = {"alwayson_scripts": {"attention decoupling": {"args": [{"enabled": True, "look": "squint"}]}}}
    status, answer = webui.post("/sdapi/v1/txt2img", {"prompt": "a cat and a dog", **body})
    assert (status, "look: 'squint' is not allowed; one of off, tell, choose, insist" in answer["detail"]) == (
        422,
        True,
    )
