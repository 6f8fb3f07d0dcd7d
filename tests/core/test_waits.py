"""How often the CPU waits for the device in a guided step: counted where a GPU would be waited for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_guidance import PLANS, guide_for
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten
from toy import Runner, Toy, contexts, noise

from lib_decouple.core.losses import LOSSES

_READ = {
    Tensor.cpu, Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.nonzero, Tensor.__bool__, Tensor.__float__,
    Tensor.__int__, Tensor.__index__,
}  # fmt: skip


class Waits(TorchFunctionMode):
    """Counts what a GPU's tensors would make the CPU wait for: numbers read off them, and indices sent to them.

    Every tensor is taken for one on the device, but what ``cpu()`` gave and what was made of that alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._here: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_flatten((args, kwargs or {}))[0] if isinstance(one, Tensor)]
        here = bool(given) and all(id(one) in self._here for one in given)
        index = args[1] if func in (Tensor.__getitem__, Tensor.__setitem__) else ()
        listed = any(isinstance(one, list) for one in (index if isinstance(index, tuple) else (index,)))
        if not here and (func in _READ or listed or func is torch.tensor):
            self.found.append(func.__name__)
        made = func(*args, **(kwargs or {}))
        if here or func is Tensor.cpu:
            self._here.update({id(one): one for one in tree_flatten(made)[0] if isinstance(one, Tensor)})
        return made


class AllImages(Runner):
    """A host that waits for nothing itself."""

    def rows_of(self, latents: Tensor, images: Any) -> tuple[Tensor, Tensor]:
        return latents, self.rows


def waits(body: Any) -> list[str]:
    with Waits() as mode:
        body()
    return mode.found


def test_the_count_sees_what_waits() -> None:
    x = torch.ones(3)
    assert waits(lambda: (float(x[0]), x[[0, 2]], bool(x.any()), x.tolist())) == [
        "__float__", "__getitem__", "__bool__", "tolist",
    ]  # fmt: skip
    copy = waits(lambda: [float(one) for one in (x + 1).cpu()])
    assert copy == ["cpu"]


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("loss", ["iou", "com", "kl", "intensity"])
def test_a_guided_step_waits_once(images: int, loss: str) -> None:
    model = Toy()
    run = AllImages(model, contexts(images))
    guide = guide_for(model, PLANS[:images], loss=LOSSES[loss])
    latents = guide.step(noise(images), 0, 8, run)  # it proves the gradient, and takes the tokens to the device
    assert waits(lambda: guide.step(latents, 1, 8, run)) == ["cpu"]
    assert waits(lambda: guide.look(latents, 7, run)) == ["tolist"]
