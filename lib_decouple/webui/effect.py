"""What the updates of one sampling pass did to one image, as short texts.

An effect is a difference at one noise level: right before and right behind an update. From one step to the next the
maps of an unguided run change just as much, so figures of different steps are never put side by side.
"""

from __future__ import annotations

from ..core.trace import ImageTrace, StepRecord


def moved(trace: ImageTrace, total: int) -> str:
    """``9 of 20 steps by 12.3 %``: how many of the ``total`` steps moved the image, and the sum of their updates, each
    as a share of the latents' length. ``0 of 20 steps`` where none did, and behind it how many updates were taken
    back, as they raised the loss."""
    updates = [record.update_norm for record in trace.steps if record.update_norm > 0]
    share = f" by {100 * sum(updates):.1f} %" if updates else ""
    back = taken_back(trace)
    return f"{len(updates)} of {total} steps{share}{f', {back} taken back' if back else ''}"


def taken_back(trace: ImageTrace) -> int:
    """How many updates did not help: they raised the loss however small they were made, and were undone."""
    return sum(record.taken_back for record in trace.steps)


def by_update(trace: ImageTrace) -> str:
    """``0.701 to 0.367 at step 1``: the pairs' mean overlap (IoU) right before an update and right behind it; of
    several the means, ``over 9 steps``. "" where nobody looked behind an update, or where there is no pair."""
    seen = [(record.step, *both) for record in trace.steps if (both := _both(record))]
    if not seen:
        return ""
    before, behind = (sum(one[k] for one in seen) / len(seen) for k in (1, 2))
    where = f"at step {seen[0][0] + 1}" if len(seen) == 1 else f"over {len(seen)} steps"
    return f"{before:.3f} to {behind:.3f} {where}"


def _both(record: StepRecord) -> tuple[float, float] | None:
    """Overlap before and behind one update, where both were seen."""
    if record.update_norm <= 0 or record.after is None or not record.before.iou or not record.after.iou:
        return None
    return record.before.mean_iou(), record.after.mean_iou()
