"""The drafts of a run that is kept: what is told of them, and drawing one of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from ..hosts import reasons
from ..hosts.borrowed import borrow
from ..settings import Settings
from . import compare, heatmaps
from .answers import shown

if TYPE_CHECKING:
    from .report import Pass
    from .runs import KeptRun, RunImage

SIDE = 256
"""Pixels of the longer side of a draft's picture, which is often smaller by itself."""

MOVING_NOTHING = ("enabled", "look", "drafts", "restarts", "skip_missing", "hires", "recompute", "one_at_a_time")
"""Settings on which where guidance moves the first pass does not depend."""

FORM = re.compile(r"([\w-]{1,80})/(\d{1,9})/(-?\d{1,20})", re.ASCII)


class Wanted(NamedTuple):
    """A draft that is to be drawn."""

    run: str
    image: int
    seed: int

    @classmethod
    def parse(cls, text: Any) -> Wanted | None:
        """``RUN/IMAGE/SEED``; None for "". Raises ValueError for anything else."""
        if text == "":
            return None
        found = FORM.fullmatch(text) if isinstance(text, str) else None
        if not found:
            raise ValueError(
                f"draw: {shown(text)} is not allowed; RUN/IMAGE/SEED of a draft, as drafts/RUN tells, or nothing"
            )
        return cls(found[1], int(found[2]), int(found[3]))


def pictures(passes: Sequence[Pass], position: int) -> dict[int, bytes]:
    """Of an image of a batch, what its drafts look like: seed -> a small JPEG."""
    choices = [chosen for one in passes if (chosen := one.choices[position])]
    return {seed: heatmaps.small(found, SIDE) for one in choices for seed, found in one.pictures.items()}


def drawn_with(p: Any, number: int) -> dict[str, Any]:
    """What the job ``p`` holds for its image of this number."""
    lists = {name: values for name in compare.LISTS if (values := getattr(p, name, None))}
    return {name: values[number] for name, values in lists.items() if number < len(values)}


def conditions(p: Any, settings: Settings) -> dict[str, str]:
    """What else a job's drafts depend on, in words: another size or checkpoint makes another picture of a seed, and so
    does other guidance; ``settings``: the job's, with nothing left open."""
    checkpoint = getattr(getattr(p, "sd_model", None), "sd_checkpoint_info", None)
    begun_with = [getattr(p, "image_mask", None), *(getattr(p, "init_images", None) or ())]
    found = {
        "size": f"{getattr(p, 'width', '')}x{getattr(p, 'height', '')}",
        "sampler": getattr(p, "sampler_name", ""),
        "schedule": getattr(p, "scheduler", ""),
        "CFG scale": getattr(p, "cfg_scale", ""),
        "variation strength": getattr(p, "subseed_strength", ""),
        "checkpoint": getattr(checkpoint, "name", ""),
        "denoising strength": getattr(p, "denoising_strength", "") if any(begun_with) else "",
        "picture that it begins with": ", ".join(_known_by(one) for one in begun_with if one is not None),
        "guidance": _guidance(settings, getattr(p, "steps", "")),
    }
    return {name: str(value) for name, value in found.items()}


def _guidance(settings: Settings, steps: Any) -> str:
    """What moves a job's pictures and drafts: all that is not as by default, and of how many steps."""
    if not settings.enabled or settings.gradient == "none":
        return "none"
    default, own = Settings().as_dict(), settings.as_dict()
    told = [
        f"{name} {_plainly(own[name])}" for name in own if name not in MOVING_NOTHING and own[name] != default[name]
    ]
    return ", ".join([*told, f"{steps} steps in all"])


def _plainly(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def _known_by(picture: Image.Image) -> str:
    """By which a picture is known again: a few digits of a hash of its pixels."""
    return hashlib.sha256(picture.tobytes()).hexdigest()[:8]


def ranked(image: RunImage) -> list[dict[str, Any]]:
    """An image's drafts, the best first: by the score of the weakest entity, as it is chosen."""
    choice = image.choice or {"drafts": [], "drawn": 0}

    def weakest(scores: dict[str, float | None]) -> tuple[float, str | None]:
        return min(((-1.0 if own is None else own, name) for name, own in scores.items()), default=(-1.0, None))

    best_first = sorted(choice["drafts"], key=lambda one: -weakest(one["scores"])[0])
    return [
        {
            **one, "rank": place, "weakest": weakest(one["scores"])[1], "drawn": one["seed"] == choice["drawn"],
            "picture": one["seed"] in image.drafts,
        }
        for place, one in enumerate(best_first, start=1)
    ]  # fmt: skip


def find(wanted: Wanted, run: KeptRun) -> RunImage:
    """The image of a ``run`` whose draft is wanted. Raises ValueError where there is none."""
    seeds = {one.number: [draft["seed"] for draft in ranked(one)] for one in run.images if one.choice}
    if wanted.seed not in seeds.get(wanted.image, ()):
        raise ValueError(f"draw: image {wanted.image} of this run has no draft of seed {wanted.seed}")
    return next(one for one in run.images if one.number == wanted.image)


def draw(wanted: Wanted, run: KeptRun, p: Any, settings: Settings, tab: str, state: Any) -> list[str]:
    """Have a job ``p``, whose lists are filled, draw the wanted draft and nothing else, with the prompts of its image.

    ``settings``: the job's, with nothing left open; ``state``: the host's progress. Gives what is otherwise than when
    it was drafted, a sentence each. Raises ValueError where it can't be; then nothing is changed.
    """
    image = find(wanted, run)
    if tab != run.tab:
        raise ValueError(f"draw: that draft was made in {run.tab}, not in {tab}")
    if script := reasons.selected_script(p):
        raise ValueError(f'draw: the script "{script}" draws its own pictures; choose None under Script')
    own = dict(image.drawn_with)
    own["all_subseeds" if (image.choice or {}).get("variation") else "all_seeds"] = wanted.seed
    for name in compare.LISTS:
        if values := getattr(p, name, None):
            # Where hires fix is new in this job, its pass has the prompts of the first.
            setattr(p, name, [own.get(name, own.get(name.replace("_hr", ""), values[0]))])
    borrow(p, seed=p.all_seeds[0], subseed=p.all_subseeds[0])
    if state.job_count != -1:  # else the host counts p.n_iter itself
        state.job_count -= p.n_iter - 1
    now = conditions(p, settings)
    if len(pictures := getattr(p, "init_images", None) or ()) > 1:
        own_picture = pictures[wanted.image % len(pictures)]  # each image of a batch began with its own
        borrow(p, init_images=[own_picture])
    borrow(p, n_iter=1, batch_size=1)
    return [
        f"The {name} is {now[name]}; this seed was drafted with {was}, so the picture may be another than its draft"
        for name, was in run.conditions.items()
        if now[name] != was
    ]
