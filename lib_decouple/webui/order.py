"""A job's pictures in another order than they were drawn in, or without some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import map_files

LISTS = ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds")
"""What the host's result holds for each of its pictures, beside the pictures and their infotexts."""


def put(best_first: Sequence[int], p: Any, processed: Any) -> str:
    """Put the pictures of ``processed`` into this order, the others behind them as they are, each with its infotext,
    prompts and seeds; gives why not, or "". What the host saved, its grid among it, stays as it is.

    Pictures are known by their number in the job ``p``, whose own lists are left alone.
    """
    first = processed.index_of_first_image
    count = min(len(processed.images) - first, len(processed.infotexts) - first, len(p.all_prompts))
    if map_files.driven(p):
        return "the script that draws them counts them"
    if any(map_files.place(p, processed, number) != first + number for number in range(count)):
        return "masks stand between them"
    order = [number for number in best_first if number < count]
    order += [number for number in range(count) if number not in order]
    for name, start in (("images", first), ("infotexts", first), *((name, 0) for name in LISTS)):
        values = list(getattr(processed, name))
        values[start : start + count] = [values[start + number] for number in order]
        setattr(processed, name, values)
    if count:
        processed.seed, processed.subseed = processed.all_seeds[0], processed.all_subseeds[0]
    if count and not first:
        processed.info = processed.infotexts[0]
    return ""


def leave_out(numbers: Sequence[int], p: Any, processed: Any) -> None:
    """Take these of the job's pictures out of ``processed``, each with its masks, infotext, prompts and seeds."""
    first = processed.index_of_first_image
    places = {number: map_files.place(p, processed, number) for number in numbers}
    for number, place in sorted(places.items(), reverse=True):
        if place is not None:
            del processed.images[place : place + map_files.stride(p)]
            del processed.infotexts[first + number]
    for name in LISTS:
        kept = [value for number, value in enumerate(getattr(processed, name)) if number not in places]
        setattr(processed, name, kept)
    if processed.infotexts:
        processed.info = processed.infotexts[0]
