"""Memory ends at each stage of a guided step, in real WebUIs; see conftest.py and test_forge.py.

The backends' own words are raised where they would be: inside the host's UNet, at the maps, at the loss, in the
backward pass, and in a block that is computed again for it.
"""

from __future__ import annotations

import pytest

WORDS = {
    "forward": "torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')",
    "maps": "RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`')",
    "loss": "RuntimeError('Not enough memory, use lower resolution (max approx. 512x512). Need: 1.0GB free')",
    "backward": "RuntimeError('HIP out of memory. Tried to allocate 20.00 MiB')",
}
INJECT = """
import torch
from lib_decouple.core import gradient, losses, maps
from modules import shared
objects = getattr(shared.sd_model, "forge_objects", None)
unet = (objects.unet if objects else shared.sd_model).model.diffusion_model
seen = kept["seen"] = {"failed": 0, "passed": 0}

def fail(x):
    if seen["failed"] < TIMES or (ONE_ROW and len(x) > 1):
        seen["failed"] += 1
        raise eval(ERROR)
    seen["passed"] += 1

def in_the_unet(module, given):
    first = given[0]
    if first.requires_grad:  # a guided pass
        if STAGE == "forward":
            fail(first)
        if STAGE == "backward":
            first.register_hook(fail)

whole = {"maps": (maps.MapReader, "maps"), "loss": (losses.WeightedLoss, "__call__")}
kept["undo"] = []
if STAGE in whole:
    owner, name = whole[STAGE]
    before = getattr(owner, name)
    def instead(self, *args):
        if torch.is_grad_enabled():
            fail(args[0] if torch.is_tensor(args[0]) else [0])
        return before(self, *args)
    setattr(owner, name, instead)
    kept["undo"].append(lambda: setattr(owner, name, before))
elif STAGE == "again":
    def computed_again(module, given):
        if torch._C._current_graph_task_id() >= 0:  # within a backward pass
            fail(given[0])
    kept["undo"].append(unet.input_blocks[1][0].in_layers.register_forward_pre_hook(computed_again).remove)
else:
    kept["undo"].append(unet.middle_block.register_forward_pre_hook(in_the_unet).remove)
result = True
"""
HEAL = """
for undo in kept["undo"]:
    undo()
result = kept["seen"]
"""
HOOKS = """
from modules import shared
objects = getattr(shared.sd_model, "forge_objects", None)
unet = (objects.unet if objects else shared.sd_model).model.diffusion_model
result = [sum(len(m._forward_pre_hooks) + len(m._forward_hooks) + ("forward" in vars(m)) for m in unet.modules()),
          sum(not one.requires_grad for one in unet.parameters())]
"""
ALWAYS = 10**6
SMALL = {"width": 64, "height": 64, "steps": 4}
"""So small that a slow machine has the rows in minutes; two steps are guided."""


@pytest.fixture(params=["host", "forge"])
def webui(request):
    return request.getfixturevalue(request.param)


def draw_where_memory_ends(webui, stage, times, one_row=False, recompute=False, **given):
    """A guided picture, and how often memory ended and sufficed."""
    webui.draw(**SMALL)  # the hooks need a model that is loaded
    clean = webui.inside(HOOKS)
    webui.inside(INJECT, STAGE=stage, ERROR=WORDS.get(stage, WORDS["forward"]), TIMES=times, ONE_ROW=one_row)
    try:
        picture = webui.draw({"loss": "com", **({"recompute": True} if recompute else {})}, **SMALL, **given)
    finally:
        seen = webui.inside(HEAL)
    assert webui.inside(HOOKS) == clean
    return picture, seen


@pytest.mark.parametrize("stage", WORDS)
def test_where_it_ends_once_the_step_is_made_again_with_less(webui, stage):
    picture, seen = draw_where_memory_ends(webui, stage, 1)
    assert picture.value("Decouple stood aside") is None
    assert seen["failed"] == 1
    assert seen["passed"] >= 2
    assert picture.pixels == webui.draw({"loss": "com"}, **SMALL).pixels


@pytest.mark.parametrize("stage", WORDS)
def test_where_it_always_ends_the_host_s_picture_comes_with_the_reason(webui, stage):
    picture, seen = draw_where_memory_ends(webui, stage, ALWAYS)
    assert picture.pixels == webui.draw(**SMALL).pixels
    assert "out of memory" in picture.value("Decouple stood aside")
    assert seen == {"failed": 2, "passed": 0}  # kept, then computed again


@pytest.mark.parametrize("stage", ["forward", "backward"])
def test_a_batch_too_large_is_guided_one_image_at_a_time_for_the_rest_of_the_run(webui, stage):
    picture, seen = draw_where_memory_ends(webui, stage, 0, one_row=True, batch_size=2)
    assert picture.value("Decouple stood aside") is None
    assert seen["failed"] == 1
    apart = webui.draw({"loss": "com", "one_at_a_time": True}, **SMALL, batch_size=2)
    assert picture.pixels == apart.pixels


def test_where_it_ends_in_a_block_that_is_computed_again_the_host_s_picture_comes_with_the_reason(webui):
    """There is nothing more frugal left, for one image."""
    picture, seen = draw_where_memory_ends(webui, "again", 1, recompute=True)
    assert seen == {"failed": 1, "passed": 0}
    assert "out of memory" in picture.value("Decouple stood aside")
    assert picture.pixels == webui.draw(**SMALL).pixels
    after = webui.draw({"loss": "com", "recompute": True}, **SMALL)
    assert after.pixels == webui.draw({"loss": "com"}, **SMALL).pixels != picture.pixels


def test_a_batch_too_large_to_be_computed_again_is_guided_one_image_at_a_time(webui):
    picture, seen = draw_where_memory_ends(webui, "again", 0, one_row=True, recompute=True, batch_size=2)
    assert picture.value("Decouple stood aside") is None
    assert seen["failed"] == 1
    assert seen["passed"] >= 2
    apart = webui.draw({"loss": "com", "one_at_a_time": True, "recompute": True}, **SMALL, batch_size=2)
    assert picture.pixels == apart.pixels
