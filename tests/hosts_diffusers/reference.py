"""A slow, plain reference of guided sampling. It shares no code with lib_decouple.

Every cross-attention runs through a processor that writes its softmax down; one image at a time
takes a whole conditional pass, and the gradient of a loss written out here goes to the *scaled*
latents z (alpha-bar form). A scheduler whose state is ``x = z sqrt(1 + sigma²)`` is converted there
and back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch


class WrittenOutAttention:
    """softmax(q kT / sqrt(d)) v with nothing clever; ``last`` holds the softmax ``[heads, pixels, tokens]``."""

    def __init__(self) -> None:
        self.last: list[torch.Tensor] = []

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **_: Any) -> Any:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        size = q.shape[-1] // attn.heads
        self.last, heads = [], []
        for n in range(attn.heads):
            part = slice(n * size, (n + 1) * size)
            weights = torch.softmax(q[..., part] @ k[..., part].mT / math.sqrt(size), dim=-1)
            self.last.append(weights)
            heads.append(weights @ v[..., part])
        return attn.to_out[1](attn.to_out[0](torch.cat(heads, dim=-1)))


# Losses, each of a list of maps [h, w], in the words of the paper's notes.


def _share(m: Any) -> Any:
    return m / m.sum()


def _centre(m: Any) -> tuple[Any, Any]:
    h, w = m.shape
    long = max(h, w)
    ys = torch.tensor([[(i + 0.5) / long] * w for i in range(h)])
    xs = torch.tensor([[(j + 0.5) / long for j in range(w)]] * h)
    return (_share(m) * ys).sum(), (_share(m) * xs).sum()


def _pairs(maps: list[Any]) -> list[tuple[Any, Any]]:
    return [(maps[i], maps[j]) for j in range(len(maps)) for i in range(j)]


def _mean(values: list[Any]) -> Any:
    return sum(values) / len(values)


def iou(maps: list[Any]) -> Any:
    def one(a: Any, b: Any) -> Any:
        a, b = _share(a), _share(b)
        return torch.where(a < b, a, b).sum() / (a.sum() + b.sum())

    return _mean([one(a, b) for a, b in _pairs(maps)])


def com(maps: list[Any]) -> Any:
    def one(a: Any, b: Any) -> Any:
        (ya, xa), (yb, xb) = _centre(a), _centre(b)
        return 1 - torch.hypot(ya - yb, xa - xb) / 2**0.5

    return _mean([one(a, b) for a, b in _pairs(maps)])


def kl(maps: list[Any]) -> Any:
    def one(a: Any, b: Any) -> Any:
        a, b = _share(a), _share(b)
        there, back = (a * torch.log(a / b)).sum(), (b * torch.log(b / a)).sum()
        return torch.exp(-(there + back) / 2)

    return _mean([one(a, b) for a, b in _pairs(maps)])


def cc(maps: list[Any]) -> Any:
    shares = torch.stack([_share(m) for m in maps])
    return 1 - shares.max(dim=0).values.sum() / shares.sum()


def intensity(maps: list[Any]) -> Any:
    return 1 - torch.stack([m.max() for m in maps]).min()


def spread(maps: list[Any]) -> Any:
    def one(m: Any) -> Any:
        h, w = m.shape
        (cy, cx), share = _centre(m), _share(m)
        total = 0.0
        for i in range(h):
            for j in range(w):
                away = ((i + 0.5) / max(h, w) - cy) ** 2 + ((j + 0.5) / max(h, w) - cx) ** 2
                total = total + share[i, j] * away
        return total

    return _mean([one(m) for m in maps])


LOSSES = {"iou": iou, "com": com, "kl": kl, "cc": cc, "intensity": intensity, "spread": spread}


@dataclass
class Recipe:
    """What to draw and how to guide."""

    prompts: list[str]
    tokens: list[list[list[int]]]
    """Per image, per entity: positions in the context."""
    seeds: list[int]
    loss: str
    layers: tuple[str, ...]
    """Beginnings of the names of the UNet's parts whose cross-attention counts."""
    factor: int
    rule: str = "relative"
    size: float = 0.15
    guided: int = 2
    steps: int = 3
    latents: tuple[int, int] = (8, 8)
    scale: float = 7.5
    negative: str = ""
    opening: dict[int, int] | None = None
    """Denoiser call -> the sampler's step that it opens; None: every call is a step."""


def _text(pipe: Any, prompt: str) -> Any:
    ids = pipe.tokenizer(prompt, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    return pipe.text_encoder(ids)[0]


def _guided(
    pipe: Any, stores: dict[str, WrittenOutAttention], z: Any, t: Any, text: Any, i: int, n: int, r: Recipe
) -> Any:
    """One update of one image's scaled latents ``[1, 4, h, w]``."""
    h, w = (-(-side // r.factor) for side in r.latents)
    leaf = z.clone().requires_grad_(True)
    with torch.enable_grad():
        pipe.unet(leaf, t, encoder_hidden_states=text)
        averaged = _mean([_mean(store.last) for name, store in stores.items() if name.startswith(r.layers)])
        maps = [_mean([averaged[0, :, k].reshape(h, w) for k in places]) for places in r.tokens[n]]
        loss = LOSSES[r.loss](maps)
        gradient = torch.autograd.grad(loss, leaf)[0]
    if r.rule == "attend-excite":
        return z - r.size * math.sqrt(1 + (0.5 - 1) * i / (r.steps - 1)) * gradient
    weights = list(range(r.guided, 0, -1))
    share = r.size * weights[i] / sum(weights)
    return z - share * z.norm() * gradient / gradient.norm()


def sample(pipe: Any, r: Recipe) -> list[Any]:
    """Latents after every step."""
    scheduler = pipe.scheduler
    sigma_space = scheduler.__class__.__name__.startswith(("Euler", "Heun", "KDPM2"))
    usual = pipe.unet.attn_processors
    stores = {name: WrittenOutAttention() for name in usual if ".attn2." in name}
    pipe.unet.set_attn_processor({name: stores.get(name, own) for name, own in usual.items()})
    try:
        with torch.no_grad():
            texts = [_text(pipe, prompt) for prompt in r.prompts]
            nothing = _text(pipe, r.negative)
            scheduler.set_timesteps(r.steps)
            noises = [torch.randn(1, 4, *r.latents, generator=torch.Generator().manual_seed(s)) for s in r.seeds]
            x = torch.cat(noises) * scheduler.init_noise_sigma
            record = []
            for call, t in enumerate(scheduler.timesteps):
                step = call if r.opening is None else r.opening.get(call, r.steps)
                if step < r.guided:
                    root = math.sqrt(1 + float(scheduler.sigmas[call]) ** 2) if sigma_space else 1.0
                    each = (x / root).split(1)
                    x = root * torch.cat(
                        [_guided(pipe, stores, z, t, texts[n], step, n, r) for n, z in enumerate(each)]
                    )
                z = scheduler.scale_model_input(x, t)
                plain = pipe.unet(z, t, encoder_hidden_states=nothing.expand(len(z), -1, -1)).sample
                wanted = pipe.unet(z, t, encoder_hidden_states=torch.cat(texts)).sample
                x = scheduler.step(plain + r.scale * (wanted - plain), t, x).prev_sample
                record.append(x.clone())
            return record
    finally:
        pipe.unet.set_attn_processor(usual)
