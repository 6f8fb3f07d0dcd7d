"""Late gradients in a real WebUI: no call of the UNet more, and the sampler's own pass gives what it gives without."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hosts.conftest import Host
from tests.hosts.test_look import counted, every_kind_of_call

LATE = {"steps": 6, "size": 0.1, "gradient": "late", "entities": ["cat", "dog"]}
FAILING = """
from modules import shared
import torch
model = shared.sd_model
whole = model.forge_objects.unet.model if hasattr(model, "forge_objects") else model.model
left = shared.decouple_left = [1]

def fail(module, args):
    if torch.is_grad_enabled() and left[0]:
        left[0] -= 1
        raise RuntimeError(ERROR)

# Not on the block itself: Forge Classic calls its parts.
shared.decouple_hook = whole.diffusion_model.middle_block[0].register_forward_pre_hook(fail)
result = None
"""
HEALED = """
from modules import shared
shared.decouple_hook.remove()
result = shared.decouple_left[0]
"""


@pytest.fixture(params=["host", "forge"])
def webui(request: pytest.FixtureRequest) -> Host:
    return request.getfixturevalue(request.param)


def steps_of(webui: Host) -> list[list[dict[str, Any]]]:
    return [image["passes"][0]["steps"] for image in webui.get("/decouple/v1/trace/last")["images"]]


@every_kind_of_call
def test_a_late_gradient_costs_no_call_and_its_pass_changes_nothing(webui, more):
    more = {"steps": 12, **more}
    plain, (without, _) = counted(webui, None, **more)
    # Every image's loss is below this, so that gradients are taken and nothing is moved.
    still, (calls, gradients) = counted(webui, {**LATE, "stop": "on", "stop_below": 1000}, **more)
    assert (calls, gradients) == (without, 0)
    assert [[(s["step"], s["update_norm"], s["passes"]) for s in own[:6]] for own in steps_of(webui)] == [
        [(k, 0.0, 0) for k in range(6)]
    ] * more.get("batch_size", 1)
    assert still.pixels == plain.pixels
    moved, (calls, gradients) = counted(webui, LATE, **more)
    assert (calls, gradients) == (without, 0)
    for own in steps_of(webui):
        assert [s["step"] for s in own if s["update_norm"] > 0] == list(range(6))
        assert sum(s["update_norm"] for s in own) == pytest.approx(0.1, rel=0.02)
    assert moved.pixels != plain.pixels
    assert moved.value("Decouple gradient") == "late"
    assert moved.value("Decouple stood aside") is None


@pytest.mark.parametrize("error", ["CUDA out of memory. Tried to allocate 2.00 GiB", "no kernel for this"])
def test_where_a_late_gradient_fails_the_next_is_exact_and_the_picture_is_not_lost(webui, error):
    still = {"stop": "on", "stop_below": 1000}
    plain = webui.draw(steps=12)
    webui.inside(FAILING, ERROR=error)
    try:
        found = webui.draw({**LATE, **still}, steps=12)
    finally:
        left = webui.inside(HEALED)
    assert left == 0
    assert found.pixels == plain.pixels
    assert found.value("Decouple stood aside") is None
    (only,) = webui.get("/decouple/v1/trace/last")["images"][0]["passes"]
    assert only["exact_since"].startswith("the gradient is exact from step 2 of 12 on: ")
    assert [s["step"] for s in only["steps"] if s["passes"]] == [1, 2, 3, 4, 5]
