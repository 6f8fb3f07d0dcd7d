"""Half precision as a GPU computes it, on a CPU.

A GPU takes half operands, sums in float32 and rounds what comes out; its results keep subnormals. torch's CPU
kernels do the same for single operations, but are slow for products, and some round their sums. Here every
operation on half tensors, forward and backward, runs in float32 and its result is rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

HALVES = (torch.float16, torch.bfloat16)


@dataclass
class Flushed:
    """Gradients inside the network that rounding made zero."""

    zeroed: int = 0
    """Values that were not zero before they were rounded."""
    values: int = 0
    """All values of half gradients."""

    @property
    def share(self) -> float:
        """In [0, 1]; 0 where nothing was counted."""
        return self.zeroed / max(1, self.values)


class HalfOnGpu(TorchDispatchMode):
    """Inside, operations on half tensors sum in float32 and round their result, as on a GPU.

    ``flushed`` counts what a backward pass inside loses to rounding. The half weights of ``model`` are widened once
    instead of at every use, which is several times faster and takes their float32 size of memory, unless ``before``,
    parameter -> float32, has these very numbers.
    """

    def __init__(self, model: nn.Module | None = None, before: Mapping[nn.Parameter, Tensor] = {}) -> None:
        super().__init__()
        self.flushed = Flushed()
        self._weights: dict[int, Tensor] = {}
        for one in model.parameters() if model else ():
            storage = one.untyped_storage()
            if one.dtype in HALVES and one.is_contiguous() and storage.nbytes() == one.numel() * one.element_size():
                wide, known = one.detach().float(), before.get(one)
                self._weights[storage.data_ptr()] = wide if known is None or not torch.equal(wide, known) else known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        half = next((one.dtype for one in given if one.dtype in HALVES), None)
        if half is None or func.is_view or func._schema.is_mutable or _converts(func, kwargs):
            return func(*args, **kwargs)
        # As torch's own promotion: a number held in a tensor of no dimension does not widen a result.
        wide = any(one.dtype == torch.float32 and one.ndim for one in given) and func not in _KEEPS_HALF
        found = func(*tree_map(self._widened, args), **tree_map(self._widened, kwargs))
        if func in _WIDE_STATISTICS:
            return (self._rounded(found[0], half), *found[1:])
        return tree_map(lambda one: one if wide else self._rounded(one, half), found)

    def _widened(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype not in HALVES:
            return value
        weight = self._weights.get(value.untyped_storage().data_ptr())
        if weight is None:
            return value.float()
        return weight.as_strided(value.shape, value.stride(), value.storage_offset())

    def _rounded(self, value: Any, half: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        made = value.to(half)
        if torch._C._current_autograd_node() is not None:
            self.flushed.values += value.numel()
            self.flushed.zeroed += int(torch.count_nonzero(value)) - int(torch.count_nonzero(made))
        return made


_aten = torch.ops.aten
_KEEPS_HALF = {
    _aten.native_layer_norm_backward.default,
    _aten.native_group_norm_backward.default,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}
"""Given float32 statistics beside half tensors, these give half gradients."""


_WIDE_STATISTICS = {_aten.native_layer_norm.default, _aten._scaled_dot_product_flash_attention_for_cpu.default}
"""Their mean and deviation, or log-sum-exp, stay float32 beside a half result."""


def _converts(func: Any, kwargs: dict[str, Any]) -> bool:
    return func in (_aten._to_copy.default, _aten.clone.default, _aten.copy_.default) or kwargs.get("dtype") is not None
