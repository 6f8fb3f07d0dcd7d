"""The small checkpoint that comes with the program, drawn through diffusers."""

from __future__ import annotations

from ....core.presence import Curve
from ....hosts.checkpoints import CHECKPOINT
from ..plan import BackendPart, Sampling
from .diffusers import Local


class Embedded(Local):
    """:class:`Local` on the embedded checkpoint."""

    def __init__(self, part: BackendPart, sampling: Sampling, maps: bool = False) -> None:
        super().__init__(part, sampling, CHECKPOINT, maps)


def shipped_curve() -> Curve | None:
    """What presence means for the embedded model; None where no curve ships."""
    return Embedded(BackendPart(), Sampling()).curve
