"""The place of the prompt's clickable words; ``javascript/decouple_chips.js`` fills it."""

from __future__ import annotations

from html import escape

from .palette import COLOURS
from .rest import PAGE_KEY


def place() -> str:
    """The empty place, with what the script must know: the key of the page's requests and the colours."""
    return f'<div class="decouple-chips" data-key="{escape(PAGE_KEY)}" data-colours="{" ".join(COLOURS)}"></div>'
