"""The embedded model's arms, one table for all commands: plain, each loss as "tune" found it, the rival's rule."""

from __future__ import annotations

from dataclasses import replace

from ...settings import PRESENCE, Settings
from .trials import WEIGHED

PLAIN = Settings()
# That method's loss, treatment and rule in its own first half of the steps. Its factor is lowered from 20,
# at which it breaks this model's pictures.
_RIVAL = Settings(enabled=True, loss="intensity", rule="attend-excite", size=8.0, treatment="attend-excite").fixed()


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

for _count, _arms in ARMS.items():
    _arms["choose"] = Settings(enabled=True, gradient="none", look="choose").fixed()
    _arms["insist"] = replace(_arms["choose"], look="insist")
    if _count > 1:
        _com = _arms["com"]
        _arms |= {
            "com choose": replace(_com, look="choose"),
            "com insist": replace(_com, look="insist"),
            "com late": replace(_com, gradient="late"),
            "com presence": replace(_com, stop=PRESENCE),
            "com flagged": replace(_com, stop=PRESENCE, start=9, steps=16),
            "com flagged late": replace(_com, stop=PRESENCE, start=9, steps=16, gradient="late"),
            WEIGHED: replace(_com, stop=PRESENCE),
            "gated": _arms["intensity+com"],
            "peaked": replace(_com, stop="off"),
        }
"""Beside them, tried: the best of four seeds by their drafts, and no more drafts than until one is accepted, with one
restart, unguided and guided; a late gradient; leaving images
alone that are whole by presence, and guiding none before that can be told (from step 9 of 20 on); and
what :mod:`trials` has, at another loss's settings."""


NAMES = tuple(ARMS[2])


def tuned(name: str, entities: int) -> Settings:
    """An arm's settings for so many entities; those of more than three are three's. Raises ValueError by name."""
    own = ARMS[min(entities, max(ARMS))]
    if name not in own:
        raise ValueError(f"{name!r} is not one of {', '.join(own)}, the arms of {entities} entities")
    return own[name]


def embedded(loss: str | None, entities: int) -> Settings:
    """What the commands use on the embedded model unless told otherwise: the arm of a loss.

    Without one (or for a mix that has no arm) ``intensity+com``, which did best on "tune".
    """
    arms = ARMS[2 if entities <= 2 else 3]
    return arms.get(loss or "intensity+com", arms["intensity+com"])
