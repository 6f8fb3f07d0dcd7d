"""A run's maps as more pictures in the gallery, or as files beside the saved ones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.trace import Moment
from . import heatmaps
from .runs import KeptRun, RunImage

log = logging.getLogger("lib_decouple")

TITLES: dict[Moment, str] = {
    "unguided": "before guidance",
    "first": "after the first guided step",
    "last": "after the last guided step",
}


def place(p: Any, processed: Any, number: int) -> int | None:
    """Where the job's image ``number`` is among ``processed.images``; None when it isn't there.

    The host puts a grid before them, and behind each an inpainting mask and a composite where it is told to.
    """
    index = processed.index_of_first_image + number * stride(p)
    return index if index < len(processed.images) else None


def stride(p: Any) -> int:
    """How many pictures the host gives for an image of the job: itself, and its mask and composite."""
    from modules.shared import opts

    masked = getattr(p, "mask_for_overlay", None) is not None
    return 1 + masked * (bool(opts.return_mask) + bool(opts.return_mask_composite))


def pictures(p: Any, processed: Any) -> dict[int, bytes]:
    """The job's pictures, made small, by number."""
    found = {}
    for number in range(len(p.all_prompts)):
        index = place(p, processed, number)
        if index is not None and isinstance(processed.images[index], Image.Image):
            found[number] = heatmaps.small(processed.images[index])
    return found


def write(wanted: str, run: KeptRun, p: Any, processed: Any) -> None:
    """Append the maps to ``processed`` (``gallery``), or save them (``files``); ``off`` does neither."""
    if wanted == "off" or (wanted == "gallery" and driven(p)):
        return
    from modules.images import get_font
    from modules.shared import opts

    places = {image.number: place(p, processed, image.number) for image in run.images}
    for image in run.images:
        index = places[image.number]
        if index is None or not image.maps:
            continue
        drawn = draw(image, get_font)
        if wanted == "files":
            saved = getattr(processed.images[index], "already_saved_as", None)
            if saved:
                save(drawn, Path(saved))
        else:
            # That of the picture, so that what the host's buttons read of a selected picture is there.
            text = processed.infotexts[processed.index_of_first_image + image.number]
            if opts.enable_pnginfo:
                drawn.info["parameters"] = text
            processed.images.append(drawn)
            processed.infotexts.append(text)


def draw(image: RunImage, font: heatmaps.Font) -> Image.Image:
    """One image's maps, a row for each moment."""
    rows = [
        (f"{'Hires pass, ' if one.hires else ''}{TITLES[one.moment]} (step {one.step + 1})", one.values)
        for one in image.maps
    ]
    return heatmaps.sheet(rows, image.entities, image.picture, font)


def save(drawn: Image.Image, beside: Path) -> Path:
    """Save as ``STEM-maps.png`` beside a picture, with a number where there is such a file; gives its path."""
    name, tries = f"{beside.stem}-maps", 1
    while True:
        path = beside.with_name(f"{name}.png" if tries == 1 else f"{name}-{tries}.png")
        try:
            with open(path, "xb") as file:
                file.write(heatmaps.as_png(drawn))
            return path
        except FileExistsError:
            tries += 1


def driven(p: Any) -> bool:
    """Is the job one of many that a script such as SD upscale or X/Y/Z plot makes, and counts the pictures of?"""
    args = getattr(p, "script_args", None)
    return bool(args and args[0])
