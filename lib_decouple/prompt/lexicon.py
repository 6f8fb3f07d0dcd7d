"""Words looked up in a compact table made from Princeton WordNet 3.0 (``data/README.md``)."""

from __future__ import annotations

import re
import unicodedata
import zlib
from bisect import bisect_left
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

LONGEST = 60
"""Characters of the longest word that is looked up."""

VISIBLE_FROM = 4
"""A noun counts as drawable from this share (0-9) of its senses."""
CONCRETE_FROM = 3
"""The same for a noun that is mostly a living being, an artifact, a plant, food or a natural object."""
CONCRETE = "aptlfbow"
"""The kinds of these."""
ARTICLE, DENIAL, SMALL = "D", "N", "DPON"
"""Kinds of small words: determiners and numbers; what denies the next noun; any small word."""

_FILE = Path(__file__).with_name("data") / "lexicon.zz"


class Entry(NamedTuple):
    """What the table knows of a word. Shares are 0 (never) to 9 (always)."""

    kind: str
    """Of the thing that the noun mostly names; the letters are those of ``data/build.py``."""
    visible: int
    """How far the noun's senses are visible things."""
    noun: int
    verb: int
    adjective: int
    """Or adverb."""
    described: bool = False
    """Before another noun it is a material, a colour or an age."""
    worn: bool = False
    """A body wears it."""
    large: bool = False
    """Nobody holds it in a hand."""
    scenery: bool = False
    weather: bool = False
    coloured: bool = False
    """It is a colour, too."""


@lru_cache(maxsize=1)
def _table() -> list[bytes]:
    return zlib.decompress(_FILE.read_bytes()).split(b"\n")


def load() -> None:
    """Read the table now, some 20 ms, rather than at the first look-up."""
    _table()


def _place_of(word: str) -> int:
    """Of the first line whose word is not before ``word``; the lines are sorted, and a tab comes before all letters."""
    return bisect_left(_table(), word.encode())


def _code(word: str) -> str | None:
    table, place = _table(), _place_of(word)
    name, _, code = table[place].partition(b"\t") if place < len(table) else (b"", b"", b"")
    return code.decode() if name == word.encode() else None


def plain(word: str) -> str:
    """``word`` as the table writes it, without accents: "creme" of "crème"."""
    if word.isascii():
        return word
    letters = unicodedata.normalize("NFD", word)
    return "".join(char for char in letters if not unicodedata.combining(char))


@lru_cache(maxsize=8192)
def begins_compounds(word: str) -> bool:
    """Whether a compound of the table has ``word`` as its first word."""
    return len(word) <= LONGEST and _line_begins(plain(word) + " ", b"")


@lru_cache(maxsize=8192)
def begin_compound(first: str, second: str) -> bool:
    """Whether a compound of the table begins with these two words as they stand."""
    return (
        begins_compounds(first) and len(second) <= LONGEST and _line_begins(f"{plain(first)} {plain(second)}", b"\t ")
    )


def _line_begins(text: str, behind: bytes) -> bool:
    """Whether a line of the table begins with ``text`` and, where any are given, one of the signs ``behind`` it; no
    sign comes before these."""
    table, place, begin = _table(), _place_of(text), text.encode()
    line = table[place] if place < len(table) else b""
    return line.startswith(begin) and (not behind or line[len(begin) : len(begin) + 1] in (behind[:1], behind[1:]))


@cache
def _decoded(code: str) -> Entry:
    """The entry that a code of the table stands for; there are some hundred codes."""
    visible, noun, verb, adjective = map(int, code[1:5])
    return Entry(code[0], visible, noun, verb, adjective, *[letter in code[5:] for letter in "mgvnwc"])


@lru_cache(maxsize=8192)
def _entry_and_lemma(word: str) -> tuple[Entry | None, str]:
    """The entry of ``word``, and what it is an irregular form of, or ""."""
    code, _, lemma = (_code(plain(word)) or "").partition("=") if len(word) <= LONGEST else ("", "", "")
    return _decoded(code) if code else None, lemma


def entry(word: str) -> Entry | None:
    """The entry of ``word`` as written, lower case; None where the table has none."""
    return _entry_and_lemma(word)[0]


@lru_cache(maxsize=8192)
def singulars(word: str) -> tuple[str, ...]:
    """What ``word``, one word or a compound, may be the plural of."""
    found = []
    head, space, last = word.rpartition(" ")
    if (irregular := _entry_and_lemma(last)[1]) and not last.endswith("ing"):
        found.append(head + space + irregular)
    if last.endswith("men"):
        found.append(head + space + last[:-2] + "an")
    if len(last) > 3 and last.endswith("s") and not last.endswith(("ss", "us")):
        if last.endswith("ies"):
            found.append(head + space + last[:-3] + "y")
        if last.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
            found.append(head + space + last[:-2])
        found.append(head + space + last[:-1])
    return tuple(found)


@lru_cache(maxsize=8192)
def verbs(word: str) -> tuple[tuple[str, Entry], ...]:
    """The form ("ing", "ed" or "s") and the entry of each verb that ``word`` may be a form of."""
    forms: list[tuple[str, Entry]] = []
    irregular = "" if word.endswith(("er", "est")) else _entry_and_lemma(word)[1]  # "drier" is no form of a verb
    if irregular not in ("", word) and (found := entry(irregular)) and found.verb:
        forms.append(("ing" if word.endswith("ing") else "ed", found))
    for ending in ("ing", "ed", "es", "s"):
        stem = word.removesuffix(ending)
        if stem == word or len(stem) < 2 or not re.search("[aeiouy]", stem):
            continue
        for base in (stem, stem + "e", stem[:-1] if stem[-1:] == stem[-2:-1] else "", stem[:-1] + "y"):
            if base and (found := entry(base)) and found.verb:
                forms.append(("s" if ending in ("es", "s") else ending, found))
                break
    return tuple(forms)


def is_bare_noun(text: str) -> bool:
    """Whether a word can't but name a thing that is seen: "not dog", unlike "not scary"."""
    found, _ = likely_noun(text)
    return found is not None and found.noun >= 6 and is_visible(found)


@lru_cache(maxsize=8192)
def likely_noun(text: str) -> tuple[Entry | None, bool]:
    """The likeliest entry of ``text`` as it stands or as a plural, and whether it is one."""
    found = entry(text)
    for one in singulars(text):
        base = entry(one)
        if base and base.noun and (found is None or base.visible > found.visible):
            return base, True
    return found, False


def is_small(text: str, kinds: str) -> bool:
    """Whether a word is a small one of one of these kinds."""
    return _small_kind(text) in kinds


@lru_cache(maxsize=8192)
def _small_kind(text: str) -> str:
    """Of a small word which of their kinds it is, of any other "-"."""
    found = entry(text)
    return found.kind if found and found.kind in SMALL else "O" if not found and text.endswith("n't") else "-"


def is_visible(found: Entry, counted: bool = False) -> bool:
    """Whether a noun is drawable; after an article ("counted") its abstract senses are less likely."""
    concrete = found.kind in CONCRETE or (counted and found.kind == "x")
    return found.visible >= (CONCRETE_FROM if concrete else VISIBLE_FROM)
