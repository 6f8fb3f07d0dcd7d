"""Axes of the WebUI's X/Y/Z plot, one for each setting and one for presets.

An axis turns guidance on, unless there is one for on and off. A cell's values stand over the accordion's;
a preset's over those, and other axes' over the preset's.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import chain
from typing import Any

from .. import presets
from ..settings import Settings, specs
from . import api, infotext, options

SWITCH = f"{infotext.ENABLED} on/off"
"""Label of the axis that turns guidance on and off."""

_RANGE = re.compile(r"\s*[+-]?\s*[\d.]+\s*-\s*[+-]?\s*[\d.]+\s*(?:\(\s*[+-][\d.]+\s*\)|\[\s*\d+\s*\])?\s*")


def labels() -> dict[str, str]:
    """Label of each axis -> the field that it sets, or ``preset``."""
    found = {about.infotext if name != "enabled" else SWITCH: name for name, about in specs().items()}
    return {**found, infotext.PRESET: "preset"}


def add() -> None:
    """Add the axes to the plot's script, wherever the WebUI has it; for ``script_callbacks.on_before_ui``."""
    from modules import scripts

    for data in scripts.scripts_data:
        module = data.module
        if hasattr(module, "AxisOption") and isinstance(getattr(module, "axis_options", None), list):
            known = {one.label for one in module.axis_options}
            module.axis_options += [axis for axis in _axes(module.AxisOption) if axis.label not in known]


def settings_of(p: Any, base: Settings) -> Settings:
    """The settings of one cell over those of the accordion or the API. Raises ValueError."""
    cell = dict(getattr(p, "attention_decoupling_cell", {}))
    return _over(base, cell) if cell else base


def _over(base: Settings, cell: Mapping[str, Any]) -> Settings:
    values = {"enabled": True, **cell}
    if "preset" in values:
        base = presets.load(values.pop("preset"), options.preset_folder()).applied_to(base)
    return Settings.from_dict({**base.as_dict(), **values})


def _axes(axis_option: Callable[..., Any]) -> list[Any]:
    kinds = {item.name: type(item.default) for item in fields(Settings)}
    made = []
    for label, name in labels().items():
        kind = kinds.get(name, str)
        more: dict[str, Any] = {"apply": partial(_apply, name), "confirm": partial(_confirm, name)}
        if kind in (int, float):
            made.append(axis_option(label, kind, prepare=partial(_numbers, name), **more))
        else:
            made.append(axis_option(label, str, choices=_choices(name, kind), **more))
    return made


def _choices(name: str, kind: type) -> Callable[[], list[str]] | None:
    if name == "preset":
        return lambda: [one.name for one in presets.available(options.preset_folder())]
    about = specs()[name]
    offered = ("True", "False") if kind is bool else about.choices or about.offered
    return (lambda: list(offered)) if offered else None


def _numbers(name: str, text: str) -> list[str]:
    """The typed values; the plot itself expands its ranges, such as ``1-5 (+2)``."""
    found = []
    for one in chain.from_iterable(csv.reader([text], skipinitialspace=True)):
        if _RANGE.fullmatch(one):
            found.append(one)
        elif one.strip():
            value = getattr(Settings.from_dict({name: infotext.from_text(name, one)}), name)
            # The plot takes 1e-05 for a range.
            found.append(str(value) if isinstance(value, int) else f"{value:.12f}")
    return found


def _apply(name: str, p: Any, value: Any, values: Sequence[Any]) -> None:
    # A new mapping: the plot copies p for each cell, but not what it holds.
    cell = getattr(p, "attention_decoupling_cell", {})
    p.attention_decoupling_cell = {**cell, name: _value(name, value)}


def _value(name: str, value: Any) -> Any:
    return value if name == "preset" else infotext.from_text(name, value)


def _confirm(name: str, p: Any, values: Sequence[Any]) -> None:
    """Refuse a value that no cell could take, before the first is drawn."""
    base = api.settings_from(_arguments(p), options.preset_folder())
    for value in values:
        _over(base, {name: _value(name, value)})


def _arguments(p: Any) -> Sequence[Any]:
    """Our script's arguments in a job."""
    own = next((one for one in p.scripts.alwayson_scripts if one.title() == api.TITLE), None)
    return [] if own is None else p.script_args[own.args_from : own.args_to]
