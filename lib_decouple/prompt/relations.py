"""Which of a prompt's things are kept apart, and which are left out because they must overlap."""

from __future__ import annotations

from dataclasses import dataclass

from .entities import Entity, locate
from .syntax import HOST, Dialect


@dataclass(frozen=True)
class LeftOut:
    """A thing that is not kept apart by itself."""

    entity: Entity
    relation: str
    other: str = ""

    def why(self) -> str:
        """The reason in words."""
        return self.relation


@dataclass(frozen=True)
class Choice:
    """A prompt's things."""

    apart: tuple[Entity, ...]
    left_out: tuple[LeftOut, ...]


def choose(prompt: str, dialect: Dialect = HOST) -> Choice:
    """What is kept apart of ``prompt``."""
    return Choice(locate(prompt, dialect), ())
