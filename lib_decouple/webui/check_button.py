"""The button "Check this machine", and the page of what it finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from .. import doctor
from . import check_machine, page


def add(elem_id: Callable[[str], str]) -> None:
    """Put the button where gradio stands, with places for what is found."""
    page.heading("Does guidance work on this machine?", "h4")
    button = gr.Button(
        "Check this machine", elem_id=elem_id("check_machine"), size="sm", elem_classes=[page.BUTTON]
    )  # fmt: skip
    told = gr.HTML("", elem_id=elem_id("check_machine_found"))
    report = gr.Textbox(
        "", label="To paste into an issue", info="It names no prompt and no path.", lines=8, max_lines=8,
        visible=False, interactive=False, show_copy_button=True, elem_id=elem_id("check_machine_report"),
    )  # fmt: skip
    report.do_not_save_to_config = True
    button.click(check, [], [told, report], api_name=False)


def check() -> tuple[str, Any]:
    """What is told after a press, and the report to copy."""
    try:
        found = check_machine.check()
    except check_machine.NotNow as error:
        return page.paragraph(str(error)), gr.update(visible=False)
    told = "".join(page.paragraph(one) for one in doctor.sentences(found))
    return told, gr.update(value=found.as_json(), visible=True)
