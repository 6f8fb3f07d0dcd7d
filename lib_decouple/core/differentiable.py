"""Is the gradient whole? What keeps it so during a guided pass, and what proves it.

A denoiser's residual path carries a gradient past everything that cuts one off: an attention kernel without a
backward, a block that another extension runs under ``no_grad``. What is left still has a direction and, by the
relative rule of the step, full length, so that nothing is noticed but by looking for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .maps import CrossAttentionLayer

_PROJECTIONS = ("to_q", "q_proj")
"""How the projection of an attention's queries is called."""


class GradientsOn(TorchFunctionMode):
    """Inside, gradients stay on: blocks under ``no_grad`` or ``inference_mode`` take part as any other.

    Meant for a forward pass alone. ``overruled`` has the files of the code that would have cut. From :meth:`end` on
    they stay off instead. Unless ``any_kernel``, torch's attention is computed :func:`without_cudnn_attention`.
    """

    def __init__(self, any_kernel: bool = False) -> None:
        super().__init__()
        self._any_kernel = any_kernel
        self.overruled: set[str] = set()
        self._ended = False

    def end(self) -> None:
        """What is computed from here on keeps nothing for a gradient, whoever turns gradients on again."""
        self._ended = True
        torch._C._set_grad_enabled(False)

    def __enter__(self) -> GradientsOn:
        self._before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(True)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        torch._C._set_grad_enabled(self._before)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled and bool(args[0]) is self._ended:
            self.overruled.add(_caller())
            return None
        attends = func is functional.scaled_dot_product_attention and not self._any_kernel
        overrules = torch.is_inference_mode_enabled() and not self._ended
        if not attends and not overrules:
            return func(*args, **(kwargs or {}))
        with ExitStack() as stack:
            if attends:
                stack.enter_context(without_cudnn_attention())  # here, as hosts choose kernels around each call
            if overrules:
                self.overruled.add(_caller())
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.enable_grad())
            return func(*args, **(kwargs or {}))


def _caller() -> str:
    """The file of the innermost code outside torch."""
    frame = sys._getframe(2)
    while frame.f_back and (frame.f_globals.get("__name__") or "").partition(".")[0] in ("torch", "contextlib"):
        frame = frame.f_back
    return frame.f_code.co_filename


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Inside, torch's attention takes another kernel than cuDNN's, which torch prefers on some GPUs, if one is allowed.

    Its gradient can be NaN throughout: seen on an H200 with torch 2.11 in fp16, of 16 pixels that attend to themselves.
    The switch is the process's, and put back.
    """
    kernels: Any = torch.backends.cuda
    # torch 2.1 to 2.4 have no such kernel, or never prefer it.
    before = hasattr(kernels, "enable_cudnn_sdp") and kernels.cudnn_sdp_enabled()
    others = (kernels.flash_sdp_enabled, kernels.mem_efficient_sdp_enabled, kernels.math_sdp_enabled)
    if not before or not any(allowed() for allowed in others):
        yield
        return
    kernels.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        kernels.enable_cudnn_sdp(before)


class WeightsAsUsed(TorchFunctionMode):
    """Inside, a product keeps its weights as they are when it is computed.

    Hosts that store weights in 8 bits put others in their place for a module's call alone, and take them away before
    the gradient is taken.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (functional.linear, functional.conv2d):
            args = tuple(one.detach() if isinstance(one, nn.Parameter) else one for one in args)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class CutPlace:
    """A place that the gradient does not pass."""

    place: str
    """The module's name in the denoiser."""
    by: str
    """The function that computes it, with its module: ``backend.attention.attention_sage``."""

    def __str__(self) -> str:
        return f"no gradient passes {self.place}, which {self.by} computes"


class GradientCut(ArithmeticError):
    """A gradient exists, but parts of the denoiser have not added to it."""

    def __init__(self, cuts: Sequence[CutPlace] = (), told: str = "") -> None:
        self.cuts = tuple(cuts)
        more = f" (and {len(cuts) - 1} places more)" if len(cuts) > 1 else ""
        super().__init__(told or f"{cuts[0]}{more}")


@contextmanager
def cuts_told() -> Iterator[None]:
    """Inside, an operation that refuses to be differentiated raises GradientCut in torch's own words, which name it."""
    try:
        yield
    except RuntimeError as error:
        if "Trying to backward through" not in str(error):
            raise
        raise GradientCut(told=str(error).partition(" Please ")[0]) from error


@dataclass
class Proof:
    """What a pass, and the gradient taken of it, have shown of every place on the way."""

    _blamed: dict[str, CutPlace] = field(default_factory=dict)
    """Of each place, in order of execution, what is told where it takes no gradient."""
    _cut: set[str] = field(default_factory=set)
    _due: dict[str, int] = field(default_factory=dict)
    """How many gradients each place is to take."""
    _taken: dict[str, list[Tensor]] = field(default_factory=dict)
    """Of each gradient that came, was there anything but zeros?"""
    _nodes: dict[str, Any] = field(default_factory=dict)
    """Where each place stands in autograd's graph."""

    _attentions: set[str] = field(default_factory=set)

    def saw(self, name: str, blamed: CutPlace, output: Any, attention: bool) -> None:
        """``output`` is what the module ``name`` gave in the forward pass: it is to take a gradient."""
        value = next((one for one in _flat(output) if one.is_floating_point()), None)
        if value is None:
            return
        self._blamed[name] = blamed
        if attention:
            self._attentions.add(name)
        if not value.requires_grad:
            self._cut.add(name)
        # Of a single key every query takes all: no gradient reaches either.
        elif value.ndim != 3 or value.shape[1] > 1:
            # A linear layer's output is a view in torch. What adds to it in place, as Forge's residuals do, puts
            # another node in the view's place, but none in the place of what it is a view of.
            if blamed.place == name and value._base is not None and value._base.grad_fn is not None:
                value = value._base
            node: Any = value.grad_fn
            if node is not None:  # the latents themselves have none
                self._due[name] = self._due.get(name, 0) + 1
                self._nodes[name] = node
                # Not this object: it holds the node, and no garbage collector sees a circle that goes through autograd.
                node.register_prehook(partial(_came, self._taken.setdefault(name, []), value.output_nr))

    def check(self, leaf: Tensor, gradient: Tensor | None = None) -> bool:
        """Is it shown? Raises GradientCut for what no gradient can pass or, of a ``gradient`` by ``leaf``, did not.

        A gradient of zeros shows nothing.
        """
        lacking = set(self._cut)
        if gradient is not None:
            # One copy to the CPU for all that came.
            names = [name for name, came in self._taken.items() for _ in came]
            came = [gradient.any(), *(one for own in self._taken.values() for one in own)]
            anything, *told = torch.stack([one.to(gradient.device) for one in came]).tolist()
            if not anything and not lacking:
                return False
            passed = [name for name, something in zip(names, told) if something]
            for name, due in self._due.items():
                place = self._blamed[name].place
                # The pass ends within the last attention, whose projections then are for its map alone; and what the
                # latents have no part in, as the text's keys, takes no gradient by them.
                if passed.count(name) < due and (place == name or place in self._blamed):
                    lacking |= {name} if name in self._attentions or _reaches(self._nodes[name], leaf) else set()
        if lacking:
            raise GradientCut(list(dict.fromkeys(cut for name, cut in self._blamed.items() if name in lacking)))
        return gradient is not None


def _came(taken: list[Tensor], output: int, gradients: Sequence[Tensor | None]) -> None:
    gradient = gradients[output]
    if gradient is not None:  # as an operation without a backward has it
        # Half precision may have rounded all of it to zero on a way that is whole.
        taken.append(
            gradient.any() if gradient.dtype in (torch.float32, torch.float64) else gradient.new_ones(()).bool()
        )


def _reaches(node: Any, leaf: Tensor) -> bool:
    """Does autograd's graph lead from ``node`` to ``leaf``?"""
    seen, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if getattr(node, "variable", None) is leaf:
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False


@contextmanager
def proving(model: nn.Module, layers: Sequence[CrossAttentionLayer], proof: Proof) -> Iterator[None]:
    """Watch a forward pass of ``model``, behind what reads maps; take the gradient after, then :meth:`Proof.check`.

    Watched are the attentions of the blocks in which ``layers`` are read, with their projections, and every module
    with weights of its own that a gradient enters.
    """
    named = {module: name for name, module in model.named_modules()}
    attentions = _attentions(model, layers)
    # A projection that takes no gradient is the fault of the attention that it is for.
    blamed = {child: attention for attention in attentions for child in attention.children()}

    ended, last_key = False, layers[-1].reader(layers[-1].module).key

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        nonlocal ended
        ended = ended or module is last_key  # nothing that runs from here on adds to a map
        if ended:
            return output
        if module in attentions or any(one.requires_grad for one in _flat((args, kwargs))):
            if module in blamed and isinstance(output, Tensor):
                # A node of the attention's own: its maps, read off the same output before, take a gradient anyway.
                output = output.view_as(output)
            fault = blamed.get(module, module)
            proof.saw(named[module], CutPlace(named[fault], computed_by(fault)), output, module in attentions)
        return output

    handles = [
        module.register_forward_hook(look, with_kwargs=True)
        for module in named
        if module in attentions or module in blamed or any(one.ndim > 1 for one in module.parameters(recurse=False))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attentions(model: nn.Module, layers: Sequence[CrossAttentionLayer]) -> set[nn.Module]:
    """Self- and cross-attentions that stand in the kind of block that the read ones stand in."""
    read = {layer.module for layer in layers}
    kinds = {type(block) for block in model.modules() if not read.isdisjoint(block.children())}
    return {
        child
        for block in model.modules()
        if type(block) in kinds
        for child in block.children()
        if any(hasattr(child, name) for name in _PROJECTIONS)
    }


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _flat(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _flat(one)


def computed_by(module: nn.Module) -> str:
    """The function that computes ``module``, with its Python module; the attention that it hands on to, where told."""
    chosen = getattr(module, "processor", None)
    if chosen is not None:
        return f"{type(chosen).__module__}.{type(chosen).__qualname__}"
    forward: Any = vars(module).get("forward") or type(module).forward
    while True:
        inner = getattr(forward, "__wrapped__", None) or getattr(forward, "func", None)
        if inner is None:
            break
        forward = inner
    function = getattr(forward, "__func__", forward)
    code = getattr(function, "__code__", None)
    for name in code.co_names if code else ():
        used = function.__globals__.get(name)
        if callable(used) and "attention" in name.lower() and not isinstance(used, type):
            function = used
            break
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', function)}"
    folders = Path(function.__code__.co_filename).parts if hasattr(function, "__code__") else ()
    for folder in ("extensions", "extensions-builtin"):
        if folder in folders[:-1]:
            name += f" of the extension {folders[folders.index(folder) + 1]}"
    return name
