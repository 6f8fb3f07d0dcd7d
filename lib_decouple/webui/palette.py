"""The entities' colours, on chips, maps and plots."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from zlib import crc32

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00")
"""Okabe and Ito's, which people with impaired colour vision tell apart (https://jfly.uni-koeln.de/color/), without
black and without the blue on which black text has a contrast below 4.5."""

MOST_NAMES = 1000
"""That are remembered."""

_remembered: OrderedDict[str, str] = OrderedDict()
_lock = Lock()


def colours(entities: Sequence[str]) -> list[str]:
    """A colour for each of an image's entities, none twice before all are used.

    An entity keeps the colour that it was given last, wherever and with whatever others it is shown, as long as the
    WebUI runs: so chips, maps and plots agree, and taking one entity out changes no other's. A new name decides its
    own colour, or takes the next that is free.
    """
    with _lock:
        found: dict[int, str] = {}
        age = {name: number for number, name in enumerate(reversed(_remembered))}
        for start in range(0, len(entities), len(COLOURS)):
            found.update(_of_six(range(start, min(start + len(COLOURS), len(entities))), entities, age))
        for place, name in enumerate(entities):
            _remembered[_key(name)] = found[place]
            _remembered.move_to_end(_key(name))
        while len(_remembered) > MOST_NAMES:
            _remembered.popitem(last=False)
    return [found[place] for place in range(len(entities))]


def _of_six(places: Sequence[int], entities: Sequence[str], age: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """Colours of at most six places, those of remembered names first; of two that had the same, the one shown last."""
    free = list(COLOURS)
    left = []
    for place in sorted(places, key=lambda one: age.get(_key(entities[one]), 0)):
        known = _remembered.get(_key(entities[place]))
        if known in free:
            free.remove(known)
            yield place, known
        else:
            left.append(place)
    for place in sorted(left):
        own = crc32(_key(entities[place]).encode("utf-8", "surrogatepass")) % len(COLOURS)
        colour = next(one for one in COLOURS[own:] + COLOURS[:own] if one in free)
        free.remove(colour)
        yield place, colour


def _key(name: str) -> str:
    return name.lower()
