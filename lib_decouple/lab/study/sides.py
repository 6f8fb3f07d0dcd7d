"""Which of two maps a loss's ``min`` and ``max`` take: the kink of ``iou`` and ``cc``, apart from rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Loss = Callable[[Tensor], Tensor]
Choose = Callable[[Tensor, Tensor], "Tensor | None"]
"""Given indices of the smaller or larger among maps ``[n, ...]``, and these: the indices to take; None: its own."""


@dataclass
class Sides:
    """Of each ``min`` and ``max`` over maps that a loss has computed, the map that it took at each place, in order."""

    taken: list[Tensor] = field(default_factory=list)
    """Indices among the maps."""
    changed: int = 0
    """At how many places other maps, given to :meth:`compared` or :meth:`held`, take another than :attr:`taken`."""
    apart: float = 0.0
    """By how much two maps differ at most at these places, as a share of their sum: how far the kink is away."""

    @property
    def places(self) -> int:
        """How many places there are; none, where a loss has no such kink."""
        return sum(one.numel() for one in self.taken)

    def noted(self, loss: Loss) -> Loss:
        """``loss``, whose sides are noted."""

        def noting(maps: Tensor) -> Tensor:
            self.taken = []
            with _AmongMaps(lambda own, _: self.taken.append(own)):
                return loss(maps)

        return noting

    def compared(self, loss: Loss) -> Loss:
        """``loss``, whose sides are held against those noted before."""

        def comparing(maps: Tensor) -> Tensor:
            compare = self._comparing()

            def look_on(own: Tensor, maps: Tensor) -> None:
                compare(own, maps)

            with _AmongMaps(look_on):
                return loss(maps)

        return comparing

    def held(self, loss: Loss) -> Loss:
        """``loss`` with the sides that were noted before, whichever map is the smaller or larger one now."""

        def holding(maps: Tensor) -> Tensor:
            with _AmongMaps(self._comparing()):
                return loss(maps)

        return holding

    def _comparing(self) -> Choose:
        before, self.changed, self.apart = iter(self.taken), 0, 0.0

        def compare(own: Tensor, maps: Tensor) -> Tensor:
            noted = next(before)
            other = own != noted
            self.changed += int(other.sum())
            if other.any():
                one, two = (maps.detach().gather(0, index[None])[0][other] for index in (own, noted))
                self.apart = max(self.apart, float(((one - two).abs() / (one + two)).max()))
            return noted

        return compare


class _AmongMaps(TorchFunctionMode):
    """Inside, ``choose`` is asked at each min and max over maps, and has it take what it returns."""

    def __init__(self, choose: Choose) -> None:
        super().__init__()
        self.choose = choose

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func in (torch.minimum, torch.maximum):
            maps = torch.stack(tuple(args))
        elif func is Tensor.amax and args[0].ndim == 4 and args[1:] == (1,):  # over the entities
            maps = args[0].movedim(1, 0)
        else:
            return func(*args, **(kwargs or {}))
        chosen = self.choose(maps.argmin(0) if func is torch.minimum else maps.argmax(0), maps)
        return func(*args, **(kwargs or {})) if chosen is None else maps.gather(0, chosen[None])[0]
