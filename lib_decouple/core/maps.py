"""Cross-attention maps of chosen tokens, read beside the attention itself.

Hooks on the ``to_q`` and ``to_k`` of each needed cross-attention module see what the module is about to
attend with: the kernel that the host chose stays as it is, and a host's patch that calls the projections
itself (Forge's IP-Adapter does) is read as well. After the last needed module the pass is ended, since
nothing later is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional

Treatment = Literal["raw", "attend-excite"]
Combine = Literal["mean", "max"]
Part = Literal["all", "down", "middle", "up", "last"]


@dataclass(frozen=True)
class CrossAttentionLayer:
    """One cross-attention module of a denoiser, as a host adapter names it, in order of execution."""

    name: str
    module: nn.Module
    """Has ``to_q``, ``to_k`` and ``heads``; a ``scale`` is used where it has one."""
    factor: int
    """Downsampling: the latents' side over the side of this layer's maps."""

    @property
    def part(self) -> Part:
        """Which path of the denoiser it stands on, by the names of diffusers' and latent-diffusion's blocks."""
        if self.name.startswith(("down", "input")):
            return "down"
        return "middle" if self.name.startswith("mid") else "up"


@dataclass(frozen=True)
class Entity:
    """Where one entity's words stand in an image's conditioning."""

    name: str
    tokens: tuple[int, ...]
    """Positions in the context, start token included in the count (the first word is at 1)."""
    part: int = 0
    """Which of the image's prompts, for prompts joined by AND."""

    def __post_init__(self) -> None:
        if not self.tokens or min(self.tokens) < 0:
            raise ValueError(f"entity {self.name!r}: tokens {self.tokens} must be one or more positions from 0")


def level_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """Size of the maps ``factor`` times below latents ``height x width``: every halving rounds up.

    Raises ValueError when ``factor`` is not a power of two.
    """
    if factor < 1 or factor & (factor - 1):
        raise ValueError(f"factor: {factor} is not a power of two")
    while factor > 1:
        height, width, factor = -(-height // 2), -(-width // 2), factor // 2
    return height, width


def token_maps(module: nn.Module, hidden: Tensor, context: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
    """Attention of chosen tokens, softmax over all tokens, averaged over heads.

    ``hidden`` ``[batch, pixels, channels]`` and ``context`` ``[batch, tokens, channels]`` are the
    module's own inputs. Returns float32 (of a float64 module float64) ``[batch, len(tokens), pixels]``
    in [0, 1]; all tokens when ``tokens`` is None. Raises ValueError for a position outside the context.
    """
    parts: Any = module
    return _shares(module, parts.to_q(hidden), parts.to_k(context), tokens)


def _shares(module: nn.Module, query: Tensor, key: Tensor, tokens: Sequence[int] | None) -> Tensor:
    """:func:`token_maps` of the projections ``[batch, pixels or tokens, heads * channels]``."""
    wanted = range(key.shape[1]) if tokens is None else tokens
    if wanted and not 0 <= min(wanted) <= max(wanted) < key.shape[1]:
        raise ValueError(f"tokens: {sorted(wanted)} reach outside a context of {key.shape[1]} tokens")
    parts: Any = module
    heads = int(parts.heads)
    query = rearrange(query, "b n (k d) -> b k n d", k=heads)
    key = rearrange(key, "b t (k d) -> b k t d", k=heads)
    if callable(getattr(module, "norm_q", None)):
        query = parts.norm_q(query)
    if callable(getattr(module, "norm_k", None)):
        key = parts.norm_k(key)
    scale = getattr(module, "scale", None) or query.shape[-1] ** -0.5
    if query.dtype != torch.float64:
        query, key = query.float(), key.float()
    logits = (query * float(scale)) @ key.transpose(-1, -2)
    if tokens is None:
        share = logits.softmax(-1)
    else:
        share = (logits[..., list(tokens)] - logits.logsumexp(-1, keepdim=True)).exp()
    return reduce(share, "b k n t -> b t n", "mean")


class PassEnded(Exception):
    """Raised inside a guided pass after its last needed layer; :func:`captured` takes it back."""


@dataclass
class Capture:
    """What a guided pass has left: one ``[batch, tokens, pixels]`` a layer, in order of execution."""

    tokens: tuple[int, ...] | None
    maps: dict[str, Tensor] = field(default_factory=dict)

    def average(self, height: int, width: int, layers: Sequence[CrossAttentionLayer]) -> Tensor:
        """Mean over the layers: ``[batch, tokens, h, w]`` at the finest captured level.

        ``height`` and ``width`` are the latents'. Raises ValueError when a layer left no map or
        when its number of pixels does not fit its factor.
        """
        missing = [layer.name for layer in layers if layer.name not in self.maps]
        if missing:
            raise ValueError(f"layers: {', '.join(missing)} left no map; did the pass reach them?")
        grids = []
        for layer in layers:
            h, w = level_size(height, width, layer.factor)
            found = self.maps[layer.name]
            if found.shape[-1] != h * w:
                raise ValueError(
                    f"layers: {layer.name} has {found.shape[-1]} pixels, not {h} x {w}, "
                    f"for latents {height} x {width} at factor {layer.factor}"
                )
            grids.append(rearrange(found, "b t (h w) -> b t h w", h=h))
        finest = max((grid.shape[-2:] for grid in grids), key=lambda size: size[0] * size[1])
        resized = [
            grid
            if grid.shape[-2:] == finest
            else functional.interpolate(grid, size=tuple(finest), mode="bilinear", align_corners=False)
            for grid in grids
        ]
        return torch.stack(resized).mean(0)


@contextmanager
def captured(
    layers: Sequence[CrossAttentionLayer], tokens: Sequence[int] | None, stop: bool = True
) -> Iterator[Capture]:
    """Read the maps of ``layers`` while the body runs a pass of the denoiser.

    With ``stop`` the pass ends (the body is left) at the last of the layers. The hooks come off
    whatever happens. Raises ValueError for no layers.
    """
    if not layers:
        raise ValueError("layers: none to read maps from")
    capture = Capture(None if tokens is None else tuple(tokens))

    def readers(layer: CrossAttentionLayer) -> Any:
        queries: list[Tensor] = []

        def read_query(module: nn.Module, args: tuple[Any, ...], query: Tensor) -> None:
            queries[:] = [query]

        def read_key(module: nn.Module, args: tuple[Any, ...], key: Tensor) -> None:
            if not queries:
                raise ValueError(f"layers: {layer.name} projects its keys before its queries")
            capture.maps[layer.name] = _shares(layer.module, queries.pop(), key, capture.tokens)
            if stop and layer is layers[-1]:
                raise PassEnded

        parts: Any = layer.module
        return parts.to_q.register_forward_hook(read_query), parts.to_k.register_forward_hook(read_key)

    handles = [handle for layer in layers for handle in readers(layer)]
    try:
        yield capture
    except PassEnded:
        pass
    finally:
        for handle in handles:
            handle.remove()


def smooth(maps: Tensor, sigma: float = 0.5) -> Tensor:
    """3x3 Gaussian over the last two axes, reflect padding [F: Attend-and-Excite].

    That method's code calls 0.5 its sigma but weighs by ``exp(-(d / (2 sigma))²)``, a standard deviation
    of 0.71 pixels; the weights here are the code's, as in diffusers' pipeline.
    ``[batch, entities, h, w]``; a side of one pixel is padded by repetition, as nothing can be reflected.
    """
    offsets = torch.arange(-1, 2, device=maps.device, dtype=maps.dtype)
    line = (-(offsets / (2 * sigma)).square()).exp()
    line = line / line.sum()
    mode = "reflect" if min(maps.shape[-2:]) > 1 else "replicate"
    flat = rearrange(functional.pad(maps, (1, 1, 1, 1), mode=mode), "b e h w -> (b e) 1 h w")
    blurred = functional.conv2d(flat, torch.outer(line, line)[None, None])
    return rearrange(blurred, "(b e) 1 h w -> b e h w", b=maps.shape[0])


def entity_maps(
    token_grids: Tensor,
    tokens: Sequence[int] | None,
    entities: Sequence[Entity],
    treatment: Treatment = "raw",
    combine: Combine = "mean",
    end: int | None = None,
) -> Tensor:
    """One map an entity: ``[entities, h, w]``, of one image.

    ``token_grids`` ``[parts, tokens, h, w]`` holds the columns ``tokens`` (all, when None) of each of
    the image's prompts. ``raw``: the tokens' own attention. ``attend-excite`` [F]: without the start
    token and what stands from position ``end`` on (the end token and padding; all but the last
    position when None), times 100, softmax over the tokens left, smoothed; it needs all columns.
    An entity of several tokens is the ``mean`` [F] or ``max`` of its tokens' maps.
    Raises ValueError for a token outside the columns, or an unknown treatment or combination.
    """
    for name, value, allowed in (("treatment", treatment, Treatment), ("combine", combine, Combine)):
        if value not in get_args(allowed):
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(get_args(allowed))}")
    column = {token: i for i, token in enumerate(range(token_grids.shape[1]) if tokens is None else tokens)}
    if treatment == "attend-excite":
        if tokens is not None:
            raise ValueError("treatment: 'attend-excite' needs the columns of all tokens")
        last = token_grids.shape[1] - 1 if end is None else end
        token_grids = smooth((token_grids[:, 1:last] * 100).softmax(1))
        column = {token: token - 1 for token in range(1, last)}
    maps = []
    for entity in entities:
        outside = [token for token in entity.tokens if token not in column]
        if outside or not 0 <= entity.part < token_grids.shape[0]:
            raise ValueError(
                f"entity {entity.name!r}: token {outside or list(entity.tokens)} of prompt part {entity.part} "
                f"is not among the captured ones"
            )
        own = token_grids[entity.part, [column[token] for token in entity.tokens]]
        maps.append(own.mean(0) if combine == "mean" else own.amax(0))
    return torch.stack(maps)
