"""The settings model for others: as JSON Schema, and as the table of the API's documentation."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from ..settings import TITLE, VERSION, Settings, Spec, specs
from . import drafts


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the named arguments. What one field cannot say alone, such as the syntax of
    ``loss``, only :class:`Settings` checks."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": TITLE,
        "version": VERSION,
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "preset": {
                "title": "Preset",
                "type": "string",
                "description": "A preset's name: turns guidance on with its settings; the other arguments stand "
                "over them.",
            },
            "compare": {
                "title": "Compare",
                "type": "boolean",
                "description": "Draw each picture twice: plain, then decoupled from the same seed, or with look at "
                "choose or insist from the chosen one.",
                "default": False,
            },
            "draw": {
                "title": "Draw",
                "type": "string",
                "pattern": f"^({drafts.FORM.pattern})?$",
                "description": "RUN/IMAGE/SEED: draw this draft of a run that is kept, alone and with its image's "
                "prompts, and draft no more.",
                "default": "",
            },
            **{item.name: _field(item.default, item.metadata["spec"]) for item in fields(Settings)},
        },
    }


def _field(default: Any, about: Spec) -> dict[str, Any]:
    found: dict[str, Any] = {"title": about.label, "description": about.help, "infotext": about.infotext}
    if about.unit:
        found["unit"] = about.unit
    if isinstance(default, tuple):
        bounded = about.low is not None
        items = {"type": "integer", **_bounds(about)} if bounded else {"type": "string", "pattern": "\\S"}
        return {**found, "type": "array", "items": items, "default": list(default)}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    found.update(type=kinds[type(default)], **_bounds(about), default=default)
    if about.is_switch:
        del found["type"]  # true and false are on and off
    if about.choices:
        found["enum"] = [*about.choices, *((True, False) if about.is_switch else ())]
    return found


def _bounds(about: Spec) -> dict[str, Any]:
    if about.infotext == FACTOR:
        return {"enum": [0, *(2**k for k in range(7))]}
    return {} if about.low is None or about.high is None else {"minimum": about.low, "maximum": about.high}


def table() -> str:
    """The fields as a Markdown table."""
    lines = ["| name | default | allowed | meaning | infotext |", "|---|---|---|---|---|"]
    for item in fields(Settings):
        about: Spec = item.metadata["spec"]
        default = list(item.default) if isinstance(item.default, tuple) else item.default
        allowed = about.allowed() if about.choices or about.low is not None else _KINDS[type(item.default)]
        if isinstance(item.default, tuple) and about.low is not None:
            allowed = f"a list of whole numbers, each {allowed}"
        cells = (f"`{item.name}`", f"`{json.dumps(default)}`", allowed, about.help, f"`{about.infotext}`")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


FACTOR = specs()["factor"].infotext

_KINDS: dict[type, str] = {bool: "true or false", str: "a text", tuple: "a list of texts"}
