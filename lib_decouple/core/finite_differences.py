"""A gradient held against what the loss really does when the latents are moved a little.

On request alone (the doctor, ``--decouple-debug``), as it costs some dozen passes. Compared is in float32, whatever
the model computes in: half precision rounds more than a short move changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .gradient import LossGradient, Pass
from .maps import full_precision, full_precision_convolutions, no_autocast

MISFIT = 0.3
"""Most of the slopes in random directions that a whole gradient may leave unexplained; one whose cosine to the whole
is 0.75, as SageAttention leaves it, leaves 0.66."""
LENGTHS = (3e-5, 3e-4, 3e-3)
"""Of a move, over the latents' norm: tried in this order until slopes fit. A trained model bends over the longer ones,
rounding drowns the shorter ones in a large model; what is cut fits at none."""
HALVES = (torch.float16, torch.bfloat16)


class InFloat32(TorchFunctionMode):
    """Inside, what a model computes in half precision is computed in float32, its weights widened at each use."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            return func(*args, **(kwargs or {}))
        if func in (Tensor.half, Tensor.bfloat16):
            func = Tensor.float
        with no_autocast(self._device):
            return func(*_wide(args), **_wide(kwargs or {}))


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in HALVES else value
    if value in HALVES if isinstance(value, torch.dtype) else False:
        return torch.float32
    if type(value) in (tuple, list):
        return type(value)(_wide(one) for one in value)
    if type(value) is dict:
        return {key: _wide(one) for key, one in value.items()}
    return value


def in_float32(run: Pass) -> Pass:
    """The same pass in float32, whatever the model computes in, and without TF32, which rounds as coarsely as fp16."""

    def wide(latents: Tensor, images: Sequence[int]) -> object:
        with full_precision(latents.device), full_precision_convolutions(), InFloat32(latents.device):
            return run(latents, images)

    return wide


def slopes_of(
    source: LossGradient, latents: Tensor, images: Sequence[int], run: Pass, gradient: Tensor, directions: int = 6
) -> list[tuple[float, float]]:
    """:func:`slopes` of ``source``'s loss of one image, ``latents`` ``[1, ...]``, at the first of :data:`LENGTHS` at
    which they fit, else at the last."""

    def loss(x: Tensor) -> float:
        return float(source.look(x, images, in_float32(run))[0][0])

    wide = latents.float() if latents.dtype in HALVES else latents
    for length in LENGTHS:
        found = slopes(loss, wide, gradient, length, directions)
        if misfit(found) <= MISFIT:
            break
    return found


@torch.no_grad()
def slopes(
    loss: Callable[[Tensor], float], latents: Tensor, gradient: Tensor, length: float = 1e-3, directions: int = 4
) -> list[tuple[float, float]]:
    """Pairs (predicted, seen) of the loss's slope: along the gradient, then along random ``directions``.

    ``loss`` takes latents and gives a number. Seen by central differences over ``length`` times the latents' norm.
    Along the gradient alone a cut one can look right: what it lacks may stand across it.
    """
    made = torch.Generator().manual_seed(0)
    ways = [gradient.float()]
    ways += [torch.randn(latents.shape, generator=made).to(latents.device) for _ in range(directions)]
    size = length * latents.float().norm()
    found = []
    for way in ways:
        way = way / way.norm().clamp(min=1e-30)
        ends = [float(loss((latents.float() + sign * size * way).to(latents.dtype))) for sign in (1, -1)]
        found.append((float((gradient.float() * way).sum()), (ends[0] - ends[1]) / float(2 * size)))
    return found


def misfit(pairs: Sequence[Sequence[float]]) -> float:
    """Norm of seen less predicted slopes in the random directions of :func:`slopes`, over that of the seen ones.

    Along the gradient itself a trained model's loss may bend within a hundred-thousandth of the latents' norm.
    """
    predicted, seen = torch.tensor(pairs[1:], dtype=torch.float64).T
    return float((seen - predicted).norm() / seen.norm().clamp(min=1e-30))
