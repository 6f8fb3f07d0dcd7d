"""Places in the accordion that the scripts in ``javascript/`` fill."""

from __future__ import annotations

from html import escape

from .palette import COLOURS
from .rest import PAGE_KEY


def place(name: str) -> str:
    """An empty place of the class ``decouple-NAME``, with what its script must know: the key of the page's requests
    and the colours."""
    return f'<div class="decouple-{name}" data-key="{escape(PAGE_KEY)}" data-colours="{" ".join(COLOURS)}"></div>'
