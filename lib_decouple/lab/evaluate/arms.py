"""The embedded model's arms, one table for all commands: plain, each loss as "tune" found it, the rival's rule."""

from __future__ import annotations

from dataclasses import replace

from ...settings import PRESENCE, Settings
from .prompts.splits import STEPS

PLAIN = Settings()
# That method's loss, treatment and rule in its own first half of the steps. Its factor is lowered from 20,
# at which it breaks this model's pictures.
_RIVAL = Settings(enabled=True, loss="intensity", rule="attend-excite", size=8.0, treatment="attend-excite").fixed()

# arXiv 2504.17525 refines at one step alone, a later one than others, by the weakest peak and an overlap. As far in
# all as the arms below go, and for about as many passes: of one step alone each update is looked at, too.
_LATE_REFINEMENT = Settings(
    enabled=True, loss="intensity + iou", size=0.08, start=8, steps=9, every=50, refine_steps=(8,), refine_rounds=5
).fixed()

# arXiv 2508.13866 learns at one step (see saga.py), by the weakest peak and an overlap, with that method's treatment.
_SAGA = Settings(
    enabled=True,
    loss="0.5*intensity + 0.5*iou",
    rule="attend-excite",
    size=20.0,
    start=4,
    steps=5,
    treatment="attend-excite",
).fixed()


def _guided(loss: str, size: float = 0.4) -> Settings:
    return Settings(enabled=True, loss=loss, size=size, start=2, steps=12).fixed()


_GUIDED = {
    "iou": _guided("iou"),
    "com": _guided("com"),
    "kl": _guided("kl"),
    "cc": _guided("cc"),
    "intensity": _guided("intensity"),
    "spread": _guided("spread", 0.2),
    "attend-excite": _RIVAL,
    "intensity+com": _guided("intensity + 0.3*com"),
}
ARMS: dict[int, dict[str, Settings]] = {
    1: {"plain": PLAIN},
    2: {"plain": PLAIN, **_GUIDED},
    3: {"plain": PLAIN, **_GUIDED},
}
"""Number of entities -> name -> settings, for the embedded model's 20 steps."""

MAIN = tuple(ARMS[2])
"""Those that ``study missing`` draws unless told otherwise."""

_UNMOVED = Settings(enabled=True, gradient="none").fixed()
for _count, _arms in ARMS.items():
    _arms["choose"] = _arms["choose conditional"] = replace(_UNMOVED, look="choose")
    _arms["insist"] = replace(_UNMOVED, look="insist")
    _arms["best of 4"] = replace(_UNMOVED, look="off")
    if _count > 1:
        _com = _arms["com"]
        _arms |= {
            "com choose": replace(_com, look="choose"),
            "com choose conditional": replace(_com, look="choose"),
            "com choose unguided": replace(_com, look="choose"),
            "com insist": replace(_com, look="insist"),
            "com best of 4": replace(_com, look="off"),
            "com late": replace(_com, gradient="late"),
            "com presence": replace(_com, stop=PRESENCE),
            "com presence late": replace(_com, stop=PRESENCE, gradient="late"),
            "com flagged": replace(_com, stop=PRESENCE, start=9, steps=16),
            "com flagged late": replace(_com, stop=PRESENCE, start=9, steps=16, gradient="late"),
            "com weighed": replace(_com, stop=PRESENCE),
            "gated": _arms["intensity+com"],
            "peaked": replace(_com, stop="off"),
            "late refinement": _LATE_REFINEMENT,
            "saga": _SAGA,
            "led": replace(_com, stop="off"),
            "led+com": _arms["intensity+com"],
        }
"""Beside them, tried: the best of four seeds by their drafts, and no more drafts than until one is accepted, with one
restart, unguided and guided; a late gradient; leaving images
alone that are whole by presence, and guiding none before that can be told (from step 9 of 20 on); one late refinement;
and what :mod:`trials` has, at another loss's settings."""


NAMES = tuple(ARMS[2])


def tuned(name: str, entities: int, steps: int = STEPS) -> Settings:
    """An arm's settings for so many entities; those of more than three are three's. Of a run of so many ``steps`` the
    same share is guided. Raises ValueError by name."""
    own = ARMS[min(entities, max(ARMS))]
    if name not in own:
        raise ValueError(f"{name!r} is not one of {', '.join(own)}, the arms of {entities} entities")
    return _stretched(own[name], steps / STEPS)


def _stretched(settings: Settings, times: float) -> Settings:
    """With its step numbers ``times`` as far on; 0 steps are the first half of any run, and what is left to a model's
    profile stays so."""
    if settings.left_open():
        return settings
    start, guided = round(settings.start * times), round((settings.steps - settings.start) * times)
    refined = tuple(round(step * times) for step in settings.refine_steps)
    return replace(
        settings, start=start, steps=start + max(1, guided) if settings.steps > 0 else settings.steps,
        refine_steps=refined,
    )  # fmt: skip


def embedded(loss: str | None, entities: int) -> Settings:
    """What the commands use on the embedded model unless told otherwise: the arm of a loss.

    Without one (or for a mix that has no arm) ``com``, which left the fewest of Attend-and-Excite's prompts incomplete.
    """
    arms = ARMS[2 if entities <= 2 else 3]
    return arms.get(loss or "com", arms["com"])
