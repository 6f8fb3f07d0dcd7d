"""On a GPU, where there is one: what a CPU cannot show of half precision and of memory that ends."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lib_decouple.core import memory
from lib_decouple.core.finite_differences import MISFIT, misfit
from lib_decouple.core.gradient import LossGradient
from lib_decouple.core.maps import full_precision_convolutions
from lib_decouple.doctor import GOOD, examine_pipeline
from lib_decouple.hosts.checkpoints import open_pipeline
from lib_decouple.hosts.diffusers import Drawing, Picture
from lib_decouple.lab.evaluate.arms import embedded
from lib_decouple.lab.study.bench.ways import WAYS, guide_of
from lib_decouple.lab.study.precision import BAR, measure
from lib_decouple.lab.study.unets import UNetWithInputs, random_unet, unet_config, with_inputs
from lib_decouple.settings import Settings

pytest.importorskip("diffusers")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def large() -> UNetWithInputs:
    """Stable Diffusion 1.5's UNet in fp16 at 1024 px: its gradient keeps gigabytes."""
    return with_inputs(random_unet(unet_config("sd15"), 4).half().to(GPU), 128)


@pytest.fixture
def little_memory() -> Iterator[Any]:
    """Sets how many bytes the process may have beside those that it has."""

    def limit(more: int) -> None:
        torch.cuda.empty_cache()
        share = (torch.cuda.memory_allocated(GPU) + more) / torch.cuda.mem_get_info(GPU)[1]
        torch.cuda.set_per_process_memory_fraction(share)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def source(found: UNetWithInputs) -> LossGradient:
    gradient: LossGradient = guide_of(found, WAYS["default layers"]).gradient
    return gradient


def take(found: UNetWithInputs, gradient: LossGradient) -> Tensor:
    return gradient(found.latents, [0], lambda x, _: found.run(x)).gradient


def peak(found: UNetWithInputs, gradient: LossGradient) -> int:
    torch.cuda.reset_peak_memory_stats(GPU)
    before = torch.cuda.memory_allocated(GPU)
    take(found, gradient)
    return torch.cuda.max_memory_allocated(GPU) - before


@pytest.mark.parametrize("loss", ["com", "iou(form=product)", "kl", "intensity", "spread"])
@pytest.mark.parametrize("kind", ["fp16", "autocast fp16"])
@pytest.mark.parametrize("model", ["embedded", "sd15-narrow"])
def test_the_gradient_in_half_precision_is_that_of_float32(model: str, kind: str, loss: str) -> None:
    with full_precision_convolutions():
        (record,) = measure(model, 1.0 if model == "embedded" else 4.0, [loss], [kind], set(), False, "cuda")
    assert record["scaled"]["cosine"] >= BAR
    assert "flushed" not in record["scaled"]  # that is counted by the emulation alone


def test_where_memory_truly_ends_the_blocks_are_computed_again_and_nothing_is_left_behind(
    large: UNetWithInputs, little_memory: Any
) -> None:
    roomy = source(large)
    exact = take(large, roomy)
    kept = peak(large, roomy)
    assert not roomy.learned.thrift.recompute
    held = torch.cuda.memory_allocated(GPU)
    ends = torch.cuda.memory_stats(GPU)["num_ooms"]
    little_memory(kept // 2)
    tight = source(large)
    found = take(large, tight)
    assert torch.cuda.memory_stats(GPU)["num_ooms"] > ends, "memory did not end, so that this says nothing"
    assert tight.learned.thrift.recompute
    assert torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), 0) > 0.999
    del found
    assert torch.cuda.memory_allocated(GPU) < held + kept // 20


def test_where_little_is_free_blocks_are_computed_again_before_memory_ends(large: UNetWithInputs) -> None:
    gradient = source(large)
    kept = peak(large, gradient)
    torch.cuda.empty_cache()
    ends = torch.cuda.memory_stats(GPU)["num_ooms"]
    filler = torch.empty(torch.cuda.mem_get_info(GPU)[0] - int(0.9 * kept), dtype=torch.uint8, device=GPU)
    try:
        tight = source(large)
        take(large, tight)
    finally:
        del filler
        torch.cuda.empty_cache()
    assert tight.learned.thrift.recompute
    assert torch.cuda.memory_stats(GPU)["num_ooms"] == ends


def test_what_is_free_counts_what_torch_holds_unused() -> None:
    torch.cuda.empty_cache()
    before = memory.free(GPU)
    assert before is not None
    block = torch.empty(2**28, dtype=torch.uint8, device=GPU)
    del block
    after = memory.free(GPU)
    assert torch.cuda.memory_reserved(GPU) >= 2**28
    assert after is not None
    assert abs(after - before) < 2**27


@pytest.mark.parametrize("half", [True, False])
def test_the_doctor_finds_the_embedded_model_well(half: bool) -> None:
    """In fp16 cuDNN's attention, which torch 2.11 prefers on an H200, has NaN for a gradient there."""
    pipe = open_pipeline(device="cuda", dtype=torch.float16 if half else torch.float32)
    found = examine_pipeline(pipe)
    assert (found.whole, found.cut, found.stood_aside, found.left_out) == (True, "", "", [])
    assert misfit(found.slopes) <= MISFIT
    assert found.cosine is None or found.cosine >= GOOD
    assert 0 < found.memory["recomputed"] <= found.memory["kept"]


@pytest.mark.parametrize("gradient", ["exact", "late"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_pictures_are_guided_whole_and_plain_ones_are_untouched(gradient: str, dtype: torch.dtype) -> None:
    pipe = open_pipeline(device="cuda", dtype=dtype)

    def drawn(settings: Settings) -> Picture:
        return Drawing(
            pipe, ["a cat and a dog"] * 4, [("cat", "dog")] * 4, settings, seeds=[1, 2, 3, 4], steps=20,
            guidance_scale=4.0,
        ).picture()  # fmt: skip

    def pixels(picture: Picture) -> np.ndarray:
        return np.stack([np.array(one) for one in picture.images])

    before = drawn(Settings())
    guided = drawn(replace(embedded("com", 2), gradient=gradient))
    after = drawn(Settings())
    assert not guided.stood_aside
    assert [trace.passes for trace in guided.traces] == [10 if gradient == "exact" else 0] * 4
    apart = [(trace.steps[0].before.mean_iou(), trace.steps[-1].before.mean_iou()) for trace in guided.traces]
    assert all(last < first for first, last in apart), apart
    assert (pixels(before) == pixels(after)).all()
    assert (pixels(before) != pixels(guided)).any((1, 2, 3)).all()


def test_a_gradient_waits_for_the_device_once(large: UNetWithInputs) -> None:
    gradient = source(large)
    take(large, gradient)  # the first proves itself whole
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            take(large, gradient)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in seen if "synchron" in str(one.message)]
    assert len(waits) == 1, [f"{one.filename}:{one.lineno}" for one in waits]
