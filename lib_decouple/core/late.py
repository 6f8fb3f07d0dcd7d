"""A gradient of the host's own pass, for updates that come one step late: guidance without a pass of its own.

The host's pass of a step runs with a gradient as far as the last layer that is read, and gives the host what it gives
without, to the bit. Its dear products are differentiated in the conditional rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

from . import memory
from .differentiable import GradientCut, GradientsOn, Proof, cuts_told, proving, without_cudnn_attention
from .gradient import Context, LossAndGradient, LossGradient, NonFinite
from .host_pass import ConditionalRows, HostPass, reading_beside
from .maps import full_precision, no_autocast


class _Product(torch.autograd.Function):
    """A ``product`` of ``inputs``, made as without a gradient; ``backward`` is asked for their gradients' ``rows``."""

    @staticmethod
    def forward(
        ctx: Any, product: Callable[..., Tensor], backward: Any, rows: slice, seen: Any, *inputs: Tensor
    ) -> Any:
        ctx.backward_of, ctx.rows, ctx.seen = backward, rows, seen
        ctx.like = [(one.shape, one.dtype) for one in inputs]
        made = product(*inputs)
        if not made._is_view():
            return made
        # A view made in here could not be written to in place, as Forge does; this is none, on the same memory.
        alone = torch.empty(0, dtype=made.dtype, device=made.device)
        return alone.set_(made.untyped_storage(), made.storage_offset(), made.size(), made.stride())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), own = gradients, ctx.rows
        if ctx.seen is not None:
            ctx.seen.append(gradient[: own.start].any() | gradient[own.stop :].any())
        found: list[Tensor | None] = []
        for part, (shape, dtype) in zip(ctx.backward_of(gradient[own], ctx.needs_input_grad[4:]), ctx.like):
            found.append(None if part is None else gradient.new_zeros(shape, dtype=dtype))
            if found[-1] is not None:
                found[-1][own] = part
        return (None, None, None, None, *found)


def _of_linear(weight: Tensor, gradient: Tensor, _: object) -> list[Tensor]:
    return [gradient @ weight.to(gradient.dtype)]


def _of_convolution(weight: Tensor, shape: torch.Size, how: Sequence[Any], gradient: Tensor, _: object) -> list[Tensor]:
    size = torch.Size((len(gradient), *shape[1:]))
    return [conv2d_input(size, weight.to(gradient.dtype), gradient, *how)]


def _of_attention(
    attend: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Computed again, as its kernel was chosen for a pass without a gradient."""
    with torch.enable_grad(), without_cudnn_attention():
        own = [one.detach().requires_grad_(wanted) for one, wanted in zip(inputs, needed)]
        found = iter(torch.autograd.grad(attend(*own), [one for one in own if one.requires_grad], gradient))
    return [next(found) if wanted else None for wanted in needed]


class ProductsOfRows(TorchFunctionMode):
    """Inside, a denoiser's dear products (linear layers, convolutions, torch's attention) are made as without a
    gradient, to the bit, and differentiated by their inputs alone, in some ``rows`` of a batch of ``total``.

    Right where no other row's gradient is anything but zero, as where the loss is of these rows and no operation mixes
    them; ``outside``, where it is a list, gets of each product whether it was otherwise. To take a weight's
    ``requires_grad`` away instead would change which kernel torch chooses.
    """

    def __init__(self, rows: Sequence[int], total: int, outside: list[Tensor] | None = None) -> None:
        super().__init__()
        self._first = min(rows)
        self._end = max(rows) + 1
        self._total = total
        self._outside = outside

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        x = args[0] if args else None
        if func not in _PRODUCTS or not torch.is_grad_enabled() or not isinstance(x, Tensor) or not x.ndim:
            return func(*args, **given)
        count, (each, rest) = _PRODUCTS[func], divmod(len(x), self._total)
        # What the rows do not make up, as of a time embedding for all of them, takes no gradient by any.
        own = slice(self._first * each, self._end * each) if each and not rest else slice(0, len(x))
        backward = self._backward(func, args, given, own)
        if backward is None:
            return func(*args, **given)

        def product(*inputs: Tensor) -> Any:
            return func(*inputs, *args[count:], **given)

        return _Product.apply(product, backward, own, self._outside, *args[:count])  # type: ignore[no-untyped-call]

    @staticmethod
    def _backward(func: Any, args: Sequence[Any], given: Mapping[str, Any], own: slice) -> Any:
        """Of the gradient by a product's rows those by the inputs'; None for what stays autograd's."""
        x, *more = args
        if func is functional.scaled_dot_product_attention:
            alike = len(args) == 3 and all(len(one) == len(x) for one in more)
            if not alike or not given.keys() <= {"attn_mask", "dropout_p", "is_causal", "scale"}:
                return None
            if given.get("attn_mask") is not None or given.get("dropout_p"):
                return None
            return partial(_of_attention, partial(func, **given), [one[own].detach() for one in args])
        if len(args) < 2 or not given.keys() <= {"bias"}:
            return None
        weight = more[0].detach()  # as it is now: hosts of weights in 8 bits take it away before the gradient is taken
        if func is functional.linear:
            return partial(_of_linear, weight)
        if x.ndim != 4 or any(isinstance(one, str) for one in args[3:]):
            return None
        return partial(_of_convolution, weight, x.shape, tuple(args[3:]))


_PRODUCTS = {functional.linear: 1, functional.conv2d: 1, functional.scaled_dot_product_attention: 3}
"""With how many of their arguments, the first, a gradient may come in."""


class GradientLeaf(NamedTuple):
    """What the gradient is taken by: the input of one call of the denoiser."""

    batch: Tensor
    """``[rows, channels, ...]``."""
    numbers: Mapping[int, int]
    """Row -> number of a conditional row of the pass, of images with entities."""


@dataclass
class LatePass:
    """One of the host's passes with what its gradient is taken by; made by :func:`differentiated_beside`."""

    gradient: LossGradient
    passed: HostPass
    within: Context
    proof: Proof | None
    outside: list[Tensor] | None
    leaves: list[GradientLeaf] = field(default_factory=list)

    def call(self, forward: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """``forward`` of what the host hands to its denoiser: what it gives by itself, whatever happens in here."""
        passed, parts = self.passed, [plan.parts for plan in self.gradient.reader.images]
        wanted = {n for image in self.gradient.reader.named for n in range(sum(parts[:image]), sum(parts[: image + 1]))}
        numbers = {row: n for row, n in passed.in_call.items() if n in wanted}
        if passed.fault is None and numbers:
            try:
                return self._with_a_gradient(forward, args, given, numbers)
            except Exception as error:
                passed.fault = error.with_traceback(None)  # whose frames hold the tensors of the failed call
            self.leaves.clear()
            memory.give_back()
        return forward(*args, **given)

    def _with_a_gradient(
        self, forward: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any], numbers: Mapping[int, int]
    ) -> Any:
        source = self.gradient
        name = "" if args else next(iter(given))
        batch: Tensor = args[0] if args else given[name]
        with ExitStack() as stack:
            stack.enter_context(self.within())
            stack.enter_context(torch.enable_grad())
            on = stack.enter_context(GradientsOn(any_kernel=True))  # the host's own
            stack.enter_context(ProductsOfRows(list(numbers), len(batch), self.outside))
            if self.proof is not None and not self.leaves:
                stack.enter_context(proving(source.model, source.reader.layers, self.proof))
            self.passed.over = on.end
            leaf = batch.detach().clone().requires_grad_()
            self.leaves.append(GradientLeaf(leaf, numbers))
            own = leaf.clone()  # what the denoiser writes to in place must be no leaf
            made = forward(*((own, *args[1:]) if args else ()), **({name: own} if name else {}), **_but(given, name))
            return _detached(made)

    def take(self, size: Sequence[int], channels: int, images: Sequence[int]) -> tuple[list[int], LossAndGradient]:
        """Those of ``images`` whose rows were all there; of these the losses, and the gradient by the first
        ``channels`` of the denoiser's input ``[k, channels, ...]``, summed over an image's AND parts.

        ``size`` is the latents' height and width. Raises what went wrong during the pass, GradientCut, and NonFinite
        where no scale makes the gradient finite.
        """
        with self.within(), torch.enable_grad():
            maps, losses = self.losses(size, images)
            told, by_leaf = self._finite(losses)
        rows = {n: one[row, :channels] for leaf, one in zip(self.leaves, by_leaf) for row, n in leaf.numbers.items()}
        parts = [plan.parts for plan in self.gradient.reader.images]
        image_of = [image for image, count in enumerate(parts) for _ in range(count)]
        gradient = torch.stack([torch.stack([rows[n] for n in rows if image_of[n] == k]).sum(0) for k in maps])
        return list(maps), LossAndGradient(told, gradient, [own.detach() for own in maps.values()])

    def losses(self, size: Sequence[int], images: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Maps ``[entities, h, w]`` of each of ``images`` whose rows were all there, and their losses."""
        maps = self.passed.maps(size, images)
        with full_precision(self.leaves[0].batch.device):
            return maps, self.gradient.losses_of(maps.values())

    def differentiate(self, losses: Tensor, scale: float = 1.0, again: bool = False) -> list[Tensor]:
        """By each leaf, numbers unchecked; ``again``: may this be asked once more? Raises GradientCut."""
        leaves = [leaf.batch for leaf in self.leaves]
        with no_autocast(losses.device), cuts_told():
            taken = torch.autograd.grad(losses.sum() * scale, leaves, retain_graph=again, allow_unused=True)
        if all(one is None for one in taken):
            raise GradientCut(told="no gradient reaches the latents of the sampler's own pass")
        found = [torch.zeros_like(leaf) if one is None else one for one, leaf in zip(taken, leaves)]
        return found if scale == 1 else [one.float() / scale for one in found]

    def _finite(self, losses: Tensor) -> tuple[Tensor, list[Tensor]]:
        """:meth:`differentiate` with a scale at which the gradient is finite; the losses are on the CPU."""
        learned, failures = self.gradient.learned, 0
        scaled = self.passed.dtype == torch.float16 if self.gradient.scaled is None else self.gradient.scaled
        while True:
            scale = learned.scale.factor if scaled else 1.0
            found = self.differentiate(losses, scale, again=scale != 1)
            finite = torch.stack([torch.isfinite(one).all() for one in found]).all().to(losses.dtype)
            told = torch.cat([finite[None], losses.detach()]).cpu()
            if not torch.isfinite(told[1:]).all():
                raise NonFinite("the loss is not finite")
            if told[0]:
                if scale != 1:
                    learned.scale.keep()
                self._check(found)
                return told[1:], found
            if self.outside:
                self.outside.clear()
            if scale == 1 or not learned.scale.lower(failures):
                raise NonFinite("the gradient is not finite")
            failures += 1

    def _check(self, taken: Sequence[Tensor]) -> None:
        """Once a run: has everything on the way added to the gradient, and nothing beside the conditional rows?"""
        if self.outside and bool(torch.stack(self.outside).any()):
            raise GradientCut(told="rows of the sampler's own pass are mixed, so that none can be taken for itself")
        if self.outside is not None:
            self.outside.clear()
        if self.proof is not None and self.proof.check(self.leaves[0].batch, taken[0]):
            self.proof, self.outside = None, None

    def drop(self) -> None:
        """Let go of what the gradient is taken by."""
        self.leaves.clear()
        self.passed.forget()

    @property
    def proved(self) -> bool:
        """Has the gradient been seen to pass everything on its way?"""
        return self.proof is None


@contextmanager
def differentiated_beside(
    gradient: LossGradient, rows: Callable[[], ConditionalRows], within: Context = nullcontext, proved: bool = False
) -> Iterator[LatePass]:
    """Have the host make a pass of its own in the body, whose gradient can be taken behind it.

    ``within``: inside, gradients can be taken through the denoiser as the host has it. The host gets what its pass
    gives by itself, as do failures of the body; our own are told by :meth:`LatePass.take`. ``proved``: was an earlier
    pass's gradient seen to be whole?
    """
    model = gradient.model
    with reading_beside(model, gradient.reader, rows, graph=True) as passed:
        late = LatePass(gradient, passed, within, None if proved else Proof(), None if proved else [])
        before = vars(model).get("forward")
        forward = model.forward
        model.forward = lambda *args, **given: late.call(forward, args, given)
        try:
            yield late
        finally:
            if before is None:
                del model.forward
            else:
                model.forward = before


def _but(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key != name}


def _detached(value: Any) -> Any:
    """Without what autograd knows of it, where the last layer was not reached."""
    if isinstance(value, Tensor):
        return value.detach() if value.requires_grad else value
    if type(value) in (tuple, list):
        return type(value)(map(_detached, value))
    return value
