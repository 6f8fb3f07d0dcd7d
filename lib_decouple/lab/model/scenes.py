"""Drawn scenes with known content: what the embedded model learns from and is judged on.

A scene is a light grey square with one to three entities that do not touch. Every entity
has a colour and a silhouette of its own, so a rule can tell what a picture shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image, ImageDraw

SIDE = 96
"""Side of a scene in pixels."""

GROUND = (226, 226, 226)
"""Colour of the ground, RGB in 0..255."""

RADIUS = (13.0, 17.0)
"""Range of an entity's radius in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "cat": (224, 40, 40),
    "dog": (40, 70, 225),
    "bear": (45, 40, 40),
    "bird": (245, 210, 20),
    "frog": (30, 150, 55),
    "car": (205, 50, 200),
    "ball": (30, 195, 215),
}
"""Entity -> its colour, RGB in 0..255."""

ENTITIES = tuple(COLOURS)

HELD_OUT_PAIRS: frozenset[frozenset[str]] = frozenset(
    frozenset(pair)
    for pair in (("cat", "frog"), ("dog", "ball"), ("bear", "bird"), ("car", "bird"), ("dog", "frog"), ("cat", "car"))
)
"""Six of the 21 pairs: never drawn together in training."""

_OVERSAMPLING = 3


@dataclass(frozen=True)
class Placed:
    """One entity in a scene; centre and radius in pixels."""

    entity: str
    x: float
    y: float
    radius: float


def _draw(draw: ImageDraw.ImageDraw, placed: Placed, scale: float, fill: int | tuple[int, int, int]) -> None:
    x, y, r = placed.x * scale, placed.y * scale, placed.radius * scale

    def disc(cx: float, cy: float, cr: float) -> None:
        draw.ellipse((cx - cr, cy - cr, cx + cr, cy + cr), fill=fill)

    def polygon(*points: tuple[float, float]) -> None:
        draw.polygon([(x + px * r, y + py * r) for px, py in points], fill=fill)

    if placed.entity == "cat":
        disc(x, y + 0.12 * r, 0.88 * r)
        polygon((-0.88, -1.0), (-0.9, 0.1), (-0.05, -0.6))
        polygon((0.88, -1.0), (0.9, 0.1), (0.05, -0.6))
    elif placed.entity == "dog":
        polygon((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))
    elif placed.entity == "bear":
        disc(x, y + 0.15 * r, 0.85 * r)
        disc(x - 0.65 * r, y - 0.6 * r, 0.38 * r)
        disc(x + 0.65 * r, y - 0.6 * r, 0.38 * r)
    elif placed.entity == "bird":
        polygon((0.0, -1.0), (1.0, 0.8), (-1.0, 0.8))
    elif placed.entity == "frog":
        polygon((0.0, -1.05), (1.05, 0.0), (0.0, 1.05), (-1.05, 0.0))
    elif placed.entity == "car":
        polygon((-1.05, -0.1), (-0.6, -0.7), (0.6, -0.7), (1.05, -0.1), (1.05, 0.7), (-1.05, 0.7))
    elif placed.entity == "ball":
        disc(x, y, 0.95 * r)
    else:
        raise ValueError(f"entity: {placed.entity!r} is not drawn here; one of {', '.join(ENTITIES)}")


def silhouette(placed: Placed, side: int = SIDE) -> np.ndarray:
    """Boolean mask ``[side, side]`` of one entity."""
    image = Image.new("L", (side * _OVERSAMPLING,) * 2)
    _draw(ImageDraw.Draw(image), placed, _OVERSAMPLING, 255)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX)) > 127


def render(scene: list[Placed], side: int = SIDE) -> np.ndarray:
    """Draw a scene: uint8 ``[side, side, 3]``, anti-aliased."""
    image = Image.new("RGB", (side * _OVERSAMPLING,) * 2, GROUND)
    draw = ImageDraw.Draw(image)
    for placed in scene:
        _draw(draw, placed, _OVERSAMPLING, COLOURS[placed.entity])
    return np.array(image.resize((side, side), Image.Resampling.BOX))


def place(entities: list[str], rng: np.random.Generator, side: int = SIDE, gap: float = 5.0) -> list[Placed]:
    """Put entities at random, at least ``gap`` pixels apart, by rejection.

    Raises ValueError when they do not fit after many tries.
    """
    for _ in range(1000):
        scene: list[Placed] = []
        for entity in entities:
            radius = float(rng.uniform(*RADIUS))
            low, high = radius * 1.05 + 2, side - radius * 1.05 - 2
            x, y = rng.uniform(low, high, size=2)
            scene.append(Placed(entity, float(x), float(y), radius))
        if all(
            math.hypot(a.x - b.x, a.y - b.y) >= 1.1 * (a.radius + b.radius) + gap for a, b in combinations(scene, 2)
        ):
            return scene
    raise ValueError(f"entities: {len(entities)} do not fit on {side} x {side} pixels")


def caption(entities: list[str]) -> str:
    """``["cat", "dog"]`` -> "a cat and a dog"."""
    return " and ".join(f"a {entity}" for entity in entities)
