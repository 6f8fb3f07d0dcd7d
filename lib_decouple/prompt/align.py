"""An entity's words -> the positions of their tokens in the host's text context.

A host gives its real tokenisation as :class:`Piece`\\ s, in order, without start, end and padding
tokens::

    pieces = [Piece(1, "a</w>"), Piece(2, "por"), Piece(3, "cup"), Piece(4, "ine</w>")]
    find("porcupine", pieces)                    # (2, 3, 4)
    align(["cat", "dog@2"], pieces)              # one tuple of positions an entity, in the same order
    align(["cat", "dog"], pieces, missing="skip")  # () for an entity that the prompt does not name

Positions count from the context's first token (position 0). CLIP's are start tokens, and each 77-token chunk has its
own start and end token, so chunk k's first text token is at ``77*k + 1``; T5 has neither chunks nor a start token.

An entity is written as one or more words of the prompt ("traffic light", "kiwi (bird)"), as ``dog@2`` for
the second occurrence, or as ``#5`` or ``#5-7`` for positions. Case does not count, nor does a backslash
before a bracket. Where the words as written occur too seldom, hyphens, underscores and brackets, and then a plural
of the last word, are overlooked. In scripts that put no spaces between words, and among emoji, an entity may
begin and end at any character.

:func:`place` gives the positions of a prompt's words, wherever they stand. Everything takes a time linear in
the length of the prompt for each entity.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import accumulate, chain, groupby, pairwise
from typing import Literal, NamedTuple

from .syntax import UNSPACED

CHUNK = 77
"""Tokens of a chunk of CLIP's, with its start and end token."""

PART = 1_000_000
"""Positions that an ``AND`` part takes where the parts of a prompt are joined for :func:`align`."""

WORD_END = "</w>"
"""CLIP's mark on the last token of a word."""

_POSITIONS = re.compile(r"#(\d{1,6})(?:-(\d{1,6}))?")
_OCCURRENCE = re.compile(r"(.*\S)\s*@(\d{1,6})", re.S)
_LISTED_WORDS = 80
_CANDIDATES = 400
_HINTED = 60
"""Characters of the longest phrase for which a near word is looked for."""
_LITTLE = frozenset(
    {
        *("a", "an", "and", "are", "as", "at", "by", "for", "from", "in", "into", "is", "it", "its", "no", "not", "of"),
        *("on", "onto", "or", "over", "than", "that", "the", "their", "these", "this", "those", "to", "under", "up"),
        *("above", "behind", "below", "beside", "between", "near", "with", "without"),
    }
)
"""Words that nobody means as an entity."""
_JOINED = re.compile(r"\s+(?:and|or|with|vs\.?|versus)\s+|\s*[&+/|]\s*")
"""What people write between two things."""


class EntityNotFound(ValueError):
    """The prompt does not name the entity."""


class EntityConflict(ValueError):
    """Two entities share an occurrence."""


class Piece(NamedTuple):
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
    chunk: int = 0
    """Which of the encoder's chunks holds it; 0 in all of an encoder that reads a text of any length at once."""


class Word(NamedTuple):
    """A word as the tokenizer sees it ("1girl" is two: CLIP takes each digit alone)."""

    text: str
    positions: tuple[int, ...]
    pieces: tuple[str, ...] = ()
    """The tokens' texts; () where each holds the whole word."""

    @property
    def whole(self) -> bool:
        """Does each of its tokens hold all of its characters?"""
        return not self.pieces or len(self.positions) == 1

    def characters(self) -> tuple[str, list[tuple[int, ...]]]:
        """Its characters, as the tokenizer would compare them, and of each the positions of the tokens that hold it."""
        if self.whole:
            key = _key(self.text)
            return key, [self.positions] * len(key)
        owners: list[tuple[int, ...]] = [(p,) for p, piece in zip(self.positions, self.pieces) for _ in piece]
        if self.text.isascii():
            return self.text.lower(), owners
        letters, own, at = "", [], 0
        in_bytes = sum(map(len, self.pieces)) != len(self.text)
        for char in self.text:
            # A character is one of the vocabulary's characters a byte, or itself where the vocabulary is plain.
            size = len(char.encode()) if in_bytes else 1
            key = _key(char)
            letters += key
            own += [tuple(sorted(set(chain.from_iterable(owners[at : at + size]))))] * len(key)
            at += size
        return letters, own

    def moved(self, by: int) -> Word:
        """It at positions that are greater ``by``."""
        text, positions, pieces = self
        return _word((text, tuple([position + by for position in positions]), pieces))


_word: Callable[[tuple[object, ...]], Word] = partial(tuple.__new__, Word)
"""``Word(*fields)``, faster."""


def words(pieces: Iterable[Piece]) -> tuple[Word, ...]:
    """``pieces`` joined to words; the last word may lack its end mark, as where a host cuts a prompt short."""
    found: list[Word] = []
    own: list[Piece] = []

    def close() -> None:
        texts = tuple(piece.text.removesuffix(WORD_END) for piece in own)
        whole = any(piece.embedding for piece in own) or "" in texts
        text = _decoded("".join(texts))
        found.append(Word(text, tuple(piece.position for piece in own), () if whole else texts))
        own.clear()

    for piece in pieces:
        position, text, embedding, _ = piece
        if not own and text.endswith(WORD_END):
            text = text[: -len(WORD_END)]
            found.append(_word((_decoded(text), (position,), (text,) if text and not embedding else ())))
            continue
        own.append(piece)
        if piece.text.endswith(WORD_END):
            close()
    if own:
        close()
    return tuple(found)


_NONE: list[tuple[int, ...]] = []


class Letters:
    """The characters of words, written without spaces, and the tokens that hold them."""

    def __init__(self, words: Iterable[Word]) -> None:
        words = list(words)
        self._positions = [positions for _, positions, _ in words]
        self._owners = [_NONE] * len(words)
        """Of each word's characters; none where each of its tokens holds all of them."""
        self.texts = _keys(text for text, _, _ in words)
        """Of each word."""
        for k, (_, positions, pieces) in enumerate(words):
            if pieces and len(positions) > 1:
                self.texts[k], self._owners[k] = words[k].characters()
        self.starts = list(accumulate(map(len, self.texts), initial=0))
        """Of each word, and where the last one ends."""

    def tokens(self, start: int, end: int) -> tuple[int, ...]:
        """Positions of the tokens that hold the characters from ``start`` to ``end``, ascending."""
        first = bisect_right(self.starts, start) - 1
        if end <= self.starts[first + 1]:
            return self._within(first, start, end)
        last = bisect_left(self.starts, end)
        found = (self._within(k, start, end) for k in range(first, last) if self.texts[k])
        return tuple(sorted(set(chain.from_iterable(found))))

    def tokens_of_each(self, texts: Iterable[str]) -> list[tuple[int, ...]]:
        """The same of texts that are all characters together, in their order; () for one without characters."""
        found: list[tuple[int, ...]] = []
        starts, k, at = self.starts, 0, 0
        for text in texts:
            end = at + len(text)
            while starts[k + 1] <= at < end:
                k += 1
            if at < end <= starts[k + 1] and not self._owners[k]:
                found.append(self._positions[k])
            else:
                found.append(self.tokens(at, end) if at < end else ())
            at = end
        return found

    def first_tokens(self, places: Iterable[int]) -> list[int]:
        """Of each of some characters, the position of the first token that holds it."""
        of_words = {start: positions[0] for start, positions in zip(self.starts, self._positions)}
        return [of_words[at] if at in of_words else self._first_token(at) for at in places]

    def _first_token(self, at: int) -> int:
        k = bisect_right(self.starts, at) - 1
        return (self._owners[k][at - self.starts[k]] if self._owners[k] else self._positions[k])[0]

    def _within(self, k: int, start: int, end: int) -> tuple[int, ...]:
        """The same of the characters that word ``k`` has."""
        if not self._owners[k]:
            return self._positions[k]
        begin = self.starts[k]
        return tuple(sorted(set(chain.from_iterable(self._owners[k][max(start - begin, 0) : end - begin]))))


class Reading:
    """A tokenised text as entities are looked up in it."""

    def __init__(self, words: Iterable[Word]) -> None:
        self.words = tuple(words)

    @cached_property
    def positions(self) -> list[int]:
        """Of all tokens, ascending."""
        return sorted(p for word in self.words for p in word.positions)

    @cached_property
    def letters(self) -> Letters:
        """Of all words."""
        return Letters(self.words)

    @cached_property
    def _strict(self) -> _Line:
        return _Line(self.words, self.letters, _key)

    @cached_property
    def _loosely(self) -> _Line:
        return _Line(self.words, self.letters, _loose)

    def first_tokens(self, phrases: Iterable[str]) -> list[list[int]]:
        """Of each of ``phrases`` the first token of each place that is the first of its :meth:`occurrences`; all at
        once, which is faster than one by one."""
        keys = [_key(phrase) for phrase in phrases]
        self._strict.look_for(set(keys))
        return [self._strict.first_tokens(key) for key in keys]

    def occurrences(self, phrase: str) -> Iterator[list[tuple[int, ...]]]:
        """Places of ``phrase``, read ever more loosely; what a stricter reading finds, a looser one finds too."""
        yield self._strict.places([_key(phrase)])
        yield self._loosely.places([_loose(phrase)])
        yield self._loosely.places(_numbers(_loose(phrase)))

    def number(self, phrase: str, positions: Iterable[int]) -> int:
        """The n with which ``phrase@n`` names the place that holds ``positions``; 0 where none does."""
        wanted = sorted(positions)
        for places in self.occurrences(phrase):
            at = bisect_left([place[-1] for place in places], wanted[0])
            if at < len(places) and not set(places[at]).isdisjoint(wanted):
                return at + 1
        return 0


def find(entity: str, pieces: Sequence[Piece]) -> tuple[int, ...]:
    """Positions of ``entity`` in ``pieces``, ascending.

    Raises EntityNotFound where the prompt does not name it, and ValueError for an empty entity,
    ``@0`` or a backward range.
    """
    return align([entity], pieces)[0]


def align(
    entities: Sequence[str], pieces: Sequence[Piece] | Reading, missing: Literal["raise", "skip"] = "raise"
) -> list[tuple[int, ...]]:
    """Positions of each entity, in the order of ``entities``.

    An entity inside a longer one's occurrence ("light" beside "traffic light") takes its next free one.
    With ``missing="skip"`` an entity that the prompt does not name gets ``()``. Raises as
    :func:`find`, and EntityConflict where two entities would share a token.
    """
    prompt = pieces if isinstance(pieces, Reading) else Reading(words(pieces))
    chosen: list[tuple[int, ...]] = [()] * len(entities)
    parsed = [_parse(entity) for entity in entities]
    lengths = [(len(re.findall(r"[^\W_]+", one.phrase)), len(one.phrase)) for one in parsed]
    # Longer phrases first, so that a shorter one leaves their tokens alone: "light" those of "traffic light", and "boy"
    # those of "1boy".
    order = sorted(range(len(entities)), key=lambda i: lengths[i], reverse=True)
    longer: set[int] = set()
    for _, alike in groupby(order, key=lambda i: lengths[i]):
        group = list(alike)
        for i in group:
            places = _positions(parsed[i], prompt)
            if not places:
                if missing == "raise":
                    raise EntityNotFound(_missing(parsed[i], prompt))
                continue
            free = next((place for place in places if longer.isdisjoint(place)), None)
            chosen[i] = free if free is not None and parsed[i].occurrence is None else places[0]
        for i in group:
            longer.update(chosen[i])
    _check_distinct(entities, chosen)
    return chosen


def occurrence(phrase: str, positions: Sequence[int], pieces: Sequence[Piece]) -> int:
    """:meth:`Reading.number` in ``pieces``."""
    return Reading(words(pieces)).number(phrase, positions)


def place(texts: Sequence[str], read: Reading) -> list[tuple[int, ...]]:
    """The positions of each of ``texts``: a prompt's words and signs, in its order, as the encoder has ``read`` them.

    ``()`` for one that it lacks. Where the two differ, as a host's tokenizer may put one character for
    another, what is alike before and behind is matched.
    """
    keys = _keys(texts)
    theirs = read.letters
    written, letters = "".join(keys), "".join(theirs.texts)
    if written == letters:
        return theirs.tokens_of_each(keys)
    starts = list(accumulate(map(len, keys), initial=0))
    found: list[set[int]] = [set() for _ in texts]
    for i, j, length in _matched(written, letters):
        for k in range(bisect_right(starts, i) - 1, bisect_left(starts, i + length)):
            first, end = max(starts[k], i), min(starts[k + 1], i + length)
            if first < end:
                found[k].update(theirs.tokens(first - i + j, end - i + j))
    return [tuple(sorted(own)) for own in found]


_GRAM = 3
"""Characters that must be alike for two texts to count as being at the same place again."""
_WINDOW = 32
"""How many characters of the one text may lack in the other before these are looked for further on."""


def _matched(ours: str, theirs: str) -> Iterator[tuple[int, int, int]]:
    """Where like characters begin in both, and how many they are, ascending."""
    ours, theirs = ours + "\0" * _GRAM, theirs + "\0" * _GRAM
    grams: dict[str, list[int]] = {}
    i = j = 0
    while i < len(ours) - _GRAM and j < len(theirs) - _GRAM:
        if ours[i] == theirs[j]:
            length = min(_alike(ours, i, theirs, j), len(ours) - _GRAM - i, len(theirs) - _GRAM - j)
            yield i, j, length
            i, j = i + length, j + length
            continue
        if not grams:
            for k in range(len(ours) - _GRAM + 1):
                grams.setdefault(ours[k : k + _GRAM], []).append(k)
        best: tuple[int, int, int] | None = None
        for skip in range(min(_WINDOW, len(theirs) - _GRAM - j + 1)):
            if best and skip >= best[0]:
                break
            places = grams.get(theirs[j + skip : j + skip + _GRAM], [])
            at = bisect_left(places, i)
            if at < len(places) and (best is None or skip + places[at] - i < best[0]):
                best = skip + places[at] - i, places[at], j + skip
        if best is None:
            j += _WINDOW
        else:
            _, i, j = best


def _alike(ours: str, i: int, theirs: str, j: int) -> int:
    """How many characters are alike from ``i`` and ``j`` on; compared by strides, as each comparison has its price."""
    length, stride = 0, 1
    while stride:
        a, b = i + length, j + length
        if a + stride <= len(ours) and ours[a : a + stride] == theirs[b : b + stride]:
            length, stride = length + stride, 2 * stride
        else:
            stride //= 2
    return length


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
        return _Request(entity, _unescaped(match[1]), int(match[2]))
    return _Request(entity, _unescaped(entity))


def _unescaped(phrase: str) -> str:
    return re.sub(r"\\([()\[\]])", r"\1", phrase)


def _positions(request: _Request, prompt: Reading) -> list[tuple[int, ...]]:
    """The places that ``request`` may mean, the likeliest first."""
    if request.range:
        first, last = request.range
        there = prompt.positions
        inside = tuple(there[bisect_left(there, first) : bisect_right(there, last)])
        return [inside] if inside and (inside[0], inside[-1]) == (first, last) else []
    wanted = request.occurrence or 1
    for places in prompt.occurrences(request.phrase):
        if len(places) >= wanted:
            return places if request.occurrence is None else [places[wanted - 1]]
    return []


def _missing(request: _Request, prompt: Reading) -> str:
    """Why ``request`` means no place."""
    if request.range:
        there = prompt.positions
        allowed = f"the prompt's tokens stand at {_ranges(there)}" if there else "the prompt has no tokens"
        return f'entities: "{request.entity}" is not in the prompt; {allowed}'
    most = max(len(places) for places in prompt.occurrences(request.phrase))
    if most:
        times = "once" if most == 1 else f"{most} times"
        return f'entities: there is no "{request.entity}"; "{request.phrase}" occurs {times} in the prompt'
    return _not_found(request.phrase, prompt.words)


_SHORT = 24
"""Characters of the longest phrase that is looked for together with others."""


class _Line:
    """Words written without spaces, each character knowing whose it is."""

    def __init__(self, prompt: Sequence[Word], letters: Letters, key: Callable[[str], str]) -> None:
        self._letters = letters
        texts = list(letters.texts)
        changed: dict[int, list[int]] = {}
        signs: list[int] = []
        for k, own in enumerate(texts):
            if own.isalnum():
                continue
            if not any(map(str.isalnum, prompt[k].text)):
                signs.append(k)
            keys = [char if char.isalnum() else key(char) for char in own]
            texts[k] = "".join(keys)
            if len(texts[k]) != len(own) or "" in keys:
                changed[k] = [i for i, one in enumerate(keys, start=letters.starts[k]) for _ in one]
        self.text = "".join(texts)
        starts = list(accumulate(map(len, texts), initial=0))
        edges = set(starts)
        for k in signs:
            # CLIP takes signs that touch for one word: of "(bird)," the last two.
            edges.update(range(starts[k], starts[k] + len(prompt[k].text)))
        for match in () if self.text.isascii() else UNSPACED.finditer(self.text):
            edges.update(match.span())
        self._edges = edges
        self._where: Sequence[int] = range(len(self.text))
        """Of each character of ``text``, its index among the letters, of which some are overlooked."""
        if changed:
            same = (range(*ends) for ends in pairwise(letters.starts))
            self._where = list(chain.from_iterable(changed.get(k, own) for k, own in enumerate(same)))
        self._places: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
        self._looked_for: dict[str, list[int]] = {}
        """The first token of each place of each phrase."""

    def look_for(self, phrases: set[str]) -> None:
        """Find the places of the short ones of ``phrases`` in one pass."""
        found: dict[str, list[int]] = {phrase: [] for phrase in phrases if 0 < len(phrase) <= _SHORT}
        begins = {phrase[:length] for phrase in found for length in range(1, len(phrase))}
        ends = dict.fromkeys(found, 0)
        edges, text, where = sorted(self._edges), self.text, self._where
        stretches = [text[start:end] for start, end in pairwise(edges)]
        tokens = self._letters.first_tokens([where[edge] for edge in edges[:-1]])
        for k, (phrase, token) in enumerate(zip(stretches, tokens)):
            if phrase in found:
                found[phrase].append(token)
            n = k + 1
            while phrase in begins and n < len(stretches):
                phrase += stretches[n]
                n += 1
                if phrase in found and edges[k] >= ends[phrase]:
                    found[phrase].append(token)
                    ends[phrase] = edges[n]
        self._looked_for.update(found)

    def first_tokens(self, phrase: str) -> list[int]:
        """The first token of each place of ``phrase``."""
        if phrase in self._looked_for:
            return self._looked_for[phrase]
        return [place[0] for place in self.places([phrase])]

    def places(self, phrases: Iterable[str]) -> list[tuple[int, ...]]:
        """Tokens of the places that read like one of ``phrases``, left to right, without overlap."""
        wanted = tuple(phrase for phrase in dict.fromkeys(phrases) if phrase)
        if wanted not in self._places:
            spans = sorted(span for phrase in wanted for span in self._spans(phrase))
            found, end = [], 0
            for start, stop in spans:
                if start >= end:
                    found.append(self._tokens(start, stop))
                    end = stop
            self._places[wanted] = found
        return self._places[wanted]

    def _tokens(self, start: int, end: int) -> tuple[int, ...]:
        return self._letters.tokens(self._where[start], self._where[end - 1] + 1)

    def _spans(self, phrase: str) -> Iterator[tuple[int, int]]:
        start = self.text.find(phrase)
        while start >= 0:
            end = start + len(phrase)
            whole = start in self._edges and end in self._edges
            if whole:
                yield start, end
            start = self.text.find(phrase, end if whole else start + 1)


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
    shown = phrase if len(phrase) <= 200 else phrase[:200] + "…"
    if not named:
        return f'entities: "{shown}" is not in the prompt, which has no words'
    length = len(phrase.split())
    near: list[str] = []
    if len(phrase) <= _HINTED:
        texts = [word.text for word in prompt]
        phrases = (" ".join(texts[i : i + length]) for i in range(len(texts) - length + 1))
        candidates = [
            one
            for one in dict.fromkeys([*named, *phrases])
            if len(phrase) <= 2 * len(one) <= 4 * _HINTED
            and not _LITTLE & {*one.lower().split(" ")[:: max(1, one.count(" "))]}
        ]
        near = difflib.get_close_matches(phrase.lower(), candidates[:_CANDIDATES], n=1, cutoff=0.5)
    hint = f'; did you mean "{near[0]}"?' if near else "."
    if len(phrase) <= _HINTED and len(several := _named_together(phrase, prompt)) > 1:
        hint = f'; to keep them apart write "{", ".join(several)}".'
    more = f" … and {len(named) - _LISTED_WORDS} more" if len(named) > _LISTED_WORDS else ""
    return f'entities: "{shown}" is not in the prompt{hint} Its words: {", ".join(named[:_LISTED_WORDS])}{more}'


def _named_together(phrase: str, prompt: Sequence[Word]) -> list[str]:
    """The things that one entity joins, such as "a cat & the dog", where the prompt names each; else none."""
    text = f" {' '.join(word.text for word in prompt).lower()} "
    parts = []
    for part in _JOINED.split(phrase.lower()):
        words = part.split()
        while words and words[0] in _LITTLE:
            del words[0]
        parts.append(" ".join(words))
    return parts if all(part and f" {part} " in text for part in parts) else []


def _ranges(positions: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for p in positions:
        if runs and runs[-1][1] + 1 == p:
            runs[-1][1] = p
        else:
            runs.append([p, p])
    return ", ".join(f"#{a}-{b}" if a != b else f"#{a}" for a, b in runs)


def _keys(texts: Iterable[str]) -> list[str]:
    """:func:`_key` of each."""
    return [text.lower() if text.isalnum() and text.isascii() else _key(text) for text in texts]


def _key(text: str) -> str:
    """``text`` as the tokenizer would compare it: composed, lower case, without white space."""
    return _remembered_key(text) if len(text) <= _SHORT else _made_key(text)


@lru_cache(maxsize=8192)
def _remembered_key(text: str) -> str:
    return _made_key(text)


def _made_key(text: str) -> str:
    if text.isascii():
        return text.lower() if text.isalnum() else "".join(text.lower().split())
    return "".join(unicodedata.normalize("NFC", text).lower().split())


def _loose(text: str) -> str:
    return re.sub(r"[-‐‑_\\()\[\]]+", "", _key(text))


def _numbers(word: str) -> list[str]:
    """``word``, and what may be its plural or its singular."""
    single = _singular(word)
    forms = (word, single, single + "s", single + "es", single[:-1] + "ies" if single.endswith("y") else single)
    return [form for form in dict.fromkeys(forms) if _singular(form) == single]


def _singular(word: str) -> str:
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


@lru_cache(maxsize=8192)
def _decoded(text: str) -> str:
    """A word of the vocabulary as plain text; one that is plain text already stays so."""
    try:
        return bytes(_BYTES[char] for char in text).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return text
