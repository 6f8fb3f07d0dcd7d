"""A training, to be looked at: ``python -m lib_decouple.lab.model.look --folder DIR``.

Writes what there is something of: ``training.png``, the log's curves; ``scenes.png``, scenes and under each what the
autoencoder gives back; ``samples.png``, singles and pairs drawn plainly with the averaged weights, with the judge's
word under each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...embedded.place import DRAWN
from .judge import autoencoder, look, verdict
from .scenes import SCENE, named, place, render, sample
from .sprites import THINGS

CURVES = {
    "vae": ("psnr", "autoencoder: PSNR, dB"),
    "unet": ("error", "denoiser: squared error of the noise"),
    "judge": ("things", "judge: loss of things"),
}
"""Stage -> what its log has of it, and in words."""


def logged(log: Path, stage: str) -> tuple[list[int], list[float]]:
    """Steps of a stage, rising, and what its curve shows; of one that was made again behind a stop the last."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    own = {row["step"]: row[CURVES[stage][0]] for row in rows if row["stage"] == stage}
    return sorted(own), [own[step] for step in sorted(own)]


def curves(log: Path, target: Path) -> None:
    """Each stage of a training's log over its steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(CURVES), figsize=(12, 3), constrained_layout=True)
    for axis, (stage, (_, title)) in zip(axes, CURVES.items()):
        axis.plot(*logged(log, stage), color="#1b6ca8", lw=1)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
    figure.savefig(target, dpi=80)
    plt.close(figure)


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
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the training's folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scale", type=float, default=4.0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    if (log := arguments.folder / "train.jsonl").exists():
        curves(log, arguments.folder / "training.png")
    if (arguments.folder / "vae").exists():
        restored(arguments.folder, rng).save(arguments.folder / "scenes.png")
    if (arguments.folder / f"{DRAWN.name}.safetensors").exists():
        samples(arguments.folder, rng, arguments.steps, arguments.scale).save(arguments.folder / "samples.png")


if __name__ == "__main__":
    main()
