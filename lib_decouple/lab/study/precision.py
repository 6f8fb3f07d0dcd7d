"""``study precision``: is the gradient in half precision the one of float32?

Half precision is emulated on the CPU: every operation sums in float32 and is rounded once, forward and backward. With
``--device cuda`` it is the device's own, against float32 there (without TF32), and what is flushed is not counted.
``fp16``, ``bf16``: weights and latents in half, as Forge and diffusers run; ``autocast``: float32 weights and latents
under torch's autocast, with the CPU's list of operations. A cosine is between the gradients of one loss by the same
latents, half against float32, of the same weights and at the same latents and context, as half precision holds them:
a trained model's gradient turns within that rounding. *Scaled* is what the extension does, *unscaled* the same without
its loss scale. *Flushed*: share of the values of all gradients inside the network that rounding made zero. *Map
error*: largest difference of a token's map to the one computed in float64 from the same queries and keys, over the
map's highest value.

A loss that takes the least or greatest of several numbers (of two maps at a pixel, of a map's pixels, of the entities)
has a kink where they are level. *Sides held*: the cosine where half precision takes the same ones as float32 does, told
where it would take another at some place; *sides changed*: at how many, and by how much the two differ there at most,
as a share of their sum. *Same values*, where the bar is missed: the cosine to float32's gradient through the very
values that half precision has computed, module by module. What it lacks is the error of the way back; the rest is that
rounding moves what the gradient is of.

Models: the embedded one; Stable Diffusion 1.5 and SDXL, random, in full, where each of SDXL's transformers repeats its
first block's weights; and both with a sixteenth of their channels, where depth, heads and sizes stay. Queries and keys
of the cross-attentions are multiplied by *sharpened*: random weights alone give flat maps, a trained model's lie
between.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ...core.losses import LOSSES
from ...core.maps import full_precision_convolutions
from ...core.memory import present
from ...doctor import device_name
from ...settings import Settings
from ..evaluate.files import reopened, write_whole
from .emulate import HalfOnGpu
from .sides import Loss, Sides
from .unets import UNetWithInputs, embedded_unet, random_unet, unet_config, with_inputs
from .values import ModuleValues

BAR = 0.995
"""Least cosine in fp16 and autocast."""
ALL = (*LOSSES, "iou(form=union)", "com(form=negative)", "kl(form=js)", "kl(form=negative)", "intensity(peak=mean)")
KINDS: dict[str, tuple[torch.dtype, bool]] = {
    "fp16": (torch.float16, False),
    "autocast fp16": (torch.float16, True),
    "bf16": (torch.bfloat16, False),
    "autocast bf16": (torch.bfloat16, True),
}
"""Dtype, and is it autocast's?"""
NARROW = 16
EMULATED = "emulated on a CPU"
"""Where rows are of that name no device."""
MODELS: dict[str, tuple[str, int, int]] = {
    "embedded": ("embedded", 16, 1),
    "sd15-narrow": ("sd15", 64, NARROW),
    "sdxl-narrow": ("sdxl", 64, NARROW),
    "sdxl-narrow-1024": ("sdxl", 128, NARROW),
    "sd15": ("sd15", 64, 1),
    "sdxl": ("sdxl", 64, 1),
    "sdxl-1024": ("sdxl", 128, 1),
}
"""Architecture, side of the latents (a pixel's eighth), and what its channels are divided by."""
Record = dict[str, Any]


def open_model(name: str, sharpened: float, device: str = "cpu") -> UNetWithInputs:
    """A model of :data:`MODELS` with its inputs, in float32."""
    family, side, narrow = MODELS[name]
    if family == "embedded":
        return embedded_unet(device)
    return with_inputs(random_unet(unet_config(family, narrow), sharpened).to(device), side)


def as_held_in(model: UNetWithInputs, kind: str) -> UNetWithInputs:
    """``model`` with the latents and context to which ``kind``, where its weights are in half, rounds them."""
    dtype, autocast = KINDS[kind]
    if autocast:
        return model
    latents, context = (one.to(dtype).float() for one in (model.latents, model.context))
    return replace(model, latents=latents, context=context)


@contextmanager
def half(model: UNetWithInputs, kind: str) -> Iterator[HalfOnGpu | None]:
    """Inside, ``model`` is computed in ``kind`` of half precision, or in float32 for "fp32".

    Emulated on a CPU, by what is yielded; elsewhere it is the device's own.
    """
    weights, device = {}, model.latents.device.type
    with ExitStack() as stack:
        if kind != "fp32":
            dtype, autocast = KINDS[kind]
            if autocast:
                stack.enter_context(torch.autocast(device, dtype=dtype))
            else:
                weights = {one: one.data for one in model.unet.parameters()}
                for one in weights:
                    one.data = one.data.to(dtype)
        emulated = HalfOnGpu(model.unet, weights) if device == "cpu" else None
        try:
            if kind != "fp32" and emulated:
                stack.enter_context(emulated)
            yield emulated
        finally:
            for one, before in weights.items():
                one.data = before


def gradient(
    model: UNetWithInputs, loss: str, kind: str, scaled: bool = True, sides: Callable[[Loss], Loss] | None = None
) -> tuple[Tensor, Record]:
    """The loss's gradient by the latents, flat and in float32, as the extension takes it; and what was seen.

    ``sides``: notes the loss's sides, or holds them.
    """
    taken = model.guide(Settings(enabled=True, loss=loss)).gradient
    taken.scaled = None if scaled else False
    taken.loss = sides(taken.loss) if sides else taken.loss
    started = time.perf_counter()
    with half(model, kind) as emulated:
        found = taken(model.latents.to(model.unet.dtype), [0], lambda x, _: model.run(x))
    seen = {"seconds": time.perf_counter() - started, "loss": float(found.losses[0])}
    if kind != "fp32" and emulated:
        seen["flushed"] = emulated.flushed.share
    if scaled and taken.learned.scale is not None:
        seen["scale"] = taken.learned.scale.factor
    return found.gradient.float().flatten(), seen


@torch.no_grad()
def map_error(model: UNetWithInputs, kind: str) -> float:
    """Largest error of a map as the extension reads it, over its highest value, given the same queries and keys."""
    reader = model.guide(Settings(enabled=True)).gradient.reader
    seen: dict[str, list[Tensor]] = {layer.name: [] for layer in reader.layers}
    handles = []
    for layer in reader.layers:
        parts = layer.reader(layer.module)
        for projection in (parts.query, parts.key):
            keep = seen[layer.name]
            handles.append(projection.register_forward_hook(lambda *given, keep=keep: keep.append(given[-1].double())))
    try:
        with half(model, kind), reader.reading() as capture:
            model.run(model.latents.to(model.unet.dtype))
    finally:
        for handle in handles:
            handle.remove()
    errors = []
    for layer in reader.layers:
        parts = layer.reader(layer.module)
        query, key = (rearrange(one, "b n (k d) -> b k n d", k=parts.heads) for one in seen[layer.name])
        share = (query * (parts.scale or query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).softmax(-1).mean(1)
        exact = share.transpose(1, 2)[:, list(capture.tokens or range(share.shape[-1]))]
        errors.append(float((capture.maps[layer.name] - exact).abs().max() / exact.max()))
    return max(errors)


def cosine(one: Tensor, other: Tensor) -> float:
    """Of two flat gradients."""
    return float(functional.cosine_similarity(one.double(), other.double(), 0))


def measure(
    name: str,
    sharpened: float,
    losses: Sequence[str],
    kinds: Sequence[str],
    done: set[Any],
    unscaled: bool = True,
    device: str = "cpu",
) -> Iterator[Record]:
    """One record for each kind and loss that is not ``done``; ``unscaled``: with what there is without a scale."""
    wanted = [(kind, loss) for kind in kinds for loss in losses if (name, sharpened, kind, loss) not in done]
    if not wanted:
        return
    model = open_model(name, sharpened, device)
    exact: dict[Any, tuple[Tensor, Record, Sides]] = {}
    errors = {kind: map_error(model, kind) for kind in dict.fromkeys(kind for kind, _ in wanted)}
    for kind, loss in wanted:
        record: Record = {"model": name, "sharpened": sharpened, "kind": kind, "loss": loss, "map_error": errors[kind]}
        held, point = as_held_in(model, kind), (loss, kind if not KINDS[kind][1] else "autocast")
        if point not in exact:
            noted = Sides()
            exact[point] = (*gradient(held, loss, "fp32", sides=noted.noted), noted)
        float32, seen_fp32, sides = exact[point]
        ways = {"scaled": (True, sides.compared), "held": (True, sides.held), "unscaled": (False, sides.compared)}
        for key, (scaled, looked) in ways.items():
            if not scaled and (not unscaled or KINDS[kind][0] == torch.bfloat16):
                continue  # bf16 has float32's range, so nothing is scaled there
            if key == "held" and not sides.changed:
                continue
            values = ModuleValues()
            with values.noted(model.unet) if key == "scaled" else nullcontext():
                found, seen = gradient(held, loss, kind, scaled, looked)
            record[key] = {"cosine": cosine(found, float32), **seen}
            if key == "scaled" and record[key]["cosine"] < BAR:
                with values.repeated(model.unet):
                    record["same_values"] = {"cosine": cosine(found, gradient(held, loss, "fp32")[0])}
        if sides.places:
            record["sides"] = {"changed": sides.changed, "places": sides.places, "apart": sides.apart}
        record["seconds_fp32"] = seen_fp32["seconds"]
        yield record


def table(records: Sequence[Record]) -> str:
    """The records for people."""
    lines = [
        "| model | sharpened | precision | loss | cosine, scaled | scale | flushed % | cosine, unscaled | flushed % "
        "| sides held | sides changed | same values | map error |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in records:
        own, without, held = one["scaled"], one.get("unscaled"), one.get("held")
        bare = f"{without['cosine']:.4f} | {_flushed(without)}" if without else "– | –"
        with_sides_held, changed = f"{held['cosine']:.4f}" if held else "–", "–"
        if "sides" in one:
            sides = one["sides"]
            changed = f"{sides['changed']} of {sides['places']} ({100 * sides['apart']:.2f} %)"
        same = f"{one['same_values']['cosine']:.4f}" if "same_values" in one else "–"
        scale = f"{own['scale']:.0f}" if KINDS[one["kind"]][0] == torch.float16 and "scale" in own else "–"
        lines.append(
            f"| {one['model']} | {one['sharpened']:g} | {one['kind']} | {one['loss']} | {own['cosine']:.4f} "
            f"| {scale} | {_flushed(own)} | {bare} | {with_sides_held} | {changed} "
            f"| {same} | {one['map_error']:.0e} |"
        )
    return "\n".join(lines) + "\n"


def _flushed(seen: Record) -> str:
    return f"{100 * seen['flushed']:.1f}" if "flushed" in seen else "–"


def verdict(records: Sequence[Record]) -> str:
    """Is the bar reached?"""
    told = []
    for dtype in ("fp16", "bf16"):
        own = [one for one in records if one["kind"].endswith(dtype)]
        if own:
            least = min(own, key=lambda one: one["scaled"]["cosine"])
            where = f"{least['model']}, sharpened {least['sharpened']:g}, {least['kind']}, {least['loss']}"
            bar = f"; bar {BAR}: {'met' if least['scaled']['cosine'] >= BAR else 'NOT met'}" if dtype == "fp16" else ""
            told.append(f"{dtype}: least cosine of {len(own)} {least['scaled']['cosine']:.4f} ({where}){bar}.")
            held = min(one["held" if "held" in one else "scaled"]["cosine"] for one in own)
            if any("held" in one for one in own):
                told[-1] += f" With the sides held: {held:.4f}."
    return "\n".join(told)


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    about = "cosine of the gradient in half precision to that of float32"
    parser = commands.add_parser("precision", help=about, description=__doc__)
    parser.add_argument(
        "--models", default="embedded,sd15-narrow,sdxl-narrow", help=f"by comma, of {', '.join(MODELS)}"
    )
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"by comma, of {', '.join(KINDS)}")
    parser.add_argument("--losses", default=";".join(ALL), help="by semicolon")
    parser.add_argument("--sharpened", default="1,4", help="by comma: 1 leaves the random maps flat (1,4)")
    parser.add_argument("--scaled-only", action="store_true", help="leave out the gradients without a loss scale")
    parser.add_argument("--device", default="cpu", help="cpu, which emulates half precision, or one that has it (cpu)")
    parser.add_argument("--out", type=Path, default=Path("out/precision"), help="folder of the results (out/precision)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure what is not measured yet, then write precision.json and precision.md."""
    for name, given, allowed in (("models", arguments.models, MODELS), ("kinds", arguments.kinds, KINDS)):
        for one in given.split(","):
            if one not in allowed:
                raise ValueError(f"{name}: {one!r} is not one of {', '.join(allowed)}")
    for loss in arguments.losses.split(";"):
        Settings(loss=loss)
    device = present(arguments.device)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    where = EMULATED if device.type == "cpu" else device_name(device)
    records = reopened(out / "records.jsonl")
    if others := {one.get("device", EMULATED) for one in records} - {where}:
        raise ValueError(f"out: {out} holds rows of {others.pop()}, not of {where}; give another")
    done = {(one["model"], one["sharpened"], one["kind"], one["loss"]) for one in records}
    with (
        full_precision_convolutions(),
        (out / "records.jsonl").open("a", encoding="utf-8") as file,
        tqdm(unit="gradient") as bar,
    ):
        for name in arguments.models.split(","):
            for sharpened in [1.0] if name == "embedded" else map(float, arguments.sharpened.split(",")):
                wanted = arguments.losses.split(";"), arguments.kinds.split(",")
                for record in measure(name, sharpened, *wanted, done, not arguments.scaled_only, arguments.device):
                    bar.set_description(f"{name}, {record['kind']}, {record['loss']}")
                    bar.update()
                    record["device"] = where
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                    records.append(record)
    order = [list(MODELS), list(KINDS)]
    records.sort(key=lambda one: (order[0].index(one["model"]), one["sharpened"], order[1].index(one["kind"])))
    about = (__doc__ or "").split("\n\n", 1)[-1]
    about += f"\n{where}, torch {torch.__version__}."
    text = f"# Half precision against float32\n\n{about}\n\n{verdict(records)}\n\n{table(records)}"
    write_whole(
        out / "precision.json", json.dumps({"torch": torch.__version__, "device": where, "records": records}, indent=1)
    )
    write_whole(out / "precision.md", text)
    print(f"{text}\n{out / 'precision.md'}")
    return 0
