"""Something that goes wrong, or may."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]
"""Training goes wrong; training may go wrong; worth knowing."""
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Hazard:
    """Something that goes wrong, or may.

    Attributes:
        kind: Its name, which stays the same, such as "no-gradient".
        level: How bad it is.
        where: The parameters, states, nodes or inputs it is about.
        why: What is wrong.
        fix: What to do.
    """

    kind: str
    level: Level
    where: tuple[str, ...]
    why: str
    fix: str


def worst_first(hazards: Iterable[Hazard]) -> tuple[Hazard, ...]:
    """Hazards by level, those of one level in their order."""
    return tuple(sorted(hazards, key=lambda hazard: LEVELS.index(hazard.level)))
