"""What a prompt says no to: which words deny the next noun, and which the one before them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from .clauses import Clause, Token
from .lexicon import ARTICLE, DENIAL, SMALL, is_bare_noun, is_small

BEING = frozenset(["is", "are", "was", "were", "be", "being", "been"])
_DENIES = frozenset(
    ["minus", "sans", "lacking", "lacks", "lack", "barring", "excluding", "exclude", "excludes", "except", "nor"]
)
_DENIES |= {"neither", "zero", "0", "never", "without", "no", "w/o", "w/out", "absent", "neg", "nary", "unlike"}
_DENIES |= {"begone"}
"""These deny the next noun; so do those of kind N."""
_DENIES_BY = {
    "of": (
        "free",
        "devoid",
        "instead",
        "empty",
        "bare",
        "void",
        "absence",
        "lack",
        "none",
        "clear",
        "absent",
        "rid",
        "exception",
    ),
    "from": ("free", "apart", "aside"),
    "for": ("save",),
    "out": ("leave", "leaving", "leaves", "keep", "keeping", "rule", "kick", "crop", "edit", "filter"),
    "any": ("hardly", "barely", "scarcely"),
    "like": ("nothing",),
    "than": ("rather", "other"),
    "but": ("anything", "everything", "all"),
}
"""These do behind one of the words named."""
NEGATABLE = frozenset(["a", "an", "any", "the", "is", "are", "be", "have", "has", "wear", "wearing", "hold", "holding"])
NEGATABLE |= {"own", "include", "contain", "show", "carry", "carrying", "draw", "add", "want", "use", "need", "see"}
NEGATABLE |= {"depict", "feature", "paint", "even", "including", "showing", "depicting", "drawing", "adding", "using"}
"""Behind "not" and "n't", what hands the denial on to the next noun: a trophy that doesn't fit into a suitcase does."""
_DENIES_TOLD = frozenset(["skip", "ban", "nix", "forbid", "prohibit", "ditch", "scrap", "erase", "eliminate", "forget"])
_DENIES_TOLD |= {"avoid", "avoiding", "omit", "omitting", "remove", "removing", "delete", "deleting", "erasing"}
_DENIES_TOLD |= {"subtract", "discard", "purge", "banish", "expel", "ignore", "replace", "swap"}
"""These do where somebody is told to: "skip the dog", but "a thief removing a painting"."""
_DENIES_ALONE = frozenset(["hold", "drop", "lose", "cut", "kill", "hide", "cancel"])
"""These do where that is all: "hold the onions"."""
_SENT = {
    "take": ("away", "out", "off"),
    "cut": ("out", "away"),
    "leave": ("out", "off", "away"),
    "keep": ("out", "away", "off"),
    "throw": ("out", "away"),
    "get": ("out", "away"),
    "send": ("away", "off"),
    "clear": ("out", "away"),
    "wipe": ("out", "away"),
}
_SENT |= dict.fromkeys(
    ["crop", "edit", "filter", "rule", "kick", "rub", "mask", "photoshop", "cross", "paint"], ("out",)
)
"""Where somebody is told to, what stands with these particles is to go: "take the dog away", "cut out the dog"."""
_DENIES_BEFORE = frozenset(["excluded", "removed", "omitted", "absent", "forbidden", "prohibited", "banned", "nowhere"])
_DENIES_BEFORE |= {"erased", "deleted", "begone"}
"""These deny what stands before them: "a cat, dogs excluded"."""
_ALLOWED = frozenset(["allowed", "wanted", "welcome", "visible", "shown", "present", "included", "permitted", "there"])
_ALLOWED |= {"seen", "appear", "show", "depicted", "needed"}
"""What, behind "not", denies what stands before it, too: "dogs are not allowed"."""
_AUXILIARY = BEING | {"not", "to", "must", "should", "may", "do", "does", "can", "will", "shall", "and", "has", "have"}


class Denial(NamedTuple):
    """What a clause says no to by itself."""

    heads: str
    """Before which sign it is the heading of what is to be left out: "*" any, "" none."""
    behind: bool
    """Its last word takes the others away: "dogs excluded"."""
    ends: bool
    """It ends in a denied noun."""


def denial(tokens: Sequence[Token]) -> Denial:
    """What a clause says no to."""
    return Denial(_heads(tokens), _is_denied(tokens), _ends_denied(tokens))


def denied_clauses(found: Sequence[Clause], each: Sequence[Denial]) -> dict[int, int]:
    """Clause -> where in the prompt it ends to be denied, of "no cats, dogs or birds", and of a pasted infotext's
    negative prompt; ``each`` is what the clauses say by themselves."""
    denied: dict[int, int] = {}
    for k, (clause, own) in enumerate(zip(found, each)):
        if own.heads and k not in denied and k + 1 < len(found) and own.heads in ("*", found[k + 1].sign.strip()):
            after = itertools.takewhile(lambda n: "\n" not in found[n].sign, range(k + 1, len(found)))
            denied.update({n: found[n].tokens[-1].end for n in after})
        if own.behind:
            denied[k] = clause.tokens[-1].end
        if k and clause.sign.strip() in _IS and [token.text for token in clause.tokens] in _NONE:
            denied[k - 1] = found[k - 1].tokens[-1].end  # "dogs: none"
        if k in denied or not own.ends:
            continue
        for n in range(k + 1, min(k + 6, len(found))):
            tokens = found[n].tokens
            choice = next((i for i, token in enumerate(tokens[:4]) if token.text in ("or", "nor")), None)
            if found[n].sign.strip() != ",":
                break
            if choice is not None:
                last = next((i for i in range(choice + 2, len(tokens)) if is_small(tokens[i].text, SMALL)), len(tokens))
                denied.update({between: found[between].tokens[-1].end for between in range(k + 1, n)})
                denied[n] = tokens[last - 1].end
                break
            if len(tokens) > 2 or any(is_small(token.text, SMALL) for token in tokens):
                break
    return denied


_IS = (":", "=", "-", "–", "—")
_NONE = (["none"], ["no"], ["never"], ["zero"])


def _heads(tokens: Sequence[Token]) -> str:
    """Before which sign a clause is the heading of what is to be left out: "negative prompt …", "without: …"."""
    words = [token.text for token in tokens]
    if words == ["negative", "prompt"]:
        return "*"
    return ":" if words[-1] in ("negative", "negatives", "neg") or denies(tokens, len(words) - 1) else ""


def _is_denied(tokens: Sequence[Token]) -> bool:
    """Whether a clause ends in what takes the rest of it away: "dogs excluded"."""
    texts = [token.text for token in tokens]
    if texts[-2:] == ["left", "out"] or (len(texts) == 2 and texts[1] == "free" and is_bare_noun(texts[0])):
        return True  # "the dog left out", "dog free"
    place = texts.index("nowhere") + 1 if "nowhere" in texts else len(texts)
    said = [text for text in texts[:place] if text not in _AUXILIARY or text == "not"]
    last = texts[place - 1]
    denied = (
        last in _DENIES_BEFORE
        or (last == "go" and place > 1 and texts[place - 2] in ("must", "should"))
        or (last in ("gone", "missing") and place > 1 and texts[place - 2] in BEING)  # "the dog is gone"
        or (texts[-1] in _ALLOWED and any(text == "not" or text.endswith("n't") for text in texts[:-1]))
    )
    return (
        denied
        and len(said) > 1
        and not any(is_small(text, "PO") and text != "not" and not text.endswith("n't") for text in said[:-1])
    )


def _ends_denied(tokens: Sequence[Token]) -> bool:
    """Whether a clause ends in a denied noun."""
    for k in range(len(tokens) - 1, max(-1, len(tokens) - 5), -1):
        if denies(tokens, k):
            return k < len(tokens) - 1
        if is_small(tokens[k].text, "PO") and tokens[k].text not in ("and", "or"):
            return False
    return False


def denies(clause: Sequence[Token], i: int) -> bool:
    """Whether the word denies the next noun."""
    text, before = clause[i].text, clause[i - 1].text if i else ""
    if not _may_deny(text) and before != "not" and not before.endswith("n't"):
        return False
    after = clause[i + 1].text if i + 1 < len(clause) else ""
    if text in _DENIES_BY:
        place = before == "place" and i > 1 and clause[i - 2].text == "in"
        return (before in _DENIES_BY[text] and (text, after) != ("out", "of")) or (place and text == "of")
    if text == "not" or text.endswith("n't"):
        return after in NEGATABLE or (text == "not" and is_bare_noun(after))
    if text == "missing":
        return not is_small(before, ARTICLE)  # "a car missing its wheels"
    if before == "not" or before.endswith("n't"):
        return text in NEGATABLE or text in ("no", "any")
    if text == "except" and before in ("nothing", "nobody"):
        return False
    if text == "with":  # "away with the dog", but "a man running away with a dog"
        return before in _GOING and (i == 1 or clause[i - 2].text in ("do", "does", "doing"))
    if text == "gone":
        return before == "be" and i == 1  # "be gone, dog"
    if text in _DENIES_TOLD and _is_told_off(before):
        return True
    if text in _SENT and _is_told_off(before) and _is_sent(clause, i):
        return True
    if text in _DENIES_ALONE:
        end = len(clause) - (clause[-1].text in ASKING)
        alone = after == "the" and i + 3 <= end <= i + 4 and is_bare_noun(clause[end - 1].text)
        return alone and _is_told_off(before)
    return text in _DENIES or is_small(text, DENIAL)


_GOING = frozenset(["away", "down", "off", "out"])


def _is_told_off(before: str) -> bool:
    """Whether somebody is told to do what the word behind ``before`` says, rather than seen to do it."""
    return before in ("", "but", "then", "please", "just", "now", "kindly", "you", "let")


def _is_sent(clause: Sequence[Token], i: int) -> bool:
    """Whether behind a verb its particle stands before an article ("cut out the dog"), or ends what is said ("take dogs
    away"); a sign may say "keep out", and "cut out paper" is a thing."""
    particles = _SENT[clause[i].text]
    texts = [token.text for token in clause[i + 1 :]]
    if texts[:1] and texts[0] in particles:
        return len(texts) > 1 and is_small(texts[1], ARTICLE) and texts[1:3] != ["of", "the"]
    end = next((k for k, text in enumerate(texts) if is_small(text, "PO") or text in particles), len(texts))
    return 0 < end < len(texts) and texts[end] in particles and is_small((texts[end + 1 :] or ["of"])[0], "PO")


@lru_cache(maxsize=8192)
def _may_deny(text: str) -> bool:
    """Whether the word denies the next noun at some place."""
    sets = (_DENIES, _DENIES_BY, _DENIES_TOLD, _DENIES_ALONE, _SENT, ("not", "missing", "with", "gone"))
    return any(text in own for own in sets) or text.endswith("n't") or is_small(text, DENIAL)


ASKING = frozenset(["please", "you", "me", "to", "just", "now", "kindly"])
