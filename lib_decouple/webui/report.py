"""What guidance did, in words: for the infotext of each image and for the status line."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Protocol

from ..core.trace import ImageTrace
from ..settings import Settings
from .compare import Comparison
from .infotext import FOUND, IOU, RUN, STOOD_ASIDE, join_list


class Pass(Protocol):
    """One sampling pass of one batch, as a host adapter leaves it."""

    iteration: int
    hires: bool
    traces: list[ImageTrace]
    left_alone: list[str]
    stood_aside: str
    seconds: float
    step: int
    total: int


@dataclass
class Run:
    """One job of the host: its settings, and its sampling passes so far."""

    settings: Settings
    passes: list[Pass] = field(default_factory=list)
    profile: str = ""
    """Name of the one whose values stand in the settings where they were left open."""
    profile_told: str = ""
    """Which of the settings these are, and how they are known."""
    problem: str = ""
    """Why the job is not guided at all."""
    comparison: Comparison | None = None
    """Where each picture is drawn plain, too."""
    notes: list[str] = field(default_factory=list)
    """What else the status line tells, before the images."""
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    """A name that is fit for an address, and that nobody can guess."""
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    kept: bool = False
    """Will its trace be kept when it is over?"""
    owner: str = field(default="", repr=False)
    """The caller who draws it (see :mod:`callers`); "" where nobody is known."""
    task: str = field(default="", repr=False)
    """The host's name of the page's task, which only the page that started it has; "" for a job of the API."""

    def is_of(self, caller: str, task: str) -> bool:
        """Does the ``caller`` draw it, or the page whose ``task`` this is?"""
        return bool(caller and caller == self.owner) or bool(task and task == self.task)

    def result(self, key: str, iteration: int, position: int) -> str | None:
        """The infotext value of a result key for one image; None leaves the key out."""
        own = [one for one in self.passes if one.iteration == iteration and position < len(one.traces)]
        if key == STOOD_ASIDE:
            reasons = [self.problem, *(reason_of(one, position) for one in own)]
            return "; ".join(dict.fromkeys(filter(None, reasons))) or None
        guided = [one.traces[position] for one in own if one.traces[position].steps]
        if not guided:
            return None
        return join_list(guided[0].entities) if key == FOUND else _iou(guided)

    def infotext(self) -> dict[str, Any]:
        """The result keys with functions that the host calls for each image's infotext.

        They ask the job for its run: ADetailer sends a copy of a running job through all scripts again, whose
        entries land in the dictionary that both share.
        """

        def value(key: str) -> Any:
            def of_image(p: Any, index: int, all_prompts: Sequence[str], use_main_prompt: bool, **_: Any) -> str | None:
                if use_main_prompt:
                    return None
                run = getattr(p, "attention_decoupling", None) or self
                return run.result(key, *_batch_and_position(p, index, all_prompts))

            return _OfImage(of_image)

        return {key: value(key) for key in (FOUND, IOU, STOOD_ASIDE)}

    def info(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The job's infotext entries for the API's ``info``, for which the host calls no functions: each result as the
        first image that has it has."""
        images = [(one.iteration, k) for one in self.passes for k in range(len(one.traces))] or [(0, 0)]
        results = {
            key: next(filter(None, (self.result(key, *image) for image in images)), None)
            for key in (FOUND, IOU, STOOD_ASIDE)
        }
        return {key: value for key, value in {**given, **results, RUN: self.id}.items() if value is not None}

    def id_for_info(self) -> Any:
        """The id as an infotext entry that is in no infotext."""
        return _OfImage(lambda *_, **__: None, self.id)

    def told_of_guided(self, written: Mapping[str, str]) -> dict[str, Any]:
        """The settings' infotext for the images that are guided: in a comparison plain ones have none."""
        comparison = self.comparison
        if comparison is None:
            return dict(written)

        def value(text: str) -> Any:
            def of_image(p: Any, index: int, all_prompts: Sequence[str], use_main_prompt: bool, **_: Any) -> str | None:
                # The host writes its "last parameters" with the first batch, a plain one; they are the job's.
                last_used = p.iteration == 0 and len(all_prompts) == len(p.all_prompts)
                plain = not last_used and comparison.plain(_batch_and_position(p, index, all_prompts)[0])
                return None if plain and not use_main_prompt else text

            return _OfImage(of_image, text)

        return {key: value(text) for key, text in written.items()}

    def lines(self) -> list[str]:
        """The status line: one line an image, at most eight, then passes and time, or why not."""
        if self.problem:
            return [*self.notes, f"Stood aside: {self.problem}"]
        images = dict.fromkeys((one.iteration, k) for one in self.passes for k in range(len(one.traces)))
        found = []
        for number, image in enumerate(images, start=1):
            entities, iou, reason = (self.result(key, *image) for key in (FOUND, IOU, STOOD_ASIDE))
            parts = [f"{entities}: overlap (IoU) {iou}" if entities else "", f"stood aside: {reason}" if reason else ""]
            if entities and (unused := self._unused(image)):
                parts.insert(1, f"not in this prompt: {unused}")
            found.append((f"Image {number}: " if len(images) > 1 else "") + "; ".join(filter(None, parts)))
        more = [f"… and {len(found) - 8} more"] if len(found) > 8 else []
        count = sum(trace.passes for one in self.passes for trace in one.traces)
        seconds = sum(one.seconds for one in self.passes)
        profile = [self.profile_told] if self.profile_told else []
        return [*self.notes, *found[:8], *more, *profile, f"{count} more passes of the UNet, {seconds:.1f} s"]

    def _unused(self, image: tuple[int, int]) -> str:
        used = {name for one in self.passes if one.iteration == image[0] for name in one.traces[image[1]].entities}
        return join_list(name for name in self.settings.entities if name not in used)


def _batch_and_position(p: Any, index: int, all_prompts: Sequence[str]) -> tuple[int, int]:
    """Which image the host means: it counts from the batch's first while it saves, else from the job's."""
    whole = len(all_prompts) == len(p.all_prompts)
    return divmod(index, p.batch_size) if whole else (p.iteration, index)


class _OfImage(str):
    """A function of an image; and a text, since the API's ``info`` and Forge Classic write what they were given."""

    _function: Callable[..., str | None]

    def __new__(cls, function: Callable[..., str | None], text: str = "") -> _OfImage:
        made = super().__new__(cls, text)
        made._function = function
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> str | None:
        return self._function(*args, **kwargs)


def reason_of(one: Pass, position: int) -> str:
    """Why a pass did not guide an image, or not to its end; empty when it did."""
    return one.stood_aside or ("" if one.traces[position].steps else one.left_alone[position])


def _iou(traces: Sequence[ImageTrace]) -> str:
    """``0.62 to 0.31``: the mean over pairs at the first and the last look that saw a pair."""
    looks = [record.before.mean_iou() for trace in traces for record in trace.steps if record.before.iou]
    return f"{looks[0]:.3f} to {looks[-1]:.3f}" if looks else "none, one entity"
