"""Cross-attention maps of a run's pictures: those stored beside them, or the embedded model drawn again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ...hosts.checkpoints import CHECKPOINT, open_pipeline
from ...hosts.diffusers import Drawing
from ...settings import Settings
from .store import Row, Store

SUFFIX = ".maps.npz"
"""Beside an image, instead of its own: array "maps" ``[entities, h, w]``."""
SAME = 2.0
"""Mean difference of two pictures' 8-bit values up to which one is the other drawn again."""


BATCH = 8
"""Pictures drawn again at once."""


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
    groups: dict[str, list[Row]] = {}
    for row in {row["id"]: row for row in rows}.values():
        stored = (store.folder / row["file"]).with_suffix(SUFFIX)
        if stored.exists():
            found[row["id"]] = np.load(stored)["maps"].astype(np.float32)
        elif is_embedded(row) and row["sampling"]:
            groups.setdefault(json.dumps([row["settings"], row["sampling"]], sort_keys=True), []).append(row)
    batches = [own[i : i + BATCH] for own in groups.values() for i in range(0, len(own), BATCH)]
    if batches:
        pipe = open_pipeline(None)
        for batch in tqdm(batches, desc="maps", unit="batch"):
            found |= _again(pipe, store.folder, batch)
    return found


def _again(pipe: Any, folder: Path, rows: Sequence[Row]) -> dict[int, np.ndarray]:
    """Of rows of the same settings and sampling. Where another picture comes out, none."""
    settings, sampling = Settings.from_dict(rows[0]["settings"]), rows[0]["sampling"]
    picture = Drawing(
        pipe,
        [row["prompt"] for row in rows],
        [row["entities"] for row in rows],
        settings,
        seeds=[row["seed"] for row in rows],
        steps=sampling["steps"],
        guidance_scale=sampling["cfg"],
        height=sampling.get("height") or None,
        width=sampling.get("width") or None,
        negative_prompt=sampling.get("negative") or "",
        observe=not settings.enabled,
        watch=settings.enabled,
        keep_maps=True,
    ).picture()
    found = {}
    for row, drawn, trace in zip(rows, picture.images, picture.traces):
        with Image.open(folder / row["file"]) as image:
            before = np.asarray(image.convert("RGB"), np.float32)
        after = np.asarray(drawn, np.float32)
        looks = trace.steps[: max(1, len(trace.steps) // 2)]
        kept = [look.maps for look in looks if look.maps is not None]
        if kept and before.shape == after.shape and np.abs(before - after).mean() <= SAME:
            found[row["id"]] = torch.stack(kept).mean(0).numpy()
    return found


def overlay(image: Image.Image, attention: np.ndarray) -> Image.Image:
    """A map ``[h, w]`` as heat over the picture in grey, brightest where it is highest."""
    import matplotlib

    large = Image.fromarray(attention.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(large) / max(float(attention.max()), 1e-12), 0, 1)
    heat = matplotlib.colormaps["inferno"](0.3 + 0.7 * strength)[..., :3]
    grey = np.asarray(image.convert("L"), np.float32)[..., None] / 255
    weight = 0.9 * strength[..., None] ** 2
    return Image.fromarray((255 * (grey * (1 - weight) + heat * weight)).astype(np.uint8))
