"""``study detector``: the detector's own error on scenes whose content is known.

Scenes are drawn, whole or with a named entity left out, and judged as drawn and after a pass
through the embedded autoencoder, which every generated picture has been through, too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...hosts.checkpoints import open_pipeline
from ..model.detector import judge
from ..model.scenes import ENTITIES, place, render
from .files import write_whole
from .stats import share


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("detector", help="the detector's own error", description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="scenes (1000)")
    parser.add_argument("--out", type=Path, default=Path("out/detector"), help="folder of the results (out/detector)")
    parser.set_defaults(run=run)


@torch.no_grad()
def through(pipe: Any, images: np.ndarray) -> np.ndarray:
    """uint8 ``[n, h, w, 3]`` encoded and decoded."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    restored = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mean).sample
    return ((restored.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def run(arguments: argparse.Namespace) -> int:
    """Draw, judge, write detector.json."""
    rng = np.random.default_rng(7)
    pipe = open_pipeline()
    wrong: dict[str, dict[str, list[bool]]] = {
        kind: {"missing": [], "extra": []} for kind in ("drawn", "through the autoencoder")
    }
    for start in range(0, arguments.n, 20):
        named, shown = [], []
        for _ in range(min(20, arguments.n - start)):
            names = [str(e) for e in rng.choice(ENTITIES, size=int(rng.integers(1, 4)), replace=False)]
            present = [e for e in names if rng.random() < 0.8] or names[:1]
            others = [e for e in ENTITIES if e not in names]
            intruder = [str(rng.choice(others))] if len(present) < 3 and rng.random() < 0.2 else []
            named.append((names, present, intruder))
            shown.append(render(place(present + intruder, rng)))
        images = np.stack(shown)
        for kind, seen in (("drawn", images), ("through the autoencoder", through(pipe, images))):
            for image, (names, present, intruder) in zip(seen, named):
                verdict = judge(image, names)
                wrong[kind]["missing"].append(set(verdict.missing) != set(names) - set(present))
                wrong[kind]["extra"].append(verdict.extra != len(intruder))
    report = {
        kind: {
            name: {"errors": sum(flags), "n": len(flags), "interval": share(flags).interval}
            for name, flags in own.items()
        }
        for kind, own in wrong.items()
    }
    write_whole(arguments.out / "detector.json", json.dumps(report, indent=1))
    for kind, own in wrong.items():
        for name, flags in own.items():
            print(f"{kind}: wrong about {name}: {sum(flags)} of {len(flags)}, {share(flags)}")
    return 0
