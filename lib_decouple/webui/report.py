"""What guidance did, in words: for the infotext of each image and for the status line."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Protocol

from ..core.presence import WEAKEST, lowest
from ..core.trace import ImageTrace
from ..hosts.seeds import ExtraPasses, SeedChoice
from ..hosts.tell import Teller
from ..settings import PRESENCE, Settings
from . import effect
from .compare import Comparison
from .infotext import (
    AGAIN,
    ASKED,
    ASKED_VARIATION,
    BATCH,
    FOUND,
    HIRES,
    MOVED,
    NO_DRAFTS,
    NOT_INSISTED,
    RESULTS,
    RUN,
    STOOD_ASIDE,
    TOLD,
    join_list,
    split_list,
)

NOT_REACHED = "another script or extension drew it in its own way, past the WebUI's sampling, where guidance works"
ONLY_HIRES = "only the second pass of hires fix was drawn; “Hires pass too” guides that"
NO_STEP = "sampling ended before the first guided step"
MOST_LINES = 8
MOST_NAMES = 12
"""Of an image's entities in the status line; the infotext has all."""


class Pass(Protocol):
    """One sampling pass of one batch, as a host adapter leaves it."""

    iteration: int
    hires: bool
    traces: list[ImageTrace]
    left_alone: list[str]
    stood_aside: str
    exact_since: str
    teller: Teller
    choices: list[SeedChoice | None]
    no_drafts: str
    drew: bool
    not_insisted: str
    seconds: float
    beside: ExtraPasses
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
    drafts_only: bool = False
    """Is nothing to be drawn but drafts?"""
    notes: list[str] = field(default_factory=list)
    """What else the status line tells, before the images."""
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    """A name that is fit for an address, and that nobody can guess."""
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    drawn: set[int] = field(default_factory=set)
    """Batches that were sampled."""
    unreached: str = NOT_REACHED
    """Why a batch that was sampled was not guided by any pass."""
    kept: bool = False
    """Will its trace be kept when it is over?"""
    over: bool = False
    """Has its job ended?"""
    within: bool = False
    """Is it drawn from a copy of a job that has not ended, such as ADetailer's faces?"""
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
            return self._reasons(own, iteration, position) or None
        if key == TOLD:
            told = [presence.words() for one in own if (presence := one.teller.told[position])]
            return told[-1] if told and told[-1] else None
        if key in (ASKED, ASKED_VARIATION):
            chosen = self._choice(own, position)
            is_told = chosen and chosen.drawn is not None and chosen.variation is (key == ASKED_VARIATION)
            return str(chosen.asked) if chosen and is_told else None
        if key == NO_DRAFTS:
            return next((one.no_drafts for one in own if one.no_drafts), None)
        if key == NOT_INSISTED:
            return next((one.not_insisted for one in own if one.not_insisted), None)
        if key == AGAIN:
            chosen = self._choice(own, position)
            return (chosen.begun_again() or None) if chosen else None
        guided = [one for one in own if was_guided(one, position)]
        if key == BATCH:
            size = max((len(one.traces) for one in guided), default=1)
            return None if size == 1 or self.settings.one_at_a_time else f"{position + 1} of {size}"
        hires = key in HIRES.values()
        values = [_value_of(key, one, position) for one in guided if one.hires is hires]
        return values[0] or None if values else None

    @staticmethod
    def _choice(own: Sequence[Pass], position: int) -> SeedChoice | None:
        return next((chosen for one in own if (chosen := one.choices[position])), None)

    @property
    def not_drawn(self) -> set[int]:
        """Batches of which drafts were made alone."""
        return {one.iteration for one in self.passes if not one.drew}

    @property
    def drew_nothing(self) -> bool:
        """Were drafts made alone, of all that was sampled?"""
        return bool(self.passes) and not self.problem and not any(one.drew for one in self.passes)

    def best_first(self) -> list[tuple[int, int]]:
        """The images, as batch and position, of which something is told, the best first: by the weakest entity's
        chance, or by its score where no chances were learned."""
        sure: dict[tuple[int, int], tuple[bool, float]] = {}
        for one in self.passes:
            for position, presence in enumerate(one.teller.told):
                if presence:
                    weakest = lowest((presence.chances or presence.scores).values())
                    sure[one.iteration, position] = (presence.chances is not None, weakest)
        return sorted(sure, key=lambda image: sure[image], reverse=True)

    def label(self, iteration: int, position: int) -> str:
        """What stands above an image beside its plain one."""
        own = [one for one in self.passes if one.iteration == iteration and position < len(one.traces)]
        chosen = self._choice(own, position)
        other = f", seed {chosen.drawn}" if chosen and chosen.drawn != chosen.asked else ""
        return self._label(own, iteration, position) + other

    def _label(self, own: Sequence[Pass], iteration: int, position: int) -> str:
        aside = self.result(STOOD_ASIDE, iteration, position)
        if self.settings.gradient == "none":
            return "not guided"
        if not any(was_guided(one, position) for one in own):
            return "not decoupled: stood aside"
        if not any(record.update_norm > 0 for one in own for record in one.traces[position].steps):
            return "left alone"
        return "decoupled, then stood aside" if aside else "decoupled"

    def _reasons(self, own: Sequence[Pass], iteration: int, position: int) -> str:
        """Why an image was not guided, or not to its end; "" while it is being drawn, and where it was."""
        if self.problem:
            return self.problem
        if iteration in self.drawn and not own:
            return self.unreached
        if self.settings.gradient == "none":
            return ""
        reasons = [(one.hires, reason_of(one, position, iteration in self.drawn)) for one in own]
        return "; ".join(dict.fromkeys(("hires: " if hires else "") + text for hires, text in reasons if text))

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

        return {key: value(key) for key in RESULTS}

    def info(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The job's infotext entries for the API's ``info``, for which the host calls no functions: each result as the
        first image that has it has."""
        images = [(one.iteration, k) for one in self.passes for k in range(len(one.traces))] or [(0, 0)]
        results = {key: next(filter(None, (self.result(key, *image) for image in images)), None) for key in RESULTS}
        return {key: value for key, value in {**given, **results, RUN: self.id}.items() if value is not None}

    def leave_behind(self, written: dict[str, Any]) -> None:
        """In the job's infotext entries, for a script that draws copies of a job and tells of the job itself: what
        :meth:`info` has, as texts of the functions that the host may still call; what no image has is left out, unless
        the job around this one, whose entries they are, too, may have it yet."""
        told = self.info({})
        for key in RESULTS:
            if isinstance(own := written.get(key), _OfImage):
                if key in told or self.within:
                    written[key] = _OfImage(own, told.get(key, ""))
                else:
                    del written[key]
        written[RUN] = self.id_for_info()

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
        """The status line: one line an image, at most :data:`MOST_LINES`, then passes and time, or why not."""
        if self.problem:
            return [*self.notes, f"Stood aside: {self.problem}"]
        images = dict.fromkeys((one.iteration, k) for one in self.passes for k in range(len(one.traces)))
        if not images:
            return [*self.notes, f"Stood aside: {self.unreached}"] if self.drawn else list(self.notes)
        found = [self._line(image) for image in images]
        if len(found) > 1:
            found = [f"Image {number}: {line}" for number, line in enumerate(found, start=1)]
        elif not self._begins_with_names(next(iter(images)), found[0]):
            found = [found[0][:1].upper() + found[0][1:]]
        more = [f"… and {len(found) - MOST_LINES} more"] if len(found) > MOST_LINES else []
        return [*self.notes, *found[:MOST_LINES], *more, *self._order(list(images)), *self._costs()]

    def _order(self, images: Sequence[tuple[int, int]]) -> list[str]:
        """How the images rank, where something is told of more than one."""
        ranked = [images.index(one) + 1 for one in self.best_first() if one in images]
        if len(ranked) < 2:
            return []
        more = f" … and {len(ranked) - MOST_LINES} more" if len(ranked) > MOST_LINES else ""
        return [
            f"Ranked by the attention of the weakest entity: images {', '.join(map(str, ranked[:MOST_LINES]))}{more}"
        ]

    def _line(self, image: tuple[int, int]) -> str:
        """What was done to one image."""
        own = [one for one in self.passes if one.iteration == image[0]]
        chosen, none, told = self._choice(own, image[1]), self.result(NO_DRAFTS, *image), self.result(TOLD, *image)
        parts = [chosen.words()] if chosen else [f"no drafts: {none}"] if none else []
        parts += [not_insisted] if (not_insisted := self.result(NOT_INSISTED, *image)) else []
        parts += [told] if told else []
        for keys, start in (((FOUND, MOVED), ""), ((HIRES[FOUND], HIRES[MOVED]), "hires: ")):
            entities, moved = (self.result(key, *image) for key in keys)
            if entities:
                parts.append(f"{start}{_shortened(entities)}: {self._moved(moved or '')}")
        if parts and (unused := self._unused(image)):
            parts.insert(1, f"not in this prompt: {unused}")
        if reason := self.result(STOOD_ASIDE, *image):
            parts.append(f"stood aside: {reason}")
        parts += dict.fromkeys(one.exact_since for one in self.passes if one.iteration == image[0] and one.exact_since)
        nothing = "not drawn to its end" if self.settings.gradient != "none" else "not guided, as “Gradient” is none"
        if self.drafts_only:
            nothing = "its drafts were not made to their end"
        return "; ".join(parts) or nothing

    def _begins_with_names(self, image: tuple[int, int], line: str) -> bool:
        """Does an image's line begin with its entities, which are written as the prompt has them?"""
        names = (self.result(key, *image) for key in (TOLD, FOUND))
        return any(line.startswith(own) for own in names if own and not own.startswith(WEAKEST))

    def _moved(self, moved: str) -> str:
        """:func:`effect.moved` in words."""
        moved, _, back = moved.partition(", ")
        failed = f"; guidance did not help at {back.split()[0]} more, where its update raised the loss" if back else ""
        if not moved.startswith("0 "):
            return f"moved at {moved} of the latents' length{failed}"
        if back:
            return "not moved: guidance did not help, as every update raised the loss and was taken back"
        if self.settings.stop == "on":
            return f"left alone, as its loss was at most {self.settings.stop_below:g} at every guided step"
        if self.settings.stop == PRESENCE:
            return "left alone, as its entities were probably all there at every guided step"
        return "not moved, as its loss gave no direction at any guided step"

    def _costs(self) -> list[str]:
        """Whose settings, where anything was guided, and what all of it cost."""
        guided = any(record.guided for one in self.passes for trace in one.traces for record in trace.steps)
        drafts, given_up = (sum(getattr(one.beside, name) for one in self.passes) for name in ("drafts", "given_up"))
        parts = [f"{drafts} for drafts"] if drafts else []
        parts += [f"{given_up} in pictures that were begun and given up"] if given_up else []
        if guided:
            count = sum(one.beside.guided + sum(trace.passes for trace in one.traces) for one in self.passes)
            seconds = sum(one.seconds for one in self.passes)
            parts.insert(0, f"{count or 'none'} to guide, {seconds:.1f} s")
        if not parts:
            return []
        images = {(one.iteration, k) for one in self.passes for k in range(len(one.traces))}
        by_image = " (counted image by image)" if len(images) > 1 else ""
        profile = [self.profile_told] if self.profile_told and guided else []
        return [*profile, f"More passes of the model{by_image}: {'; '.join(parts)}"]

    def _unused(self, image: tuple[int, int]) -> str:
        used = {name for one in self.passes if one.iteration == image[0] for name in one.traces[image[1]].entities}
        return join_list(name for name in self.settings.entities if name not in used)


def _batch_and_position(p: Any, index: int, all_prompts: Sequence[str]) -> tuple[int, int]:
    """Which image the host means: it counts from the batch's first while it saves, else from the job's."""
    whole = len(all_prompts) == len(p.all_prompts)
    return divmod(index, p.batch_size) if whole else (p.iteration, index)


def _shortened(names: str) -> str:
    """The first of the names that :func:`join_list` wrote, and how many more there are."""
    found = split_list(names)
    more = f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else ""
    return join_list(found[:MOST_NAMES]) + more


class _OfImage(str):
    """A function of an image; and a text, since the API's ``info`` and Forge Classic write what they were given."""

    _function: Callable[..., str | None]

    def __new__(cls, function: Callable[..., str | None], text: str = "") -> _OfImage:
        made = super().__new__(cls, text)
        made._function = function
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> str | None:
        return self._function(*args, **kwargs)


def was_guided(one: Pass, position: int) -> bool:
    """Could this pass move the image at any step?"""
    return any(record.guided for record in one.traces[position].steps)


def reason_of(one: Pass, position: int, drawn: bool = True) -> str:
    """Why a pass did not guide an image, or not to its end; empty when it did, and where drafts alone were made.

    ``drawn``: is it over?
    """
    if one.stood_aside:
        return one.stood_aside
    if was_guided(one, position) or not one.drew:
        return ""
    return one.left_alone[position] or (NO_STEP if drawn else "")


def _value_of(key: str, one: Pass, position: int) -> str:
    trace = one.traces[position]
    if key in (FOUND, HIRES[FOUND]):
        return join_list(trace.entities)
    return effect.moved(trace, one.total) if key in (MOVED, HIRES[MOVED]) else effect.by_update(trace)
