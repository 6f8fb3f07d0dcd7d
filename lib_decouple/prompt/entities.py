"""The drawable things that a prompt names, found by rules and a lexicon: no model, no download.

``suggest("a photo of an old man walking his dog")`` is ``["man", "dog"]``. An entity is a noun or a
compound ("traffic light"), as written but in lower case, without determiner and adjectives.

What counts, where one may differ: places and scenery that the prompt names ("beach", "sky"), parts
of the body ("hair") and clothes do. Of "a cup of coffee" both do; of "a herd of sheep", "a photo of
a cat" and "a robot made of glass" only "sheep", "cat" and "robot". A material before a noun is an
adjective ("leather jacket" is "jacket"). "1girl" is an entity, "solo" is none; a tag's bracketed
qualifier belongs to it (``kiwi \\(bird\\)`` is "kiwi (bird)", ``kiwi_(bird)`` with brackets that weight it "kiwi
bird"). Light, weather's mood, style, medium, quality,
named artists, words that stand written in the picture, what follows "in the style of", and whatever the
prompt takes away ("no", "without", a weight of 0 or less) do not count.

The same noun twice is one thing when it is named again ("a cat … the cat"), and two where an article or an
attribute says so. Two are told apart by the fewest words of the prompt that do ("red apple", "green apple"),
and where none do by their number ("man", "man@2").
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

from .clauses import JOINS, TITLES, Clause, Token, quotes, split, writing
from .denials import ASKING, BEING, NEGATABLE, Denial, denial, denied_clauses, denies, in_one_word
from .lexicon import (
    ARTICLE,
    CONCRETE,
    SMALL,
    Entry,
    begin_compound,
    begins_compounds,
    entry,
    is_bare_noun,
    is_small,
    is_visible,
    likely_noun,
    plain,
    singulars,
    verbs,
)
from .syntax import HOST, Dialect, Span, parse

_SURELY = 7
"""A noun counts as drawable from this share of its senses where it is an -ing form behind a noun: "an apartment
building", but "a motorcycle hanging on a wall"."""
_SAME_PAST = frozenset(["set", "cast", "cut", "hit", "put", "shut", "split", "spread", "burst"])
_SUBJECTS = frozenset(["i", "you", "he", "she", "it", "we", "they", "who", "which"])
_MAKING = frozenset(["made", "out", "crafted", "carved", "built", "sculpted", "constructed", "formed", "woven"])
_DEFINITE = frozenset(["the", "this", "that", "these", "those", "his", "her", "its", "their", "my", "our", "your"])
POSSESSIVE = frozenset(["his", "her", "its", "their", "my", "your", "our", "whose"])
_NO_THING = frozenset(["medium", "style", "artist", "series", "game", "song", "company", "meme", "source", "anime"])
_NO_THING |= {
    "manga",
    "franchise",
    "theme",
    "pose",
    "gesture",
    "genre",
    "concept",
    "film",
    "movie",
    "color",
    "colour",
    "emotion",
    "cosplay",
    "font",
    "brand",
    "band",
}
"""A qualifier of these says that the tag names no thing."""
_MOST_ATTRIBUTES = 8
"""Words before a noun by which it is told from others of its name."""
_NUMBERED = re.compile(r"\d+([a-z]+)")
_ADJECTIVE = Entry("-", 0, 0, 0, 9)
_NOUN = Entry("x", 0, 9, 0, 0)
_PERSON = Entry("p", 9, 9, 0, 0)
_OTHERWISE = {"can": Entry("t", 9, 9, 0, 0), "back": Entry("b", 9, 9, 0, 0)}
"""Small words that are things where they aren't small words."""
_TOWARDS = frozenset(
    ["next", "close", "due", "opposite", "similar", "compared", "adjacent", "tied", "chained", "attached"]
)
"""Behind these, "to" leads to a thing, not to what is done."""
_BASIC = frozenset(
    ["cat", "dog", "horse", "cow", "pig", "sheep", "goat", "lion", "tiger", "bear", "wolf", "fox", "rabbit"]
)
_BASIC |= {
    "mouse",
    "elephant",
    "monkey",
    "frog",
    "duck",
    "owl",
    "penguin",
    "snake",
    "turtle",
    "deer",
    "zebra",
    "giraffe",
}
_BASIC |= {
    "panda",
    "koala",
    "kangaroo",
    "squirrel",
    "hedgehog",
    "otter",
    "parrot",
    "swan",
    "crocodile",
    "camel",
    "donkey",
}
"""Animals that nobody puts before another to say of what kind it is: "cat dog" are two."""
_SIZES = frozenset(["big", "small", "little", "large", "tall", "short", "tiny", "huge", "giant", "old", "young", "fat"])
"""No noun stands before these in a name: "big dog little dog" are two."""
_INSIDES = frozenset(["interior", "interiors", "exterior", "exteriors"])
"""Behind a noun that can be seen these are seen, too."""
_HANGS = frozenset(["mural", "painting", "portrait", "poster", "photo", "photograph", "drawing", "mosaic", "fresco"])
"""Pictures that are things in another: "a man with a portrait of a dog"."""
_LED = frozenset(["interior", "area"])
"""These are seen where an article leads to them: "a truck with a blue interior"."""
_LAMPS = frozenset(["light", "spotlight"])
"""So are these where nothing is said of them: "a light above a stove", but "a warm light"."""
_BEHIND = frozenset(["background", "backdrop"])
"""Nouns of the picture; the one before them tells what is there."""


class Entity(NamedTuple):
    """A drawable thing and where the prompt names it."""

    text: str
    """A name that :func:`align.align` understands."""
    start: int
    end: int
    head: Entry | None = None
    """What the lexicon knows of its noun."""
    noun: str = ""
    """It without attributes and number."""
    attributes: tuple[tuple[str, int], ...] = ()
    """The words before it that describe it, each with its start."""
    determiner: str = ""
    joined: bool = False
    """ "and" or the like stands before it."""
    part: int = 0
    """How many ``AND``, ``BREAK`` and the like are before it."""


_entity: Callable[[tuple[object, ...]], Entity] = partial(tuple.__new__, Entity)
"""``Entity(*fields)``, faster."""


class _Unit(NamedTuple):
    """One or more tokens that the lexicon knows as one noun, or one token."""

    text: str
    start: int
    end: int
    entry: Entry | None
    plural: bool
    tokens: int
    capital: bool
    brackets: int = 0
    qualifier: str = ""
    place: Entry | None = None
    """Of a named place, of which the lexicon knows no more."""


def suggest(prompt: str, dialect: Dialect = HOST) -> list[str]:
    """The drawable things named in ``prompt``, each once, in the order of their first mention."""
    return list(dict.fromkeys(entity.text for entity in locate(prompt, dialect)))


def locate(prompt: str, dialect: Dialect = HOST) -> tuple[Entity, ...]:
    """Every mention of a drawable thing in ``prompt``, in order; mentions of the same thing have the same text."""
    return tuple(one for _, own in located(prompt, parse(prompt, dialect)) for one in own)


def located(prompt: str, spans: Sequence[Span]) -> list[tuple[Clause, list[Entity]]]:
    """The clauses of a prompt whose spans these are, each with the drawable things that it mentions. Words in quotes
    count where they aren't writing in the picture, and where without them the prompt names nothing."""
    quoted = quotes(prompt, spans)
    written = writing(prompt, spans, quoted)
    found = split(prompt, spans, quoted, written)
    each = mentions(found)
    if written and not any(each):
        found = split(prompt, spans, quoted, set())
        each = mentions(found)
    named = iter(_named([one for own in each for one in own], spans))
    return [(clause, [next(named) for _ in own]) for clause, own in zip(found, each)]


def mentions(found: Sequence[Clause]) -> list[tuple[Entity, ...]]:
    """The drawable things of each clause."""
    signs = [clause.sign.strip() for clause in found[1:]]
    each = [_told(clause, sign not in ("", ",")) for clause, sign in zip(found, [*signs, "."])]
    denied = denied_clauses(found, [told.denial for told in each])
    return [
        tuple([one for one in told.entities if one.start >= denied[k]]) if k in denied else told.entities
        for k, told in enumerate(each)
    ]


_PRAISE = frozenset(["beautiful", "beautifully", "detailed", "perfect", "perfectly", "cute", "delicate", "gorgeous"])
_PRAISE |= {"pretty", "extremely", "extreme", "highly", "very", "ultra", "realistic", "photorealistic", "intricate"}
_PRAISE |= {"symmetrical", "stunning", "stunningly", "amazing", "lovely", "flawless", "exquisite", "best", "fine"}
"""These tell no thing from another: "detailed eyes, blue eyes" are the same."""


class _Thing:
    """What mentions of the same noun name."""

    def __init__(self, first: int) -> None:
        self.mentions = [first]
        self.part = -1
        """Of its last mention."""
        self.name, self.start = "", 0


def _named(found: Sequence[Entity], spans: Sequence[Span]) -> tuple[Entity, ...]:
    """Names for ``found``, alike for mentions of the same thing alone."""
    named = list(found)
    letters: _Letters | None = None
    for text, several in _grouped(found).items():
        if len(several) < 2:
            continue
        _tell_apart(text, several, found)
        taken: set[str] = set()
        places: list[int] = []
        for thing in several:
            if not thing.name or thing.name in taken:
                letters = letters or _letters(spans)
                places = places or _places(text, letters)
                number = max(1, bisect_right(places, found[thing.mentions[0]].start))
                thing.name, thing.start = text if number == 1 else f"{text}@{number}", -1
            taken.add(thing.name)
            for k in thing.mentions:
                start = thing.start if k == thing.mentions[0] and thing.start >= 0 else found[k].start
                if (thing.name, start) != found[k][:2]:
                    named[k] = found[k]._replace(text=thing.name, start=start)
    return tuple(named)


def _grouped(found: Sequence[Entity]) -> dict[str, list[_Thing]]:
    """The things that mentions of each noun name that is there more than once.

    A mention is of the last thing that is described alike, or of which one of the two says no more than the noun;
    but after "a", "another", a number or "and" it is another thing, unless it stands in another ``AND`` part.
    """
    things: dict[str, list[_Thing]] = {}
    described: dict[tuple[str, frozenset[str]], _Thing] = {}
    order: dict[int, int] = {}
    times = Counter([one.text for one in found])
    for k, one in enumerate(found):
        if times[one.text] == 1:
            continue
        attributes = frozenset(text for text, _ in one.attributes if text not in _PRAISE)
        own = things.setdefault(one.text, [])
        ways = [described.get((one.text, attributes)), described.get((one.text, frozenset()))]
        ways += own[-1:] if not attributes else []
        thing = max((way for way in ways if way), key=lambda way: order[id(way)], default=None)
        if thing and thing.part == one.part and one.determiner not in _DEFINITE and (one.determiner or one.joined):
            thing = None
        if thing is None:
            thing = _Thing(k)
            own.append(thing)
        else:
            thing.mentions.append(k)
        thing.part = one.part
        order[id(thing)] = k
        described[one.text, attributes] = thing
    return things


def _tell_apart(text: str, things: Sequence[_Thing], found: Sequence[Entity]) -> None:
    """Name each thing by the fewest words before its noun that no other has; leave those that have none."""
    words = [_behind_praise(found[thing.mentions[0]].attributes[-_MOST_ATTRIBUTES:]) for thing in things]
    tails = Counter(tuple(one for one, _ in own[-n:]) for own in words for n in range(1, len(own) + 1))
    for thing, own in zip(things, words):
        for n in range(1, len(own) + 1):
            tail = tuple(one for one, _ in own[-n:])
            if tails[tail] == 1:
                thing.name, thing.start = " ".join([*tail, text]), own[-n][1]
                break


def _behind_praise(attributes: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The attributes that stand together before the noun and can be part of its name."""
    return list(itertools.takewhile(lambda one: one[0] not in _PRAISE, attributes[::-1]))[::-1]


_ATOM = re.compile(r"[^\W\d_]+|\d|[^\w\s]+|_+")


class _Letters(NamedTuple):
    """The words that the encoder reads."""

    texts: list[str]
    starts: list[int]
    """Of each, where it stands in the prompt."""
    indexes: dict[str, list[int]]
    """Of each text, which words it is."""


def _letters(spans: Sequence[Span]) -> _Letters:
    texts: list[str] = []
    starts: list[int] = []
    for kind, start, _, text, _, _, _ in spans:
        if kind == "word" and text.isalpha():
            texts.append(text.lower())
            starts.append(start)
        elif kind in ("word", "punctuation", "choice", "wildcard"):
            for match in _ATOM.finditer(text):
                texts.append(match[0].lower())
                starts.append(start + match.start())
    indexes: dict[str, list[int]] = {}
    for k, text in enumerate(texts):
        indexes.setdefault(text, []).append(k)
    return _Letters(texts, starts, indexes)


def _places(text: str, letters: _Letters) -> list[int]:
    """Where in the prompt each occurrence of ``text`` begins."""
    wanted = _ATOM.findall(text)
    found, end = [], 0
    for k in letters.indexes.get(wanted[0], ()) if wanted else ():
        if k >= end and letters.texts[k : k + len(wanted)] == wanted:
            found.append(letters.starts[k])
            end = k + len(wanted)
    return found


class _Told(NamedTuple):
    """What is told of a clause by itself."""

    entities: tuple[Entity, ...]
    denial: Denial


_SHORT = 40
"""Words of the longest clause of which it is remembered: while somebody types, all clauses but one stay."""


def _told(clause: Clause, ends: bool) -> _Told:
    """What is told of a clause, of which ``ends`` says whether more than a comma follows."""
    tokens, _, part = clause
    if len(tokens) > _SHORT:
        told = _tell(tokens, ends)
        return told._replace(entities=tuple([one._replace(part=part) for one in told.entities])) if part else told
    at = tokens[0].start
    starts, stops = [token[1] - at for token in tokens], [token[2] - at for token in tokens]
    told = _remembered(tuple(map(_WITHOUT_PLACE, tokens)), tuple(starts), tuple(stops), ends)
    if not told.entities or not (at or part):
        return told
    return _Told(
        tuple(
            [
                _entity((text, start + at, end + at, head, noun, tuple([(word, begin + at) for word, begin in words]),
                         determiner, joined, part))
                for text, start, end, head, noun, words, determiner, joined, _ in told.entities
            ]
        ),
        told.denial,
    )  # fmt: skip


_WITHOUT_PLACE = itemgetter(0, 3, 4, 5, 6)
"""Of a token all but its start and end."""


@lru_cache(maxsize=4096)
def _remembered(
    words: tuple[tuple[Any, ...], ...], starts: tuple[int, ...], stops: tuple[int, ...], ends: bool
) -> _Told:
    return _tell([Token(text, start, stop, *more) for (text, *more), start, stop in zip(words, starts, stops)], ends)


def _tell(clause: Sequence[Token], ends: bool) -> _Told:
    clause = in_one_word(clause)
    return _Told(tuple(_read(clause, ends)), denial(clause))


def _read(clause: Sequence[Token], ends: bool) -> Iterator[Entity]:
    """The entities of one clause: it falls into runs of nouns and adjectives between verbs and small words."""
    run: list[_Unit] = []
    opener = ""
    opened = named = skipped = joined = False
    made_of = 0  # 2 behind "made of", 1 behind "out of", which a material alone follows in that sense
    determiner = governor = ""
    alive: bool | None = None  # of the noun that was denied last
    i = 0

    shared: list[_Unit] = []  # adjectives that wait for their noun
    last: Entity | None = None

    def told(boundary: str) -> Iterator[Entity]:
        nonlocal shared, last
        if not run:
            return
        waiting, shared = shared, []
        for one in named_by(boundary):
            if waiting and one.attributes and determiner in _EACH:
                yield _elided(waiting, one)
                one = _told_from(waiting, one)
            waiting, last = [], one
            yield one
        if skipped or determiner not in _EACH or not all(map(_is_said, run)):
            return
        if boundary in ("one", "ones") and last is not None:  # "a black cat and a white one"
            yield _elided(run, last, f" {boundary}", clause[i - 1].end)
        elif boundary in ("and", "or") and i < len(clause) and clause[i].text in _EACH:
            shared = run  # "a blue and a red balloon"

    def named_by(boundary: str) -> Iterator[Entity]:
        nonlocal skipped, alive
        if len(run) == 1 and run[0].place and opener in _WHERE and not skipped:
            yield Entity(run[0].text, run[0].start, run[0].end, run[0].place, run[0].text, determiner="", joined=joined)
            return
        if (
            not skipped
            and not determiner
            and _is_named(run)
            and (
                _acts(clause, i, opener, boundary, named, run[0].capital)
                or (run[0].text[:-1] in TITLES and not run[-1].qualifier)
                or (opener == "of" and _has_names(governor))
            )
        ):
            own = _without_adverbs(run)
            name = " ".join(unit.text for unit in own)
            yield Entity(name, own[0].start, own[-1].end, None, name, joined=joined)
            return
        for one in _of_run(run, opened, determiner, boundary, named, bool(made_of)):
            lives = one.head is not None and one.head.kind in "ap"
            if made_of == 2 and not lives and not (joined and determiner):
                continue  # "a castle made of salt and wafers", but "a tornado made of sharks"
            if skipped and joined and alive is not None and alive != lives and determiner not in ("", "any"):
                skipped = False  # "without a hat and a dog"
            alive = lives if skipped else None
            game = opener in _PLAYS and not determiner and one.head is not None and one.head.kind == "x"
            if not skipped and not game and (one.noun, determiner) != ("camera", "the"):
                yield one._replace(determiner=determiner, joined=joined)

    while i < len(clause):
        text = clause[i].text
        if text in _STYLES and _names_style(clause, i):
            break
        small = (is_small(text, SMALL) and not _is_container(clause, i) and not _is_part(clause, i)) or (
            denies(clause, i) or _measures(clause, i)
        )
        unit = None if small or _parts_things(clause, i, run) else _unit(clause, i)
        if unit and unit.tokens == 1 and _is_verb(clause, i, run):
            if _is_activity(clause, i, run) or (text in _NEEDS_OBJECT and run and i + 1 == len(clause) == 2):
                run = []  # "a dog is car surfing", "hand holding"
            unit = unit._replace(entry=_ADJECTIVE) if _leads(clause, i) else None
        elif unit and unit.entry:
            said = unit.entry.described and _is_said_to_be(clause, i)
            if said or _is_likened(clause, i + unit.tokens - 1):
                unit = unit._replace(entry=_ADJECTIVE)
        if unit:
            if run and (
                run[-1].text in _BASIC >= {unit.text}
                or (clause[i].text in _SIZES and _is_seen(run[-1]) and i + 1 < len(clause))
                or (clause[i].brackets and _splits(run[-1], unit, clause[i].brackets))
            ):
                yield from told(",")
                named, joined, determiner, opened, run = True, False, "", False, []
            run.append(unit)
            i += unit.tokens
            if not clause[i - 1].owner and not clause[i - 1].qualifier:
                continue
            small, text = True, "'s" if clause[i - 1].owner else "("
        else:
            i += 1
        if run:
            yield from told(text)
            named = named or any(one.entry is None or one.entry.noun for one in run)
        article = is_small(text, ARTICLE)
        determiner = text if article else "'s" if text == "'s" else determiner if small and not run else ""
        opened = article or text == "'s" or (opened and small and not run)
        joined = text in JOINS or (joined and article and not run)
        denied = (text not in ("'s", "(") and denies(clause, i - 1)) or (text == "by" and _names_artist(clause, i - 1))
        skipped = denied or (
            skipped and (small or text in NEGATABLE) and (not run or text in ("and", "or", "nor", "of"))
        )
        alive = alive if skipped and not denied else None
        if text in ("of", "from") and i > 1 and clause[i - 2].text in _MAKING:
            made_of = 2 if any(token.text in _MAKING - {"out"} for token in clause[max(0, i - 4) : i - 1]) else 1
        elif not (small and (not run or (made_of == 2 and text in ("and", "or")))):
            made_of = 0
        run, opener, governor = [], text, clause[i - 2].text if i > 1 else ""
    yield from told("." if ends else "")


_EACH = frozenset(["a", "an", "the", "one", "another"])


def _is_said(unit: _Unit) -> bool:
    """Whether a word is said of a noun rather than one itself."""
    found = unit.entry
    return found is not None and (found.coloured or found.adjective > found.noun + found.verb)


def _elided(said: Sequence[_Unit], of: Entity, behind: str = "", end: int = 0) -> Entity:
    """The thing that adjectives name without its noun, which another has; ``behind`` stands for the noun."""
    name = " ".join(unit.text for unit in said) + behind
    return Entity(name, said[0].start, end or said[-1].end, of.head, name, determiner="a", joined=True)


def _told_from(said: Sequence[_Unit], one: Entity) -> Entity:
    """A thing named by as many of its adjectives as tell it from the one of which others are said."""
    count = next(
        (n for n, (unit, own) in enumerate(zip(said[::-1], one.attributes[::-1]), 1) if unit.text != own[0]), 9
    )
    own = one.attributes[-count:]
    name = " ".join([*(text for text, _ in own), one.text])
    return one._replace(text=name, start=own[0][1], noun=name, attributes=one.attributes[:-count])


_VERSUS = frozenset(["vs", "versus"])
_BESIDE = frozenset(["beside", "behind", "between", "facing"])
_MEETS = frozenset(["fight", "chase", "hug", "kiss", "battle", "attack", "meet", "defeat", "ride", "carry", "face"])
_LIKE_ADJECTIVES = re.compile(r"(?:ic|al|ous|ful|ive|esque|ish|able|ible|less|core|wave|punk|ary|est|ier|ist|ism|y)$")
_PARTICLES = frozenset(["van", "von", "de", "da", "di", "del", "la", "le", "el", "al", "bin", "ibn", "mac"])
"""Parts of names."""


def _is_named(run: Sequence[_Unit]) -> bool:
    """Whether a run is of words alone that the lexicon doesn't know, and that don't look like adjectives."""
    run = _without_adverbs(run)
    run = [
        unit
        for k, unit in enumerate(run, 1)
        if k == len(run) or not (unit.text in _PARTICLES or unit.text[:-1] in TITLES)
    ]
    return 0 < len(run) <= 3 and all(
        unit.entry is None
        and unit.place is None
        and unit.text.isalpha()
        and not _is_inflected(unit.text)
        and not verbs(unit.text)
        and not (_LIKE_ADJECTIVES.search(unit.text) and not unit.capital)
        for unit in run
    )


def _without_adverbs(run: Sequence[_Unit]) -> Sequence[_Unit]:
    while len(run) > 1 and _is_adverb(run[-1]):
        run = run[:-1]
    return run


_OF_STYLE = frozenset(
    ["art", "artwork", "work", "works", "style", "school", "look", "design", "concept", "lots", "lot"]
)


def _has_names(text: str) -> bool:
    """Whether what stands behind "of" this noun may be the name of what is seen: "a portrait of gandalf", "a bowl of
    laksa", "the ruins of hampi"."""
    found, _ = likely_noun(text)
    return (
        found is not None and found.kind != "p" and (found.kind in "cm" or is_visible(found)) and text not in _OF_STYLE
    )


def _acts(clause: Sequence[Token], i: int, opener: str, boundary: str, named: bool, capital: bool) -> bool:
    """Whether what stands around words of which nothing is known says that they name somebody: "shrek and a donkey",
    "gandalf holding a staff", "a cat chasing pikachu", "godzilla vs a robot", "Baymax with a kite". ``i``: behind the
    word ``boundary``."""
    after = clause[i].text if i < len(clause) else ""
    if boundary in _VERSUS or opener in _VERSUS:
        return True
    if boundary in ("and", "or", *_BESIDE):
        return is_small(after, ARTICLE)
    if boundary == "next" and after == "to":
        return True
    if not opener and capital and boundary in _WHERE | {"on", "with", "under", "inside"} and is_small(after, ARTICLE):
        return True
    ended = boundary in (",", ".", "") or is_small(boundary, "P")
    if opener in ("and", "or", "to") or opener in _BESIDE:
        return named and ended
    if any(base in _MEETS for base in _stems(opener)):
        return named and ended
    forms = [form for form, _ in verbs(boundary)]
    return ("ing" in forms or "s" in forms) and after != "of" and is_small(after, "DP")


def _stems(text: str) -> Iterator[str]:
    """What a verb's form may be a form of."""
    for ending in ("ing", "es", "s", "ed"):
        stem = text.removesuffix(ending)
        if stem != text:
            yield from (stem, stem + "e", stem[:-1])


_PLAYS = frozenset(["play", "plays", "playing", "played"])


def _is_container(clause: Sequence[Token], i: int) -> bool:
    """Whether "can" is a thing here: "a can", "a watering can on a shelf"."""
    if clause[i].text != "can" or not i:
        return False
    before, after = clause[i - 1].text, clause[i + 1].text if i + 1 < len(clause) else ""
    ended = not after or is_small(after, "PO")
    relates = before == "that" and i > 1 and not is_small(clause[i - 2].text, SMALL)  # "a robot that can swim"
    return (is_small(before, ARTICLE) and not relates) or (ended and not is_small(before, SMALL))


def _is_part(clause: Sequence[Token], i: int) -> bool:
    """Whether "back" is a part of a body or of a thing here: "a turtle's back", "the back of a truck"."""
    if clause[i].text != "back" or not i:
        return False
    lies = i > 1 and clause[i - 2].text == "on"  # "an otter on its back"
    owned = clause[i - 1].owner or clause[i - 1].text == "behind" or (clause[i - 1].text in POSSESSIVE and not lies)
    return owned or (clause[i - 1].text == "the" and clause[i + 1 : i + 2] != [] and clause[i + 1].text == "of")


_MEASURES = frozenset(["foot", "feet", "inch", "inches", "yard", "yards", "meter", "meters", "metre", "metres", "mile"])
_MEASURES |= {"miles", "cm", "mm", "km", "ft", "steps", "pounds", "ounces"}
_BY = (["in", "front"], ["in", "diameter"], ["in", "height"], ["in", "length"])
_MEASURED = frozenset(["away", "from", "off", "above", "below", "behind", "tall", "high", "long", "wide", "deep"])


def _measures(clause: Sequence[Token], i: int) -> bool:
    """Whether a word says how far or how big: "a few feet away", "ten feet tall"."""
    return (
        clause[i].text in _MEASURES
        and i > 0
        and (is_small(clause[i - 1].text, ARTICLE) or clause[i - 1].text.isdigit())
        and i + 1 < len(clause)
        and (clause[i + 1].text in _MEASURED or [token.text for token in clause[i + 1 : i + 3]] in _BY)
    )


def _is_said_to_be(clause: Sequence[Token], i: int) -> bool:
    """Whether a word alone stands behind "is": "the cat is orange"."""
    return i > 0 and clause[i - 1].text in BEING and (i + 1 == len(clause) or is_small(clause[i + 1].text, SMALL))


_LIKENED = frozenset(["coloured", "colored", "shaped", "themed", "sized", "patterned", "flavoured", "flavored"])
_LIKENED |= {"clad", "covered", "eyed", "haired", "headed", "legged", "winged", "tailed", "inspired"}


def _is_likened(clause: Sequence[Token], i: int) -> bool:
    """Whether a noun says with the word behind it what another is like: "a rainbow coloured penguin", "a moss covered
    stone"."""
    if i + 2 >= len(clause) or clause[i + 1].text not in _LIKENED or is_small(clause[i + 2].text, SMALL):
        return False
    led = i == 0 or is_small(clause[i - 1].text, SMALL) or _describes(clause[i - 1].text)
    return led and (likely_noun(clause[i + 2].text)[0] or _NOUN).noun > 0


_NEEDS_OBJECT = frozenset(["holding", "scooping", "carrying", "grabbing", "pulling", "licking", "gaming", "watching"])


def _parts_things(clause: Sequence[Token], i: int, run: Sequence[_Unit]) -> bool:
    """Whether "break", "v", "n" or "x" stands between two things or behind a being: written for the sign BREAK (which
    only capitals are to the hosts), or a verb, or for "versus" or "and"; but "a coffee break"."""
    if clause[i].text not in ("break", "v", "n", "x") or not run or not _is_seen(run[-1]):
        return False
    lives = run[-1].entry is not None and run[-1].entry.kind in "ap"
    return lives or (i + 1 < len(clause) and is_bare_noun(clause[i + 1].text) and clause[i + 1].text not in _SERVES)


def _is_activity(clause: Sequence[Token], i: int, run: Sequence[_Unit]) -> bool:
    """Whether a participle and the bare noun before it say what somebody does: "a dog is car surfing"."""
    if len(run) != 1 or run[0].plural or run[0].tokens >= i or not clause[i].text.endswith("ing"):
        return False
    at = i - run[0].tokens - 1
    return clause[at].text in BEING and (at == 0 or clause[at - 1].text != "there")


def _leads(clause: Sequence[Token], i: int) -> bool:
    """Whether a participle stands between an article and a noun: "a sleeping cat"."""
    if i + 1 == len(clause) or is_small(clause[i + 1].text, SMALL):
        return False
    found = entry(clause[i].text)
    described = found is not None and found.adjective > found.noun + found.verb  # "left cat, right cat"
    led = i > 0 and is_small(clause[i - 1].text, ARTICLE)
    return (described and (led or not i)) or (led and clause[i].text.endswith(("ing", "ed", "en")))


def _splits(last: _Unit, unit: _Unit, brackets: int) -> bool:
    """Whether brackets between two words of a run part them: not an adjective from what it is said of."""
    found = last.entry
    if found is None:
        return brackets == 2 and unit.entry is not None and is_visible(unit.entry)
    stuff = found.described and not (brackets == 2 and found.kind == "p")  # "(leather) (jacket)", but "(man) (woman)"
    return _may_head(last, True) and not stuff and is_visible(found) and found.adjective <= found.noun


_STYLES = frozenset(["style", "styled", "inspired", "in"])


def _names_style(clause: Sequence[Token], i: int) -> bool:
    """Whether the rest of the clause names a style."""
    words = [token.text for token in clause[i : i + 4]]
    if words[0] != "in":
        return i == 0 or words[1:2] in (["of"], ["by"])
    return "style" in words[1:4]


def _names_artist(clause: Sequence[Token], i: int) -> bool:
    """Whether ``by`` is followed by a name rather than by a place."""
    if i + 1 == len(clause):
        return False
    text = clause[i + 1].text
    known = entry(text) or any(entry(one) for one in singulars(text))
    return not is_small(text, ARTICLE) and (clause[i + 1].capital or not known or i == 0)


def _unit(clause: Sequence[Token], i: int) -> _Unit:
    """The longest compound that starts at ``i``, or the word itself."""
    for length in (3, 2) if i + 1 < len(clause) and _begin_compound(clause[i].text, clause[i + 1].text) else ():
        tokens = clause[i : i + length]
        if len(tokens) < length or any(token.owner or token.qualifier for token in tokens[:-1]):
            continue
        if any(token.brackets == 2 for token in tokens[1:]):
            continue
        text = " ".join(token.text for token in tokens)
        found, plural = likely_noun(text)
        if plural and i and clause[i - 1].text in _ONE and verbs(tokens[-1].text):
            continue  # "a bus stops"
        if found and not is_visible(found) and _is_deed(clause, i, length):
            continue  # "a dog paddle on a board"
        if found and _has_colour(clause, i, length, found):
            continue
        if found and _is_place(found):
            if i and clause[i - 1].text in _WHERE:
                return _Unit(text, tokens[0].start, tokens[-1].end, None, False, length, False, place=found)
            continue
        if found and not all(_describes(token.text) for token in tokens):
            last = tokens[-1]
            return _Unit(
                text, tokens[0].start, last.end, found, plural, length, False, tokens[0].brackets, last.qualifier
            )
    if i + 1 < len(clause) and _for_a_purpose(clause, i):
        found, plural = likely_noun(clause[i + 1].text)
        first, last = clause[i], clause[i + 1]
        name = f"{first.text} {last.text}"
        return _Unit(name, first.start, last.end, found, plural, 2, False, first.brackets, last.qualifier)
    unit = _single(clause[i])
    token = clause[i]
    if token.text[0].isdigit() and "-" in token.text and _is_noun_next(clause, i):
        unit = unit._replace(entry=_ADJECTIVE)  # "a 4-door car"
    return (
        unit._replace(brackets=token.brackets, qualifier=token.qualifier) if token.brackets or token.qualifier else unit
    )


def _is_noun_next(clause: Sequence[Token], i: int) -> bool:
    found, _ = likely_noun(clause[i + 1].text) if i + 1 < len(clause) else (None, False)
    return found is not None and found.kind not in SMALL and found.noun > found.adjective


_PURPOSES = frozenset(["baking", "cooking", "cutting", "dining", "drawing", "drying", "eating", "fishing", "gardening"])
_PURPOSES |= {"hiking", "hunting", "ironing", "knitting", "measuring", "mixing", "packing", "painting", "parking"}
_PURPOSES |= {"playing", "reading", "seating", "serving", "sewing", "shopping", "sleeping", "swimming", "training"}
_PURPOSES |= {"waiting", "walking", "washing", "working", "writing", "climbing", "riding", "racing", "wrestling"}
_SERVES = frozenset(
    ["area", "room", "corner", "nook", "spot", "space", "hall", "sheet", "pan", "tray", "board", "bench"]
)
_SERVES |= {"chair", "desk", "lamp", "kit", "machine", "gear", "pole", "rod", "stick", "mat", "wall", "glove", "boot"}
_SERVES |= {"goggle", "suit", "jacket", "utensil", "station", "car", "track", "ring", "field", "card", "tool", "bag"}


def _for_a_purpose(clause: Sequence[Token], i: int) -> bool:
    """Whether a word in "ing" says what the thing behind it is for, rather than what the one before it does: "an eating
    area", "baking sheets"."""
    first, second = clause[i], clause[i + 1]
    if first.text not in _PURPOSES or first.owner or first.qualifier or second.brackets == 2:
        return False
    before = clause[i - 1].text if i else ""
    led = not before or is_small(before, "DP") or _describes(before)
    return led and (second.text in _SERVES or any(one in _SERVES for one in singulars(second.text)))


def _is_deed(clause: Sequence[Token], i: int, length: int) -> bool:
    """Whether words that elsewhere are a compound are one being here, and what it does."""
    being, deed = entry(clause[i].text), entry(clause[i + length - 1].text)
    if length != 2 or being is None or deed is None or i + length == len(clause):
        return False
    lives = being.kind in "ap" and is_visible(being) and being.noun >= 6
    return lives and deed.verb >= 3 and is_small(clause[i + length].text, "PD")


def _has_colour(clause: Sequence[Token], i: int, length: int, found: Entry) -> bool:
    """Whether a colour is one of another thing, rather than a part of a compound that is none: "a blue jet", "a black
    magic robe"."""
    if length != 2 or not (entry(clause[i].text) or _NOUN).coloured:
        return False
    goes_on = i + length < len(clause) and not is_small(clause[i + length].text, SMALL)
    own, _ = likely_noun(clause[i + 1].text)
    return own is not None and ((goes_on and not is_visible(found)) or (found.kind == "w" and own.kind != "w"))


@lru_cache(maxsize=8192)
def _begin_compound(first: str, second: str) -> bool:
    """Whether a compound of the table begins so."""
    return begins_compounds(first) and (
        begin_compound(first, second) or any(begin_compound(first, one) for one in singulars(plain(second)))
    )


def _single(token: Token) -> _Unit:
    if match := _NUMBERED.fullmatch(token.text):
        found, _ = likely_noun(match[1])
        counted = found if found and is_visible(found) and len(match[1]) > 2 else _ADJECTIVE
        counted = _PERSON if match[1] in ("other", "others") else counted
        return _Unit(token.text, token.start, token.end, counted, False, 1, False)
    found, plural = (_OTHERWISE[token.text], False) if token.text in _OTHERWISE else likely_noun(token.text)
    if found is None and token.text.startswith(("no-", "non-", "anti-")):
        found = _ADJECTIVE
    if found is None and "-" in token.text and not token.text[0].isdigit():
        ways = (
            likely_noun(token.text.replace("-", "")),
            likely_noun(token.text.replace("-", " ")),
        )  # "a pick-up truck"
        found, plural = next((way for way in ways if way[0] and is_visible(way[0])), (None, False))
    if found is None and "-" in token.text:
        last = token.text.rpartition("-")[2]
        found, plural = likely_noun(last)
        if found and not is_visible(found):
            found = _ADJECTIVE
        elif found and token.text[0].isdigit():
            return _Unit(last, token.end - len(last), token.end, found, plural, 1, False)
    if found is None and (
        re.search(r"\d", token.text) or (len(token.text) < 2 and token.text.isascii()) or token.text.endswith("less")
    ):
        found = _ADJECTIVE
    if found is not None and _is_place(found):
        return _Unit(token.text, token.start, token.end, None, False, 1, token.capital, place=found)
    return _Unit(token.text, token.start, token.end, found, plural, 1, token.capital)


_WHERE = frozenset(["in", "at", "near", "over", "above", "across", "through", "outside", "around"])
"""Behind these, a place that has a name is a place in the picture."""


def _is_place(found: Entry) -> bool:
    return found.kind == "n" and found.scenery and not found.visible


def _describes(text: str) -> bool:
    """Whether the word is mostly an adjective: "small white" is a butterfly, but hardly in a prompt."""
    found = entry(text)
    return found is not None and found.adjective > found.noun + found.verb


def _is_verb(clause: Sequence[Token], i: int, run: Sequence[_Unit]) -> bool:
    """Whether the word is a verb or participle here, which no noun phrase goes across."""
    text = clause[i].text
    before = clause[i - 1].text if i else ""
    after = clause[i + 1].text if i + 1 < len(clause) else ""
    found, plural = likely_noun(text)
    forms = verbs(text)
    if not forms and (found is None or plural or not found.verb):
        return False
    noun = next((unit for unit in run[:-4:-1] if not _is_adverb(unit)), None)  # "a wizard slowly conjures"
    noun = noun if noun and _may_head(noun, True) else None
    follows = is_small(after, SMALL) or (entry(after) or _NOUN).adjective >= 8
    if before in _ONE and (not after or is_small(after, SMALL)) and (entry(text) or _ADJECTIVE).noun:
        return False  # "a saw"
    if before in _ONE and (entry(text) or _ADJECTIVE).noun and any(form == "s" for form, _ in verbs(after)):
        return False  # "a saw cuts a log"
    told = found is not None and not plural and found.verb > 0 and _is_told(clause, i)
    if told and is_small(after, ARTICLE) and after != "that":
        return True
    for form, verb in forms:
        if form == "ing":
            solid = found is not None and not plural and found.noun >= 5 and (is_visible(found) or found.kind == "m")
            if not solid or found is None or before in BEING:
                return not plural
            sure = found.visible >= _SURELY or (found.kind == "m" and (after == "of" or not follows))
            sure = sure and not (noun and noun.entry and noun.entry.kind in "ap")  # "a girl painting"
            if noun and (is_small(after, ARTICLE) or not sure or (noun.plural and is_small(after, "P"))):
                return True  # "waves lapping at a shore"
        elif form == "ed":
            solid = found is not None and found.noun >= 5 and is_visible(found) and not text.endswith("ed")
            if not solid or (noun and follows):
                return True
        elif _says_what_it_does(clause, i, run, verb) or (
            verb.verb >= (4 if found and is_visible(found) else 2)
            and (before == "that" or before in _SUBJECTS or (noun and not noun.plural and follows))
        ):
            return True
    if found is None or plural or not found.verb:
        return False
    if _follows_modal(clause, i):
        return True
    many = noun is not None and (noun.plural or noun.text in _MANY or _is_counted(clause, i, run))
    if noun and many and found.verb >= (2 if noun.entry and noun.entry.kind in "apg" else 8):
        return True  # "gulls circle", "women in bikinis ride horses"
    if found.verb < 3:
        return False
    # "a cat sit on a mat" is a slip of the pen, "a cake stand on a mat" a thing
    thing = noun is not None and (noun.entry is None or noun.entry.kind not in "ap") and is_visible(found)
    only = text in _SAME_PAST or (not thing and (found.verb >= 8 or _is_second(clause, i, run)))
    return before in _SUBJECTS or (
        follows
        and (
            (before == "to" and (i < 2 or clause[i - 2].text not in _TOWARDS)) or (noun is not None and (many or only))
        )
    )


def _is_adverb(unit: _Unit) -> bool:
    found = unit.entry
    return unit.text.endswith("ly") and (found is None or found.noun + found.verb == 0)


_MODALS = frozenset(["can", "could", "will", "would", "shall", "should", "may", "might", "must", "cannot", "let's"])


def _follows_modal(clause: Sequence[Token], i: int) -> bool:
    """Whether a word is what something can or must do: "a robot that can tap a keg"."""
    at = i - 1
    while at > 0 and (clause[at].text.endswith("ly") or clause[at].text in ("not", "also", "only", "never")):
        at -= 1
    return at >= 0 and clause[at].text in _MODALS and not _is_container(clause, at)


_MANY = frozenset(["people", "police", "folk", "cattle"])
"""Plurals that don't look it."""
_SEVERAL = frozenset(["two", "three", "four", "five", "six", "seven", "several", "many", "both", "some"])


def _first_of(run: Sequence[_Unit], i: int) -> int:
    """Where a run that ends before the word ``i`` begins; 0 also for one too long to name a thing, so that no search
    goes through a long one from each of its words."""
    return 0 if len(run) > _MOST_ATTRIBUTES else i - sum(unit.tokens for unit in run)


def _is_counted(clause: Sequence[Token], i: int, run: Sequence[_Unit]) -> bool:
    """Whether a word follows several of a being whose plural doesn't show: "two samurai clash"."""
    lives = run[-1].entry is not None and run[-1].entry.kind in "apg"
    return lives and (first := _first_of(run, i)) > 0 and clause[first - 1].text in _SEVERAL


_ONE = frozenset(["a", "an", "another", "one", "each", "every"])


def _compares_size(clause: Sequence[Token], i: int) -> bool:
    """Whether "the size of" or the like follows, which is said of a noun: "dogs the size of horses"."""
    return i + 2 < len(clause) and clause[i + 2].text in ("size", "height", "length", "shape", "color", "colour")


_ONE_OF_THEM = frozenset(["one", "another", "each", "everyone", "somebody", "someone", "everybody", "nobody"])


def _is_told(clause: Sequence[Token], i: int) -> bool:
    """Whether somebody is told here what to do: "draw a cat", "can you please draw a cat"."""
    return i == 0 or clause[i - 1].text in ASKING or clause[i - 1].text in ("but", "then")


def _says_what_it_does(clause: Sequence[Token], i: int, run: Sequence[_Unit], verb: Entry) -> bool:
    """Whether a word in "s" follows one thing, of which a plural can't be said ("a dog barks", "the hammer hammers"),
    or leads to an article, as no noun does ("the judge hammers the desk", "behind him stands a lamp")."""
    after = clause[i + 1].text if i + 1 < len(clause) else ""
    before = clause[i - 1].text if i else ""
    leads = is_small(after, ARTICLE) and not is_small(before, "D") and not _compares_size(clause, i)
    if leads and (verb.verb >= 3 or before in ("and", "then")):
        return True
    if before in _ONE_OF_THEM and not run and after:
        return True  # "one counts acorns, another guards a vault"
    if not 0 < len(run) <= _MOST_ATTRIBUTES or run[-1].plural or not _may_head(run[-1], True):
        return False
    first = _first_of(run, i)
    leader = clause[first - 1].text if first > 0 else ""
    if clause[i].text == run[-1].text + "s" or leader in _ONE:
        return True
    lives = run[-1].entry is not None and run[-1].entry.kind in "ap"
    return verb.verb >= 3 and lives and bool(after) and is_small(leader, ARTICLE)  # "his son stacks logs"


def _is_second(clause: Sequence[Token], i: int, run: Sequence[_Unit]) -> bool:
    """Whether the word follows the second of two things: "a hedgehog and a tortoise race"."""
    first = _first_of(run, i)
    return first > 1 and clause[first - 1].text in _ONE and clause[first - 2].text == "and"


def _of_run(
    run: list[_Unit], opened: bool, determiner: str, boundary: str, named: bool, made_of: bool
) -> Iterator[Entity]:
    """The entity that a run of nouns and adjectives names: its head, with the nouns that make a compound of it."""
    if run and run[-1].qualifier:
        yield from _qualified(run)
        return
    while run and (
        run[-1].text.isdigit() or (len(run) > 1 and _is_adverb(run[-1])) or (len(run) > 1 and run[-1].text in _BEHIND)
    ):
        run = run[:-1]
    if len(run) > 1 and run[-1].text in _INSIDES and _is_seen(run[-2]):
        yield Entity(f"{run[-2].text} {run[-1].text}", run[-2].start, run[-1].end, run[-2].entry, run[-1].text)
        return
    last = run[-1].entry if run else None
    how = last and determiner in _ONE and (last.kind == "-" or len(run[-1].text) == 1) and boundary in ("", ".")
    preface = last and last.kind not in CONCRETE and is_small(boundary, ARTICLE)
    if len(run) > 1 and last and not is_visible(last) and (how or preface):
        thing = len(run) - 2
        while thing and (found := run[thing].entry) and found.adjective > found.noun:
            thing -= 1  # "a dog high resolution"
        own = run[thing].entry
        if own is not None and own.kind in "aptfol" and _is_seen(run[thing]):
            # No noun stands before an article ("a cat preface a dog"), and praise behind names nothing ("a dog hd").
            run = run[: thing + 1]
    lamp = len(run) == 1 and run[0].text in _LAMPS and boundary not in JOINS
    area = run and run[-1].text in _LED and (determiner in _ONE or len(run) > 1)
    if opened and determiner and ((lamp and determiner in _ONE) or area) and boundary != "of":
        yield Entity(run[-1].text, run[-1].start, run[-1].end, run[-1].entry, run[-1].text)
        return
    head = len(run) - 1
    while head >= 0 and not (
        _may_head(run[head], _is_led(run, head, opened))
        or (opened and determiner and head == len(run) - 1 and _stands_alone(run, boundary))
    ):
        if run[head].entry is None and not _is_inflected(run[head].text):
            return
        head -= 1
    if head < 0:
        return
    unit = run[head]
    found = unit.entry
    if found is not None:
        hangs = found.kind == "m" and opened and named and unit.text in _HANGS
        if boundary == "of" and found.kind in "cmy" and not hangs:
            return
        if found.kind in "my" and not (opened and named):
            return
        if found.kind == "m" and determiner in ("the", "this", "that") and not hangs:
            return
        if made_of and (found.described or found.kind == "s"):
            return
        counted = opened and boundary != "of"
        piece = counted and named and found.kind == "s" and not found.described and determiner in _ONE  # "a plank"
        if found.kind != "m" and not piece and not is_visible(found, counted):
            return
    first = head
    while first and _modifies(run[first - 1], unit):
        first -= 1
    first = min(first, _first_of_name(run, head))
    first -= first > 0 and run[first - 1].text.endswith(".") and run[first - 1].entry is None  # "mr. bean"
    text = " ".join(part.text for part in run[first : head + 1])
    attributes = tuple((part.text, part.start) for part in run[:first])
    yield Entity(text, run[first].start, unit.end, found, unit.text, attributes)


def _first_of_name(run: Sequence[_Unit], head: int) -> int:
    """Where the name begins that ends in the noun ``head``: at the first of the capitals before it, where one of them
    is no common word ("Tokyo Tower", "Harry Potter")."""
    first = head
    while first and run[first].capital and run[first - 1].capital:
        first -= 1
    named = any(unit.entry is None or unit.entry.noun + unit.entry.adjective == 0 for unit in run[first:head])
    return first if named else head


def _qualified(run: list[_Unit]) -> Iterator[Entity]:
    """The thing of a tag with a bracketed qualifier: all its words but the adjectives that lead."""
    unit = run[-1]
    if any(text in _NO_THING for text in re.findall(r"[^\W_]+", unit.qualifier.rpartition("(")[2])):
        return
    first = 0
    while first < len(run) - 1 and (found := run[first].entry) and (found.described or found.adjective > found.noun):
        first += 1
    text = " ".join(part.text for part in run[first:]) + unit.qualifier
    attributes = tuple((part.text, part.start) for part in run[:first])
    yield Entity(text, run[first].start, unit.end, unit.entry, unit.text, attributes)


def _is_seen(unit: _Unit) -> bool:
    return unit.entry is not None and unit.entry.noun > unit.entry.adjective and is_visible(unit.entry)


def _is_inflected(text: str) -> bool:
    """Whether a word that the lexicon does not know looks like a participle or an adverb."""
    return text.endswith(("ing", "ed", "ly"))


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


def _stands_alone(run: Sequence[_Unit], boundary: str) -> bool:
    """Whether a word that is mostly an adjective is the noun between an article and a small word: "the safe with"."""
    found = run[-1].entry
    if (
        found is None
        or not found.noun
        or found.described
        or found.kind not in CONCRETE
        or boundary in ("", "and", "or")
    ):
        return False
    described = all(unit.entry and unit.entry.adjective > unit.entry.noun for unit in run[:-1])
    return described and is_visible(found)


def _modifies(unit: _Unit, head: _Unit) -> bool:
    """Whether ``unit`` before ``head`` makes a compound with it, rather than being said of it."""
    found = unit.entry
    if head.text in ("can", "cans") and found is not None and found.noun >= found.adjective:
        return True  # "a beer can", "a tin can"
    if found is not None and head.entry is not None:
        if found.coloured and head.entry.worn:
            return False
        if found.kind == "r" and head.entry.kind == "b":
            return False  # "side bangs"
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
    if unit.text == "light" and head.entry is not None and (head.entry.worn or head.entry.coloured):
        return False
    if found.kind == "p" and head.entry and head.entry.kind in "alf":
        return False
    if unit.tokens == 1 and unit.text.endswith("ing") and any(form == "ing" for form, _ in verbs(unit.text)):
        return False
    return found.noun >= 1 and found.noun + found.verb >= 6 > found.adjective
