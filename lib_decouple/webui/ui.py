"""The accordion, generated from the settings model, and the status line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr

from ..settings import Group, Settings, Spec, specs
from . import check_button, page, presets_ui, try_out
from .api import ORDER, TITLE
from .infotext import pasted_problem, to_text

FACTOR = specs()["factor"].infotext

EXPERT: dict[Group, str] = {
    "steps": "At which steps",
    "update": "How a step is made",
    "maps": "Which attention maps are read",
    "memory": "Memory",
}
"""Titles of the groups that are folded away."""

NO_BREAK = "\u00a0"
_PERCENT = re.compile(r"(?<=\d) (?=%)")
_OPTION = re.compile(r"(?<=\s)--[\w-]+")
"""Of a command in a sentence, which a browser would break behind its hyphens."""

_status_numbers = count(1)


def controls(
    accordion: Callable[..., Any], elem_id: Callable[[str], str], checkpoints: Path | None = None
) -> tuple[dict[str, Any], Any]:
    """Build the accordion; gives the control of every field, in the order of a
    positional list, and the status line.

    ``accordion`` is the host's ``InputAccordion``, whose state is the field ``enabled``; ``elem_id``
    makes an element's id from its name; into ``checkpoints`` the embedded model can be put. Nothing outside the
    accordion is touched.
    """
    made: dict[str, Any] = {}
    with accordion(False, label=TITLE, elem_id=elem_id("enabled")) as made["enabled"]:
        page.heading("What to keep apart")
        gr.HTML(page.place("chips"), elem_id=elem_id("tokens"))
        _grid("entities", made, elem_id)
        page.heading("How strongly")
        choice = presets_ui.choice(elem_id)
        _grid("strength", made, elem_id)
        page.heading("See what it did")
        status = gr.HTML("", elem_id=elem_id("status"))
        _grid("told", made, elem_id)
        made |= _job_buttons(elem_id)
        made["draw"] = gr.Textbox("", label="Draw", visible=False, elem_id=elem_id("draw"))
        made["draw"].do_not_save_to_config = True  # a click on a draft fills it for one job
        gr.HTML(page.place("drafts"), elem_id=elem_id("drafts_page"))
        gr.HTML(page.place("live"), elem_id=elem_id("live"))
        gr.HTML(page.place("trace"), elem_id=elem_id("trace"))
        share = gr.Accordion("Share presets", open=False, elem_id=elem_id("presets"))
        with gr.Accordion("Expert", open=False, elem_id=elem_id("expert")):
            for group, title in EXPERT.items():
                page.heading(title, "h4")
                _grid(group, made, elem_id)
            check_button.add(elem_id)
            try_out.add(checkpoints, elem_id)
        with share:
            presets_ui.add(choice, made, elem_id)
    return {name: made[name] for name in ORDER}, status


def _job_buttons(elem_id: Callable[[str], str]) -> dict[str, Any]:
    """Buttons side by side, and by field the hidden controls that each ticks for one job (``decouple_buttons.js``)."""
    buttons = {"compare": "Compare with the plain picture", "drafts_only": "Draft without drawing"}
    with gr.Row(elem_id=elem_id("job_buttons"), elem_classes=["decouple-line"]):
        for name, text in buttons.items():
            gr.Button(text, elem_id=elem_id(f"{name}_button"), size="sm", elem_classes=[page.BUTTON])
    made = {name: gr.Checkbox(False, label=buttons[name], visible=False, elem_id=elem_id(name)) for name in buttons}
    for control in made.values():
        control.do_not_save_to_config = True
    return made


def _grid(group: Group, made: dict[str, Any], elem_id: Callable[[str], str]) -> None:
    """A group's controls, side by side where there is room."""
    about = specs()
    defaults = {item.name: item.default for item in fields(Settings)}
    with gr.Row(elem_id=elem_id(f"group_{group}"), elem_classes=["decouple-grid"]):
        for name in sorted(about, key=_place):
            if about[name].group == group and name != "enabled":
                made[name] = _control(about[name], defaults[name], elem_id(name))


def _place(name: str) -> float:
    """A setting's place on the page: that of the model, but where guidance begins stands before where it ends."""
    names = list(specs())
    return names.index("steps") - 0.5 if name == "start" else names.index(name)


def _control(spec: Spec, default: Any, elem_id: str) -> Any:
    given: dict[str, Any] = {"label": spec.label, "elem_id": elem_id}
    allowed = "" if spec.choices or spec.low is None else f" ({spec.allowed()})"
    given["info"] = spec.help + allowed
    if isinstance(default, bool):
        return gr.Checkbox(value=default, elem_classes=["decouple-tick"], **given)
    if spec.choices:
        return gr.Radio(choices=list(spec.choices), value=default, **given)
    if isinstance(default, int) and spec.infotext == FACTOR:
        return gr.Number(value=default, precision=0, **given)  # a slider would offer sizes that are no powers of two
    if isinstance(default, int):
        return gr.Slider(minimum=spec.low, maximum=spec.high, step=1, value=default, **given)
    if isinstance(default, float):
        return gr.Number(value=default, **given)
    if spec.offered:
        return gr.Dropdown(choices=list(spec.offered), value=default, allow_custom_value=True, **given)
    return gr.Textbox(value=to_text(default), lines=1, **given)


def pasted_status(params: Mapping[str, Any]) -> str:
    """The status line after a paste of an infotext: what was wrong with it."""
    problem = pasted_problem(params)
    if not problem:
        return ""
    text = f"The pasted settings are not taken, guidance is off: {problem}"
    gr.Warning(text)
    return status_html([text])


def status_html(lines: list[str], run: str = "") -> str:
    """The status line's content; one paragraph a line, escaped, within what names the ``run`` whose trace is kept.

    Each has a number of its own, by which the page tells a new run's line from the one before, alike or not.
    """
    if not lines:
        return ""
    whole = (
        _OPTION.sub(r'<span class="decouple-option">\g<0></span>', escape(_PERCENT.sub(NO_BREAK, one))) for one in lines
    )
    told = "".join(f"<p>{line}</p>" for line in whole)
    return f'<div class="decouple-run" data-told="{next(_status_numbers)}" data-run="{escape(run)}">{told}</div>'
