"""``generate``: a prompt drawn plain and decoupled, with maps, curves and a sentence on what changed."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ...core.memory import OUT_OF_MEMORY
from ...core.schedule import Schedule
from ...core.trace import ImageTrace
from ...hosts import reasons
from ...hosts.checkpoints import open_pipeline
from ...hosts.diffusers import Drawing, Picture
from ...hosts.diffusers_prompts import plan_image
from ...hosts.family import profile_of
from ...hosts.seeds import SeedChoice
from ...profiles import closed
from ...prompt.relations import choose
from ...settings import Settings, specs
from ..evaluate.arms import embedded
from ..evaluate.backends.embedded import shipped_curve
from ..evaluate.files import whole_folder
from ..evaluate.prompts.splits import CFG, STEPS
from ..model.judge import judged
from ..model.scenes import thing_and_colour

COLOURS = ("#e4572e", "#2e86ab", "#f0b400", "#6a4c93", "#3a9d5d", "#c2185b", "#7a5c3e", "#4a4a4a")

# Settings with an option of their own below, or none at all.
_OWN = {"enabled", "entities", "steps", "hires", "refine_steps", "size", "loss"}


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("generate", help="draw a prompt plain and decoupled", description=__doc__)
    about = specs()
    parser.add_argument("prompt")
    parser.add_argument("--entities", help="words of the prompt, by comma; found in the prompt when left out")
    parser.add_argument("--loss", help=about["loss"].help)
    parser.add_argument("--steps", type=int, default=None, help=about["steps"].help)
    parser.add_argument("--step-size", dest="size", type=float, default=None, help=about["size"].help)
    parser.add_argument("--refine-steps", default=None, help=about["refine_steps"].help)
    for item in fields(Settings):
        if item.name in _OWN:
            continue
        option = "--" + item.name.replace("_", "-")
        if isinstance(item.default, bool) or about[item.name].is_switch:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=about[item.name].help)
        else:
            parser.add_argument(option, type=type(item.default), help=about[item.name].help)
    parser.add_argument(
        "--checkpoint", type=Path, help="a .safetensors file or diffusers folder; else the embedded one"
    )
    parser.add_argument(
        "--prediction",
        choices=("epsilon", "v_prediction"),
        help="of the checkpoint; when left out, a folder's own, and epsilon for a file",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the first image (1)")
    parser.add_argument("--n", type=int, default=6, help="how many images, of consecutive seeds (6)")
    parser.add_argument("--batch", type=int, default=6, help="how many images at once (6)")
    parser.add_argument("--sampling-steps", type=int, help=f"{STEPS} with the embedded model, else 50")
    parser.add_argument("--cfg", type=float, help=f"guidance scale: {CFG:g} with the embedded model, else 7.5")
    parser.add_argument("--width", type=int, help="pixels; the model's own when left out")
    parser.add_argument("--height", type=int, help="pixels; the model's own when left out")
    parser.add_argument("--negative", default="", help="negative prompt")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps … (cpu)")
    parser.add_argument("--half", action="store_true", help="fp16 weights (cuda, mps)")
    parser.add_argument(
        "--decouple-debug", action="store_true", help="hold the first gradient against finite differences"
    )
    parser.add_argument("--out", type=Path, help="folder to make; out/<prompt> when left out")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder when it exists")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Pair:
    """The same noise drawn twice."""

    seed: int
    plain: np.ndarray
    decoupled: np.ndarray
    before: ImageTrace
    after: ImageTrace
    choice: SeedChoice | None = None
    """Which seed's noise was decoupled instead, where drafts chose."""


def settings_from(arguments: argparse.Namespace, entities: Sequence[str]) -> Settings:
    """The settings that the command line asks for.

    What it leaves open is taken from the loss's own arm on the embedded model, and stays open, for the loaded
    model's profile, on any other. Raises ValueError that names the field.
    """
    base = Settings() if arguments.checkpoint else embedded(arguments.loss, len(entities))
    given = {item.name: getattr(arguments, item.name, None) for item in fields(Settings)}
    if arguments.refine_steps is not None:
        try:
            given["refine_steps"] = [int(part) for part in arguments.refine_steps.split(",") if part.strip()]
        except ValueError:
            raise ValueError(
                f"refine_steps: {arguments.refine_steps!r} is not allowed; whole numbers by comma"
            ) from None
    if arguments.steps is not None and arguments.start is None:
        given["start"] = 0
    chosen = {name: value for name, value in given.items() if value is not None}
    return Settings.from_dict({**base.as_dict(), **chosen, "enabled": True, "entities": list(entities)})


def choose_entities(prompt: str, given: str | None) -> list[str]:
    """Those given, or those found. Raises ValueError when there are none."""
    if given is not None:
        names = [part.strip() for part in re.split("[,，、;；،؛]", given) if part.strip()]
        told = "given"
    else:
        choice = choose(prompt)
        names, left_out = [one.text for one in choice.apart], choice.why()
        told = f"found in {prompt!r}" + (f" but {left_out}" if left_out else "")
    if not names:
        raise ValueError(f"entities: none {told}; use --entities a,b")
    return names


def unmoved(
    pairs: Sequence[Pair], entities: Sequence[str], settings: Settings, steps: int, left_out: str, asides: Sequence[str]
) -> str:
    """Why guidance moved nothing; "" where it did. ``asides``: why it stood aside, if it did."""
    if any(record.update_norm > 0 for pair in pairs for record in pair.after.steps):
        return ""
    if settings.gradient == "none":
        return "Nothing was moved, as the gradient is none."
    schedule = Schedule(settings.steps, settings.every, settings.start)
    why = reasons.too_few(entities, settings.loss, left_out) or reasons.no_guided_step(schedule, steps)
    why = why or (f"it stood aside {asides[0]}" if asides else "no step had a loss to lower")
    return f"Nothing was moved, the pictures are the plain ones: {why}."


def sentence(pairs: Sequence[Pair], entities: Sequence[str], truth: bool) -> str:
    """What changed, in plain words. ``truth``: the embedded model's judge can tell what is there."""
    lines = told_by_judge(pairs, entities) if truth else []
    overlaps = [
        (p.before.steps[i].before.mean_iou(), p.after.steps[i].before.mean_iou())
        for p in pairs
        if p.choice is None or p.choice.drawn == p.seed  # maps of two noises are no effect of guidance
        for i in [min(len(p.before.steps), len(p.after.steps)) - 1]
        if i >= 0
    ]
    if len(entities) > 1 and overlaps:
        before, after = np.mean(overlaps, axis=0)
        lines.append(f"At the last step the maps' mean IoU is {before:.2f} plain and {after:.2f} decoupled.")
    return " ".join(lines)


def told_by_judge(pairs: Sequence[Pair], entities: Sequence[str], most: int = 12) -> list[str]:
    """How many images show all, gained and lost something; which seeds did, for at most ``most`` of them."""
    names = ", ".join(entities[:-1]) + f" and {entities[-1]}" if len(entities) > 1 else entities[0]
    plain = judged([pair.plain for pair in pairs], [entities] * len(pairs))
    ours = judged([pair.decoupled for pair in pairs], [entities] * len(pairs))
    back = [[name for name in b.missing if name not in a.missing] for b, a in zip(plain, ours)]
    lost = [[name for name in a.missing if name not in b.missing] for b, a in zip(plain, ours)]
    lines = [
        f"Of {len(pairs)} images, {sum(not v.missing for v in plain)} show {names} when drawn plainly and "
        f"{sum(not v.missing for v in ours)} when decoupled; {sum(bool(v.extra) for v in plain)} and "
        f"{sum(bool(v.extra) for v in ours)} show something extra.",
        f"{sum(map(bool, back))} got back what was missing, {sum(map(bool, lost))} lost something.",
    ]
    for pair, gained, gone in zip(pairs, back, lost) if len(pairs) <= most else ():
        told = [f"{' and '.join(gained)} came back"] if gained else []
        told += [f"{' and '.join(gone)} went missing"] if gone else []
        if told:
            lines.append(f"Seed {pair.seed}: {'; '.join(told)}.")
    return lines


def run(arguments: argparse.Namespace) -> int:
    """Draw, write the folder, print the sentence."""
    for name in ("n", "batch"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name}: {getattr(arguments, name)} is not allowed; 1 or more")
    prompt, entities = arguments.prompt, choose_entities(arguments.prompt, arguments.entities)
    settings = settings_from(arguments, entities)
    target = arguments.out or Path("out") / (re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "prompt")
    if target.exists() and not arguments.overwrite:
        raise FileExistsError(f"out: {target} exists; give another --out, or --overwrite to replace it")
    own = arguments.checkpoint is None
    print(f"prompt: {prompt}\nentities: {', '.join(entities)}")
    pipe = open_pipeline(
        arguments.checkpoint, arguments.device, torch.float16 if arguments.half else torch.float32, arguments.prediction
    )
    if settings.skip_missing:
        wanted, entities = entities, list(plan_image(pipe, prompt, entities, skip_missing=True).names)
        if not entities:
            raise ValueError(f"entities: none of {', '.join(wanted)} is in the prompt")
        if len(entities) < len(wanted):
            print(f"left out: {', '.join(name for name in wanted if name not in entities)}")
    steps = arguments.sampling_steps or (STEPS if own else 50)
    cfg = arguments.cfg if arguments.cfg is not None else (CFG if own else 7.5)
    seeds = list(range(arguments.seed, arguments.seed + arguments.n))
    profile = profile_of(pipe.unet)
    if settings.left_open():
        print(profile.told(settings))
    settings = closed(settings, profile, steps)
    print(f"loss: {settings.loss}")

    def draw(chosen: Sequence[int], label: str, **how: Any) -> Picture:
        with tqdm(total=steps, desc=f"{label}, seeds {chosen[0]}-{chosen[-1]}", unit="step") as bar:
            return Drawing(
                pipe,
                [prompt] * len(chosen),
                [entities] * len(chosen),
                settings,
                seeds=chosen,
                steps=steps,
                guidance_scale=cfg,
                height=arguments.height,
                width=arguments.width,
                negative_prompt=arguments.negative,
                keep_maps=True,
                curve=shipped_curve() if own else None,
                doubts=print if arguments.decouple_debug else None,
                progress=lambda done, _: bar.update(done - bar.n) and None,
                **how,
            ).picture()

    pairs, asides = draw_pairs(draw, seeds, arguments.batch)
    truth = own and _known(entities)
    left_out = "" if arguments.entities is not None else choose(prompt).why()
    nothing = unmoved(pairs, entities, settings, steps, left_out, asides)
    said = " ".join(filter(None, (nothing, sentence(pairs, entities, truth))))
    with whole_folder(target, arguments.overwrite) as folder:
        write(folder, pairs, entities, prompt, settings, said)
    for pair in pairs:
        if pair.choice:
            print(f"Seed {pair.seed}: {pair.choice.words()}")
    for reason in () if nothing else asides:
        print(f"decoupling stood aside {reason}; the image was finished plain")
    print(f"{said}\n{target / 'compare.png'}")
    return 0


def _known(entities: Sequence[str]) -> bool:
    """Does the judge know all of them?"""
    try:
        return bool([thing_and_colour(entity) for entity in entities])
    except ValueError:
        return False


def draw_pairs(draw: Callable[..., Picture], seeds: Sequence[int], batch: int) -> tuple[list[Pair], list[str]]:
    """Each seed plain (only looked at) and decoupled; also why guidance stood aside, if it did.

    Where memory does not suffice for a batch, it is halved; for one image the error is raised.
    """
    pairs: list[Pair] = []
    asides: list[str] = []
    at = 0
    while at < len(seeds):
        chosen = list(seeds[at : at + batch])
        try:
            plain = draw(chosen, "plain", observe=True)
            ours = draw(chosen, "decoupled", watch=True)
        except OUT_OF_MEMORY:
            if len(chosen) == 1:
                raise ValueError("memory: one plain image does not fit; use fewer pixels or another --device") from None
            batch = max(1, len(chosen) // 2)
            print(f"out of memory; going on with {batch} at once")
            continue
        asides += [ours.stood_aside] if ours.stood_aside else []
        if ours.not_insisted:
            print(f"not insisted: {ours.not_insisted}")
        if ours.no_drafts:
            print(f"no drafts, the seeds asked for were drawn: {ours.no_drafts}")
        for i, seed in enumerate(chosen):
            both = np.asarray(plain.images[i]), np.asarray(ours.images[i])
            pairs.append(Pair(seed, *both, plain.traces[i], ours.traces[i], ours.choices[i]))
        at += len(chosen)
    return pairs, asides


def write(
    folder: Path, pairs: Sequence[Pair], entities: Sequence[str], prompt: str, settings: Settings, said: str
) -> None:
    """Images, the figure and the numbers."""
    from PIL import Image

    for pair in pairs:
        Image.fromarray(pair.plain).save(folder / f"{pair.seed}-plain.png")
        Image.fromarray(pair.decoupled).save(folder / f"{pair.seed}-decoupled.png")
    record = {
        "prompt": prompt,
        "settings": settings.as_dict(),
        "sentence": said,
        "images": [
            {
                "seed": p.seed,
                "plain": p.before.as_dict(),
                "decoupled": p.after.as_dict(),
                "choice": p.choice and p.choice.as_dict(),
            }
            for p in pairs
        ],
    }
    (folder / "trace.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    figure(folder / "compare.png", pairs, entities, prompt, said)


def figure(path: Path, pairs: Sequence[Pair], entities: Sequence[str], prompt: str, said: str, most: int = 6) -> None:
    """Plain over decoupled, each with its entity maps; below, IoU and loss over the steps."""
    import textwrap

    import matplotlib
    import matplotlib.patches

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = list(pairs)[:most]
    grid: Any = plt.figure(figsize=(2.1 * max(3, len(shown)) + 1.2, 12.4), constrained_layout=True)
    parts: Any = grid.subfigures(2, 1, height_ratios=[4, 1.35])
    axes = parts[0].subplots(4, len(shown), squeeze=False)
    rows = ("plain", "its maps", "decoupled", "its maps")
    for column, pair in enumerate(shown):
        for row, (image, trace) in enumerate(((pair.plain, pair.before), (pair.decoupled, pair.after))):
            axes[2 * row, column].imshow(image)
            axes[2 * row + 1, column].imshow(_overlay(image, trace))
        axes[0, column].set_title(f"seed {pair.seed}", fontsize=10)
        if pair.choice and pair.choice.drawn != pair.seed:
            axes[2, column].set_title(f"seed {pair.choice.drawn}", fontsize=10)
    for row, name in enumerate(rows):
        axes[row, 0].set_ylabel(name, fontsize=10)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    left, right = parts[1].subplots(1, 2)
    for which, colour, trace_of in (
        ("plain", "#888888", lambda p: p.before),
        ("decoupled", "#1b6ca8", lambda p: p.after),
    ):
        for axis, value in ((left, lambda r: r.before.mean_iou()), (right, lambda r: r.loss)):
            for pair in pairs:
                steps = trace_of(pair).steps
                axis.plot([r.step + 1 for r in steps], [value(r) for r in steps], color=colour, alpha=0.25, lw=0.8)
            length = min((len(trace_of(p).steps) for p in pairs), default=0)
            if length:
                mean = [float(np.mean([value(trace_of(p).steps[k]) for p in pairs])) for k in range(length)]
                steps = trace_of(pairs[0]).steps[:length]
                axis.plot([r.step + 1 for r in steps], mean, color=colour, lw=2.2, label=which)
    guided = sorted({r.step + 1 for pair in pairs for r in pair.after.steps if r.update_norm > 0})
    for axis, name in ((left, "mean IoU of the entities' maps"), (right, "loss")):
        if guided:
            axis.axvspan(guided[0] - 0.5, guided[-1] + 0.5, color="#1b6ca8", alpha=0.08, lw=0, label="guided steps")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("step")
        axis.set_title(name, fontsize=10)
        axis.legend(fontsize=8)
    grid.suptitle(f"{prompt}\n" + "\n".join(textwrap.wrap(said, 24 * max(3, len(shown)))), fontsize=11)
    colours = [matplotlib.patches.Patch(color=COLOURS[i % 8], label=name) for i, name in enumerate(entities)]
    parts[0].legend(handles=colours, loc="outside lower center", ncols=len(colours), fontsize=9, frameon=False)
    grid.savefig(path, dpi=110)
    plt.close(grid)


def _overlay(image: np.ndarray, trace: ImageTrace) -> np.ndarray:
    """The picture in grey with each entity's mean map over the first half of the steps in its colour."""
    from PIL import Image

    grey = image.mean(-1, keepdims=True).repeat(3, -1) / 255 * 0.55 + 0.35
    kept = [r.maps for r in trace.steps[: max(1, len(trace.steps) // 2)] if r.maps is not None]
    if not kept:
        return grey
    maps = torch.stack(kept).mean(0).numpy()
    for i, own in enumerate(maps):
        own = own / max(own.max(), 1e-12)
        size = (image.shape[1], image.shape[0])
        large = np.asarray(Image.fromarray(own.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
        alpha = (np.clip(large, 0, 1) ** 1.5 * 0.8)[..., None]
        colour = np.array([int(COLOURS[i % 8][k : k + 2], 16) / 255 for k in (1, 3, 5)])
        grey = grey * (1 - alpha) + colour * alpha
    return np.clip(grey, 0, 1)
