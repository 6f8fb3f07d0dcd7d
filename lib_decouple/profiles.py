"""What the settings that are left open mean for a model family: one profile each, chosen by what is loaded.

Which loss, step and window help depends on the model, so a default does, too. A job's settings are closed by
:func:`closed` before anything is drawn, and its infotext carries the closed ones: a profile that changes later
changes no picture that was made before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .settings import AUTO, FIXED, PRESENCE, Settings

_USUAL_SIZE = {"relative": FIXED["size"], "attend-excite": 20.0}


@dataclass(frozen=True)
class Profile:
    """Settings for a family of models, and how they are known."""

    family: str
    source: str
    """Where the values come from, in a sentence."""
    measured: bool
    """Was it measured on this family that they help?"""
    loss: str = FIXED["loss"]
    rule: str = FIXED["rule"]
    size: float = FIXED["size"]
    window: tuple[float, float] | None = None
    """The guided steps' beginning and end as shares of all steps; None is the first half."""
    stop_below: float | None = None
    """Images whose loss is at most this are left alone; None leaves none alone."""
    layers: str = AUTO
    """Which of the level's layers this profile's loss reads; auto is the denoiser's own (``hosts``)."""
    side: int = 512
    """Pixels of a picture's side that the family was trained at."""

    def name(self) -> str:
        """The family, and whether the profile was measured on it."""
        return f"{self.family} ({'measured' if self.measured else 'not measured'})"

    def told(self, settings: Settings) -> str:
        """Which of the ``settings`` this profile fills, with what, and how that is known."""
        filled = [*settings.left_open(), *(["layers"] if self.layers_for(settings) != settings.layers else [])]
        return f"Auto for {self.name()} fills {', '.join(filled)}. {self.source}"

    def layers_for(self, settings: Settings) -> str:
        """Which of the level's layers ``settings`` read: this profile's where they leave them open with the loss.

        Layers were chosen for a loss, so one that is named, as in every preset and infotext, keeps the denoiser's own;
        so do presence, whose curves are learned from those, and a plain picture whose maps are looked at.
        """
        is_open = settings.enabled and settings.layers == AUTO and settings.loss == AUTO
        return self.layers if is_open and settings.stop != PRESENCE else settings.layers

    def steps(self, total: int) -> tuple[int, int]:
        """``start`` and ``steps`` of the settings for a sampler of ``total`` steps; at least one step is guided."""
        if self.window is None:
            return FIXED["start"], FIXED["steps"]
        start = round(self.window[0] * total)
        return start, max(start + 1, round(self.window[1] * total))


UNKNOWN = Profile(
    "models not known here",
    "CoM was the cleanest of the paper's overlap losses on this project's first small model; the step was chosen by "
    "reasoning.",
    measured=False,
)

_STABLE_DIFFUSION = (
    "CoM is one of the overlap losses that arXiv 2410.20972 reports to help on Stable Diffusion, and the one that "
    "added the fewest objects on this project's first small model; the step was chosen by reasoning. Without the "
    "level's last layers, which cost time, it lost nothing on the model that ships, decouple-drawn (54 of 384 pictures "
    "lack a thing, with all layers 57)."
)
_BY_CONTEXT: dict[int, Profile] = {
    768: Profile("Stable Diffusion 1.x", _STABLE_DIFFUSION, measured=False, layers="early"),
    1024: Profile("Stable Diffusion 2.x", _STABLE_DIFFUSION, measured=False, layers="early"),
    2048: Profile("Stable Diffusion XL", _STABLE_DIFFUSION, measured=False, layers="early", side=1024),
}
"""Channels of the text encoder's output -> profile: what tells the families apart in every host alike."""

EMBEDDED: dict[str, Profile] = {
    "decouple-drawn": Profile(
        "decouple-drawn",
        "Of Attend-and-Excite's 276 prompts, four seeds each, 341 of 1104 pictures lack a thing without and 191 with "
        "these settings, 583 and 396 show something extra "
        "(python run.py evaluate run docs/results/attend-excite/four-seeds/plan.toml).",
        measured=True,
        loss="com",
        size=0.4,
        window=(0.1, 0.6),
        side=128,
    ),
}
"""Name of a checkpoint that ships with this project -> profile. Their widths are anybody's: who loads one is told by
its weights (``hosts/family.py``)."""


def of_context(channels: int | None) -> Profile:
    """The profile of a model whose cross-attention reads a context of ``channels`` channels."""
    return _BY_CONTEXT.get(channels or 0, UNKNOWN)


def closed(settings: Settings, profile: Profile, total: int) -> Settings:
    """``settings`` with the profile's values where a field is left open; ``total``: of the sampler's steps.

    A threshold belongs to its loss and a size to its rule: with another loss nothing is left alone, and with another
    rule the size is that rule's usual one. A window whose end was chosen begins at the first step. Layers:
    :meth:`Profile.layers_for`.
    """
    open_ones = settings.left_open()
    loss = profile.loss if "loss" in open_ones else settings.loss
    rule = profile.rule if "rule" in open_ones else settings.rule
    stops = profile.stop_below is not None and loss == profile.loss
    start, steps = profile.steps(total)
    wanted = {
        "loss": loss,
        "rule": rule,
        "size": profile.size if rule == profile.rule else _USUAL_SIZE[rule],
        "start": start if "steps" in open_ones else 0,
        "steps": steps,
        "stop": "on" if stops else "off",
    }
    given: dict[str, Any] = {name: wanted[name] for name in open_ones}
    if "stop" in open_ones and stops:
        given["stop_below"] = profile.stop_below
    return replace(settings, **given, layers=profile.layers_for(settings))
