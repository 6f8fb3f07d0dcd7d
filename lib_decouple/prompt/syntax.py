"""The WebUI's prompt language, read without the WebUI.

The order is that of AUTOMATIC1111 v1.10.1: comments go (``#`` to the end of the line), then extra
networks (``<lora:name:0.8>``), then the text is split at ``AND``; in each part ``[a:b:0.5]`` and
``[a|b]`` are resolved, and what is left has its attention weights read. Before all of these,
dynamic-prompts fills in ``{a|b}`` and ``__wildcards__``.

No string is an error, and each is read in a time linear in its length. As in AUTOMATIC1111 a closing
bracket without its opening one is text, an opening bracket without its closing one acts to the end of
its part, a ``|`` outside brackets turns prompt editing off for that part, and a ``BREAK`` inside a
weight is an ordinary word. What the host's settings make of these signs is a :class:`Dialect`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain, compress, pairwise
from operator import itemgetter
from typing import Literal, NamedTuple

Kind = Literal[
    "word",
    "punctuation",
    "weight",
    "break",
    "and",
    "network",
    "editing",
    "alternation",
    "choice",
    "wildcard",
    "comment",
    "keyword",
]
"""What a span is. Only a ``word`` can be an entity.

``weight``: a bracket or ``:1.3)``; ``and``: ``AND`` or a part's own ``:0.7``; ``network``: ``<lora:…>``;
``editing``: the signs of ``[a:b:0.5]``; ``alternation``: those of ``[a|b]``; ``choice``: those of
``{a|b}``; the words between such signs are words; ``keyword``: ``ADDCOL``, ``AND_PERP`` and the like, by
which other extensions part a prompt.
"""

STEPS = 150
"""Steps of a sampling whose length is not known: the most that the hosts offer."""

STEP_UP = 1.1
"""What a round bracket multiplies the weight by; a square one divides by it."""

_COMMENT = re.compile(r"#[^\n]*")
_NETWORK = re.compile(r"<\w+:[^>]+>")
_AND = re.compile(r"\bAND\b")
_BREAK = re.compile(r"\bBREAK\b")
_KEYWORD = re.compile(r"(?<!\w)(?:ADD(?:COL|ROW|BASE|COMM|P)|AND_[A-Z][A-Z0-9_]*)(?!\w)")
_MARKED = re.compile(r"BREAK|ADD|AND_")
"""What every text with a BREAK or a keyword holds."""
_EDIT_SIGN = re.compile(r"\\.?|[()\[\]:|]")
_WEIGHT_SIGN = re.compile(r"[\\()\[\]:]")
_PART_WEIGHT = re.compile(r"\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*")
_WEIGHT_END = re.compile(r":\s*([+-]?[.\d]+)\s*\)")
_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*")
_CHOICE_HEAD = re.compile(r"\s*(?:[~@]\s*)?\d*(?:-\d*)?\$\$(?:[^{}|$]*\$\$)?")
_CHOICE_SIGN = re.compile(r"[{}|\[\]]")
_CHOICE_ODDS = re.compile(r"\s*(?:\d+(?:\.\d*)?|\.\d+)::")


def _combining() -> str:
    """The marks of the scripts in use, as ranges of a character class."""
    blocks = ((0x300, 0x1200), (0x1700, 0x1D00), (0x1DC0, 0x1E00), (0x20D0, 0x2100), (0x302A, 0x3030), (0x3099, 0x309B))
    found = [
        code
        for start, end in (*blocks, (0xA66F, 0xAC00), (0xFE00, 0xFE30))
        for code in range(start, end)
        if unicodedata.category(chr(code)).startswith("M")
    ]
    starts = [code for code in found if code - 1 not in set(found)]
    ends = [code for code in found if code + 1 not in set(found)]
    return "".join(f"{chr(a)}-{chr(b)}" for a, b in zip(starts, ends))


_MARK = _combining()
_UNSPACED = (
    "\u0e01-\u0eff\u0f40-\u0fbc\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3041-\u30ff"
    "\u3105-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_PICTURE = (
    "\u231a\u231b\u23e9-\u23f3\u25fd\u25fe\u2600-\u27bf\u2b1b\u2b1c\u2b50\u2b55"
    "\U0001f000-\U0001f1e5\U0001f200-\U0001faff"
)
_EMOJI = f"[{_PICTURE}][\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]*"
_LETTERS = rf"(?:[A-Za-z0-9]+[{_MARK}]*|(?![{_UNSPACED}])[^\W_][{_MARK}]*)+"  # runs of ASCII, as these are quick
_LEXEME = re.compile(
    rf"(?P<word>\d+\.\d+|{_LETTERS}(?:(?:['’]-?|-){_LETTERS})*"
    rf"|(?![\W_])[{_UNSPACED}][{_MARK}]*|[\U0001f1e6-\U0001f1ff]{{2}}|{_EMOJI}(?:\u200d{_EMOJI})*)"
    r"|(?P<wildcard>(?<!\w)__[\w\-./*]{1,100}?__(?!\w))"
    rf"|(?P<punctuation>(?:(?![{_PICTURE}\U0001f1e6-\U0001f1ff])[^\w\s])+|[^\w\s]|_+)"
)

UNSPACED = re.compile(f"[{_UNSPACED}{_PICTURE}\U0001f1e6-\U0001f1ff]")
"""A character that is a word of its own here: of a script that puts no spaces between words, or an emoji."""


@dataclass(frozen=True)
class Dialect:
    """What a host's settings make of a prompt's signs. The defaults are the hosts'."""

    comments: bool = True
    """``#`` opens a comment (``enable_prompt_comments``); False also for a text whose comments are gone already."""
    emphasis: str = "Original"
    """The setting of this name. "None": brackets, weights and ``BREAK`` are text; "Ignore": they are read, but every
    weight is 1; any other: they are read."""
    old_scheduling: bool = False
    """``use_old_scheduling``: a number below 1 in ``[a:b:0.5]`` is a share of the steps, dot or not."""


HOST = Dialect()


class Span(NamedTuple):
    """``prompt[start:end]``: one word, or one sign of the prompt language."""

    kind: Kind
    start: int
    end: int
    text: str
    """As the text encoder reads it: an escaped bracket without its backslash."""
    weight: float = 1.0
    """The attention weight in force; 1.0 for whatever is no text."""
    part: int = 0
    """The index of the ``AND`` part."""
    share: float = 1.0
    """The weight of its ``AND`` part, or of its section of it where ``AND_PERP`` and the like part that further."""

    @property
    def taken_away(self) -> bool:
        """Does the prompt name it only to keep it out?"""
        return self.weight <= 0 or self.share <= 0


_span: Callable[[tuple[object, ...]], Span] = partial(tuple.__new__, Span)
"""``Span(*fields)`` in a third of the time: a long prompt has thousands."""


@dataclass(frozen=True)
class Part:
    """One of the prompts that ``AND`` joins."""

    text: str
    """With its weights and editing; without comments, extra networks and its own weight."""
    weight: float
    start: int
    end: int
    where: Sequence[int] = field(default=(), repr=False)
    """Of each character of ``text``, its index in the prompt."""


@dataclass(frozen=True)
class Turn:
    """A part's text from some step on."""

    text: str
    where: Sequence[int]
    """Of each character, its index in the prompt."""


@dataclass(frozen=True)
class _Source:
    """Text with some characters taken out, each knowing its index in the prompt."""

    text: str
    where: Sequence[int]

    def slice(self, start: int, end: int) -> _Source:
        return _Source(self.text[start:end], self.where[start:end])

    def without(self, gone: set[int]) -> _Source:
        if not gone:
            return self
        kept = bytearray(b"\1") * len(self.text)
        for i in gone:
            kept[i] = 0
        return _Source("".join(compress(self.text, kept)), list(compress(self.where, kept)))

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """``text[start:end]`` as ranges of the prompt; more than one where something stood inside it."""
        if start < end and self.where[end - 1] - self.where[start] == end - 1 - start:
            yield start, end
            return
        while start < end:
            stop = start + 1
            while stop < end and self.where[stop] == self.where[stop - 1] + 1:
                stop += 1
            yield start, stop
            start = stop

    def spans(self, kind: Kind, start: int, end: int, weight: float = 1.0, part: int = 0) -> Iterator[Span]:
        for a, b in self.runs(start, end):
            yield Span(kind, self.where[a], self.where[b - 1] + 1, self.text[a:b], weight, part)


@dataclass
class _Group:
    """A bracket that is still open."""

    sign: str
    start: int
    colons: list[int] = field(default_factory=list)
    pipes: list[int] = field(default_factory=list)


def parse(prompt: str, dialect: Dialect = HOST) -> tuple[Span, ...]:
    """All spans of ``prompt`` in order, without overlap; between them lies white space, or an escape's ``\\``."""
    return remembered_parse(prompt, dialect) if len(prompt) <= REMEMBERED else _parse(prompt, dialect)


def _parse(prompt: str, dialect: Dialect) -> tuple[Span, ...]:
    source, spans = _strip(prompt, dialect)
    for number, (start, body, end, weight) in enumerate(_split(source.text)):
        own = _part_spans(source.slice(start, body), number, dialect)
        shares = _sections(source, start, body, weight)
        spans.extend(own if shares == [(0, 1.0)] else _shared(own, shares))
        spans.extend(_signs(source, body, end, "and", number))
    for number, match in enumerate(_AND.finditer(source.text), start=1):
        spans.extend(source.spans("and", match.start(), match.end(), part=number))
    return tuple(sorted(spans, key=itemgetter(1)))


REMEMBERED = 20_000
"""Characters of the longest prompt of which it is remembered what was read in it, while it is among the last few: a
click on a chip and a job ask again for what was asked while it was typed."""

remembered_parse = lru_cache(maxsize=8)(_parse)


def words(prompt: str, dialect: Dialect = HOST) -> tuple[Span, ...]:
    """The words of ``prompt`` in order, each with the weight in force."""
    return tuple(span for span in parse(prompt, dialect) if span.kind == "word")


def plain(prompt: str, dialect: Dialect = HOST) -> str:
    """``prompt`` without any syntax: its text alone, one line for each chunk that signs part."""
    text = ""
    end = 0
    for span in parse(prompt, dialect):
        if prompt[end : span.start].strip("\\"):
            text += " "
        end = span.end
        if span.kind in ("word", "punctuation"):
            text += span.text
        elif span.kind in ("break", "and", "keyword"):
            text += "\n"
        elif span.kind in ("editing", "alternation", "choice"):
            text += " "
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def parts(prompt: str, dialect: Dialect = HOST) -> tuple[Part, ...]:
    """The prompts that ``AND`` joins, with their weights; one where there is no ``AND``."""
    source, _ = _strip(prompt, dialect)
    found = []
    for start, body, end, weight in _split(source.text):
        first, last = (source.where[start], source.where[end - 1] + 1) if end > start else (0, 0)
        found.append(Part(source.text[start:body], weight, first, last, source.where[start:body]))
    return tuple(found)


def turns(part: Part, dialect: Dialect = HOST, steps: int = STEPS) -> Iterator[Turn]:
    """The texts that prompt editing makes of ``part`` in the course of ``steps``, in order: the first, and then those
    alone that bring characters which none before had."""
    edits = _edits(part.text)
    stops = {steps}
    for edit in edits:
        if edit.number is None:
            stops.update(range(1, steps + 1))
        elif (when := edit.when(steps, dialect)) >= 1:
            stops.add(when)
    pieces = list(_active(part.text, edits, sorted(stops), steps, dialect))
    firsts = sorted({when & -when for _, _, when in pieces if when} | {1})
    for bit in firsts:
        kept = [(start, end) for start, end, when in pieces if when & bit]
        where = [part.where[start:end] for start, end in kept]
        yield Turn(
            "".join(part.text[start:end] for start, end in kept),
            where[0] if len(where) == 1 else list(chain.from_iterable(where)),
        )


def _strip(prompt: str, dialect: Dialect) -> tuple[_Source, list[Span]]:
    """Take comments and extra networks out."""
    source = _Source(prompt, range(len(prompt)))
    spans: list[Span] = []
    for kind, pattern in (("comment", _COMMENT), ("network", _NETWORK)):
        if kind == "comment" and not dialect.comments:
            continue
        # A network needs its ">": what follows the last one can't be any, and needn't be searched.
        limit = len(source.text) if kind == "comment" else source.text.rfind(">") + 1
        gone: set[int] = set()
        for match in pattern.finditer(source.text, 0, limit):
            spans.extend(source.spans(kind, match.start(), match.end()))  # type: ignore[arg-type]
            gone.update(range(match.start(), match.end()))
        source = source.without(gone)
    return source, spans


def _sections(source: _Source, start: int, end: int, weight: float) -> list[tuple[int, float]]:
    """Where in the prompt each section of a part begins that ``AND_PERP`` and the like make, and its weight."""
    text, at = source.text, start
    found: list[tuple[int, float]] = []
    for match in _KEYWORD.finditer(text, start, end) if "AND_" in text else ():
        if match[0].startswith("AND_"):
            colon = text.rfind(":", at, match.start())
            own = _PART_WEIGHT.fullmatch(text, colon + 1, match.start()) if colon >= 0 else None
            found.append((source.where[at] if found else 0, float(own[1]) if own else 1.0))
            at = match.start()
    return [*found, (source.where[at] if found else 0, weight)]


def _shared(spans: list[Span], sections: list[tuple[int, float]]) -> Iterator[Span]:
    """``spans`` with the weights of the sections that they stand in."""
    spans = sorted(spans, key=itemgetter(1))
    at = 0
    for span in spans:
        while at + 1 < len(sections) and sections[at + 1][0] <= span.start:
            at += 1
        yield span._replace(share=sections[at][1])


def _split(text: str) -> Iterator[tuple[int, int, int, float]]:
    """Start, end without the part's weight, end and weight of each part of ``text``."""
    start = 0
    for end, after in [*((m.start(), m.end()) for m in _AND.finditer(text)), (len(text), len(text))]:
        colon = text.rfind(":", start, end)
        match = _PART_WEIGHT.fullmatch(text, colon + 1, end) if colon >= 0 else None
        body = colon if match else end
        body = start + len(text[start:body].rstrip())
        yield start, body, end, float(match[1]) if match else 1.0
        start = after


def _signs(source: _Source, start: int, end: int, kind: Kind, part: int) -> Iterator[Span]:
    """``text[start:end]`` as spans of one kind, without the white space around it."""
    text = source.text[start:end]
    left = start + len(text) - len(text.lstrip())
    return source.spans(kind, left, max(left, start + len(text.rstrip())), part=part)


def _part_spans(source: _Source, part: int, dialect: Dialect) -> list[Span]:
    """The spans of one part: choices first, then editing, then weights, as the hosts resolve them."""
    found: list[Span] = []
    for find in (_choices, _editing):
        gone: set[int] = set()
        for start, end, kind in find(source.text):
            found += _signs(source, start, end, kind, part)
            gone.update(range(start, end))
        source = source.without(gone)
    found += (
        _weighted(source, part, dialect.emphasis == "Ignore")
        if dialect.emphasis != "None"
        else _lexemes(source, 0, len(source.text), part=part)
    )
    return found


def _choices(text: str) -> Iterator[tuple[int, int, Kind]]:
    """The signs of dynamic-prompts' ``{a|b}``, ``{2$$a|b}`` and ``{0.5::a|b}``."""
    stack: list[_Group] = []
    braces = 0
    for found in _CHOICE_SIGN.finditer(text) if "{" in text else ():
        i, char = found.start(), found[0]
        if char in "{[":
            stack.append(_Group(char, i))
            braces += char == "{"
        elif char == "|" and stack:
            stack[-1].pipes.append(i)
        elif char == "]" and stack and stack[-1].sign == "[":
            stack.pop()
        elif char == "}" and braces:
            braces -= 1
            while (group := stack.pop()).sign != "{":
                pass
            head = _CHOICE_HEAD.match(text, group.start + 1, i)
            if not group.pipes and not head:
                continue
            yield group.start, head.end() if head else group.start + 1, "choice"
            for option in [head.end() if head else group.start + 1, *(pipe + 1 for pipe in group.pipes)]:
                if odds := _CHOICE_ODDS.match(text, option, i):
                    yield option, odds.end(), "choice"
            for sign in [*group.pipes, i]:
                yield sign, sign + 1, "choice"


@dataclass(frozen=True)
class _Edit:
    """A closed ``[a:b:0.5]``, ``[a:5]``, ``[a::5]`` or ``[a|b]``."""

    start: int
    end: int
    """Of the closing bracket."""
    marks: tuple[int, ...]
    """Its colons or bars."""
    number: str | None
    """When ``a`` becomes ``b``; None of an alternation."""

    def signs(self) -> Iterator[tuple[int, int, Kind]]:
        """Its signs, each with start and end."""
        last = self.end if self.number is None else self.marks[-1]
        between = self.marks if self.number is None else self.marks[:-1]
        kind: Kind = "alternation" if self.number is None else "editing"
        for a, b in ((self.start, self.start + 1), *((mark, mark + 1) for mark in between), (last, self.end + 1)):
            yield a, b, kind

    def when(self, steps: int, dialect: Dialect) -> int:
        """The last step, from 1, that has ``a``; 0 or less where none has."""
        number = float(self.number or 0)
        share = number < 1 if dialect.old_scheduling else "." in (self.number or "")
        number = number * steps if share else number
        return steps if number >= steps else int(max(number, -1.0))

    def options(self) -> list[tuple[int, int]]:
        """Start and end of what it chooses from."""
        marks = self.marks if self.number is None else self.marks[:-1]
        edges = [self.start, *marks, self.end if self.number is None else self.marks[-1]]
        found = [(a + 1, b) for a, b in pairwise(edges)]
        return found if self.number is None or len(found) == 2 else [(found[0][0], found[0][0]), *found]


def _editing(text: str) -> list[tuple[int, int, Kind]]:
    """The signs of prompt editing."""
    return [sign for edit in _edits(text) for sign in edit.signs()]


def _edits(text: str) -> list[_Edit]:
    """Prompt editing, inner ones first.

    A bracket with a stray bracket, or with more colons than its form allows, is none, and neither is a
    bracket around it.
    """
    found: list[_Edit] = []
    stack = [_Group("", -1)]
    for sign in _EDIT_SIGN.finditer(text) if "[" in text else ():
        i, char = sign.start(), sign[0][0]
        if char == "\\":
            if len(sign[0]) == 1:
                return []
        elif char in "([":
            stack.append(_Group(char, i))
        elif char == ":":
            stack[-1].colons.append(i)
        elif char == "|":
            stack[-1].pipes.append(i)
        elif char in ")]" and len(stack) > 1:
            group = stack.pop()
            edits = _edits_of(group, text, i)
            if edits is None:
                for broken in (group, *stack[1:]):
                    stack[0].pipes.extend(broken.pipes)
                del stack[1:]
            else:
                found.extend(edits)
    return [] if any(group.pipes for group in stack) else found


def _edits_of(group: _Group, text: str, end: int) -> list[_Edit] | None:
    """What a closed bracket edits: nothing where it is a weight, None where it has no form at all."""
    colons, pipes = group.colons, group.pipes
    if group.sign + text[end] not in ("()", "[]"):
        return None
    if group.sign == "(":
        return None if pipes or len(colons) > 1 else []
    if not pipes and not colons:
        return []
    if not colons:
        return [_Edit(group.start, end, tuple(pipes), None)]
    if not pipes and len(colons) <= 2 and (number := _NUMBER.fullmatch(text, colons[-1] + 1, end)):
        return [_Edit(group.start, end, tuple(colons), number[1])]
    return None


def _active(
    text: str, edits: Sequence[_Edit], stops: Sequence[int], steps: int, dialect: Dialect
) -> Iterator[tuple[int, int, int]]:
    """``text`` without the signs of editing, as ranges, each with the ``stops`` that have it: bit k for the k-th."""
    masks: list[tuple[int, int, int]] = []
    signs: dict[int, int] = {}
    for edit in edits:
        signs.update((start, end) for start, end, _ in edit.signs())
        options = edit.options()
        if edit.number is None:
            own = [0] * len(options)
            for k, step in enumerate(stops):
                own[(step - 1) % len(options)] |= 1 << k
        else:
            before = sum(1 << k for k, step in enumerate(stops) if step <= edit.when(steps, dialect))
            own = [before, (1 << len(stops)) - 1 - before]
        masks.extend((start, end, mask) for (start, end), mask in zip(options, own) if end > start)
    masks.sort(key=lambda one: (one[0], -one[1]))
    around = [(len(text), (1 << len(stops)) - 1)]
    at = start = 0
    for k in sorted({len(text), *signs, *chain.from_iterable((first, last) for first, last, _ in masks)}):
        changed = k in signs or k == len(text)
        while len(around) > 1 and around[-1][0] <= k:
            changed = True
            if start < k:
                yield start, k, around[-1][1]
                start = k
            around.pop()
        if (changed or (at < len(masks) and masks[at][0] == k)) and start < k:
            yield start, k, around[-1][1]
            start = k
        while at < len(masks) and masks[at][0] == k:
            around.append((masks[at][1], around[-1][1] & masks[at][2]))
            at += 1
        if k in signs:
            start = max(start, signs[k])


def _weighted(source: _Source, part: int, ignored: bool = False) -> list[Span]:
    """Words, punctuation and BREAK with their weights, and the signs of those weights."""
    text = source.text
    spans: list[Span] = []
    segments: list[tuple[int, int]] = []
    open_at: dict[str, list[int]] = {"(": [], "[": []}
    closed: dict[str, list[tuple[int, int, float]]] = {"(": [], "[": []}

    def close(sign: str, factor: float) -> None:
        closed[sign].append((open_at[sign].pop(), len(segments), factor))

    start = read = 0
    for found in _WEIGHT_SIGN.finditer(text):
        i, char = found.start(), found[0]
        if i < read:
            continue
        weight = _weight_at(text, i) if char == ":" and open_at["("] else None
        matched = char in "([" or weight or (char == ")" and open_at["("]) or (char == "]" and open_at["["])
        end = read = weight[1] if weight else i + 1
        if (matched or char == "\\") and start < i:
            segments.append((start, i))
        if char == "\\":
            if text[end : end + 1] in ("(", ")", "[", "]", "\\"):
                segments.append((end, end + 1))
                read += 1
            start = read
        elif matched:
            if char in "([":
                open_at[char].append(len(segments))
            elif char == "]":
                close("[", 1 / STEP_UP)
            else:
                close("(", weight[0] if weight else STEP_UP)
            spans += source.spans("weight", i, end, part=part)
            start = end
    if start < len(text):
        segments.append((start, len(text)))
    for sign, factor in (("(", STEP_UP), ("[", 1 / STEP_UP)):
        while open_at[sign]:
            close(sign, factor)
    weights = zip(_products(closed["("], len(segments)), _products(closed["["], len(segments)))
    for (first, last), (up, down) in zip(segments, weights):
        spans += _lexemes(source, first, last, up * down, part, True, ignored)
    return spans


def _products(groups: list[tuple[int, int, float]], count: int) -> Iterator[float]:
    """For each of ``count`` segments, the product of the factors of the nested ``groups`` (start, end, factor)."""
    waiting = sorted(groups, key=lambda group: (-group[0], group[1]))
    around = [(count, 1.0)]
    for k in range(count):
        while around[-1][0] <= k:
            around.pop()
        while waiting and waiting[-1][0] <= k:
            _, end, factor = waiting.pop()
            if end > k:
                around.append((end, around[-1][1] * factor))
        yield around[-1][1]


def _weight_at(text: str, colon: int) -> tuple[float, int] | None:
    """The weight of ``:1.3)`` at ``colon`` and where it ends; None for anything else, such as ``:1.2.3)``."""
    match = _WEIGHT_END.match(text, colon)
    if match is None:
        return None
    try:
        return float(match[1]), match.end()
    except ValueError:
        return None


def _lexemes(
    source: _Source,
    start: int,
    end: int,
    weight: float = 1.0,
    part: int = 0,
    breaks: bool = False,
    ignored: bool = False,
) -> list[Span]:
    """The words, wildcards, keywords, punctuation and, where they count, BREAKs of a text of one weight."""
    told = 1.0 if ignored else weight
    if not _MARKED.search(source.text, start, end):
        return _lexemes_between(source, start, end, told, part)
    signs = sorted(
        [(m.start(), m.end(), "break") for m in _BREAK.finditer(source.text, start, end) if breaks]
        + [(m.start(), m.end(), "keyword") for m in _KEYWORD.finditer(source.text, start, end)]
    )
    found: list[Span] = []
    for first, last, kind in signs:
        found += _lexemes_between(source, start, first, told, part)
        if kind == "break" and weight != 1:
            # The hosts weigh their mark as if it were text, and then no longer know it.
            found += source.spans("word", first, last, 1.0 if ignored else -weight, part)
        else:
            found += source.spans(kind, first, last, part=part)  # type: ignore[arg-type]
        start = last
    return found + _lexemes_between(source, start, end, told, part)


def _lexemes_between(source: _Source, start: int, end: int, weight: float, part: int) -> list[Span]:
    where = source.where
    matches = _LEXEME.finditer(source.text, start, end)
    if isinstance(where, range):  # nothing has been taken out of it
        by = where.start
        return [
            _span((match.lastgroup, match.start() + by, match.end() + by, match[0], weight, part, 1.0))
            for match in matches
        ]
    found: list[Span] = []
    for match in matches:
        first, last = match.span()
        begin, length = where[first], last - first
        if where[last - 1] == begin + length - 1:
            found.append(_span((match.lastgroup, begin, begin + length, match[0], weight, part, 1.0)))
        else:
            found.extend(source.spans(match.lastgroup, first, last, weight, part))  # type: ignore[arg-type]
    return found
