"""What Forge's inference mode, other ends of a guided pass, and telling what is there cost in the process's own time.

The weights are inference tensors there, of which torch takes no gradient. *Behind the last layer*: how the pass ends
behind the layer that is read last, of those that the default reads on SDXL. A UNet of SDXL's depth, its channels a
fifth and its latents 8x8, so that little but Python is left; milliseconds of the process, the best of five. *The
sampler's own pass* has both rows of CFG; *read* is what `look` at `tell` does in two passes of a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ....core.maps import PassEnded
from ....core.presence import read
from ....hosts.ordinary import OrdinaryTensors
from ....hosts.tell import LEVELS
from ..unets import UNetWithInputs, embedded_unet, unet_config, with_inputs
from . import shapes
from .ways import RUN, WAYS, guide_of

OWN_PASS, READ = "the sampler's own pass", "the same, read"


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


class OnMeta(TorchFunctionMode):
    """Inside, functions are of shapes alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            return func(*args, **(kwargs or {}))
        given, named = tree_map(_on_meta, args), tree_map(_on_meta, kwargs or {})
        return func(*given, **{name: "meta" if name == "device" else value for name, value in named.items()})


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _raised() -> AbstractContextManager[object]:
    raise PassEnded


def _milliseconds_behind(
    found: UNetWithInputs, end: Callable[[], AbstractContextManager[object]], rounds: int = 5
) -> float:
    """Of a pass whose last layer, when it is read, calls ``end`` and has the rest of the pass within what it gives."""
    read = guide_of(found, WAYS["default layers"]).gradient.reader.layers[-1]
    spent = []
    for _ in range(rounds):
        with ExitStack() as stack:
            started: list[float] = []

            def ended(*_: object, stack: ExitStack = stack, started: list[float] = started) -> None:
                started.append(time.process_time())
                torch._C._set_grad_enabled(False)
                stack.enter_context(end())

            handle = read.reader(read.module).key.register_forward_hook(ended)
            stack.callback(handle.remove)
            with torch.enable_grad(), suppress(PassEnded):
                found.run(found.latents.clone().requires_grad_() * 1)
        spent.append(time.process_time() - started[0])
    return 1000 * min(spent)


def measure_telling(found: UNetWithInputs, name: str) -> dict[str, float]:
    """Milliseconds of the sampler's own pass of a model of this ``name``, and of one that is read."""
    gradient = shapes.gradient_of(found, "all layers of the level")
    names = [entity.name for entity in found.entities]
    return {
        f"{OWN_PASS}, {name}": _milliseconds(found.host),
        f"{READ}, {name}": _milliseconds(lambda: read(names, shapes.take_told(found, gradient), LEVELS[-1])),
    }


def told_over_plain(found: Mapping[str, float], name: str) -> float:
    """A run's time over that of one of which nothing is told, by what :func:`measure_telling` has given."""
    own, read = (found[f"{kind}, {name}"] for kind in (OWN_PASS, READ))
    return 1 + len(LEVELS) * (read - own) / (RUN * own)


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

    endings = {
        "behind the last layer, an exception": _milliseconds_behind(ordinary, _raised),
        "behind the last layer, the rest without a graph": _milliseconds_behind(ordinary, nullcontext),
        "behind the last layer, the rest as shapes on meta": _milliseconds_behind(ordinary, OnMeta),
        "behind the last layer, the rest in fake tensors": _milliseconds_behind(
            ordinary, lambda: FakeTensorMode(allow_non_fake_inputs=True)
        ),
    }
    return {
        **endings,
        **measure_telling(ordinary, "SDXL's depth"),
        **measure_telling(embedded_unet(), "the model that ships"),
        "in inference mode, no graph": _milliseconds(plain),
        "ordinary weights, with a graph": _milliseconds(lambda: _forward(ordinary)),
        "ordinary weights, within the mode": _milliseconds(lambda: _forward(ordinary, OrdinaryTensors())),
        "inference tensors, made ordinary at each call": _milliseconds(lambda: _forward(of_forge, OrdinaryTensors())),
        "the same, with copies of what may be written to": _milliseconds(lambda: copied(of_forge)),
    }


def table(found: dict[str, float]) -> str:
    """For people."""
    about = (__doc__ or "").split("\n\n", 1)[-1]
    lines = ["### Python's own time", "", about, "| a forward pass | ms |", "|---|---|"]
    lines += [f"| {name} | {value:.0f} |" for name, value in found.items()]
    models = [name.removeprefix(f"{READ}, ") for name in found if name.startswith(READ)]
    lines += [
        f"\nTelling in {RUN} steps, over a plain run, {name}: {told_over_plain(found, name):.4f}" for name in models
    ]
    return "\n".join(lines) + "\n"
