"""What a job would be told when it is over, told before it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from .. import profiles
from ..core.schedule import Schedule
from ..hosts import reasons
from ..hosts.ldm import Unsupported, main_calls
from ..settings import PRESENCE, Settings
from .infotext import from_text


def warnings(
    names: Sequence[str],
    given: Mapping[str, Any],
    profile: profiles.Profile = profiles.UNKNOWN,
    steps: int = 0,
    sampler: str = "",
    left_out: str = "",
    lacks_curve: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Why a job of these entities' ``names`` would not be guided, or not as one thinks; in order of importance.

    ``given``: settings as the controls hold them, texts allowed, any subset. ``profile`` fills what they leave open.
    ``left_out``: what else the prompt names, with why.
    ``lacks_curve``: was nothing learned of the checkpoint's presence, as far as it is loaded?
    ``steps``: of the sampler, and ``sampler`` the name of its function; 0 and "" where they are not known.
    """
    known = {item.name for item in fields(Settings)}
    try:
        asked = Settings.from_dict({name: from_text(name, value) for name, value in given.items() if name in known})
    except ValueError as error:
        return [str(error)]
    settings = profiles.closed(asked, profile, steps)
    if settings.gradient == "none":
        return []
    found = [reasons.too_few(names, settings.loss, left_out)]
    if settings.stop == PRESENCE and lacks_curve():
        found.append(reasons.NO_CURVE_TO_STOP)
    if steps:
        found.append(reasons.no_guided_step(Schedule(settings.steps, settings.every, settings.start), steps))
    if sampler:
        try:
            main_calls(sampler, max(1, steps))
        except Unsupported as error:
            found.append(str(error))
    return [one for one in found if one]
