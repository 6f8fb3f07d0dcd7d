"""``study flops``: what looks, gradients and late gradients cost, counted on shapes alone.

FLOPs are of matrix products and convolutions, by torch's counter, relative to one CFG step (two rows). *Look*: a
conditional pass that ends after the last layer that is read. *Guided*: the same with its gradient. *Late*: the gradient
of the host's own conditional row, beside that row itself. *Run*: 50 steps, 25 of them guided, without looks. No weights
are needed: the architectures stand on torch's ``meta`` device.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ...core.gradient import frozen
from ...core.maps import CrossAttentionLayer, PassEnded, captured
from ...settings import Settings
from .files import write_whole
from .unets import UNetWithInputs, unet_config, with_inputs

MODELS = {"sd15": ("Stable Diffusion 1.5, 512 px", 64), "sdxl": ("SDXL, 1024 px", 128)}
Layers = list[CrossAttentionLayer]
PATHS: dict[str, Callable[[Layers], Layers]] = {
    "all layers of the level": list,
    "to the first block on the way up": lambda level: [
        one for one in level if one.part != "up" or _in_first_up(level, one)
    ],
    "to the middle, or down alone": lambda level: [one for one in level if one.part != "up"],
}
STEPS, GUIDED = 50, 25


def _in_first_up(level: Layers, layer: CrossAttentionLayer) -> bool:
    """Does it stand in the first transformer on the way up?"""
    up = next(one for one in level if one.part == "up")
    return layer.name.partition(".transformer_blocks")[0] == up.name.partition(".transformer_blocks")[0]


def on_meta(model: str) -> UNetWithInputs:
    """An architecture of :data:`MODELS` in fp16, with its inputs."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config(model)).eval().half()
    return with_inputs(unet, MODELS[model][1])


def counted(body: Callable[[], object]) -> int:
    """FLOPs, forward and backward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        body()
    return int(counter.get_total_flops())


def count(model: str, path: str) -> dict[str, Any]:
    """One row: FLOPs over those of a CFG step."""
    found = on_meta(model)
    reader = found.guide(Settings(enabled=True), PATHS[path]).gradient.reader

    def take(stop: bool, gradient: bool) -> None:
        with torch.enable_grad() if gradient else torch.no_grad(), frozen(found.unet):
            leaf = found.latents.clone().requires_grad_()
            with captured(reader.layers, reader.tokens, stop) as capture, suppress(PassEnded):
                found.run(leaf * 1)
            if gradient:
                height, width = leaf.shape[-2:]
                torch.autograd.grad(capture.average(height, width, reader.layers).sum(), leaf)

    plain = counted(found.host)
    look = counted(lambda: take(stop=True, gradient=False))
    guided = counted(lambda: take(stop=True, gradient=True))
    late = counted(lambda: take(stop=False, gradient=True))
    late -= plain // 2
    return {
        "model": model, "path": path, "layers": len(reader.layers), "plain": plain, "look": look / plain,
        "guided": guided / plain, "late": late / plain, "run": 1 + GUIDED * guided / (STEPS * plain),
        "run_late": 1 + GUIDED * late / (STEPS * plain),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    lines = [
        "| model | layers read | of them | TFLOPs of a CFG step | look | guided | late | run, × plain "
        "| run late, × plain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {MODELS[row['model']][0]} | {row['path']} | {row['layers']} | {row['plain'] / 1e12:.2f} "
            f"| {row['look']:.2f} | {row['guided']:.2f} | {row['late']:.2f} | {row['run']:.3f} "
            f"| {row['run_late']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("flops", help="what a guided step costs, counted on shapes", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/flops"), help="folder of the results (out/flops)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Count every row, then write flops.json and flops.md."""
    rows = [count(model, path) for model in MODELS for path in PATHS]
    about = (__doc__ or "").split("\n\n", 1)[-1]
    text = f"# What a guided step costs\n\n{about}\n{table(rows)}"
    write_whole(arguments.out / "flops.json", json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))
    write_whole(arguments.out / "flops.md", text)
    print(text)
    return 0
