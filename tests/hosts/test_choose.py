"""Drafts in a real WebUI: which seed is drawn, and that it is a seed that the host draws by itself."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lib_decouple.hosts.seeds import seeds_to_draft
from tests.hosts.conftest import Host, Picture

NO_GUIDANCE = {"start": 30, "steps": 40}
"""More steps are passed over than the sampler makes."""
CHOOSE = {**NO_GUIDANCE, "look": "choose"}
CALLS = """
from modules import shared
import torch
model = shared.sd_model
whole = model.forge_objects.unet.model if hasattr(model, "forge_objects") else model.model
calls = shared.decouple_calls = []
shared.decouple_hook = whole.diffusion_model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
result = None
"""
CALLS_OFF = """
from modules import shared
shared.decouple_hook.remove()
result = shared.decouple_calls
"""
FAILING = """
import sys
from modules import shared
drafting = sys.modules["lib_decouple.hosts.drafting"]
shared.decouple_draft = drafting.draft
def fails(denoise, x, *given):
    if len(x) > most:
        raise MemoryError("out of memory")
    return shared.decouple_draft(denoise, x, *given)
drafting.draft = fails
result = None
"""
FAILING_OFF = """
import sys
from modules import shared
sys.modules["lib_decouple.hosts.drafting"].draft = shared.decouple_draft
result = None
"""


@pytest.fixture(params=["host", "forge"])
def webui(request: pytest.FixtureRequest) -> Host:
    return request.getfixturevalue(request.param)


def seeds(picture: Picture) -> list[int]:
    return [int(found[1]) for text in picture.infotexts if (found := re.search(r"[,\n ]Seed: (\d+)", text))]


def settled(webui: Host, seed: int, count: int = 24, **more: Any) -> int:
    """A seed of whose first drafts another is best: found by drawing, as weights are random in some hosts."""
    for own in range(seed, seed + count):
        if seeds(webui.draw({**CHOOSE, "drafts": 6}, seed=own, **more)) != [own]:
            return own
    raise AssertionError("every seed is the best of its own drafts")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"sampler_name": "DDIM"},
        {"sampler_name": "Euler a"},
        {"sampler_name": "DPM++ SDE"},
        {"prompt": "a cat AND a dog"},
        {"cfg_scale": 1},
    ],
    ids=["Euler", "DDIM", "Euler a", "DPM++ SDE", "AND", "no CFG"],
)
def test_the_seed_that_is_told_draws_the_same_picture_without_us(webui, more):
    asked = settled(webui, 40, **more)
    picture = webui.draw({**CHOOSE, "drafts": 6}, seed=asked, **more)
    (drawn,) = seeds(picture)
    assert drawn in seeds_to_draft(asked, 6)[1:]
    assert picture.value("Decouple asked seed") == str(asked)
    assert picture.value("Decouple no drafts") is None
    assert picture.pixels == webui.draw(seed=drawn, **more).pixels
    assert picture.pixels != webui.draw(seed=asked, **more).pixels
    (one,) = webui.get("/decouple/v1/trace/last")["images"]
    choice = one["passes"][0]["choice"]
    assert (choice["asked"], choice["drawn"], one["seed"]) == (asked, drawn, drawn)
    weakest = {draft["seed"]: min(draft["scores"].values()) for draft in choice["drafts"]}
    assert list(weakest) == seeds_to_draft(asked, 6)
    assert weakest[drawn] == max(weakest.values()) > weakest[asked]
