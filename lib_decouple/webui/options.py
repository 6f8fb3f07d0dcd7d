"""Our part of the WebUI's settings page, and what is chosen there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..settings import TITLE
from .answers import shown

MapFiles = Literal["off", "gallery", "files"]

SECTION = ("attention_decoupling", TITLE)

DEFAULTS_TEXT = (
    "Which values the accordion starts with is chosen on the page Defaults of these settings: set the controls in "
    "txt2img or img2img, then apply there. They are kept in ui-config.json."
)


@dataclass(frozen=True)
class Option:
    """One option; ``component`` is the name of a gradio component."""

    label: str
    help: str
    default: Any
    component: str
    more: dict[str, Any] = field(default_factory=dict, hash=False)
    by_api: bool = True
    """May a client of the host's API change it?"""


OPTIONS: dict[str, Option] = {
    "decouple_preset_folder": Option(
        "Folder of your presets",
        "empty: attention-decoupling/presets in the WebUI's data folder",
        "",
        "Textbox",
        by_api=False,
    ),
    "decouple_keep_traces": Option(
        "Keep the traces of the last runs",
        "how many, in memory, with three maps of each image; 0 keeps none",
        10,
        "Slider",
        {"minimum": 0, "maximum": 100, "step": 1},
    ),
    "decouple_look_after": Option(
        "Measure after each update, too",
        "the maps behind each guided step's update, read off the sampler's own pass, for the traces' figures “after”",
        False,
        "Checkbox",
    ),
    "decouple_map_files": Option(
        "Attention maps of a run",
        "gallery: as more pictures beside the result; files: next to the saved picture",
        "off",
        "Radio",
        {"choices": list(get_args(MapFiles))},
    ),
    "decouple_best_first": Option(
        "Order a job's pictures",
        "by their weakest entity's score, in the gallery and in the API's answer; what is saved, the grid too, stays "
        "in the order of drawing",
        False,
        "Checkbox",
    ),
    "decouple_live_panel": Option(
        "Live panel", "the entities' maps and the loss while a picture is drawn", True, "Checkbox"
    ),
}
"""Key in the WebUI's configuration -> option."""


def add() -> None:
    """Put the options on the settings page; for ``script_callbacks.on_ui_settings``."""
    import gradio as gr
    from modules import shared

    made: dict[str, Any] = {
        name: shared.OptionInfo(
            one.default, one.label, getattr(gr, one.component), one.more, restrict_api=not one.by_api
        ).info(one.help)
        for name, one in OPTIONS.items()
    }
    made["decouple_defaults"] = shared.OptionHTML(DEFAULTS_TEXT)
    for name, info in shared.options_section(SECTION, made).items():
        shared.opts.add_option(name, info)


def chosen(name: str) -> Any:
    """An option's value; the default where the configuration has none, or one that is not allowed (see
    :func:`problems`). Raises KeyError for a name that is none of ours."""
    from modules import shared

    value = shared.opts.data.get(name)
    return OPTIONS[name].default if value is None or problem_of(name, value) else value


def problem_of(name: str, value: Any) -> str:
    """What is wrong with a value of an option of ours; "" when nothing is, and for options of others."""
    option = OPTIONS.get(name)
    if option is None or value is None:
        return ""
    more = option.more
    if option.component == "Slider":
        whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
        good, allowed = whole and more["minimum"] <= value <= more["maximum"], "a whole number, {minimum} to {maximum}"
    elif option.component == "Checkbox":
        good, allowed = isinstance(value, bool), "true or false"
    elif option.component == "Radio":
        good, allowed = value in more["choices"], "one of " + ", ".join(more["choices"])
    else:
        good, allowed = isinstance(value, str) and value.isprintable(), "a text in one line"
    return "" if good else f"{name}: {shown(value)} is not allowed; {allowed.format(**more)}"


def problems() -> list[str]:
    """What is wrong with our options in the host's configuration, a sentence each."""
    from modules import shared

    found = {name: problem_of(name, shared.opts.data.get(name)) for name in OPTIONS}
    return [f"{told}. Until it is set anew, {OPTIONS[name].default!r} holds." for name, told in found.items() if told]


def refused(values: Mapping[str, Any]) -> str:
    """Why a client of the host's API may not set these options; "" when it may. What it leaves as it is, is not
    judged: clients send back all options that they were given."""
    from modules import shared

    for name, option in OPTIONS.items():
        if name not in values or _same(values[name], shared.opts.data.get(name, option.default)):
            continue
        if not option.by_api:
            return f"{name}: is chosen on the settings page, not by the API"
        if problem := problem_of(name, values[name]):
            return problem
    return ""


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other  # 1 equals True


def preset_folder() -> Path:
    """Where the user's presets are; it may not exist yet."""
    from modules import paths_internal

    given = str(chosen("decouple_preset_folder")).strip() or "attention-decoupling/presets"
    return Path(paths_internal.data_path) / os.path.expanduser(given)
