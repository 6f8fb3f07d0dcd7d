"""English for the judges: articles, questions, and which nouns of a caption name an entity."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ....prompt.entities import locate, suggest
from ....prompt.lexicon import entry, singulars
from .base import Missing

_FILE = Path(__file__).parent.parent / "data" / "kinds.zz"


@lru_cache(maxsize=1)
def _english() -> Any:
    try:
        import inflect
    except ImportError:
        raise Missing("articles need the package inflect; `pip install -r requirements-evaluate.txt`") from None
    return inflect.engine()


def is_plural(entity: str) -> bool:
    """Whether the last word of ``entity`` takes "are": "glasses", "two dogs"; not "bus", "sheep"."""
    last = entity.split()[-1].lower()
    one = _english().singular_noun(last)
    return bool(one) and last != "gas" and (last.endswith("s") if one == last else entry(one) is not None)


def with_article(entity: str) -> str:
    """``"a cat"``, ``"an hourglass"``; plurals, substances and what has a determiner stay bare. "1girl" is a girl."""
    entity = re.sub(r"^\d+(?=[A-Za-z])", "", entity.strip())
    first, last = (entry(word.lower()) for word in (entity.split()[0], entity.split()[-1]))
    bare = is_plural(entity) or (first and first.kind == "D") or (last and last.kind == "s")
    return entity if bare else str(_english().a(entity))


def question(entity: str) -> str:
    """``"is there a cat?"``, ``"are there glasses?"``."""
    return f"{'are' if is_plural(entity) else 'is'} there {with_article(entity)}?"


NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NO_ATTRIBUTES = frozenset(["a", "an", "the", "some", "his", "her", "its", "their", "my", "your", "our"])


@dataclass(frozen=True)
class Described:
    """An entity's words: its noun, how many are named (1 without a number), and the attributes before the noun."""

    noun: str
    number: int
    attributes: tuple[str, ...]


def described(entity: str) -> Described:
    """``"two small red cars"`` -> cars, 2, small and red. What stands after the noun is passed over."""
    found = locate(entity)
    if not found:
        return Described(entity.strip(), 1, ())
    before = entity[: found[0].start].replace(",", " ").lower().split()
    digits = {str(number): word for number, word in enumerate(NUMBERS, 1)}
    before = [digits.get(word, word) for word in before if word not in _NO_ATTRIBUTES]
    numbers = [NUMBERS.index(word) + 1 for word in before if word in NUMBERS]
    return Described(found[0].text, max(numbers, default=1), tuple(word for word in before if word not in NUMBERS))


def parts(prompt: str, entities: tuple[str, ...]) -> list[str]:
    """The piece of the prompt for each entity, as Attend-and-Excite's script cuts it: at "and", or else at "with".

    Where the pieces do not hold one entity each in their order, "a {entity}" stands in.
    """
    for word in (" and ", " with "):
        found = prompt.split(word)
        if len(found) == len(entities) and all(e.lower() in f.lower() for e, f in zip(entities, found)):
            return [piece.strip() for piece in found]
    return [with_article(entity) for entity in entities]


@lru_cache(maxsize=1)
def _kinds() -> tuple[list[frozenset[int]], dict[str, tuple[int, ...]]]:
    synsets, _, words = zlib.decompress(_FILE.read_bytes()).decode().partition("\n\n")
    above = [frozenset(map(int, line.split())) if line != "-" else frozenset() for line in synsets.splitlines()]
    split = (line.partition("\t")[::2] for line in words.splitlines())
    return above, {word: tuple(map(int, numbers.split())) for word, numbers in split}


@lru_cache(maxsize=4096)
def _forms(noun: str) -> frozenset[str]:
    return frozenset([noun, *singulars(noun)])


@lru_cache(maxsize=4096)
def _is_a(noun: str, entity: str) -> bool:
    """Whether one of the noun's senses is one of the entity's, or a kind of one."""
    above, words = _kinds()
    wanted = {number for form in _forms(entity) for number in words.get(form, ())}
    left, seen = [number for form in _forms(noun) for number in words.get(form, ())], set()
    while left:
        if (one := left.pop()) in wanted:
            return True
        if one not in seen:
            seen.add(one)
            left += above[one]
    return False


def named(caption: str, entities: tuple[str, ...]) -> dict[str, bool]:
    """Which entities the caption names: by the noun itself in either number, a synonym ("sofa", a couch) or a kind of
    it ("puppy", a dog), not by what it is a kind of ("animal").

    Only the entity's noun counts: "a blue car" names a "red car". "no dog" names none, "hot dog" and "cat toy" name
    no animal.
    """
    nouns = suggest(caption)
    found = {}
    for entity in entities:
        head = (suggest(entity) or [entity.lower()])[0]
        found[entity] = any(_forms(noun) & _forms(head) or _is_a(noun, head) for noun in nouns)
    return found
