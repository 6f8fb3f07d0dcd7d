"""``doctor``: does guidance work on this very machine, with this model, its attention, its flags and extensions?

Answers are plain sentences and a JSON that names no prompt and no path, to be pasted into an issue: how the project
learns about machines that it does not have.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import __version__
from .core.differentiable import GradientCut, computed_by
from .core.finite_differences import MISFIT, in_float32, misfit, slopes_of
from .core.gradient import LossGradient, Pass
from .core.host_pass import RowsInOrder
from .core.late import differentiated_beside
from .profiles import Profile
from .settings import AUTO, Settings

PROMPT, ENTITIES = "a cat and a dog", ("cat", "dog")
SETTINGS = Settings(enabled=True, entities=ENTITIES, loss="com")
"""A loss without kinks, which would spoil finite differences; the layers are those of the model's profile."""
SECONDS = 40.0
"""What is not begun by then is left out."""
SLOW = 2.0
"""Seconds of a gradient from which on fewer finite differences are taken, and of a plain step from which on one late
step has to do."""
LATE = "a gradient one step late"
GOOD = 0.995
"""The least cosine of half precision to float32 that is good enough."""


@dataclass
class Report:
    """What was found; None where it was not measured, and ``left_out`` says why."""

    extension: str = __version__
    host: str = "diffusers"
    python: str = field(default_factory=platform.python_version)
    torch: str = field(default_factory=lambda: str(torch.__version__))
    system: str = field(default_factory=lambda: f"{platform.system()} {platform.machine()}")
    device: str = ""
    model: str = ""
    dtype: str = ""
    latents: list[int] = field(default_factory=list)
    attention: list[str] = field(default_factory=list)
    layers: str = AUTO
    """Which of the level's were read; auto is all that this denoiser's family is read at."""
    """The functions that compute it."""
    flags: list[str] = field(default_factory=list)
    """Command-line options that were given, without their values."""
    extensions: list[str] = field(default_factory=list)
    whole: bool | None = None
    cut: str = ""
    """What cuts it."""
    stood_aside: str = ""
    """Why nothing could be examined."""
    replaced: bool = False
    """Was the host's attention replaced for the guided pass?"""
    slopes: list[list[float]] = field(default_factory=list)
    """[predicted, seen]: along the gradient, then along random directions."""
    cosine: float | None = None
    """Of the gradient in the model's own precision to that in float32, of its first layers."""
    scale: float | None = None
    """What losses are multiplied with before they are differentiated."""
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes on top of the model at the peak of a gradient: ``kept`` activations, and ``recomputed``."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of a ``plain`` step, a ``gradient``, a ``guided`` step, which is both, and one whose gradient is ``late``."""
    late_with_proof: bool = False
    """Was there time for one late step alone, whose gradient is proved whole, too, which takes longer?"""
    left_out: list[str] = field(default_factory=list)

    def as_json(self) -> str:
        """To paste into an issue."""
        return json.dumps(asdict(self), indent=1)


def settings_for(profile: Profile) -> Settings:
    """What a model of ``profile`` is examined with."""
    return replace(SETTINGS, layers=profile.layers)


def resident(peak: bool) -> int | None:
    """Bytes of resident memory, now or at most since the start or :func:`forget_peak`; None where unknown."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:" if peak else "VmRSS:"):
                return int(line.split()[1]) * 1024
        return None
    try:
        import resource
    except ImportError:
        return None
    # Only the highest is known here: what loading took for a moment hides that much of the step.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Start :func:`resident`'s highest value afresh, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_of(body: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that ``body`` takes at its peak on top of what is taken now; None where unknown."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        body()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    forget_peak()
    now = resident(peak=False)
    body()
    most = resident(peak=True)
    return None if now is None or most is None else max(0, most - now)


def wait_for(device: torch.device) -> None:
    """Return when what was queued on the device is done."""
    if device.type in ("cuda", "mps", "xpu"):
        getattr(torch, device.type).synchronize()


def timed(body: Callable[[], object], device: torch.device) -> float:
    """Seconds, what was queued on the device included."""
    wait_for(device)
    started = time.perf_counter()
    body()
    wait_for(device)
    return time.perf_counter() - started


@dataclass
class Examination:
    """The parts of an examination, each of which may fail without the others."""

    gradient: LossGradient
    latents: Tensor
    """``[1, ...]``"""
    run: Pass
    report: Report
    late: Callable[[], object] | None = None
    """A plain step that leaves a gradient, where it can be made by itself."""
    started: float = field(default_factory=time.perf_counter)
    _took: float = field(default=0.0, init=False)
    """Seconds, the first gradient."""

    def all(self) -> None:
        """Everything that there is time for; :attr:`report` has what was found."""
        report, latents = self.report, self.latents
        report.latents, report.device = list(latents.shape), device_name(latents.device)
        report.attention = sorted({computed_by(layer.module) for layer in self.gradient.reader.layers})
        began = time.perf_counter()
        try:
            found = self.gradient(latents, [0], self.run)
            self._took = time.perf_counter() - began
        except GradientCut as error:
            report.whole, report.cut = False, str(error)
            return
        report.whole = True if self.gradient.proved else None
        report.replaced = self.gradient.replacing
        report.dtype = str(self._dtype()).removeprefix("torch.")
        if report.dtype == "float16":
            report.scale = self.gradient.learned.scale.factor
        parts: dict[str, Callable[[], None]] = {"time": self._time}
        if self.late is not None:
            parts[LATE] = partial(self._time_late, self.late)
        parts["finite differences"] = lambda: self._slopes(found.gradient)
        parts["half against float32"], parts["memory"] = self._half, self._memory
        for name, part in parts.items():
            self._try(name, part)

    def _dtype(self) -> torch.dtype:
        """What the maps' queries are computed in."""
        with torch.no_grad(), self.gradient.reader.reading() as capture, capture.passing():
            self.run(self.latents, [0])
        return capture.dtype or torch.float32

    def _slopes(self, gradient: Tensor) -> None:
        directions = 6 if self._took < SLOW else 3
        found = slopes_of(self.gradient, self.latents, [0], self.run, gradient, directions)
        self.report.slopes = [list(pair) for pair in found]

    def _time(self) -> None:
        seconds = self.report.seconds
        seconds["gradient"] = timed(lambda: self.gradient(self.latents, [0], self.run), self.latents.device)
        if "plain" in seconds:
            seconds["guided"] = seconds["plain"] + seconds["gradient"]

    def _time_late(self, late: Callable[[], object]) -> None:
        self.report.seconds["late"] = min(timed(late, self.latents.device) for _ in range(2))

    def _half(self) -> None:
        """The first two layers alone, so that few weights have to be widened."""
        if self.report.dtype not in ("float16", "bfloat16"):
            return
        reader = replace(self.gradient.reader, layers=list(self.gradient.reader.layers)[:2])
        first = replace(self.gradient, reader=reader)
        found = first(self.latents, [0], self.run).gradient.double().flatten()
        unscaled, run = replace(first, scaled=False), in_float32(self.run)
        exact = unscaled(self.latents.float(), [0], run).gradient.double().flatten()
        self.report.cosine = float(functional.cosine_similarity(found, exact, 0))

    def _memory(self) -> None:
        thrift = self.gradient.learned.thrift
        before = thrift.recompute
        try:
            for name, thrift.recompute in (("kept", False), ("recomputed", True)):
                taken = peak_of(lambda: self.gradient(self.latents, [0], self.run), self.latents.device)
                if taken is not None:
                    self.report.memory[name] = taken
        finally:
            thrift.recompute = before

    def _try(self, name: str, part: Callable[[], None]) -> None:
        if time.perf_counter() - self.started > SECONDS:
            self.report.left_out.append(f"{name}: no time was left")
            return
        try:
            part()
        except Exception as error:
            self.report.left_out.append(f"{name}: {type(error).__name__}")  # its words may hold a path


def device_name(device: torch.device) -> str:
    """Such as "NVIDIA GeForce RTX 4090, 24 GB" or "cpu, 2 threads"."""
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        return f"{about.name}, {about.total_memory / 2**30:.0f} GB"
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else device.type


def sentences(report: Report) -> list[str]:
    """What was found and what to set, for people."""
    told = [f"{report.model or 'The model'} on {report.device}, computed in {report.dtype or 'an unknown precision'}."]
    if report.stood_aside:
        return [
            f"{report.model or 'The model'}: guidance stands aside here, so nothing was measured: {report.stood_aside}."
        ]
    if report.cut:
        return [*told, f"Guidance does not work here: {report.cut}."]
    if report.whole:
        told.append("The gradient is whole: it passes every attention and every layer on its way.")
    else:
        told.append("It was not shown that the gradient is whole.")
    if report.replaced:
        told.append("For it the attention had to be replaced by torch's own; pictures are not affected.")
    if report.slopes:
        fits = "which fits" if misfit(report.slopes) <= MISFIT else "which does NOT fit"
        told.append(
            f"Moved in {len(report.slopes) - 1} random directions, the loss changes as the gradient predicts, but for "
            f"{100 * misfit(report.slopes):.0f} %, {fits}."
        )
    if report.cosine is not None:
        good = "good" if report.cosine >= GOOD else "poor"
        told.append(
            f"{report.dtype} against float32, in the first layers: cosine {report.cosine:.4f}, which is {good}."
        )
    if report.scale is not None:
        told.append(f"Losses are multiplied by {report.scale:.0f} before they are differentiated.")
    told += _of_time(report.seconds, report.late_with_proof) + _of_memory(report.memory)
    if report.layers != AUTO and (report.seconds or report.memory):
        told.append(
            f"Time and memory are of the layers that “auto” reads here, {report.layers}; a loss that you choose "
            "yourself reads all, and takes more of both."
        )
    return [*told, *(f"Not measured: {one}." for one in report.left_out), *_to_set(report)]


def _to_set(report: Report) -> list[str]:
    """What the findings ask the user to do."""
    asked = []
    if not report.whole or (report.slopes and misfit(report.slopes) > MISFIT):
        asked.append("please report this: what guidance does here can't be trusted")
    if report.cosine is not None and report.cosine < GOOD:
        asked.append("try float32 (--no-half) or, where this is bfloat16, float16")
    if asked:
        return [f"What to do: {'; '.join(asked)}."]
    return [f"Nothing has to be set{', as far as was measured' * bool(report.left_out)}: the defaults work here."]


def _of_time(seconds: dict[str, float], late_with_proof: bool = False) -> list[str]:
    if "guided" not in seconds:
        return [f"A gradient takes {seconds['gradient']:.2f} s."] if "gradient" in seconds else []
    plain, guided = seconds["plain"], seconds["guided"]
    times = 0.5 * (guided / plain + 1)
    told = f"A plain step takes {plain:.2f} s, a guided one {guided:.2f} s"
    shorter = "guide fewer steps or every second one"
    if "late" in seconds:
        told += f", one whose gradient is late {'at most ' * late_with_proof}{seconds['late']:.2f} s"
        if seconds["late"] < guided:
            shorter += ", or set “Gradient” to late"
    half = f"With half of the steps guided, sampling takes {times:.2f} times as long as plain"
    return [f"{told}. {half}; to shorten it, {shorter}."]


def _of_memory(memory: dict[str, int]) -> list[str]:
    if len(memory) < 2:
        return []
    kept, again = (memory[name] / 2**20 for name in ("kept", "recomputed"))
    if kept < 16:
        return ["A gradient takes too little memory beside the model for it to be seen here."]
    told = f"A gradient takes {kept:.0f} MB beside the model, {again:.0f} MB where blocks are computed twice."
    saves = "saves that much" if again < 0.8 * kept else "would save little here"
    return [f"{told} “Save memory” set to on {saves}; auto does so where the free memory does not suffice."]


@torch.no_grad()
def examine_pipeline(pipe: Any, size: int | None = None) -> Report:
    """A diffusers pipeline's report, at ``size`` pixels a side (the model's own)."""
    from .hosts.base import make_guide
    from .hosts.diffusers import cross_attention_layers, default_level
    from .hosts.diffusers_prompts import condition, plan_image
    from .hosts.family import profile_of

    unet, device = pipe.unet, pipe.unet.device
    side = (size or unet.config.sample_size * pipe.vae_scale_factor) // pipe.vae_scale_factor
    pixels = side * pipe.vae_scale_factor
    own = condition(pipe, [PROMPT], pixels, pixels)
    generator = torch.Generator("cpu").manual_seed(1)
    latents = torch.randn(1, unet.config.in_channels, side, side, generator=generator).to(device, unet.dtype)
    timestep = torch.tensor(801, device=device)

    def run(x: Tensor, images: Sequence[int]) -> object:
        each = own.of([0] * len(x))
        return unet(
            x, timestep, encoder_hidden_states=each.embeds, added_cond_kwargs=each.extra or None, return_dict=False
        )

    layers, settings = cross_attention_layers(unet), settings_for(profile_of(unet))
    guide = make_guide(settings, unet, layers, [plan_image(pipe, PROMPT, ENTITIES)], default_level(unet))
    millions = sum(one.numel() for one in unet.parameters()) / 1e6
    report = Report(model=f"{type(unet).__name__}, {millions:.0f} M", layers=settings.layers)

    def step() -> None:
        run(torch.cat([latents] * 2), [0])

    proved = False

    def late_step() -> None:
        nonlocal proved
        with differentiated_beside(guide.gradient, lambda: RowsInOrder(1, 1, (1,)), proved=proved) as late:
            step()
        try:
            late.take(latents.shape[-2:], latents.shape[1], [0])
        finally:
            late.drop()
        proved = late.proved

    report.seconds["plain"] = min(timed(step, device) for _ in range(3))
    Examination(guide.gradient, latents, run, report, late_step).all()
    return report


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("doctor", help="does guidance work on this machine?", description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, help="a .safetensors file or a diffusers folder (the embedded model)"
    )
    parser.add_argument("--device", default="cpu", help="of torch, such as cuda or mps (cpu)")
    parser.add_argument("--half", action="store_true", help="compute in float16")
    parser.add_argument("--size", type=int, help="pixels a side, a multiple of 64 (the model's own)")
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from .hosts.checkpoints import open_pipeline

    if arguments.size is not None and (arguments.size < 64 or arguments.size % 64):
        raise ValueError(f"size: {arguments.size} is not allowed; a multiple of 64 pixels")
    dtype = torch.float16 if arguments.half else torch.float32
    report = examine_pipeline(open_pipeline(arguments.checkpoint, arguments.device, dtype), arguments.size)
    print("\n".join(sentences(report)))
    print("\nTo paste into an issue; it names no prompt and no path:\n" + report.as_json())
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(report.as_json() + "\n", encoding="utf-8")
    return 1 if report.cut else 0
