"""FLOPs and seconds of single steps, and what a run composed of them costs."""

from __future__ import annotations

import time
from collections.abc import Callable

from .ways import GUIDED, RUN


def count_flops(body: Callable[[], object]) -> int:
    """FLOPs of matrix products and convolutions, forward and backward, by torch's counter.

    Counted with the math kernel of attention: the counter does not know the CPU's fused one. The
    products are the same, forward; backward, a fused kernel's recomputation would come on top.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        body()
    return int(counter.get_total_flops())


def run_cost(
    plain: float, guided: float, unguided: float, steps: int = RUN, passes: float = GUIDED, gradients: float = GUIDED
) -> float:
    """A run's cost relative to plain, composed of the costs of single whole steps, in any one unit.

    ``gradients`` updates are paid at ``guided - unguided`` each, and ``passes`` forward passes at
    ``unguided - plain`` each (nothing, but for a way that runs one at every step).
    """
    return (steps * plain + passes * (unguided - plain) + gradients * (guided - unguided)) / (steps * plain)


def timed(body: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    body()
    return time.perf_counter() - started
