"""The routes ``presets`` of :mod:`rest`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from .. import presets
from ..settings import Settings

MOST_TEXT = 2 * presets.MOST_BYTES
"""Characters of an import."""


class Preset(BaseModel):
    """A preset; ``text`` is what a chat message can carry."""

    name: str
    reason: str
    settings: dict[str, Any]
    built_in: bool
    text: str


class Presets(BaseModel):
    """All presets, and what is wrong with files that hold none."""

    presets: list[Preset]
    problems: list[str]


class Content(BaseModel):
    """What to save under a name."""

    settings: dict[str, Any]
    reason: str = Field("", max_length=presets.MOST_REASON)
    overwrite: bool = False


class Import(BaseModel):
    """A preset's text, or its file's content, and the settings that it would be applied to."""

    text: str = Field(..., max_length=MOST_TEXT)
    settings: dict[str, Any] = {}


class Change(BaseModel):
    """A field's value before and after."""

    before: Any = None
    after: Any = None


class Preview(BaseModel):
    """What an import would do. ``taken``: whose preset has this name already; ``replaces``: what saving would
    change of it."""

    preset: Preset
    changes: dict[str, Change]
    taken: Literal["", "yours", "built in"]
    replaces: dict[str, Change]


def add(router: APIRouter, folder: Callable[[], Path], writing: Sequence[Any] = ()) -> None:
    """Add them. ``folder`` gives that of the user's presets; ``writing`` are the dependencies of what writes."""

    @router.get("/presets", response_model=Presets)
    def list_presets() -> dict[str, Any]:
        """The built-in presets, then the user's."""
        own = folder()
        return {"presets": [_shown(one) for one in presets.available(own)], "problems": presets.problems(own)}

    @router.get("/presets/{name}", response_model=Preset)
    def get_preset(name: str) -> dict[str, Any]:
        """One preset; case doesn't count."""
        with _preset_errors_answered():
            return _shown(presets.load(name, folder()))

    @router.put("/presets/{name}", response_model=Preset, dependencies=writing)
    def put_preset(name: str, body: Content) -> dict[str, Any]:
        """Save a preset. One that is there is only replaced with ``overwrite``, a built-in never."""
        with _preset_errors_answered():
            preset = presets.Preset(name, body.reason, body.settings)
            presets.save(preset, folder(), body.overwrite)
            return _shown(preset)

    @router.delete("/presets/{name}", dependencies=writing)
    def delete_preset(name: str) -> dict[str, str]:
        """Delete one of the user's presets."""
        with _preset_errors_answered():
            presets.delete(name, folder())
        return {"deleted": name}

    @router.post("/presets/import", response_model=Preview)
    def preview_import(body: Import) -> dict[str, Any]:
        """What importing would change; nothing is saved. To save it, ``PUT`` it."""
        with _preset_errors_answered():
            preview = presets.preview(body.text, Settings.from_dict(body.settings), folder())
        return {
            "preset": _shown(preview.preset),
            "changes": _changes(preview.changes),
            "taken": preview.taken,
            "replaces": _changes(preview.replaces),
        }


@contextmanager
def _preset_errors_answered() -> Iterator[None]:
    """Answers for what presets raise."""
    try:
        yield
    except presets.UnknownPreset as error:
        raise HTTPException(status_code=404, detail=str(error)) from None
    except presets.PresetExists as error:
        raise HTTPException(status_code=409, detail=str(error)) from None
    except ValueError as error:
        raise HTTPException(status_code=422, detail=str(error)) from None
    except OSError as error:
        raise HTTPException(status_code=507, detail=f"the presets' folder: {error.strerror}") from None


def _shown(preset: presets.Preset) -> dict[str, Any]:
    about = {"name": preset.name, "reason": preset.reason, "settings": preset.settings}
    return {**about, "built_in": presets.is_built_in(preset.name), "text": presets.to_text(preset)}


def _changes(found: dict[str, tuple[Any, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {"before": before, "after": after} for name, (before, after) in found.items()}
