"""A denoiser small enough for float64, which keeps the softmax of its own attention to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lib_decouple.core.maps import CrossAttentionLayer


class PlainAttention(nn.Module):
    """Cross-attention as `ldm` writes it, explicit softmax kept as ``probs`` ``[batch, heads, pixels, tokens]``."""

    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.calls = 0
        self.probs = torch.empty(0)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        self.calls += 1

        def split(value: Tensor) -> Tensor:
            return value.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
        self.probs = torch.softmax(torch.einsum("bhnd,bhtd->bhnt", q, k) * self.scale, dim=-1)
        return self.to_out(torch.einsum("bhnt,bhtd->bhnd", self.probs, v).transpose(1, 2).flatten(2))


class Toy(nn.Module):
    """Two levels: attention ``fine`` at the latents' size, ``coarse`` and ``coarse2`` at half of it."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.enter = nn.Conv2d(4, 8, 3, padding=1)
        self.fine = PlainAttention(8, 6, 2)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.coarse = PlainAttention(8, 6, 2)
        self.coarse2 = PlainAttention(8, 6, 4)
        self.leave = nn.Conv2d(8, 4, 3, padding=1)
        with torch.no_grad():
            for attention in (self.fine, self.coarse, self.coarse2):
                attention.to_q.weight.mul_(3)
                attention.to_k.weight.mul_(3)
        self.to(dtype)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = torch.tanh(self.enter(x))
        h = self._attend(self.fine, h, context)
        h = torch.tanh(self.down(h))
        h = self._attend(self.coarse, h, context)
        h = self._attend(self.coarse2, h, context)
        return self.leave(h)

    @staticmethod
    def _attend(attention: PlainAttention, h: Tensor, context: Tensor) -> Tensor:
        return h + attention(h.flatten(2).transpose(1, 2), context).transpose(1, 2).unflatten(2, h.shape[-2:])

    def layers(self, *names: str) -> list[CrossAttentionLayer]:
        """The named attentions as an adapter would name them."""
        factor = {"fine": 1, "coarse": 2, "coarse2": 2}
        return [CrossAttentionLayer(name, getattr(self, name), factor[name]) for name in names]


def contexts(rows: int, tokens: int = 7, dtype: torch.dtype = torch.float32, seed: int = 5) -> Tensor:
    """A random text context for each row."""
    return torch.randn(rows, tokens, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def noise(batch: int, h: int = 8, w: int = 8, dtype: torch.dtype = torch.float32, seed: int = 9) -> Tensor:
    """Random latents."""
    return torch.randn(batch, 4, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Runner:
    """The conditional pass of a host: row-wise contexts, ``parts[i]`` of them for image i; counts its calls."""

    def __init__(self, model: Toy, rows: Tensor, parts: Sequence[int] = ()) -> None:
        self.model, self.rows = model, rows
        self.parts = list(parts) or [1] * len(rows)
        self.calls: list[list[int]] = []
        self.shrink = 1.0

    def __call__(self, latents: Tensor, images: Sequence[int]) -> None:
        self.calls.append(list(images))
        assert len(latents) == len(images)
        self.model(*self.rows_of(latents, images))

    def rows_of(self, latents: Tensor, images: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What the model is given for these images."""
        first = [sum(self.parts[:i]) for i in images]
        chosen = [row for start, i in zip(first, images) for row in range(start, start + self.parts[i])]
        counts = torch.tensor([self.parts[i] for i in images])
        return latents.repeat_interleave(counts, 0) * self.shrink, self.rows[chosen]
