"""The arms of the studies: plain, each loss at settings found on ``--split tune``, and the rival's rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...settings import PRESENCE, Settings

PLAIN = Settings()
# That method's loss, treatment and rule in its own first half of the steps. Its factor is lowered from 20,
# at which it breaks this model's pictures.
_RIVAL = Settings(enabled=True, loss="intensity", rule="attend-excite", size=2.0, treatment="attend-excite").fixed()


def _guided(loss: str, size: float, start: int, steps: int, stop_below: float | None) -> Settings:
    stop: dict[str, Any] = {} if stop_below is None else {"stop": "on", "stop_below": stop_below}
    return Settings(enabled=True, loss=loss, size=size, start=start, steps=steps, **stop).fixed()


ARMS: dict[int, dict[str, Settings]] = {
    1: {"plain": PLAIN},
    2: {
        "plain": PLAIN,
        "iou": _guided("iou", 1.2, 4, 12, 0.25),
        "com": _guided("com", 1.2, 4, 12, 0.93),
        "kl": _guided("kl", 1.2, 4, 12, 0.42),
        "cc": _guided("cc", 1.2, 4, 12, 0.25),
        "intensity": _guided("intensity", 1.5, 5, 14, 0.53),
        "spread": _guided("spread", 0.3, 4, 12, None),
        "attend-excite": _RIVAL,
        "intensity+com": _guided("intensity + 0.3*com", 1.5, 5, 14, 0.81),
    },
    3: {
        "plain": PLAIN,
        "iou": _guided("iou", 0.3, 4, 10, 0.22),
        "com": _guided("com", 0.3, 4, 10, 0.93),
        "kl": _guided("kl", 0.3, 4, 10, 0.42),
        "cc": _guided("cc", 0.3, 4, 10, 0.36),
        "intensity": _guided("intensity", 0.9, 5, 14, 0.7),
        "spread": _guided("spread", 0.3, 4, 12, None),
        "attend-excite": _RIVAL,
        "intensity+com": _guided("intensity + 0.3*com", 0.6, 5, 14, 0.97),
    },
}
"""Number of entities -> name -> settings, for the embedded model's 20 steps.

Images whose loss is at most ``stop_below`` at a step's first look are left alone there; on the split
"tune" that lies between the losses of whole images and of those with something missing. With three
entities these losses lie close together, so steps are smaller there.
"""

NAMES = tuple(ARMS[2])

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
            "gated": _arms["intensity+com"],
            "peaked": replace(_com, stop="off"),
        }
"""Beside them, tried: the best of four seeds by their drafts, and no more drafts than until one is accepted, with one
restart, unguided and guided; a late gradient; leaving images
alone that are whole by presence, and guiding none before that can be told (from step 9 of 20 on); and the losses of
:mod:`trials` at another loss's settings."""


def embedded(loss: str | None, entities: int) -> Settings:
    """What the commands use on the embedded model unless told otherwise: the arm of a loss.

    Without one (or for a mix that has no arm) ``intensity+com``, which did best on "tune".
    """
    arms = ARMS[2 if entities <= 2 else 3]
    return arms.get(loss or "intensity+com", arms["intensity+com"])
