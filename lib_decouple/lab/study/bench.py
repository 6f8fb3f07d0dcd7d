"""``bench``: what guidance costs, and what each cheaper way loses, side by side.

Costs are of one image. A *plain step* is one CFG call of the UNet (two rows); a *guided step* is that
call and what the way adds to it. FLOPs are torch's count (2 for a multiply-add). A run's ratio is
**composed** of single steps, (25 guided + 25 unguided) / (50 plain), unless it is said to be run whole.
Peak memory is the highest resident memory during a guided step above that of the loaded model, each
way in a process of its own. The full Stable Diffusion 1.5 architecture has random weights, 64x64 latents.

What is lost is counted on the embedded model, every arm on the same prompts and noise. A pass that is
not ended early draws the same pictures as exact guidance, so it has no arm. diffusers' Attend-and-Excite
pipeline runs as it is, told only the level of the maps; its call's own defaults are made for 50 steps
(25 guided, refinement at 0, 10, 20), so that at 20 steps every one is guided: ``first half`` scales them down.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...core.gradient import LossGradient
from ...core.guidance import Guide
from ...core.maps import CrossAttentionLayer, Entity, ImagePlan, MapReader, captured, level_size
from ...doctor import forget_peak, resident
from ...hosts.base import make_guide
from ...hosts.checkpoints import CHECKPOINT, FAMILIES, open_pipeline
from ...hosts.diffusers import cross_attention_layers, default_level, first_noise, generate, plan_image
from ...settings import Settings
from ..model.detector import judge
from ..model.scenes import caption
from . import missing
from .arms import embedded
from .files import reopened, write_whole
from .late import generate_late, own_pass
from .missing import FIGURES, check_plan
from .sample import Case, cases, chunks, draw_all

Record = dict[str, Any]
Layers = list[CrossAttentionLayer]

RUN, GUIDED = 50, 25
"""Steps of the composed run, and how many of them are guided."""
TARGET = 1.27
"""Most FLOPs of that run relative to plain, with all 16x16 layers of Stable Diffusion 1.5."""
COSTED = Settings(enabled=True).fixed()
"""What a step costs does not depend on the loss or the step's size: the defaults, which guide the first half."""
EXACT = embedded("com", 2)
"""The embedded model's overlap guidance: what the cheaper ways are measured against."""


# Ways to guide, and what each does to a step.


@dataclass(frozen=True)
class Way:
    """One way to guide: from which layers of the level, and how."""

    kind: Literal["plain", "guide", "whole", "late", "rival"] = "guide"
    """``guide``: a pass of its own, ended after the last layer; ``whole``: not ended; ``late``: the
    host's own pass, one step late; ``rival``: diffusers' Attend-and-Excite pipeline."""
    path: Literal["auto", "all", "to first up", "first up", "to middle", "down"] = "auto"
    """Which layers of the level; ``auto``: the model's own default."""

    def settings(self, settings: Settings) -> Settings:
        """``settings`` such that :meth:`layers` has the whole level to choose from."""
        return settings if self.path == "auto" else dataclasses.replace(settings, layers="all")

    def layers(self, level: Layers) -> Layers:
        """Those of the level's layers that this way reads. Raises ValueError when none is left."""
        up = [layer for layer in level if layer.part == "up"]
        before = [layer for layer in level if layer.part != "up"]
        chosen = {
            "auto": level,
            "all": level,
            "to first up": before + up[:1],
            "first up": up[:1],
            "to middle": before,
            "down": [layer for layer in level if layer.part == "down"],
        }[self.path]
        if not chosen:
            raise ValueError(f"layers: this model's level has none on the path {self.path!r}")
        return chosen


WAYS: dict[str, Way] = {
    "plain": Way("plain"),
    "default layers": Way(),
    "all layers": Way(path="all"),
    "up to the first up layer": Way(path="to first up"),
    "first up layer alone": Way(path="first up"),
    "up to the middle": Way(path="to middle"),
    "down path alone": Way(path="down"),
    "whole pass": Way("whole"),
    "one step late": Way("late"),
    "diffusers Attend-and-Excite": Way("rival"),
}
MODELS = {"embedded": "the embedded model", "sd15": "Stable Diffusion 1.5, random weights"}
SAME_ON_SD15 = {"default layers": "all layers", "up to the middle": "down path alone"}
"""All layers are its default, and its middle block stands a level deeper."""


@contextmanager
def never_ending() -> Iterator[None]:
    """Guided passes inside run to the UNet's end; the product has no use for that, so no option either."""
    with (
        patch.object(MapReader, "reading", lambda reader: captured(reader.layers, reader.tokens, stop=False)),
        # What runs behind the last layer takes no gradient, which the proof would hold against it.
        patch.object(LossGradient, "_proving", lambda gradient, run, proof: run),
    ):
        yield


def rival_class() -> Any:
    """diffusers' Attend-and-Excite pipeline, or None where the installed diffusers has none."""
    try:
        from diffusers import StableDiffusionAttendAndExcitePipeline
    except ImportError:
        return None
    return StableDiffusionAttendAndExcitePipeline


def make_rival(**parts: Any) -> Any:
    """The rival's pipeline around a model's parts. Raises ValueError where diffusers has none."""
    from diffusers.utils import logging

    kind = rival_class()
    if kind is None:
        raise ValueError("Attend-and-Excite: the installed diffusers has no such pipeline")
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")
    loudness = logging.get_verbosity()
    logging.set_verbosity_error()  # it says at every turn that it is deprecated
    try:
        pipe = kind(**{name: parts.get(name) for name in names}, requires_safety_checker=False)
    finally:
        logging.set_verbosity(loudness)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass
class Stand:
    """A UNet with the inputs of one CFG call of one image."""

    unet: Any
    latents: Tensor
    """``[1, 4, h, w]``"""
    context: Tensor
    """``[2, 77, channels]``, the unconditional row first."""
    timestep: Tensor = field(default_factory=lambda: torch.tensor(501))
    entities: tuple[Entity, ...] = (Entity("cat", (2,)), Entity("dog", (5,)))
    """At the places of "a cat and a dog"."""
    pipe: Any = None
    """The whole pipeline, where there is one."""

    @torch.no_grad()
    def host(self, *_: Any) -> Tensor:
        """One plain step's CFG call."""
        rows = torch.cat([self.latents] * 2)
        return self.unet(rows, self.timestep, encoder_hidden_states=self.context, return_dict=False)[0]

    def run(self, x: Tensor, row: int = 1) -> Tensor:
        """A pass of one row."""
        context = self.context[row : row + 1]
        return self.unet(x, self.timestep, encoder_hidden_states=context, return_dict=False)[0]

    def guide(self, way: Way, settings: Settings = COSTED) -> Guide:
        """A guide of one image for this UNet."""
        plans = [ImagePlan(self.entities, end=6)]
        layers, default = cross_attention_layers(self.unet), default_level(self.unet)
        return make_guide(way.settings(settings), self.unet, layers, plans, default, way.layers)


def stand_for(model: str) -> Stand:
    """A model to measure on: "embedded" or "sd15". Raises ValueError for another."""
    torch.manual_seed(0)
    if model == "embedded":
        pipe = open_pipeline()
        unet = pipe.unet
    elif model == "sd15":
        from diffusers import UNet2DConditionModel

        pipe, unet = None, UNet2DConditionModel.from_config(dict(FAMILIES["sd1"]["unet"])).eval()
    else:
        raise ValueError(f"models: {model!r} is not one of {', '.join(MODELS)}")
    side = unet.config.sample_size
    context = torch.randn(2, 77, unet.config.cross_attention_dim)
    return Stand(unet, torch.randn(1, unet.config.in_channels, side, side), context, pipe=pipe)


@dataclass
class Calls:
    """What a way does in a whole step, the CFG call included."""

    guided: Callable[[], object]
    unguided: Callable[[], object]


def calls(way: Way, stand: Stand) -> Calls:
    """The steps of one way."""
    if way.kind == "plain":
        return Calls(stand.host, stand.host)
    if way.kind == "rival":
        return _rival_calls(stand)
    guide = stand.guide(way)
    if way.kind == "late":

        def late() -> None:
            own_pass(guide.gradient, stand.latents, stand.run)
            with torch.no_grad():
                stand.run(stand.latents, row=0)

        return Calls(late, stand.host)

    def guided() -> None:
        with ExitStack() as stack:
            if way.kind == "whole":
                stack.enter_context(never_ending())
            # FlopCounterMode cannot follow a leaf that enters the model itself; the hosts scale it before.
            guide.step(stand.latents, 0, RUN, lambda x, _: stand.run(x * 1))
        stand.host()

    return Calls(guided, stand.host)


def _rival_calls(stand: Stand) -> Calls:
    """One step of the rival's ``__call__``, by its own methods and attention processors.

    After its guided steps it still runs its own pass and computes its loss, and uses neither.
    """
    unet = stand.unet
    rival = make_rival(unet=unet)
    level = stand.guide(Way()).gradient.reader.layers[0].factor
    height, width = stand.latents.shape[-2:]
    home = sys.modules[type(rival).__module__]
    rival.attention_store = home.AttentionStore(level_size(height, width, level))
    indices = [entity.tokens[0] for entity in stand.entities]

    def step(update: bool) -> None:
        before = dict(unet.attn_processors)
        rival.register_attention_control()
        try:
            with torch.enable_grad():
                latents = stand.latents.clone().detach().requires_grad_(True)
                latent = latents[0].unsqueeze(0)
                stand.run(latent)
                unet.zero_grad()
                highest = rival._aggregate_and_get_max_attention_per_token(indices=indices)
                loss = rival._compute_loss(max_attention_per_index=highest)
                if update:
                    latent = rival._update_latent(latents=latent, loss=loss, step_size=20.0)
            stand.host()
        finally:
            unet.set_attn_processor(before)

    return Calls(partial(step, True), partial(step, False))


# Counting, timing, memory.


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


def measure(model: str, name: str, rounds: int) -> Record:
    """Costs of one way on one model: FLOPs, seconds (medians over ``rounds``) and bytes of whole steps."""
    stand, way = stand_for(model), WAYS[name]
    own = calls(way, stand)
    forget_peak()
    before = resident(peak=False)
    own.guided()
    after = resident(peak=True)
    same = own.unguided == stand.host
    spent: dict[str, list[float]] = {"plain": [], "guided": [], "unguided": []}
    bodies = {"plain": stand.host, "guided": own.guided, "unguided": own.unguided}
    for _ in range(rounds):
        for key, body in bodies.items():
            spent[key].append(spent["plain"][-1] if key == "unguided" and same else timed(body))
    flops = {key: count_flops(body) for key, body in bodies.items() if not (key == "unguided" and same)}
    if same:
        flops["unguided"] = flops["plain"]
    record: Record = {
        "model": model,
        "way": name,
        "flops": flops,
        "seconds": {key: statistics.median(values) for key, values in spent.items()},
        "memory": None if before is None or after is None else max(0, after - before),
        "last": stand.guide(way).gradient.reader.layers[-1].name if way.kind in ("guide", "late") else "",
        "threads": torch.get_num_threads(),
    }
    if stand.pipe is not None:
        record["whole"] = measure_whole(stand.pipe, name)
    return record


def measure_whole(pipe: Any, name: str, rounds: int = 5) -> Record:
    """Whole generations of one image at :data:`RUN` steps beside plain ones: median seconds and ratio, passes."""
    arm = Arm(Settings() if name == "plain" else COSTED, name)
    group = (Case(("cat", "dog"), 1),)
    steps = RUN
    draw(pipe, arm, group, steps)
    pairs, drawn = [], None
    for _ in range(rounds):
        plain = timed(lambda: draw(pipe, Arm(Settings(), "plain"), group, steps))
        started = time.perf_counter()
        drawn = draw(pipe, arm, group, steps)
        pairs.append((plain, time.perf_counter() - started))
    assert drawn is not None
    return {
        "seconds": statistics.median(own for _, own in pairs),
        "ratio": statistics.median(own / plain for plain, own in pairs),
        "passes": drawn.passes[0],
        "gradients": drawn.gradients[0],
    }


def apart(body: Callable[..., Record], *arguments: Any) -> Record:
    """``body``'s result from a fresh process. Raises RuntimeError when that ends without one."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, body, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process ended with code {process.exitcode}") from None
    finally:
        process.terminate()
        process.join()


def _send(sender: Any, body: Callable[..., Record], arguments: Sequence[Any]) -> None:
    try:
        sender.send(body(*arguments))
    except KeyboardInterrupt:
        sys.exit(130)


# What is lost.


@dataclass(frozen=True)
class Arm:
    """One way to draw the cases; ``way`` names one of :data:`WAYS`."""

    settings: Settings
    way: str = "default layers"
    rival: tuple[tuple[str, Any], ...] = ()
    """What the rival's call is told beyond its own defaults."""


ARMS: dict[str, Arm] = {
    "plain": Arm(Settings(), "plain"),
    "exact": Arm(EXACT),
    **{name: Arm(EXACT, name) for name, way in WAYS.items() if way.kind == "guide" and way.path != "auto"},
    **{
        f"first {n} step{'s' * (n > 1)} only": Arm(dataclasses.replace(EXACT, steps=EXACT.start + n, every=1))
        for n in (5, 3, 1)
    },
    "every 2nd step": Arm(dataclasses.replace(EXACT, every=2)),
    "every 3rd step": Arm(dataclasses.replace(EXACT, every=3)),
    "one step late": Arm(EXACT, "one step late"),
    "diffusers Attend-and-Excite": Arm(Settings(), "diffusers Attend-and-Excite"),
    "diffusers Attend-and-Excite, first half": Arm(
        Settings(),
        "diffusers Attend-and-Excite",
        (("max_iter_to_alter", 10), ("thresholds", {0: 0.05, 4: 0.5, 8: 0.8})),
    ),
}
STEPS, CFG = 20, 3.0
"""The embedded model's own number of steps and guidance scale."""


@dataclass
class Drawn:
    """Images of some cases, with what each one's guidance used."""

    images: list[Any]
    passes: list[float]
    """Passes of the UNet for guidance alone."""
    gradients: list[float]


def draw(pipe: Any, arm: Arm, group: Sequence[Case], steps: int = STEPS) -> Drawn:
    """Draw some cases on the embedded model. Raises RuntimeError when guidance stood aside."""
    way = WAYS[arm.way]
    prompts, names = [caption(list(case.entities)) for case in group], [case.entities for case in group]
    seeds = [case.seed for case in group]
    if way.kind == "rival":
        return _draw_rival(pipe, arm, group, steps)
    draws = generate_late if way.kind == "late" else generate
    with ExitStack() as stack:
        if way.kind == "whole":
            stack.enter_context(never_ending())
        settings = way.settings(arm.settings)
        picture = draws(pipe, prompts, names, settings, seeds=seeds, steps=steps, guidance_scale=CFG, layers=way.layers)
    if picture.stood_aside:
        raise RuntimeError(f"guidance stood aside {picture.stood_aside}")
    gradients = [
        float(len(t.steps) if way.kind == "late" else sum(one.passes for one in t.steps)) for t in picture.traces
    ]
    return Drawn(picture.images, [float(trace.passes) for trace in picture.traces], gradients)


def _draw_rival(pipe: Any, arm: Arm, group: Sequence[Case], steps: int) -> Drawn:
    """The rival's pipeline as it is, but for the level of its maps; its counts are means over ``group``."""
    rival = make_rival(**pipe.components)
    unet: nn.Module = pipe.unet
    prompts = [caption(list(case.entities)) for case in group]
    plans = [plan_image(pipe, prompt, case.entities) for prompt, case in zip(prompts, group)]
    side = pipe.unet.config.sample_size
    level = (
        make_guide(EXACT, unet, cross_attention_layers(unet), plans, default_level(unet))
        .gradient.reader.layers[0]
        .factor
    )
    noise = first_noise(unet, [torch.Generator("cpu").manual_seed(case.seed) for case in group])
    counted = {"passes": 0, "gradients": 0}
    update = rival._update_latent

    def counting(*given: Any, **more: Any) -> Tensor:
        counted["gradients"] += 1
        return update(*given, **more)

    def seen(*_: Any) -> None:
        # The CFG call runs without gradients, all other passes with them.
        counted["passes"] += torch.is_grad_enabled()

    rival._update_latent = counting
    handle = unet.register_forward_pre_hook(seen)
    try:
        images = rival(
            prompts,
            [[entity.tokens[-1] for entity in plan.entities] for plan in plans],
            num_inference_steps=steps,
            guidance_scale=CFG,
            latents=noise,
            attn_res=level_size(side, side, level),
            **dict(arm.rival),
        ).images
    finally:
        handle.remove()
    count = len(group)
    return Drawn(images, [counted["passes"] / count] * count, [counted["gradients"] / count] * count)


def judged(pipe: Any, task: tuple[str, tuple[Case, ...]]) -> list[Record]:
    """One record for each of an arm's cases."""
    name, group = task
    drawn = draw(pipe, ARMS[name], group)
    found = []
    for case, image, passes, gradients in zip(group, drawn.images, drawn.passes, drawn.gradients):
        verdict = judge(np.asarray(image), list(case.entities))
        found.append(
            {
                "arm": name,
                "count": len(case.entities),
                "entities": list(case.entities),
                "seed": case.seed,
                "missing": list(verdict.missing),
                "extra": verdict.extra,
                "passes": passes,
                "gradients": gradients,
            }
        )
    return found


def summarise(records: Sequence[Record], costs: Sequence[Record]) -> list[Record]:
    """One row a number of entities and arm: shares, p against exact guidance (paired by seed), and cost."""
    by_way = {(cost["model"], cost["way"]): cost for cost in costs}
    rows = missing.summarise(records, against="exact")
    for row in rows:
        own = [r for r in records if (r["arm"], r["count"]) == (row["arm"], row["count"])]
        row["gradients"] = statistics.mean(r["gradients"] for r in own)
        for model, steps in (("embedded", STEPS), ("sd15", RUN)):
            way = ARMS[row["arm"]].way
            cost = by_way.get((model, SAME_ON_SD15.get(way, way) if model == "sd15" else way))
            if cost:
                used = [row[key] * steps / STEPS for key in ("passes", "gradients")]
                row[f"{model}_flops"] = run_cost(**cost["flops"], steps=steps, passes=used[0], gradients=used[1])
    return sorted(rows, key=lambda row: (row["count"], list(ARMS).index(row["arm"])))


# Tables.


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
        for name in FIGURES:
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
    found = [composed(c, "flops") for c in costs if (c["model"], c["way"]) == ("sd15", "all layers")]
    about = f"FLOPs × plain at {RUN} steps with {GUIDED} guided, all 16x16 layers of Stable Diffusion 1.5"
    if not found:
        return f"{about}: not measured (target: at most {TARGET})."
    return f"{about}: {found[0]:.4f}; target, at most {TARGET}: {'yes' if found[0] <= TARGET else 'NO'}."


# The command.


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("bench", help="what guidance costs and cheaper ways lose", description=__doc__)
    parser.add_argument("--n", type=int, default=300, help="paired seeds for each number of entities (300)")
    parser.add_argument("--parts", default="cost,loss", help="by comma, of cost, loss (both)")
    parser.add_argument("--models", default="embedded,sd15", help=f"for the cost, by comma, of {', '.join(MODELS)}")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of the results (out/bench)")
    parser.add_argument("--jobs", type=int, default=0, help="processes that draw; 0 is one a core")
    parser.set_defaults(run=run)


def _listed(name: str, text: str, allowed: Sequence[str]) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    for part in found:
        if part not in allowed:
            raise ValueError(f"{name}: {part!r} is not one of {', '.join(allowed)}")
    return found


def run(arguments: argparse.Namespace) -> int:
    """Measure what is not measured yet, then write bench.json and bench.md."""
    parts = _listed("parts", arguments.parts, ("cost", "loss"))
    models = _listed("models", arguments.models, tuple(MODELS))
    if arguments.n < 1:
        raise ValueError(f"n: {arguments.n} is not allowed; 1 or more")
    out: Path = arguments.out
    weights = hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()[:12]
    arms = {name: {**dataclasses.asdict(arm), "checkpoint": weights} for name, arm in ARMS.items()}
    check_plan(out / "plan.json", {"split": "report", "arms": json.loads(json.dumps(arms))})
    costs = measure_costs(out / "costs.jsonl", models if "cost" in parts else [])
    records = draw_arms(out / "images.jsonl", arguments.n if "loss" in parts else 0, arguments.jobs)
    rows = summarise(records, costs)
    about = (__doc__ or "").split("\n\n", 1)[-1]  # optimised away under -OO
    text = "\n".join(["# What guidance costs, and what cheaper ways lose", "", about])
    text += "\n".join(cost_table(costs, model) for model in MODELS if any(c["model"] == model for c in costs))
    text += f"\n{verdict(costs)}\n\n" + (loss_table(rows) if rows else "")
    machine = {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "diffusers": __import__("diffusers").__version__,
        "checkpoint": weights,
    }
    settings = EXACT.as_dict()
    report = {"machine": machine, "settings": settings, "target": verdict(costs), "costs": costs, "rows": rows}
    write_whole(out / "bench.json", json.dumps(report, indent=1))
    write_whole(out / "bench.md", text)
    print(f"{text}\n{out / 'bench.md'}")
    return 0


def measure_costs(log: Path, models: Sequence[str]) -> list[Record]:
    """All records of ``log``, those of ``models`` added that it lacks."""
    costs = reopened(log)
    done = {(cost["model"], cost["way"]) for cost in costs}
    ways = [
        (model, name)
        for model in models
        for name, way in WAYS.items()
        if (model, name) not in done
        and not (way.kind == "rival" and rival_class() is None)
        and not (model == "sd15" and name in SAME_ON_SD15)
    ]
    with log.open("a", encoding="utf-8") as file, tqdm(ways, unit="way", disable=not ways) as bar:
        for model, name in bar:
            bar.set_description(f"{model}: {name}")
            try:
                cost = apart(measure, model, name, 20 if model == "embedded" else 2)
            except RuntimeError as error:
                bar.write(f"{model}: {name}: {error}; left out")
                continue
            file.write(json.dumps(cost) + "\n")
            file.flush()
            costs.append(cost)
    order = list(WAYS)
    return sorted(costs, key=lambda cost: order.index(cost["way"]))


def draw_arms(log: Path, n: int, jobs: int) -> list[Record]:
    """The records of ``log`` that belong to the first ``n`` cases (0: all there are), those added that it lacks."""
    records = reopened(log)
    if not n:
        return records
    done = {(r["arm"], r["count"], r["seed"]) for r in records}
    arms = [name for name, arm in ARMS.items() if WAYS[arm.way].kind != "rival" or rival_class() is not None]
    wanted = {count: cases("report", count, n) for count in (2, 3)}
    tasks = [
        (name, group)
        for count in wanted
        for name in arms
        for group in chunks([c for c in wanted[count] if (name, count, c.seed) not in done], 25)
    ]
    with (
        log.open("a", encoding="utf-8") as file,
        tqdm(total=sum(len(group) for _, group in tasks), unit="image") as bar,
    ):
        for (name, group), found in draw_all(judged, tasks, jobs):
            bar.set_description(f"{name}, {len(group[0].entities)}")
            file.write("".join(json.dumps(record) + "\n" for record in found))
            file.flush()
            records += found
            bar.update(len(found))
    seeds = {case.seed for group in wanted.values() for case in group}
    return [r for r in records if r["seed"] in seeds]
