"""The gradient of the host's own pass: that of a pass of one's own, and the host gets what it would have got."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from test_host_pass import NAMED, NOTHING, PLANS, ROWS, host, reader_of
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from toy import Runner, Toy, noise

from lib_decouple.core import late, losses, memory
from lib_decouple.core.differentiable import GradientCut, without_cudnn_attention
from lib_decouple.core.gradient import LossAndGradient, LossGradient, NonFinite
from lib_decouple.core.host_pass import RowsInOrder
from lib_decouple.core.late import LatePass, ProductsOfRows, differentiated_beside
from lib_decouple.core.losses import LOSSES
from lib_decouple.core.maps import AttentionReplaced

SIZE = (7, 10)


def gradient_of(model: Toy, loss: str = "iou") -> LossGradient:
    return LossGradient(model, reader_of(model), LOSSES[loss])


def beside(gradient: LossGradient, **given: Any) -> AbstractContextManager[LatePass]:
    return differentiated_beside(gradient, lambda: RowsInOrder(4, others=(0, 3)), **given)


def by_own_pass(gradient: LossGradient, latents: Tensor) -> LossAndGradient:
    """The reference: exact guidance's, of a pass for it alone."""
    return gradient(latents[NAMED], NAMED, Runner(gradient.model, ROWS, [1, 1, 2]))  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["iou", "com", "intensity"])
@pytest.mark.parametrize("chunks", [[7], [4], [3, 3, 1], [1] * 7], ids=str)
def test_the_gradient_of_a_pass_of_ones_own_and_the_hosts_pass_is_as_without(chunks: list[int], loss: str) -> None:
    model, latents = Toy(), noise(3, *SIZE)
    gradient = gradient_of(model, loss)
    with torch.no_grad():
        plain = host(model, latents, chunks)
        state = torch.random.get_rng_state()
        with beside(gradient) as late:
            seen = host(model, latents, chunks)
        assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(plain, seen))
        images, found = late.take(SIZE, 4, NAMED)
    assert torch.equal(state, torch.random.get_rng_state())
    assert images == NAMED
    assert late.proved
    expected = by_own_pass(gradient, latents)
    assert expected.gradient.abs().max() > 1e-6
    torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-5, atol=1e-6)
    for ours, own in zip(found.maps, expected.maps):
        torch.testing.assert_close(ours, own, rtol=0, atol=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert "forward" not in vars(model)


def test_central_differences_in_float64() -> None:
    model = Toy(torch.float64)
    latents, rows, nothing = noise(3, *SIZE, torch.float64), ROWS.double(), NOTHING.double()
    gradient = LossGradient(model, reader_of(model), losses.com)
    own = torch.tensor([0, 1, 2, 2, 0, 1, 2])
    with torch.no_grad(), beside(gradient) as late:
        model(latents[own], torch.cat([rows, nothing]))
    _, found = late.take(SIZE, 4, NAMED)
    assert found.gradient.dtype == torch.float64
    run = Runner(model, rows, [1, 1, 2])

    def value(at: Tensor, image: int) -> float:
        maps = gradient.look(at[None], [image], run)[1]
        return float(losses.com(maps[0][None]))

    for k, image in enumerate(NAMED):
        way = noise(1, *SIZE, torch.float64, seed=100 + k)[0]
        way = way / way.norm()
        slope = (value(latents[image] + 1e-6 * way, image) - value(latents[image] - 1e-6 * way, image)) / 2e-6
        assert float((found.gradient[k] * way).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8)
    assert found.gradient.norm() > 1e-5


def test_behind_the_last_layer_nothing_is_kept() -> None:
    model, latents = Toy(), noise(3, *SIZE)
    seen: list[bool] = []
    model.leave.register_forward_hook(lambda _, args, __: seen.append(args[0].requires_grad))
    again = torch.enable_grad()
    model.leave.register_forward_pre_hook(lambda *_: again.__enter__())
    model.leave.register_forward_hook(lambda _, __, made: seen.append(made.requires_grad))
    with torch.no_grad(), beside(gradient_of(model)) as late:
        host(model, latents, [7])
    assert seen[1::2] == [False]
    late.take(SIZE, 4, NAMED)


def test_products_are_differentiated_in_the_conditional_rows_alone() -> None:
    """Four rows conditional, three not: the two dear products cost four sevenths of what autograd would spend."""
    model, latents = Toy(), noise(3, *SIZE)
    gradient = gradient_of(model)

    def backward_flops(ours: bool) -> int:
        with torch.no_grad(), beside(gradient, proved=True) as late:
            if ours:
                host(model, latents, [7])
            else:
                whole = ProductsOfRows.__torch_function__
                ProductsOfRows.__torch_function__ = lambda self, func, types, args=(), kwargs=None: func(  # type: ignore[method-assign,assignment]
                    *args, **(kwargs or {})
                )
                try:
                    host(model, latents, [7])
                finally:
                    ProductsOfRows.__torch_function__ = whole  # type: ignore[method-assign]
        with FlopCounterMode(display=False) as counter:
            late.take(SIZE, 4, NAMED)
        counts = counter.get_flop_counts()["Global"]
        return sum(n for op, n in counts.items() if "convolution" in str(op))

    ours, whole = backward_flops(True), backward_flops(False)
    assert whole > 0
    assert ours * 7 == whole * 4


class Mixing(Toy):
    """A denoiser that lets its rows see each other."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = torch.tanh(self.enter(x))
        h = h + h.roll(1, 0)
        h = torch.tanh(self.down(self.enter(x) + h))
        h = self._attend(self.coarse, h, context)
        h = self._attend(self.coarse2, h, context)
        return self.leave(h)


def test_a_denoiser_that_mixes_its_rows_is_noticed_and_the_host_keeps_its_pass() -> None:
    model, latents = Mixing(), noise(3, *SIZE)
    with torch.no_grad():
        plain = host(model, latents, [7])
        with beside(gradient_of(model)) as late:
            seen = host(model, latents, [7])
    assert torch.equal(plain[0], seen[0])
    with pytest.raises(GradientCut, match="mixed"):
        late.take(SIZE, 4, NAMED)


class Cutting(nn.Module):
    """An attention without a backward, in a class of its own."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.own = own.to_q, own.to_k, own.to_v, [own]
        self.heads, self.scale = own.heads, own.scale

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.own[0](x.detach(), context.detach()).detach()  # type: ignore[operator]


def test_a_gradient_that_something_cuts_is_told() -> None:
    model, latents = Toy(), noise(3, *SIZE)
    model.coarse = Cutting(model.coarse)  # type: ignore[assignment]
    with torch.no_grad():
        plain = host(model, latents, [7])
        with beside(gradient_of(model)) as late:
            seen = host(model, latents, [7])
    assert torch.equal(plain[0], seen[0])
    with pytest.raises((GradientCut, AttentionReplaced)):
        late.take(SIZE, 4, NAMED)


@contextmanager
def failing(module: nn.Module, error: Exception, times: int) -> Any:
    left = [times]

    def fail(*_: Any) -> None:
        if torch.is_grad_enabled() and left[0]:
            left[0] -= 1
            raise error

    handle = module.register_forward_hook(fail)
    yield
    handle.remove()


@pytest.mark.parametrize("error", [MemoryError("out of memory"), RuntimeError("no kernel")], ids=str)
@pytest.mark.parametrize("chunks", [[7], [3, 3, 1]], ids=str)
@pytest.mark.parametrize("place", ["enter", "coarse", "coarse2"])
def test_where_it_fails_the_host_gets_its_pass_and_the_reason_is_told(
    error: Exception, chunks: list[int], place: str
) -> None:
    model, latents = Toy(), noise(3, *SIZE)
    with torch.no_grad():
        plain = host(model, latents, chunks)
        # The last layer is behind the graph's end: nothing of ours is at work there.
        with failing(getattr(model, place), error, 1), beside(gradient_of(model)) as late:
            seen = host(model, latents, chunks)
    assert all(torch.equal(a, b) for a, b in zip(plain, seen))
    if place == "coarse2":
        late.take(SIZE, 4, NAMED)
    else:
        with pytest.raises(type(error), match=str(error)):
            late.take(SIZE, 4, NAMED)
    assert not late.leaves or place == "coarse2"


def test_the_hosts_own_failure_is_its_own() -> None:
    model, latents = Toy(), noise(3, *SIZE)

    def fail(*_: Any) -> None:
        raise KeyError("the host's")

    handle = model.leave.register_forward_hook(fail)
    with pytest.raises(KeyError, match="the host's"), torch.no_grad(), beside(gradient_of(model)):
        host(model, latents, [7])
    handle.remove()
    assert "forward" not in vars(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_scale_at_which_the_gradient_is_finite_is_found_on_the_same_pass() -> None:
    model, latents = Toy(), noise(3, *SIZE)
    gradient = gradient_of(model)
    gradient.scaled = True
    gradient.learned.scale.exponent = 16

    def overflow(grad: Tensor) -> Tensor:
        return torch.where(grad.abs() > 2.0**-9, torch.inf, grad) if gradient.learned.scale.exponent > 3 else grad

    def watch(_: Any, __: Any, made: Tensor) -> None:
        if made.requires_grad:
            made.register_hook(overflow)

    model.down.register_forward_hook(watch)
    with torch.no_grad(), beside(gradient) as late:
        host(model, latents, [7])
    _, found = late.take(SIZE, 4, NAMED)
    assert gradient.learned.scale.exponent < 16
    model.down._forward_hooks.clear()
    expected = by_own_pass(gradient_of(model), latents)
    torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-3, atol=1e-6)


def test_what_no_scale_makes_finite_is_told() -> None:
    model, latents = Toy(), noise(3, *SIZE)

    def watch(_: Any, __: Any, made: Tensor) -> None:
        if made.requires_grad:
            made.register_hook(lambda grad: grad * torch.inf)

    model.down.register_forward_hook(watch)
    with torch.no_grad(), beside(gradient_of(model)) as late:
        host(model, latents, [7])
    with pytest.raises(NonFinite):
        late.take(SIZE, 4, NAMED)


def test_parameters_keep_their_flags_and_take_no_gradient() -> None:
    model, latents = Toy(), noise(3, *SIZE)
    model.enter.weight.requires_grad_(False)
    before = [one.requires_grad for one in model.parameters()]
    assert set(before) == {True, False}
    with torch.no_grad(), beside(gradient_of(model)) as late:
        host(model, latents, [7])
        assert [one.requires_grad for one in model.parameters()] == before
    late.take(SIZE, 4, NAMED)
    assert all(one.grad is None for one in model.parameters())
    assert PLANS[1].names == ()


def test_what_will_not_fit_is_known_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    model, latents = Toy(), noise(3, *SIZE)
    gradient = gradient_of(model)
    gradient.layers = model.layers("fine", "coarse", "coarse2")
    assert gradient.late_fits(latents, NAMED)  # nothing is known of the CPU's
    needed = memory.kept_bytes(gradient.layers, gradient.layers[-1:], SIZE, 3, 4)
    for there, fits in ((3 * needed, True), (2 * needed, False)):  # a fifth is left free
        monkeypatch.setattr(memory, "free", lambda _, there=there: there)
        assert gradient.late_fits(latents, NAMED) is fits


def test_attention_is_the_hosts_kernel_forward_and_not_cudnns_where_it_is_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered = []

    @contextmanager
    def noted() -> Any:
        entered.append(torch.is_grad_enabled())
        with without_cudnn_attention():
            yield

    monkeypatch.setattr(late, "without_cudnn_attention", noted)
    parts = [torch.randn(2, 1, 16, 8, requires_grad=True) for _ in range(3)]
    with ProductsOfRows([1], 2):
        made = functional.scaled_dot_product_attention(*parts)
    assert not entered
    found = torch.autograd.grad(made[1].square().sum(), parts)
    assert entered == [True]
    exact = torch.autograd.grad(functional.scaled_dot_product_attention(*parts)[1].square().sum(), parts)
    for own, other in zip(found, exact):
        torch.testing.assert_close(own, other)
