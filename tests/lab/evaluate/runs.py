"""A run without a model: coloured squares, with all that could give an arm away in names and metadata."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lib_decouple.lab.evaluate.store import Store

ARMS = ("plain", "zebracom", "quaggaiou")
PROMPTS = (("a cat and a dog", ["cat", "dog"]), ("a frog and a ball", ["frog", "ball"]))


def make_run(folder: Path, seeds: int = 3, arms: tuple[str, ...] = ARMS) -> Store:
    store = Store(folder, create=True)
    (folder / "drawnhere").mkdir()
    rng = random.Random(1)
    for prompt, entities in PROMPTS:
        for seed in range(seeds):
            for arm in arms:
                file = f"drawnhere/{entities[0]}-{seed}-{arm}.png"
                info = PngInfo()
                info.add_text("parameters", f"{prompt}, Decouple loss: {arm}, file {file}")
                colour = tuple(rng.randrange(256) for _ in range(3))
                image = Image.new("RGB", (32, 32), colour)
                image.save(folder / file, pnginfo=info, exif=_exif(arm))
                store.put_image(
                    {
                        "prompt_id": prompt,
                        "prompt": prompt,
                        "entities": entities,
                        "count": len(entities),
                        "arm": arm,
                        "seed": seed,
                        "file": file,
                        "settings": {"loss": arm},
                        "host": "toy",
                        "version": "1",
                        "checkpoint": "0123456789ab",
                        "seconds": 1.0 + (arm != "plain"),
                        "passes": 0 if arm == "plain" else 8,
                    }
                )
    return store


def _exif(arm: str) -> Image.Exif:
    found = Image.Exif()
    found[0x9286] = f"UserComment {arm}"
    return found
