"""What rounding moves on the way there, apart from how the gradient is taken: one pass's values, put into another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class ModuleValues:
    """What each module of a network gave in the pass that was :meth:`noted`, call by call."""

    def __init__(self) -> None:
        self.given: dict[str, list[Tensor]] = {}

    @contextmanager
    def noted(self, network: nn.Module) -> Iterator[None]:
        """What ``network``'s modules give inside is kept."""
        self.given = {}

        def note(name: str, output: Tensor) -> None:
            self.given.setdefault(name, []).append(output.detach())

        with _outputs_shown_to(network, note):
            yield

    @contextmanager
    def repeated(self, network: nn.Module) -> Iterator[None]:
        """Inside, one pass's modules give what was noted of them; the gradient through each is its own, at these."""
        left = {name: iter(outputs) for name, outputs in self.given.items()}

        def repeat(name: str, output: Tensor) -> Tensor:
            return output + (next(left[name]).to(output.dtype) - output.detach())

        with _outputs_shown_to(network, repeat):
            yield


@contextmanager
def _outputs_shown_to(network: nn.Module, tell: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    def hook(name: str) -> Callable[..., Tensor | None]:
        def look(module: nn.Module, given: tuple[Any, ...], output: Any) -> Tensor | None:
            return tell(name, output) if isinstance(output, Tensor) else None

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in network.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
