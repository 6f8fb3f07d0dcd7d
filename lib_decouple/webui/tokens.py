"""A prompt as it stands, for the chips and the API: its words, their tokens, and what is suggested."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, Literal, NamedTuple

from ..prompt import align, syntax
from ..prompt.entities import Entity
from ..prompt.relations import choose
from .palette import colours

Kind = Literal["word", "weight", "break", "and", "lora", "embedding", "edit", "comment", "punctuation", "keyword"]

_KINDS: dict[str, Kind] = {
    "word": "word",
    "weight": "weight",
    "break": "break",
    "and": "and",
    "network": "lora",
    "comment": "comment",
    "editing": "edit",
    "alternation": "edit",
    "choice": "edit",
    "wildcard": "edit",
    "punctuation": "punctuation",
    "keyword": "keyword",
}
_READ = frozenset(["word", "punctuation", "choice", "wildcard", "keyword"])
"""Kinds of spans that the text encoder reads."""

MOST_ENTITIES = 200
"""Entities that are looked up, or words' lists that are given names, at once."""

MOST_READ = 20_000
"""Characters that are tokenised for one prompt: prompt editing can make many texts of one. Words that come into it
later can't be chosen."""

MOST_LETTERS = 300
"""Letters without a space or a sign. Tokenizers take a time that grows with the square of their number."""

_LONG = re.compile(rf"[^\W\d_]{{{MOST_LETTERS + 1},}}")

_HINTED = 5
"""Of so many entities that are not found, what they may have meant is told."""


class PromptWord(NamedTuple):
    """One word or sign of the prompt."""

    text: str
    start: int
    """Characters of the prompt as typed, ``prompt[start:end]``."""
    end: int
    kind: Kind
    selectable: bool
    """May be an entity: a word, or a textual inversion, that the text encoder sees."""
    tokens: tuple[int, ...]
    """Positions in the part's context, as ``#n`` counts them; of a word that prompt editing brings or
    takes, at the first step that has it; () for what the text encoder doesn't read."""
    chunk: int
    """The text encoder's chunk that holds the first token, from 0; of what has none, that of the word before."""
    part: int
    """The ``AND`` part, from 0. ``#n`` names tokens of the first one only."""
    weight: float
    occurrence: int
    """The n of ``word@n``; 1 is the first, 0 where no entity can name it."""


_word: Callable[[tuple[object, ...]], PromptWord] = partial(tuple.__new__, PromptWord)
"""``PromptWord(*fields)``, faster."""


class Abandoned(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Chosen:
    """An entity of the user's."""

    text: str
    """As the field "Entities" holds it."""
    words: tuple[int, ...]
    """Indexes of its words."""
    problem: str
    """Why a job would not find it; "" where it does."""


@dataclass(frozen=True)
class LeftOut:
    """A thing that the prompt names and that isn't kept apart by itself."""

    text: str
    words: tuple[int, ...]
    why: str


class _Context:
    """A prompt's spans with their tokens, and its texts as entities are looked up in them.

    The tokens of all ``AND`` parts stand in one context, part k from ``k * align.PART``.
    """

    def __init__(
        self,
        prompt: str,
        spans: Sequence[syntax.Span],
        tokenize: Callable[[str], Sequence[align.Piece]],
        dialect: syntax.Dialect,
        gone: Callable[[], bool],
    ) -> None:
        self.prompt = prompt
        self.spans = spans
        # Lists of all spans' rather than an object each: a prompt has thousands.
        self.tokens: list[tuple[int, ...]] = [()] * len(spans)
        self.chunks = [0] * len(spans)
        self.occurrences = [0] * len(spans)
        self.embeddings: set[int] = set()
        self.total = 0
        self._turns: dict[int, int] = {}
        """In which of its part's texts a span was found that the first lacks."""
        self._starts = list(map(itemgetter(1), spans))
        self._ends = list(map(itemgetter(2), spans))
        self._left = MOST_READ
        self._holders: dict[int, list[int]] = {}
        first: list[align.Reading] = []
        later: list[tuple[int, align.Reading]] = []
        for number, part in enumerate(syntax.parts(prompt, dialect)):
            for turn, text in enumerate(syntax.turns(part, dialect)):
                _go_on_unless(gone)
                self._left -= len(text.text)
                if turn and self._left < 0:
                    break
                pieces = tokenize(text.text)
                read = align.Reading(align.words(pieces))
                self._place(text, read, {piece.position: piece for piece in pieces}, turn)
                if number:
                    read = align.Reading(word.moved(number * align.PART) for word in read.words)
                if turn:
                    later.append((number, read))
                else:
                    first.append(read)
                    self.total += len(pieces)
        joined = first[0] if len(first) == 1 else align.Reading(word for read in first for word in read.words)
        self.readings = [joined, *(read for _, read in later)]
        """The first reads the texts of all parts at the first step, the others one part's at a later one."""
        self._number(later)

    def _place(self, text: syntax.Turn, read: align.Reading, pieces: Mapping[int, align.Piece], turn: int) -> None:
        """Give the words of a text that have none yet their tokens, which ``pieces`` has by their positions."""
        if not text.where:
            return
        spans, found, chunks = self.spans, self.tokens, self.chunks
        within = range(bisect_right(self._ends, text.where[0]), bisect_right(self._starts, text.where[-1]))
        own = [k for k in within if spans[k][0] in _READ]
        if not isinstance(text.where, range):
            there = set(text.where)
            own = [k for k in own if self._starts[k] in there]
        for k, tokens in zip(own, align.place([spans[k][3] for k in own], read)):
            if tokens and not found[k]:
                found[k] = tokens
                _, _, embedding, chunks[k] = pieces[tokens[0]]
                if embedding or (len(tokens) > 1 and any(pieces[token].embedding for token in tokens)):
                    self.embeddings.add(k)
                if turn:
                    self._turns[k] = turn

    def _index(self, k: int) -> int:
        """Which span holds the prompt's character ``k``; -1 for none."""
        at = bisect_left(self._starts, k + 1) - 1
        return at if at >= 0 and k < self._ends[at] else -1

    def _number(self, later: Sequence[tuple[int, align.Reading]]) -> None:
        """Say which occurrence of its text each word is."""
        texts = [span[3].lower() for span in self.spans]
        places = self._places_of(0, {text for text, tokens in zip(texts, self.tokens) if tokens})
        for k, (text, tokens) in enumerate(zip(texts, self.tokens)):
            if tokens:
                self.occurrences[k] = _number_of(self.spans[k][5] * align.PART + tokens[0], places[text])
        turns: dict[tuple[int, int], int] = {}
        turn = 0
        for k, (part, _) in enumerate(later, start=1):
            turn = turn + 1 if k > 1 and later[k - 2][0] == part else 1
            turns[part, turn] = k
        of_reading: dict[int, list[int]] = {}
        for k, turn in self._turns.items():
            if reading := turns.get((self.spans[k].part, turn), 0):
                of_reading.setdefault(reading, []).append(k)
        for reading, own in of_reading.items():
            those = self._places_of(reading, {texts[k] for k in own})
            for k in own:
                start = self.spans[k].part * align.PART
                number = _number_of(start + self.tokens[k][0], those[texts[k]])
                self.occurrences[k] = number and number + bisect_left(places[texts[k]], start)

    def _places_of(self, reading: int, texts: set[str]) -> dict[str, list[int]]:
        """Of each of ``texts``, with which token each of its places begins in one of the readings."""
        return dict(zip(texts, self.readings[reading].first_tokens(texts)))

    def look_up(self, entities: Sequence[str], words: Sequence[PromptWord]) -> list[Chosen]:
        """The entities as a job would find them."""
        told = 0
        try:
            places = align.align(entities, self.readings[0], missing="skip")
        except ValueError as error:
            places, conflict = [()] * len(entities), str(error)
        else:
            conflict = ""
        chosen = []
        for entity, place in zip(entities, places):
            problem = conflict
            if not place:
                place, alone = self._alone(entity, told < _HINTED)
                problem = alone or conflict
                told += bool(alone)
            chosen.append(Chosen(entity, () if problem else self._hit(place, words), problem))
        return chosen

    def _alone(self, entity: str, hint: bool) -> tuple[tuple[int, ...], str]:
        """Where the first of the texts that names the entity has it, or why none does."""
        problem = ""
        for reading in self.readings:
            try:
                if place := align.align([entity], reading, missing="skip")[0]:
                    return place, ""
            except ValueError as error:
                problem = str(error)
        if problem or not hint:
            return (), problem or f'entities: "{entity[:200]}" is not in the prompt'
        try:
            align.align([entity], self.readings[0])
        except ValueError as error:
            problem = str(error).partition(" Its words: ")[0]  # which stand in the same answer
        return (), problem

    def _hit(self, place: Sequence[int], words: Sequence[PromptWord]) -> tuple[int, ...]:
        """The indexes of the selectable words that a place's tokens are of."""
        if not self._holders:
            for k, word in enumerate(words):
                for token in self._tokens(word) if word.selectable else ():
                    self._holders.setdefault(token, []).append(k)
        return tuple(sorted({k for token in place for k in self._holders.get(token, ())}))

    def name(self, selected: Sequence[Sequence[int]], words: Sequence[PromptWord]) -> list[Chosen]:
        """Words that were clicked, under names that a job would understand."""
        wanted = []
        for indexes in selected:
            for k in indexes:
                if not 0 <= k < len(words) or not words[k].selectable:
                    raise ValueError(f"selected: {k} is not allowed; the index of a selectable word")
            wanted.append(tuple(sorted(set(indexes))))
        ways = [list(self._names(indexes, words)) for indexes in wanted]
        names = [own[0] for own in ways]
        for k in range(1, max((len(own) for own in ways), default=0) + 1):
            found = self.look_up(names, words)
            wrong = [i for i, one in enumerate(found) if one.words != wanted[i] or one.problem]
            if not wrong:
                return found
            for i in wrong:
                names[i] = ways[i][min(k, len(ways[i]) - 1)]
        plain = [one.words == indexes for one, indexes in zip(self.look_up(names, words), wanted)]
        return [
            Chosen(name, indexes, "")
            if fits
            else Chosen(own[0], indexes, f'entities: "{own[0]}" can\'t be named; choose words that stand together')
            for name, own, indexes, fits in zip(names, ways, wanted, plain)
        ]

    def _names(self, indexes: Sequence[int], words: Sequence[PromptWord]) -> Iterator[str]:
        """Names of one place, the best first: its words, these with their number, its tokens."""
        first, last = words[indexes[0]], words[indexes[-1]]
        phrase = " ".join(words[k].text for k in indexes)
        if any(not words[k].selectable for k in range(indexes[0], indexes[-1])):
            phrase = self._written(first, last)
        elif any(syntax.UNSPACED.search(words[k].text) for k in indexes):
            phrase = self.prompt[first.start : last.end]
        tokens = (word_token for k in indexes for word_token in self._tokens(words[k]))
        positions = sorted(set(tokens))
        number = next((found for reading in self.readings if (found := reading.number(phrase, positions))), 0)
        if number < 2:
            yield phrase
        if number:
            yield f"{phrase}@{number}"
        yield f"#{positions[0]}-{positions[-1]}" if len(positions) > 1 else f"#{positions[0]}"

    def _tokens(self, word: PromptWord) -> Iterator[int]:
        return (word.part * align.PART + token for token in word.tokens)

    def _written(self, first: PromptWord, last: PromptWord) -> str:
        """What the encoder reads from one word to another, with the bracket that closes behind."""
        text, end, opened = "", first.start, 0
        for span in self.spans[self._index(first.start) :]:
            if span.start >= last.end and not (opened > 0 and span.kind == "punctuation" and span.text[0] == ")"):
                break
            if span.kind in _READ:
                gap = self.prompt[end : span.start]
                text += (" " if gap.strip("\\") else "") + (span.text if span.start < last.end else ")")
                opened += span.text.count("(") - span.text.count(")")
            end = span.end
        return text

    def words_of(self, entity: Entity, words: Sequence[PromptWord], starts: Sequence[int]) -> list[int]:
        """The indexes of an entity's selectable words."""
        first = max(bisect_left(starts, entity.start + 1) - 1, 0)
        last = bisect_left(starts, entity.end)
        return [k for k in range(first, last) if words[k].selectable and words[k].end > entity.start]


def _number_of(token: int, places: Sequence[int]) -> int:
    """Which of the places is the last that begins with the token, from 1; 0 for none."""
    number = bisect_right(places, token)
    return number if number and places[number - 1] == token else 0


def describe(
    prompt: str,
    tokenize: Callable[[str], Sequence[align.Piece]],
    entities: Sequence[str] = (),
    selected: Sequence[Sequence[int]] = (),
    dialect: syntax.Dialect = syntax.HOST,
    gone: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """``{"words", "suggested", "left_out", "entities", "colours", "tokens": total}`` of a prompt as typed.

    ``tokenize``: the host's, of the text of one ``AND`` part. A suggestion is the list of the indexes of its
    words at their first mention; :class:`LeftOut` is what the prompt names, too, but is not kept apart;
    ``tokens`` counts the text tokens of the first step. ``entities`` are looked up as a job would,
    ``selected``, lists of indexes of words, are given names that a job would understand; both come back as
    :class:`Chosen`. The colours are the entities', or the suggestions' where there are no entities.
    ``dialect``: what the host's settings make of the prompt's signs. ``gone``: whether nobody waits any more; then
    Abandoned is raised, between two of the stages and of the prompt's parts. Raises ValueError for an index that is no
    selectable word's, for more than :data:`MOST_ENTITIES`, and for a word of more than :data:`MOST_LETTERS`.
    """
    for field_name, given in (("entities", entities), ("selected", selected)):
        if len(given) > MOST_ENTITIES:
            raise ValueError(f"{field_name}: {len(given)} are not allowed; at most {MOST_ENTITIES}")
    if max(map(len, prompt.split()), default=0) > MOST_LETTERS and (long := _LONG.search(prompt)):
        raise ValueError(
            f"prompt: a word of {len(long[0])} letters, {long[0][:20]}…, is not allowed here; at most {MOST_LETTERS}"
        )
    _go_on_unless(gone)
    spans = syntax.parse(prompt, dialect)
    context = _Context(prompt, spans, tokenize, dialect, gone)
    _go_on_unless(gone)
    words = list(_words(context))
    starts = [word.start for word in words]
    chosen = context.look_up(entities, words) + context.name(selected, words)
    _go_on_unless(gone)
    choice = choose(prompt, dialect)
    suggested: dict[str, list[int]] = {}
    for entity in choice.apart:
        if own := context.words_of(entity, words, starts):
            suggested.setdefault(entity.text, own)
    left_out = [
        LeftOut(one.entity.text, tuple(own), one.why())
        for one in choice.left_out
        if (own := context.words_of(one.entity, words, starts))
    ]
    return {
        "words": words,
        "suggested": list(suggested.values()),
        "left_out": left_out,
        "entities": chosen,
        "colours": colours([one.text for one in chosen] or list(suggested)),
        "tokens": context.total,
    }


def _go_on_unless(gone: Callable[[], bool]) -> None:
    if gone():
        raise Abandoned


def _words(context: _Context) -> Iterator[PromptWord]:
    spans, embeddings = context.spans, context.embeddings
    all_tokens = context.tokens
    chunk = part = read = 0
    for k, (tokens, own_chunk, occurrence) in enumerate(zip(all_tokens, context.chunks, context.occurrences)):
        if k < read:
            continue
        kind_of_span, start, end, text, weight, number, _ = spans[k]
        read = k + 1
        if number != part:
            chunk, part = 0, number
        kind, selectable = _KINDS[kind_of_span], False
        if tokens:
            while read < len(spans) and all_tokens[read] == tokens and _is_one(context, k, read):
                read += 1
            if read > k + 1:
                end = spans[read - 1].end
                text = context.prompt[start:end]
            chunk = own_chunk
            kind = "embedding" if k in embeddings else kind
            selectable = kind in ("word", "embedding")
        yield _word((text, start, end, kind, selectable, tokens, chunk, part, weight, occurrence))


def _is_one(context: _Context, first: int, k: int) -> bool:
    """Whether the span ``k`` and those before it, from the span ``first`` on, can only be chosen together, as they are
    of the same tokens."""
    one, last, own = context.spans[first], context.spans[k - 1], context.spans[k]
    unspaced = one.kind == own.kind == "word" and syntax.UNSPACED.match(own.text)
    return first in context.embeddings or (last.end == own.start and unspaced is not None)
