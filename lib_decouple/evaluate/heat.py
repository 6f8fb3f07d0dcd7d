"""Cross-attention maps of a run's pictures: those stored beside them, or the embedded model drawn again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..hosts.checkpoints import CHECKPOINT, open_pipeline
from ..hosts.diffusers import generate
from ..settings import Settings
from .store import Row, Store

SUFFIX = ".maps.npz"
"""Beside an image, instead of its own: array "maps" ``[entities, h, w]``."""
SAME = 2.0
"""Mean difference of two pictures' 8-bit values up to which one is the other drawn again."""


@lru_cache
def _digest() -> str:
    return hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()


def is_embedded(row: Row) -> bool:
    """Whether the embedded model drew it, the one that is installed here."""
    digits = row["checkpoint"] or ""
    return len(digits) >= 8 and _digest().startswith(digits)


def maps_of(store: Store, rows: Sequence[Row]) -> dict[int, np.ndarray]:
    """Image id -> maps ``[entities, h, w]``, the mean over the first half of the steps.

    Left out are images that have none stored and cannot be drawn again to the same picture.
    """
    found: dict[int, np.ndarray] = {}
    pipe: Any = None
    for row in {row["id"]: row for row in rows}.values():
        stored = (store.folder / row["file"]).with_suffix(SUFFIX)
        if stored.exists():
            found[row["id"]] = np.load(stored)["maps"].astype(np.float32)
        elif is_embedded(row) and row["sampling"]:
            pipe = pipe or open_pipeline(None)
            if (maps := _again(pipe, store.folder / row["file"], row)) is not None:
                found[row["id"]] = maps
    return found


def _again(pipe: Any, file: Path, row: Row) -> np.ndarray | None:
    """None where another picture comes out."""
    settings, sampling = Settings.from_dict(row["settings"]), row["sampling"]
    picture = generate(
        pipe,
        [row["prompt"]],
        [row["entities"]],
        settings,
        seeds=[row["seed"]],
        steps=sampling["steps"],
        guidance_scale=sampling["cfg"],
        negative_prompt=sampling.get("negative") or "",
        observe=not settings.enabled,
        watch=settings.enabled,
        keep_maps=True,
    )
    with Image.open(file) as image:
        before = np.asarray(image.convert("RGB"), np.float32)
    after = np.asarray(picture.images[0], np.float32)
    if before.shape != after.shape or np.abs(before - after).mean() > SAME:
        return None
    looks = picture.traces[0].steps
    kept = [look.maps for look in looks[: max(1, len(looks) // 2)] if look.maps is not None]
    return torch.stack(kept).mean(0).numpy() if kept else None


def overlay(image: Image.Image, attention: np.ndarray) -> Image.Image:
    """A map ``[h, w]`` as heat over the picture in grey, brightest where it is highest."""
    import matplotlib

    large = Image.fromarray(attention.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(large) / max(float(attention.max()), 1e-12), 0, 1)
    heat = matplotlib.colormaps["inferno"](0.3 + 0.7 * strength)[..., :3]
    grey = np.asarray(image.convert("L"), np.float32)[..., None] / 255
    weight = 0.9 * strength[..., None] ** 2
    return Image.fromarray((255 * (grey * (1 - weight) + heat * weight)).astype(np.uint8))
