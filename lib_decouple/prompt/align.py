"""An entity's words -> the positions of their tokens in the host's text context.

A host gives its real tokenisation as :class:`Piece`\\ s, in order, without start, end and padding
tokens::

    pieces = [Piece(1, "a</w>"), Piece(2, "por"), Piece(3, "cup"), Piece(4, "ine</w>")]
    find("porcupine", pieces)                    # (2, 3, 4)
    align(["cat", "dog@2"], pieces)              # one tuple of positions an entity, in the same order
    align(["cat", "dog"], pieces, missing="skip")  # () for an entity that the prompt does not name

Positions count from the context's first start token (position 0). Each 77-token chunk has its own
start and end token, so chunk k's first text token is at ``77*k + 1``.

An entity is written as one or more words of the prompt ("traffic light"), as ``dog@2`` for the
second occurrence, or as ``#5`` or ``#5-7`` for positions. Case does not count. Where the words as
written occur too seldom, hyphens and underscores, and then a plural of the last word, are overlooked.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

CHUNK = 77
"""Tokens of a chunk, with its start and end token."""

PART = 1_000_000
"""Positions that an ``AND`` part takes where the parts of a prompt are joined for :func:`align`."""

WORD_END = "</w>"
"""CLIP's mark on the last token of a word."""

_POSITIONS = re.compile(r"#(\d{1,6})(?:-(\d{1,6}))?")
_OCCURRENCE = re.compile(r"(.*\S)\s*@(\d{1,6})", re.S)
_LISTED_WORDS = 80


class EntityNotFound(ValueError):
    """The prompt does not name the entity."""


class EntityConflict(ValueError):
    """Two entities share an occurrence."""


@dataclass(frozen=True)
class Piece:
    """One token of the context."""

    position: int
    """In the context, start tokens included."""
    text: str
    """As in the tokenizer's vocabulary, with ``</w>`` where a word ends.

    A textual inversion of several vectors is one word: its name with ``</w>`` on the last piece, ""
    on those before.
    """
    embedding: bool = False
    """Of a textual inversion."""


@dataclass(frozen=True)
class Word:
    """A word as the tokenizer sees it ("1girl" is two: CLIP takes each digit alone)."""

    text: str
    positions: tuple[int, ...]


def words(pieces: Sequence[Piece]) -> tuple[Word, ...]:
    """``pieces`` joined to words; the last word may lack its end mark, as where a host cuts a prompt short."""
    found = []
    text, positions = "", []
    for piece in pieces:
        text += piece.text.removesuffix(WORD_END)
        positions.append(piece.position)
        if piece.text.endswith(WORD_END):
            found.append(Word(_decoded(text), tuple(positions)))
            text, positions = "", []
    if positions:
        found.append(Word(_decoded(text), tuple(positions)))
    return tuple(found)


def find(entity: str, pieces: Sequence[Piece]) -> tuple[int, ...]:
    """Positions of ``entity`` in ``pieces``, ascending.

    Raises EntityNotFound where the prompt does not name it, and ValueError for an empty entity,
    ``@0`` or a backward range.
    """
    return align([entity], pieces)[0]


def align(
    entities: Sequence[str], pieces: Sequence[Piece], missing: Literal["raise", "skip"] = "raise"
) -> list[tuple[int, ...]]:
    """Positions of each entity, in the order of ``entities``.

    An entity inside a longer one's occurrence ("light" beside "traffic light") takes its next free one.
    With ``missing="skip"`` an entity that the prompt does not name gets ``()``. Raises as
    :func:`find`, and EntityConflict where two entities would share a token.
    """
    prompt = words(pieces)
    chosen: list[tuple[int, ...]] = [()] * len(entities)
    parsed = [_parse(entity) for entity in entities]
    lengths = [len(re.findall(r"[^\W_]+", request.phrase)) for request in parsed]
    # Longer phrases first, so that a shorter one leaves their tokens alone.
    for i in sorted(range(len(entities)), key=lambda i: -lengths[i]):
        try:
            places = _positions(parsed[i], prompt)
        except EntityNotFound:
            if missing == "raise":
                raise
            continue
        longer = {p for k, other in enumerate(chosen) if lengths[k] > lengths[i] for p in other}
        free = [place for place in places if not longer & set(place)]
        chosen[i] = free[0] if free and parsed[i].occurrence is None else places[0]
    _check_distinct(entities, chosen)
    return chosen


def occurrence(phrase: str, positions: Sequence[int], pieces: Sequence[Piece]) -> int:
    """The n with which ``phrase@n`` names the place that holds ``positions``; 0 where none does."""
    wanted = set(positions)
    for places in _occurrences(phrase, words(pieces)):
        for number, place in enumerate(places, start=1):
            if wanted & set(place):
                return number
    return 0


@dataclass(frozen=True)
class _Request:
    """An entity as the user wrote it, understood."""

    entity: str
    phrase: str = ""
    occurrence: int | None = None
    range: tuple[int, int] | None = None


def _parse(entity: str) -> _Request:
    entity = entity.strip()
    if not entity:
        raise ValueError('entities: "" is not allowed; give a word of the prompt, "dog@2" or "#5-7"')
    if match := _POSITIONS.fullmatch(entity):
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f'entities: "{entity}" runs backward; write "#{last}-{first}"')
        return _Request(entity, range=(first, last))
    if match := _OCCURRENCE.fullmatch(entity):
        if int(match[2]) == 0:
            raise ValueError(f'entities: "{entity}" is not allowed; occurrences count from 1 ("{match[1]}@1")')
        return _Request(entity, match[1], int(match[2]))
    return _Request(entity, entity)


def _positions(request: _Request, prompt: Sequence[Word]) -> list[tuple[int, ...]]:
    """The places that ``request`` may mean, the likeliest first."""
    if request.range:
        return [_explicit(request, prompt)]
    wanted = request.occurrence or 1
    most = 0
    for places in _occurrences(request.phrase, prompt):
        if len(places) >= wanted:
            return places if request.occurrence is None else [places[wanted - 1]]
        most = max(most, len(places))
    if most:
        times = "once" if most == 1 else f"{most} times"
        raise EntityNotFound(
            f'entities: there is no "{request.entity}"; "{request.phrase}" occurs {times} in the prompt'
        )
    raise EntityNotFound(_not_found(request.phrase, prompt))


def _explicit(request: _Request, prompt: Sequence[Word]) -> tuple[int, ...]:
    first, last = request.range or (0, 0)
    there = sorted(p for word in prompt for p in word.positions)
    positions = tuple(p for p in there if first <= p <= last)
    if first not in there or last not in there:
        allowed = f"the prompt's tokens stand at {_ranges(there)}" if there else "the prompt has no tokens"
        raise EntityNotFound(f'entities: "{request.entity}" is not in the prompt; {allowed}')
    return positions


def _occurrences(phrase: str, prompt: Sequence[Word]) -> Iterable[list[tuple[int, ...]]]:
    """Places of ``phrase``, read ever more loosely; what a stricter reading finds, a looser one finds too."""
    for key in (_key, _loose, _singular):
        wanted = key(phrase)
        yield _matches(wanted, prompt, key) if wanted else []


def _matches(wanted: str, prompt: Sequence[Word], key: Callable[[str], str]) -> list[tuple[int, ...]]:
    """Runs of whole words that read ``wanted`` when written without spaces, left to right, without overlap."""
    texts = [_key(word.text) for word in prompt]
    found, start = [], 0
    while start < len(texts):
        joined, end = "", start
        while end < len(texts) and len(joined) <= len(wanted) + 2:
            joined += texts[end]
            end += 1
            if key(joined) == wanted and key(texts[end - 1]) and key(texts[start]):
                found.append(tuple(p for word in prompt[start:end] for p in word.positions))
                start = end - 1
                break
        start += 1
    return found


def _check_distinct(entities: Sequence[str], chosen: Sequence[tuple[int, ...]]) -> None:
    owner: dict[int, int] = {}
    for i, positions in enumerate(chosen):
        for position in positions:
            k = owner.setdefault(position, i)
            if k != i:
                raise EntityConflict(
                    f'entities: "{entities[k]}" and "{entities[i]}" are the same word of the prompt (token {position});'
                    f' for another occurrence write "{entities[i].split("@")[0].strip()}@2"'
                )


def _not_found(phrase: str, prompt: Sequence[Word]) -> str:
    named = list(dict.fromkeys(word.text for word in prompt if any(char.isalnum() for char in word.text)))
    if not named:
        return f'entities: "{phrase}" is not in the prompt, which has no words'
    length = len(phrase.split())
    phrases = [" ".join(word.text for word in prompt[i : i + length]) for i in range(len(prompt) - length + 1)]
    near = difflib.get_close_matches(phrase.lower(), [*named, *phrases], n=1, cutoff=0.5)
    hint = f'; did you mean "{near[0]}"?' if near else "."
    more = f" … and {len(named) - _LISTED_WORDS} more" if len(named) > _LISTED_WORDS else ""
    return f'entities: "{phrase}" is not in the prompt{hint} Its words: {", ".join(named[:_LISTED_WORDS])}{more}'


def _ranges(positions: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for p in positions:
        if runs and runs[-1][1] + 1 == p:
            runs[-1][1] = p
        else:
            runs.append([p, p])
    return ", ".join(f"#{a}-{b}" if a != b else f"#{a}" for a, b in runs)


def _key(text: str) -> str:
    """``text`` as the tokenizer would compare it: composed, lower case, without white space."""
    return "".join(unicodedata.normalize("NFC", text).lower().split())


def _loose(text: str) -> str:
    return re.sub(r"[-‐‑_]+", "", _key(text))


def _singular(text: str) -> str:
    word = _loose(text)
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and re.search(r"(?:s|x|z|ch|sh)es$", word):
        return word[:-2]
    if len(word) > 2 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's writing of bytes as printable characters, which CLIP's vocabulary uses."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _decoded(text: str) -> str:
    """A word of the vocabulary as plain text; one that is plain text already stays so."""
    try:
        return bytes(_BYTES[char] for char in text).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return text
