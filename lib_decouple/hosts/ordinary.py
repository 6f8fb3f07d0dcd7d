"""Ordinary tensors on the memory of inference tensors, of which torch takes no gradient.

Forge loads weights and draws in inference mode; torch forbids to save such tensors for a gradient. Nothing is copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_OUT_OF_PLACE = {
    Tensor.add_: torch.add,
    Tensor.sub_: torch.sub,
    Tensor.mul_: torch.mul,
    Tensor.div_: torch.div,
}


class OrdinaryTensors(TorchFunctionMode):
    """Inside, every torch function sees ordinary tensors on the memory of inference tensors.

    With ``out_of_place``, ``x += y`` and its like make a new tensor: what is computed again for a gradient is kept
    without a copy. A statement ``x.add_(y)`` would be lost so; the UNet's own blocks have none that matters.

    A weight is made ordinary at each call: to put ordinary ones into the model for a pass instead saves no time
    (``bench --parts python``), and holds on to weights that the host may move meanwhile.
    """

    def __init__(self, out_of_place: bool = False) -> None:
        super().__init__()
        self._instead = _OUT_OF_PLACE if out_of_place else {}
        self._given: dict[int, Tensor] = {}  # held, so that their addresses are not used again

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(map(_may_be_inference, args)) and not kwargs:
            return self._instead.get(func, func)(*args)
        if getattr(func, "__name__", "") == "__get__":
            return func(*args, **(kwargs or {}))
        given = self._ordinary(kwargs or {})
        out = given.pop("out", None) if torch.is_grad_enabled() else None
        made = self._instead.get(func, func)(*self._ordinary(args), **given)
        # Autograd knows no out=, which sub-quadratic attention uses where memory is short.
        return made if out is None else out.copy_(made)

    def as_it_is_now(self, saved: Tensor) -> Tensor:
        """What autograd is to keep of a tensor that may be written to before the gradient is taken.

        A copy, but of what was there before the pass, its weights above all. torch's own
        ``allow_mutation_on_saved_tensors`` tells tensors apart by address and version alone, which does not hold
        when an address is used again.
        """
        return saved if saved.untyped_storage().data_ptr() in self._given else saved.clone()

    def _ordinary(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if type(value) in (Tensor, nn.Parameter) and value.is_inference():
                storage = value.untyped_storage()
                alias = torch.empty(0, dtype=value.dtype, device=value.device)
                alias.set_(storage, value.storage_offset(), value.size(), value.stride())
                self._given[storage.data_ptr()] = alias
                return alias
            return value
        if type(value) in (tuple, list):
            return type(value)(self._ordinary(one) for one in value)
        if type(value) is dict:
            return {key: self._ordinary(one) for key, one in value.items()}
        return value


def _may_be_inference(value: object) -> bool:
    return value.is_inference() if isinstance(value, Tensor) else type(value) in (tuple, list, dict)
