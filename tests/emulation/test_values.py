"""One pass's values put into another: what rounding moves, apart from how the gradient is taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib_decouple.lab.study.values import ModuleValues


class Layer(nn.Module):
    """So steep that what rounding moves turns its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bend = nn.Linear(32, 32), nn.Linear(32, 32), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.bend(x + (12 * self.second(self.bend(4 * self.first(x)))).softmax(-1))


class Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * (torch.arange(gradients[0].shape[-1]) % 2)


def made() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[Layer() for _ in range(3)]).double()


def slope(layers: nn.Module, at: Tensor) -> Tensor:
    leaf = at.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad((layers(leaf) * torch.arange(32).cos()).sum(), leaf)
    return found.double().flatten()


def angle(a: Tensor, b: Tensor) -> float:
    return float(functional.cosine_similarity(a, b, 0))


def inputs() -> Tensor:
    return torch.randn(1, 32, generator=torch.Generator().manual_seed(3)).double()


def test_at_the_values_of_another_pass_the_gradient_is_that_pass_s() -> None:
    network, values = made(), ModuleValues()
    rounding = network[0].first.register_forward_hook(lambda module, given, output: output + 0.3)
    with values.noted(network):
        moved = slope(network, inputs())
    rounding.remove()
    alone = slope(network, inputs())
    with values.repeated(network):
        there = slope(network, inputs())
    assert angle(moved, alone) < 0.99
    torch.testing.assert_close(there, moved)
    torch.testing.assert_close(slope(network, inputs()), alone, rtol=0, atol=0)


def test_a_wrong_way_back_is_seen_at_the_same_values() -> None:
    exact, wrong, values = made(), made(), ModuleValues()
    wrong[1].register_forward_hook(lambda module, given, output: Cut.apply(output))
    with values.noted(wrong):
        found = slope(wrong, inputs())
    with values.repeated(exact):
        assert angle(found, slope(exact, inputs())) < 0.99
