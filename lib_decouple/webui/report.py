"""What guidance did, in words: for the infotext of each image and for the status line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..core.trace import ImageTrace
from ..settings import Settings
from .infotext import FOUND, IOU, STOOD_ASIDE, join_list


class Pass(Protocol):
    """One sampling pass of one batch, as a host adapter leaves it."""

    iteration: int
    hires: bool
    traces: list[ImageTrace]
    left_alone: list[str]
    stood_aside: str
    seconds: float


@dataclass
class Run:
    """One job of the host: its settings, and its sampling passes so far."""

    settings: Settings
    passes: list[Pass] = field(default_factory=list)
    problem: str = ""
    """Why the job is not guided at all."""

    def result(self, key: str, iteration: int, position: int) -> str | None:
        """The infotext value of a result key for one image; None leaves the key out."""
        own = [one for one in self.passes if one.iteration == iteration and position < len(one.traces)]
        if key == STOOD_ASIDE:
            reasons = [self.problem, *(_reason(one, position) for one in own)]
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
                # The host counts from the batch's first image while it saves, else from the job's.
                whole = len(all_prompts) == len(p.all_prompts)
                iteration, position = divmod(index, p.batch_size) if whole else (p.iteration, index)
                run = getattr(p, "attention_decoupling", None) or self
                return run.result(key, iteration, position)

            return _OfImage(of_image)

        return {key: value(key) for key in (FOUND, IOU, STOOD_ASIDE)}

    def lines(self) -> list[str]:
        """The status line: one line an image, at most eight, then passes and time, or why not."""
        if self.problem:
            return [f"Stood aside: {self.problem}"]
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
        return [*found[:8], *more, f"{count} more passes of the UNet, {seconds:.1f} s"]

    def _unused(self, image: tuple[int, int]) -> str:
        used = {name for one in self.passes if one.iteration == image[0] for name in one.traces[image[1]].entities}
        return join_list(name for name in self.settings.entities if name not in used)


class _OfImage(str):
    """A function of an image; and an empty text, since Forge Classic writes what it was given as JSON, too."""

    _function: Callable[..., str | None]

    def __new__(cls, function: Callable[..., str | None]) -> _OfImage:
        made = super().__new__(cls)
        made._function = function
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> str | None:
        return self._function(*args, **kwargs)


def _reason(one: Pass, position: int) -> str:
    return one.stood_aside or ("" if one.traces[position].steps else one.left_alone[position])


def _iou(traces: Sequence[ImageTrace]) -> str:
    """``0.62 to 0.31``: the mean over pairs at the first and the last look that saw a pair."""
    looks = [record.mean_iou() for trace in traces for record in trace.steps if record.iou]
    return f"{looks[0]:.3f} to {looks[-1]:.3f}" if looks else "none, one entity"
