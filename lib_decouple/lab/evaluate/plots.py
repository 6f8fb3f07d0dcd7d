"""The report's plots, as SVG that takes the page's own text colour, so that it reads in light, dark and print."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping
from typing import Any

from .results import Cost, Figure

INK = "#010203"
"""Stands for the page's text colour while matplotlib draws."""
BASE, GUIDED = "#888888", "#2b8cbe"
FONT = "'DejaVu Sans', Verdana, sans-serif"


def _svg(drawn: Any, said: str) -> str:
    import matplotlib.pyplot as plt

    text = io.StringIO()
    drawn.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(drawn)
    found = text.getvalue()
    found = found[found.index("<svg") :].replace(INK, "currentColor").replace("'DejaVu Sans'", FONT)
    return found.replace("<svg", f'<svg role="img" aria-label="{html.escape(said)}"', 1)


def _style() -> Any:
    inked = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor", "axes.titlecolor")
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "decouple",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **{name: INK for name in inked},
    }


def by_arm(figure: Figure, count: int) -> str:
    """Each arm's value with its interval; filled where the change holds after correction."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [line for line in figure.lines if line.count == count]
    with plt.rc_context(_style()):
        drawn, axis = plt.subplots(figsize=(4.7, 0.75 + 0.27 * len(lines)), constrained_layout=True)
        for place, line in enumerate(lines):
            own, scale = line.estimate, figure.scale
            colour = GUIDED if line.change else BASE
            if own.low == own.low:
                axis.plot([own.low * scale, own.high * scale], [place, place], color=colour, lw=1.6)
            filled = line.holds or line.change is None
            axis.plot([own.value * scale], [place], "o", color=colour, mfc=colour if filled else "none", ms=6)
        base = next((line.estimate.value * figure.scale for line in lines if line.change is None), None)
        if base is not None:
            axis.axvline(base, color=BASE, lw=0.8, ls=":")
        axis.set_yticks(range(len(lines)), [line.arm for line in lines])
        axis.set_ylim(len(lines) - 0.5, -0.5)
        if figure.share:
            axis.set_xlim(left=0)
        axis.set_title(f"{figure.name}{', %' if figure.share else ''}, {count} entities", fontsize=9, loc="left")
        return _svg(drawn, f"{figure.name} by arm, {count} entities; the table above has the figures")


def costs_by_arm(spent: Mapping[tuple[int, str], Cost], arms: list[str], count: int) -> str:
    """Guided passes as bars, with the time beside them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    own = [(arm, spent[count, arm]) for arm in arms if (count, arm) in spent]
    with plt.rc_context(_style()):
        drawn, axis = plt.subplots(figsize=(4.7, 0.75 + 0.27 * len(own)), constrained_layout=True)
        most = max((cost.passes or 0.0 for _, cost in own), default=0.0) or 1.0
        for place, (_, cost) in enumerate(own):
            axis.barh([place], [cost.passes or 0.0], color=GUIDED if cost.passes else BASE, height=0.55)
            told = "not told" if cost.passes is None else f"{cost.passes:.1f}"
            if cost.times is not None:
                told += f", time \u00d7{cost.times:.2f}"
            axis.text((cost.passes or 0.0) + 0.02 * most, place, told, va="center", fontsize=8)
        axis.set_yticks(range(len(own)), [arm for arm, _ in own])
        axis.set_ylim(len(own) - 0.5, -0.5)
        axis.set_xlim(0, 1.55 * most)
        axis.set_title(f"guided passes an image, {count} entities", fontsize=9, loc="left")
        return _svg(drawn, f"guided passes by arm, {count} entities; the table above has the figures")
