"""What a picture costs in FLOPs, as a multiple of a plain one by Stable Diffusion 1.5, whatever model has drawn it.

Seconds tell of one machine and one model. What is counted of a picture is how often the model ran: guided passes, steps
whose gradient came of the sampler's own pass, drafts, runs that were given up. Each takes a share of one step with CFG,
which SD 1.5's shapes say (``bench --parts shapes``, docs/results.md: 512 px); a plain picture of so many steps is 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...core.drafts import GUIDED_LEVELS, LEVELS
from ...settings import DRAFTING

GUIDED, GUIDED_EARLY = 0.52, 0.42
"""A pass with a gradient, of a step, by all of the level's layers and by its early ones; what other choices read,
and what is left to a profile, is counted as all. A look without a gradient, which few steps make, counts as such a
pass, too."""
LATE, LATE_EARLY = 0.31, 0.26
"""What the gradient of the sampler's own pass adds to it, alike."""
DRAFT, GUIDED_DRAFT = 1 + len(LEVELS), 1 + len(GUIDED_LEVELS)
"""Steps of a draft, without guidance and with."""
CONDITIONAL = 0.5
"""Of a step, what one without the unconditional half of CFG costs."""
GIVEN_UP = 0.5
"""Of a run, what was drawn when it told that an entity is missing: noise level 1.6 is about the middle."""
STEPS = (20, 50)
"""Of the plain pictures that are compared with. Guided passes and drafts are as many, however many steps there are."""


def times_plain(row: Mapping[str, Any], steps: int) -> float | None:
    """FLOPs of an image of a run over those of a plain one of so many ``steps``; None where it isn't known how often
    the model ran for it."""
    settings, trace, passes = row["settings"] or {}, row["trace"] or {}, row["passes"]
    if passes is None:
        return None
    late = max(0, len(trace.get("step", ())) - passes) if settings.get("gradient") == "late" else 0
    guided, beside = (GUIDED_EARLY, LATE_EARLY) if settings.get("layers") == "early" else (GUIDED, LATE)
    run = trace.get("runs", 1) + (guided * passes + beside * late) / steps
    if settings.get("look") not in DRAFTING or "draft" not in trace:
        return run
    drafts = trace.get("drafts", settings.get("drafts") if settings["look"] == "choose" else None)
    if drafts is None:
        return None
    moves = trace.get("draft_moves", 0)
    passes_of_drafts = drafts * (GUIDED_DRAFT if moves else DRAFT)
    drafted = (passes_of_drafts * (CONDITIONAL if trace.get("conditional_drafts") else 1) + guided * moves) / steps
    return run * (1 + GIVEN_UP * trace.get("given_up", 0)) + drafted


def mean_times_plain(rows: Iterable[Mapping[str, Any]]) -> dict[int, float] | None:
    """Number of steps of :data:`STEPS` -> the images' mean; None where one's is not known."""
    found = [[times_plain(row, steps) for steps in STEPS] for row in rows]
    known = [[own for own in image if own is not None] for image in found]
    if not found or any(len(image) < len(STEPS) for image in known):
        return None
    return {steps: sum(image[k] for image in known) / len(known) for k, steps in enumerate(STEPS)}


def was_accepted(row: Mapping[str, Any]) -> bool | None:
    """Was a draft accepted of an image that was insisted on? None for another one, and where it isn't known."""
    insisted = (row["settings"] or {}).get("look") == "insist"
    return (row["trace"] or {}).get("accepted") if insisted else None
