"""A local checkpoint, drawn through diffusers with this project's own guidance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .... import __version__
from ....core.memory import OUT_OF_MEMORY
from ....core.presence import SCORE, Curve, Presence
from ....core.trace import ImageTrace
from ....hosts.seeds import SeedChoice
from ....settings import Settings
from ..plan import BackendPart, Job, Sampling
from ..prompts import Prompt
from ..trials import TRIALS, Trial
from .base import HASH_DIGITS, TOLD_AT, About, Drawn, as_png, sha256

if TYPE_CHECKING:
    from ....hosts.diffusers import Picture

PROBE = 3
"""Steps of the try that a run's time is reckoned from."""


class Local:
    """A ``.safetensors`` file or a diffusers folder on this machine."""

    def __init__(self, part: BackendPart, sampling: Sampling, checkpoint: Path, maps: bool = False) -> None:
        self.part, self.sampling, self.checkpoint, self.maps = part, sampling, checkpoint, maps
        self.batch = part.batch
        self._tokens: dict[str, dict[str, list[int]]] = {}

    @cached_property
    def pipe(self) -> Any:
        """The pipeline, loaded once."""
        import torch

        from ....hosts.checkpoints import open_pipeline

        dtype = torch.float16 if self.part.half else torch.float32
        return open_pipeline(self.checkpoint, self.part.device, dtype, self.part.prediction or None)

    @cached_property
    def _about(self) -> About:
        import diffusers
        import torch

        if not self.checkpoint.exists():
            raise FileNotFoundError(f"checkpoint: {self.checkpoint} does not exist")
        version = f"{diffusers.__version__}, torch {torch.__version__}, attention-decoupling {__version__}"
        return About("diffusers", version, self._sha256[:HASH_DIGITS], self.checkpoint.name)

    def about(self) -> About:
        """Raises FileNotFoundError."""
        return self._about

    def tokens(self, prompt: Prompt) -> dict[str, list[int]]:
        """Raises ValueError for an entity that is not in the prompt."""
        from ....hosts.diffusers_prompts import plan_image

        if prompt.id not in self._tokens:
            found = plan_image(self.pipe, prompt.text, prompt.entities).entities
            self._tokens[prompt.id] = {entity.name: list(entity.tokens) for entity in found}
        return self._tokens[prompt.id]

    def draw(self, jobs: Sequence[Job]) -> list[Drawn]:
        """Where memory does not suffice for all at once, they are drawn in halves."""
        if len({(job.settings, job.way) for job in jobs}) > 1:
            raise ValueError("jobs: of several settings; a batch has one")
        try:
            return self._drawn(jobs)
        except OUT_OF_MEMORY:
            if len(jobs) == 1:
                raise ValueError("memory: one image does not fit; fewer pixels or another device") from None
        half = len(jobs) // 2
        return self.draw(jobs[:half]) + self.draw(jobs[half:])

    @cached_property
    def _sha256(self) -> str:
        return sha256(self.checkpoint)

    @cached_property
    def curve(self) -> Curve | None:
        """What presence means for the checkpoint, where that was learned."""
        from ....hosts import curves

        return curves.find(self._sha256)

    def picture(self, jobs: Sequence[Job], **more: Any) -> Picture:
        """Images with all that is known of their making; ``more``: what a ``Drawing`` is told beyond the jobs."""
        from ....hosts.diffusers import Drawing

        settings, sampling, trial = jobs[0].settings, self.sampling, TRIALS.get(jobs[0].way, Trial())
        return Drawing(
            self.pipe,
            [job.prompt.text for job in jobs],
            [job.prompt.entities for job in jobs],
            settings,
            seeds=[job.seed for job in jobs],
            steps=sampling.steps,
            guidance_scale=sampling.cfg,
            height=sampling.height or None,
            width=sampling.width or None,
            negative_prompt=sampling.negative,
            curve=self.curve if settings.enabled else None,
            loss=trial.loss,
            instead=trial.instead,
            weighed=trial.weighed,
            conditional_drafts=trial.conditional_drafts,
            unguided_drafts=trial.unguided_drafts,
            **more,
        ).picture()

    def _drawn(self, jobs: Sequence[Job]) -> list[Drawn]:
        settings = jobs[0].settings
        tokens = [self.tokens(job.prompt) for job in jobs]
        started = time.perf_counter()
        picture = self.picture(jobs, observe=self.maps and not settings.enabled, keep_maps=self.maps, tell_at=TOLD_AT)
        seconds = (time.perf_counter() - started) / len(jobs)
        made = zip(picture.images, picture.traces, tokens, picture.readings, picture.choices)
        return [
            Drawn(
                as_png(image), trace.entities, own, seconds, trace.passes if settings.enabled else 0,
                {**(summary(trace) or {}), "presence": readings(told), **drafted(choice, jobs[0].way)},
                picture.stood_aside, self.about(),
                mean_maps(trace) if self.maps else None,
            )
            for image, trace, own, told, choice in made
        ]  # fmt: skip

    def seconds_a_step(self) -> float:
        """One image for itself; batches take a little less each."""
        from ....hosts.diffusers import Drawing

        def take(steps: int) -> float:
            started = time.perf_counter()
            Drawing(
                self.pipe, ["a"], [[]], Settings(), seeds=[0], steps=steps, guidance_scale=self.sampling.cfg,
                height=self.sampling.height or None, width=self.sampling.width or None,
            ).picture()  # fmt: skip
            return time.perf_counter() - started

        take(1)  # the first one also warms up
        return take(PROBE) / PROBE


def summary(trace: ImageTrace) -> dict[str, Any] | None:
    """Loss and mean IoU at every look, each entity's intensity at the first and the last; None without a look."""
    looks = trace.steps
    if not looks:
        return None
    return {
        "step": [look.step for look in looks],
        "loss": [round(look.loss, 4) for look in looks],
        "iou": [round(look.before.mean_iou(), 4) for look in looks],
        "intensity": {
            name: [round(look.before.intensity[name], 4) for look in (looks[0], looks[-1])] for name in trace.entities
        },
    }


def drafted(choice: SeedChoice | None, way: str = "") -> dict[str, Any]:
    """What the draft scored that an image was drawn from, how many there were and how often guidance moved them,
    whether it was accepted, how many runs were given up, and whether drafts went without CFG; nothing without any."""
    if choice is None or choice.drawn is None:
        return {}
    delivered_last = bool(choice.runs) and choice.runs[-1].seed == choice.drawn
    return {
        "draft": choice.scores[choice.drawn], "drafts": len(choice.scores), "draft_moves": choice.moves,
        "accepted": choice.accepted, "given_up": len(choice.runs) - delivered_last,
        **({"conditional_drafts": True} if TRIALS.get(way, Trial()).conditional_drafts else {}),
    }  # fmt: skip


def readings(told: Sequence[Presence]) -> list[dict[str, Any]]:
    """Noise level and each entity's score of every reading, and what score that is."""
    return [
        {
            "score": SCORE,
            "sigma": round(one.sigma, 4),
            "scores": {name: round(score, 5) for name, score in one.scores.items()},
        }
        for one in told
    ]


def mean_maps(trace: ImageTrace) -> np.ndarray | None:
    """``[entities, h, w]``: mean over the first half of the looks."""
    kept = [look.maps for look in trace.steps[: max(1, len(trace.steps) // 2)] if look.maps is not None]
    return np.mean([maps.numpy() for maps in kept], axis=0) if kept else None
