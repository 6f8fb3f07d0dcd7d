"""How a gradient is had: one conditional pass, differentiated by the latents alone.

What it costs in memory and what half precision needs are decided here; the method that uses the gradient
(``guidance.py``) knows nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .differentiable import GradientCut, GradientsOn, Proof, cuts_told, proving
from .maps import CrossAttentionLayer, MapReader, full_precision

Context = Callable[[], AbstractContextManager[Any]]
Pass = Callable[[Tensor, Sequence[int]], object]
"""``run(latents, images)``: the denoiser's conditional pass on the latents ``[k, ...]`` of the k
images named by their index in the batch. Rows are image-major, an image's AND parts consecutive."""


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


@contextmanager
def recomputed(
    model: nn.Module, layers: Sequence[CrossAttentionLayer], within: Context = nullcontext
) -> Iterator[None]:
    """Blocks that hold none of ``layers`` keep no activations inside; they are computed again, ``within`` a context,
    for the gradient."""
    read = {layer.module for layer in layers}
    blocks = [
        block
        for block in model.modules()
        if type(block).__name__ in ("ResnetBlock2D", "ResBlock", "BasicTransformerBlock")
        and read.isdisjoint(block.modules())
    ]
    before = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=lambda: (within(), within()))
    try:
        yield
    finally:
        for block, forward in zip(blocks, before):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


@dataclass
class LossGradient:
    """The loss of images' maps, and its gradient by their latents.

    Called as ``(latents [k, ...], images, run)``, ``images`` naming the k by their index in the batch.
    ``loss`` takes maps ``[1, entities, h, w]`` and gives ``[1]``. ``one_at_a_time`` bounds memory by one image
    a pass; ``recompute`` by computing most blocks twice, ``recomputing`` being what they run in. The first gradient
    proves itself whole; where the denoiser's attention cuts it, ``instead`` puts another in its place.
    """

    model: nn.Module
    reader: MapReader
    loss: Callable[[Tensor], Tensor]
    one_at_a_time: bool = False
    recompute: bool = False
    recomputing: Context = nullcontext
    instead: Context | None = None
    proved: bool = field(default=False, init=False)
    """Has a gradient been seen to pass everything on its way?"""
    replacing: bool = field(default=False, init=False)
    """Is the denoiser's attention replaced?"""

    def __call__(self, latents: Tensor, images: Sequence[int], run: Pass) -> LossAndGradient:
        """Raises NonFinite when a loss or a gradient is not finite, and whatever the denoiser raises."""
        parts = [
            self._checked(self.differentiate(latents[own], [images[k] for k in own], run))
            for own in self._passes(len(images))
        ]
        losses, gradients, maps = zip(*parts)
        return LossAndGradient(torch.cat(losses), torch.cat(gradients), [one for own in maps for one in own])

    @torch.no_grad()
    def look(self, latents: Tensor, images: Sequence[int], run: Pass) -> tuple[Tensor, list[Tensor]]:
        """Losses ``[k]``, on the CPU, and maps, without a gradient."""
        losses, maps = [], []
        for own in self._passes(len(images)):
            found, values = self._losses(latents[own], [images[k] for k in own], run)
            maps += found
            losses.append(values)
        return torch.cat(losses).cpu(), maps

    def differentiate(self, latents: Tensor, images: Sequence[int], run: Pass) -> LossAndGradient:
        """What one pass gives, its numbers unchecked; its losses are still on the latents' device.

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

    def _differentiate(self, latents: Tensor, images: Sequence[int], run: Pass) -> LossAndGradient:
        saving = recomputed(self.model, self.reader.layers, self._again) if self.recompute else nullcontext()
        with torch.enable_grad(), frozen(self.model), saving:
            leaf = latents.detach().clone().requires_grad_()
            proof = Proof()
            with GradientsOn():
                maps, losses = self._losses(leaf, images, run if self.proved else self._proving(run, proof))
            proof.check(leaf)
            with full_precision(leaf.device), cuts_told():
                (gradient,) = torch.autograd.grad(losses.sum(), leaf)
            self.proved = self.proved or proof.check(leaf, gradient)
        return LossAndGradient(losses.detach(), gradient, [own.detach() for own in maps])

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

    def _losses(self, latents: Tensor, images: Sequence[int], run: Pass) -> tuple[list[Tensor], Tensor]:
        with self.reader.reading() as capture:
            run(latents, images)
        with full_precision(latents.device):
            maps = self.reader.maps(capture, latents.shape[-2:], images)
            return maps, torch.cat([self.loss(own[None]) for own in maps])

    def _passes(self, count: int) -> list[list[int]]:
        """Which of ``count`` images go through the denoiser together."""
        return [[k] for k in range(count)] if self.one_at_a_time else [list(range(count))]

    @staticmethod
    def _checked(found: LossAndGradient) -> LossAndGradient:
        # One copy to the CPU for all that has to be known here.
        finite = torch.isfinite(found.gradient).all().to(found.losses.dtype)
        *losses, finite = torch.cat([found.losses, finite[None]]).cpu()
        for name, fine in (("loss", torch.isfinite(torch.stack(losses)).all()), ("gradient", finite)):
            if not fine:
                raise NonFinite(f"the {name} is not finite")
        return found._replace(losses=torch.stack(losses))
