"""How a gradient is had: one conditional pass, differentiated by the latents alone.

What it costs in memory and what half precision needs are decided here; the method that uses the gradient
(``guidance.py``) knows nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import memory
from .differentiable import GradientCut, GradientsOn, Proof, cuts_told, proving
from .maps import Capture, CrossAttentionLayer, MapReader, full_precision, no_autocast
from .memory import Thrift

T = TypeVar("T")
Context = Callable[[], AbstractContextManager[Any]]
Pass = Callable[[Tensor, Sequence[int]], object]
"""``run(latents, images)``: the denoiser's conditional pass on the latents ``[k, ...]`` of the k
images named by their index in the batch. Rows are image-major, an image's AND parts consecutive."""


NumberOfEach = Callable[[Tensor, Tensor], Tensor]
"""Of latents ``[k, ...]`` and the gradient by them, a number an image ``[k]``."""


def rows(batch: Tensor, images: Sequence[int]) -> Tensor:
    """Of ``batch`` ``[batch, ...]`` the rows ``images``, and ``batch`` itself where they are all of it, in order.

    An index made in Python would make the CPU wait for the device.
    """
    if list(images) == list(range(len(batch))):
        return batch
    return torch.stack([batch[image] for image in images]) if images else batch[:0]


class NonFinite(ArithmeticError):
    """A loss, a gradient or an update is not a finite number."""


class LossAndGradient(NamedTuple):
    """Of k images."""

    losses: Tensor
    """``[k]``, on the CPU."""
    gradient: Tensor
    """Like the latents ``[k, ...]``."""
    maps: list[Tensor]
    """Of each image ``[entities, h, w]``, detached."""
    beside: Tensor = torch.empty(0)
    """``[k]``, on the CPU: what was asked for beside them."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes a gradient inside; each one's ``requires_grad`` is restored after."""
    # An inference tensor takes none anyway, and torch forbids to switch it back.
    before = [one for one in model.parameters() if one.requires_grad and not one.is_inference()]
    for parameter in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in before:
            parameter.requires_grad_(True)


_CONVOLUTIONS = ("ResnetBlock2D", "ResBlock")
"""How diffusers and latent-diffusion call the blocks that hold no attention."""


def _blocks(model: nn.Module, last: CrossAttentionLayer, layers: Sequence[CrossAttentionLayer]) -> list[nn.Module]:
    """What can be computed again as a whole: the blocks that do not hold the layer at which a pass ends.

    Those are blocks of convolutions, and those of the kind in which ``layers`` stand, whatever their family calls
    them. Those with forward pre-hooks are among them, as such a hook may be what brings a module's weights back to
    the device (A1111's --lowvram, whose blocks hold the usual ones).
    """
    attentions = {layer.module for layer in (*layers, last)}
    kinds = {type(block) for block in model.modules() if not attentions.isdisjoint(block.children())}
    return [
        block
        for block in model.modules()
        if (type(block).__name__ in _CONVOLUTIONS or type(block) in kinds or block._forward_pre_hooks)
        and block is not model
        and any(True for _ in block.children())
        and all(module is not last.module for module in block.modules())
    ]


def weights_on_the_way(model: nn.Module, last: CrossAttentionLayer, recompute: bool, in_8_bits: bool = False) -> int:
    """Numbers in the weights of a pass that ends at ``last``, without those of blocks that are computed again.

    ``model``'s modules stand in order of execution, as in ldm's UNets. A host that casts weights at each call has a
    copy of these in the graph until the gradient is taken; of weights in 8 bits, which alone are counted with
    ``in_8_bits``, every host has one, as nothing is computed in 8 bits.
    """

    def count_of(module: nn.Module, recurse: bool) -> int:
        own = module.parameters(recurse)
        return sum(one.numel() for one in own if not in_8_bits or one.element_size() == 1)

    again = {part for block in _blocks(model, last, [last]) for part in block.modules()} if recompute else set()
    count = 0
    for module in model.modules():
        if module is last.module:
            break
        if module not in again:
            count += count_of(module, recurse=False)
    return count + count_of(last.module, recurse=True)


@contextmanager
def recomputed(
    model: nn.Module,
    last: CrossAttentionLayer,
    within: Context = nullcontext,
    layers: Sequence[CrossAttentionLayer] = (),
) -> Iterator[None]:
    """Blocks keep no activations inside; they are computed again, ``within`` a context, for the gradient.

    Left alone is the block that holds ``last``, the layer at which the pass ends. ``layers``: all of the model's.
    """
    blocks = _blocks(model, last, layers)
    before = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.forward = _computed_twice(block, block.forward, within)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _computed_twice(block: nn.Module, forward: Callable[..., Any], within: Context) -> Callable[..., Any]:
    def compute(*args: Any, **kwargs: Any) -> Any:
        again = False

        def body(*args: Any, **kwargs: Any) -> Any:
            nonlocal again
            if again:
                for key, hook in block._forward_pre_hooks.items():
                    given = (args, kwargs) if key in block._forward_pre_hooks_with_kwargs else (args,)
                    hook(block, *given)
            again = True
            return forward(*args, **kwargs)

        return checkpoint(body, *args, use_reentrant=False, context_fn=lambda: (within(), within()), **kwargs)

    return compute


@dataclass
class LossScale:
    """What losses are multiplied with before they are differentiated in fp16, and gradients divided by after.

    Without, half of the numbers inside a UNet fall below what fp16 can hold. As in mixed-precision training, a
    gradient that is not finite halves the scale, and the pass is repeated; many that are double it.
    """

    exponent: int = 12
    patience: int = 20
    """Finite gradients in a row before the scale is doubled."""
    highest: int = 16
    _finite: int = field(default=0, init=False)

    @property
    def factor(self) -> float:
        """A power of two, at least 1."""
        return 2.0**self.exponent

    def keep(self) -> None:
        """A gradient was finite."""
        self._finite += 1
        if self._finite >= self.patience and self.exponent < self.highest:
            self.exponent, self._finite = self.exponent + 1, 0

    def lower(self, failures: int) -> bool:
        """A gradient was not, nor were the ``failures`` before it in the same pass; is there a lower scale to try?

        Each of these failures lowers it by twice as many powers of two: what no scale cures is told after five passes.
        """
        self._finite = 0
        if self.exponent == 0:
            return False
        self.exponent = max(0, self.exponent - 2**failures)
        return True


@dataclass
class LearnedInRun:
    """What a run has found out about its model and machine, kept when its guide is made anew."""

    thrift: Thrift = field(default_factory=Thrift)
    scale: LossScale = field(default_factory=LossScale)
    foreseen: bool = False
    """Was the memory looked at before the first gradient?"""
    exact_since: str = ""
    """From which step on, and why, gradients are exact though late ones were wanted; empty where they are not."""


@dataclass
class LossGradient:
    """The loss of images' maps, and its gradient by their latents.

    Called as ``(latents [k, ...], images, run)``, ``images`` naming the k by their index in the batch.
    ``loss`` takes maps ``[1, entities, h, w]`` and gives ``[1]``. The first gradient proves itself whole; where the
    denoiser's attention cuts it, ``instead`` puts another in its place.
    """

    model: nn.Module
    reader: MapReader
    loss: Callable[[Tensor], Tensor]
    learned: LearnedInRun = field(default_factory=LearnedInRun)
    recomputing: Context = nullcontext
    """What a block runs in that is computed twice."""
    instead: Context | None = None
    scaled: bool | None = None
    """Is the loss multiplied by the scale? None: where the denoiser computes in fp16."""
    layers: Sequence[CrossAttentionLayer] = ()
    """All of the model's, to estimate a pass's memory by."""
    focused: Callable[[Tensor], Tensor] | None = None
    """Takes an image's maps ``[entities, h, w]`` and leaves a gradient to those that the step is to move."""
    proved: bool = field(default=False, init=False)
    """Has a gradient been seen to pass everything on its way?"""
    replacing: bool = field(default=False, init=False)
    """Is the denoiser's attention replaced?"""

    def __call__(
        self, latents: Tensor, images: Sequence[int], run: Pass, beside: NumberOfEach | None = None
    ) -> LossAndGradient:
        """The losses and their gradient, and what is wanted ``beside`` them, in the same copy to the CPU.

        Where memory ends, the pass is tried again one image at a time, then with blocks computed twice. Raises
        NonFinite when a loss or a gradient is not finite, and whatever the denoiser raises.
        """
        self.foresee(latents, images)

        def whole() -> LossAndGradient:
            parts = [
                self._finite(rows(latents, own), [images[k] for k in own], run, beside)
                for own in self._passes(len(images))
            ]
            losses, gradients, maps, numbers = zip(*parts)
            return LossAndGradient(
                torch.cat(losses), torch.cat(gradients), [one for own in maps for one in own], torch.cat(numbers)
            )

        return self._as_memory_allows(whole, len(images))

    @torch.no_grad()
    def look(self, latents: Tensor, images: Sequence[int], run: Pass) -> tuple[Tensor, list[Tensor]]:
        """Losses ``[k]``, on the latents' device, and maps, without a gradient."""

        def whole() -> tuple[Tensor, list[Tensor]]:
            losses, maps = [], []
            for own in self._passes(len(images)):
                chosen = [images[k] for k in own]
                with self.reader.reading() as capture:
                    found, values = self._losses(capture, rows(latents, own), chosen, run)
                maps += found
                losses.append(values)
            return torch.cat(losses), maps

        return self._as_memory_allows(whole, len(images))

    def differentiate(self, latents: Tensor, images: Sequence[int], run: Pass) -> tuple[LossAndGradient, float]:
        """What one pass gives, its numbers unchecked, its losses still on the latents' device; and the scale at which
        it was differentiated, which the gradient is without.

        Raises GradientCut.
        """
        if not self.replacing:
            try:
                return self._differentiate(latents, images, run)
            except GradientCut as cut:
                if self.instead is None:
                    raise
                found = cut
        with self.instead() if self.instead else nullcontext():
            try:
                made = self._differentiate(latents, images, run)
            except GradientCut as cut:
                raise cut if self.replacing else found from cut
        self.replacing = True
        return made

    def _differentiate(self, latents: Tensor, images: Sequence[int], run: Pass) -> tuple[LossAndGradient, float]:
        last = self.reader.layers[-1]
        recomputing = recomputed(self.model, last, self._again, self.layers or self.reader.layers)
        saving = recomputing if self.learned.thrift.recompute else nullcontext()
        # The hooks stay on for what is computed again: the maps' own part of it belongs to the blocks.
        with torch.enable_grad(), frozen(self.model), saving, self.reader.reading() as capture:
            leaf = latents.detach().clone().requires_grad_()
            proof = Proof()
            with GradientsOn():
                watched = run if self.proved else self._proving(run, proof)
                maps, losses = self._losses(capture, leaf, images, watched)
            proof.check(leaf)
            scaled = capture.dtype == torch.float16 if self.scaled is None else self.scaled
            scale = self.learned.scale.factor if scaled else 1.0
            with no_autocast(leaf.device), cuts_told():
                (gradient,) = torch.autograd.grad(losses.sum() * scale, leaf)
                if scale != 1:
                    gradient = gradient.float() / scale
            self.proved = self.proved or proof.check(leaf, gradient)
        return LossAndGradient(losses.detach(), gradient, [own.detach() for own in maps]), scale

    @contextmanager
    def _again(self) -> Iterator[None]:
        """What a block runs in that is computed twice."""
        with self.recomputing(), GradientsOn():
            yield

    def _proving(self, run: Pass, proof: Proof) -> Pass:
        def watched(latents: Tensor, images: Sequence[int]) -> object:
            with proving(self.model, self.reader.layers, proof):
                return run(latents, images)

        return watched

    def _losses(
        self, capture: Capture, latents: Tensor, images: Sequence[int], run: Pass
    ) -> tuple[list[Tensor], Tensor]:
        with capture.passing():
            run(latents, images)
        with full_precision(latents.device):
            maps = self.reader.maps(capture, latents.shape[-2:], images)
            return maps, self.losses_of(maps)

    def losses_of(self, maps: Iterable[Tensor]) -> Tensor:
        """``[k]``, of each image's maps ``[entities, h, w]``."""
        return torch.cat([self.loss((self.focused(own) if self.focused else own)[None]) for own in maps])

    def _finite(
        self, latents: Tensor, images: Sequence[int], run: Pass, beside: NumberOfEach | None
    ) -> LossAndGradient:
        """:meth:`differentiate` with a scale at which the gradient is finite; its numbers are on the CPU."""
        failures = 0
        while True:
            found, scale = self.differentiate(latents, images, run)
            finite = torch.isfinite(found.gradient).all().to(found.losses.dtype)
            more = [beside(latents, found.gradient)] if beside else []
            # One copy to the CPU, as each waits for the device.
            told = torch.cat([finite[None], found.losses, *more]).cpu()
            losses, numbers = told[1 : 1 + len(images)], told[1 + len(images) :]
            if not torch.isfinite(losses).all():
                raise NonFinite("the loss is not finite")
            if told[0]:
                if scale != 1:
                    self.learned.scale.keep()
                return found._replace(losses=losses, beside=numbers)
            if scale == 1 or not self.learned.scale.lower(failures):
                raise NonFinite("the gradient is not finite")
            failures += 1

    def _passes(self, count: int) -> list[list[int]]:
        """Which of ``count`` images go through the denoiser together."""
        return [[k] for k in range(count)] if self.learned.thrift.one_at_a_time else [list(range(count))]

    def foresee(self, latents: Tensor, images: Sequence[int]) -> None:
        """Before a run's first gradient, choose what is likely to fit into the memory that is free."""
        if self.learned.foreseen:
            return
        self.learned.foreseen = True
        there = self._free(latents)
        if there is not None:
            self.learned.thrift.foresee(len(images), self._needed(latents, images), there)

    def late_fits(self, latents: Tensor, images: Sequence[int]) -> bool:
        """Will what the host's own pass has to keep fit, where that is known? About twice what a pass of these images
        alone keeps, as what is cheap is kept of the unconditional rows, too (``bench --parts shapes``)."""
        there = self._free(latents)
        return there is None or memory.fits(2 * self._needed(latents, images), there)

    def _free(self, latents: Tensor) -> int | None:
        """Bytes that are free beside the copies of weights in 8 bits; None where that can't be known."""
        there = memory.free(latents.device)
        if there is None or not self.layers:
            return None
        last, again = self.reader.layers[-1], self.learned.thrift.recompute
        return max(0, there - self._width(latents) * weights_on_the_way(self.model, last, again, in_8_bits=True))

    def _needed(self, latents: Tensor, images: Sequence[int]) -> int:
        """Bytes that a gradient of these images keeps, estimated."""
        rows, size = sum(self.reader.images[i].parts for i in images), (latents.shape[-2], latents.shape[-1])
        return memory.kept_bytes(self.layers, self.reader.layers, size, rows, self._width(latents))

    def _width(self, latents: Tensor) -> int:
        """Bytes of a number, at least those of half precision."""
        return max(2, next(self.model.parameters(), latents).element_size())

    def _as_memory_allows(self, attempt: Callable[[], T], images: int) -> T:
        while True:
            try:
                return attempt()
            except Exception as error:
                if not memory.is_out_of_memory(error) or not self.learned.thrift.tighten(images):
                    raise
            # Behind the except clause, as the exception's frames hold the tensors of the failed pass.
            memory.give_back()
