"""The one settings model: UI, API, command line, infotext, presets and XYZ axes are derived from it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from .core.losses import LOSSES, WeightedLoss
from .core.maps import Combine, Part, Treatment

TITLE = "Attention Decoupling"

VERSION = 2
"""Version of what a preset's fields mean; its file and its text carry it."""

AUTO, SWITCH = "auto", ("auto", "on", "off")
PRESENCE = "presence"
DRAFTING = ("choose", "insist")
"""Of "look", what draws another seed than the one asked for where that drafts better."""

FIXED: Mapping[str, Any] = MappingProxyType(
    {"loss": "com", "steps": 0, "rule": "relative", "size": 0.15, "start": 0, "stop": "off"}
)
"""The fields that can be left to the loaded model's profile, with what they are where nobody knows the model. These
were the defaults of version 1, so they are what its presets, and every infotext, mean by leaving a field out."""


Group = Literal["entities", "strength", "told", "steps", "update", "maps", "memory"]
"""What a field decides: what is kept apart, how strongly, what is told of it, at which steps, how a step is made, from
which maps, and what it costs."""


@dataclass(frozen=True)
class Spec:
    """What is known of one field beyond its type and default."""

    label: str
    help: str
    infotext: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    """Values to pick from where others may be typed."""
    unit: str = ""
    group: Group = "strength"
    """With which others the page shows it."""

    @property
    def is_switch(self) -> bool:
        """Does true stand for on, and false for off?"""
        return self.choices[: len(SWITCH)] == SWITCH

    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        return f"{self.low:g} to {self.high:g}" + (f" {self.unit}" if self.unit else "")


def _setting(default: Any, label: str, help: str, infotext: str, **more: Any) -> Any:
    spec = Spec(label, help, infotext, **more)
    return field(default=default, metadata={"spec": spec})


@dataclass(frozen=True)
class Settings:
    """Everything a user can choose. Construct with valid values or get a ValueError that names the field."""

    enabled: bool = _setting(False, "Enable", "Turn attention decoupling on.", "Decouple")
    loss: str = _setting(
        AUTO,
        "Loss",
        "What is lowered, of the entities' attention maps: com, how near their centres are; iou, the "
        "area they share; kl, how alike they are; cc, what a pixel's weaker entities hold; intensity, "
        "how little the weakest gets; spread, how far each scatters. A sum can be typed, such as iou "
        "+ 0.5*intensity; auto is the loaded model's.",
        "Decouple loss",
        offered=(AUTO, *LOSSES, "intensity + 0.3*com"),
    )
    steps: int = _setting(
        -1, "Guided until step",
        "How many of the first steps may be guided; 0 means the first half, -1 the loaded model's.",
        "Decouple steps", low=-1, high=150, unit="steps",
    )  # fmt: skip
    entities: tuple[str, ...] = _setting(
        (), "Entities", "Words of the prompt to keep apart, by comma; empty finds them.", "Decouple entities",
        group="entities",
    )  # fmt: skip
    rule: str = _setting(
        AUTO,
        "Step rule",
        "What the step size is: relative, a share of the latents' norm; attend-excite, a multiple of "
        "the gradient. auto is the loaded model's.",
        "Decouple rule",
        choices=(AUTO, "relative", "attend-excite"),
        group="update",
    )
    size: float = _setting(
        0.0,
        "Step size",
        "How far all guided steps together move the latents (the noisy picture), as a share of their "
        "norm (their length as a vector); 0.05 to 0.5 is usual, 0 the loaded model's. With "
        "attend-excite its factor, 20 in that method.",
        "Decouple size",
        low=0.0, high=10000.0,
    )  # fmt: skip
    factor: int = _setting(
        0, "Map level", "Latents' side over the side of the maps that are read, a power of two; 0 means the model's "
        "own default.",
        "Decouple level", low=0, high=64, group="maps",
    )  # fmt: skip
    layers: str = _setting(
        "auto",
        "Layers",
        "Which of the level's layers are read; early ends with the first transformer on the way up, last is that "
        "path's last layer. auto is the loaded model's where “Loss” is auto, too, else all of them (on Anima middle).",
        "Decouple layers",
        choices=("auto", *get_args(Part)),
        group="maps",
    )
    treatment: str = _setting(
        "raw",
        "Map treatment",
        "raw: the attention itself; attend-excite: without the start token, sharpened and smoothed.",
        "Decouple treatment",
        choices=get_args(Treatment), group="maps",
    )  # fmt: skip
    combine: str = _setting(
        "mean", "Several tokens", "How the maps of an entity's tokens become one.", "Decouple combine",
        choices=get_args(Combine), group="maps",
    )  # fmt: skip
    refine_steps: tuple[int, ...] = _setting(
        (), "Refine at steps", "Steps (from 0) at which the update is repeated, by comma.", "Decouple refine steps",
        low=0, high=149, group="update",
    )  # fmt: skip
    refine_threshold: float = _setting(
        0.0, "Refine until loss", "Repeating ends when the loss is at most this.", "Decouple refine threshold",
        low=-1000.0, high=1000.0, group="update",
    )  # fmt: skip
    refine_rounds: int = _setting(
        20, "Refine rounds", "Most updates at a refined step.", "Decouple refine rounds",
        low=1, high=100, group="update",
    )  # fmt: skip
    stop: str = _setting(
        AUTO, "Stop when decoupled",
        "An image is left alone: on, while its loss is at most “Decoupled at loss”; presence, once "
        "its entities are probably there (only those that are not move), for a checkpoint of which "
        "that was learned. auto is the loaded model's.",
        "Decouple stop", choices=(*SWITCH, PRESENCE), group="steps",
    )  # fmt: skip
    stop_below: float = _setting(
        0.0, "Decoupled at loss", "The threshold of “Stop when decoupled”.", "Decouple stop below",
        low=-1000.0, high=1000.0, group="steps",
    )  # fmt: skip
    every: int = _setting(
        1, "Every k-th step", "Guide only every k-th of the guided steps.", "Decouple every",
        low=1, high=50, group="steps",
    )  # fmt: skip
    hires: bool = _setting(
        False, "Hires pass too", "Guide the second pass of hires fix, too.", "Decouple hires", group="steps"
    )
    start: int = _setting(
        -1,
        "Guided from step",
        "How many of the first steps are passed over before guidance begins; -1 means the loaded model's.",
        "Decouple start",
        low=-1,
        high=149,
        unit="steps",
        group="strength",
    )
    recompute: str = _setting(
        AUTO, "Save memory",
        "Blocks of the model are computed twice instead of kept: much less memory, more time, the "
        "same picture. auto does so where free memory is short.",
        "Decouple recompute", choices=SWITCH, group="memory",
    )  # fmt: skip
    skip_missing: bool = _setting(
        False,
        "Leave out what is not found",
        "An entity that the prompt doesn't name is left out; otherwise that image is not guided, and told so.",
        "Decouple skip missing",
        group="entities",
    )
    one_at_a_time: bool = _setting(
        False,
        "One image at a time",
        "Each image of a batch has its own pass: less memory, more time.",
        "Decouple one at a time",
        group="memory",
    )

    look: str = _setting(
        "tell",
        "Look",
        "tell: says which entity's attention stands out least, or, for a checkpoint of which that was learned, "
        "which is perhaps missing; this changes no picture and costs no pass. choose: for each picture a "
        "few seeds are drafted first, guided as the picture will be, and the one is drawn whose weakest entity "
        "stands out most; insist: unguided, only until a draft tells that all are surely there, and the picture is "
        "begun again where it lacks one midway.",
        "Decouple look",
        choices=("off", "tell", *DRAFTING),
        group="told",
    )
    drafts: int = _setting(
        4, "Drafts",
        "How many seeds “Look” at choose drafts for each picture, and at insist at most, the one asked for among "
        "them; each costs about four steps.",
        "Decouple drafts", low=2, high=16, unit="seeds", group="told",
    )  # fmt: skip
    restarts: int = _setting(
        1, "Restarts",
        "How many times “Look” at insist may begin a picture again, from the next best seed, when it lacks an entity "
        "midway.",
        "Decouple restarts", low=0, high=8, unit="times", group="told",
    )  # fmt: skip

    gradient: str = _setting(
        "exact",
        "Gradient",
        "exact: each guided step has a pass of its own. late: the sampler's own pass gives the "
        "gradient and the next step is moved, with no more passes; it is exact where that can't be, as "
        "with four guided steps or fewer. none: nothing is moved; only “Look” acts.",
        "Decouple gradient",
        choices=("exact", "late", "none"),
        group="update",
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, _checked(item, getattr(self, item.name)))
        if self.loss != AUTO:
            WeightedLoss.parse(self.loss)
        if 0 < self.steps <= self.start:
            raise ValueError(f"start: {self.start} is not allowed; fewer than the guided steps, {self.steps}")
        if self.factor & (self.factor - 1):
            raise ValueError(f"factor: {self.factor} is not allowed; 0 or a power of two up to 64")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Named values, any subset, defaults for the rest. Raises ValueError for an unknown name or a bad value."""
        refuse_unknown(values, [item.name for item in fields(cls)])
        return cls(**values)

    def fixed(self) -> Settings:
        """The same with :data:`FIXED` where a field is left to a profile."""
        left_open = {name: FIXED[name] for name in self.left_open()}
        return replace(self, **left_open) if left_open else self

    def left_open(self) -> tuple[str, ...]:
        """Names of the fields that are left to the loaded model's profile."""
        return tuple(
            item.name for item in fields(self) if item.name in FIXED and getattr(self, item.name) == item.default
        )

    def as_dict(self) -> dict[str, Any]:
        """All values as plain JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def refuse_unknown(names: Iterable[Any], known: Sequence[str]) -> None:
    """Raises ValueError for the first name that is none of the ``known``, with one that is near."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name).strip().lower(), known, 1)
            raise ValueError(
                f"{written(name)}: no such field{f' (did you mean {near[0]}?)' if near else ''}; "
                f"allowed are {', '.join(known)}"
            )


def written(name: Any) -> str:
    """A field's name in a message, at most 80 characters; in quotes where these show what would be overlooked."""
    text = str(name)[:80]
    return text if text.isidentifier() else repr(text)


def spec(name: str) -> Spec:
    """The :class:`Spec` of a field. Raises KeyError for an unknown name."""
    return specs()[name]


def specs() -> dict[str, Spec]:
    """Every field's :class:`Spec`, in order."""
    return {item.name: item.metadata["spec"] for item in fields(Settings)}


def _checked(item: Field[Any], value: Any) -> Any:
    """The value in its field's type, or a ValueError that names field, value and what is allowed."""
    about: Spec = item.metadata["spec"]
    name, default = item.name, item.default

    def wrong(allowed: str) -> ValueError:
        shown = repr(value)
        return ValueError(f"{name}: {shown if len(shown) <= 200 else shown[:200] + '…'} is not allowed; {allowed}")

    def number(one: Any, whole: bool) -> Any:
        if isinstance(one, bool) or not isinstance(one, (int, float)) or one != one or abs(one) == math.inf:
            raise wrong(f"a {'whole ' if whole else ''}number, {about.allowed()}")
        if whole and one != int(one):
            raise wrong(f"a whole number, {about.allowed()}")
        if about.low is not None and about.high is not None and not about.low <= one <= about.high:
            raise wrong(about.allowed())
        return int(one) if whole else float(one)

    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise wrong("true or false")
        return value
    if isinstance(default, int):
        return number(value, True)
    if isinstance(default, float):
        return number(value, False)
    if isinstance(default, tuple):
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise wrong("a list")
        if name == "refine_steps":
            return tuple(number(one, True) for one in value)
        if not all(isinstance(one, str) and one.strip() for one in value):
            raise wrong("a list of words or phrases, none empty")
        if not all(map(_is_whole, value)):
            raise wrong("a list of words or phrases, without half characters (lone surrogates)")
        return tuple(one.strip() for one in value)
    if about.is_switch and isinstance(value, bool):
        return "on" if value else "off"
    if not isinstance(value, str):
        raise wrong(about.allowed() if about.choices else "a text")
    if not _is_whole(value):
        raise wrong("a text without half characters (lone surrogates)")
    if about.choices and value not in about.choices:
        raise wrong(about.allowed())
    return value


def _is_whole(text: str) -> bool:
    """Can a file hold it? A host that writes half a character into a picture's infotext loses the picture."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
