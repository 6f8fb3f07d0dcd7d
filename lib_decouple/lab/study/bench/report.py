"""The tables of ``bench``, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .counting import run_cost
from .ways import GUIDED, MODELS, RUN, SAME_ON_SD15, WAYS

Record = dict[str, Any]
TARGET = 1.25
"""Most FLOPs of that run relative to plain, with the layers that Stable Diffusion 1.5 is read at by default."""


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def composed(cost: Record, unit: str) -> float:
    """The 50-step run's ratio; ``unit`` is "flops" or "seconds"."""
    return run_cost(**cost[unit], passes=guided_passes(cost["way"]))


def guided_passes(name: str) -> int:
    """Passes for guidance alone in the composed run, refinement aside."""
    return {"plain": 0, "late": 0, "rival": RUN}.get(WAYS[name].kind, GUIDED)


def cost_table(costs: Sequence[Record], model: str) -> str:
    """The ways side by side, for people."""
    lines = [
        f"### Cost on {MODELS[model]}",
        "",
        f"| way | ends after | passes in {RUN} steps | GFLOPs a guided step | × plain step | "
        f"**FLOPs × plain, {RUN} steps, {GUIDED} guided** (composed) | wall-clock × plain (composed) | "
        f"peak memory of a step, MB | {RUN}-step picture run whole, s | × plain | passes, gradients |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cost in costs:
        if cost["model"] != model:
            continue
        flops, whole = cost["flops"], cost.get("whole")
        memory = "not measured" if cost["memory"] is None else f"{cost['memory'] / 2**20:.0f}"
        run = (
            f"{whole['seconds']:.2f} | {whole['ratio']:.2f} | {whole['passes']:.0f}, {whole['gradients']:.0f}"
            if whole
            else "– | – | –"
        )
        lines.append(
            f"| {cost['way']} | {cost['last'] or '–'} | {guided_passes(cost['way'])} | {flops['guided'] / 1e9:.2f} | "
            f"{flops['guided'] / flops['plain']:.3f} | {composed(cost, 'flops'):.3f} | "
            f"{composed(cost, 'seconds'):.2f} | {memory} | {run} |"
        )
    return "\n".join(lines) + "\n"


def loss_table(rows: Sequence[Record]) -> str:
    """Cost and loss joined: per cent with 95 % Wilson intervals, exact McNemar p against exact guidance."""
    lines = [
        "### What the cheaper ways lose (embedded model, 20 steps)",
        "",
        "| entities | arm | N | missing % | p | extra % | p | exactly right % | p | passes | FLOPs × plain, embedded "
        f"| FLOPs × plain, SD 1.5 at {RUN} steps, as many in a hundred guided |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = []
        for name in ("missing", "extra", "right"):
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            cells.append(f"{100 * row[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
            cells.append(f"{row[f'{name}_p']:.1g}" if f"{name}_p" in row else "")
        lines.append(
            f"| {row['count']} | {row['arm']} | {row['n']} | {' | '.join(cells)} | {row['passes']:.1f} | "
            f"{_number(row.get('embedded_flops'))} | {_number(row.get('sd15_flops'))} |"
        )
    return "\n".join(lines) + "\n"


def verdict(costs: Sequence[Record]) -> str:
    """Is the target met?"""
    default = SAME_ON_SD15["default layers"]
    found = [composed(c, "flops") for c in costs if (c["model"], c["way"]) == ("sd15", default)]
    about = f"FLOPs × plain at {RUN} steps with {GUIDED} guided, Stable Diffusion 1.5's default layers"
    if not found:
        return f"{about}: not measured (target: at most {TARGET})."
    return f"{about}: {found[0]:.4f}; target, at most {TARGET}: {'yes' if found[0] <= TARGET else 'NO'}."
