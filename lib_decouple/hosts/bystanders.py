"""Other extensions that have replaced the denoiser's attention, and how a guided pass leaves them as they were.

Regional Prompter, NegPiP and their like put functions of their own into the attention modules. Those count their calls
to know where in a step they are, and rely on what their `cfg_denoiser` callback made ready for it; a guided pass comes
before that callback, and ends early. So their callbacks are called for our pass, too, and what they keep is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

_HOLDERS = (list, dict, set)
_PLAIN = (int, float, bool, str, type(None), *_HOLDERS)


def replaced_forwards(model: nn.Module) -> list[FunctionType]:
    """Functions that stand in the place of modules' own ``forward``."""
    found = (vars(module).get("forward") for module in model.modules())
    return [forward for forward in found if isinstance(forward, FunctionType)]


def keepers(forwards: Iterable[FunctionType]) -> list[Any]:
    """The objects, each once, that such functions hold on to: where an extension keeps what it counts."""
    held = (cell.cell_contents for forward in forwards for cell in forward.__closure__ or ())
    other = (nn.Module, ModuleType, FunctionType, type)
    return list({id(one): one for one in held if hasattr(one, "__dict__") and not isinstance(one, other)}.values())


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

    Lists, dictionaries and sets are put back one level deep.
    """
    forwards = replaced_forwards(model)
    scopes = {id(forward.__globals__): forward.__globals__ for forward in forwards}
    before = [(vars(one), _copied(vars(one))) for one in keepers(forwards)]
    plain = [
        (scope, _copied({k: v for k, v in scope.items() if isinstance(v, _PLAIN) and not k.startswith("__")}))
        for scope in scopes.values()
    ]
    try:
        yield
    finally:
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
