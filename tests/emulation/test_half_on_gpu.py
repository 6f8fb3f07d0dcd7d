"""The emulation of half precision against torch's own half kernels and against sums in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import CONTEXT, tiny_unet
from torch import Tensor
from torch.nn import functional

from lib_decouple.lab.study.emulate import HALVES, HalfOnGpu

both = pytest.mark.parametrize("dtype", HALVES, ids=str)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def one_rounding(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbouring numbers of ``dtype`` at each of ``exact``'s values."""
    info = torch.finfo(dtype)
    return exact.abs().clamp(min=info.smallest_normal) * info.eps


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "product": lambda x, w: x @ w.T,
    "linear": lambda x, w: functional.linear(x, w, w[:, 0]),
    "convolution": lambda x, w: functional.conv2d(x[None, :, :16].reshape(1, 16, 8, 8), w[:16, :16, None, None]),
    "group norm": lambda x, w: functional.group_norm(x.T.reshape(1, 64, 8, 8), 8, w[0], w[1]),
    "layer norm": lambda x, w: functional.layer_norm(x, (64,), w[0], w[1]),
    "softmax": lambda x, w: x.softmax(-1),
    "gelu": lambda x, w: functional.gelu(x),
    "silu": lambda x, w: functional.silu(x),
    "attention": lambda x, w: functional.scaled_dot_product_attention(*(x.reshape(1, 4, 16, 64),) * 3),
    "residual": lambda x, w: x + x.roll(1, 0),
}


@both
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    body = OPERATIONS[name]
    x, w = randn(64, 64, dtype=dtype), randn(64, 64, seed=1, dtype=dtype)
    exact = body(x.double(), w.double())
    with HalfOnGpu():
        found = body(x, w)
    assert found.dtype == dtype
    more = 2e-6 * exact.abs().max()  # what float32 sums lose
    assert ((found - exact).abs() <= 0.51 * one_rounding(exact, dtype) + more).all()
    # torch's own half kernel, which nobody here wrote.
    own = body(x, w)
    assert ((found.double() - own.double()).abs() <= 3 * one_rounding(exact, dtype) + 2 * more).all()


@both
def test_gradients_are_those_of_torchs_half_kernels(dtype: torch.dtype) -> None:
    unet = tiny_unet().to(dtype)
    context, start = randn(1, 9, CONTEXT, seed=2, dtype=dtype), randn(1, 4, 8, 8, dtype=dtype)

    def gradient(kind: torch.dtype) -> Tensor:
        leaf = start.to(kind, copy=True).requires_grad_()
        out = unet.to(kind)(leaf, torch.tensor(500), encoder_hidden_states=context.to(kind)).sample
        return torch.autograd.grad(1e3 * out.float().square().mean(), leaf)[0].flatten().double()

    own = gradient(dtype)
    with HalfOnGpu():
        found = gradient(dtype)
    with HalfOnGpu(unet):
        torch.testing.assert_close(gradient(dtype), found, rtol=0, atol=0)
    exact = gradient(torch.float32)
    # Both are off by what their roundings make of the gradient, which CUDA's group norm does once more than a CPU's:
    # it keeps its statistics in half.
    bar = 200 * torch.finfo(dtype).eps ** 2
    for one in (own, found):
        assert 1e-7 < 1 - functional.cosine_similarity(one, exact, 0) < bar


def test_subnormals_stay_and_what_is_below_them_is_counted() -> None:
    smallest = 2.0**-24
    factors = torch.tensor([1.0, 0.75, 0.51, 0.49, 0.0]).half()
    leaf = torch.ones(5, dtype=torch.float16, requires_grad=True)
    with HalfOnGpu() as mode:
        torch.autograd.grad((leaf * factors).float().sum() * smallest, leaf)
    assert (mode.flushed.zeroed, mode.flushed.values) == (1, 5)
    with HalfOnGpu():
        (gradient,) = torch.autograd.grad(((leaf * factors).float() * smallest).sum(), leaf)
    assert (gradient / smallest).tolist() == [1, 1, 1, 0, 0]


def test_float32_stays_as_it_is() -> None:
    x, w = randn(8, 8), randn(8, 8, seed=1)
    with HalfOnGpu() as mode:
        made = x @ w
    torch.testing.assert_close(made, x @ w, rtol=0, atol=0)
    assert mode.flushed.values == 0
