"""Places in the accordion that the scripts in ``javascript/`` fill."""

from __future__ import annotations

from html import escape

from .callers import PAGE_KEY


def place(name: str) -> str:
    """An empty place of the class ``decouple-NAME``, with the key of the page's requests."""
    return f'<div class="decouple-{name}" data-key="{escape(PAGE_KEY)}"></div>'
