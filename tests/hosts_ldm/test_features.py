"""What a host's functions take, and what of it passes no gradient on: stand-ins as Forge Neo has them."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lib_decouple.hosts import features

CPU = torch.device("cpu")


def attention_pytorch(q: Tensor, k: Tensor, v: Tensor, heads: int, **_: object) -> Tensor:
    def split(t: Tensor) -> Tensor:
        return t.view(*t.shape[:2], heads, -1).transpose(1, 2)

    return nn.functional.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)


def sage(q: Tensor, k: Tensor, v: Tensor, heads: int, **given: object) -> Tensor:
    """A kernel that autograd does not know."""
    with torch.no_grad():
        return attention_pytorch(q, k, v, heads, **given)


library = torch.library.Library("decouple_tests", "DEF")
library.define("flash(Tensor q, Tensor k, Tensor v, int heads) -> Tensor")
library.impl("flash", lambda q, k, v, heads: attention_pytorch(q.detach(), k.detach(), v.detach(), heads), "CPU")


def flash(q: Tensor, k: Tensor, v: Tensor, heads: int, **_: object) -> Tensor:
    """An operator of its own without an autograd formula."""
    return torch.ops.decouple_tests.flash(q, k, v, heads)


def blind_to_keys(q: Tensor, k: Tensor, v: Tensor, heads: int, **_: object) -> Tensor:
    return attention_pytorch(q, k.detach(), v, heads)


@pytest.mark.parametrize("given", [{"x": 1}, {"x": 1, "sigma": 2}])
def test_a_function_gets_of_what_is_offered_what_it_takes(given):
    signatures = {("x",): lambda denoiser, x: {"x": x}, ("x", "sigma"): lambda d, x, sigma: {"x": x, "sigma": sigma}}
    assert features.call(signatures[tuple(given)], "denoiser", x=1, sigma=2) == given


def test_a_parameter_with_a_default_is_handed_over_too():
    assert features.call(lambda denoiser, sigma=None: sigma, "denoiser", x=1, sigma=2) == 2


@pytest.mark.parametrize(
    ("attention", "passes"), [(attention_pytorch, True), (sage, False), (flash, False), (blind_to_keys, False)]
)
def test_whether_a_gradient_comes_through_is_tried(attention, passes):
    before = torch.get_rng_state()
    with torch.inference_mode():
        assert features.has_backward(attention, CPU) is passes
    assert torch.equal(torch.get_rng_state(), before)


class Quantised(nn.Module):
    """As Neo's ``MixedPrecisionOps.Linear``: the weight in 8 bits, and no input that takes a gradient."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = weight.abs().max() / 127
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)

    def convert_weight(self, weight: Tensor) -> Tensor:
        return weight * self.scale

    def forward(self, x: Tensor) -> Tensor:
        assert not x.requires_grad
        return nn.functional.linear(x, self.convert_weight(self.weight))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = Quantised(torch.randn(64, 64, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: Tensor) -> Tensor:
        q = self.to_q(x)
        return x + sys.modules["a_unet_of_tests"].attention_function(q, x, x, 1)  # type: ignore[attr-defined]


@pytest.fixture
def host(monkeypatch):
    """The modules that a Forge Neo has loaded; the attention function is another module's global as well."""

    def made(attention: object) -> None:
        own = {"attention_function": attention, "attention_pytorch": attention_pytorch}
        operations = {
            "weights_manual_cast": lambda layer, x: (layer.weight, None, None),
            "main_stream_worker": lambda *_: nullcontext(),
            "fp8_linear": lambda layer, x: x,
        }
        modules = {"backend.attention": own, "a_unet_of_tests": own, "backend.operations": operations}
        for name, content in modules.items():
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)

    return made


@pytest.mark.parametrize("attention", [sage, flash])
def test_the_guided_pass_has_the_gradient_of_torch_s_own_attention(host, attention):
    host(attention)
    block = Block()
    x = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(2))
    before = block(x)
    with features.with_backward(block, CPU):
        leaf = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(block(leaf).square().sum(), leaf)
    weight = block.to_q.convert_weight(block.to_q.weight)
    leaf = x.clone().requires_grad_()
    whole = leaf + attention_pytorch(leaf @ weight.T, leaf, leaf, 1)
    (expected,) = torch.autograd.grad(whole.square().sum(), leaf)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(block(x), before)
    assert sys.modules["a_unet_of_tests"].attention_function is attention  # type: ignore[attr-defined]
    assert "forward" not in vars(block.to_q)


def test_an_attention_that_has_a_backward_stays(host):
    host(attention_pytorch)
    other = SimpleNamespace()
    with features.with_backward(Block(), CPU):
        other.seen = sys.modules["backend.attention"].attention_function  # type: ignore[attr-defined]
        assert sys.modules["backend.operations"].fp8_linear(None, None) is None  # type: ignore[attr-defined]
    assert other.seen is attention_pytorch
    assert sys.modules["backend.operations"].fp8_linear(None, 3) == 3  # type: ignore[attr-defined]


def test_the_host_s_functions_are_back_after_a_failure(host):
    host(sage)
    block = Block()
    with pytest.raises(ZeroDivisionError), features.with_backward(block, CPU):
        raise ZeroDivisionError
    assert sys.modules["backend.attention"].attention_function is sage  # type: ignore[attr-defined]
    assert "forward" not in vars(block.to_q)
