"""The routes ``drafts`` of :mod:`rest`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from . import drafts
from .run_routes import Draft, unknown_run_answered
from .runs import Runs, UnknownRun


class RankedDraft(Draft):
    """A draft by its ``rank``, from 1; its ``weakest`` entity, whether it was ``drawn``, and whether there is a
    ``picture`` of it."""

    rank: int
    weakest: str | None
    drawn: bool
    picture: bool


class DraftedImage(BaseModel):
    """An image's drafts, the best first; the seed that was ``asked`` for and the one that was ``drawn``, null where
    none was; both are variation seeds where ``variation`` is true."""

    number: int
    prompt: str
    asked: int
    drawn: int | None
    variation: bool
    drafts: list[RankedDraft]


class DraftedRun(BaseModel):
    """The drafts of one run; ``images`` are those that had any."""

    id: str
    tab: str
    images: list[DraftedImage]


def add(router: APIRouter, runs: Runs, caller: Callable[[Request], str]) -> None:
    """Add them. ``caller`` tells who sends a request."""
    unknown: dict[int | str, dict[str, Any]] = {404: {"description": "No such run, image or picture is kept."}}

    @router.get("/drafts/{id}", response_model=DraftedRun, responses=unknown)
    def get_drafts(id: str, request: Request) -> dict[str, Any]:
        """The seeds that a run, or the caller's ``last``, drafted for each image, the best first."""
        with unknown_run_answered():
            run = runs.get(id, caller(request))
        images = [
            {
                "number": one.number,
                "prompt": one.prompt,
                **{key: one.choice[key] for key in ("asked", "drawn", "variation")},
                "drafts": drafts.ranked(one),
            }
            for one in run.images
            if one.choice
        ]
        return {"id": run.id, "tab": run.tab, "images": images}

    @router.get(
        "/drafts/{id}/{image}/{seed}.jpg",
        response_class=Response,
        responses={**unknown, 200: {"content": {"image/jpeg": {}}}},
    )
    def get_draft_as_picture(id: str, image: int, seed: int, request: Request) -> Response:
        """What the draft of a seed predicts, small and by an approximate decoder."""
        with unknown_run_answered():
            run = runs.get(id, caller(request))
            found = next((one.drafts[seed] for one in run.images if one.number == image and seed in one.drafts), None)
            if found is None:
                raise UnknownRun(f"no picture of a draft of seed {seed} is kept of image {image}")
        return Response(found, media_type="image/jpeg")
