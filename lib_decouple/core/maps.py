"""Cross-attention maps of chosen tokens, read beside the attention itself.

Hooks on the modules that make each needed layer's queries and keys see what it is about to attend with:
the kernel that the host chose stays as it is, and a host's patch that calls the projections itself (Forge's
IP-Adapter does) is read as well. After the last needed layer the pass is ended, since nothing later is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, get_args

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

Treatment = Literal["raw", "attend-excite"]
Combine = Literal["mean", "max"]
CLIP_COLUMNS = 77
"""Of a text that fits into one of CLIP's contexts."""
Part = Literal["all", "early", "down", "middle", "up", "last"]


@dataclass(frozen=True)
class Projections:
    """What an architecture makes a layer's map of: softmax of ``scale * norm(query) @ norm(key)`` in each head."""

    query: nn.Module
    """Its output, ``[batch, ..., heads * channels]`` with the pixels between, is the queries."""
    key: nn.Module
    """Its output, ``[batch, ..., heads * channels]`` with the tokens between, is the keys; it runs after ``query``."""
    heads: int
    scale: float | None = None
    """None: ``channels ** -0.5`` of one head."""
    query_norm: Callable[[Tensor], Tensor] | None = None
    """Of ``[batch, heads, pixels, channels]``."""
    key_norm: Callable[[Tensor], Tensor] | None = None


Reader = Callable[[nn.Module], Projections]
"""Finds a cross-attention module's projections, anew for each pass: a host may have wrapped them meanwhile."""


def to_q_and_to_k(module: nn.Module) -> Projections:
    """The reader of ldm's, sgm's and diffusers' cross-attention, with or without norms."""
    parts: Any = module
    norms = [norm if callable(norm := getattr(module, name, None)) else None for name in ("norm_q", "norm_k")]
    return Projections(parts.to_q, parts.to_k, int(parts.heads), getattr(module, "scale", None) or None, *norms)


@dataclass(frozen=True)
class CrossAttentionLayer:
    """One cross-attention module of a denoiser, as a host adapter names it, in order of execution."""

    name: str
    module: nn.Module
    factor: int
    """Downsampling: the latents' side over the side of this layer's maps."""
    reader: Reader = to_q_and_to_k
    third: Part | None = None
    """Of a denoiser without paths down and up: which third of its depth this is."""
    columns: int = CLIP_COLUMNS
    """Of the text that it attends to, as a rule: for an estimate of memory."""

    @property
    def part(self) -> Part:
        """Which path of the denoiser it stands on, by the names of diffusers' and latent-diffusion's blocks."""
        if self.third:
            return self.third
        if self.name.startswith(("down", "input")):
            return "down"
        return "middle" if self.name.startswith("mid") else "up"

    @property
    def transformer(self) -> str:
        """The name of the transformer that its block is one of."""
        return self.name.partition(".transformer_blocks")[0]


@dataclass(frozen=True)
class Entity:
    """Where one entity's words stand in an image's conditioning."""

    name: str
    tokens: tuple[int, ...]
    """Positions in the context, from 0; CLIP's start token stands at 0, so that the first word is at 1."""
    part: int = 0
    """Which of the image's prompts, for prompts joined by AND."""

    def __post_init__(self) -> None:
        if not self.tokens or min(self.tokens) < 0:
            raise ValueError(f"entity {self.name!r}: tokens {self.tokens} must be one or more positions from 0")


@dataclass(frozen=True)
class ImagePlan:
    """What is needed of one image: its entities, and the number of its prompts joined by AND."""

    entities: tuple[Entity, ...]
    parts: int = 1
    end: int | None = None
    """Position of the end token, for Attend-and-Excite's treatment; None takes the context's last."""
    begin: int = 1
    """Position of the text's first token, for the same: behind the start token, where there is one."""

    @property
    def names(self) -> tuple[str, ...]:
        """The entities' names, in order."""
        return tuple(entity.name for entity in self.entities)


class MapsMisfit(ValueError):
    """A layer's maps have not the size that the latents and its factor give."""


class ContextMisfit(ValueError):
    """A token stands outside of the context that the denoiser was given."""


class AttentionReplaced(ValueError):
    """A layer was passed by, or works otherwise than it is made."""


def level_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """Size of the maps ``factor`` times below latents ``height x width``: every halving rounds up.

    Raises ValueError when ``factor`` is not a power of two.
    """
    if factor < 1 or factor & (factor - 1):
        raise ValueError(f"factor: {factor} is not a power of two")
    while factor > 1:
        height, width, factor = -(-height // 2), -(-width // 2), factor // 2
    return height, width


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast is off inside, which would undo ``.float()`` in front of every matrix product."""
    try:
        return torch.autocast(device.type, enabled=False)
    except RuntimeError:  # a device that has no autocast
        return nullcontext()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products of float32 are float32's inside, whatever the host allows: neither autocast nor TF32, nor bf16.

    The process has one switch for that, which is put back. Half precision's own switches do not concern float32.
    """
    before = _allowed_products()
    torch.set_float32_matmul_precision("highest")
    try:
        with no_autocast(device):
            yield
    finally:
        for allow, value in before:
            allow(value)


@contextmanager
def full_precision_convolutions() -> Iterator[None]:
    """Convolutions of float32 are float32's inside, which torch shortens to TF32 on a GPU unless told otherwise.

    The process has switches for that, which are put back. torch 2.9 has one for all and one for each kind; a kind's
    own, once set, no longer goes by the one for all, so it is set only where the host has done so.
    Inside, the old one can't be read there.
    """
    backends: Any = torch.backends
    switches: list[tuple[Any, str, Any]] = [(backends.cudnn, "allow_tf32", False)]
    if hasattr(backends, "fp32_precision"):
        kinds = (backends, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.conv)
        switches = [(kind, "fp32_precision", "ieee") for kind in kinds]
    before = []
    try:
        for switch, name, whole in switches:
            value = getattr(switch, name)
            if value != whole:
                setattr(switch, name, whole)
                before.append((switch, name, value))
        yield
    finally:
        for switch, name, value in reversed(before):
            setattr(switch, name, value)


def _allowed_products() -> list[tuple[Callable[[str], object], str]]:
    """Which float32 products the process may shorten: what puts each switch back, and to what.

    torch 2.9 has one switch a backend beside the old one for all, which moves them but brings none back; the old one
    can't be read where only the new ones were used.
    """
    found: list[tuple[Callable[[str], object], str]] = []
    with suppress(RuntimeError):
        found.append((torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()))
    for backend in (torch.backends.cuda, torch.backends.mkldnn):
        own: Any = getattr(backend, "matmul", None)
        if hasattr(own, "fp32_precision"):
            found.append((partial(setattr, own, "fp32_precision"), own.fp32_precision))
    return found


class _Logits(torch.autograd.Function):
    """``query @ key^T``, in :func:`full_precision` on the way back, too, where a whole denoiser must not be."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor) -> Tensor:
        ctx.save_for_backward(query, key)
        return query @ key.transpose(-1, -2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        query, key = ctx.saved_tensors
        (gradient,), (of_query, of_key) = gradients, ctx.needs_input_grad
        with full_precision(gradient.device):
            return gradient @ key if of_query else None, gradient.transpose(-1, -2) @ query if of_key else None


def token_maps(
    module: nn.Module,
    hidden: Tensor,
    context: Tensor,
    tokens: Sequence[int] | None = None,
    reader: Reader = to_q_and_to_k,
) -> Tensor:
    """Attention of chosen tokens, softmax over all tokens, averaged over heads.

    ``hidden`` ``[batch, pixels, channels]`` and ``context`` ``[batch, tokens, channels]`` are the
    module's own inputs. Returns float32 (of a float64 module float64) ``[batch, len(tokens), pixels]``
    in [0, 1]; all tokens when ``tokens`` is None. Raises ValueError for a position outside the context.
    """
    parts = reader(module)
    return attention(parts, parts.query(hidden), parts.key(context), Columns(tokens))


@dataclass
class Columns:
    """The tokens whose attention is wanted; None: all."""

    tokens: Sequence[int] | None
    _index: Tensor | None = None

    def of(self, logits: Tensor) -> Tensor:
        """Of ``[..., tokens]`` those wanted. Their positions are copied to the device once: it is waited for then."""
        if self._index is None or self._index.device != logits.device:
            self._index = torch.tensor(self.tokens, device=logits.device)
        return logits.index_select(-1, self._index)


def attention(parts: Projections, query: Tensor, key: Tensor, columns: Columns) -> Tensor:
    """:func:`token_maps` of the projections' outputs ``[batch, pixels or tokens, heads * channels]``."""
    tokens = columns.tokens
    wanted = () if tokens is None else tokens
    query = rearrange(query.flatten(1, -2), "b n (k d) -> b k n d", k=parts.heads)
    key = rearrange(key.flatten(1, -2), "b t (k d) -> b k t d", k=parts.heads)
    if wanted and not 0 <= min(wanted) <= max(wanted) < key.shape[2]:
        raise ContextMisfit(f"tokens: {sorted(wanted)} reach outside a context of {key.shape[2]} tokens")
    query = parts.query_norm(query) if parts.query_norm else query
    key = parts.key_norm(key) if parts.key_norm else key
    with full_precision(query.device):
        if query.dtype != torch.float64:
            query, key = query.float(), key.float()
        logits = _Logits.apply(query * float(parts.scale or query.shape[-1] ** -0.5), key)
        if tokens is None:
            share = logits.softmax(-1)
        else:
            share = (columns.of(logits) - logits.logsumexp(-1, keepdim=True)).exp()
        return reduce(share, "b k n t -> b t n", "mean")


class PassEnded(BaseException):
    """Raised inside a guided pass after its last needed layer; :meth:`Capture.passing` takes it back.

    No :class:`Exception`: those that other extensions catch around the denoiser are failures to them. Why the pass
    ends so and not otherwise stands in docs/method.md ("How a guided pass ends").
    """


@dataclass
class Capture:
    """What a guided pass has left: one ``[batch, tokens, pixels]`` a layer, in order of execution."""

    tokens: tuple[int, ...] | None
    maps: dict[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    """Of the queries: what the denoiser computes in."""
    ended: bool = False
    """The last layer was read, and :class:`PassEnded` raised."""
    whole: bool = False
    """The pass is over; what passes the hooks from now on is computed again for a gradient, and kept by it alone."""

    @contextmanager
    def passing(self) -> Iterator[None]:
        """The body runs the pass, as far as it is needed.

        Behind the last layer nothing that goes wrong matters: somebody may have caught :class:`PassEnded` and lack
        what the rest of the pass would have given.
        """
        try:
            yield
        except PassEnded:
            pass
        except Exception:
            if not self.ended:
                raise
        self.whole = True

    def average(self, height: int, width: int, layers: Sequence[CrossAttentionLayer]) -> Tensor:
        """Mean over the layers: ``[batch, tokens, h, w]`` at the finest captured level.

        ``height`` and ``width`` are the latents'. Raises ValueError when a layer left no map or
        when its number of pixels does not fit its factor.
        """
        missing = [layer.name for layer in layers if layer.name not in self.maps]
        if missing:
            raise AttentionReplaced(f"layers: {', '.join(missing)} left no map; did the pass reach them?")
        grids = []
        for layer in layers:
            h, w = level_size(height, width, layer.factor)
            found = self.maps[layer.name]
            if found.shape[-1] != h * w:
                raise MapsMisfit(
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
    layers: Sequence[CrossAttentionLayer], tokens: Sequence[int] | Columns | None, stop: bool = True
) -> Iterator[Capture]:
    """Read the maps of ``layers`` while the body runs a pass of the denoiser.

    With ``stop`` the pass ends by :class:`PassEnded` at the last of the layers; :meth:`Capture.passing` catches it in
    the body, or the body is left. The hooks come off whatever happens. Raises ValueError for no layers.
    """
    if not layers:
        raise ValueError("layers: none to read maps from")
    columns = tokens if isinstance(tokens, Columns) else Columns(tokens)
    capture = Capture(None if columns.tokens is None else tuple(columns.tokens))

    def hooked(layer: CrossAttentionLayer) -> Any:
        parts = layer.reader(layer.module)
        queries: list[Tensor] = []

        def read_query(module: nn.Module, args: tuple[Any, ...], query: Tensor) -> None:
            queries[:] = [query]

        def read_key(module: nn.Module, args: tuple[Any, ...], key: Tensor) -> None:
            if not queries:
                raise AttentionReplaced(f"layers: {layer.name} projects its keys before its queries")
            query = queries.pop()
            found = attention(parts, query, key, columns)
            if capture.whole:
                return
            capture.maps[layer.name], capture.dtype = found, query.dtype
            if stop and layer is layers[-1]:
                capture.ended = True
                raise PassEnded

        return parts.query.register_forward_hook(read_query), parts.key.register_forward_hook(read_key)

    handles: list[Any] = []
    try:
        for layer in layers:
            handles += hooked(layer)
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
    side, middle, _ = (math.exp(-((offset / (2 * sigma)) ** 2)) for offset in (-1, 0, 1))
    mode = "reflect" if min(maps.shape[-2:]) > 1 else "replicate"
    padded = functional.pad(maps, (1, 1, 1, 1), mode=mode)
    # By sums, as a convolution may be TF32's.
    for axis in (-2, -1):
        before, own, after = (padded.narrow(axis, k, maps.shape[axis]) for k in range(3))
        padded = (side * (before + after) + middle * own) / (2 * side + middle)
    return padded


def entity_maps(
    token_grids: Tensor,
    tokens: Sequence[int] | None,
    entities: Sequence[Entity],
    treatment: Treatment = "raw",
    combine: Combine = "mean",
    end: int | None = None,
    begin: int = 1,
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
        token_grids = smooth((token_grids[:, begin:last] * 100).softmax(1))
        column = {token: token - begin for token in range(begin, last)}
    maps = []
    for entity in entities:
        outside = [token for token in entity.tokens if token not in column]
        if outside or not 0 <= entity.part < token_grids.shape[0]:
            raise ContextMisfit(
                f"entity {entity.name!r}: token {outside or list(entity.tokens)} of prompt part {entity.part} "
                f"is not among the captured ones"
            )
        # One by one: an index made in Python would make the CPU wait for the device.
        own = torch.stack([token_grids[entity.part, column[token]] for token in entity.tokens])
        maps.append(own.mean(0) if combine == "mean" else own.amax(0))
    return torch.stack(maps)


@dataclass(frozen=True)
class MapReader:
    """Reads the entity maps of a batch's images beside a pass of the denoiser.

    The pass's rows are image-major, an image's AND parts consecutive.
    """

    layers: Sequence[CrossAttentionLayer]
    images: Sequence[ImagePlan]
    treatment: Treatment = "raw"
    combine: Combine = "mean"
    stop: bool = True
    """End the pass at the last layer; see :func:`captured`."""

    @property
    def named(self) -> list[int]:
        """The images that have entities."""
        return [i for i, plan in enumerate(self.images) if plan.entities]

    @property
    def tokens(self) -> list[int] | None:
        """The positions whose attention is needed; None for all."""
        if self.treatment == "attend-excite":
            return None
        return sorted({t for plan in self.images for entity in plan.entities for t in entity.tokens})

    @cached_property
    def columns(self) -> Columns:
        """:attr:`tokens`, on the device of the pass that was read last."""
        return Columns(self.tokens)

    def reading(self) -> AbstractContextManager[Capture]:
        """Capture what :meth:`maps` needs of the pass that the body runs."""
        return captured(self.layers, self.columns, self.stop)

    def maps(self, capture: Capture, size: Sequence[int], images: Sequence[int]) -> list[Tensor]:
        """Entity maps ``[entities, h, w]`` of each of ``images``, whose rows the pass had; ``size`` is the latents'
        height and width."""
        height, width = size
        grids = capture.average(height, width, self.layers)
        found, row = [], 0
        for index in images:
            plan = self.images[index]
            own = grids[row : row + plan.parts]
            found.append(
                entity_maps(own, capture.tokens, plan.entities, self.treatment, self.combine, plan.end, plan.begin)
            )
            row += plan.parts
        return found
