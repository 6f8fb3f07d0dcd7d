"""Measures of, and losses on, the entities' cross-attention maps.

Maps are ``[batch, entities, h, w]``, non-negative, of any float dtype; everything is computed in
float32 (float64 stays float64) and is defined, with finite gradients, for zero maps, identical
maps, one-hot maps, any number of entities and any size. With one entity an overlap is 0.

How surely a form is the paper's (arXiv 2410.20972) is marked as in the project's notes:
[P] the paper's abstract or a public review of it, [F] its family of methods, [I] inferred here.

Notation: ``A_i(p)`` entity i's attention at pixel p; ``Â_i = A_i / Σ_p A_i``; ``x_p`` the pixel's
centre with the longer side as 1; ``μ_i = Σ_p Â_i(p) x_p`` the centre of mass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from einops import rearrange, reduce
from torch import Tensor

EPS = 1e-8
MARGIN = 0.4
"""Distance of centres at which ``com(form=margin)`` counts two entities as apart; longer side = 1."""

IouForm = Literal["half", "union", "product"]
ComForm = Literal["bounded", "negative", "margin"]
KlForm = Literal["exp", "negative", "js"]
Peak = Literal["max", "mean"]
Pooling = Literal["mean", "sum", "max"]


class _Widened(torch.autograd.Function):
    """fp16 or bf16 to float32; on the way back a gradient saturates at the dtype's limit, not at infinity."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.dtype = maps.dtype
        return maps.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        limit = torch.finfo(ctx.dtype).max
        return gradients[0].clamp(-limit, limit).to(ctx.dtype)


def _working(maps: Tensor) -> Tensor:
    if maps.ndim != 4:
        raise ValueError(f"maps: shape {tuple(maps.shape)} is not [batch, entities, h, w]")
    if not maps.is_floating_point():
        raise ValueError(f"maps: dtype {maps.dtype} is not a float dtype")
    if 0 in maps.shape[1:]:
        raise ValueError(f"maps: shape {tuple(maps.shape)} has no entity or no pixel")
    return maps if maps.dtype in (torch.float32, torch.float64) else _Widened.apply(maps)


def _choice(name: str, value: str, allowed: object) -> None:
    options = get_args(allowed)
    if value not in options:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(options)}")


def normalised(maps: Tensor) -> Tensor:
    """``Â``: every map divided by its sum over pixels; a zero map becomes uniform. ``[batch, entities, h, w]``."""
    maps = _working(maps) + EPS
    return maps / maps.sum((-2, -1), keepdim=True)


def _pairs(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Both members of every pair i < j: two ``[batch, pairs, pixels]``."""
    flat = rearrange(maps, "b e h w -> b e (h w)")
    i, j = torch.triu_indices(flat.shape[1], flat.shape[1], offset=1, device=flat.device)
    return flat[:, i], flat[:, j]


def _pool(values: Tensor, how: Pooling, maps: Tensor) -> Tensor:
    """``[batch, n]`` -> ``[batch]``; no values (a single entity) give 0, still attached to the graph."""
    _choice("pool", how, Pooling)
    if values.shape[1] == 0:
        return maps.sum((1, 2, 3)) * 0
    return reduce(values, "b n -> b", how)


# ---------------------------------------------------------------- measures


def intensity(maps: Tensor, peak: Peak = "mean") -> Tensor:
    """``Int_i = mean_p A_i(p)`` [P], or ``max_p A_i(p)`` [F: Attend-and-Excite]. ``[batch, entities]`` in [0, 1]."""
    _choice("peak", peak, Peak)
    return reduce(_working(maps), "b e h w -> b e", peak)


def centre_of_mass(maps: Tensor) -> Tensor:
    """``μ_i``, as (y, x) with the longer side as 1: ``[batch, entities, 2]``; a zero map's is the middle."""
    share = normalised(maps)
    h, w = share.shape[-2:]
    y = (torch.arange(h, device=share.device, dtype=share.dtype) + 0.5) / max(h, w)
    x = (torch.arange(w, device=share.device, dtype=share.dtype) + 0.5) / max(h, w)
    return torch.stack([(share.sum(-1) * y).sum(-1), (share.sum(-2) * x).sum(-1)], dim=-1)


def spread(maps: Tensor) -> Tensor:
    """``Var_i = Σ_p Â_i(p) ‖x_p − μ_i‖²`` [P in words]: ``[batch, entities]`` in [0, 1/2]."""
    share = normalised(maps)
    h, w = share.shape[-2:]
    centre = centre_of_mass(maps)
    y = (torch.arange(h, device=share.device, dtype=share.dtype) + 0.5) / max(h, w)
    x = (torch.arange(w, device=share.device, dtype=share.dtype) + 0.5) / max(h, w)
    off_y = (y - centre[..., :1]).square()
    off_x = (x - centre[..., 1:]).square()
    return (share.sum(-1) * off_y).sum(-1) + (share.sum(-2) * off_x).sum(-1)


def pair_iou(maps: Tensor, form: IouForm = "half", normalise: bool = True) -> Tensor:
    """Overlap of each pair of maps, ``[batch, pairs]``.

    ``half``: ``Σ min(A_i, A_j) / Σ (A_i + A_j)`` in [0, 1/2] [F: A-STAR, InitNO, gsn-factory];
    ``union``: ``Σ min / Σ max`` in [0, 1], the true (soft) intersection over union [I];
    ``product``: ``Σ A_i A_j / Σ (A_i² + A_j²)`` in [0, 1/2] [I].
    ``normalise=False`` takes the raw maps, whose ratio also falls when one entity is dimmed.
    """
    _choice("form", form, IouForm)
    maps = normalised(maps) if normalise else _working(maps)
    a, b = _pairs(maps)
    if form == "half":
        return torch.minimum(a, b).sum(-1) / ((a + b).sum(-1) + EPS)
    if form == "union":
        return torch.minimum(a, b).sum(-1) / (torch.maximum(a, b).sum(-1) + EPS)
    return (a * b).sum(-1) / ((a.square() + b.square()).sum(-1) + EPS**2)


def pair_distance(maps: Tensor) -> Tensor:
    """``d_ij = ‖μ_i − μ_j‖₂`` [P], ``[batch, pairs]`` in [0, √2]; its gradient at 0 is 0."""
    centre = centre_of_mass(maps)
    i, j = torch.triu_indices(centre.shape[1], centre.shape[1], offset=1, device=centre.device)
    square = (centre[:, i] - centre[:, j]).square().sum(-1)
    apart = square != 0  # true for NaN, which must not pass for a distance of 0
    return torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)


def pair_kl(maps: Tensor) -> Tensor:
    """``½ (D(Â_i‖Â_j) + D(Â_j‖Â_i))`` in nats, ``[batch, pairs]``, ≥ 0 [P: KL between maps; its symmetry is I]."""
    a, b = _pairs(normalised(maps))
    return 0.5 * ((a - b) * (a.log() - b.log())).sum(-1)


def pair_js(maps: Tensor) -> Tensor:
    """Jensen-Shannon divergence over ln 2, ``[batch, pairs]`` in [0, 1] [I]."""
    a, b = _pairs(normalised(maps))
    log_mean = (0.5 * (a + b)).log()
    return 0.5 * (a * (a.log() - log_mean) + b * (b.log() - log_mean)).sum(-1) / math.log(2)


def compactness(maps: Tensor, normalise: bool = True) -> Tensor:
    """``Σ_p max_i A_i(p) / Σ_p Σ_i A_i(p)``, ``[batch]`` in [1/entities, 1].

    The share of attention that the strongest entity of each pixel holds [I, from the name
    "clustering compactness"]. For two entities it is ``1 − pair_iou(form="half")``.
    """
    maps = normalised(maps) if normalise else _working(maps)
    total = maps.sum((1, 2, 3))
    strongest = maps.amax(1).sum((1, 2))
    there = total != 0  # true for NaN
    return torch.where(there, strongest / torch.where(there, total, 1.0), 1.0)


# ---------------------------------------------------------------- losses


def iou(maps: Tensor, form: IouForm = "half", normalise: bool = True, pool: Pooling = "mean") -> Tensor:
    """:func:`pair_iou` over the pairs: ``[batch]``, in [0, 1/2] or [0, 1] (``form="union"``) for mean and max."""
    return _pool(pair_iou(maps, form, normalise), pool, _working(maps))


def com(maps: Tensor, form: ComForm = "bounded", pool: Pooling = "mean") -> Tensor:
    """Closeness of the centres: ``[batch]``.

    ``bounded``: ``1 − d_ij/√2`` in [0, 1] [I]; ``negative``: ``−d_ij`` in [−√2, 0] [P];
    ``margin``: ``max(0, 1 − d_ij/MARGIN)`` in [0, 1], 0 once the centres are :data:`MARGIN` apart [I].
    """
    _choice("form", form, ComForm)
    distance = pair_distance(maps)
    if form == "margin":
        distance = (1 - distance / MARGIN).clamp(min=0)
    else:
        distance = 1 - distance / math.sqrt(2) if form == "bounded" else -distance
    return _pool(distance, pool, _working(maps))


def kl(maps: Tensor, form: KlForm = "exp", pool: Pooling = "mean") -> Tensor:
    """Alikeness of the distributions: ``[batch]``.

    ``exp``: ``exp(−D_ij)`` in (0, 1] [I]; ``negative``: ``−D_ij``, unbounded below [P, sign inferred];
    ``js``: ``1 − JS_ij / ln 2`` in [0, 1] [I]. ``D`` is :func:`pair_kl`.
    """
    _choice("form", form, KlForm)
    if form == "js":
        return _pool(1 - pair_js(maps), pool, _working(maps))
    divergence = pair_kl(maps)
    return _pool((-divergence).exp() if form == "exp" else -divergence, pool, _working(maps))


def cc(maps: Tensor, normalise: bool = True) -> Tensor:
    """``1 −`` :func:`compactness`, ``[batch]`` in [0, 1 − 1/entities] [I]."""
    return 1 - compactness(maps, normalise)


def intensity_loss(maps: Tensor, peak: Peak = "max", pool: Pooling = "max") -> Tensor:
    """``max_i`` (or mean, sum) of ``1 − max_p A_i(p)``, ``[batch]`` [F: Attend-and-Excite takes both maxima].

    In [0, 1] for maps that are attention probabilities.
    """
    return _pool(1 - intensity(maps, peak), pool, _working(maps))


def spread_loss(maps: Tensor, pool: Pooling = "mean") -> Tensor:
    """Mean (or sum, max) over the entities of :func:`spread`, ``[batch]`` in [0, 1/2] [I]."""
    return _pool(spread(maps), pool, _working(maps))


Loss = Callable[..., Tensor]

_FORMULAE: dict[str, Loss] = {
    "iou": iou,
    "com": com,
    "kl": kl,
    "cc": cc,
    "intensity": intensity_loss,
    "spread": spread_loss,
}

OVERLAP_LOSSES = ("iou", "com", "kl", "cc")

_OPTIONS: dict[str, dict[str, tuple[object, ...]]] = {
    "iou": {"form": get_args(IouForm), "normalise": (True, False), "pool": get_args(Pooling)},
    "com": {"form": get_args(ComForm), "pool": get_args(Pooling)},
    "kl": {"form": get_args(KlForm), "pool": get_args(Pooling)},
    "cc": {"normalise": (True, False)},
    "intensity": {"peak": get_args(Peak), "pool": get_args(Pooling)},
    "spread": {"pool": get_args(Pooling)},
}


def _as_float32(formula: Loss) -> Loss:
    def loss(maps: Tensor, **options: object) -> Tensor:
        return formula(_working(maps), **options).float()

    loss.__doc__ = formula.__doc__
    loss.__name__ = formula.__name__
    return loss


LOSSES: dict[str, Loss] = {name: _as_float32(formula) for name, formula in _FORMULAE.items()}
"""Name -> loss: non-negative maps ``[batch, entities, h, w]`` to float32 ``[batch]``."""


# ---------------------------------------------------------------- sums


@dataclass(frozen=True)
class Term:
    """One weighted loss of a sum, with its options."""

    name: str
    weight: float = 1.0
    options: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        short = f"{self.weight:g}"
        weight = "" if self.weight == 1 else f"{short if float(short) == self.weight else repr(self.weight)}*"
        options = ", ".join(f"{key}={str(value).lower()}" for key, value in self.options)
        return f"{weight}{self.name}" + (f"({options})" if options else "")


_TERM = re.compile(
    r"\s*(?:(?P<weight>[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*\*\s*)?(?P<name>[a-z_]+)\s*(?:\((?P<options>[^()]*)\))?\s*",
    re.IGNORECASE,
)


def _parse_term(text: str) -> Term:
    match = _TERM.fullmatch(text)
    if not match:
        raise ValueError(
            f"loss: cannot read {text.strip()!r}; write terms such as 'iou', '0.5*intensity' or 'kl(form=js)' "
            f"joined by '+', with the losses {', '.join(LOSSES)}"
        )
    name = match["name"].lower()
    if name not in LOSSES:
        raise ValueError(f"loss: {match['name']!r} is not one of {', '.join(LOSSES)}")
    weight = float(match["weight"] or 1)
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"loss: the weight {match['weight']} of {name!r} must be a finite number above 0")
    options = []
    for part in filter(None, (p.strip() for p in (match["options"] or "").split(","))):
        key, _, value = (p.strip().lower() for p in part.partition("="))
        allowed = _OPTIONS[name]
        if key not in allowed:
            raise ValueError(f"loss: {name!r} has no option {key!r}; it has {', '.join(allowed)}")
        spelled = {str(choice).lower(): choice for choice in allowed[key]}
        if value not in spelled:
            raise ValueError(f"loss: {name}({key}={value!r}) is not one of {', '.join(spelled)}")
        options.append((key, spelled[value]))
    return Term(name, weight, tuple(options))


@dataclass(frozen=True)
class WeightedLoss:
    """A weighted sum of losses, such as ``iou + 0.5*intensity``; called like any loss."""

    terms: tuple[Term, ...]

    @classmethod
    def parse(cls, text: str) -> WeightedLoss:
        """Read ``[weight*]name[(option=value, …)]`` terms joined by ``+``.

        Raises ValueError that names the loss, option or weight at fault and what is allowed.
        """
        if not text.strip():
            raise ValueError(f"loss: empty; one of {', '.join(LOSSES)} or a sum such as 'iou + 0.5*intensity'")
        # A '+' inside a number's exponent (1e+3) does not join terms.
        return cls(tuple(_parse_term(part) for part in re.split(r"(?<![0-9]e)\+", text, flags=re.IGNORECASE)))

    def __call__(self, maps: Tensor) -> Tensor:
        """Maps ``[batch, entities, h, w]`` -> float32 ``[batch]``."""
        maps = _working(maps)
        total = [term.weight * LOSSES[term.name](maps, **dict(term.options)) for term in self.terms]
        return torch.stack(total).sum(0)

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))
