"""FLOPs and memory of a guided step on the full architectures, counted on shapes alone.

FLOPs are of matrix products and convolutions, relative to one CFG step (two rows). *Look*: a conditional pass that ends
after the last layer that is read. *Guided*: the same with its gradient; *again*: with blocks computed twice. *Late*:
the gradient of the host's own pass, beside that pass itself. *Run*: 50 steps, 25 of them guided, without
looks. *Told*: 50 steps, of which two are read as they are made, which `look` at `tell` does. Memory is what is kept for
the gradient when the pass is over, in fp16, by an attention that keeps no map of its own. No weights are needed: the
architectures stand on torch's ``meta`` device.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ....core.gradient import LossGradient
from ....core.host_pass import RowsInOrder, reading_beside
from ....core.late import differentiated_beside
from ....core.maps import CrossAttentionLayer
from ....hosts.base import choose_layers, unet_level
from ....hosts.tell import LEVELS
from ....settings import Settings
from ..unets import UNetWithInputs, unet_config, with_inputs
from .counting import count_flops
from .ways import GUIDED, RUN, WAYS, guide_of

Layers = list[CrossAttentionLayer]

FULL = {"sd15": ("Stable Diffusion 1.5, 512 px", 64), "sdxl": ("SDXL, 1024 px", 128)}
"""What each is called, and the side of its latents."""
PATHS: dict[str, Callable[[Layers], Layers]] = {
    "all layers of the level": list,
    "all but the last transformer": lambda level: [one for one in level if one.transformer != level[-1].transformer],
    "to the first transformer on the way up": lambda level: choose_layers(level, 0, "early", unet_level(level)),
    "to the middle, or down alone": lambda level: [one for one in level if one.part != "up"],
}


class Alive(TorchDispatchMode):
    """Knows the storages that were made inside and are still held by somebody."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_flatten(made)[0]:
            if isinstance(one, Tensor) and (storage := one.untyped_storage())._cdata not in self._weights:
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return made

    def bytes(self) -> int:
        """Held now."""
        gc.collect()
        return sum(size for reference, size in self._made.values() if not reference.expired())


@contextmanager
def without_its_own_map() -> Iterator[None]:
    """Inside, torch's attention keeps what flash attention keeps."""
    functional, before = torch.nn.functional, torch.nn.functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        made: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[0]
        return made

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


def on_meta(model: str) -> UNetWithInputs:
    """An architecture of :data:`FULL` in fp16, with its inputs."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config(model)).eval().half()
    return with_inputs(unet, FULL[model][1])


def gradient_of(found: UNetWithInputs, path: str, recompute: bool = False) -> LossGradient:
    """The source of gradients that reads the layers of a path."""
    gradient: LossGradient = found.guide(Settings(enabled=True), PATHS[path]).gradient
    gradient.learned.thrift.recompute = recompute
    gradient.proved = True  # a proof looks at numbers, of which there are none here
    return gradient


def kept_for(found: UNetWithInputs, gradient: LossGradient, take: Callable[[], object]) -> int:
    """Bytes that are held when the loss has been computed while ``take`` takes the gradient."""
    kept, loss, alive = [], gradient.loss, Alive(found.unet)

    def counting(maps: Tensor) -> Tensor:
        kept.append(alive.bytes())
        return loss(maps)

    gradient.loss = counting
    with alive, without_its_own_map():
        take()
    gradient.loss = loss
    return kept[0]


def take_late(found: UNetWithInputs, gradient: LossGradient) -> None:
    """The host's pass, its unconditional row first, and the gradient of its conditional one."""
    with differentiated_beside(gradient, lambda: RowsInOrder(1, 1, (1,)), proved=True) as late, torch.no_grad():
        found.host()
    with torch.enable_grad():
        late.differentiate(late.losses(found.latents.shape[-2:], [0])[1])


def take_told(found: UNetWithInputs, gradient: LossGradient) -> Tensor:
    """The host's pass, its unconditional row first; the maps of its conditional one ``[entities, h, w]``."""
    with reading_beside(found.unet, gradient.reader, lambda: RowsInOrder(1, 1, (1,))) as passed, torch.no_grad():
        found.host()
    return passed.maps(found.latents.shape[-2:], [0])[0]


def count(model: str, path: str) -> dict[str, Any]:
    """One row: FLOPs over those of a CFG step, and bytes."""
    found = on_meta(model)

    def run(x: Tensor, _: object = None) -> Tensor:
        return found.run(x * 1)  # the counter cannot follow a leaf that enters the model itself

    once, again = (gradient_of(found, path, recompute) for recompute in (False, True))
    takes = {
        "guided": (once, lambda: once.differentiate(found.latents, [0], run)),
        "again": (again, lambda: again.differentiate(found.latents, [0], run)),
        "late": (once, lambda: take_late(found, once)),
    }
    plain = count_flops(found.host)
    flops = {name: count_flops(take) / plain for name, (_, take) in takes.items()}
    flops["look"] = count_flops(lambda: once.look(found.latents, [0], run)) / plain
    flops["late"] -= 1  # the host's pass itself
    read, default = (one.reader.layers for one in (once, guide_of(found, WAYS["default layers"]).gradient))
    flops["told"] = count_flops(lambda: take_told(found, once)) / plain - 1
    return {
        "model": model,
        "path": path,
        "default": [layer.name for layer in read] == [layer.name for layer in default],
        "layers": len(once.reader.layers),
        "plain": plain,
        "flops": flops,
        "bytes": {name: kept_for(found, gradient, take) for name, (gradient, take) in takes.items()},
        "run": {name: 1 + GUIDED * flops[name] / RUN for name in takes},
        "told": 1 + len(LEVELS) * flops["told"] / RUN,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    about = (__doc__ or "").split("\n\n", 1)[-1]  # optimised away under -OO
    lines = [
        "### Per step, on shapes",
        "",
        about,
        "| model | layers read | of them | look | guided | again | late | run: guided | run: again | run: late | told "
        "| kept, GB: guided | again | late |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        flops = " | ".join(f"{row['flops'][name]:.2f}" for name in ("look", "guided", "again", "late"))
        runs = " | ".join(f"{value:.3f}" for value in row["run"].values())
        kept = " | ".join(f"{value / 1e9:.2f}" for value in row["bytes"].values())
        name, path = FULL[row["model"]][0], row["path"] + " (default)" * row["default"]
        lines.append(f"| {name} | {path} | {row['layers']} | {flops} | {runs} | {row['told']:.5f} | {kept} |")
    return "\n".join(lines) + "\n"
