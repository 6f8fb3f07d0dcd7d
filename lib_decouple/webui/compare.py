"""Compare: every batch of a job is drawn twice from the same seeds, first plain, then decoupled.

The host draws ``p.n_iter`` batches from lists that it has filled before ``process``; these are doubled. The plain
batches are left alone, so they are what the host draws without this extension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..hosts import reasons
from ..hosts.borrowed import borrow

LISTS = (
    "all_prompts",
    "all_negative_prompts",
    "all_seeds",
    "all_subseeds",
    "all_hr_prompts",
    "all_hr_negative_prompts",
)
"""What a job holds for each of its images."""


@dataclass
class Comparison:
    """One job that is compared: its even batches are plain, its odd ones decoupled."""

    p: Any
    batches: int
    """Of the job as asked for."""
    size: int
    """Images of a batch."""
    started: float
    """When the host began what the job is a part of."""
    pictures: dict[tuple[int, int], Image.Image] = field(default_factory=dict)
    """(Batch, position) -> a picture that was drawn to its end."""
    prompts: list[str] = field(default_factory=list)
    """Of the plain batch that was drawn last."""

    @staticmethod
    def plain(batch: int) -> bool:
        """Is this batch drawn without guidance?"""
        return batch % 2 == 0

    def decoupled_from(self, batch: int) -> int:
        """How many batches are drawn decoupled, of those that are not drawn yet when this one is about to be."""
        return sum(not self.plain(one) for one in range(batch, 2 * self.batches))

    def pair_up(self, batch: int) -> None:
        """Give a plain batch's partner what it has itself; scripts that ran after us may have filled the lists anew."""
        if self.plain(batch):
            first = batch * self.size
            for values in filter(None, (getattr(self.p, name, None) for name in LISTS)):
                values[first + self.size : first + 2 * self.size] = values[first : first + self.size]

    def same_prompts(self) -> bool:
        """Has the batch that is about to be drawn the prompts of its partner, as far as that is drawn?"""
        if self.plain(self.p.iteration):
            self.prompts = list(self.p.prompts)
        return self.prompts == list(self.p.prompts)

    def keep(self, picture: Image.Image) -> None:
        """Keep a finished picture of the batch that the host is at."""
        self.pictures[self.p.iteration, self.p.batch_index] = picture

    def pairs(self) -> Iterator[tuple[int, Image.Image, Image.Image]]:
        """The decoupled picture's number in the job, the plain and the decoupled picture, where both are there."""
        for batch in range(1, 2 * self.batches, 2):
            for k in range(self.size):
                two = self.pictures.get((batch - 1, k)), self.pictures.get((batch, k))
                if two[0] and two[1]:
                    yield batch * self.size + k, two[0], two[1]


def begin(p: Any, state: Any) -> Comparison:
    """Double the batches of a job whose lists are filled. Raises ValueError where it can't be; then nothing is changed.

    ``state``: the host's progress, whose count of batches is kept right.
    """
    if script := reasons.selected_script(p):
        raise ValueError(f'the script "{script}" draws its own pictures; choose None under Script')
    images = len(getattr(p, "init_images", None) or ())
    size = images if 1 < images <= p.batch_size else p.batch_size  # as img2img will set it
    lists = {name: values for name in LISTS if (values := getattr(p, name, None)) is not None}
    batches = min(p.n_iter, -(-len(p.all_prompts) // size))
    short = [name for name, values in lists.items() if len(values) < batches * size]
    if short:
        raise ValueError(f"{len(lists[short[0]])} images don't fill {batches} batches of {size}")
    for name, values in lists.items():
        chunks = [list(values[n * size : (n + 1) * size]) for n in range(batches)]
        setattr(p, name, [value for chunk in chunks for value in chunk * 2])
    borrow(p, n_iter=2 * batches)
    if state.job_count != -1:  # else the host counts p.n_iter itself
        state.job_count += batches
    return Comparison(p, batches, size, state.time_start)


def side_by_side(plain: Image.Image, decoupled: Image.Image, told: str = "decoupled") -> Image.Image:
    """Both pictures in one, each under its name."""
    from modules import images

    names = [[images.GridAnnotation("plain")], [images.GridAnnotation(told)]]
    grid = images.image_grid([plain, decoupled], rows=1)
    return images.draw_grid_annotations(grid, *plain.size, names, [[images.GridAnnotation()]])


def add_pictures(comparison: Comparison, processed: Any, told: Callable[[int], str]) -> str:
    """Add a side-by-side picture for each pair to the job's result, and save it where the host saves grids.

    ``told(number)``: the name above the decoupled picture of that number in the job. Gives a line for the user.
    """
    from modules import images, shared

    p, opts = comparison.p, shared.opts
    before = len(processed.images)
    for number, plain, decoupled in comparison.pairs():
        made = side_by_side(plain, decoupled, told(number))
        infotext = processed.infotext(p, number)
        if opts.enable_pnginfo:
            made.info["parameters"] = infotext
        processed.images.append(made)
        processed.infotexts.append(infotext)
        if opts.grid_save and not p.do_not_save_grid:
            images.save_image(
                made, p.outpath_grids, "compare", p.all_seeds[number], p.all_prompts[number], opts.grid_format,
                info=infotext, short_filename=not opts.grid_extended_filename, p=p, grid=True,
                suffix="-compare" if opts.grid_extended_filename else "",  # else seed 0 has the name of the host's grid
            )  # fmt: skip
    return (
        f"Compared with the plain picture: {len(processed.images) - before} of {comparison.batches * comparison.size}"
    )
