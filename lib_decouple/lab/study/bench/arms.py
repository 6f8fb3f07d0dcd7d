"""The ways to draw that are compared: the table of them, and one batch drawn in one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....hosts.diffusers import Drawing
from ....settings import Settings
from ...evaluate.prompts.splits import CFG, STEPS, Case
from ...model.scenes import joined
from ..late import generate_late
from .rival import draw_rival
from .ways import EXACT, WAYS


@dataclass(frozen=True)
class Arm:
    """One way to draw the cases; ``way`` names one of :data:`WAYS`."""

    settings: Settings
    way: str = "default layers"
    rival: tuple[tuple[str, Any], ...] = ()
    """What the rival's call is told beyond its own defaults."""


ARMS: dict[str, Arm] = {
    "plain": Arm(Settings(), "plain"),
    "exact": Arm(EXACT),
    **{name: Arm(EXACT, name) for name, way in WAYS.items() if way.kind == "guide" and way.path != "auto"},
    **{
        f"first {n} step{'s' * (n > 1)} only": Arm(dataclasses.replace(EXACT, steps=EXACT.start + n, every=1))
        for n in (5, 3, 1)
    },
    "every 2nd step": Arm(dataclasses.replace(EXACT, every=2)),
    "every 3rd step": Arm(dataclasses.replace(EXACT, every=3)),
    "one step late": Arm(EXACT, "one step late"),
    "diffusers Attend-and-Excite": Arm(Settings(), "diffusers Attend-and-Excite"),
    "diffusers Attend-and-Excite, first half": Arm(
        Settings(),
        "diffusers Attend-and-Excite",
        (("max_iter_to_alter", 10), ("thresholds", {0: 0.05, 4: 0.5, 8: 0.8})),
    ),
}


@dataclass
class DrawnCases:
    """Images of some cases, with what each one's guidance used."""

    images: list[Any]
    passes: list[float]
    """Passes of the UNet for guidance alone."""
    gradients: list[float]


def draw(pipe: Any, arm: Arm, group: Sequence[Case], steps: int = STEPS) -> DrawnCases:
    """Draw some cases on the embedded model. Raises RuntimeError when guidance stood aside."""
    way = WAYS[arm.way]
    prompts, names = [joined(case.entities) for case in group], [case.entities for case in group]
    seeds = [case.seed for case in group]
    if way.kind == "rival":
        images, passes, taken = draw_rival(pipe, group, steps, CFG, dict(arm.rival))
        return DrawnCases(images, [passes] * len(group), [taken] * len(group))
    settings = way.settings(arm.settings)
    how: dict[str, Any] = {"seeds": seeds, "steps": steps, "guidance_scale": CFG, "layers": way.layers}
    if way.kind == "late":
        picture = generate_late(pipe, prompts, names, settings, **how)
    else:
        picture = Drawing(pipe, prompts, names, settings, **how).picture()
    if picture.stood_aside:
        raise RuntimeError(f"guidance stood aside {picture.stood_aside}")
    gradients = [
        float(len(t.steps) if way.kind == "late" else sum(one.passes for one in t.steps)) for t in picture.traces
    ]
    return DrawnCases(picture.images, [float(trace.passes) for trace in picture.traces], gradients)
