"""Which of a prompt's things are kept apart by themselves, and which are left out, as they must overlap others.

``choose("a man with a hat riding a horse and a dog")`` keeps "man" and "dog" apart; the hat is worn and the
horse ridden by the man, and a hat that is pushed off its man does harm. Left out are things that are worn, held
(also eaten, played, read, used, hugged), ridden or driven, that are part or contents of another or that it shows,
what another thing stands on or is in, and scenery and weather. Beside, behind, under, over, near, "and", "vs",
looking at and chasing leave both. Where two things can't be told to be related, they are kept apart.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from .align import Piece, Reading, place, words
from .entities import POSSESSIVE, Clause, Entity, Token, located
from .lexicon import entry
from .syntax import HOST, REMEMBERED, Dialect, Span, parse

_WEARS = frozenset(["wear", "don", "dress", "clothe", "clad", "sport", "attire", "garb"])
_HOLDS = frozenset(
    ["hold", "carry", "grip", "clutch", "grasp", "wield", "swing", "raise", "lift", "eat", "drink", "sip"]
)
_HOLDS |= {
    "bite",
    "read",
    "use",
    "hug",
    "embrace",
    "cuddle",
    "play",
    "serve",
    "brandish",
    "cradle",
    "bear",
    "lick",
    "strum",
}
_HOLDS |= {
    "smoke",
    "comb",
    "knit",
    "sew",
    "weave",
    "embroider",
    "peel",
    "stir",
    "sharpen",
    "polish",
    "unfold",
    "hoist",
    "offer",
    "wave",
    "juggle",
    "pet",
    "squeeze",
    "nibble",
    "munch",
    "chew",
    "wag",
}
_RIDES = frozenset(["ride", "drive", "mount", "pilot", "row", "pedal", "straddle", "sail", "steer", "paddle"])
_WORKS = frozenset(["sweep", "rake", "mop", "scrub", "wash", "wipe", "dust", "clean", "cut", "chop", "slice", "dice"])
_WORKS |= {"carve", "trim", "mow", "prune", "dig", "shovel", "hoe", "water", "spray", "paint", "draw", "write", "hit"}
_WORKS |= {
    "strike",
    "fight",
    "attack",
    "kill",
    "slay",
    "stab",
    "poke",
    "whip",
    "beat",
    "smash",
    "crack",
    "saw",
    "drill",
}
_WORKS |= {"hammer", "nail", "shoot", "hunt", "catch", "feed", "stir", "whisk", "mix", "shave", "measure", "photograph"}
_WORKS |= {"film", "light", "tie", "threaten", "tease", "groom", "sand", "weld", "fix", "repair", "walk", "break"}
_WORKS |= {"brush", "iron", "vacuum", "scrape", "plow", "plough", "shear", "inspect", "examine"}
"""What is done to a thing with another."""
_ON = frozenset(["on", "atop", "upon", "onto", "aboard", "astride"])
_IN = frozenset(["in", "inside", "into", "within"])
_RELATING = _WEARS | _HOLDS | _RIDES | {"hang", "dangle", "grow"}
_SIDES = frozenset(["left", "right", "side", "sides", "front", "edge", "way", "opposite", "end"])
_FILLED = frozenset(
    ["filled", "full", "covered", "topped", "decorated", "stuffed", "packed", "loaded", "adorned", "laden"]
)
_SHOWS = frozenset(
    ["statue", "sculpture", "figurine", "figure", "doll", "statuette", "bust", "carving", "mural", "toy"]
)

_LIKE = frozenset(
    ["looks", "look", "looking", "looked", "shaped", "dressed", "styled", "posed", "acting", "painted", "just"]
)
_AS = frozenset(["dressed", "disguised", "costumed", "cosplaying", "posing", "posed", "depicted", "painted", "shaped"])
"""What "like" and "as" follow where they compare."""

_SENTENCES = {
    "worn": "worn by {}", "held": "held by {}", "ridden": "ridden by {}", "on": "{} is on it", "in": "{} is in it",
    "contents": "in {}", "lies on": "on {}", "part": "part of {}", "made": "what {} shows",
    "owner": "its {} is named", "likeness": "what {} is compared with",
    "place": "scenery", "weather": "weather",
}  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    """A thing that is not kept apart by itself."""

    entity: Entity
    relation: str
    """A key of the sentences."""
    other: str = ""
    """The thing to which it is related."""

    def why(self) -> str:
        """The reason in words: "worn by man"."""
        return _SENTENCES[self.relation].format(self.other)


@dataclass(frozen=True)
class Choice:
    """A prompt's things, each once, in the order of their first mention."""

    apart: tuple[Entity, ...]
    left_out: tuple[LeftOut, ...]

    def why(self) -> str:
        """What is left out, in words; "" where nothing is."""
        return ", ".join(f"{one.entity.text} ({one.why()})" for one in self.left_out)


def choose(prompt: str, dialect: Dialect = HOST) -> Choice:
    """What of ``prompt`` is kept apart by itself."""
    return remembered_choice(prompt, dialect) if len(prompt) <= REMEMBERED else _choose(prompt, dialect)


def _choose(prompt: str, dialect: Dialect) -> Choice:
    reader = _Reader()
    for clause, things in located(prompt, parse(prompt, dialect)):
        reader.read(clause, things)
    apart: dict[str, Entity] = {}
    left_out: dict[str, LeftOut] = {}
    for one, relation, other in reader.found:
        if one.text in apart or one.text in left_out:
            continue
        if relation:
            left_out[one.text] = LeftOut(one, relation, other)
        else:
            apart[one.text] = one
    return Choice(tuple(apart.values()), tuple(left_out.values()))


remembered_choice = lru_cache(maxsize=8)(_choose)


def choose_of_parts(texts: Sequence[str], weights: Sequence[float] = (), dialect: Dialect = HOST) -> tuple[str, Choice]:
    """:func:`choose` of ``AND`` parts and their weights, and the prompt that they make together."""
    weights = weights or [1.0] * len(texts)
    prompt = " AND ".join(f"{text} :{weight:f}" if weight != 1 else text for text, weight in zip(texts, weights))
    return prompt, choose(prompt, dialect)


def placed(
    things: Sequence[Entity], prompt: str, parts: Sequence[Sequence[Piece]], dialect: Dialect = HOST
) -> list[tuple[int, tuple[int, ...]]]:
    """Of each thing of ``prompt``, its ``AND`` part and the positions of its tokens among that part's pieces."""
    spans: list[list[Span]] = [[] for _ in parts]
    for span in parse(prompt, dialect):
        if span.kind in ("word", "punctuation", "choice", "wildcard", "keyword") and span.part < len(parts):
            spans[span.part].append(span)
    tokens = [place([span.text for span in own], Reading(words(pieces))) for own, pieces in zip(spans, parts)]
    found = []
    for one in things:
        part = next((k for k, own in enumerate(spans) if own and one.start < own[-1].end), len(parts) - 1)
        own = zip(spans[part], tokens[part])
        inside = {p for span, held in own if span.end > one.start and span.start < one.end for p in held}
        found.append((part, tuple(sorted(inside))))
    return found


@dataclass
class _Reader:
    """Goes through a prompt's clauses and tells of each thing how it is related to one before."""

    found: list[tuple[Entity, str, str]] = field(default_factory=list)
    anchor: Entity | None = None
    """The last thing of its own."""
    alive: Entity | None = None
    """The last living one of these."""
    worked_on: Entity | None = None
    """The last thing, where somebody works on it."""
    worker: Entity | None = None
    """Who does; None where nobody is named."""

    def read(self, clause: Clause, things: Sequence[Entity]) -> None:
        """Relate the things of the next clause."""
        if clause.sign.strip() not in ("", ","):
            self.anchor = None
        previous: Entity | None = None
        relation, first = "", len(self.found)
        if not things:
            return
        starts, ends = [token[1] for token in clause.tokens], [token[2] for token in clause.tokens]
        for one in things:
            start = min(one.start, one.attributes[0][1]) if one.attributes else one.start
            link = clause.tokens[bisect_left(starts, previous.end if previous else 0) : bisect_right(ends, start)]
            owner = previous is not None and not link and clause.tokens[bisect_left(ends, previous.end)].owner
            relation, other = self._related(link, one, previous, relation, bool(previous), owner)
            if owner and previous is not None and _is_part(one) and first < len(self.found):
                # "a corgi's head": it is the head that is drawn, unless it is somewhere itself
                _, its, on = self.found.pop()
                self.found.append((previous, its or "owner", on or one.text))
                relation, other = (its, on) if its in ("on", "in") else ("", "")
            self.found.append((one, relation, other))
            doing = [token.text for token in link[-2:]]
            if one.attributes[:1] and one.attributes[0][1] == starts[0] and one.attributes[0][0].endswith("ing"):
                doing.append(one.attributes[0][0])  # "sweeping leaves" may be what these are like
            if any(map(_is_work, doing)):
                self.worked_on, self.worker = one, self.alive
            elif [token.text for token in link[:1]] != ["of"]:  # "painting a portrait of a dog with a brush"
                self.worked_on, self.worker = None, self.alive
            if not relation:
                self.anchor = one
                self.alive = one if _is_alive(one) else self.alive
            previous = one

    def _related(
        self, link: Sequence[Token], one: Entity, previous: Entity | None, before: str, inside: bool, owner: bool
    ) -> tuple[str, str]:
        """How a thing is related to one before, and to which; "" where it isn't."""
        head = one.head
        if head is not None and head.weather:
            return "weather", ""
        if self._is_tool([token.text for token in link], one):
            return ("held", self.worker.text) if self.worker else ("", "")
        if head is not None and head.scenery and not (head.worn or _is_alive(one)):
            return "place", ""
        words = [token.text for token in link]
        anchor = self.anchor if inside or (self.anchor and words) else None
        if words and words[0] not in ("and", "or") and not inside:
            anchor = self.alive or self.anchor
        living = anchor if anchor and _is_alive(anchor) else self.alive
        relation = self._by_words(words, one, anchor, living)
        if relation == "listed":
            kept = (
                inside and before in ("worn", "held", "lies on", "part") and not _is_alive(one) and not _is_large(one)
            )
            kept = kept and (before != "worn" or _is_worn(one)) and (before != "part" or not one.determiner)
            relation = before if kept else "worn" if inside and before in ("part", "held") and _is_worn(one) else ""
        if not relation and living and (_is_worn(one) or _is_part(one)):
            tagged = not words and not inside and not one.determiner
            if tagged or one.determiner in POSSESSIVE or "whose" in words:
                return ("part" if _is_part(one) else "worn"), living.text
        other = living if relation in ("worn", "held", "ridden") else anchor
        if previous is not None and words[:1] == ["of"]:
            other = previous
        return (relation, other.text) if relation and other else ("", "")

    def _is_tool(self, words: Sequence[str], one: Entity) -> bool:
        """Whether it is told of a thing with what it is worked on: "sweeping leaves with a broom", "bread cut with a
        knife"; a person that is worked on may hold it, too."""
        on = self.worked_on if words[:1] == ["with"] else self.anchor if words[1:2] == ["with"] else None
        if on is None or (on.head is not None and on.head.kind == "p"):
            return False
        works = words[0] == "with" or _is_work(words[0])
        return works and not (_is_part(one) or _is_worn(one) or _is_alive(one) or _is_large(one))

    @staticmethod
    def _by_words(words: Sequence[str], one: Entity, anchor: Entity | None, living: Entity | None) -> str:
        """The relation that the words between two things tell; "listed" where they only join them."""
        at = next((k for k in range(len(words) - 1, -1, -1) if _governs(words[k])), None)
        if at is None:
            return "listed" if not words and anchor else ""
        word = words[at]
        if word in ("and", "or"):
            return "listed" if at == 0 else ""
        if word == "of":
            if at == 0 and anchor is not None:
                if _is_part(anchor):
                    return "part"
                return "made" if anchor.noun in _SHOWS else "contents"
            if "top" in words[:at] and "on" in words[:at]:
                return "on"
            return (
                "in"
                if words[max(0, at - 2) : at] == ["in", "middle"] or "full" in words[:at]
                else "contents"
                if words[at - 1 : at] == ["full"]
                else ""
            )
        if _compares(words[: at + 1]):
            return "likeness"
        if word == "with":
            if any(filled in words[:at] for filled in _FILLED):
                return "contents"
            return _with(one, anchor)
        if word in _ON and not _SIDES & set(words[at:]):
            return "on"
        if word in _IN and not _SIDES & set(words[at:]):
            return "worn" if _is_worn(one) and living else "part" if _is_part(one) else "in"
        if word == "from" and any(base in ("hang", "dangle", "grow") for text in words for base in _bases(text)):
            return "on"
        if word == "by" and any(base in _HOLDS for text in words for base in _bases(text)):
            return ""
        bases = set(_bases(word))
        for known, relation in ((_WEARS, "worn"), (_HOLDS, "held"), (_RIDES, "ridden")):
            if bases & known and living:
                if relation == "worn" and not _is_worn(one):
                    return "worn" if "dress" not in bases else ""
                return relation
        return ""


def _compares(words: Sequence[str]) -> bool:
    """Whether words end in "looks like", "dressed as", "as big as" or the like."""
    if words[-1] == "like":
        return bool(_LIKE & set(words[-2:-1]))
    return words[-1] == "as" and (bool(_AS & set(words[-2:-1])) or ("as" in words[-4:-1] and words[-2] != "well"))


def _with(one: Entity, anchor: Entity | None) -> str:
    """How what follows "with" is related to the thing before."""
    if _is_part(one):
        return "part"
    if _is_worn(one):
        return "worn" if anchor and _is_alive(anchor) else "part"
    if _is_alive(one) or anchor is None:
        return ""
    if _is_alive(anchor):
        return "" if _is_large(one) else "held"
    return "part"


def _governs(word: str) -> bool:
    """Whether a word between two things can say how they are related."""
    found = entry(word)
    return word in _ON or bool(found and found.kind in "PO") or bool(_bases(word))


@lru_cache(maxsize=8192)
def _bases(word: str) -> tuple[str, ...]:
    """What the word is a form of, as a verb."""
    return tuple(base for base in (word, *_verb_forms(word)) if base in _RELATING)


_PAST = {"wore": "wear", "worn": "wear", "held": "hold", "rode": "ride", "ridden": "ride", "drove": "drive"}
_PAST |= {"ate": "eat", "drank": "drink", "swung": "swing", "hung": "hang", "bore": "bear", "bit": "bite"}


def _verb_forms(word: str) -> Iterator[str]:
    """What a verb's form may be a form of."""
    for ending in ("ing", "ed", "es", "s"):
        stem = word.removesuffix(ending)
        if stem != word:
            yield from (stem, stem + "e", stem[:-1], stem[:-1] + "y")
    if word in _PAST:
        yield _PAST[word]


_WORKED = {"swept": "sweep", "dug": "dig", "drawn": "draw", "fed": "feed", "caught": "catch", "written": "write"}
_WORKED |= {"struck": "strike", "shot": "shoot", "lit": "light", "broken": "break", "slain": "slay", "tying": "tie"}


@lru_cache(maxsize=8192)
def _is_work(word: str) -> bool:
    return _WORKED.get(word, word) in _WORKS or any(base in _WORKS for base in _verb_forms(word))


def _is_alive(one: Entity) -> bool:
    counted = one.noun[:1].isdigit() or one.noun in ("robot", "robots", "snowman", "android", "cyborg", "doll")
    return counted or (one.head is not None and one.head.kind in "ap")


def _is_worn(one: Entity) -> bool:
    return one.head is not None and one.head.worn


def _is_large(one: Entity) -> bool:
    return one.head is not None and one.head.large


def _is_part(one: Entity) -> bool:
    return one.head is not None and one.head.kind == "b"
