"""The last runs, kept in memory for the page and for clients of the API, and the one that is being drawn."""

from __future__ import annotations

import csv
import io
import json
import math
import secrets
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..core.trace import ImageTrace, KeptMaps, Moment, plain
from . import drafts
from .answers import sayable
from .callers import HEADER, SHORTEST
from .infotext import RUN
from .palette import colours
from .report import Run, reason_of

MOST_BYTES = 256 * 1024 * 1024
"""Of maps and pictures in memory; with more, the oldest runs are dropped before their time."""

WATCHED_FOR = 10.0
"""Seconds since the last question for which somebody counts as watching."""


NOBODY = (
    "Whose runs are asked for can't be told. Ask for a run by its id, which info.extra_generation_params of its "
    f'answer holds as "{RUN}"; or send a secret of your own, at least {SHORTEST} characters, in the header {HEADER} '
    "with the request that draws and with this one."
)


class UnknownRun(LookupError):
    """No run of this name is kept."""


@dataclass(frozen=True)
class Maps:
    """An image's maps at one moment of one pass."""

    hires: bool
    moment: Moment
    step: int
    values: np.ndarray
    """``[entities, h, w]``, float16, of the image's entities."""


@dataclass(frozen=True)
class RunImage:
    """One image of a run."""

    number: int
    """In the job, from 0."""
    prompt: str
    seed: int
    entities: tuple[str, ...]
    passes: list[dict[str, Any]]
    """As ``trace/{id}`` tells them."""
    maps: list[Maps]
    picture: bytes = b""
    """What was drawn, made small, as a JPEG; empty when it isn't had."""
    drafts: dict[int, bytes] = field(default_factory=dict)
    """Seed -> what its draft predicts, as a small JPEG; without those that couldn't be had."""
    drawn_with: dict[str, Any] = field(default_factory=dict)
    """What the job held for this image, by the names of :data:`compare.LISTS`."""
    rank: int | None = None
    """Among the job's images, from 1, by the weakest entity; None where nothing is told of it."""

    @cached_property
    def size(self) -> int:
        """Bytes of maps and pictures, and about those of the trace, which takes some four times its text."""
        pictures = len(self.picture) + sum(map(len, self.drafts.values()))
        return sum(one.values.nbytes for one in self.maps) + pictures + 4 * len(json.dumps(self.passes))

    @property
    def choice(self) -> dict[str, Any] | None:
        """Which of its drafts was drawn, as ``trace/{id}`` tells; None where there were none."""
        return next((one["choice"] for one in self.passes if one["choice"]), None)


@dataclass(frozen=True)
class KeptRun:
    """A run that is over."""

    id: str
    created: str
    tab: str
    settings: dict[str, Any]
    images: list[RunImage]
    owner: str = field(default="", repr=False)
    """The caller who drew it (see :mod:`callers`); "" where nobody is known."""
    conditions: dict[str, str] = field(default_factory=dict)
    """On which a draft depends beside its prompt and seed, see :func:`drafts.conditions`."""

    def entities(self) -> list[str]:
        """Those of all images, each once."""
        return list(dict.fromkeys(name for image in self.images for name in image.entities))

    def rows(self) -> Iterator[list[Any]]:
        """The trace as a table, with its head."""
        yield ["image", "hires", "step", "guided", "moment", "measure", "of", "value"]
        for image in self.images:
            for one in image.passes:
                for step in one["steps"]:
                    start = [image.number, int(one["hires"]), step["step"], int(step["guided"])]
                    yield [*start, "before", "loss", "", step["loss"]]
                    for moment in ("before", "after"):
                        for measure, values in (step[moment] or {}).items():
                            yield from ([*start, moment, measure, of, value] for of, value in values.items())

    def csv(self) -> str:
        """:meth:`rows` as text."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.rows())
        return text.getvalue()


def of_job(run: Run, p: Any, tab: str, pictures: dict[int, bytes]) -> KeptRun:
    """What is to be kept of a job ``p`` that is over. ``pictures``: an image's number in the job -> JPEG."""
    numbers = sorted({one.iteration * p.batch_size + k for one in run.passes for k in range(len(one.traces))})
    ranked = [iteration * p.batch_size + position for iteration, position in run.best_first()]
    images = []
    for number in numbers:
        iteration, position = divmod(number, p.batch_size)
        own = [one for one in run.passes if one.iteration == iteration and position < len(one.traces)]
        traces = [one.traces[position] for one in own]
        entities = tuple(dict.fromkeys(name for trace in traces for name in trace.entities))
        images.append(
            RunImage(
                number,
                sayable(str(p.all_prompts[number])),
                int(p.all_seeds[number]),
                entities,
                [_pass_as_dict(one, trace, position) for one, trace in zip(own, traces)],
                [
                    Maps(one.hires, moment, kept.step, _aligned(kept, entities))
                    for one, trace in zip(own, traces)
                    for moment, kept in trace.moments.items()
                ],
                pictures.get(number, b""),
                drafts.pictures(own, position),
                drafts.drawn_with(p, number) if any(one.choices[position] for one in own) else {},
                ranked.index(number) + 1 if number in ranked else None,
            )
        )
    return KeptRun(
        run.id, run.created, tab, run.settings.as_dict(), images, run.owner, drafts.conditions(p, run.settings)
    )


def _aligned(kept: KeptMaps, entities: Sequence[str]) -> np.ndarray:
    """Maps ``[entities, h, w]``; zeros for those that prompt editing had not, or no longer, in the prompt."""
    own = dict(zip(kept.names, kept.maps.numpy()))
    nothing = np.zeros_like(kept.maps[0].numpy())
    return np.stack([own.get(name, nothing) for name in entities])


def _pass_as_dict(one: Any, trace: ImageTrace, position: int) -> dict[str, Any]:
    steps = [finite(plain(record)) for record in trace.steps]
    told = one.teller.told[position]
    presence = None if told is None else finite(told.as_dict())
    return {
        "hires": one.hires, "total": one.total, "stood_aside": reason_of(one, position),
        "exact_since": one.exact_since, "presence": presence,
        "choice": None if one.choices[position] is None else finite(one.choices[position].as_dict()), "steps": steps,
    }  # fmt: skip


def finite(value: Any) -> Any:
    """Plain JSON with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shape_and_values(maps: np.ndarray) -> dict[str, Any]:
    """Maps ``[entities, h, w]`` as JSON, to four digits."""
    digits = [float(f"{one:.4g}") for one in np.nan_to_num(maps.astype(np.float64)).ravel()]
    values = np.reshape(np.array(digits), maps.shape).tolist()
    return {"height": maps.shape[1], "width": maps.shape[2], "values": values}


class Runs:
    """The last runs, newest last; safe to use from several threads."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: list[KeptRun] = []
        self._lock = threading.Lock()

    def keep(self, run: KeptRun, most: int) -> None:
        """Add a run, and drop what is more than ``most`` runs or too large together; the newest always stays."""
        with self._lock:
            self._kept = [*self._kept, run][-most:] if most > 0 else []
            while len(self._kept) > 1 and sum(i.size for one in self._kept for i in one.images) > self._most_bytes:
                self._kept.pop(0)

    def clear(self) -> None:
        """Keep none."""
        with self._lock:
            self._kept = []

    def newest_first(self) -> list[KeptRun]:
        """All that are kept."""
        with self._lock:
            return self._kept[::-1]

    def of(self, caller: str) -> list[KeptRun]:
        """A caller's runs, newest first; none of "", who is nobody."""
        return [one for one in self.newest_first() if caller and one.owner == caller]

    def get(self, id: str, caller: str = "") -> KeptRun:
        """A run by its id, or the caller's ``last``. Raises UnknownRun."""
        if id != "last":
            for one in self.newest_first():
                if secrets.compare_digest(one.id.encode(), id.encode("utf-8", "replace")):
                    return one
            raise UnknownRun(f"run {id[:80]!r} is not kept")
        own = self.of(caller)
        if not own:
            raise UnknownRun("no run of yours is kept" if caller else NOBODY)
        return own[0]


@dataclass
class Live:
    """The run that is being drawn, for whoever watches it.

    A run only leaves a note that it goes on; what is told is read from its traces when somebody asks.
    """

    clock: Any = time.monotonic
    _asked: float = field(default=-math.inf, init=False)
    _run: Any = field(default=None, init=False)
    """A weak reference, so that a job which ends by an exception isn't kept."""

    def watched(self) -> bool:
        """Has anybody asked lately?"""
        return self.clock() - self._asked < WATCHED_FOR

    def begin(self, run: Run) -> None:
        """``run`` is what is being drawn."""
        self._run = weakref.ref(run)

    def end(self, run: Run) -> None:
        """``run`` is over; one that was begun meanwhile stays."""
        if self._run is not None and self._run() is run:
            self._run = None

    @staticmethod
    def nothing() -> dict[str, Any]:
        """What is told when nothing is being drawn."""
        none: dict[str, Any] = {"running": False, "id": None, "image": 0, "entities": [], "colours": []}
        return {**none, "step": 0, "total": 0, "points": [], "maps": None}

    def ask(self, caller: str = "", task: str = "") -> dict[str, Any]:
        """What is known of the run, if it is the ``caller``'s or that of the host's ``task``; from now on its maps are
        kept, for a while."""
        reference = self._run  # the drawing thread may take it away meanwhile
        run = reference() if reference is not None else None
        if run is not None and not run.is_of(caller, task):
            return self.nothing()
        self._asked = self.clock()
        passes = list(run.passes) if run is not None else []
        told = {**self.nothing(), "running": run is not None}
        if run is None or not passes:
            return told
        one = passes[-1]
        told.update(id=run.id if run.kept else None, step=one.step, total=one.total)
        position = next((k for k, trace in enumerate(one.traces) if trace.steps), None)
        if position is None:
            return told
        trace, maps = one.traces[position], one.maps.get(position)
        points = [
            {"step": record.step, "loss": record.loss, "iou": record.before.mean_iou()} for record in list(trace.steps)
        ]
        return {
            **told,
            "image": one.iteration * one.p.batch_size + position,
            "entities": list(trace.entities),
            "colours": colours(trace.entities),
            "points": finite(points),
            "maps": None if maps is None else shape_and_values(_aligned(maps, trace.entities)),
        }
