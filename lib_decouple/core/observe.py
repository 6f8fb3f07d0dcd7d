"""Who looks on at a run of guidance: what they are shown, and why they cannot disturb it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

log = logging.getLogger("lib_decouple")


@dataclass
class Observation:
    """One image at one step of a run, when that step's guidance is done."""

    step: int
    image: int
    """Its index in the batch."""
    names: tuple[str, ...]
    """Of its entities."""
    maps: Tensor
    """``[entities, h, w]``, before the update, or where nothing moves."""
    loss: float
    """Of :attr:`maps`."""
    guided: bool = True
    """Could this step move the image, or was it only looked at?"""
    update: float = 0.0
    """Length of the update over the length of the latents."""
    passes: int = 1
    """Passes of the denoiser for the loss at this step."""
    after: Tensor | None = None
    """``[entities, h, w]`` behind the update, where somebody wanted to see them."""
    looks: int = 0
    """Passes without a gradient, to see how far an update may go."""
    taken_back: bool = False
    """Was an update undone, since it raised the loss however small it was made?"""


Observer = Callable[[Observation], None]


class Observers:
    """Shows every observation to all; one who fails is told to the log and shown no more."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = list(observers)

    def show(self, observation: Observation) -> None:
        """To each in order."""
        for observer in list(self._observers):
            try:
                observer(observation)
            except Exception:
                self._observers.remove(observer)
                log.warning("Attention Decoupling: %r is left out of this run", observer, exc_info=True)
