"""The button that puts the embedded model among a WebUI's checkpoints, where it can load it and has it not yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ..embedded import place
from . import page


def add(folder: Path | None, elem_id: Callable[[str], str]) -> None:
    """Put the button where gradio stands; not without a ``folder`` of checkpoints, nor where the model is there."""
    if folder is None or (folder / place.CHECKPOINT.name).exists():
        return
    page.heading("Without a model of your own", "h4")
    button = gr.Button(
        "Put this extension's small model among the checkpoints", elem_id=elem_id("try_out"), size="sm",
        elem_classes=[page.BUTTON],
    )  # fmt: skip
    told = gr.HTML("", elem_id=elem_id("try_out_message"))
    button.click(lambda: put(folder), [], [told, button], queue=False, show_progress=False, api_name=False)


def put(folder: Path) -> tuple[str, Any]:
    """What is told after a press, and the button, which goes once the model is there."""
    try:
        place.put(folder)
    except FileExistsError:
        pass  # by another page
    except OSError as error:
        return page.paragraph(f"The checkpoints' folder: {error.strerror or error}"), gr.update()
    how = page.paragraph(
        "It is there. Refresh the list of checkpoints, choose it, and draw “a cat and a dog” at its size:"
    )
    return how + page.paragraph(f"{place.CHECKPOINT.stem}: {place.HOW}"), gr.update(visible=False)


def folder_of_webui() -> Path | None:
    """The WebUI's folder of checkpoints; None where it could not load the embedded one."""
    from ..hosts import detect

    try:
        from modules import sd_models
    except ImportError:
        return None
    return Path(sd_models.model_path) if detect.reads_layouts() else None
