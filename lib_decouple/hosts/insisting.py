"""``look: insist`` around a WebUI's sampler: drafts until one is accepted, and what lacks an entity is begun again.

The host's own ``sample`` runs once more for each attempt, from a noise that it makes for another seed. An attempt is
given up where the run first tells what is in the picture, which is about its middle; the sampling ends there as the
host ends one that is interrupted. Only a batch as a whole can be begun again: an image that lacks nothing is drawn once
more from its own noise.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modules import shared
from torch import Tensor

from ..core.insist import Accepts, accepting
from ..core.memory import give_back
from ..core.presence import Presence
from . import reasons
from .drafting import ChoosingSampler, Sample

if TYPE_CHECKING:
    from .sampling import SamplingPass

log = logging.getLogger("lib_decouple")

REFINED = "the refiner's model had taken over before it could be told what is in the picture"


class InsistingSampler(ChoosingSampler):
    """Stands in the place of the host's function that samples until it is called, once."""

    def __init__(self, sampling: SamplingPass) -> None:
        super().__init__(sampling)
        self.restarts = sampling.settings.restarts
        self.curve = sampling.curve()
        self._model = _loaded()
        self._one_by_one = self.curve is not None and self.curve.draft is not None
        if not self._one_by_one:
            sampling.not_insisted = reasons.NO_CURVE if self.curve is None else reasons.NO_DRAFT_CURVE

    def _accepts(self) -> Accepts:
        """Whose every entity is surely there, where that was learned of drafts."""
        return accepting(self.curve)

    def _drawn(self, noise: Tensor, sample: Sample) -> Any:
        """What the host makes of the ``noise`` that was chosen, or of another one where that lacks an entity."""
        own, state = self.sampling, shared.state
        own.judge = self._is_to_break_off
        made = sample(noise)
        told = state.textinfo
        while own.broken_off and not (state.interrupted or state.skipped):
            state.job_count += 1
            state.nextjob()
            state.textinfo = "Attention Decoupling: begun again"
            try:
                again = self._again(sample)
            finally:
                state.textinfo = told
            if again is None:
                break  # stopped within its drafts: what was drawn until then is delivered
            made = again
        return made

    def _again(self, sample: Sample) -> Any:
        """What the host makes of the next noise, or of the surest there was where that fails; None where it is to end
        within its drafts."""
        own = self.sampling
        try:
            noise = self._next(sample)
            return None if noise is None else sample(noise)
        except Exception as error:
            log.debug("beginning again failed", exc_info=True)
            own.not_insisted = reasons.explained(error, reasons.switched_on(own.p))
        # outside of the handler, whose error holds on to the failed pass
        give_back()
        own.p.comment(f"Attention Decoupling drew the surest noise of those it had begun with: {own.not_insisted}")
        noise = self._take_up([self._surest(image) for image in range(len(self.images))])
        own.begin_again()
        return sample(noise)

    def _is_to_break_off(self, told: Sequence[Presence | None]) -> bool:
        """Is another run to be begun, now that this one tells what is in each image?"""
        if _loaded() is not self._model:
            self.sampling.not_insisted = REFINED
            return False
        for own, number, presence in zip(self.images, self.numbers, told):
            if presence is not None and presence.chances:
                own.runs[number] = presence.chances
        self.sampling.choices = [self._choice(image, number) for image, number in enumerate(self.numbers)]
        again = self.restarts > 0 and any(not self.images[image].is_spent for image in self._lacking())
        return again or any(self._surest(image) != number for image, number in enumerate(self.numbers))

    def _lacking(self) -> list[int]:
        """The images whose run tells that an entity is rather missing."""
        return [image for image, own in enumerate(self.images) if own.lacks(self.numbers[image])]

    def _surest(self, image: int) -> int:
        """Which of an image's noises has the surest run; the one that is drawn where no run has told anything."""
        return self.images[image].surest() if self.images[image].runs else self.numbers[image]

    def _next(self, sample: Sample) -> Tensor | None:
        """The noise to begin again with: the next of each image that lacks an entity, or the surest when it was begun
        again often enough. None where the host is to end. Raises what hinders the drafts."""
        numbers = [self._surest(image) for image in range(len(self.images))]
        lacking = self._lacking() if self.restarts > 0 else []
        if lacking:
            self.restarts -= 1
            wanting = [self.images[image] for image in lacking]
            if any(own.wants_draft for own in wanting) and not self._draft(sample, wanting):
                return None
            for image in lacking:
                if self.images[image].left:
                    numbers[image] = self.images[image].next()
        noise = self._take_up(numbers)
        self.sampling.begin_again()
        self.sampling.judge = self._is_to_break_off if lacking else None
        return noise


def _loaded() -> Any:
    """What the host knows the loaded checkpoint by; a refiner's is another."""
    return getattr(shared.sd_model, "sd_checkpoint_info", None)
