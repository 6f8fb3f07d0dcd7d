"""What every judge is, and loading what it needs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

DTYPES = ("float32", "float16", "bfloat16")

MARK = "+"
"""Begins the keys of a score that are no entity's."""
EXTRA = f"{MARK}extra"
"""Key under which a judge that can count says how many things a picture shows beyond those asked for."""
COLOUR = f"{MARK}colour "
"""Before an entity: 1 where it shows the colour asked for, 0 where another. Only of one that is there and for which a
colour was asked: what is missing has none."""


class Missing(Exception):
    """A package or a model is not here; the words say which, and how to get it."""


@dataclass(frozen=True)
class Item:
    """One image to judge. ``caption`` is what a captioning judge wrote, if one has."""

    image: Image.Image
    prompt: str
    entities: tuple[str, ...]
    caption: str | None = None


@dataclass(frozen=True)
class Options:
    """How model judges run. Raises ValueError for an unknown dtype, and for a device that is not there."""

    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.device != "cpu":  # torch, which who only reads a report has no need of
            from ....core.memory import present

            present(self.device)

    @property
    def torch_dtype(self) -> Any:
        """The torch type."""
        import torch

        return getattr(torch, self.dtype)


class Judge(Protocol):
    """Scores images."""

    kind: str
    """The word that the command line knows it by."""
    name: str
    """What its scores are stored under: the kind, and for a model ``:`` and its source, so that no model's scores are
    taken for another's."""
    source: str
    """The model's folder or hub name; "" for a rule."""
    threshold: float | None
    """An entity whose score is below it is missing; None for scores that have no such border."""

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """For each image: entity -> score; "" -> score of the whole image, :data:`EXTRA` and :data:`COLOUR`, where the
        judge has them."""


def verdicts(judge: Judge, items: Sequence[Item]) -> tuple[list[Item], list[dict[str, float]]]:
    """The items, with captions where the judge writes them, and their scores, all of them numbers.

    Raises :class:`Missing` for whatever the judge fails with, so that the others go on.
    """
    try:
        if hasattr(judge, "captions"):
            items = [replace(item, caption=text) for item, text in zip(items, judge.captions(items))]
        scores = judge.score(items)
    except Missing:
        raise
    except Exception as error:
        raise Missing(f"failed: {type(error).__name__}: {error}") from error
    if not all(math.isfinite(value) for own in scores for value in own.values()):
        raise Missing("gave a score that is no number; --dtype float32 may help")
    return list(items), scores


def load(source: str, options: Options, kind: str, *classes: str) -> Any:
    """A ``transformers`` model of the first of ``classes`` that this version has, in evaluation mode on the device.

    Raises :class:`Missing` by name, also for a checkpoint that lacks weights (they would be drawn at random) or was
    never trained: such a judge's numbers would look like a result.
    """
    folder, module = local(source, kind), _part(*classes)
    try:
        model, report = module.from_pretrained(folder, output_loading_info=True, **{_dtype(): options.torch_dtype})
        model = model.to(options.device, options.torch_dtype).eval()
    except Exception as error:  # whatever a checkpoint or a library fails with, the other judges go on
        raise Missing(absent(source, error)) from None
    if lacking := sorted([*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]):
        raise Missing(
            f"{source} has no weights for {lacking[0]} and {len(lacking) - 1} more of {type(model).__name__}; "
            "it is not a checkpoint for this judge"
        )
    refuse_untrained(model, source)
    return model


def refuse_untrained(model: Any, source: str) -> None:
    """Raise :class:`Missing` where every normalisation layer is as initialised: training moves them all."""
    norms = [m for m in model.modules() if "Norm" in type(m).__name__ and getattr(m, "weight", None) is not None]
    if norms and all(bool((m.weight == m.weight.flatten()[0]).all()) for m in norms):
        raise Missing(f"{source} was never trained: its normalisation layers are as initialised")


def load_processor(source: str, kind: str, name: str = "AutoProcessor") -> Any:
    """The model's own tokenizer and image preparation. Raises :class:`Missing` by name."""
    folder, module = local(source, kind), _part(name)
    try:
        return module.from_pretrained(folder)
    except Exception as error:
        raise Missing(absent(source, error)) from None


def local(source: str, kind: str) -> str:
    """The folder's path, or the hub name as it is. Raises :class:`Missing` for none."""
    if not source:
        raise Missing(f"no model given; write {kind}:FOLDER or {kind}:HUB/NAME")
    if source.startswith(("/", ".", "~")) and not Path(source).expanduser().is_dir():
        raise Missing(f"there is no folder {source}")
    return str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source


def rgb(items: Sequence[Item]) -> list[Image.Image]:
    """The images as models take them."""
    return [item.image.convert("RGB") for item in items]


def inputs(found: Any, options: Options) -> dict[str, Any]:
    """A processor's tensors on the device, real ones in the model's type."""
    moved = {name: value.to(options.device) for name, value in found.items()}
    return {name: v.to(options.torch_dtype) if v.is_floating_point() else v for name, v in moved.items()}


def by_shape(asked: Sequence[dict[str, Any]], options: Options, run: Callable[[dict[str, Any]], Any]) -> Any:
    """``run`` on inputs of one image each, those of one shape together, and its rows in the order asked.

    So nothing is ever padded: padding moves the scores of BLIP, ViLT and GIT, mask or no mask.
    """
    import torch

    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, own in enumerate(asked):
        groups.setdefault(tuple((name, value.shape[1:]) for name, value in own.items()), []).append(place)
    rows: list[Any] = [None] * len(asked)
    with torch.inference_mode():
        for places in groups.values():
            joined = {name: torch.cat([asked[place][name] for place in places]) for name in asked[places[0]]}
            for place, row in zip(places, run(inputs(joined, options)).float().cpu()):
                rows[place] = row
    return torch.stack(rows)


def _dtype() -> str:
    from transformers import __version__

    return "dtype" if tuple(map(int, __version__.split(".")[:2])) >= (4, 56) else "torch_dtype"


def _part(*names: str) -> Any:
    try:
        transformers = importlib.import_module("transformers")
        return getattr(transformers, next((name for name in names if hasattr(transformers, name)), names[0]))
    except (ImportError, AttributeError):
        raise Missing(
            f"{names[0]} needs the package transformers; `pip install -r requirements-evaluate.txt`"
        ) from None


def absent(source: str, error: Exception) -> str:
    """Why a model cannot be had, in one line."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else "no more is said"
    return f"{source} cannot be loaded: {type(error).__name__}: {first}"
