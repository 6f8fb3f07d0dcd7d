"""The drawable things that a prompt names, found by rules and a lexicon: no model, no download.

``suggest("a photo of an old man walking his dog")`` is ``["man", "dog"]``. An entity is a noun or a
compound ("traffic light"), as written but in lower case, without determiner and adjectives.

What counts, where one may differ: places and scenery that the prompt names ("beach", "sky"), parts
of the body ("hair") and clothes do. Of "a cup of coffee" both do; of "a herd of sheep", "a photo of
a cat" and "a robot made of glass" only "sheep", "cat" and "robot". A material before a noun is an
adjective ("leather jacket" is "jacket"). "1girl" is an entity, "solo" is none. Light, weather's mood,
style, medium, quality, named artists and what follows "no" or "in the style of" do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .lexicon import Entry, begins_compound, entry, singulars, verbs
from .syntax import parse

VISIBLE_FROM = 4
"""A noun counts as drawable from this share (0-9) of its senses."""

CONCRETE_FROM = 3
"""The same for a noun that is mostly a living being, an artifact, a plant, food or a natural object."""

SURELY = 7
"""The same for an -ing form after a noun: "an apartment building", but "a motorcycle hanging on a wall"."""

_CONCRETE = "aptlfbow"

_ARTICLE, _DENIAL, _SMALL = "D", "N", "DPON"
"""Kinds of small words: determiners and numbers; what denies the next noun; any small word."""
_SAME_PAST = frozenset(["set", "cast", "cut", "hit", "put", "shut", "split", "spread", "burst"])
_BEING = frozenset(["is", "are", "was", "were", "be", "being", "been"])
_SUBJECTS = frozenset(["i", "you", "he", "she", "it", "we", "they", "who", "which"])
_MAKING = frozenset(["made", "out", "crafted", "carved", "built", "sculpted", "constructed", "formed", "woven"])
_NUMBERED = re.compile(r"\d+([a-z]+)")
_ADJECTIVE = Entry("-", 0, 0, 0, 9)
_NOUN = Entry("x", 0, 9, 0, 0)


@dataclass(frozen=True)
class Entity:
    """A drawable thing and where the prompt names it."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class _Token:
    text: str
    start: int
    end: int
    capital: bool
    owner: bool
    """It ends in "'s"."""


@dataclass(frozen=True)
class _Unit:
    """One or more tokens that the lexicon knows as one noun, or one token."""

    text: str
    start: int
    end: int
    entry: Entry | None
    plural: bool
    tokens: int
    capital: bool


def suggest(prompt: str) -> list[str]:
    """The drawable things named in ``prompt``, each once, in the order of their first mention."""
    return list(dict.fromkeys(entity.text for entity in locate(prompt)))


def locate(prompt: str) -> tuple[Entity, ...]:
    """Every mention of a drawable thing in ``prompt``, in order."""
    found: list[Entity] = []
    for clause in _clauses(prompt):
        found.extend(_of_clause(clause))
    return tuple(found)


def _clauses(prompt: str) -> Iterator[list[_Token]]:
    """Runs of words between signs that end a phrase."""
    clause: list[_Token] = []
    end, quoted = 0, False
    for span in parse(prompt):
        gap = prompt[end : span.start]
        if "\n" in gap:
            yield clause
            clause = []
        end = span.end
        if span.kind == "word" and not quoted:
            text = span.text.lower().replace("’", "'")
            owner = text.endswith("'s")
            text = text.removesuffix("'s")
            clause.append(_Token(text, span.start, span.start + len(text), span.text[0].isupper(), owner))
        elif span.kind == "weight" or (span.kind == "punctuation" and set(span.text) <= {"_", "-", "'"} and not gap):
            continue
        else:
            if span.kind == "punctuation" and span.text.count('"') % 2 and (quoted or '"' in prompt[end:]):
                quoted = not quoted
            yield clause
            clause = []
    yield clause


def _of_clause(clause: list[_Token]) -> Iterator[Entity]:
    """The entities of one clause: it falls into runs of nouns and adjectives between verbs and small words."""
    run: list[_Unit] = []
    opened = named = skipped = made_of = False
    i = 0
    while i < len(clause) and not _names_style(clause, i):
        text = clause[i].text
        small = _is_small(text, _SMALL)
        unit = _unit(clause, i)
        if not small and not (unit.tokens == 1 and _is_verb(clause, i, run)):
            run.append(unit)
            i += unit.tokens
            if not clause[i - 1].owner:
                continue
            small, text = True, "'s"
        else:
            i += 1
        if not skipped:
            yield from _of_run(run, opened, text, named, made_of)
        named = named or bool(run)
        opened = _is_small(text, _ARTICLE) or text == "'s" or (opened and small and not run)
        denied = _is_small(text, _DENIAL) or (small and _names_artist(clause, i - 1))
        skipped = denied or (skipped and small and (not run or text == "and"))
        making = text in ("of", "from") and i > 1 and clause[i - 2].text in _MAKING
        made_of = making or (made_of and small and not run)
        run = []
    if not skipped:
        yield from _of_run(run, opened, "", named, made_of)


def _names_style(clause: Sequence[_Token], i: int) -> bool:
    """Whether the rest of the clause names a style."""
    words = [token.text for token in clause[i : i + 4]]
    if words[0] in ("style", "styled", "inspired"):
        return i == 0 or words[1:2] in (["of"], ["by"])
    return words[0] == "in" and "style" in words[1:4]


def _names_artist(clause: Sequence[_Token], i: int) -> bool:
    """Whether ``by`` is followed by a name rather than by a place."""
    if clause[i].text != "by" or i + 1 == len(clause):
        return False
    text = clause[i + 1].text
    known = entry(text) or any(entry(one) for one in singulars(text))
    return not _is_small(text, _ARTICLE) and (clause[i + 1].capital or not known or i == 0)


def _unit(clause: Sequence[_Token], i: int) -> _Unit:
    """The longest compound that starts at ``i``, or the word itself."""
    for length in (3, 2) if begins_compound(clause[i].text) else ():
        tokens = clause[i : i + length]
        if len(tokens) < length or any(token.owner for token in tokens[:-1]):
            continue
        text = " ".join(token.text for token in tokens)
        found, plural = _noun(text)
        if found and not all(_describes(token.text) for token in tokens):
            return _Unit(text, tokens[0].start, tokens[-1].end, found, plural, length, False)
    token = clause[i]
    if match := _NUMBERED.fullmatch(token.text):
        found, _ = _noun(match[1])
        counted = found if found and _visible(found) and len(match[1]) > 2 else _ADJECTIVE
        return _Unit(token.text, token.start, token.end, counted, False, 1, False)
    found, plural = _noun(token.text)
    if found is None and "-" in token.text:
        last = token.text.rpartition("-")[2]
        found, plural = _noun(last)
        if found and not _visible(found):
            found = _ADJECTIVE
        elif found and token.text[0].isdigit():
            return _Unit(last, token.end - len(last), token.end, found, plural, 1, False)
    if found is None and (re.search(r"\d", token.text) or len(token.text) < 2):
        found = _ADJECTIVE
    return _Unit(token.text, token.start, token.end, found, plural, 1, token.capital)


def _describes(text: str) -> bool:
    """Whether the word is mostly an adjective: "small white" is a butterfly, but hardly in a prompt."""
    found = entry(text)
    return found is not None and found.adjective > found.noun + found.verb


def _noun(text: str) -> tuple[Entry | None, bool]:
    """The likeliest entry of ``text`` as it stands or as a plural, and whether it is one."""
    found = entry(text)
    for one in singulars(text):
        base = entry(one)
        if base and base.noun and (found is None or base.visible > found.visible):
            return base, True
    return found, False


def _is_verb(clause: Sequence[_Token], i: int, run: Sequence[_Unit]) -> bool:
    """Whether the word is a verb or participle here, which no noun phrase goes across."""
    text = clause[i].text
    before = clause[i - 1].text if i else ""
    after = clause[i + 1].text if i + 1 < len(clause) else ""
    found, plural = _noun(text)
    noun_before = bool(run) and _may_head(run[-1], True)
    follows = _is_small(after, _SMALL) or (entry(after) or _NOUN).adjective >= 8
    for form, verb in verbs(text):
        if form == "ing":
            solid = found is not None and not plural and found.noun >= 5 and (_visible(found) or found.kind == "m")
            if not solid or found is None or before in _BEING:
                return not plural
            sure = found.visible >= SURELY or (found.kind == "m" and (after == "of" or not follows))
            if noun_before and (_is_small(after, _ARTICLE) or not sure):
                return True
        elif form == "ed":
            solid = found is not None and found.noun >= 5 and _visible(found) and not text.endswith("ed")
            if not solid or (noun_before and follows):
                return True
        elif verb.verb >= (4 if found and _visible(found) else 2) and (
            before == "that" or before in _SUBJECTS or (noun_before and not run[-1].plural and follows)
        ):
            return True
    if found is None or found.verb < 3:
        return False
    only = found.verb >= 8 or text in _SAME_PAST  # "a cat and a dog walk into"
    return before in _SUBJECTS or (follows and (before == "to" or (noun_before and (run[-1].plural or only))))


def _of_run(run: list[_Unit], opened: bool, boundary: str, named: bool, made_of: bool) -> Iterator[Entity]:
    """The entity that a run of nouns and adjectives names: its head, with the nouns that make a compound of it."""
    while run and run[-1].text.isdigit():
        run = run[:-1]
    head = len(run) - 1
    while head >= 0 and not _may_head(run[head], _is_led(run, head, opened)):
        if run[head].entry is None and not _is_inflected(run[head].text):
            return
        head -= 1
    if head < 0:
        return
    unit = run[head]
    found = unit.entry
    if found is not None:
        if boundary == "of" and found.kind in "cmy":
            return
        if found.kind in "my" and not (opened and named):
            return
        if made_of and (found.described or found.kind == "s"):
            return
        if found.kind != "m" and not _visible(found, opened and boundary != "of"):
            return
    first = head
    while first and _modifies(run[first - 1], unit):
        first -= 1
    text = " ".join(part.text for part in run[first : head + 1])
    yield Entity(text, run[first].start, unit.end)


def _is_small(text: str, kinds: str) -> bool:
    found = entry(text)
    return found.kind in kinds if found else text.endswith("n't") and "O" in kinds


def _is_inflected(text: str) -> bool:
    """Whether a word that the lexicon does not know looks like a participle or an adverb."""
    return text.endswith(("ing", "ed", "ly"))


def _visible(found: Entry, counted: bool = False) -> bool:
    """Whether a noun is drawable; after an article ("counted") its abstract senses are less likely."""
    concrete = found.kind in _CONCRETE or (counted and found.kind == "x")
    return found.visible >= (CONCRETE_FROM if concrete else VISIBLE_FROM)


def _is_led(run: Sequence[_Unit], i: int, opened: bool) -> bool:
    """Whether an article or an adjective leads to ``run[i]``, which makes a noun of an unknown word."""
    if i == 0 or i < len(run) - 1:
        return opened and i == len(run) - 1
    before = run[i - 1].entry
    return opened or (before is not None and before.adjective > before.noun and not re.search(r"\d", run[i - 1].text))


def _may_head(unit: _Unit, led: bool) -> bool:
    """Whether ``unit`` can be the noun that a run ends in."""
    found = unit.entry
    if found is None:
        return led and not _is_inflected(unit.text)
    if found.kind == "-" and not found.noun:
        return False
    if unit.plural or unit.tokens > 1 or _NUMBERED.fullmatch(unit.text):
        return True
    return found.noun + found.verb >= found.adjective


def _modifies(unit: _Unit, head: _Unit) -> bool:
    """Whether ``unit`` before ``head`` makes a compound with it, rather than being said of it."""
    found = unit.entry
    occasion = found is not None and found.kind == "d" and head.entry is not None and head.entry.kind in "tg"
    if (
        found is None
        or (found.kind in "-dhmnqsy" and not occasion)
        or unit.text[0].isdigit()
        or (unit.capital and found.kind in "px")
    ):
        return False
    if found.described and unit.tokens == 1 and not (head.entry and head.entry.kind in "fl"):
        return False
    if found.kind == "p" and head.entry and head.entry.kind in "alf":
        return False
    if unit.tokens == 1 and unit.text.endswith("ing") and any(form == "ing" for form, _ in verbs(unit.text)):
        return False
    return found.noun >= 1 and found.noun + found.verb >= 6 > found.adjective
