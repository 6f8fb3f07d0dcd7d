"""Other extensions that have replaced the denoiser's attention, and how a guided pass leaves them as they were.

Regional Prompter, NegPiP and their like put functions of their own into the attention modules. Those count their calls
to know where in a step they are, and rely on what their `cfg_denoiser` callback made ready for it; a guided pass comes
before that callback, and ends early. So their callbacks are called for our pass, too, and what they keep is put back.
IP-Adapter of sd-webui-controlnet computes its keys and values at a job's first call and reads them by their number
ever after, whatever the rows of a call: what calls itself a cache is empty for our pass, which has other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

_HOLDERS = (list, dict, set)
_PLAIN = (int, float, bool, str, type(None), *_HOLDERS)


def replaced_forwards(model: nn.Module) -> list[FunctionType]:
    """Functions that stand in the place of modules' own ``forward``, and those that such modules keep lists of for it
    to call; each before what it wraps."""
    found: dict[FunctionType, None] = {}
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, MethodType):
            # Who takes a replacement off again may leave the class' own, bound.
            forward = None if forward.__func__ is getattr(type(module), "forward", None) else forward.__func__
        if isinstance(forward, FunctionType):
            lists = (own for name, own in vars(module).items() if isinstance(own, list) and not name.startswith("_"))
            for function in (forward, *(one for own in lists for one in own if isinstance(one, FunctionType))):
                _with_what_it_wraps(function, found)
    return list(found)


def _with_what_it_wraps(function: FunctionType, found: dict[FunctionType, None]) -> None:
    if function not in found:
        found[function] = None
        for one in _held([function]):
            if isinstance(one, FunctionType):
                _with_what_it_wraps(one, found)


def _held(functions: Iterable[FunctionType]) -> Iterator[Any]:
    """What such functions hold on to."""
    for cell in (cell for function in functions for cell in function.__closure__ or ()):
        with suppress(ValueError):  # one that is still empty
            yield cell.cell_contents


def keepers(forwards: Iterable[FunctionType]) -> list[Any]:
    """The objects, each once, that such functions hold on to: where an extension keeps what it counts."""
    other = (nn.Module, ModuleType, FunctionType, MethodType, type)
    found = (one for one in _held(forwards) if hasattr(one, "__dict__") and not isinstance(one, other))
    return list({id(one): one for one in found}.values())


def caches(forwards: Iterable[FunctionType]) -> list[dict[Any, Any]]:
    """The dictionaries, each once, that the objects and modules that such functions hold on to have as ``cache``."""
    found = (vars(one).get("cache") for one in _held(forwards) if hasattr(one, "__dict__"))
    return list({id(own): own for own in found if type(own) is dict}.values())


def made_ready(
    callbacks: Callable[[], Iterable[Callable[[Any], object]]], model: nn.Module, params: Callable[[], Any]
) -> None:
    """Call those of the host's ``callbacks()`` that belong to who has replaced ``model``'s attention, each with
    ``params()`` of its own."""
    owners = [id(one) for one in keepers(replaced_forwards(model))]
    for callback in callbacks() if owners else ():
        if id(getattr(callback, "__self__", None)) in owners:
            callback(params())


@contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """What those keep who have replaced ``model``'s attention, and their modules' plain values, are put back after.

    Lists, dictionaries and sets are put back one level deep. Their caches are empty inside.
    """
    forwards = replaced_forwards(model)
    scopes = {id(forward.__globals__): forward.__globals__ for forward in forwards}
    before = [(vars(one), _copied(vars(one))) for one in keepers(forwards)]
    plain = [
        (scope, _copied({k: v for k, v in scope.items() if isinstance(v, _PLAIN) and not k.startswith("__")}))
        for scope in scopes.values()
    ]
    emptied = [(own, own.copy()) for own in caches(forwards)]
    for own, _ in emptied:
        own.clear()
    try:
        yield
    finally:
        for own, content in emptied:
            _refill(own, content)
        for values, copies in before:
            for name in [name for name in values if name not in copies]:
                del values[name]
        for values, copies in (*before, *plain):
            for name, (value, content) in copies.items():
                if type(value) in _HOLDERS:
                    _refill(value, content)
                values[name] = value


def _copied(values: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> value, and a copy of what it holds."""
    return {name: (value, value.copy() if type(value) in _HOLDERS else value) for name, value in values.items()}


def _refill(value: Any, content: Any) -> None:
    value.clear()
    (value.extend if isinstance(value, list) else value.update)(content)
