"""``study causes``: which of intensity, spread and overlap, in the unguided run, goes with a missing entity.

The paper's question, asked of the embedded model: each measure is the mean over the first half of
the plain run's steps, taken of the raw maps; how well does it tell images with a missing entity
from whole ones?
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap, pointbiserialr
from torch import Tensor
from tqdm import tqdm

from ...core import losses
from ..evaluate.files import write_whole
from ..evaluate.prompts.splits import SPLITS
from ..evaluate.statistics import area
from .sample import Task, draw, draw_all, tasks_of

MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "intensity of the weakest (peak)": lambda m: losses.intensity(m, "max").amin(1),
    "intensity of the weakest (mean)": lambda m: losses.intensity(m, "mean").amin(1),
    "spread of the widest": lambda m: losses.spread(m).amax(1),
    "overlap: IoU, normalised maps": lambda m: losses.iou(m, "union"),
    "overlap: IoU, raw maps": lambda m: losses.iou(m, "union", normalise=False),
    "overlap: centre distance": lambda m: losses.pair_distance(m).mean(1),
    "overlap: KL": lambda m: losses.pair_kl(m).mean(1),
    "overlap: CC, normalised maps": losses.cc,
    "overlap: CC, raw maps": lambda m: losses.cc(m, normalise=False),
}


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("causes", help="what predicts a missing entity", description=__doc__)
    parser.add_argument("--n", type=int, default=500, help="images for each number of entities (500)")
    parser.add_argument("--counts", default="2,3", help="numbers of entities, by comma (2,3)")
    parser.add_argument("--split", choices=SPLITS, default="report", help="which prompts and seeds (report)")
    parser.add_argument("--out", type=Path, default=Path("out/causes"), help="folder of the results (out/causes)")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 is one a core")
    parser.set_defaults(run=run)


def measured(backend: Any, task: Task) -> list[dict[str, Any]]:
    """Measures of each of a task's images, and whether something is missing."""
    lost, picture = draw(backend, task)
    found = []
    for job, missing, trace in zip(task.jobs, lost, picture.traces):
        maps = [record.maps for record in trace.steps[: len(trace.steps) // 2] if record.maps is not None]
        stacked = torch.stack(maps)
        values = {name: float(measure(stacked).mean()) for name, measure in MEASURES.items()}
        found.append({"seed": job.seed, "missing": bool(missing), **values})
    return found


def run(arguments: argparse.Namespace) -> int:
    """Draw, correlate, write causes.json, causes.md and causes.png."""
    counts = [int(part) for part in arguments.counts.split(",")]
    tasks = [
        task
        for count in counts
        for task in tasks_of(count, arguments.split, count, arguments.n, observe=True, keep_maps=True)
    ]
    images: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    with tqdm(total=sum(len(task.jobs) for task in tasks), unit="image") as bar:
        for task, found in draw_all(measured, tasks, arguments.jobs):
            images[task.key] += found
            bar.update(len(found))
    rows = [row for count in counts for row in correlate(count, images[count])]
    write_whole(arguments.out / "causes.json", json.dumps({"split": arguments.split, "rows": rows}, indent=1))
    write_whole(arguments.out / "causes.md", as_markdown(rows))
    plot(arguments.out / "causes.png", rows)
    print(as_markdown(rows))
    return 0


def correlate(count: int, images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Correlation with "missing" and area under the ROC curve of each measure, with 95 % bootstrap intervals."""
    flags = np.array([image["missing"] for image in images], float)
    rows = []
    for name in MEASURES:
        values = np.array([image[name] for image in images])
        resampled = {}
        for label, statistic in (("r", lambda f, v: float(pointbiserialr(f, v)[0])), ("auc", area)):
            interval = bootstrap(
                (flags, values), statistic, paired=True, vectorized=False, n_resamples=500, method="percentile",
                rng=np.random.default_rng(0),
            ).confidence_interval  # fmt: skip
            resampled[label] = (statistic(flags, values), float(interval.low), float(interval.high))
        rows.append({"count": count, "measure": name, "n": len(images), "missing": flags.mean(), **resampled})
    return rows


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people. Area 0.5 says nothing; 0 and 1 tell perfectly."""
    lines = [
        "| entities | measure | N | missing % | correlation with missing | area under ROC |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*row[key]) for key in ("r", "auc")]
        lines.append(
            f"| {row['count']} | {row['measure']} | {row['n']} | {100 * row['missing']:.1f} | {cells[0]} | {cells[1]} |"
        )
    return "\n".join(lines) + "\n"


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Correlations with intervals, one panel a number of entities."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = sorted({row["count"] for row in rows})
    size = (6.5 * len(counts), 4)
    figure, axes = plt.subplots(1, len(counts), figsize=size, squeeze=False, sharey=True, constrained_layout=True)
    for axis, count in zip(axes[0], counts):
        own = [row for row in rows if row["count"] == count][::-1]
        values = [row["r"] for row in own]
        axis.barh(
            [row["measure"] for row in own],
            [v[0] for v in values],
            xerr=[[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]],
            color=["#1b6ca8" if row["measure"].startswith("overlap") else "#f0b400" for row in own],
            error_kw={"lw": 0.8},
        )
        axis.axvline(0, color="black", lw=0.8)
        axis.set_title(f"{count} entities: correlation with a missing entity", fontsize=10)
        axis.set_xlim(-1, 1)
    figure.savefig(path, dpi=100)
    plt.close(figure)
