"""What a guided step takes on a device, in fp16: seconds and memory, beside what was foreseen of its memory.

One image, random weights, the layers that the family's profile reads. *Plain*: a CFG step, two rows. *Gradient*: what
guidance adds to a guided step; *again*: with blocks computed twice; *late*: a CFG step that has the gradient of its own
pass. *Run*: 50 steps, 25 of them guided, over 50 plain ones. Seconds are medians after a first round that is not
counted. Memory is what is allocated at the peak above the model; *foreseen* is what the extension reckons with before a
run's first gradient, which is *enough* where no less free memory than the peak would have been taken for enough.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ....core.gradient import LossGradient
from ....core.memory import fits, kept_bytes
from ....doctor import device_name, peak_of, timed
from ..unets import UNetWithInputs, unet_config, with_inputs
from .counting import run_cost
from .shapes import take_late
from .ways import WAYS, guide_of

Record = dict[str, Any]
SIZES: dict[str, tuple[int, ...]] = {"sd15": (64, 96, 128), "sdxl": (96, 128, 160)}
"""Of an architecture, the sides of the latents, an eighth of the picture's."""
ROUNDS = 20


def measure(device: str, rounds: int = ROUNDS) -> Iterator[Record]:
    """One record for each architecture and size: seconds, and bytes (None where the device does not tell).

    Raises whatever the device does where memory ends.
    """
    for model, sides in SIZES.items():
        unet = _random_unet(model, device)
        for side in sides:
            yield {"model": model, "pixels": 8 * side, **_of(with_inputs(unet, side), rounds)}


def _random_unet(model: str, device: str) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device(device):
        return UNet2DConditionModel.from_config(unet_config(model)).eval().half()


def _of(found: UNetWithInputs, rounds: int) -> Record:
    device = found.latents.device
    gradient: LossGradient = guide_of(found, WAYS["default layers"]).gradient

    def taken(take: Callable[[], object], recompute: bool = False) -> Callable[[], object]:
        def body() -> object:
            gradient.learned.thrift.recompute = recompute
            return take()

        return body

    def exact() -> object:
        return gradient(found.latents, [0], lambda x, _: found.run(x))

    bodies = {
        "plain": found.host, "gradient": taken(exact), "again": taken(exact, recompute=True),
        "late": taken(lambda: take_late(found, gradient)),
    }  # fmt: skip
    spent: dict[str, list[float]] = {name: [] for name in bodies}
    for turn in range(rounds + 1):
        for name, body in bodies.items():
            seconds = timed(body, device)
            if turn:
                spent[name].append(seconds)
    foreseen = {name: _foreseen(found, gradient, name == "again") for name in ("gradient", "again")}
    return {
        "seconds": {name: statistics.median(own) for name, own in spent.items()},
        "bytes": {name: peak_of(body, device) for name, body in bodies.items()},
        "foreseen": foreseen,
    }


def _foreseen(found: UNetWithInputs, gradient: LossGradient, recompute: bool) -> int:
    height, width = found.latents.shape[-2:]
    layers = gradient.layers or gradient.reader.layers
    return kept_bytes(layers, gradient.reader.layers, (height, width), 1, found.latents.element_size(), recompute)


def table(rows: list[Record], device: str) -> str:
    """The rows for people."""
    about = (__doc__ or "").split("\n\n", 1)[-1]  # optimised away under -OO
    lines = [
        "### On a device",
        "",
        f"{about}\nOn {device_name(torch.device(device))}, torch {torch.__version__}.",
        "",
        "| model | plain step, ms | gradient | again | late step | run: gradient | run: again | run: late "
        "| memory, GB: plain | gradient | foreseen | enough | again | foreseen | enough | late |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        own, taken, foreseen = row["seconds"], row["bytes"], row["foreseen"]
        steps = {name: own["plain"] + own[name] for name in ("gradient", "again")} | {"late": own["late"]}
        milliseconds = " | ".join(f"{1000 * value:.1f}" for value in own.values())
        runs = " | ".join(f"{run_cost(own['plain'], step, own['plain']):.2f}" for step in steps.values())
        memory = " | ".join(
            f"{_gigabytes(taken[name])} | {_gigabytes(foreseen[name])} | {_enough(foreseen[name], taken[name])}"
            for name in ("gradient", "again")
        )
        lines.append(
            f"| {row['model']}, {row['pixels']} px | {milliseconds} | {runs} | {_gigabytes(taken['plain'])} | {memory} "
            f"| {_gigabytes(taken['late'])} |"
        )
    return "\n".join(lines) + "\n"


def _gigabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**30:.2f}"


def _enough(foreseen: int, taken: int | None) -> str:
    if taken is None:
        return "–"
    return "NO" if fits(foreseen, taken - 1) else "yes"
