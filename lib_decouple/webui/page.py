"""What the accordion's parts are built of, and the places in it that the scripts in ``javascript/`` fill."""

from __future__ import annotations

from html import escape

import gradio as gr

from .callers import PAGE_KEY

BUTTON = "decouple-button"
"""The class of our buttons: no higher than a control, no wider than their words."""


def place(name: str) -> str:
    """An empty place of the class ``decouple-NAME``, with the key of the page's requests."""
    return f'<div class="decouple-{name}" data-key="{escape(PAGE_KEY)}"></div>'


def heading(text: str, tag: str = "h3") -> None:
    """A group's title, put where gradio stands."""
    gr.HTML(f"<{tag}>{escape(text)}</{tag}>", elem_classes=["decouple-heading"])


def paragraph(text: str) -> str:
    """A sentence as HTML."""
    return f"<p>{escape(text)}</p>"
