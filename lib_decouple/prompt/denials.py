"""What a prompt says no to: which words deny the next noun, and which the one before them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from .clauses import Clause, Token
from .lexicon import ARTICLE, DENIAL, SMALL, is_bare_noun, is_small, likely_noun

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
_DENIES_TOLD |= {"prevent", "reject", "refuse", "veto", "deny", "disallow", "disable", "suppress", "withhold", "negate"}
"""These do where somebody is told to: "skip the dog", but "a thief removing a painting"."""
_DENIES_ALONE = frozenset(["hold", "drop", "lose", "cut", "kill", "hide", "cancel", "block", "dump", "trash"])
"""These do where that is all: "hold the onions", "drop dogs"."""
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

_NOT = r"(?:not|never|no longer|cannot|\w+n't|(?:do|does|did|is|are|was|were|wo|would|ca|could|should|must)nt)"
_DRAW = "draw|paint|show|include|put|add|make|generate|give|send|use|render|create|depict|insert|feature|have|see"
_DRAWING = "|".join(f"{verb.removesuffix('e')}t?ing" for verb in _DRAW.replace("see", "seee").split("|"))
_TOLD = (
    "(?:^|"
    + "|".join(rf"(?<=\b{word} )" for word in ("but", "and", "then", "so", "please", "just", "now", "you"))
    + ")"
)
_ADVERBS = r"(?:(?:\w+ly|do|just|so|also|would|still|always|much|even|ever|kind of|sort of) ){0,4}"
_I = rf"(?:(?:(?<!\S)(?:i|we|i'd|we'd|i've|we've|i'm|we're|i am|we are) |{_TOLD}){_ADVERBS})"
_IM = rf"(?:(?:(?<!\S)(?:i'm|i am|we're|we are) |{_TOLD}){_ADVERBS})"
_LIKES = "(?:liked?|loved?|fancy|enjoy|wanted|wish for|ask(?:ed)? for|care (?:for|about))"
_SAYS_NO = (
    # What who writes dislikes, which another may: "a man who hates dogs".
    f"{_I}(?:hate|dislike|despise|detest|loathe|abhor)(?: it when there)?",
    f"{_I}(?:can'?t|cannot|can not|couldn't) {_ADVERBS}(?:stand|bear|abide|tolerate|endure)",
    f"{_I}{_NOT} {_ADVERBS}(?:{_LIKES}|into|keen on|fond of|interested in)",
    f"{_IM}(?:(?:sick|tired|sick and tired|weary) of|fed up with|allergic to|averse to)",
    "(?:i'm|i am|we're|we are) (?:against|opposed to|done with|through with)",
    "(?:nobody|noone|no one|no-one) (?:wants|likes|needs|wanted|ordered|asked for|cares (?:for|about))",
    # What somebody is told.
    rf"{_TOLD}(?:stop|quit|cease)(?: it)? (?:with|{_DRAWING})(?: in| me| us)?",
    f"{_TOLD}(?:refrain|desist|abstain) from",
    f"{_TOLD}(?:stay|keep|steer) (?:well )?(?:away from|clear of)",
    f"{_TOLD}(?:spare|save|rid|free) (?:me|us)(?: from| of)?",
    rf"{_TOLD}rid (?:\S+ ){{1,3}}of",
    rf"{_TOLD}(?:fewer|enough (?:already )?(?:of|with)|(?:less|enough)(?= (?:of )?(?:an? |the )?\S+$))",
    f"{_TOLD}(?:to hell with|(?:screw|damn|fuck|curse|blast)(?= (?:the|that|those|these|all) ))",
    rf"{_TOLD}(?:(?:nope|nah|no thanks|no thank you|bye)(?: to)?(?= \S)|goodbye to)",
    rf"{_TOLD}(?:get (?:out|lost)|go away|stay (?:away|out)|shoo|scram|buzz off)(?= (?:you |the )?\S+$)",
    f"{_NOT} (?:(?:you|ever|even|dare|try|bother|go|think|of|about|to|please) ){{1,6}}"
    f"(?:{_DRAW}|{_DRAWING})(?: in| me| us)?",
    # What denies by the way.
    "(?:under|by|in|on) no (?:circumstances?|means|way|account|event|case|conditions?)",
    "no (?:need|use|place|room|interest|desire|time|point|love) (?:for|in|of)",
    "nothing (?:with|involving|containing|including|featuring|about|to do with|that (?:has|contains|includes|shows))",
    r"not (?:one|so much as)(?: single)?(?: of)?(?= \S)(?! but )",
    f"(?:as |{_TOLD})opposed to|in lieu of",
)
_IN_MANY_WORDS = re.compile(rf"(?:{'|'.join(_SAYS_NO)})(?: (?:to )?(?:{_DRAW}|{_DRAWING}|look at|looking at))?(?!\S)")
"""What denies the next noun as "no" does."""
_HASTY = frozenset(
    f"{verb}nt" for verb in ("do", "does", "did", "is", "are", "was", "wo", "ca", "could", "should", "must")
)
"""Where somebody leaves out the apostrophe."""
_CUES = frozenset(
    ["i", "we", "i'd", "we'd", "i've", "we've", "i'm", "we're", "not", "never", "cannot", "no", "nothing"]
)
_CUES |= {"hate", "dislike", "despise", "detest", "loathe", "abhor", "sick", "tired", "weary", "fed", "allergic"}
_CUES |= {
    "averse",
    "nobody",
    "noone",
    "no-one",
    "stop",
    "quit",
    "cease",
    "refrain",
    "desist",
    "abstain",
    "stay",
    "keep",
}
_CUES |= {
    "steer",
    "spare",
    "save",
    "rid",
    "free",
    "fewer",
    "less",
    "enough",
    "hell",
    "screw",
    "damn",
    "fuck",
    "curse",
    "blast",
}
_CUES |= {"nope", "nah", "bye", "goodbye", "get", "go", "shoo", "scram", "buzz", "opposed", "lieu"}
_CUES |= _HASTY
"""Each of these has one of the words, or one that ends in "n't"."""

_BEING = "(?:(?:is|are|was|were|be|being|been|to|must|should|may|do|does|can|could|will|shall|and|has|have) ){0,6}"
"""As many as one may say in a row: without an end a search from each of them would go through all that follow."""
_DISMISSAL = "(?:get (?:out|lost|away)|go away|stay (?:away|out)|buzz off|back off|be gone|begone|shoo|scram)"
_ALLOWED = "allowed|wanted|welcome|visible|shown|present|included|permitted|there|seen|appear|show|depicted|needed"
_ALLOWED += "|required|desired|necessary|acceptable|tolerated|exist|ok|okay|an option|belong"
_TAKES_BACK = re.compile(
    rf"(?<!\S){_BEING}(?:"
    "excluded|removed|omitted|absent|forbidden|prohibited|banned|erased|deleted|disallowed|unwanted|unwelcome"
    "|undesired|undesirable|off-limits|off limits|verboten|taboo|exempt|none|nope|no thanks|left out"
    "|out of the question"
    rf"|nowhere(?: .*)?|need not apply|{_DISMISSAL}"
    "|(?:must|should|has to|have to|can|needs? to) (?:go|leave)|(?:is|are|was|were|be|been) (?:gone|missing)"
    "|(?:is|are) (?:an? )?(?:big )?(?:no|no-go|no no|no-no)"
    rf"|{_NOT} {_BEING}(?:{_ALLOWED})"
    r")(?: (?:please|here|anywhere|at all|whatsoever|ever|thanks|now|either|anymore"
    r"|(?:in|from|on|at) (?:it|here|this|(?:the|this|my|any) \w+))){0,6}$"
)
"""These deny what stands before them: "a cat, dogs excluded"."""
_DISMISSED = re.compile(_DISMISSAL)
_ANSWERED = re.compile(
    "(?:(?:please|absolutely|definitely|hell|oh|just|certainly|sorry|um|well|but|thanks) )*"
    "(?:no|none|never|nope|nah|zero|nil|not|out|forbidden|banned)"
    "(?: (?:thanks|thank you|way|more|please|ever|at all|here|never|not|no|of them|of those|allowed|wanted))*"
)
"""What answers a question, or stands behind a colon, where nothing is wanted: "dogs? no thanks", "dogs: none"."""


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


def in_one_word(tokens: Sequence[Token]) -> Sequence[Token]:
    """``tokens`` with what says "no" in many words in one, that of their place: "I don't like dogs" is "no dogs"."""
    text = _text(tokens)
    if "n't" not in text and _CUES.isdisjoint([token.text for token in tokens]):
        return tokens
    left = list(tokens)
    for match in reversed([*_IN_MANY_WORDS.finditer(text)]):
        first, count = text.count(" ", 0, match.start()), match[0].count(" ") + 1
        own = left[first : first + count]
        left[first : first + count] = [Token("no", own[0].start, own[-1].end)]
    return left


def _text(tokens: Sequence[Token]) -> str:
    return " ".join([token.text for token in tokens])


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
        if k and _asks(clause.sign) and _ANSWERED.fullmatch(_text(clause.tokens)):
            denied[k - 1] = found[k - 1].tokens[-1].end
        if (sent := _sent_away(found, k)) is not None:
            denied[sent] = found[sent].tokens[-1].end
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


_IS = (":", "=", "-", "–", "—", "...", "…")


def _asks(sign: str) -> bool:
    return "?" in sign or sign.strip() in _IS


def _sent_away(found: Sequence[Clause], k: int) -> int | None:
    """Which clause names what clause ``k`` sends away: the one behind it, "go away, dog", or the one before it."""
    if not _DISMISSED.fullmatch(_text(found[k].tokens)):
        return None
    behind = k + 1 < len(found) and found[k + 1].sign.strip() == ","
    return next((n for n, there in ((k + 1, behind), (k - 1, k > 0)) if there and _is_called(found[n].tokens)), None)


def _is_called(tokens: Sequence[Token]) -> bool:
    """Whether a clause is a noun as one calls somebody: "dogs", "you bad dog"."""
    first = tokens[1:] if tokens[0].text in ("you", "the", "all") else tokens
    return len(tokens) < 4 and not any(is_small(token.text, SMALL) for token in first)


_HEADINGS = frozenset(["negative", "negatives", "neg", "unwanted", "undesired", "forbidden", "banned", "prohibited"])
_HEADINGS |= {"excluded", "removed", "dislikes", "dislike", "hates", "hate"}


def _heads(tokens: Sequence[Token]) -> str:
    """Before which sign a clause is the heading of what is to be left out: "negative prompt …", "without: …"."""
    words = [token.text for token in tokens]
    if words == ["negative", "prompt"]:
        return "*"
    return ":" if words[-1] in _HEADINGS or denies(tokens, len(words) - 1) else ""


def _is_denied(tokens: Sequence[Token]) -> bool:
    """Whether a clause ends in what takes the rest of it away: "dogs excluded"."""
    texts = [token.text for token in tokens]
    if len(texts) == 2 and texts[1] == "free" and is_bare_noun(texts[0]):
        return True
    match = _TAKES_BACK.search(_text(tokens))
    said = match.string[: match.start()].split() if match else []
    return bool(said) and not any(is_small(text, "PO") for text in said)


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
    if not _may_deny(text) and not (_is_not(before) or before == "never"):
        return False
    after = clause[i + 1].text if i + 1 < len(clause) else ""
    if text in _DENIES_BY:
        place = before == "place" and i > 1 and clause[i - 2].text == "in"
        return (before in _DENIES_BY[text] and (text, after) != ("out", "of")) or (place and text == "of")
    if _is_not(text):
        return after in NEGATABLE or (text == "not" and is_bare_noun(after))
    if text == "missing":
        return not is_small(before, ARTICLE)  # "a car missing its wheels"
    if _is_not(before) or (before == "never" and text in NEGATABLE):
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
        return _is_told_off(before) and _is_all(clause, i)
    return text in _DENIES or is_small(text, DENIAL)


def _is_all(clause: Sequence[Token], i: int) -> bool:
    """Whether nothing stands behind a verb but what is to go: "hold the black dog", "drop dogs", but "drop earrings"
    are things."""
    rest = [token.text for token in clause[i + 1 : len(clause) - (clause[-1].text in ASKING)]]
    if rest[:1] == ["the"]:
        return 2 <= len(rest) <= 3 and is_bare_noun(rest[-1])
    found, plural = likely_noun(rest[0]) if len(rest) == 1 else (None, False)
    return found is not None and plural and found.kind in "ap" and is_bare_noun(rest[0])


@lru_cache(maxsize=8192)
def _is_not(text: str) -> bool:
    """Whether the word is "not", also where a verb or somebody's haste hides it: "don't", "dont"."""
    return text in ("not", "cannot") or text.endswith("n't") or text in _HASTY


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
        return len(texts) > 1 and (
            (is_small(texts[1], ARTICLE) and texts[1:3] != ["of", "the"]) or _is_all(clause, i + 1)
        )
    end = next((k for k, text in enumerate(texts) if is_small(text, "PO") or text in particles), len(texts))
    return 0 < end < len(texts) and texts[end] in particles and is_small((texts[end + 1 :] or ["of"])[0], "PO")


@lru_cache(maxsize=8192)
def _may_deny(text: str) -> bool:
    """Whether the word denies the next noun at some place."""
    sets = (_DENIES, _DENIES_BY, _DENIES_TOLD, _DENIES_ALONE, _SENT, ("missing", "with", "gone"))
    return any(text in own for own in sets) or _is_not(text) or is_small(text, DENIAL)


ASKING = frozenset(["please", "you", "me", "to", "just", "now", "kindly"])
