"""``study batch``: a member of a guided batch beside the same seed drawn alone, and where the two part.

On the embedded model, at its settings of two entities. *One at a time*: the batch's guided passes take one image each,
the host's own passes stay batched. *First step's gradient*: of the same latents, batched against alone, over its
length. *Host's pass*: the first plain pass of the same latents likewise, and the first module whose output differs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...settings import Settings
from ..evaluate.arms import ARMS
from ..evaluate.files import write_whole
from ..evaluate.plan import Job
from ..evaluate.prompts import of_split
from .sample import embedded


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("batch", help="a batch's member beside the same seed alone", description=__doc__)
    parser.add_argument("--n", type=int, default=8, help="images of two entities, one batch (8)")
    parser.add_argument("--arms", default="plain,com,iou", help="by comma, of those of study missing")
    parser.add_argument("--out", type=Path, default=Path("out/batch"), help="folder of the results (out/batch)")
    parser.set_defaults(run=run)


def _draw(backend: Any, jobs: Sequence[Job], settings: Settings) -> tuple[list[np.ndarray], float]:
    started = time.process_time()
    picture = backend.picture([replace(job, settings=settings) for job in jobs])
    if picture.stood_aside:
        raise RuntimeError(f"guidance stood aside {picture.stood_aside}")
    return [np.asarray(image).astype(int) for image in picture.images], time.process_time() - started


def compare(backend: Any, name: str, jobs: Sequence[Job]) -> dict[str, Any]:
    """Largest difference of 255 from the same seeds alone, of each image, and seconds of the process."""
    settings = ARMS[2][name]
    alone = [_draw(backend, [job], settings) for job in jobs]
    row: dict[str, Any] = {"arm": name, "alone_seconds": sum(seconds for _, seconds in alone)}
    ways = {"batch": settings, "one_at_a_time": replace(settings, one_at_a_time=True)}
    for way, own in ways.items():
        if way == "batch" or settings.enabled:
            drawn, seconds = _draw(backend, jobs, own)
            row[way] = [int(abs(a - b[0]).max()) for a, (b, _) in zip(drawn, alone)]
            row[f"{way}_seconds"] = seconds
    return row


@torch.no_grad()
def first_difference(unet: Any, count: int) -> tuple[str, float, float]:
    """The first module whose output for one of ``count`` rows differs from that for the row alone, by how much
    relative to its length, and the whole pass's difference likewise."""
    made = torch.Generator().manual_seed(0)
    x = torch.randn(count, unet.config.in_channels, *[unet.config.sample_size] * 2, generator=made)
    context = torch.randn(count, 77, unet.config.cross_attention_dim, generator=made)
    outputs: dict[bool, dict[str, Tensor]] = {True: {}, False: {}}

    def run(rows: int) -> Tensor:
        kept = outputs[rows > 1]

        def keep(name: str) -> Any:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                if isinstance(output, Tensor) and len(output) == rows:
                    kept.setdefault(name, output[0].clone())

            return hook

        leaves = [(name, one) for name, one in unet.named_modules() if name and not any(one.children())]
        handles = [one.register_forward_hook(keep(name)) for name, one in leaves]
        try:
            return unet(x[:rows], torch.tensor(501), encoder_hidden_states=context[:rows], return_dict=False)[0]
        finally:
            for handle in handles:
                handle.remove()

    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b).norm() / b.norm())

    whole = apart(run(count)[0], run(1)[0])
    for name, alone in outputs[False].items():
        if name in outputs[True] and not torch.equal(outputs[True][name], alone):
            kind = type(dict(unet.named_modules())[name]).__name__
            return f"{name} ({kind})", apart(outputs[True][name], alone), whole
    return "none", 0.0, whole


def table(rows: list[dict[str, Any]], first: tuple[str, float, float]) -> str:
    """For people."""
    lines = [
        "| arm | batch against alone: largest of 255, each image | one at a time against alone | seconds alone, "
        "in a batch, one at a time |",
        "|---|---|---|---|",
    ]
    for row in rows:
        seconds = [row.get(f"{way}_seconds") for way in ("alone", "batch", "one_at_a_time")]
        told = ", ".join("–" if one is None else f"{one:.1f}" for one in seconds)
        values = [", ".join(map(str, row.get(way, []))) or "–" for way in ("batch", "one_at_a_time")]
        lines.append(f"| {row['arm']} | {values[0]} | {values[1]} | {told} |")
    name, here, whole = first
    lines += ["", f"First module that differs in a plain pass: {name}, by {here:.1e}; the whole pass by {whole:.1e}."]
    return "\n".join(lines) + "\n"


def run(arguments: argparse.Namespace) -> int:
    """Draw and compare, then write batch.json and batch.md."""
    names = [name.strip() for name in arguments.arms.split(",") if name.strip()]
    for name in names:
        if name not in ARMS[2]:
            raise ValueError(f"arms: {name!r} is not one of {', '.join(ARMS[2])}")
    if arguments.n < 2:
        raise ValueError(f"n: {arguments.n} is not allowed; 2 or more")
    backend: Any = embedded().open("")
    jobs = [Job(prompt, "", Settings(), seed) for prompt, seed in of_split("report", 2, arguments.n)]
    rows = [compare(backend, name, jobs) for name in names]
    first = first_difference(backend.pipe.unet, arguments.n)
    text = f"# A batch's member and the same seed alone\n\n{table(rows, first)}"
    report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "n": arguments.n, "rows": rows}
    write_whole(arguments.out / "batch.json", json.dumps({**report, "first": first}, indent=1))
    write_whole(arguments.out / "batch.md", text)
    print(text)
    return 0
