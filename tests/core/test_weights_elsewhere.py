"""Weights that are not where or what they are computed with: --medvram, 8-bit storage, casts at each call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from tiny import CONTEXT, tiny_unet
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lib_decouple.core.differentiable import WeightsAsUsed
from lib_decouple.core.gradient import LearnedInRun, LossGradient
from lib_decouple.core.losses import LOSSES
from lib_decouple.core.maps import Entity, ImagePlan, MapReader
from lib_decouple.core.memory import Thrift
from lib_decouple.hosts.diffusers import cross_attention_layers

PLAN = ImagePlan((Entity("cat", (2,)), Entity("dog", (4, 5))))
BOTH = pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])


def source_of(unet: Any, recompute: bool, again: Any = nullcontext) -> LossGradient:
    layers = [layer for layer in cross_attention_layers(unet) if layer.factor == 2]
    return LossGradient(
        unet, MapReader(layers, [PLAN]), LOSSES["com"], LearnedInRun(Thrift(recompute=recompute)), again
    )


def gradient(unet: Any, recompute: bool = False, again: Any = nullcontext) -> Tensor:
    context = torch.randn(1, 9, CONTEXT, generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    run = lambda x, _: unet(x, torch.tensor(300), encoder_hidden_states=context)  # noqa: E731
    return source_of(unet, recompute, again)(x, [0], run).gradient


@BOTH
@pytest.mark.parametrize("other", ["cond_stage_model", "conditioner"], ids=["medvram", "medvram-sdxl"])
def test_a_whole_unet_that_waits_elsewhere_is_fetched_by_its_hook(recompute: bool, other: str) -> None:
    """One of UNet, text encoder and autoencoder is on the device at a time; float64 stands for elsewhere."""
    unet = tiny_unet()
    expected = gradient(unet, recompute)
    parts = nn.ModuleDict({other: nn.Linear(2, 2), "first_stage_model": nn.Linear(2, 2), "unet": unet})
    on_device: list[nn.Module] = []

    def send_me(module: nn.Module, _: Any) -> None:
        if on_device != [module]:
            for one in on_device:
                one.double()
            module.float()
            on_device[:] = [module]

    for part in parts.values():
        part.register_forward_pre_hook(send_me)
        part.double()
    for _ in range(2):
        parts[other](torch.zeros(1, 2))  # the prompt is read: the UNet leaves
        assert unet.dtype == torch.float64
        assert torch.equal(gradient(unet, recompute), expected)
        parts["first_stage_model"](torch.zeros(1, 2))  # a preview is decoded


def in_8_bits(unet: Any) -> Any:
    """As A1111 and Forge store them: weights of products alone."""
    for module in unet.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.to(torch.float8_e4m3fn)
    return unet


def rounded_to_8_bits(unet: Any) -> Any:
    return in_8_bits(unet).float()


@BOTH
def test_weights_in_8_bits_under_autocast_have_the_gradient_of_their_values(recompute: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = gradient(in_8_bits(tiny_unet()), recompute), gradient(rounded_to_8_bits(tiny_unet()), False)
    assert expected.abs().max() > 0
    assert torch.equal(found, expected)


@contextmanager
def copies_counted(unet: Any, found: set[int], sizes: list[int]) -> Iterator[None]:
    """Numbers in 16-bit copies of weights that autograd is given to keep."""
    shapes = {one.shape for one in unet.parameters() if one.ndim > 1}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage().data_ptr()
        if saved.dtype == torch.bfloat16 and {saved.shape, saved.T.shape if saved.ndim == 2 else None} & shapes:
            if storage not in found:
                sizes.append(saved.numel())
            found.add(storage)
        return saved

    with saved_tensors_hooks(pack, lambda saved: saved):
        yield


def copied(recompute: bool) -> tuple[int, int]:
    """Numbers in 16-bit copies of weights that are kept when the pass is over, and in the weights that it used."""
    unet, sizes, used = in_8_bits(tiny_unet()), list[int](), dict[nn.Module, int]()
    for module in unet.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(lambda own, *_: used.update({own: own.weight.numel()}))
    whole = LossGradient._losses

    def forward_alone(self: Any, *given: Any) -> Any:
        with copies_counted(unet, set(), sizes):
            return whole(self, *given)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(LossGradient, "_losses", forward_alone)
        gradient(unet, recompute)
    return sum(sizes), sum(used.values())


def test_16_bit_copies_of_weights_in_8_bits_are_kept_and_recomputing_cures_most() -> None:
    kept, used = copied(False)
    again, _ = copied(True)
    assert 0.8 * used < kept <= used
    assert again < 0.5 * kept


def cast_at_each_call(unet: Any, dtype: torch.dtype) -> None:
    """A1111's ``manual_cast`` (MPS, XPU, cards without autocast): a module's weights are there for its call alone."""
    for module in unet.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.forward = _cast(module, module.forward, dtype)


def _cast(module: nn.Module, forward: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    def cast(x: Tensor) -> Tensor:
        stored = next(module.parameters()).dtype
        module.to(dtype)
        result = forward(x.to(dtype))
        module.to(stored)
        return result

    return cast


@BOTH
def test_weights_that_are_cast_for_a_call_alone_are_kept_as_they_were_then(recompute: bool) -> None:
    expected = gradient(rounded_to_8_bits(tiny_unet()), False)
    unet = in_8_bits(tiny_unet())
    cast_at_each_call(unet, torch.float32)
    with pytest.raises(RuntimeError):
        gradient(unet, recompute)
    with WeightsAsUsed():
        assert torch.equal(gradient(unet, recompute, WeightsAsUsed), expected)
    assert next(unet.conv_in.parameters()).dtype == torch.float8_e4m3fn
