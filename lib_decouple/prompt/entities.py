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

from .lexicon import Entry, entry, singulars, verbs
from .syntax import parse

VISIBLE_FROM = 4
"""A noun counts as drawable from this share (0-9) of its senses."""

CONCRETE_FROM = 3
"""The same for a noun that is mostly a living being, an artifact, a plant, food or a natural object."""

_CONCRETE = "aptlfbow"

_DETERMINERS = frozenset(
    "a an the this that these those his her its their my your our some any each every another other several many few"
    " both all most more much either neither such single multiple various numerous lots plenty lot one two three four"
    " five six seven eight nine ten eleven twelve dozen dozens hundred hundreds thousand thousands half".split()
)
_PREPOSITIONS = frozenset(
    "of in on at by with from to into onto over under above below beneath behind beside besides between among amongst"
    " amid amidst through throughout across along around about against near inside outside within toward towards upon"
    " off out up down before after during for as like than via per beyond underneath atop past next opposite until"
    " till since despite except surrounded".split()
)
_OTHERS = frozenset(
    "and or but nor so yet while when where which who whom whose what if because although though then there here not"
    " i you he she it we they me him us them himself herself itself themselves myself yourself someone something"
    " everyone everything anyone anything nobody nothing am is are was were be been being has have had having do does"
    " did doing can could will would shall should may might must let lets make makes made get gets got very too also"
    " just only even still again ever never always often together away back apart alone please how why".split()
)
_SKIPPED_AFTER = frozenset(["no", "without", "style", "styled", "inspired"])
_NUMBERED = re.compile(r"(\d+|multiple)\+?([a-z]+)")


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
    tight: bool
    """Nothing but a hyphen or an underscore stands before it."""
    owner: bool = False
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
        tight = bool(clause) and not gap.strip("\\")
        if "\n" in gap:
            yield clause
            clause = []
        end = span.end
        if span.kind == "word" and not quoted:
            text = span.text.lower().replace("’", "'")
            owner = text.endswith("'s")
            text = text.removesuffix("'s")
            joined = tight and clause and prompt[span.start - 1] in "_"
            clause.append(_Token(text, span.start, span.start + len(text), span.text[0].isupper(), bool(joined), owner))
        elif span.kind == "weight" or (span.kind == "punctuation" and set(span.text) <= {"_", "-", "'"} and tight):
            continue
        else:
            if span.kind == "punctuation" and span.text.count('"') % 2 and (quoted or '"' in prompt[end:]):
                quoted = not quoted
            yield clause
            clause = []
    yield clause


def _of_clause(clause: list[_Token]) -> Iterator[Entity]:
    """The entities of one clause."""
    run: list[_Unit] = []
    opened = named = False
    i = 0
    skipping = False
    while i < len(clause):
        token, after = clause[i], clause[i + 1] if i + 1 < len(clause) else None
        if _ends_clause(clause, i):
            break
        if token.text in _DETERMINERS or token.text in _PREPOSITIONS or token.text in _OTHERS or token.text == "no":
            yield from _of_run(run, opened, token.text, named) if not skipping else ()
            named = named or bool(run)
            if run or token.text in ("no", "without"):
                skipping = token.text in ("no", "without")
            run, opened = [], token.text in _DETERMINERS or (opened and not run)
            i += 1
            continue
        unit = _unit(clause, i)
        if unit.tokens == 1 and _is_verb(token, after, run, opened):
            yield from _of_run(run, opened, token.text, named) if not skipping else ()
            named, run, opened, skipping = named or bool(run), [], False, False
        else:
            run.append(unit)
            if clause[i + unit.tokens - 1].owner:
                yield from _of_run(run, opened, "'s", named) if not skipping else ()
                named, run, opened = True, [], True
        i += unit.tokens
    if not skipping:
        yield from _of_run(run, opened, "", named)


def _ends_clause(clause: Sequence[_Token], i: int) -> bool:
    """Whether what follows names a style or an artist."""
    words = [token.text for token in clause[i : i + 4]]
    if words[0] in ("style", "styled", "inspired") and (i == 0 or words[1:2] in (["of"], ["by"])):
        return True
    if words[0] == "in" and "style" in words[1:4]:
        return True
    if words[0] != "by" or len(words) == 1:
        return False
    known = entry(words[1]) or any(entry(one) for one in singulars(words[1]))
    return words[1] not in _DETERMINERS and (clause[i + 1].capital or not known or i == 0)


def _unit(clause: Sequence[_Token], i: int) -> _Unit:
    """The longest compound that starts at ``i``, or the word itself."""
    for length in (4, 3, 2):
        tokens = clause[i : i + length]
        if len(tokens) < length or any(token.owner for token in tokens[:-1]):
            continue
        text = " ".join(token.text for token in tokens)
        found, plural = _noun(text)
        if found:
            return _Unit(text, tokens[0].start, tokens[-1].end, found, plural, length, False)
    token = clause[i]
    if match := _NUMBERED.fullmatch(token.text):
        found, _ = _noun(match[2])
        counted = found if found and _visible(found) and len(match[2]) > 2 else Entry("-", 0, 0, 0, 9)
        return _Unit(token.text, token.start, token.end, counted, False, 1, False)
    found, plural = _noun(token.text)
    if found is None and "-" in token.text:
        found, plural = _noun(token.text.rpartition("-")[2])
        if found and not found.visible:
            found = Entry("-", 0, 0, 0, 9)
    if found is None and (re.search(r"\d", token.text) or len(token.text) < 2):
        found = Entry("-", 0, 0, 0, 9)
    return _Unit(token.text, token.start, token.end, found, plural, 1, token.capital)


def _noun(text: str) -> tuple[Entry | None, bool]:
    """The likeliest entry of ``text`` as it stands or as a plural, and whether it is one."""
    found = entry(text)
    for one in singulars(text):
        base = entry(one)
        if base and base.noun and (found is None or base.visible > found.visible):
            return base, True
    return found, False


def _is_verb(token: _Token, after: _Token | None, run: Sequence[_Unit], opened: bool) -> bool:
    """Whether ``token`` is a verb or participle here, which no noun phrase goes across."""
    found, plural = _noun(token.text)
    forms = list(verbs(token.text))
    follows = after is not None and (after.text in _DETERMINERS or after.text in _PREPOSITIONS or after.text in _OTHERS)
    for form, verb in forms:
        if form in ("ing", "ed"):
            solid = found is not None and not plural and found.noun >= 5 and found.visible >= VISIBLE_FROM
            if not solid or (form == "ing" and run and follows and after and after.text in _DETERMINERS):
                return True
        elif run and not run[-1].plural and verb.verb >= 2 and follows and not (opened and len(run) == 0):
            return run[-1].entry is not None and run[-1].entry.noun >= 5
    if found and run and run[-1].plural and found.verb >= 3 and follows:
        return True
    return False


def _of_run(run: list[_Unit], opened: bool, boundary: str, named: bool) -> Iterator[Entity]:
    """The entity that a run of nouns and adjectives names: its head, with the nouns that make a compound of it."""
    head = len(run) - 1
    while head >= 0 and not _may_head(run[head], opened or head > 0, head == len(run) - 1):
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
        if found.kind != "m" and not _visible(found):
            return
    first = head
    while first and _modifies(run[first - 1], unit):
        first -= 1
    text = " ".join(part.text for part in run[first : head + 1])
    yield Entity(text, run[first].start, unit.end)


def _visible(found: Entry) -> bool:
    return found.visible >= (CONCRETE_FROM if found.kind in _CONCRETE else VISIBLE_FROM)


def _may_head(unit: _Unit, led: bool, last: bool) -> bool:
    """Whether ``unit`` can be the noun that a run ends in; a word unknown to the lexicon only after an article."""
    found = unit.entry
    if found is None:
        return led and last
    if found.kind == "-" and not found.noun:
        return False
    if unit.plural or unit.tokens > 1 or _NUMBERED.fullmatch(unit.text):
        return True
    return found.noun + found.verb >= found.adjective


def _modifies(unit: _Unit, head: _Unit) -> bool:
    """Whether ``unit`` before ``head`` makes a compound with it, rather than being said of it."""
    found = unit.entry
    if found is None or found.material or found.kind in "-smyn" or unit.text[0].isdigit():
        return False
    if found.kind == "p" and head.entry and head.entry.kind in "ap":
        return False
    if unit.tokens == 1 and unit.text.endswith("ing") and any(form == "ing" for form, _ in verbs(unit.text)):
        return False
    return found.visible >= VISIBLE_FROM and found.noun >= 6 > found.adjective
