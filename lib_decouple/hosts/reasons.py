"""Why nothing is guided, in words that a person can act on: the one place where such a sentence is made."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.losses import OVERLAP_LOSSES, WeightedLoss
from ..core.schedule import Schedule


def too_few(names: Sequence[str], loss: str, left_out: str = "") -> str:
    """Why entities of these names give nothing to guide; "" where they do. ``left_out``: what the prompt names, too,
    each with why it isn't kept apart by itself."""
    named = f" but {left_out}" if left_out else ""
    if not names:
        return f"no entity was found in the prompt{named}; click the words that must not go missing"
    if len(names) == 1 and {term.name for term in WeightedLoss.parse(loss).terms} <= set(OVERLAP_LOSSES):
        return (
            f"only “{names[0]}” was found in the prompt{named}, and {loss} keeps entities apart, which needs two; "
            "click another word, or choose a loss with intensity"
        )
    return ""


def no_guided_step(schedule: Schedule, total: int) -> str:
    """Why none of ``total`` steps would be guided; "" where one is."""
    window = schedule.window(total)
    if schedule.start < window:
        return ""
    few = f"only the first {window} may be" if window < total else f"the sampler makes {total}"
    return (
        f"no step would be guided: {schedule.start} are passed over and {few}; lower “Guided from step”, or draw more "
        "steps"
    )
