"""What of a host's job has another value for a while, to be put back however the job ends."""

from __future__ import annotations

from typing import Any, NamedTuple

_MISSING = object()


class _Change(NamedTuple):
    job: Any
    name: str
    before: Any
    since: Any


def borrow(p: Any, **values: Any) -> None:
    """Give attributes of the job ``p`` these values until they are put back."""
    for name, value in values.items():
        _changes(p).append(_Change(p, name, getattr(p, name, _MISSING), value))
        setattr(p, name, value)


def put_back(p: Any, *names: str) -> None:
    """Put back what was borrowed of the job ``p``, or these ``names`` of it alone; what somebody else has set since is
    theirs, and left."""
    changes = _changes(p)
    for change in reversed(list(changes)):
        # A copy of a job, which other scripts draw within it, has the job's list but borrowed nothing of it.
        if change.job is not p or (names and change.name not in names):
            continue
        changes.remove(change)
        if getattr(p, change.name, _MISSING) is not change.since:
            continue
        if change.before is _MISSING:
            delattr(p, change.name)
        else:
            setattr(p, change.name, change.before)


def _changes(p: Any) -> list[_Change]:
    if not hasattr(p, "decouple_borrowed"):
        p.decouple_borrowed = []
    changes: list[_Change] = p.decouple_borrowed
    return changes
