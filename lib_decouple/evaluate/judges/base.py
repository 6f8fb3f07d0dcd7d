"""What every judge is, and loading what it needs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

DTYPES = ("float32", "float16", "bfloat16")


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
    """How model judges run. Raises ValueError for an unknown dtype."""

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}")

    @property
    def torch_dtype(self) -> Any:
        """The torch type."""
        import torch

        return getattr(torch, self.dtype)


class Judge(Protocol):
    """Scores images."""

    name: str
    source: str
    """The model's folder or hub name; "" for a rule."""
    threshold: float | None
    """An entity whose score is below it is missing; None for scores that have no such border."""

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """For each image: entity -> score, and "" -> score of the whole image, where the judge has one."""


def load(class_name: str, source: str, options: Options, kind: str) -> Any:
    """A ``transformers`` model, in evaluation mode on the device. Raises :class:`Missing` by name."""
    module = _part(class_name, source, kind)
    try:
        model = module.from_pretrained(source, torch_dtype=options.torch_dtype)
    except (OSError, ValueError) as error:
        raise Missing(_absent(source, error)) from None
    return model.to(options.device).eval()


def load_processor(source: str, kind: str) -> Any:
    """The model's own tokenizer and image preparation. Raises :class:`Missing` by name."""
    try:
        return _part("AutoProcessor", source, kind).from_pretrained(source)
    except (OSError, ValueError) as error:
        raise Missing(_absent(source, error)) from None


def _part(name: str, source: str, kind: str) -> Any:
    if not source:
        raise Missing(f"no model given; write {kind}:FOLDER or {kind}:HUB/NAME")
    if source.startswith(("/", ".", "~")) and not Path(source).expanduser().is_dir():
        raise Missing(f"there is no folder {source}")
    try:
        return getattr(importlib.import_module("transformers"), name)
    except (ImportError, AttributeError):
        raise Missing(f"{name} needs the package transformers; `pip install -r requirements-evaluate.txt`") from None


def _absent(source: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{source} cannot be loaded: {first}"
