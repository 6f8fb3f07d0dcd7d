"""Attention maps as pictures: each entity's in its colour over what was drawn, and their overlap in white.

``Â_i(p) = A_i(p) / Σ_p A_i(p)``. An entity's panel shows ``Â_i(p) / max_p Â_i(p)``. The overlap's shows the attention
that the weaker entities of each pixel hold, ``Σ_i Â_i(p) − max_i Â_i(p)``, over ``max_i,p Â_i(p)``: as bright as an
entity's peak where it is as strong.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .palette import colours

Font = Callable[[int], Any]
"""A Pillow font of a size in pixels."""

OVERLAP = "overlap"
SIDE = 256
"""Pixels of a panel's longer side."""
GAP, STRIP = 6, 22
"""Pixels between panels, and of the strip with a panel's name."""
INK, PAPER = (235, 235, 235), (17, 17, 17)
SMALL = 512
"""Pixels of a kept picture's longer side."""


def default_font(size: int) -> Any:
    """Pillow's own, where no host has one."""
    try:
        return ImageFont.load_default(size)
    except TypeError:  # before Pillow 10.1
        return ImageFont.load_default()


def small(picture: Image.Image, side: int = SMALL) -> bytes:
    """A picture, its longer ``side`` no more than so many pixels, as a JPEG."""
    own = picture.convert("RGB")
    own.thumbnail((side, side))
    made = io.BytesIO()
    own.save(made, "JPEG", quality=85)
    return made.getvalue()


def as_png(picture: Image.Image) -> bytes:
    """A picture's file."""
    made = io.BytesIO()
    picture.save(made, "PNG")
    return made.getvalue()


def normalised(maps: np.ndarray) -> np.ndarray:
    """``Â``, float64; a map of zeros stays so. ``[entities, h, w]``."""
    maps = np.nan_to_num(maps.astype(np.float64))
    total = maps.sum((1, 2), keepdims=True)
    return np.divide(maps, total, out=np.zeros_like(maps), where=total > 0)


def overlap(maps: np.ndarray) -> np.ndarray:
    """What the weaker entities hold of each pixel: ``[h, w]``, from maps ``[entities, h, w]``."""
    shares = normalised(maps)
    held: np.ndarray = shares.sum(0) - shares.max(0)
    return held


def row(maps: np.ndarray, entities: Sequence[str], picture: bytes, of: str, font: Font) -> Image.Image:
    """One moment's panels side by side, or the one that ``of`` names."""
    panels = _panels(maps, entities, picture, font)
    return panels[of] if of else _joined([list(panels.values())], [""], font)


def sheet(rows: Sequence[tuple[str, np.ndarray]], entities: Sequence[str], picture: bytes, font: Font) -> Image.Image:
    """Several moments, one a row with its title: maps ``[entities, h, w]``."""
    panels = [list(_panels(maps, entities, picture, font).values()) for _, maps in rows]
    return _joined(panels, [title for title, _ in rows], font)


def names(entities: Sequence[str]) -> list[str]:
    """What a moment's panels are called: the entities, and the overlap where there are two; that of an entity called
    "overlap" keeps its name."""
    return [*entities, *([f"{OVERLAP} of all" if OVERLAP in entities else OVERLAP] if len(entities) > 1 else [])]


def _panels(maps: np.ndarray, entities: Sequence[str], picture: bytes, font: Font) -> dict[str, Image.Image]:
    """An entity's panel by its name, and the overlap's where there are two."""
    shares = normalised(maps)
    under = Image.open(io.BytesIO(picture)) if picture else None
    height, width = (under.height, under.width) if under else maps.shape[1:]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    base = np.zeros((size[1], size[0])) if under is None else np.asarray(under.convert("L").resize(size)) / 255
    made = {
        name: _panel(share / (share.max() or 1), base, _rgb(colour), name, font)
        for name, share, colour in zip(entities, shares, colours(entities))
    }
    if len(entities) > 1:
        name = names(entities)[-1]
        made[name] = _panel(overlap(maps) / (shares.max() or 1), base, (255, 255, 255), name, font)
    return made


def _panel(strength: np.ndarray, base: np.ndarray, colour: Sequence[int], name: str, font: Font) -> Image.Image:
    """A map ``[h, w]`` in [0, 1] in a colour over a grey picture ``[H, W]`` in [0, 1], under a strip with its name."""
    height, width = base.shape
    smooth = Image.fromarray(strength.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    alpha = np.clip(np.asarray(smooth), 0, 1)[..., None]
    mixed = (1 - alpha) * 0.35 * 255 * base[..., None] + alpha * np.array(colour, float)
    made = Image.new("RGB", (width, height + STRIP), PAPER)
    made.paste(Image.fromarray(mixed.round().astype(np.uint8)), (0, STRIP))
    pen = ImageDraw.Draw(made)
    pen.rectangle((0, 4, 12, 16), fill=tuple(colour))
    _write(pen, (18, 2), name, font(15))
    return made


def _joined(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], font: Font) -> Image.Image:
    heads = [STRIP if title else 0 for title in titles]
    width = max(sum(one.width + GAP for one in row) for row in rows) + GAP
    height = sum(head + row[0].height + GAP for head, row in zip(heads, rows)) + GAP
    made, top = Image.new("RGB", (width, height), PAPER), GAP
    for row, head, title in zip(rows, heads, titles):
        if title:
            _write(ImageDraw.Draw(made), (GAP, top), title, font(16))
        left = GAP
        for one in row:
            made.paste(one, (left, top + head))
            left += one.width + GAP
        top += head + row[0].height + GAP
    return made


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, font: Any) -> None:
    try:
        pen.text(place, text, fill=INK, font=font)
    except UnicodeEncodeError:  # Pillow's font before 10.1 knows Latin alone
        pen.text(place, text.encode("latin-1", "replace").decode("latin-1"), fill=INK, font=font)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
