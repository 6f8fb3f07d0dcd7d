"""What Forge's inference mode costs a guided forward pass in Python's own time.

The weights are inference tensors, of which torch takes no gradient. A UNet of SDXL's depth, its channels a fifth and
its latents 8x8, so that little but Python is left; milliseconds of the process, the best of five.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import torch
from torch.autograd.graph import saved_tensors_hooks

from ....hosts.ordinary import OrdinaryTensors
from ..unets import UNetWithInputs, unet_config, with_inputs


def _narrow_xl() -> UNetWithInputs:
    from diffusers import UNet2DConditionModel

    config = {**unet_config("sdxl"), "block_out_channels": [64, 128, 256], "norm_num_groups": 8}
    return with_inputs(UNet2DConditionModel.from_config(config).eval().requires_grad_(False), 8)


def _milliseconds(body: Callable[[], object], rounds: int = 5) -> float:
    spent = []
    for _ in range(rounds):
        started = time.process_time()
        body()
        spent.append(time.process_time() - started)
    return 1000 * min(spent)


def _forward(found: UNetWithInputs, *modes: AbstractContextManager[object]) -> None:
    """A pass with a graph, in ``modes``."""
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        found.run(found.latents.clone().requires_grad_() * 1)


def measure_overhead() -> dict[str, float]:
    """Milliseconds of a forward pass in each way."""
    with torch.inference_mode():
        of_forge = _narrow_xl()
    ordinary = _narrow_xl()

    def plain() -> None:
        with torch.inference_mode():
            of_forge.run(of_forge.latents)

    def copied(found: UNetWithInputs) -> None:
        mode = OrdinaryTensors()
        _forward(found, mode, saved_tensors_hooks(mode.as_it_is_now, lambda saved: saved))

    return {
        "in inference mode, no graph": _milliseconds(plain),
        "ordinary weights, with a graph": _milliseconds(lambda: _forward(ordinary)),
        "ordinary weights, within the mode": _milliseconds(lambda: _forward(ordinary, OrdinaryTensors())),
        "inference tensors, made ordinary at each call": _milliseconds(lambda: _forward(of_forge, OrdinaryTensors())),
        "the same, with copies of what may be written to": _milliseconds(lambda: copied(of_forge)),
    }


def table(found: dict[str, float]) -> str:
    """For people."""
    about = (__doc__ or "").split("\n\n", 1)[-1]
    lines = ["### Python's time in Forge", "", about, "| a forward pass | ms |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value:.0f} |" for name, value in found.items())]) + "\n"
