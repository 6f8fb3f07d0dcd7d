"""Settings and results as infotext and as text fields, and back.

A list is written as words by comma; an item that holds a comma, a quote or a line break stands as a
JSON string: ``cat, "salt, pepper"``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from .. import presets
from ..settings import FIXED, Settings, specs
from . import options

VERSION = 1
"""Of an infotext's keys. An infotext holds what a picture was made with, never "auto"."""

ENABLED = specs()["enabled"].infotext
"""The key that turns guidance on; its value is :data:`VERSION`. All that isn't a default stands beside it, the
defaults being :data:`FIXED` for the fields that a profile can fill."""

PRESET = "Decouple preset"
"""A preset's name. Beside :data:`ENABLED` it only tells which one the settings are; without, in an infotext that
a person wrote, the settings are the preset's with the other keys over them."""

PROFILE = "Decouple profile"
"""Which model family's profile filled the settings that were left open, and whether it was measured. Only told: the
settings themselves stand beside it."""

FOUND, MOVED, BY_UPDATE = "Decouple found", "Decouple moved", "Decouple IoU by update"
"""Keys of what was done to an image; see :mod:`effect`. No paste reads a result."""

HIRES = {FOUND: "Decouple hires found", MOVED: "Decouple hires moved", BY_UPDATE: "Decouple hires IoU by update"}
"""The same of the second pass of hires fix, whose prompt may be another."""

STOOD_ASIDE = "Decouple stood aside"
"""Why an image was not guided, or not to its end."""

TOLD = "Decouple told"
"""Which entity is in the picture and which is perhaps not, in words."""

ASKED, ASKED_VARIATION = "Decouple asked seed", "Decouple asked variation seed"
"""The seed that was asked for where drafts chose; the image's own stands where the host writes it, and draws the same
picture with no draft, which is why a paste beside it makes none."""

NO_DRAFTS = "Decouple no drafts"
"""Why the seed that was asked for was drawn, though drafts were to choose; a paste beside it makes none either."""

AGAIN = "Decouple begun again"
"""Of each seed that was begun with, and given up midway, what was perhaps missing."""

NOT_INSISTED = "Decouple not insisted"
"""Why all drafts were made, or no picture begun again, though “insist” was asked for."""

BATCH = "Decouple batch"
"""Which image of how many in its batch: guidance makes the rounding of a batch large, so the same seed comes out
otherwise in a batch of another size."""

RESULTS = (
    *(ASKED, ASKED_VARIATION, NO_DRAFTS, AGAIN, NOT_INSISTED),
    *(TOLD, FOUND, MOVED, BY_UPDATE, *HIRES.values(), BATCH, STOOD_ASIDE),
)

OLD_IOU = "Decouple IoU"
"""In infotexts of before: overlap at the first and the last step, which is no effect of guidance."""

RELEASE = "Decouple version"
"""Key of this extension's version, which no paste reads."""

RUN = "Decouple run"
"""Key of a run's id in the ``info`` that the host gives to whoever drew; it is in no infotext, as pictures are passed
on."""

_COMMAS = ",，、;；،؛"
"""What parts the items of a list that a user types, in any script."""

_SPECIAL = re.compile(rf'[{_COMMAS}"\x00-\x1f\x7f\x85\u2028\u2029]')
_COMMA = re.compile(f"[{_COMMAS}]")
_LIST_END = re.compile(rf"\s*(?:[{_COMMAS}]|$)")
_DECODER = json.JSONDecoder(strict=False)


def join_list(values: Iterable[object]) -> str:
    """``["cat", "salt, pepper"]`` -> ``cat, "salt, pepper"``."""
    texts = [str(value) for value in values]
    return ", ".join(json.dumps(text) if _SPECIAL.search(text) else text for text in texts)


def split_list(text: str) -> list[str]:
    """What :func:`join_list` wrote, or a user typed; empty items are dropped. No text is an error."""
    items, start = [], 0
    while start < len(text):
        if text[start].isspace() or text[start] in _COMMAS:
            start += 1
            continue
        if text[start] == '"':
            try:
                value, end = _DECODER.raw_decode(text, start)
            except ValueError:
                end = -1
            if end >= 0 and _LIST_END.match(text, end):
                items.append(value)
                start = end
                continue
        comma = _COMMA.search(text, start)
        end = comma.start() if comma else len(text)
        items.append(text[start:end].strip())
        start = end
    return [item for item in items if item.strip()]


def to_text(value: object) -> str:
    """A setting's value as text."""
    if isinstance(value, tuple):
        return join_list(value)
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def from_text(name: str, text: object) -> Any:
    """A setting's value from text, or as it is where it is none; :class:`Settings` checks it. Raises ValueError."""
    default = next(item.default for item in fields(Settings) if item.name == name)
    switch = specs()[name].is_switch
    if not isinstance(text, str) or (isinstance(default, str) and not switch):
        return text
    if isinstance(default, tuple):
        items = split_list(text)
        return items if name == "entities" else [_number(name, item) for item in items]
    if isinstance(default, bool) or switch:
        return {"true": True, "false": False}.get(text.strip().lower(), text)
    return _number(name, text)


def _number(name: str, text: str) -> float:
    try:
        return int(text) if re.fullmatch(r"\s*[+-]?\d{1,9}\s*", text) else float(text)
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not allowed; a number, {specs()[name].allowed()}") from None


def write(settings: Settings, preset: str = "", profile: str = "") -> dict[str, str]:
    """Infotext keys and values of what differs from the defaults; nothing when not enabled.

    What ``settings`` leave open stands as "auto"; a job's are closed (:mod:`lib_decouple.profiles`).
    ``preset``: the name of the one that the settings are, if any; ``profile``: of what filled them."""
    if not settings.enabled:
        return {}
    found = {ENABLED: str(VERSION)}
    if preset:
        found[PRESET] = _protected(preset)
    if profile:
        found[PROFILE] = _protected(profile)
    about = specs()
    for item in fields(Settings):
        value = getattr(settings, item.name)
        if item.name != "enabled" and value != FIXED.get(item.name, item.default):
            found[about[item.name].infotext] = _protected(to_text(value))
    return found


def _protected(text: str) -> str:
    """``text`` so that the host's own quoting and reading leave it alone."""
    if re.fullmatch(r"\d+x\d+", text):
        return f"{text},"  # the host would take 512x512 for a size; an empty item is dropped on reading
    if text.startswith('"') and not re.search(r"[,\n:]", text):
        return json.dumps(text)  # the host quotes only texts with these, but unquotes every quoted one
    return text


def read(params: Mapping[str, Any], folder: Callable[[], Path | None] = lambda: None) -> Settings:
    """The settings of a pasted infotext; those of an infotext without our keys are not enabled.

    ``folder`` gives that of the user's presets. Raises ValueError for a value that is not allowed, an unknown
    version or preset.
    """
    if ENABLED not in params and PRESET not in params:
        return Settings()
    if params.get(ENABLED, str(VERSION)) != str(VERSION):
        raise ValueError(f"{ENABLED}: version {params[ENABLED]} is not known here; this extension reads {VERSION}")
    values = {
        name: from_text(name, params[about.infotext]) for name, about in specs().items() if about.infotext in params
    }
    values["enabled"] = True
    if {ASKED, ASKED_VARIATION, NO_DRAFTS} & params.keys():
        values["look"] = "tell"
    if ENABLED in params:
        return Settings.from_dict({**FIXED, **values})
    return presets.load(params[PRESET], folder()).with_overrides(**values)


def pasted_problem(params: Mapping[str, Any]) -> str:
    """Why the settings of a pasted infotext are not taken; "" when they are, or there are none."""
    try:
        read(params, options.preset_folder)
    except ValueError as error:
        return str(error)
    return ""


def problem_of_text(text: str) -> str:
    """What is wrong with our part of an infotext, as the host reads it; "" when nothing is."""
    from modules import infotext_utils

    try:
        params = infotext_utils.parse_generation_parameters(text)
    except Exception:
        return ""  # the host reads it itself, and tells
    return pasted_problem(params)


def _pasted(name: str, params: Mapping[str, Any]) -> Any:
    """A control's value after a paste; None leaves it as it is."""
    try:
        settings = read(params, options.preset_folder)
    except ValueError:
        settings = Settings()  # `pasted_problem` tells
    if not settings.enabled:
        return False if name == "enabled" else None
    value = getattr(settings, name)
    return join_list(value) if isinstance(value, tuple) else value


PASTE: dict[str, Callable[[Mapping[str, Any]], Any]] = {name: partial(_pasted, name) for name in specs()}
"""Field -> what the host calls with the pasted parameters; the same objects in both tabs, so that
"Send to img2img" finds the pairs."""
