"""A small net that says what a picture of drawn things shows: which, how many, where and in which colours.

It learns from scenes of its own, in which any things meet, may come twice and stand beside scraps, drawn with more
drawings than the model is taught; other drawings are held out for its test. Half of the scenes reach it through the
model's autoencoder, as all that the model draws does, and part of these redrawn by its denoiser; what the model draws
from noise it never sees.

``python -m lib_decouple.lab.model.judge --folder DIR`` trains it; ``study detector`` measures its error.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .scenes import SCENE, Placed, caption, place, render, thing_and_colour
from .sprites import COLOURS, THINGS

WEIGHTS = Path(__file__).resolve().parent / "judge.safetensors"
CELL = 8
"""Side of one cell of the heat map, pixels."""

THRESHOLD = 0.25
"""Least score of a thing that counts as there."""

_PALETTE = tuple(COLOURS)


@dataclass(frozen=True)
class FoundThing:
    """One thing in a picture; centre in pixels, score 0..1."""

    thing: str
    colour: str
    x: float
    y: float
    score: float


@dataclass(frozen=True)
class Verdict:
    """What a picture shows against what its prompt asked for."""

    missing: tuple[str, ...]
    """Things asked for that are not there (a thing asked for twice and there once is missing once)."""
    extra: tuple[str, ...]
    """Things there beyond those asked for."""
    miscoloured: tuple[str, ...]
    """Things that are there, but not in the colour asked for."""

    @property
    def right(self) -> bool:
        """Each thing asked for, in its colour, and nothing else."""
        return not (self.missing or self.extra or self.miscoloured)


def _block(given: int, wanted: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(given, wanted, 3, stride, 1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU(inplace=True)
    )


class Judge(nn.Module):
    """``[n, 3, 128, 128]`` in [-1, 1] -> logits of things ``[n, 24, 16, 16]`` and colours ``[n, 11, 16, 16]``."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Sequential(
            _block(3, 24, 2), _block(24, 48, 2), _block(48, 48), _block(48, 96, 2), _block(96, 96), _block(96, 96)
        )
        self.far = nn.Sequential(_block(96, 128, 2), _block(128, 128), _block(128, 128))
        self.both = nn.Sequential(_block(96 + 128, 96), _block(96, 96))
        self.things = nn.Conv2d(96, len(THINGS), 1)
        self.colours = nn.Conv2d(96, len(COLOURS), 1)
        nn.init.constant_(self.things.bias, -4.0)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of things and of colours, one a cell."""
        near = self.near(images)
        far = nn.functional.interpolate(self.far(near), scale_factor=2, mode="bilinear")
        both = self.both(torch.cat([near, far], 1))
        return self.things(both).float(), self.colours(both).float()


@cache
def judge() -> Judge:
    """The trained net. Raises FileNotFoundError where it is not installed."""
    from safetensors.torch import load_file

    net = Judge()
    net.load_state_dict({key: value.float() for key, value in load_file(WEIGHTS).items()})
    return net.eval()


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 ``[n, 128, 128, 3]`` -> float ``[n, 3, 128, 128]`` in [-1, 1]. Raises ValueError for another shape."""
    if images.ndim != 4 or images.shape[1:] != (SCENE, SCENE, 3):
        raise ValueError(f"images: shape {images.shape}; [n, {SCENE}, {SCENE}, 3] is needed")
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


@torch.no_grad()
def look(images: np.ndarray, net: Judge | None = None) -> list[list[FoundThing]]:
    """What each picture shows, uint8 ``[n, 128, 128, 3]``.

    A cell whose best thing has at least :data:`THRESHOLD` and is the best within two cells counts as one thing.
    """
    things, colours = (net or judge())(to_tensor(images))
    scores, best = things.sigmoid().max(1)
    peaks = (scores >= THRESHOLD) & (scores == nn.functional.max_pool2d(scores[:, None], 5, 1, 2)[:, 0])
    colour = colours.argmax(1)
    found: list[list[FoundThing]] = [[] for _ in range(len(images))]
    for n, y, x in peaks.nonzero().tolist():
        thing, hue = THINGS[int(best[n, y, x])], _PALETTE[int(colour[n, y, x])]
        found[n].append(FoundThing(thing, hue, (x + 0.5) * CELL, (y + 0.5) * CELL, float(scores[n, y, x])))
    return found


def match(
    found: list[FoundThing], asked: list[tuple[str, str | None]]
) -> tuple[list[FoundThing | None], list[FoundThing]]:
    """For each thing asked for, with its colour (None is any), the one that answers it, and those that answer nothing.

    Of several of a thing, those in the colour asked for count first. Raises ValueError for unknown things or colours.
    """
    for thing, colour in asked:
        if thing not in THINGS:
            raise ValueError(f"asked: {thing!r} is unknown to the judge; one of {', '.join(THINGS)}")
        if colour is not None and colour not in COLOURS:
            raise ValueError(f"asked: colour {colour!r} is unknown to the judge; one of {', '.join(COLOURS)}")
    left = list(found)
    answers: list[FoundThing | None] = [None] * len(asked)
    order = sorted(range(len(asked)), key=lambda i: asked[i][1] is None)
    for picky in (True, False):
        for i in order:
            thing, colour = asked[i]
            if answers[i] is None:
                fits = (f for f in left if f.thing == thing and (not picky or colour in (None, f.colour)))
                answers[i] = next(fits, None)
                left = [f for f in left if f is not answers[i]]
    return answers, left


def verdict(
    found: list[FoundThing], asked: list[tuple[str, str | None]], names: Sequence[str] | None = None
) -> Verdict:
    """Compare what is there with things and colours asked for, as :func:`match` pairs them.

    The verdict speaks of what was asked for by ``names``, or by its things.
    """
    names = names or [thing for thing, _ in asked]
    answers, left = match(found, asked)
    missing = tuple(name for name, answer in zip(names, answers) if answer is None)
    miscoloured = tuple(
        name
        for name, (_, colour), answer in zip(names, asked, answers)
        if answer and colour not in (None, answer.colour)
    )
    return Verdict(missing, tuple(f.thing for f in left), miscoloured)


def judged(images: Sequence[Any], entities: Sequence[Sequence[str]]) -> list[Verdict]:
    """Compare pictures of 128x128 px with the entities that their prompts name ("cat", "red car").

    Raises ValueError for what is not drawn here, and for pictures of another size.
    """
    asked = [[thing_and_colour(entity) for entity in own] for own in entities]
    pictures = np.stack([np.asarray(image) for image in images])
    return [verdict(*each) for each in zip(look(pictures), asked, entities, strict=True)]


def scrap(image: np.ndarray, scene: list[Placed], rng: np.random.Generator) -> np.ndarray:
    """The picture with one of its things cut into pieces that changed places: no longer a thing."""
    victim = scene[rng.integers(len(scene))]
    half = int(victim.size / 2)
    side = 2 * half // 4
    x0, y0 = int(victim.x) - half, int(victim.y) - half
    broken = image.copy()
    order = rng.permutation(16)
    for index, source in enumerate(order):
        (ty, tx), (sy, sx) = divmod(index, 4), divmod(int(source), 4)
        part = image[y0 + sy * side : y0 + (sy + 1) * side, x0 + sx * side : x0 + (sx + 1) * side]
        broken[y0 + ty * side : y0 + (ty + 1) * side, x0 + tx * side : x0 + (tx + 1) * side] = part
    scene.remove(victim)
    return broken


def draw(
    rng: np.random.Generator, roles: tuple[str, ...], count: int, twice: float = 0.2, tinted: float = 0.6
) -> tuple[list[Placed], np.ndarray]:
    """``count`` things that may meet in no scene for training, sometimes one of them twice."""
    things = [str(thing) for thing in rng.choice(THINGS, size=count, replace=False)]
    if count > 1 and rng.random() < twice:
        things[1] = things[0]
    colours = [str(rng.choice(_PALETTE)) if rng.random() < tinted else None for _ in things]
    scene = place(list(zip(things, colours)), rng, roles)
    return scene, render(scene, rng)


def soften(images: Tensor) -> Tensor:
    """Pictures made less sharp, noisy and shifted in colour, as those of a model are: ``[n, 3, h, w]``."""
    side = images.shape[-1]
    sharp, *blurred = images.chunk(3)
    for part in blurred:
        small = int(side / (1.2 + 1.4 * float(torch.rand(()))))
        part = nn.functional.interpolate(part, size=small, mode="bilinear", antialias=True)
        sharp = torch.cat([sharp, nn.functional.interpolate(part, size=side, mode="bilinear")])
    strength = torch.rand(2, len(images), 1, 1, 1)
    shift = torch.randn(len(images), 3, 16, 16) * strength[0] * 0.07
    softened = sharp + nn.functional.interpolate(shift, size=side, mode="bilinear")
    return (softened + torch.randn_like(softened) * strength[1] * 0.05).clamp(-1, 1)


def targets(scenes: list[list[Placed]]) -> tuple[Tensor, Tensor]:
    """Heat of things ``[n, 24, 16, 16]``, a bell at each centre; colours ``[n, 16, 16]``, -1 where none counts."""
    cells = SCENE // CELL
    heat = torch.zeros(len(scenes), len(THINGS), cells, cells)
    colours = torch.full((len(scenes), cells, cells), -1)
    yy, xx = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    for n, scene in enumerate(scenes):
        for placed in scene:
            x, y = min(int(placed.x / CELL), cells - 1), min(int(placed.y / CELL), cells - 1)
            bell = torch.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * 0.8**2))
            index = THINGS.index(placed.thing)
            heat[n, index] = torch.maximum(heat[n, index], bell)
            if placed.colour:
                colours[n, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = _PALETTE.index(placed.colour)
    return heat, colours


def focal(logits: Tensor, heat: Tensor) -> Tensor:
    """CornerNet's focal loss of heat maps (Law and Deng, 2018), per thing there."""
    chance = logits.sigmoid()
    there = heat == 1
    gain = there * (1 - chance) ** 2 * nn.functional.logsigmoid(logits)
    calm = ~there * (1 - heat) ** 4 * chance**2 * nn.functional.logsigmoid(-logits)
    return -(gain + calm).sum() / there.sum().clamp(min=1)


RESTORED = 4000
"""Scenes that the autoencoder gives back, kept for the judge's training."""
REDRAWN_SHARE = 0.6
"""Share of these, the last ones, that the denoiser redraws."""
REDRAWN = 200, 500
"""Time steps up to which these are noised first. By their captions the denoiser then draws the same things again at
the same places; from 650 on it puts one in another's place."""
REDRAWN_CFG = 3.0

Change = Callable[[np.ndarray, Sequence[str]], np.ndarray]
"""Pictures, uint8 ``[n, h, w, 3]``, and a caption of each -> the pictures, changed."""


def restored(folder: Path, seed: int, count: int = RESTORED) -> tuple[list[list[Placed]], np.ndarray]:
    """Scenes as the autoencoder in ``folder`` gives them back, with what they hold; kept in a file beside it.

    Pictures are uint8 ``[count, 128, 128, 3]``.
    """
    rng = np.random.default_rng([seed, 4])
    drawn = [scene_to_learn(rng) for _ in range(count)]
    path = folder / "judge-restored.npy"
    if not path.exists():
        first = round(count * (1 - REDRAWN_SHARE))
        images = np.stack([image for _, image in drawn])
        captions = captions_of([scene for scene, _ in drawn], np.random.default_rng([seed, 5]))
        np.save(
            path,
            np.concatenate(
                [
                    autoencoder(folder)(images[:first], captions[:first]),
                    autoencoder(folder, REDRAWN)(images[first:], captions[first:]),
                ]
            ),
        )
    return [scene for scene, _ in drawn], np.load(path, mmap_mode="r")


def captions_of(scenes: Sequence[list[Placed]], rng: np.random.Generator) -> list[str]:
    """What each scene shows, as the model's own captions say it; empty for a scene of nothing."""
    return [caption([(placed.thing, placed.colour) for placed in scene], rng) if scene else "" for scene in scenes]


def scene_to_learn(rng: np.random.Generator) -> tuple[list[Placed], np.ndarray]:
    """One to four things in taught and judged drawings; one of them cut into pieces in 15 %."""
    scene, image = draw(rng, ("taught", "judged"), int(rng.integers(1, 5)))
    return scene, scrap(image, scene, rng) if rng.random() < 0.15 else image


def learn(folder: Path, seed: int, steps: int, batch: int = 24, peak: float = 3e-3) -> None:
    """Train on scenes, half of them through the autoencoder; goes on where it was stopped; writes :data:`WEIGHTS`."""
    from safetensors.torch import save_file

    from .train import Training, assign

    held, pictures = restored(folder, seed)
    torch.manual_seed(seed)
    net = Judge()
    training = Training(folder, "judge", net, seed, peak, decay=0.99)
    training.resume()

    def sample_batch(rng: np.random.Generator) -> tuple[list[list[Placed]], Tensor]:
        drawn = [scene_to_learn(rng) for _ in range(batch // 2)]
        kept = [moved(held[i], pictures[i], rng) for i in rng.integers(0, len(held), size=batch - len(drawn))]
        softened = soften(to_tensor(np.stack([image for _, image in drawn])))
        given_back = to_tensor(np.stack([image for _, image in kept]))
        mirrored = torch.rand(()) < 0.5
        scenes = [scene for scene, _ in drawn] + [mirror(scene) if mirrored else scene for scene, _ in kept]
        return scenes, torch.cat([softened, given_back.flip(-1) if mirrored else given_back])

    def loss(rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        scenes, images = sample_batch(rng)
        heat, colours = targets(scenes)
        with torch.autocast("cpu", torch.bfloat16):
            things, hues = net(images)
        kinds = focal(things, heat)
        shades = nn.functional.cross_entropy(hues, colours, ignore_index=-1)
        return kinds + 0.3 * shades, {"things": kinds.item(), "colours": shades.item()}

    training.run(steps, loss)
    assign(training.learned, training.average)
    rng = np.random.default_rng([seed, 2])
    settle(net, [sample_batch(rng)[1] for _ in range(16)])
    net.eval()
    state = {key: value.half().contiguous() for key, value in net.state_dict().items() if value.is_floating_point()}
    state |= {key: value for key, value in net.state_dict().items() if not value.is_floating_point()}
    save_file(state, WEIGHTS)


MOVED = 28
"""Most that a picture is moved for training, pixels: a thing at its border is then cut, as some that are drawn are."""


def moved(scene: list[Placed], image: np.ndarray, rng: np.random.Generator) -> tuple[list[Placed], np.ndarray]:
    """The picture moved, its border's colours drawn out behind it; things whose centre leaves it are there no more."""
    x, y = (int(step) for step in rng.integers(-MOVED, MOVED + 1, size=2))
    wide = np.pad(image, ((MOVED, MOVED), (MOVED, MOVED), (0, 0)), mode="edge")
    part = wide[MOVED - y : MOVED - y + SCENE, MOVED - x : MOVED - x + SCENE]
    placed = [replace(one, x=one.x + x, y=one.y + y) for one in scene]
    return [one for one in placed if 0 <= one.x < SCENE and 0 <= one.y < SCENE], part


def mirror(scene: list[Placed]) -> list[Placed]:
    """The scene as its mirrored picture shows it."""
    return [replace(placed, x=SCENE - placed.x, mirrored=not placed.mirrored) for placed in scene]


@torch.no_grad()
def settle(net: Judge, batches: list[Tensor]) -> None:
    """The averaged weights' own statistics for batch normalisation, over batches of pictures."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    net.train()
    for images in batches:
        net(images)


def measure(roles: tuple[str, ...], count: int, seed: int, through: Change | None = None) -> dict[str, Any]:
    """The judge's error on ``count`` scenes of one to three things whose content is known.

    ``through`` changes the pictures first (an autoencoder). ``missing`` is the share of scenes in which the judge
    is wrong about what is missing: a thing there that it does not see. ``reported`` is its converse: scenes of
    which one thing was left out (drawn without it), but which it is said to show.
    """
    rng = np.random.default_rng([seed, 3])
    scenes, images = [], []
    for index in range(count):
        scene, image = draw(rng, roles, 1 + index % 3, twice=0)
        scenes.append(scene)
        images.append(image)
    pictures = np.stack(images)
    captions = captions_of(scenes, rng)
    found: list[list[FoundThing]] = []
    for start in range(0, count, 50):
        part = pictures[start : start + 50]
        found += look(through(part, captions[start : start + 50]) if through else part)
    wrong: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    tinted = miscoloured = 0
    for scene, seen in zip(scenes, found):
        asked = [(placed.thing, placed.colour) for placed in scene]
        said = verdict(seen, asked)
        drawn.update(thing for thing, _ in asked)
        missed.update(said.missing)
        wrong["missing"] += bool(said.missing)
        wrong["extra"] += bool(said.extra)
        absent = [thing for thing in THINGS if thing not in {name for name, _ in asked}]
        decoy = absent[int(rng.integers(len(absent)))]
        wrong["reported"] += not verdict(seen, [*asked, (decoy, None)]).missing
        coloured = [thing for thing, colour in asked if colour and thing not in said.missing]
        tinted += len(coloured)
        miscoloured += len(said.miscoloured)
    return {
        "scenes": count,
        "missing": wrong["missing"] / count,
        "extra": wrong["extra"] / count,
        "reported": wrong["reported"] / count,
        "colour": miscoloured / max(1, tinted),
        "missed": {thing: missed[thing] / max(1, drawn[thing]) for thing in THINGS},
    }


def given_back(pipe: Any, redrawn: tuple[int, int] | None = None) -> Change:
    """The same pictures as the autoencoder of ``pipe`` gives them back.

    With ``redrawn``, a range of the schedule's time steps, after so much noise was laid over the latents and the
    denoiser took it away again in steps of 50, by the caption: things stay, strokes become the model's own.
    """
    from diffusers import DDIMScheduler

    from .train import SCHEDULE

    schedule: Any = DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False)
    schedule.set_timesteps(20)
    scale = pipe.vae.config.scaling_factor
    generator = torch.Generator().manual_seed(0)

    def encode(captions: list[str]) -> Tensor:
        ids = pipe.tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
        return pipe.text_encoder(ids).last_hidden_state

    def redraw(latents: Tensor, captions: list[str], most: int) -> Tensor:
        times = [time for time in schedule.timesteps if time <= most]
        latents = schedule.add_noise(latents * scale, torch.randn(latents.shape, generator=generator), times[0])
        context = encode([""] * len(captions) + captions)
        for time in times:
            both = pipe.unet(torch.cat([latents, latents]), time, encoder_hidden_states=context).sample.float()
            uncond, cond = both.chunk(2)
            latents = schedule.step(uncond + REDRAWN_CFG * (cond - uncond), time, latents).prev_sample
        return latents / scale

    def one(images: Tensor, captions: list[str]) -> Tensor:
        latents = pipe.vae.encode(images).latent_dist.mean.float()
        if redrawn:
            most = int(torch.randint(redrawn[0], redrawn[1] + 1, (), generator=generator))
            latents = redraw(latents, captions, most)
        return pipe.vae.decode(latents).sample.float()

    @torch.no_grad()
    def back(images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        parts = [(part, list(captions[8 * n : 8 * n + 8])) for n, part in enumerate(to_tensor(images).split(8))]
        pictures = torch.cat([one(*part) for part in parts])
        return pictures.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()

    return back


def autoencoder(folder: Path, redrawn: tuple[int, int] | None = None) -> Change:
    """:func:`given_back` of the models that training left in ``folder``, in bfloat16."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor
    from transformers import CLIPTextModel, CLIPTokenizer

    from .train import TOKENIZER

    parts = SimpleNamespace(
        vae=AutoencoderKL.from_pretrained(folder / "vae").eval(), tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER)
    )
    parts.vae.set_attn_processor(AttnProcessor())
    if redrawn:
        parts.unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
        parts.unet.set_attn_processor(AttnProcessor())
        parts.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    back = given_back(parts, redrawn)

    def through(images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return back(images, captions)

    return through


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the training's folder, with its autoencoder")
    parser.add_argument("--seed", type=int, default=24)
    parser.add_argument("--steps", type=int, default=14000)
    arguments = parser.parse_args()
    learn(arguments.folder, arguments.seed, arguments.steps)


if __name__ == "__main__":
    main()
