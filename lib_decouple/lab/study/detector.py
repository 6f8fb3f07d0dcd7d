"""``study detector``: the judge's own error on scenes whose content is known.

Scenes are drawn in the drawings that the model is taught, as they are, after a pass through the embedded autoencoder,
which every generated picture has been through, too, and redrawn by its denoiser from some noise, so that their strokes
are the model's own; and in drawings that neither has ever seen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...hosts.checkpoints import open_pipeline
from ..evaluate.files import write_whole
from ..evaluate.statistics import Share
from ..model.judge import REDRAWN, Change, given_back, measure
from ..model.sprites import THINGS

SEED = 7


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("detector", help="the judge's own error", description=__doc__)
    parser.add_argument("--n", type=int, default=900, help="scenes (900)")
    parser.add_argument("--out", type=Path, default=Path("out/detector"), help="folder of the results (out/detector)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw, judge, write detector.json and detector.md."""
    pipe = open_pipeline()
    taught, strange = ("taught",), ("held out",)
    kinds: dict[str, tuple[tuple[str, ...], Change | None]] = {
        "taught": (taught, None),
        "taught, through the autoencoder": (taught, given_back(pipe)),
        "taught, redrawn by the denoiser": (taught, given_back(pipe, REDRAWN)),
        "held out": (strange, None),
    }
    found = {
        name: measure(roles, arguments.n, SEED, change) for name, (roles, change) in tqdm(kinds.items(), unit="kind")
    }
    write_whole(arguments.out / "detector.json", json.dumps(found, indent=1))
    write_whole(arguments.out / "detector.md", as_markdown(found))
    print(as_markdown(found))
    return 0


def as_markdown(found: dict[str, dict[str, Any]]) -> str:
    """Per cent of scenes with 95 % Wilson intervals, and of each thing the share that was not seen."""
    lines = [
        "| drawings | N | wrong about what is missing | extra | left out, but said to be there | wrong colour |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in found.items():
        cells = [str(Share(round(own[key] * own["scenes"]), own["scenes"])) for key in ("missing", "extra", "reported")]
        lines.append(f"| {name} | {own['scenes']} | {' | '.join(cells)} | {100 * own['colour']:.1f} % |")
    lines += ["", f"| not seen | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    for thing in THINGS:
        cells = [f"{100 * own['missed'][thing]:.1f} %" for own in found.values()]
        lines.append(f"| {thing} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
