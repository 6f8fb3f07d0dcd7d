"""Presets in the accordion: apply, save, delete, export, and import after a look at what would change."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from .. import presets
from ..presets import Preset
from ..settings import Settings, specs
from . import options, page
from .api import BESIDE, ORDER, settings_from
from .infotext import join_list

APPLIED = tuple(name for name in ORDER if name not in ("enabled", *BESIDE))
"""Fields whose controls a preset changes."""


class AfterPress(NamedTuple):
    """What the page shows after a press of a button; None leaves a part as it is."""

    message: str | None = None
    chosen: str | None = None
    """The name in the list of presets, which is read anew."""
    question: str | None = None
    """The label of the button that goes on with what needs a second press; "" hides it."""
    values: Mapping[str, Any] | None = None
    """Controls' values by field."""


class Answer(NamedTuple):
    """The components in which a press of a button is answered, beside it."""

    message: Any
    confirm: Any
    """The button of a second press, where one is needed."""
    asked: Any
    """What ``confirm`` goes on with: ``["delete", name]`` or ``["replace", name, JSON]``."""


class PresetChoice(NamedTuple):
    """The components by which a preset is chosen and applied."""

    listed: Any
    apply: Any
    reason: Any
    answer: Answer


def choice(elem_id: Callable[[str], str]) -> PresetChoice:
    """Put the list of presets where gradio stands; :func:`add` connects it."""
    own = _maker(elem_id)
    names = [one.name for one in presets.BUILT_IN]
    with gr.Row(elem_id=elem_id("presets_choose"), elem_classes=["decouple-line"]):
        listed = own(
            gr.Dropdown, "name", choices=names, value=names[0], label="Preset", allow_custom_value=True,
            info="“Apply” puts its values into the settings below.",
        )  # fmt: skip
        apply = own(gr.Button, "apply", "Apply", variant="primary")
    reason = own(gr.HTML, "reason", _paragraph(presets.BUILT_IN[0].reason))
    return PresetChoice(listed, apply, reason, _answer(own, "apply_"))


def add(chosen: PresetChoice, controls: Mapping[str, Any], elem_id: Callable[[str], str]) -> None:
    """Put what presets are shared by where gradio stands, and connect all to the ``controls`` of the fields."""
    own = _maker(elem_id)
    values = [controls[name] for name in ORDER]
    listed, apply, reason, of_apply = chosen
    page.heading("The preset chosen above", "h4")
    with gr.Row(elem_id=elem_id("presets_pass_on"), elem_classes=["decouple-line"]):
        export = own(gr.Button, "export", "Export")
        remove = own(gr.Button, "delete", "Delete")
        anew = own(gr.Button, "refresh", "Read again")  # for the script; the page hides it
    text = own(gr.Textbox, "text", label="As text, for a message", visible=False, show_copy_button=True, max_lines=6)
    file = own(gr.HTML, "file", visible=False)
    of_chosen = _answer(own, "")
    page.heading("Save the settings as a preset of yours", "h4")
    with gr.Row(elem_id=elem_id("presets_save_as"), elem_classes=["decouple-line"]):
        name = own(gr.Textbox, "save_name", label="Save as", placeholder="name", max_lines=1)
        why = own(gr.Textbox, "save_reason", label="Reason", placeholder="what it is good for", max_lines=1)
        save = own(gr.Button, "save", "Save")
    entities = own(
        gr.Checkbox, "save_entities", False, label="With the entities that stand above", elem_classes=["decouple-tick"]
    )
    of_save = _answer(own, "save_")
    page.heading("Import a preset of somebody else's", "h4")
    with gr.Row(elem_id=elem_id("presets_import"), elem_classes=["decouple-line"]):
        pasted = own(gr.Textbox, "import_text", label="Its text", placeholder="DECOUPLE1…", max_lines=6)
        own(gr.HTML, "import_file", page.place("import"))
    preview = own(gr.HTML, "preview")
    looked = gr.State("")
    """The text that ``preview`` shows."""
    with gr.Row(elem_id=elem_id("presets_import_do"), elem_classes=["decouple-line"]):
        take = own(gr.Button, "import_save", "Save it", visible=False)
        replace = own(gr.Button, "import_replace", "Replace mine", visible=False, variant="stop")
        use = own(gr.Button, "import_apply", "Apply without saving", visible=False)
    of_import = _answer(own, "import_")

    quiet: dict[str, Any] = {"queue": False, "show_progress": False, "api_name": False}
    applied = [controls[field] for field in APPLIED]

    answers = [of_apply, of_chosen, of_save, of_import]

    def press(button: Any, do: Callable[..., tuple[AfterPress, Any]], inputs: Sequence[Any], answer: Answer) -> None:
        """What an earlier press was answered goes, lest a second press be taken for another's."""
        others = [] if do is read_anew else [one for one in answers if one is not answer]
        shown = [answer.message, listed, reason, answer.confirm, answer.asked, *applied]
        gone = ["", gr.update(visible=False), None] * len(others)
        shown += [part for other in others for part in other]
        button.click(lambda *got: [*_updates(*_answered(do, *got)), *gone], list(inputs), shown, **quiet)

    listed.change(_reason_of, [listed], [reason], **quiet)
    press(anew, read_anew, [listed], of_chosen)
    press(apply, apply_preset, [listed, *values], of_apply)
    press(remove, ask_to_delete, [listed], of_chosen)
    press(save, save_preset, [name, why, entities, *values], of_save)
    export.click(export_preset, [listed], [text, file], **quiet)
    offered = [preview, looked, take, replace, use]
    pasted.change(preview_import, [pasted, *values], offered, **quiet)
    press(take, import_preset, [looked], of_import)
    press(replace, ask_to_replace, [looked], of_import)
    press(use, apply_import, [looked, *values], of_import)
    for answer in answers:
        press(answer.confirm, go_on, [answer.asked], answer)


def _answer(own: Callable[..., Any], name: str) -> Answer:
    message = own(gr.HTML, f"{name}message")
    return Answer(message, own(gr.Button, f"{name}confirm", "", visible=False, variant="stop"), gr.State(None))


def _maker(elem_id: Callable[[str], str]) -> Callable[..., Any]:
    """Makes components with ids of their own, of which the host keeps no defaults."""

    def own(component: Callable[..., Any], name: str, *args: Any, **given: Any) -> Any:
        if component is gr.Button:
            given = {"size": "sm", "elem_classes": [page.BUTTON], **given}
        made = component(*args, elem_id=elem_id(f"presets_{name}"), **given)
        made.do_not_save_to_config = True
        return made

    return own


def read_anew(name: str) -> tuple[AfterPress, Any]:
    """Read the folder again."""
    problems = presets.problems(options.preset_folder())
    return AfterPress("".join(map(_paragraph, problems)), name, ""), None


def apply_preset(name: str, *values: Any) -> tuple[AfterPress, Any]:
    """Put a preset's values into the controls."""
    return _applied(presets.load(name, options.preset_folder()), values), None


def ask_to_delete(name: str) -> tuple[AfterPress, Any]:
    """First press of Delete."""
    found = presets.load(name, options.preset_folder()).name
    if presets.is_built_in(found):
        raise ValueError(f"{found} is built in and can't be deleted")
    return AfterPress("", question=f"Delete {found}"), ["delete", found]


def save_preset(name: str, reason: str, with_entities: bool, *values: Any) -> tuple[AfterPress, Any]:
    """Save what the controls are now; asks before it replaces one."""
    now = settings_from(values)
    defaults = {item.name: item.default for item in fields(Settings)}
    chosen = {
        field: value
        for field, value in now.as_dict().items()
        if getattr(now, field) != defaults[field] and field != "enabled" and (with_entities or field != "entities")
    }
    return _saved(Preset(name.strip(), reason.strip(), chosen))


def ask_to_replace(text: str) -> tuple[AfterPress, Any]:
    """First press of an import that replaces a preset."""
    return _replace(presets.from_text(text))


def import_preset(text: str) -> tuple[AfterPress, Any]:
    """Save an import under its own name."""
    return _saved(presets.from_text(text))


def apply_import(text: str, *values: Any) -> tuple[AfterPress, Any]:
    """Put an import's values into the controls, without saving it."""
    return _applied(presets.from_text(text), values), None


def go_on(asked: Sequence[str] | None) -> tuple[AfterPress, Any]:
    """Second press: delete or replace what was asked for."""
    folder = options.preset_folder()
    if not asked:
        return AfterPress(question=""), None
    if asked[0] == "delete":
        presets.delete(asked[1], folder)
        return AfterPress(_paragraph(f"Deleted {asked[1]}."), presets.BUILT_IN[0].name, ""), None
    preset = presets.from_json(asked[2].encode())
    presets.save(preset, folder, overwrite=True)
    return AfterPress(_paragraph(f"Replaced {preset.name}."), preset.name, ""), None


def export_preset(name: str) -> tuple[Any, Any]:
    """A preset as a text, and as a link to a file."""
    try:
        preset = presets.load(name, options.preset_folder())
    except ValueError as error:
        return gr.update(visible=False), gr.update(visible=True, value=_problem(str(error)))
    data = base64.b64encode(presets.to_json(preset)).decode()
    link = f'<a download="{escape(preset.name)}.json" href="data:application/json;base64,{data}">Save as a file</a>'
    return gr.update(visible=True, value=presets.to_text(preset)), gr.update(visible=True, value=f"<p>{link}</p>")


def preview_import(text: str, *values: Any) -> tuple[Any, ...]:
    """What an import would change, and the buttons that do it."""

    def parts(html: str, kept: str = "", save: bool = False, replace: bool = False) -> tuple[Any, ...]:
        return html, kept, *(gr.update(visible=one) for one in (save, replace, bool(kept)))

    if not text.strip():
        return parts("")
    try:
        found = presets.preview(text, _now(values), options.preset_folder())
    except ValueError as error:
        return parts(_problem(str(error)))
    lines = [_paragraph(found.preset.name, "strong"), _paragraph(found.preset.reason)]
    lines.append(_table("Applying it changes", found.changes) or _paragraph("Applying it changes nothing."))
    if found.taken == "built in":
        lines.append(
            _paragraph("This preset is built in, with the same settings.")
            if found.identical
            else _paragraph("A built-in preset has this name; it can be applied, not saved.")
        )
    elif found.identical:
        lines.append(_paragraph("You have this preset already, with the same settings and reason."))
    elif found.taken == "yours":
        lines.append(_paragraph("You have a preset of this name."))
        lines.append(_table("Replacing it changes", found.replaces) or _paragraph("Replacing it changes no setting."))
    replace = found.taken == "yours" and not found.identical
    return parts("".join(lines), text, save=found.taken == "", replace=replace)


def _applied(preset: Preset, values: Sequence[Any]) -> AfterPress:
    before = _now(values)
    after = preset.applied_to(before)
    taken = {field: _as_control(getattr(after, field)) for field in APPLIED}
    if "entities" not in preset.settings:
        del taken["entities"]
    changes = _table(f"{preset.name} changed", presets.differences(before, after))
    return AfterPress(changes or _paragraph(f"{preset.name} changed nothing."), question="", values=taken)


def _saved(preset: Preset) -> tuple[AfterPress, Any]:
    folder = options.preset_folder()
    try:
        presets.save(preset, folder)
    except presets.PresetExists:
        if presets.is_built_in(preset.name):
            raise
        return _replace(preset)
    return AfterPress(_paragraph(f"Saved {preset.name}."), preset.name, ""), None


def _replace(preset: Preset) -> tuple[AfterPress, Any]:
    data = presets.to_json(preset).decode()
    found = presets.preview(data, Settings(), options.preset_folder())
    if found.identical:
        return AfterPress(
            _paragraph(f"{preset.name} is saved already, with the same settings and reason."), question=""
        ), None
    same = _paragraph(f"There is a preset {preset.name} already.")
    changes = _table("Replacing it changes", found.replaces) or _paragraph("Replacing it changes no setting.")
    return AfterPress(same + changes, question=f"Replace {preset.name}"), ["replace", preset.name, data]


def _answered(do: Callable[..., tuple[AfterPress, Any]], *got: Any) -> tuple[AfterPress, Any]:
    """What a press does, or in words why it does not."""
    try:
        return do(*got)
    except ValueError as error:
        return AfterPress(_problem(str(error)), question=""), None
    except OSError as error:
        return AfterPress(_problem(f"the presets' folder: {error.strerror}"), question=""), None


def _updates(shown: AfterPress, asked: Any) -> list[Any]:
    """For message, list, reason, confirm, asked and the controls of :data:`APPLIED`."""
    listed, reason = gr.update(), gr.update()
    if shown.chosen is not None:
        names = [one.name for one in presets.available(options.preset_folder())]
        listed, reason = gr.update(choices=names, value=shown.chosen), _reason_of(shown.chosen)
    confirm = gr.update() if shown.question is None else gr.update(visible=bool(shown.question), value=shown.question)
    values = shown.values or {}
    controls = [gr.update(value=values[field]) if field in values else gr.update() for field in APPLIED]
    return [gr.update() if shown.message is None else shown.message, listed, reason, confirm, asked, *controls]


def _reason_of(name: str) -> str:
    try:
        preset = presets.load(name, options.preset_folder())
    except ValueError as error:
        return _problem(str(error))
    # Labels stand apart, so that the host's localization finds them.
    own = ", ".join(
        f"<span>{escape(specs()[field].label)}</span>: {escape(_as_text_value(value))}"
        for field, value in preset.settings.items()
    )
    told = f"<p>{own}</p>" if own else _paragraph("All settings have their defaults.")
    return _paragraph(preset.reason) + told


def _now(values: Sequence[Any]) -> Settings:
    """The controls' settings; the defaults where they are none, so that a preset can still be applied."""
    try:
        return settings_from(values)
    except ValueError:
        return Settings()


def _as_control(value: Any) -> Any:
    return join_list(value) if isinstance(value, tuple) else value


def _as_text_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"  # as the controls have it
    return (join_list(value) or "none") if isinstance(value, list) else json.dumps(value).strip('"')


def _table(caption: str, changes: Mapping[str, tuple[Any, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(specs()[field].label)}</td>"
        f"<td>{escape(_as_text_value(before))}</td><td>{escape(_as_text_value(after))}</td></tr>"
        for field, (before, after) in changes.items()
    )
    head = "<tr><th>setting</th><th>before</th><th>after</th></tr>"
    return f"<table><caption>{escape(caption)}</caption>{head}{rows}</table>" if rows else ""


def _paragraph(text: str, tag: str = "p") -> str:
    return f"<{tag}>{escape(text)}</{tag}>" if text else ""


def _problem(text: str) -> str:
    """A paragraph that is marked as the chips' problems are."""
    return f'<p class="decouple-problem">{escape(text)}</p>'
