"""Which number each ``min`` and ``max`` of a loss takes, of two maps at a pixel, of a map's pixels or of the entities:
the kinks of ``iou``, ``cc`` and ``intensity``, apart from rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Loss = Callable[[Tensor], Tensor]
Choose = Callable[[Tensor, Tensor], "Tensor | None"]
"""Given indices of the least or greatest among ``[n, ...]``, and these: the indices to take; None: its own."""


@dataclass
class Sides:
    """Of each ``min`` and ``max`` that a loss has computed, the number that it took at each place, in order."""

    taken: list[Tensor] = field(default_factory=list)
    """Indices among the numbers."""
    changed: int = 0
    """At how many places other maps, given to :meth:`compared` or :meth:`held`, take another than :attr:`taken`."""
    apart: float = 0.0
    """By how much the two differ at most at these places, as a share of their sum: how far the kink is away."""

    @property
    def places(self) -> int:
        """How many places there are; none, where a loss has no such kink."""
        return sum(one.numel() for one in self.taken)

    def noted(self, loss: Loss) -> Loss:
        """``loss``, whose sides are noted."""

        def noting(maps: Tensor) -> Tensor:
            self.taken = []
            with _Choosing(lambda own, _: self.taken.append(own)):
                return loss(maps)

        return noting

    def compared(self, loss: Loss) -> Loss:
        """``loss``, whose sides are held against those noted before."""

        def comparing(maps: Tensor) -> Tensor:
            compare = self._comparing()

            def look_on(own: Tensor, among: Tensor) -> None:
                compare(own, among)

            with _Choosing(look_on):
                return loss(maps)

        return comparing

    def held(self, loss: Loss) -> Loss:
        """``loss`` with the sides that were noted before, whichever number is the least or greatest now."""

        def holding(maps: Tensor) -> Tensor:
            with _Choosing(self._comparing()):
                return loss(maps)

        return holding

    def _comparing(self) -> Choose:
        before, self.changed, self.apart = iter(self.taken), 0, 0.0

        def compare(own: Tensor, among: Tensor) -> Tensor:
            noted = next(before)
            other = own != noted
            self.changed += int(other.sum())
            if other.any():
                one, two = (among.detach().gather(0, index[None])[0][other] for index in (own, noted))
                self.apart = max(self.apart, float(((one - two).abs() / (one + two)).max()))
            return noted

        return compare


class _Choosing(TorchFunctionMode):
    """Inside, ``choose`` is asked at each min and max, and has it take what it returns."""

    def __init__(self, choose: Choose) -> None:
        super().__init__()
        self.choose = choose

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in (torch.minimum, torch.maximum):
            among = torch.stack(tuple(args))
        elif func is Tensor.amax:
            dims = args[1] if len(args) > 1 else given["dim"]
            dims = tuple(dims) if isinstance(dims, Sequence) else (dims,)
            among = args[0].movedim(dims, tuple(range(len(dims)))).flatten(0, len(dims) - 1)
        else:
            return func(*args, **given)
        chosen = self.choose(among.argmin(0) if func is torch.minimum else among.argmax(0), among)
        return func(*args, **given) if chosen is None else among.gather(0, chosen[None])[0]
