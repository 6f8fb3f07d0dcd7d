"""A prompt as it stands, for the chips and the API: its words, their tokens, and what is suggested."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..prompt import align, syntax
from ..prompt.entities import locate
from .palette import colours

Kind = Literal["word", "weight", "break", "and", "lora", "embedding", "edit", "comment", "punctuation"]

_KINDS: dict[str, Kind] = {
    **{"word": "word", "weight": "weight", "break": "break", "and": "and", "network": "lora", "comment": "comment"},
    **{"editing": "edit", "alternation": "edit", "choice": "edit", "wildcard": "edit", "punctuation": "punctuation"},
}
_READ = ("word", "punctuation", "choice", "wildcard")
"""Kinds of spans that the text encoder reads."""

_ATOM = re.compile(r"[^\W\d_]+|\d|[^\w\s]+|_+")
"""About what CLIP takes for a word: letters, one digit, or signs."""


@dataclass(frozen=True)
class PromptWord:
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
    """The 77-token chunk of the first token, from 0; of what has none, that of the word before."""
    part: int
    """The ``AND`` part, from 0. ``#n`` names tokens of the first one only."""
    weight: float
    occurrence: int
    """The n of ``word@n``; 1 is the first, 0 where no entity can name it."""


@dataclass(frozen=True)
class Chosen:
    """An entity of the user's."""

    text: str
    """As the field "Entities" holds it."""
    words: tuple[int, ...]
    """Indexes of its words."""
    problem: str
    """Why a job would not find it; "" where it does."""


Turns = list[list[align.Piece]]
"""The tokens of all ``AND`` parts in one context (part k from ``k * align.PART``), for each turn of prompt editing."""


@dataclass
class _Found:
    span: syntax.Span
    tokens: tuple[int, ...] = ()
    embedding: bool = False
    occurrence: int = 1
    pieces: Sequence[align.Piece] = field(default=(), repr=False)


def describe(
    prompt: str,
    tokenize: Callable[[str], Sequence[align.Piece]],
    variants: Callable[[str], Sequence[str]] = lambda text: [text],
    entities: Sequence[str] = (),
    selected: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """``{"words", "suggested", "entities", "colours", "tokens": total}`` of a prompt as typed.

    ``tokenize``: the host's, of the text of one ``AND`` part. ``variants``: the texts that prompt editing
    makes of one part in the course of the steps, in order, each once. A suggestion is the list of the
    indexes of its words at their first mention; ``tokens`` counts the text tokens of the first step.
    ``entities`` are looked up as a job would, ``selected``, lists of indexes of words, are given names that
    a job would understand; both come back as :class:`Chosen`. The colours are the entities', or the suggestions' where
    there are no entities. Raises ValueError for an index that is no
    selectable word's.
    """
    found = [_Found(span) for span in syntax.parse(prompt)]
    total = 0
    before: list[align.Piece] = []  # of the parts so far; their positions are another context's
    turns: list[list[align.Piece]] = []
    for number, part in enumerate(syntax.parts(prompt)):
        own = [one for one in found if one.span.part == number and one.span.kind in _READ]
        first: Sequence[align.Piece] = ()
        for turn, text in enumerate(variants(part.text)):
            if turn and all(one.tokens for one in own):
                break
            pieces = tokenize(text)
            turns += [[]] if turn == len(turns) else []
            turns[turn] += [replace(piece, position=number * align.PART + piece.position) for piece in pieces]
            _place(own, pieces)
            if not turn:
                total += len(pieces)
                first = pieces
        _number(own, before)
        before += [replace(piece, position=-1) for piece in first]
    words = list(_words(prompt, found))
    chosen = _looked_up(entities, words, turns) + _named(selected, words, turns)
    suggested = _suggested(prompt, words)
    return {
        "words": words,
        "suggested": list(suggested.values()),
        "entities": chosen,
        "colours": colours([one.text for one in chosen] or list(suggested)),
        "tokens": total,
    }


def _looked_up(entities: Sequence[str], words: Sequence[PromptWord], turns: Turns) -> list[Chosen]:
    try:
        places = align.align(entities, turns[0] if turns else [], missing="skip")
    except ValueError as error:
        return [Chosen(entity, (), _alone(entity, turns)[1] or str(error)) for entity in entities]
    chosen = []
    for entity, place in zip(entities, places):
        place, problem = (place, "") if place else _alone(entity, turns)
        chosen.append(Chosen(entity, _hit(place, words), problem))
    return chosen


def _alone(entity: str, turns: Turns) -> tuple[tuple[int, ...], str]:
    """Where the first of the ``turns`` that names the entity has it, or why none does."""
    problem = ""
    for pieces in turns or [[]]:
        try:
            return align.find(entity, pieces), ""
        except ValueError as error:
            problem = problem or str(error)
    return (), problem


def _named(selected: Sequence[Sequence[int]], words: Sequence[PromptWord], turns: Turns) -> list[Chosen]:
    wanted = []
    for indexes in selected:
        for k in indexes:
            if not 0 <= k < len(words) or not words[k].selectable:
                raise ValueError(f"selected: {k} is not allowed; the index of a selectable word")
        wanted.append(tuple(sorted(set(indexes))))
    phrases = [" ".join(words[k].text for k in indexes) for indexes in wanted]
    names = list(phrases)
    for k, indexes in enumerate(wanted):
        for name in (phrases[k], *_exact(phrases[k], [words[i] for i in indexes], turns)):
            names[k] = name
            if set(_looked_up(names, words, turns)[k].words) == set(indexes):
                break
        else:
            names[k] = phrases[k]
    return [
        one
        if set(one.words) == set(indexes)
        else Chosen(one.text, indexes, f'entities: "{one.text}" can\'t be named; choose words that stand together')
        for one, indexes in zip(_looked_up(names, words, turns), wanted)
    ]


def _exact(phrase: str, chosen: Sequence[PromptWord], turns: Turns) -> Iterator[str]:
    """Names of one place: with the occurrence's number, and by tokens."""
    positions = [word.part * align.PART + token for word in chosen for token in word.tokens]
    for pieces in turns:
        if number := align.occurrence(phrase, positions, pieces):
            yield f"{phrase}@{number}"
    tokens = sorted(set(positions))
    if tokens:
        yield f"#{tokens[0]}-{tokens[-1]}" if len(tokens) > 1 else f"#{tokens[0]}"


def _hit(place: Sequence[int], words: Sequence[PromptWord]) -> tuple[int, ...]:
    return tuple(
        k for k, word in enumerate(words) if any(word.part * align.PART + token in place for token in word.tokens)
    )


def _place(own: Sequence[_Found], pieces: Sequence[align.Piece]) -> None:
    """Give words of one part that have none yet their tokens among ``pieces``."""
    theirs = align.words(pieces)
    embedded = {piece.position for piece in pieces if piece.embedding}
    atoms = [(_key(match[0]), one) for one in own for match in _ATOM.finditer(one.span.text)]
    keys = [_key(word.text) for word in theirs]
    places: dict[int, list[int]] = {}

    def give(k: int, word: align.Word) -> None:
        places.setdefault(id(atoms[k][1]), []).extend(word.positions)

    matcher = difflib.SequenceMatcher(None, [key for key, _ in atoms], keys, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            for k, word in zip(range(a, b), theirs[c:d]):
                give(k, word)
        elif tag == "replace":
            # Where both read the same but part words otherwise ("dog's" is two of CLIP's words), letters decide.
            ours = [k for k in range(a, b) for _ in atoms[k][0]]
            whose = [word for key, word in zip(keys[c:d], theirs[c:d]) for _ in key]
            if "".join(atoms[k][0] for k in range(a, b)) == "".join(keys[c:d]):
                for k, word in dict.fromkeys(zip(ours, whose)):
                    give(k, word)
    for one in own:
        if not one.tokens and id(one) in places:
            one.tokens = tuple(sorted(set(places[id(one)])))
            one.embedding = bool(embedded & set(one.tokens))
            one.pieces = pieces


def _number(own: Sequence[_Found], before: Sequence[align.Piece]) -> None:
    """Say which occurrence of its text each word is, behind the parts ``before``."""
    text = "".join(_key(word.text) for word in align.words(before))
    text += "".join(_key(one.span.text) for one in own)
    for one in own:
        if not one.tokens:
            one.occurrence = 0
        elif text.count(_key(one.span.text)) > 1:
            one.occurrence = align.occurrence(one.span.text, one.tokens, [*before, *one.pieces])


def _words(prompt: str, found: Sequence[_Found]) -> Iterator[PromptWord]:
    chunk, part = 0, 0
    i = 0
    while i < len(found):
        one, last = found[i], found[i]
        i += 1
        while one.embedding and i < len(found) and found[i].tokens == one.tokens:
            last = found[i]
            i += 1
        span = one.span
        if span.part != part:
            chunk, part = 0, span.part
        if one.tokens:
            chunk = one.tokens[0] // align.CHUNK
        kind: Kind = "embedding" if one.embedding else _KINDS[span.kind]
        selectable = kind in ("word", "embedding") and bool(one.tokens)
        text = prompt[span.start : last.span.end] if one is not last else span.text
        yield PromptWord(
            text, span.start, last.span.end, kind, selectable, one.tokens, chunk, part, span.weight, one.occurrence
        )


def _suggested(prompt: str, words: Sequence[PromptWord]) -> dict[str, list[int]]:
    """Each suggestion, and the indexes of its selectable words at its first mention."""
    first: dict[str, list[int]] = {}
    for entity in locate(prompt):
        own = [k for k, word in enumerate(words) if word.start < entity.end and entity.start < word.end]
        chosen = [k for k in own if words[k].selectable]
        if chosen:
            first.setdefault(entity.text, chosen)
    return first


def _key(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text).lower().split())
