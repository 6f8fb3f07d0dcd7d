"""What is read off the sampler's own passes in a real WebUI: it costs no call of the UNet and changes no picture."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.hosts.conftest import Host, encoded, encoded_alike

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
    assert re.fullmatch(
        r"attention weakest for (cat|dog)|(cat|dog) (✓|perhaps missing), (cat|dog) (✓|perhaps missing)", found
    )
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


FAULTS = {"memory": 'MemoryError("out of memory")', "any other": 'RuntimeError("broken")'}
FAILING_TO_TELL = """
import importlib
tell = importlib.import_module("lib_decouple.hosts.tell")  # the hosts load adapters with the first job
kept["tell"] = tell.read
def fail(*given):
    kept["asked"] = True
    raise error
kept["asked"] = False
tell.read = fail
"""
TELLING_AGAIN = """
import importlib
importlib.import_module("lib_decouple.hosts.tell").read = kept.pop("tell")
result = kept.pop("asked")
"""
KINDS = {
    "txt2img": {},
    "two batches": {"n_iter": 2, "batch_size": 2},
    "hires fix": {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.7},
    "img2img": {"denoising_strength": 0.7},
}


def of_kind(webui: Host, kind: str) -> dict[str, Any]:
    """What makes a request one of this kind, small."""
    more = {"width": 64, "height": 64, "steps": 8, **KINDS[kind]}
    if kind == "hires fix":
        more |= {"hr_upscaler": webui.upscaler}
        more |= {"hr_additional_modules": ["Use same choices"]} if webui.name == "forge" else {}
    if kind == "img2img":
        more |= {"init_images": [encoded(webui.draw(width=64, height=64).images[0].convert("RGB"))]}
    return more


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_fails_while_it_is_told_costs_no_picture(webui, kind, fault):
    more = of_kind(webui, kind)
    plain = encoded_alike(webui, **more)
    webui.inside(FAILING_TO_TELL.replace("raise error", f"raise {FAULTS[fault]}"))
    try:
        found = encoded_alike(webui, {"gradient": "none"}, **more)
    finally:
        asked = webui.inside(TELLING_AGAIN)
    assert asked
    assert found.pixels == plain.pixels
    assert [found.value("Decouple told", k) for k in range(len(found.images))] == [None] * len(found.images)
    told(encoded_alike(webui, {"gradient": "none"}, **more), -1)


STOPPING = """
from modules import shared
model = shared.sd_model
whole = model.forge_objects.unet.model if hasattr(model, "forge_objects") else model.model
calls = []
def count(module, args):
    calls.append(1)
    if len(calls) == at:
        setattr(shared.state, how, True)
shared.decouple_hook = whole.diffusion_model.register_forward_pre_hook(count)
"""
STOPPED = "from modules import shared\nshared.decouple_hook.remove()"


@pytest.mark.parametrize("how", ["interrupted", "skipped"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_is_stopped_before_it_is_told_is_the_host_s_and_the_next_is_told(webui, kind, how):
    found = []
    more = of_kind(webui, kind)
    for ours in (None, {"gradient": "none"}):
        webui.inside(STOPPING, at=2, how=how)
        try:
            found.append(encoded_alike(webui, ours, **more))
        finally:
            webui.inside(STOPPED)
    plain, looked_at = found
    assert looked_at.pixels == plain.pixels
    if kind != "two batches" or how == "interrupted":
        assert looked_at.value("Decouple told", -1) is None
    told(encoded_alike(webui, {"gradient": "none"}, **more), -1)


LEARNED = """
import importlib
presence = importlib.import_module("lib_decouple.core.presence")
sampling = importlib.import_module("lib_decouple.hosts.sampling").SamplingPass
kept["curve"] = sampling.curve
sampling.curve = lambda own: presence.Curve((presence.Level(1000.0, middle, 100.0),))
"""
FORGOTTEN = """
import importlib
importlib.import_module("lib_decouple.hosts.sampling").SamplingPass.curve = kept.pop("curve")
"""


@pytest.mark.parametrize("gradient", ["exact", "late"])
def test_stop_by_presence_leaves_alone_what_is_whole_and_moves_what_is_not(webui, gradient):
    """By a curve of which all is there, none is, or nothing was learned."""
    more = {"width": 64, "height": 64, "steps": 8}
    guided = {**GUIDED, "gradient": gradient}
    plain, moved = webui.draw(**more), webui.draw({**guided, "stop": "off"}, **more)
    assert moved.pixels != plain.pixels
    found = {}
    for middle in (-1.0, 2.0):
        webui.inside(LEARNED, middle=middle)
        try:
            found[middle] = webui.draw({**guided, "stop": "presence"}, **more)
        finally:
            webui.inside(FORGOTTEN)
        assert found[middle].value("Decouple stood aside") is None
    assert found[-1.0].pixels == plain.pixels
    assert found[-1.0].value("Decouple told") == "cat ✓, dog ✓"
    assert found[2.0].pixels == moved.pixels
    assert found[2.0].value("Decouple told") == "cat perhaps missing, dog perhaps missing"
    webui.inside(LEARNED.replace("presence.Curve((presence.Level(1000.0, middle, 100.0),))", "None"))
    try:
        unknown = webui.draw({**guided, "stop": "presence"}, **more)
    finally:
        webui.inside(FORGOTTEN)
    assert unknown.pixels == plain.pixels
    assert "no curve was learned" in str(unknown.value("Decouple stood aside"))


KEPT = """
import hashlib, json
from pathlib import Path
from modules import paths_internal, shared
info = shared.sd_model.sd_checkpoint_info
kept["hash"], info.sha256 = info.sha256, hashlib.sha256(Path(info.filename).read_bytes()).hexdigest()
folder = Path(paths_internal.data_path) / "attention-decoupling" / "curves"
folder.mkdir(parents=True, exist_ok=True)
kept["curve"] = file = folder / f"{info.sha256}.json"
assert not file.exists()
levels = [[1000.0, middle, 100.0]]
file.write_text(json.dumps({"checkpoint": info.sha256, "score": "lead", "entities": 2, "levels": levels}))
"""
LOST = """
from modules import shared
kept.pop("curve").unlink()
shared.sd_model.sd_checkpoint_info.sha256 = kept.pop("hash")
"""


def test_a_curve_in_the_data_folder_is_found_by_the_checkpoint_s_hash(webui):
    more = {"width": 64, "height": 64, "steps": 8}
    before = webui.draw({"gradient": "none"}, **more)
    for middle, words in ((-1.0, "cat ✓, dog ✓"), (2.0, "cat perhaps missing, dog perhaps missing")):
        webui.inside(KEPT, middle=middle)
        try:
            found = webui.draw({"gradient": "none"}, **more)
        finally:
            webui.inside(LOST)
        assert found.value("Decouple told") == words
        assert found.pixels == before.pixels
    assert webui.draw({"gradient": "none"}, **more).value("Decouple told") == before.value("Decouple told")
