"""What differs between the WebUIs of one family: told by parameters and attributes, never by a version.

An adapter offers what it knows, and :func:`call` hands over what the host's function takes. What of a host has no
backward is replaced by :func:`with_backward`, for the guided pass alone.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = (
    ("backend.attention", "attention_function"),  # Forge, Forge Neo
    ("ldm_patched.ldm.modules.attention", "optimized_attention"),  # Forge Classic, reForge
)
"""Module and name of the function that every attention of the UNet calls."""
KEEPS_ITS_MAP = ("attention_basic", "attention_split", "attention_sub_quad")
"""Of such functions those that keep every head's whole softmax for a gradient, as the others, replaced ones too, do
not."""
DIFFERENTIABLE = "attention_pytorch"
"""In the same module: the same function by torch's own attention, which has a backward."""
ROTATION = "apply_rope_split_half"
"""What Anima's self-attention turns queries and keys with."""
_ROTATIONS = ("comfy_kitchen", "comfy_kitchen.backends.eager.rope")
"""Where it is an operator without a backward, and where the same is written in torch's own operations."""


def call(function: Callable[..., Any], *given: Any, **offered: Any) -> Any:
    """``function`` of ``given`` and of those named arguments of ``offered`` that it takes."""
    parameters = inspect.signature(function).parameters
    return function(*given, **{name: value for name, value in offered.items() if name in parameters})


@contextmanager
def with_backward(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, what ``model`` computes on ``device`` passes a gradient on; the host's own functions are back after.

    Four things of Forge Neo do not: SageAttention and FlashAttention, matrix products in 8 bits (``--fast-fp8``),
    layers of quantised checkpoints, which refuse an input that takes a gradient, and Anima's rotation.
    """
    with ExitStack() as stack:
        for module, name in ATTENTION:
            host = sys.modules.get(module)
            attention = getattr(host, name, None)
            if attention is not None and not has_backward(attention, device):
                stack.enter_context(everywhere(name, attention, getattr(host, DIFFERENTIABLE)))
        if (operations := sys.modules.get("backend.operations")) is not None:
            if hasattr(operations, "fp8_linear"):
                stack.enter_context(everywhere("fp8_linear", operations.fp8_linear, _none))
            stack.enter_context(_dequantised(model, operations))
        operator, plain = (getattr(sys.modules.get(module), ROTATION, None) for module in _ROTATIONS)
        if operator and plain:
            stack.enter_context(everywhere(ROTATION, operator, plain))
        yield


@lru_cache
def has_backward(attention: Callable[..., Tensor], device: torch.device) -> bool:
    """Does a gradient come through ``attention(q, k, v, heads)`` to queries, keys and values?

    Tried, with one head of 64 channels: SageAttention cuts the gradient in silence, FlashAttention as Forge Neo
    registers it raises.
    """
    dtype = torch.float16 if device.type == "cuda" else torch.float32  # such kernels take no other
    generator = torch.Generator().manual_seed(0)  # the host's own random numbers stay as they are
    with torch.inference_mode(False), torch.enable_grad():
        inputs = [torch.randn(1, 64, 64, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]
        try:
            found = torch.autograd.grad(attention(*inputs, 1).float().square().sum(), inputs)
        except Exception:
            return False
    return all(bool(one.any()) for one in found)


def attention_keeps_its_map() -> bool:
    """Is the host's attention one of :data:`KEEPS_ITS_MAP`?"""
    chosen = [getattr(sys.modules.get(module), name, None) for module, name in ATTENTION]
    return any(getattr(one, "__name__", "") in KEEPS_ITS_MAP for one in chosen)


@contextmanager
def everywhere(name: str, function: object, instead: object) -> Iterator[None]:
    """Inside, every loaded module that has ``function`` as its global ``name`` has ``instead``.

    Modules import such a function by name, and extensions look it up in whichever they know.
    """
    owners = [one for one in list(sys.modules.values()) if getattr(one, "__dict__", {}).get(name) is function]
    for owner in owners:
        setattr(owner, name, instead)
    try:
        yield
    finally:
        for owner in owners:
            setattr(owner, name, function)


@contextmanager
def _dequantised(model: nn.Module, operations: ModuleType) -> Iterator[None]:
    """Inside, Neo's layers of mixed precision multiply by their weights in the input's dtype."""
    layers = [one for one in model.modules() if hasattr(one, "convert_weight") and "forward" not in vars(one)]
    for layer in layers:
        layer.forward = partial(_linear, operations, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _linear(operations: ModuleType, layer: nn.Module, x: Tensor) -> Tensor:
    weight, bias, signal = operations.weights_manual_cast(layer, x)
    with operations.main_stream_worker(weight, bias, signal):
        plain = layer.convert_weight(weight)  # type: ignore[operator]
        return nn.functional.linear(x, plain.to(x.dtype), bias)


def _none(*_: object) -> None:
    """What ``fp8_linear`` gives where it cannot: the host goes on with its ordinary product."""
