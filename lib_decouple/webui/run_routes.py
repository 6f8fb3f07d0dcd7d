"""The routes ``runs``, ``trace``, ``maps`` and ``live`` of :mod:`rest`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel

from ..core.trace import Moment
from . import heatmaps
from .palette import colours
from .runs import NOBODY, Live, Runs, UnknownRun, shape_and_values


@dataclass(frozen=True)
class RunsToShow:
    """What the routes tell of."""

    runs: Runs = field(default_factory=Runs)
    live: Live = field(default_factory=Live)
    enabled: Callable[[], bool] = lambda: True
    """Is the live panel wanted?"""
    interval_ms: Callable[[], int] = lambda: 1000
    """Milliseconds between the host's own previews."""
    busy: Callable[[], bool] = lambda: True
    """Is the host drawing?"""
    font: heatmaps.Font = heatmaps.default_font


class RunSummary(BaseModel):
    """A run that is kept."""

    id: str
    created: str
    tab: str
    images: int
    entities: list[str]


class RunList(BaseModel):
    """The caller's runs that are kept, newest first; ``hint`` tells why there can't be any."""

    runs: list[RunSummary]
    hint: str = ""


class Measures(BaseModel):
    """One look at an image's maps; by pair ("cat/dog") or by entity. See :class:`core.trace.Measures`."""

    iou: dict[str, float | None]
    distance: dict[str, float | None]
    kl: dict[str, float | None]
    cc: dict[str, float | None]
    intensity: dict[str, float | None]
    spread: dict[str, float | None]


class Step(BaseModel):
    """A step at which an image was looked at; ``after`` where a second look was asked for."""

    step: int
    guided: bool
    loss: float | None
    before: Measures
    after: Measures | None = None
    update_norm: float | None
    passes: int
    taken_back: bool = False


class Presence(BaseModel):
    """Which entity is there, read at the noise level ``sigma``: ``scores`` rank, ``chances`` are probabilities, where
    such were learned for the checkpoint; ``closest``: the pair whose attention overlaps most."""

    sigma: float
    scores: dict[str, float]
    chances: dict[str, float] | None
    weakest: str
    closest: list[str] | None
    words: str


class Draft(BaseModel):
    """A seed that was drafted, and each entity's score in its draft."""

    seed: int
    scores: dict[str, float | None]


class BegunRun(BaseModel):
    """A seed that was begun with, and the probability of each entity midway."""

    seed: int
    chances: dict[str, float | None]


class Choice(BaseModel):
    """Of the ``drafts`` of an image, in their order, which seed is drawn instead of which, null where none is;
    variation seeds where ``variation`` is true. ``accepted``: its draft needed no better one; ``runs``: those that were
    begun, with what they told midway."""

    asked: int
    drawn: int | None
    variation: bool
    drafts: list[Draft]
    accepted: bool
    runs: list[BegunRun]


class SamplingPass(BaseModel):
    """One sampling pass; ``stood_aside`` tells why an image was not guided, or not to the end, ``exact_since`` from
    which step on, and why, gradients were exact though late ones were wanted."""

    hires: bool
    total: int
    stood_aside: str
    exact_since: str
    presence: Presence | None
    choice: Choice | None
    steps: list[Step]


class TracedImage(BaseModel):
    """What guidance did to one image; ``number`` counts the job's images from 0, ``rank`` from 1 by how sure the
    weakest entity is, where something is told of it."""

    number: int
    rank: int | None
    prompt: str
    seed: int
    entities: list[str]
    colours: list[str]
    passes: list[SamplingPass]


class Trace(BaseModel):
    """What guidance did in one run."""

    id: str
    created: str
    tab: str
    settings: dict[str, Any]
    images: list[TracedImage]


class MomentMaps(BaseModel):
    """An image's maps at one moment: ``values[entity][y][x]``, the attention."""

    hires: bool
    moment: Moment
    step: int
    height: int
    width: int
    values: list[list[list[float]]]


class MappedImage(BaseModel):
    """One image's maps."""

    number: int
    entities: list[str]
    colours: list[str]
    maps: list[MomentMaps]


class RunMaps(BaseModel):
    """The maps of one run."""

    id: str
    images: list[MappedImage]


class Point(BaseModel):
    """Loss and mean overlap at one step."""

    step: int
    loss: float | None
    iou: float | None


class LiveMaps(BaseModel):
    """Maps of the last guided step: ``values[entity][y][x]``."""

    height: int
    width: int
    values: list[list[list[float]]]


class LiveRun(BaseModel):
    """The run that is being drawn: one of its images, at ``step`` of ``total``."""

    running: bool
    interval_ms: int
    enabled: bool
    id: str | None = None
    image: int
    entities: list[str]
    colours: list[str]
    step: int
    total: int
    points: list[Point]
    maps: LiveMaps | None = None


def add(router: APIRouter, shown: RunsToShow, caller: Callable[[Request], str]) -> None:
    """Add them. ``caller`` tells who sends a request."""
    unknown: dict[int | str, dict[str, Any]] = {404: {"description": "No such run, image, moment or entity is kept."}}

    @router.get("/runs", response_model=RunList)
    def list_runs(request: Request) -> dict[str, Any]:
        """The caller's last runs, newest first."""
        asking = caller(request)
        return {
            "hint": "" if asking else NOBODY,
            "runs": [
                {
                    "id": run.id,
                    "created": run.created,
                    "tab": run.tab,
                    "images": len(run.images),
                    "entities": run.entities(),
                }
                for run in shown.runs.of(asking)
            ],
        }

    @router.get("/trace/{id}", response_model=Trace, responses=unknown)
    def get_trace(id: str, request: Request) -> dict[str, Any]:
        """What guidance did in a run, or in the caller's ``last``: every image, pass and step."""
        with unknown_run_answered():
            run = shown.runs.get(id, caller(request))
        images = [
            {
                "number": one.number,
                "rank": one.rank,
                "prompt": one.prompt,
                "seed": one.seed,
                "entities": list(one.entities),
                "colours": colours(one.entities),
                "passes": one.passes,
            }
            for one in run.images
        ]
        return {"id": run.id, "created": run.created, "tab": run.tab, "settings": run.settings, "images": images}

    @router.get("/trace/{id}/csv", response_class=Response, responses={**unknown, 200: {"content": {"text/csv": {}}}})
    def get_trace_as_csv(id: str, request: Request) -> Response:
        """The same as a table: one row an image, pass, step, moment (before, after), measure, and pair or entity."""
        with unknown_run_answered():
            run = shown.runs.get(id, caller(request))
        name = f'attachment; filename="decouple-{run.id}.csv"'
        return Response(
            run.csv().encode("utf-8", "backslashreplace"),
            media_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": name},
        )

    @router.get("/maps/{id}", response_model=RunMaps, responses=unknown)
    def get_maps(id: str, request: Request) -> dict[str, Any]:
        """A run's attention maps: at the unguided first pass, after the first guided step and after the last."""
        with unknown_run_answered():
            run = shown.runs.get(id, caller(request))
        images = [
            {
                "number": one.number,
                "entities": list(one.entities),
                "colours": colours(one.entities),
                "maps": [
                    {"hires": maps.hires, "moment": maps.moment, "step": maps.step, **shape_and_values(maps.values)}
                    for maps in one.maps
                ],
            }
            for one in run.images
        ]
        return {"id": run.id, "images": images}

    @router.get(
        "/maps/{id}/{image}/{moment}.png",
        response_class=Response,
        responses={**unknown, 200: {"content": {"image/png": {}}}},
    )
    def get_map_as_picture(
        id: str, request: Request, image: int, moment: Moment, of: str = "", hires: bool = False
    ) -> Response:
        """One moment's maps as a picture: ``of`` an entity, of the ``overlap``, or all side by side."""
        with unknown_run_answered():
            run = shown.runs.get(id, caller(request))
            own = next((one for one in run.images if one.number == image), None)
            if own is None:
                raise UnknownRun(f"image {image} is not in this run; it has {len(run.images)} images, from 0")
            maps = next((one for one in own.maps if (one.moment, one.hires) == (moment, hires)), None)
            if maps is None:
                which = "the hires pass" if hires else "the first pass"
                raise UnknownRun(f"no maps of the moment {moment!r} are kept of {which} of image {image}")
            offered = heatmaps.names(own.entities)
            if of and of not in offered:
                raise UnknownRun(f"of: {of!r} is not one of {', '.join(offered)}")
        drawn = heatmaps.row(maps.values, own.entities, own.picture, of, shown.font)
        return Response(heatmaps.as_png(drawn), media_type="image/png")

    @router.get("/live", response_model=LiveRun)
    def get_live(request: Request, task: str = "") -> dict[str, Any]:
        """The caller's run that is being drawn, or that of the page's ``task``. Its maps are kept for ten seconds after
        each question, and only then."""
        enabled = shown.enabled()
        told = shown.live.ask(caller(request), task) if enabled else shown.live.nothing()
        running = told["running"] and shown.busy()
        return {**told, "running": running, "interval_ms": shown.interval_ms(), "enabled": enabled}


@contextmanager
def unknown_run_answered() -> Iterator[None]:
    """An answer for what is not kept."""
    try:
        yield
    except UnknownRun as error:
        raise HTTPException(status_code=404, detail=str(error)) from None
