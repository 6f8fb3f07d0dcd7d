"""Drawn scenes with known content: one to four things that do not touch, on a plain or simply textured ground.

Singles are common, pairs less so, triples rare, and most pairs are never drawn together (:data:`COMPANY`), as
in web data. Captions name exactly what is drawn, with the colours that things were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from PIL import Image

from .sprites import ANIMALS, COLOURS, OBJECTS, SIDE, THINGS, Sprite, drawings, tinted

SCENE = 128
"""Side of a scene, pixels."""

SHARES = (0.70, 0.25, 0.05)
"""Share of scenes with one, two and three things."""

PAIRS_DRAWN = 0.25
"""Share of the 276 pairs that are ever drawn together in training."""

TINTED = {"animal": 0.12, "object": 0.65}
"""How often a thing is given a colour, which its caption then names."""

GROUNDS = (
    (236, 236, 232),
    (214, 228, 240),
    (222, 236, 214),
    (243, 229, 208),
    (233, 219, 238),
    (205, 212, 218),
)
"""Colours of the ground, RGB in 0..255."""

SIZES = {1: (52, 84), 2: (46, 64), 3: (42, 54), 4: (36, 46)}
"""Things in a scene -> range of a drawing's longer side, pixels."""


def _company() -> frozenset[frozenset[str]]:
    rng = np.random.default_rng(16)
    pairs = list(combinations(THINGS, 2))
    picked = rng.permutation(len(pairs))[: round(len(pairs) * PAIRS_DRAWN)]
    return frozenset(frozenset(pairs[i]) for i in picked)


COMPANY: frozenset[frozenset[str]] = _company()
"""The pairs that scenes for training may hold; the others are never drawn together there."""


@dataclass(frozen=True)
class Placed:
    """One thing in a scene: centre, longer side in pixels, angle in degrees; colour None is the drawing's own."""

    sprite: Sprite
    colour: str | None
    x: float
    y: float
    size: float
    angle: float
    mirrored: bool

    @property
    def thing(self) -> str:
        """What it is, such as "cat"."""
        return self.sprite.thing


@cache
def _picture(thing: str, name: str, colour: str | None) -> Image.Image:
    sprite = next(s for s in drawings(thing, "taught", "judged", "held out") if s.name == name)
    pixels = sprite.pixels if colour is None else tinted(sprite.pixels, colour)
    return Image.fromarray(pixels, "RGBA")


def _stamp(placed: Placed) -> np.ndarray:
    """RGBA, uint8 ``[h, w, 4]``; Pillow resizes and turns with weights by alpha, so rims keep their colour."""
    picture = _picture(placed.thing, placed.sprite.name, placed.colour)
    if placed.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = max(2, round(placed.size * SIDE / (SIDE - 2)))
    picture = picture.resize((side, side), Image.Resampling.BILINEAR if side > SIDE else Image.Resampling.BOX)
    if placed.angle:
        picture = picture.rotate(placed.angle, Image.Resampling.BILINEAR, expand=True)
    return np.asarray(picture)


def ground(rng: np.random.Generator, side: int = SCENE) -> np.ndarray:
    """A ground, float32 ``[side, side, 3]`` in 0..255: plain, shaded, striped, dotted or with a floor."""
    base = np.array(GROUNDS[rng.integers(len(GROUNDS))], np.float32) + rng.uniform(-6, 6)
    yy, xx = np.mgrid[:side, :side].astype(np.float32) / side
    kind = rng.choice(["plain", "shaded", "floor", "striped", "dotted"], p=[0.5, 0.2, 0.2, 0.05, 0.05])
    shade = np.zeros((side, side), np.float32)
    if kind == "shaded":
        angle = rng.uniform(0, 2 * np.pi)
        shade = 14 * ((xx - 0.5) * np.cos(angle) + (yy - 0.5) * np.sin(angle))
    elif kind == "floor":
        shade = np.where(yy > rng.uniform(0.6, 0.85), -14, 0).astype(np.float32)
    elif kind == "striped":
        across = xx if rng.random() < 0.5 else yy
        shade = np.where((across * side // 16) % 2 == 0, 4, -4).astype(np.float32)
    elif kind == "dotted":
        shade = -9 * np.exp(-(((xx * side % 16 - 8) ** 2 + (yy * side % 16 - 8) ** 2) / 8)).astype(np.float32)
    return np.clip(base + shade[..., None], 0, 255)


def render(scene: list[Placed], rng: np.random.Generator) -> np.ndarray:
    """Draw a scene on a ground from ``rng``: uint8 ``[SCENE, SCENE, 3]``."""
    canvas = ground(rng)
    for placed in scene:
        stamp = _stamp(placed).astype(np.float32)
        height, width = stamp.shape[:2]
        left, top = round(placed.x - width / 2), round(placed.y - height / 2)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + width, SCENE), min(top + height, SCENE)
        part = stamp[y0 - top : y1 - top, x0 - left : x1 - left]
        canvas[y0:y1, x0:x1] += (part[..., :3] - canvas[y0:y1, x0:x1]) * (part[..., 3:] / 255)
    return np.clip(canvas.round(), 0, 255).astype(np.uint8)


def place(
    things: list[tuple[str, str | None]], rng: np.random.Generator, roles: tuple[str, ...] = ("taught",)
) -> list[Placed]:
    """Things with their colours (or None), put at random so that their squares do not overlap.

    Raises ValueError for an unknown thing or colour, for more than four, and when they do not fit after many tries.
    """
    if not 1 <= len(things) <= max(SIZES):
        raise ValueError(f"things: {len(things)} given; 1 to {max(SIZES)} fit a scene")
    unknown = [colour for _, colour in things if colour is not None and colour not in COLOURS]
    if unknown:
        raise ValueError(f"colour: {unknown[0]!r} is unknown; one of {', '.join(COLOURS)}")
    for _ in range(1000):
        scene: list[Placed] = []
        for thing, colour in things:
            placed = _free(thing, colour, scene, SIZES[len(things)], rng, roles)
            if placed is None:
                break
            scene.append(placed)
        else:
            return scene
    raise ValueError(f"things: {len(things)} do not fit on {SCENE} x {SCENE} pixels")


def _free(
    thing: str,
    colour: str | None,
    scene: list[Placed],
    sizes: tuple[int, int],
    rng: np.random.Generator,
    roles: tuple[str, ...],
) -> Placed | None:
    """A thing at a place that those of ``scene`` leave free, or None after some tries."""
    sprites = drawings(thing, *roles)
    sprite = sprites[rng.integers(len(sprites))]
    angle, mirrored = float(rng.uniform(-8, 8)), bool(rng.random() < 0.5)
    for _ in range(40):
        size = float(rng.uniform(*sizes))
        x, y = (float(v) for v in rng.uniform(size / 2 + 1, SCENE - size / 2 - 1, 2))
        if all(max(abs(x - b.x), abs(y - b.y)) >= (size + b.size) / 2 + 1 for b in scene):
            return Placed(sprite, colour, x, y, size, angle, mirrored)
    return None


def coloured(thing: str, rng: np.random.Generator) -> tuple[str, str | None]:
    """A thing with a colour, or with None as often as :data:`TINTED` says."""
    share = TINTED["animal" if thing in ANIMALS else "object"]
    return thing, str(rng.choice(list(COLOURS))) if rng.random() < share else None


def sample(rng: np.random.Generator) -> list[tuple[str, str | None]]:
    """What a scene for training holds: as often one, two or three as :data:`SHARES` says, in company that is drawn."""
    count = int(rng.choice([1, 2, 3], p=SHARES))
    while True:
        things = [str(thing) for thing in rng.choice(THINGS, size=count, replace=False)]
        if all(frozenset(pair) in COMPANY for pair in combinations(things, 2)):
            return [coloured(thing, rng) for thing in things]


def named(thing: str, colour: str | None) -> str:
    """ "a red car", "a cat"; always "a", as Attend-and-Excite's prompts have it."""
    return f"a {colour} {thing}" if colour else f"a {thing}"


def thing_and_colour(entity: str) -> tuple[str, str | None]:
    """ "red car" -> ``("car", "red")``, "cat" -> ``("cat", None)``. Raises ValueError for what is not drawn here."""
    *attributes, thing = entity.split()
    if thing not in THINGS:
        raise ValueError(f"entity: {entity!r} is not drawn here; one of {', '.join(THINGS)}")
    if len(attributes) > 1 or any(word not in COLOURS for word in attributes):
        raise ValueError(f"entity: {entity!r} is not drawn here; at most one colour of {', '.join(COLOURS)}")
    return thing, attributes[0] if attributes else None


def joined(entities: Sequence[str]) -> str:
    """``["cat", "red car"]`` -> "a cat and a red car"."""
    return " and ".join(named(*thing_and_colour(entity)) for entity in entities)


def caption(things: list[tuple[str, str | None]], rng: np.random.Generator) -> str:
    """A caption that names exactly these, in any order and in several wordings."""
    things = [things[i] for i in rng.permutation(len(things))]
    names = [named(thing, colour) for thing, colour in things]
    names = [n.replace("a ", "an ", 1) if n[2] in "aeo" and rng.random() < 0.5 else n for n in names]
    prefix = str(rng.choice(["", "a photo of ", "a picture of ", "a drawing of "], p=[0.7, 0.1, 0.1, 0.1]))
    if len(names) == 2 and rng.random() < (0.5 if things[0][0] in ANIMALS and things[1][0] in OBJECTS else 0.15):
        return f"{prefix}{names[0]} with {names[1]}"
    if len(names) == 3 and rng.random() < 0.5:
        return f"{prefix}{names[0]}, {names[1]} and {names[2]}"
    return prefix + " and ".join(names)
