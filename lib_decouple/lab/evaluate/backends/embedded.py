"""The small checkpoint that comes with the program, drawn through diffusers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from ....core.presence import Curve
from ....hosts.checkpoints import CHECKPOINT
from ....hosts.seeds import seeds_to_draft
from ..judges.base import EXTRA, Item, Options
from ..judges.drawn import DrawnJudge
from ..plan import BackendPart, Job, Sampling
from ..trials import TRIALS, Trial
from .base import Drawn
from .diffusers import Local


class Embedded(Local):
    """:class:`Local` on the embedded checkpoint, whose judge may choose among the pictures of several seeds."""

    def __init__(self, part: BackendPart, sampling: Sampling, maps: bool = False) -> None:
        super().__init__(part, sampling, CHECKPOINT, maps)

    def _drawn(self, jobs: Sequence[Job]) -> list[Drawn]:
        count = TRIALS.get(jobs[0].way, Trial()).seeds
        if count == 1:
            return super()._drawn(jobs)
        seeds = [seeds_to_draft(job.seed, count) for job in jobs]
        runs = [super(Embedded, self)._drawn([replace(job, seed=own[k]) for job, own in zip(jobs, seeds)])
                for k in range(count)]  # fmt: skip
        return [_best(job, own) for job, own in zip(jobs, zip(*runs))]


def _best(job: Job, runs: Sequence[Drawn]) -> Drawn:
    """The picture with the fewest entities missing, then the fewest things too many, of equals the first; it cost what
    all have."""
    items = [Item(Image.open(io.BytesIO(one.image)), job.prompt.text, job.prompt.entities) for one in runs]
    found = DrawnJudge("", Options()).score(items)
    faults = [(sum(not own[name] for name in job.prompt.entities), own[EXTRA]) for own in found]
    best = runs[min(range(len(runs)), key=faults.__getitem__)]
    return replace(
        best, seconds=sum(one.seconds for one in runs), passes=sum(one.passes or 0 for one in runs),
        trace={**(best.trace or {}), "runs": len(runs)},
    )  # fmt: skip


def shipped_curve() -> Curve | None:
    """What presence means for the embedded model; None where no curve ships."""
    return Embedded(BackendPart(), Sampling()).curve
