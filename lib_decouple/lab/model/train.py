"""Train the model of drawn things: ``python -m lib_decouple.lab.model.train STAGE --folder DIR``.

Stages: autoencoder (``vae``), latents of a pool of scenes (``pool``), denoiser with its text encoder
(``unet``), one file (``export``). Every step's scenes, noise and times come from the seed and the step's number
alone, and every few minutes all that the stage needs to go on is written, so a run that was stopped and started
again goes on as if it had not been (README.md beside this file says how). Nobody who only uses the checkpoint
runs this.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ...embedded.place import DRAWN, TOKENIZER
from .export import export
from .scenes import caption, coloured, place, render, sample
from .sprites import COLOURS, THINGS

VAE_CONFIG: dict[str, Any] = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    block_out_channels=[96, 96, 96, 96],
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=32,
    sample_size=128,
    scaling_factor=0.18215,
)
"""CompVis' normalisation has 32 groups whatever the width. Of a group of one or two channels it lets an even
ground through as nothing but its sign, so widths 32 and 64 lose the colours of grounds and learn those of things
slowly (README.md); three channels are the least with which :func:`pass_colours_through` works."""

WIDTH = 128
"""Width of the text encoder and so of the context."""

UNET_CONFIG: dict[str, Any] = dict(
    in_channels=4,
    out_channels=4,
    sample_size=16,
    down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    mid_block_type="UNetMidBlock2DCrossAttn",
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    block_out_channels=[96, 192],
    layers_per_block=1,
    cross_attention_dim=WIDTH,
    attention_head_dim=8,
    norm_num_groups=32,
)
TEXT_CONFIG: dict[str, Any] = dict(
    vocab_size=49408,
    hidden_size=WIDTH,
    intermediate_size=4 * WIDTH,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
    projection_dim=WIDTH,
    bos_token_id=49406,
    eos_token_id=49407,
    pad_token_id=49407,
)
SCHEDULE: dict[str, Any] = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
)
SAVE_SECONDS = 180.0
"""Time between two checkpoints."""

WORDS = " ".join(THINGS) + " " + " ".join(COLOURS) + " a an and with , photo picture drawing of"
"""What captions are made of; only these tokens' embeddings are learned."""


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 ``[n, h, w, 3]`` -> float ``[n, 3, h, w]`` in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def rate(step: int, steps: int, warmup: int = 100, fall: float = 0.35) -> float:
    """Learning rate's share of its peak: rises, stays, and falls to 2 % over the last share ``fall`` of the steps."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * min(1.0, max(0.0, (steps - step) / (fall * steps)))


def log(folder: Path, **record: object) -> None:
    """Append one JSON line to the training log and show it."""
    line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()})
    print(line, flush=True)
    with (folder / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def write(state: Any, path: Path) -> None:
    """Save with ``torch.save`` so that a stop in the middle leaves the earlier file whole."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


class Training:
    """One stage's parameters, optimiser, weights' moving average and place in the order of steps, kept in a file."""

    def __init__(self, folder: Path, stage: str, module: nn.Module, seed: int, peak: float, decay: float) -> None:
        self.folder = folder
        self.stage = stage
        self.module = module
        self.seed = seed
        self.peak = peak
        self.decay = decay
        self.path = folder / f"{stage}.pt"
        self.learned = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.learned]
        self.optimiser = torch.optim.AdamW(self.learned, lr=peak, betas=(0.9, 0.99), weight_decay=1e-3)
        self.step, self.seconds = 0, 0.0

    def resume(self) -> bool:
        """Go on from the stage's file, if there is one; ValueError if it is of another seed."""
        if not self.path.exists():
            return False
        state = torch.load(self.path, weights_only=True)
        if state["seed"] != self.seed:
            raise ValueError(f"seed: {self.path} was begun with {state['seed']}, not {self.seed}")
        assign(self.learned, state["learned"])
        self.average = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def save(self) -> None:
        """Write all that is needed to go on."""
        state = {
            "seed": self.seed,
            "learned": [p.detach() for p in self.learned],
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        write(state, self.path)

    def run(self, steps: int, loss: Callable[[np.random.Generator], tuple[Tensor, dict[str, float]]]) -> None:
        """Step on to ``steps`` in all; ``loss`` draws its batch from the generator it is given."""
        running: dict[str, float] = {}
        started, saved = time.time() - self.seconds, time.time()
        while self.step < steps:
            torch.manual_seed(self.seed * 1_000_003 + self.step)
            for group in self.optimiser.param_groups:
                group["lr"] = self.peak * rate(self.step, steps)
            value, shown = loss(np.random.default_rng([self.seed, self.step]))
            self.optimiser.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
            self.optimiser.step()
            self.step += 1
            weight = min(self.decay, self.step / (self.step + 20))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.learned], 1 - weight)
            running = {k: v if k not in running else running[k] * 0.98 + v * 0.02 for k, v in shown.items()}
            self.seconds = time.time() - started
            if self.step % 50 == 0 or self.step == steps:
                spent = time.process_time()
                log(self.folder, stage=self.stage, step=self.step, **running, seconds=self.seconds, cpu=spent)
            if time.time() - saved > SAVE_SECONDS or self.step == steps:
                self.save()
                saved = time.time()


@torch.no_grad()
def assign(parameters: list[Any], values: list[Tensor]) -> None:
    """Copy values into parameters."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def crowded(rng: np.random.Generator) -> np.ndarray:
    """A scene for the autoencoder: two to four things, half of them tinted; in a quarter of the scenes of judged
    drawings, too."""
    things = [str(thing) for thing in rng.choice(THINGS, size=int(rng.integers(2, 5)), replace=False)]
    roles = ("taught", "judged") if rng.random() < 0.25 else ("taught",)
    return render(place([coloured(thing, rng) for thing in things], rng, roles), rng)


STEADY = 2.0
"""Size of the two opposite constants that stand beside a colour in its group of three channels."""


LIGHT = 0.66
"""About the mean of a scene's pixels, in [-1, 1]."""


@torch.no_grad()
def pass_colours_through(vae: Any) -> None:
    """Begin as a linear path: the first three latents are the picture's colours, an eighth the size.

    Six groups of three channels hold ``(c, k, -k)`` for ``c`` = red, green, blue and their negatives. The group's
    normalisation divides by about ``k sqrt(2/3)`` and takes away a third of the mean of ``c`` (:data:`LIGHT` is put
    back), and as ``silu(x) - silu(-x) = x``, the last convolution gets ``c`` back from the pair ``c, -c``. All other
    channels begin as torch makes them; what resnets and attention add begins small.
    """
    colours = [3 * i for i in range(6)]  # red, green, blue, then their negatives
    signs = [1.0] * 3 + [-1.0] * 3
    taken = list(range(18))
    gain = math.sqrt(2 * STEADY**2 / 3)
    encoder, decoder = vae.encoder, vae.decoder

    def silence(layer: Any) -> None:
        """The channels of ``taken`` hear nothing of this layer."""
        layer.weight[taken] = 0
        layer.bias[taken] = 0

    def quiet(layer: Any) -> None:
        """It begins small, and adds nothing to ``taken``."""
        layer.weight *= 0.2
        silence(layer)

    def carry(convolution: Any, kernel: Tensor, sources: list[int], scale: list[float]) -> None:
        """The colours hear their source alone, through ``kernel``, what stands beside them nothing."""
        silence(convolution)
        for source, target, factor in zip(sources, colours, scale, strict=True):
            convolution.weight[target, source] = factor * kernel

    point = torch.zeros(3, 3)
    point[1, 1] = 1
    quarter = torch.zeros(3, 3)
    quarter[:2, :2] = 0.25
    smooth = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    for part in vae.modules():
        if isinstance(part, ResnetBlock2D):
            quiet(part.conv2)
        elif isinstance(part, Attention):
            quiet(part.to_out[0])
    for convolution in (encoder.conv_in, decoder.conv_in):
        carry(convolution, point, [0, 1, 2] * 2, signs)
    for block in encoder.down_blocks[:-1]:
        carry(block.downsamplers[0].conv, quarter, colours, [1.0] * 6)
    for block in decoder.up_blocks[:-1]:
        carry(block.upsamplers[0].conv, smooth, colours, [1.0] * 6)
    for last in (encoder.mid_block.resnets[-1], decoder.up_blocks[-1].resnets[-1]):
        for channel in colours:
            last.conv2.bias[channel + 1], last.conv2.bias[channel + 2] = STEADY, -STEADY
    for convolution in (encoder.conv_out, decoder.conv_out):
        convolution.weight *= 0.2
        convolution.weight[:3] = 0
        convolution.bias[:3] = LIGHT / 3
        for i in range(3):
            convolution.weight[i, colours[i], 1, 1] = gain
            convolution.weight[i, colours[i + 3], 1, 1] = -gain
    channels = VAE_CONFIG["latent_channels"]
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        convolution.weight[:channels, :channels, 0, 0] = torch.eye(channels)
        convolution.bias[:channels] = 0
    vae.quant_conv.weight[:channels, channels:] = 0
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = -6.0  # little noise in latents of this size


def train_vae(folder: Path, seed: int, steps: int, batch: int = 2, peak: float = 1e-3) -> None:
    """Autoencoder: squared and absolute error of pixels, absolute error of their differences, a little KL."""
    torch.manual_seed(seed)
    vae: Any = AutoencoderKL(**VAE_CONFIG)
    vae.set_attn_processor(AttnProcessor())
    pass_colours_through(vae)
    training = Training(folder, "vae", vae, seed, peak, decay=0.995)
    training.resume()

    def loss(rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        images = to_tensor(np.stack([crowded(rng) for _ in range(batch)]))
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            restored = vae.decode(posterior.sample()).sample
        wrong = restored.float() - images
        edges = wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean()
        square = wrong.square().mean()
        hue = (wrong - wrong.mean(1, keepdim=True)).square().mean()
        broad = nn.functional.avg_pool2d(wrong, 8).square().mean()
        value = 4 * square + 2 * hue + 4 * broad + wrong.abs().mean() + 0.25 * edges
        value = value + 1e-6 * posterior.kl().float().mean()
        return value, {"psnr": 10 * math.log10(4 / square.item()), "hue": hue.item(), "broad": broad.item()}

    training.run(steps, loss)
    assign(training.learned, training.average)
    vae.eval()
    rng = np.random.default_rng(seed)
    unit_variance(vae, to_tensor(np.stack([render(place(sample(rng), rng), rng) for _ in range(128)])))
    vae.save_pretrained(folder / "vae")


@torch.no_grad()
def unit_variance(vae: Any, images: torch.Tensor) -> None:
    """Fold a shift and a scale into the two 1x1 convolutions so that scaled latents have mean 0 and variance 1."""
    mean = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(16)])
    shift = mean.mean((0, 2, 3))
    scale = 1 / (mean - shift[:, None, None]).std((0, 2, 3)) / vae.config.scaling_factor
    channels = shift.numel()
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] *= scale[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - shift) * scale
    quant.bias[channels:] += 2 * scale.log()
    post.bias += (post.weight[:, :, 0, 0] * shift).sum(1)
    post.weight /= scale[None, :, None, None]


PART = 500
"""Scenes in one file of the pool."""


def pool_part(folder: Path, part: int) -> Path:
    """File of one part of the pool."""
    return folder / "pool" / f"{part:03d}.pt"


def train_pool(folder: Path, seed: int, size: int) -> None:
    """Scaled latents of ``size`` scenes with what they hold, in parts; parts that are there stay."""
    vae: Any = AutoencoderKL.from_pretrained(folder / "vae").eval()
    vae.set_attn_processor(AttnProcessor())
    (folder / "pool").mkdir(exist_ok=True)
    for part in range(math.ceil(size / PART)):
        path = pool_part(folder, part)
        if path.exists():
            continue
        rng = np.random.default_rng([seed, 1, part])
        held: list[list[list[Any]]] = []
        latents = []
        left = min(PART, size - part * PART)
        while len(held) < left:
            scenes = [sample(rng) for _ in range(min(50, left - len(held)))]
            images = to_tensor(np.stack([render(place(scene, rng), rng) for scene in scenes]))
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                mean = vae.encode(images).latent_dist.mean.float()
            held += [[list(thing) for thing in scene] for scene in scenes]
            latents.append((mean * vae.config.scaling_factor).half())
        write({"held": held, "latents": torch.cat(latents)}, path)
        log(folder, stage="pool", done=part * PART + left, cpu=time.process_time())


class Student(nn.Module):
    """Denoiser and text encoder as they are trained: the encoder's table holds only the words in use."""

    def __init__(self, words: list[int]) -> None:
        super().__init__()
        unet: Any = UNet2DConditionModel(**UNET_CONFIG)
        self.unet = unet
        self.unet.set_attn_processor(AttnProcessor())
        ends = {name: words.index(TEXT_CONFIG[name]) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        self.text: Any = CLIPTextModel(CLIPTextConfig(**{**TEXT_CONFIG, **ends, "vocab_size": len(words)}))
        self.words = words
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.normal_(self.embeddings.token_embedding.weight, std=0.3)

    @property
    def embeddings(self) -> Any:
        """The text encoder's embeddings, wherever this version of transformers keeps them."""
        return getattr(self.text, "text_model", self.text).embeddings

    def forward(self, noisy: Tensor, times: Tensor, ids: Tensor) -> Tensor:
        """Noise in latents ``[n, 4, 16, 16]`` at ``times [n]``, for rows ``[n, 77]`` of the table of words in use."""
        context = self.text(input_ids=ids).last_hidden_state
        return self.unet(noisy, times, encoder_hidden_states=context).sample.float()

    def save(self, folder: Path) -> None:
        """Write both parts; words that were never used have a row of zeros in CLIP's full table."""
        full: Any = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))
        state = self.text.state_dict()
        key = next(k for k in state if k.endswith("token_embedding.weight"))
        table = torch.zeros(TEXT_CONFIG["vocab_size"], WIDTH)
        table[torch.tensor(self.words)] = state[key].detach()
        full.load_state_dict({**state, key: table})
        full.save_pretrained(folder / "text_encoder")
        self.unet.save_pretrained(folder / "unet")


def vocabulary(tokenizer: Any) -> list[int]:
    """Token ids of the words in use, with start and end, in rising order."""
    return sorted(set(tokenizer(WORDS).input_ids))


def train_unet(folder: Path, seed: int, steps: int, pool: int, batch: int = 16, peak: float = 1.1e-3) -> None:
    """Denoiser and text encoder together: epsilon prediction, 10 % empty captions."""
    torch.manual_seed(seed + 2)
    tokenizer: Any = CLIPTokenizer.from_pretrained(TOKENIZER)
    words = vocabulary(tokenizer)
    row = {word: index for index, word in enumerate(words)}
    student = Student(words)
    training = Training(folder, "unet", student, seed + 2, peak, decay=0.999)
    training.resume()
    parts = [torch.load(pool_part(folder, part), weights_only=True) for part in range(math.ceil(pool / PART))]
    held = [[(thing, colour) for thing, colour in scene] for part in parts for scene in part["held"]]
    if len(held) != pool:
        raise ValueError(f"pool: {folder / 'pool'} holds {len(held)} scenes, not {pool}; it was made for another size")
    cached = torch.cat([part["latents"] for part in parts])
    schedule: Any = DDPMScheduler(**SCHEDULE)
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)

    def encode(text: str) -> Tensor:
        return torch.tensor([row[i] for i in tokenizer(text, padding="max_length", max_length=77).input_ids])

    def loss(rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        picked = rng.integers(0, len(held), size=batch)
        ids = torch.stack([encode("" if rng.random() < 0.1 else caption(held[i], rng)) for i in picked])
        latents = cached[picked].float()
        noise = torch.randn_like(latents)
        # What a scene holds is decided at high noise: more of the times come from there.
        high = torch.rand(batch) < 0.5
        times = torch.where(high, torch.randint(400, 1000, (batch,)), torch.randint(0, 1000, (batch,)))
        with torch.autocast("cpu", torch.bfloat16):
            predicted = student(schedule.add_noise(latents, noise, times), times, ids)
        error = (predicted - noise).square().mean((1, 2, 3))
        value = (error * snr[times].rsqrt().clamp(0.2, 4.0)).mean()
        return value, {"loss": value.item(), "error": error.mean().item()}

    training.run(steps, loss)
    average(folder, seed)


def average(folder: Path, seed: int) -> None:
    """Write the moving average of the denoiser's and text encoder's weights, finished or not."""
    student = Student(vocabulary(CLIPTokenizer.from_pretrained(TOKENIZER)))
    training = Training(folder, "unet", student, seed + 2, 0.0, 0.0)
    if not training.resume():
        raise FileNotFoundError(f"folder: {training.path} does not exist; the unet stage writes it")
    assign(training.learned, training.average)
    student.save(folder)


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["vae", "pool", "unet", "average", "export", "all"])
    parser.add_argument("--folder", type=Path, required=True, help="where everything is written and found again")
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--vae-steps", type=int, default=1500)
    parser.add_argument("--pool", type=int, default=12000, help="scenes whose latents the denoiser learns from")
    parser.add_argument("--unet-steps", type=int, default=17000)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    folder, seed = arguments.folder, arguments.seed
    stages = {
        "vae": lambda: train_vae(folder, seed, arguments.vae_steps),
        "pool": lambda: train_pool(folder, seed, arguments.pool),
        "unet": lambda: train_unet(folder, seed, arguments.unet_steps, arguments.pool),
        "average": lambda: average(folder, seed),
        "export": lambda: export(folder, folder / f"{DRAWN.name}.safetensors"),
    }
    for name, stage in stages.items():
        if arguments.stage in (name, "all") and not (arguments.stage == "all" and name == "average"):
            stage()


if __name__ == "__main__":
    main()
