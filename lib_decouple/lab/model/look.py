"""Contact sheets of a training, to be looked at: ``python -m lib_decouple.lab.model.look --folder DIR``.

Writes ``scenes.png`` (scenes, and under each what the autoencoder gives back) and, once there are averaged weights,
``samples.png``: singles and pairs drawn plainly, with the judge's word under each.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...embedded.place import DRAWN
from .judge import autoencoder, look, verdict
from .scenes import SCENE, named, place, render, sample
from .sprites import THINGS


def sheet(images: np.ndarray, lines: list[str], columns: int) -> Image.Image:
    """Pictures ``[n, h, w, 3]`` with a line of text under each."""
    cell, rows = SCENE + 14, -(-len(images) // columns)
    page = Image.new("RGB", (columns * (SCENE + 4), rows * cell), "white")
    pen = ImageDraw.Draw(page)
    for index, (image, line) in enumerate(zip(images, lines)):
        x, y = index % columns * (SCENE + 4), index // columns * cell
        page.paste(Image.fromarray(image), (x, y))
        pen.text((x, y + SCENE), line, fill="black")
    return page


def restored(folder: Path, rng: np.random.Generator) -> Image.Image:
    """Twelve scenes and what the autoencoder gives back."""
    drawn = np.stack([render(place(sample(rng), rng), rng) for _ in range(12)])
    back = autoencoder(folder)(drawn, [""] * len(drawn))
    errors = ((back.astype(float) - drawn) ** 2).mean((1, 2, 3))
    lines = [""] * 12 + [f"{10 * np.log10(255**2 / error):.1f} dB" for error in errors]
    return sheet(np.concatenate([drawn, back]), lines, 12)


def samples(folder: Path, rng: np.random.Generator, steps: int, scale: float) -> Image.Image:
    """A single of each thing, then as many pairs, each with its own noise."""
    from ...hosts.checkpoints import open_pipeline

    asked: list[list[tuple[str, str | None]]] = [[(thing, None)] for thing in THINGS]
    asked += [[(str(a), None), (str(b), None)] for a, b in (rng.choice(THINGS, 2, replace=False) for _ in THINGS)]
    prompts = [" and ".join(named(*each) for each in things) for things in asked]
    pipe: Any = open_pipeline(folder / f"{DRAWN.name}.safetensors")
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    pictures = [
        pipe(
            prompts[i : i + 8],
            num_inference_steps=steps,
            guidance_scale=scale,
            generator=noise[i : i + 8],
            output_type="np",
        ).images
        for i in range(0, len(prompts), 8)
    ]
    images = (np.concatenate(pictures) * 255).round().astype(np.uint8)
    lines = []
    for prompt, things, found in zip(prompts, asked, look(images)):
        said = verdict(found, things)
        lines.append(f"{prompt}: {'right' if said.right else 'lacks ' + ','.join(said.missing)}"[:24])
    return sheet(images, lines, 12)


def main() -> None:
    """Write the sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the training's folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scale", type=float, default=4.0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    restored(arguments.folder, rng).save(arguments.folder / "scenes.png")
    if (arguments.folder / f"{DRAWN.name}.safetensors").exists():
        samples(arguments.folder, rng, arguments.steps, arguments.scale).save(arguments.folder / "samples.png")


if __name__ == "__main__":
    main()
