"""A prompt's words, parted where a phrase ends: at punctuation, brackets, ``BREAK``, ends of lines and quotes."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from .lexicon import ARTICLE, SMALL, entry, is_small, is_visible, likely_noun, verbs
from .syntax import UNSPACED, Span

JOINS = frozenset(["and", "vs", "versus", "or", "with"])
_IN_TAGS = frozenset("_-:/.'&!")
"""Signs within a tag's qualifier: "fate/stay_night", "nier:automata"."""
_WRITTEN = frozenset(
    ["text", "caption", "title", "word", "words", "label", "sign", "slogan", "says", "saying", "reads"]
)
_WRITTEN |= {"reading", "letters", "lettering", "inscription", "writing", "written", "subtitle", "quote", "logo"}
"""Behind these and a colon, what stands in quotes is written in the picture."""
_IS_WRITTEN = (["written"], ["painted"], ["printed"], ["engraved"], ["carved"], ["spelled"], ["stamped"])
"""What stands in quotes before these is, too."""
_QUOTES = {
    '"': '"',
    "“": "”",
    "„": "“”",
    "«": "»",
    "‹": "›",
    "「": "」",
    "『": "』",
    "＂": "＂",
    "'": "'",
    "‘": "’",
    "`": "`",
}
_ALL_QUOTES = frozenset("".join([*_QUOTES, *_QUOTES.values()]))


class Token(NamedTuple):
    """A word of a clause."""

    text: str
    """In lower case, without "'s"."""
    start: int
    end: int
    capital: bool = False
    owner: bool = False
    """It ends in "'s"."""
    brackets: int = 0
    """What stands before it: 1 is a bracket, 2 one that closes and one that opens."""
    qualifier: str = ""
    """What stands behind it in escaped brackets, with these, or behind an underscore in brackets that weight it."""


_token: Callable[[tuple[object, ...]], Token] = partial(tuple.__new__, Token)
"""``Token(*fields)``, faster."""


class Clause(NamedTuple):
    """Words between signs that end a phrase."""

    tokens: tuple[Token, ...]
    sign: str
    """What stands before it: its punctuation, or the sign's kind."""
    part: int


def quotes(prompt: str, spans: Sequence[Span]) -> list[tuple[int, int]]:
    """Each stretch in quotes: where its first and its last quotation mark stand. Of a prompt that is wholly in quotes
    these are looked at within."""
    signs = [
        (k, prompt[k])
        for span in spans
        if span.kind == "punctuation"
        for k in range(span.start, span.end)
        if prompt[k] in _ALL_QUOTES
    ]
    found = _stretches(prompt, signs)
    for _ in range(_MOST_NESTED):
        if len(found) != 1 or prompt[: found[0][0]].strip(" {\n\\") or prompt[found[0][1] + 1 :].strip(" }.,;\n\\"):
            break
        signs = [(k, char) for k, char in signs if found[0][0] < k < found[0][1]]
        if not (within := _stretches(prompt, signs)):
            break
        found = within
    return found


_MOST_NESTED = 3
"""Quotes around a whole prompt that are looked into."""


def _stretches(prompt: str, signs: Sequence[tuple[int, str]]) -> list[tuple[int, int]]:
    """What a prompt's quotation marks pair to; a backslash before them belongs to both of a pair or to none."""
    signs = [(k, "\\" * prompt.startswith("\\", k - 1, k) + char) for k, char in signs]
    last = {sign: k for k, sign in signs}
    found: list[tuple[int, int]] = []
    opened, closes = -1, frozenset[str]()
    for k, sign in signs:
        escape, char = sign[:-1], sign[-1]
        before, after = prompt[k - 1 - len(escape) : k - len(escape)], prompt[k + 1 : k + 2]
        if opened >= 0 and sign in closes and not (char in "'’" and after.isalnum()):
            found.append((opened, k))
            opened = -1
        elif opened < 0 and char in _QUOTES and not (char in "'‘" and before.isalnum()) and after.strip():
            closes = frozenset([escape + closing for closing in _QUOTES[char]])
            opened = k if any(last.get(closing, -1) > k for closing in closes) else -1
    return found


def writing(prompt: str, spans: Sequence[Span], quoted: Sequence[tuple[int, int]]) -> set[int]:
    """Which stretches in quotes are writing in the picture: those that a phrase leads to, as "a sign that says" does,
    rather than an article, and those that are listed behind one."""
    found: set[int] = set()
    starts = [span[1] for span in spans] if quoted else []
    for number, (start, end) in enumerate(quoted):
        begin = quoted[number - 1][1] if number else -1
        between = spans[bisect_right(starts, begin) : bisect_left(starts, start)]
        if number and all(span.text.lower() in ("and", "or") for span in between if span.kind == "word"):
            led = number - 1 in found
        else:
            backward = (span for span in reversed(between) if span.kind not in ("weight", "comment", "network"))
            tail, before = next(backward, None), next(backward, None)
            led = tail is not None and tail.kind == "word" and not is_small(tail.text.lower(), ARTICLE)
            led = led and tail is not None and tail.text.lower() not in JOINS
            if tail is not None and tail.text == ":" and before is not None:
                led = before.text.lower() in _WRITTEN
            led = led or prompt[end + 1 : end + 12].lower().split()[:1] in _IS_WRITTEN
        if led:
            found.add(number)
    return found


def split(prompt: str, spans: Sequence[Span], quoted: Sequence[tuple[int, int]], written: set[int]) -> list[Clause]:
    """The clauses of a prompt whose spans these are; ``quoted`` the quotes, those ``written`` left out."""
    found: list[Clause] = []
    tokens: list[Token] = []
    end = part = brackets = quote = unquoted = 0
    sign, qualifying = "", -1

    def close(kind: str) -> None:
        nonlocal tokens, sign, brackets, qualifying
        if tokens:
            found.append(Clause(tuple(tokens), sign, part))
            sign = ""
        tokens, brackets, qualifying = [], 0, -1
        sign = kind if kind.strip() in ("", ",") and sign in ("", ",") else sign or kind

    read = -1
    names = _names(prompt)
    name, last = next(names)
    for k, span in enumerate(spans):
        kind, start, stop, text, weight, _, share = span
        gap, end = prompt[end:start], stop
        if k <= read:
            continue
        while last <= start:
            name, last = next(names)
        if name <= start:
            close(",")
            continue
        if (
            (kind, gap) == ("word", " ")
            and (weight > 0 and share > 0)
            and (qualifying < 0 and start < unquoted)
            and (text.islower() and text.isalpha() and text.isascii())
        ):  # what the rest would make of nearly every word
            tokens.append(_token((text, start, stop, False, False, brackets, "")))
            brackets = 0
            continue
        if "\n" in gap:
            close("\n")
        while quote < len(quoted) and quoted[quote][1] < start:
            quote += 1
        unquoted = quoted[quote][0] if quote < len(quoted) else len(prompt)
        inside = unquoted <= start
        if inside and quote in written:
            close('"')
        elif qualifying >= 0 and ")" in text and kind == "punctuation":
            shut = start + text.index(")") + 1
            qualifier = re.sub(r"\\", "", prompt[qualifying:shut].lower())
            tokens[-1] = tokens[-1]._replace(qualifier=f"{tokens[-1].qualifier} {qualifier}", end=shut)
            qualifying = -1
            if text.strip("\\)") or end > shut:
                close(text)
        elif qualifying >= 0:
            if kind not in ("word", "punctuation", "weight"):
                close(kind)
        elif kind == "word" and (weight <= 0 or share <= 0):
            close("taken away")
        elif kind == "word" and text == "BREAK":
            close("break")
        elif kind == "word" and tokens and text.isupper() and _is_mark(text) and prompt[tokens[-1].end - 1].islower():
            close("keyword")
        elif kind == "word" and not text.isascii() and UNSPACED.match(text):
            close(",")  # "🦊 a fox 🦉 an owl"
        elif kind == "word":
            if (
                gap == ""
                and k
                and spans[k - 1].text in _BEFORE_WORDS
                and (sign_at := _takes_away(prompt, spans, k)) >= 0
            ):
                tokens.append(Token("no", sign_at, start))
            lower = text.lower()
            owner = False
            if not lower.isalnum():
                lower = lower.replace("’", "'")
                owner = lower.endswith("'s")
                lower = lower.removesuffix("'s")
            elif lower in ("o", "out") and tokens and prompt[tokens[-1].start : start].lower() == "w/":
                tokens[-1] = tokens[-1]._replace(text=f"w/{lower}", end=end)
                continue
            tokens.append(_token((lower, start, start + len(lower), text[0].isupper(), owner, brackets, "")))
            brackets = 0
        elif kind == "punctuation" and tokens and text.lstrip("\\").startswith("(") and ")" not in text:
            qualifying = start
        elif tokens and tokens[-1].end == start - 1 and (shut := _shuts(prompt, spans, k)):
            read, tokens[-1] = shut, _emphasised(tokens[-1], prompt[end : spans[shut].start], spans[shut])
        elif kind == "weight":
            closes = text[0] in ":)]"
            brackets = 2 if brackets == 3 and not closes else 3 if closes else max(brackets, 1)
        elif (
            (text, gap) == ("'", "\\") and tokens and tokens[-1].end == start - 1 and prompt[stop : stop + 1].isalpha()
        ):
            read = k + 1  # "a cat\'s toy"
            tokens[-1] = tokens[-1]._replace(end=spans[read].end, owner=spans[read].text == "s")
            end = spans[read].end
        elif kind == "punctuation" and tokens and text == "/" and tokens[-1].text == "w":
            tokens[-1] = tokens[-1]._replace(text="with")
        elif text == "." and len(tokens) > 1 and prompt[tokens[-1].start : start] == "v":
            tokens[-1] = tokens[-1]._replace(text="vs")
        elif text == "." and tokens and not gap and _is_initial(spans, k):
            read = k + 1  # "d.va"
            tokens[-1] = tokens[-1]._replace(text=f"{tokens[-1].text}.{spans[read].text.lower()}", end=spans[read].end)
            end = spans[read].end
        elif text == "." and tokens and not gap and (tokens[-1].text in TITLES or "." in tokens[-1].text[-2:-1]):
            tokens[-1] = tokens[-1]._replace(text=tokens[-1].text + ".", end=stop)
        elif kind == "punctuation" and inside and prompt[start:end].strip("".join(_QUOTES)) == "":
            close('"')
        elif kind in ("comment", "network") or (kind == "punctuation" and not gap and _within(span, tokens)):
            continue
        elif kind in _CHOICES and tokens and all(map(_qualifies, tokens)) and (shut := _leads_on(prompt, spans, k)):
            tokens, brackets = (
                (tokens, 2) if shut == k else ([], 0)
            )  # the last of "[wooden:stone:0.4] bridge" is read with its noun
        else:
            close(text if kind == "punctuation" else kind)
            part += kind in ("and", "break", "keyword")
    close("")
    return found


_NAMES = re.compile(
    r"(?<![\w.-])(?=\w)(?:"
    r"(?i:(?=\S*neg)[\w.-]*(?:[a-z\d]negative|negative[a-rt-z\d]|[-_]neg(?:ative)?(?![a-z]))[\w.-]*)"
    r"|[\w.-]*[a-z]N(?:eg|EG)(?![a-z])[\w.-]*"
    r"|(?i:bad[-_]?(?:hand|artist|image|prompt|picture|dream|anatomy|face|feet|quality)s?(?:[-_]?v?\d|[-_][a-z])?[\w.-]*)"
    r"|(?i:score_\d\w*|(?:rating|source)_[a-z]+)"
    r")"
)
"""Names of embeddings that people type bare, of which most are for the negative prompt ("easynegative",
"bad-hands-5"), and of ratings ("score_9_up"): they name nothing and part words as a sign does."""
_HINT = re.compile("(?i:neg|bad|score_|rating_|source_)")
"""What every one of these holds."""


def _names(prompt: str) -> Iterator[tuple[int, int]]:
    """Where each of these names starts and ends, and then a place behind everything."""
    if _HINT.search(prompt):
        yield from (match.span() for match in _NAMES.finditer(prompt))
    yield len(prompt) + 1, len(prompt) + 2


TITLES = frozenset(["dr", "mr", "mrs", "ms", "st", "prof"])
"""A dot behind these ends nothing."""


def _is_initial(spans: Sequence[Span], k: int) -> bool:
    """Whether the dot ``k`` stands between a single letter and a word, within a name: "d.va"."""
    if k + 1 >= len(spans) or k == 0:
        return False
    before, after = spans[k - 1], spans[k + 1]
    touch = before.end == spans[k].start and after.start == spans[k].end
    return touch and len(before.text) == 1 and before.text.isalpha() and after.kind == "word"


@lru_cache(maxsize=1024)
def _is_mark(text: str) -> bool:
    """Whether a word in capitals, behind others that aren't, can only be another extension's sign: "a cat CONCAT a
    dog", but "a cat WEARING a hat"."""
    lower = text.lower()
    found, _ = likely_noun(lower)
    named = found is not None and (found.verb or found.adjective or found.described or is_visible(found))
    return len(text) >= 4 and text.isalpha() and not (named or verbs(lower) or is_small(lower, SMALL))


_CHOICES = ("editing", "alternation", "choice")
_MOST_CHOSEN = 12
"""Spans from an option's end to that of the whole choice."""


def _qualifies(token: Token) -> bool:
    """Whether a word says of what material or colour a thing is, or is an adjective."""
    found = entry(token.text)
    if found is None or (found.kind in "apfl" and is_visible(found)):
        return False
    return found.described or found.coloured or found.kind == "s" or found.adjective > found.noun + found.verb


def _leads_on(prompt: str, spans: Sequence[Span], k: int) -> int:
    """Which span ends the choice that span ``k`` is a sign of, where a noun follows it at once; 0 where none does."""
    for n in range(k, min(k + _MOST_CHOSEN, len(spans) - 1)):
        if spans[n].kind in _CHOICES and spans[n].text[-1] in "]}":
            after = spans[n + 1]
            follows = after.kind == "word" and not prompt[spans[n].end : after.start].strip(" ")
            return n if follows and not is_small(after.text.lower(), SMALL) else 0
    return 0


_TAKING_AWAY = ("-", "!", "~", "¬")
_BEFORE_WORDS = (*_TAKING_AWAY, "(", "[")
_ADORNED = re.compile(r"[^~]{0,40}\w~")
"""What a "~" adorns rather than denies: "~cozy cabin~"."""


def _takes_away(prompt: str, spans: Sequence[Span], k: int) -> int:
    """Where a hyphen or the like stands before the word ``k`` or its brackets as in a search, "cat -dog", rather than
    within a word or at a line's start; -1 where none does."""
    n = k - 1
    while n > 0 and spans[n].text in "([" and spans[n].start == spans[n - 1].end:
        n -= 1
    sign = spans[n].start
    at = sign - 1
    while at >= 0 and prompt[at] == " ":
        at -= 1
    searched = spans[n].text in _TAKING_AWAY and at >= 0 and prompt[at] != "\n" and prompt[sign - 1] in " ,"
    adorns = spans[n].text == "~" and _ADORNED.match(prompt, spans[k].start)
    return sign if searched and not adorns else -1


def _shuts(prompt: str, spans: Sequence[Span], k: int) -> int:
    """Which span closes the bracket ``k`` of a tag's qualifier that the host reads as a weight, "kiwi_(bird)"; 0 where
    it is none."""
    if spans[k].text != "(" or prompt[spans[k].start - 1] != "_":
        return 0
    for n in range(k + 1, len(spans)):
        if spans[n].kind == "weight":
            return n if n > k + 1 and spans[n].text[0] in ":)" else 0
        if spans[n].taken_away or not (spans[n].kind == "word" or spans[n].text in _IN_TAGS):
            return 0
    return 0


def _emphasised(token: Token, qualifier: str, shut: Span) -> Token:
    """With a qualifier as the text encoder reads it."""
    return token._replace(qualifier=f"{token.qualifier} {' '.join(qualifier.lower().split())}", end=shut.start + 1)


def _within(span: Span, tokens: Sequence[Token]) -> bool:
    """Whether a sign belongs to a word."""
    return set(span.text) <= {"_", "-", "'"} or (span.text == "." and bool(tokens) and tokens[-1].text == "vs")
