"""The WebUI's prompt language, read without the WebUI.

The order is that of AUTOMATIC1111 v1.10.1: comments go (``#`` to the end of the line), then extra
networks (``<lora:name:0.8>``), then the text is split at ``AND``; in each part ``[a:b:0.5]`` and
``[a|b]`` are resolved, and what is left has its attention weights read. Before all of these,
dynamic-prompts fills in ``{a|b}`` and ``__wildcards__``.

No string is an error. As in AUTOMATIC1111 a closing bracket without its opening one is text, an
opening bracket without its closing one acts to the end of its part, and a ``|`` outside brackets
turns prompt editing off for that part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

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
]
"""What a span is. Only a ``word`` can be an entity.

``weight``: a bracket or ``:1.3)``; ``and``: ``AND`` or a part's own ``:0.7``; ``network``: ``<lora:…>``;
``editing``: the signs of ``[a:b:0.5]``; ``alternation``: those of ``[a|b]``; ``choice``: those of
``{a|b}``; the words between such signs are words.
"""

STEP_UP = 1.1
"""What a round bracket multiplies the weight by; a square one divides by it."""

_COMMENT = re.compile(r"#[^\n]*")
_NETWORK = re.compile(r"<\w+:[^>]+>")
_AND = re.compile(r"\bAND\b")
_BREAK = re.compile(r"\bBREAK\b")
_PART_WEIGHT = re.compile(r"\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*")
_WEIGHT_END = re.compile(r":\s*([+-]?[.\d]+)\s*\)")
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*")
_CHOICE_HEAD = re.compile(r"\s*[~@]?\s*\d*(?:-\d*)?\$\$(?:[^{}|$]*\$\$)?")
_CHOICE_ODDS = re.compile(r"\s*(?:\d+\.?\d*|\.\d+)::")
_LEXEME = re.compile(
    r"(?P<wildcard>(?<!\w)__[\w\-./*]{1,100}?__(?!\w))"
    r"|(?P<word>\d+\.\d+|[^\W_]+(?:(?:['’]-?|-)[^\W_]+)*)"
    r"|(?P<punctuation>[^\w\s]+|_+)"
)


@dataclass(frozen=True)
class Span:
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


@dataclass(frozen=True)
class Part:
    """One of the prompts that ``AND`` joins."""

    text: str
    """With its weights and editing; without comments, extra networks and its own weight."""
    weight: float
    start: int
    end: int


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
        kept = [i for i in range(len(self.text)) if i not in gone]
        return _Source("".join(self.text[i] for i in kept), [self.where[i] for i in kept])

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """``text[start:end]`` as ranges of the prompt; more than one where something stood inside it."""
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


def parse(prompt: str) -> tuple[Span, ...]:
    """All spans of ``prompt`` in order, without overlap; between them lies white space, or an escape's ``\\``."""
    source, spans = _strip(prompt)
    for number, (start, body, end, _) in enumerate(_split(source.text)):
        spans.extend(_part_spans(source.slice(start, body), number))
        spans.extend(_signs(source, body, end, "and", number))
    for number, match in enumerate(_AND.finditer(source.text), start=1):
        spans.extend(source.spans("and", match.start(), match.end(), part=number))
    return tuple(sorted(spans, key=lambda span: span.start))


def words(prompt: str) -> tuple[Span, ...]:
    """The words of ``prompt`` in order, each with the weight in force."""
    return tuple(span for span in parse(prompt) if span.kind == "word")


def plain(prompt: str) -> str:
    """``prompt`` without any syntax: its text alone, one line for each chunk that ``BREAK`` or ``AND`` parts."""
    text = ""
    end = 0
    for span in parse(prompt):
        if prompt[end : span.start].strip("\\"):
            text += " "
        end = span.end
        if span.kind in ("word", "punctuation"):
            text += span.text
        elif span.kind in ("break", "and"):
            text += "\n"
        elif span.kind in ("editing", "alternation", "choice"):
            text += " "
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def parts(prompt: str) -> tuple[Part, ...]:
    """The prompts that ``AND`` joins, with their weights; one where there is no ``AND``."""
    source, _ = _strip(prompt)
    found = []
    for start, body, end, weight in _split(source.text):
        first, last = (source.where[start], source.where[end - 1] + 1) if end > start else (0, 0)
        found.append(Part(source.text[start:body], weight, first, last))
    return tuple(found)


def _strip(prompt: str) -> tuple[_Source, list[Span]]:
    """Take comments and extra networks out."""
    source = _Source(prompt, range(len(prompt)))
    spans: list[Span] = []
    for kind, pattern in (("comment", _COMMENT), ("network", _NETWORK)):
        # A network needs its ">": what follows the last one can't be any, and needn't be searched.
        limit = len(source.text) if kind == "comment" else source.text.rfind(">") + 1
        gone: set[int] = set()
        for match in pattern.finditer(source.text, 0, limit):
            spans.extend(source.spans(kind, match.start(), match.end()))  # type: ignore[arg-type]
            gone.update(range(match.start(), match.end()))
        source = source.without(gone)
    return source, spans


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


def _part_spans(source: _Source, part: int) -> Iterator[Span]:
    """The spans of one part: choices first, then editing, then weights, as the hosts resolve them."""
    for find in (_choices, _editing):
        gone: set[int] = set()
        for start, end, kind in find(source.text):
            yield from _signs(source, start, end, kind, part)
            gone.update(range(start, end))
        source = source.without(gone)
    yield from _weighted(source, part)


def _choices(text: str) -> Iterator[tuple[int, int, Kind]]:
    """The signs of dynamic-prompts' ``{a|b}``, ``{2$$a|b}`` and ``{0.5::a|b}``."""
    stack: list[_Group] = []
    for i, char in enumerate(text):
        if char in "{[":
            stack.append(_Group(char, i))
        elif char == "|" and stack:
            stack[-1].pipes.append(i)
        elif char == "]" and stack and stack[-1].sign == "[":
            stack.pop()
        elif char == "}" and any(group.sign == "{" for group in stack):
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


def _editing(text: str) -> list[tuple[int, int, Kind]]:
    """The signs of ``[a:b:0.5]``, ``[a:5]``, ``[a::5]`` and ``[a|b]``.

    A bracket with a stray bracket, or with more colons than its form allows, is none of these, and
    neither is a bracket around it.
    """
    found: list[tuple[int, int, Kind]] = []
    stack = [_Group("", -1)]
    i = 0
    while i < len(text):
        char = text[i]
        if char == "\\":
            if text[i + 1 : i + 2] in ("", "\n"):
                return []
            i += 1
        elif char in "([":
            stack.append(_Group(char, i))
        elif char == ":":
            stack[-1].colons.append(i)
        elif char == "|":
            stack[-1].pipes.append(i)
        elif char in ")]" and len(stack) > 1:
            group = stack.pop()
            signs = _signs_of(group, text, i)
            if signs is None:
                for broken in (group, *stack[1:]):
                    stack[0].pipes.extend(broken.pipes)
                del stack[1:]
            else:
                found.extend(signs)
        i += 1
    return [] if any(group.pipes for group in stack) else found


def _signs_of(group: _Group, text: str, end: int) -> list[tuple[int, int, Kind]] | None:
    """The signs of a closed bracket: none where it is a weight, None where it has no form at all."""
    colons, pipes = group.colons, group.pipes
    if group.sign + text[end] not in ("()", "[]"):
        return None
    if group.sign == "(":
        return None if pipes or len(colons) > 1 else []
    if not pipes and not colons:
        return []
    opening, closing = (group.start, group.start + 1), (end, end + 1)
    if not colons:
        return [(a, b, "alternation") for a, b in (opening, *((pipe, pipe + 1) for pipe in pipes), closing)]
    if not pipes and len(colons) <= 2 and _NUMBER.fullmatch(text, colons[-1] + 1, end):
        between = [(colon, colon + 1) for colon in colons[:-1]]
        return [(a, b, "editing") for a, b in (opening, *between, (colons[-1], end + 1))]
    return None


def _weighted(source: _Source, part: int) -> Iterator[Span]:
    """Words, punctuation and BREAK with their weights, and the signs of those weights."""
    text = source.text
    segments: list[tuple[int, int]] = []
    open_at: dict[str, list[int]] = {"(": [], "[": []}
    closed: dict[str, list[tuple[int, int, float]]] = {"(": [], "[": []}

    def close(sign: str, factor: float) -> None:
        closed[sign].append((open_at[sign].pop(), len(segments), factor))

    start = i = 0
    while i < len(text):
        char = text[i]
        weight = _weight_at(text, i) if char == ":" and open_at["("] else None
        matched = char in "([" or weight or (char == ")" and open_at["("]) or (char == "]" and open_at["["])
        end = weight[1] if weight else i + 1
        if (matched or char == "\\") and start < i:
            segments.append((start, i))
        if char == "\\":
            if text[end : end + 1] in ("(", ")", "[", "]", "\\"):
                segments.append((end, end + 1))
                end += 1
            start = end
        elif matched:
            if char in "([":
                open_at[char].append(len(segments))
            elif char == "]":
                close("[", 1 / STEP_UP)
            else:
                close("(", weight[0] if weight else STEP_UP)
            yield from source.spans("weight", i, end, part=part)
            start = end
        i = end
    if start < i:
        segments.append((start, i))
    for sign, factor in (("(", STEP_UP), ("[", 1 / STEP_UP)):
        while open_at[sign]:
            close(sign, factor)
    weights = zip(_products(closed["("], len(segments)), _products(closed["["], len(segments)))
    for (first, last), (up, down) in zip(segments, weights):
        yield from _lexemes(source, first, last, up * down, part)


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


def _lexemes(source: _Source, start: int, end: int, weight: float, part: int) -> Iterator[Span]:
    """The words, wildcards, BREAKs and punctuation of a text of one weight."""
    for match in _BREAK.finditer(source.text, start, end):
        yield from _lexemes_between(source, start, match.start(), weight, part)
        yield from source.spans("break", match.start(), match.end(), part=part)
        start = match.end()
    yield from _lexemes_between(source, start, end, weight, part)


def _lexemes_between(source: _Source, start: int, end: int, weight: float, part: int) -> Iterator[Span]:
    for match in _LEXEME.finditer(source.text, start, end):
        yield from source.spans(match.lastgroup, match.start(), match.end(), weight, part)  # type: ignore[arg-type]
