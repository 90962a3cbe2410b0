"""How a hazard is declared: its kind and its levels beside the function that looks for it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from graphopt.inspection.facts import Hazard, Level, StateFacts
from graphopt.inspection.reading.read_model import Reading
from graphopt.stage import Stage

_MOST = 50  # names in one hazard


@dataclass(frozen=True)
class Subject(Reading):
    """A model that has been read, and what follows from that.

    Attributes:
        stages: The stage of each node.
        frozen: Initializers that could be trained.
        state: What is carried, and what each is.
        early: Inputs that may be overwritten before all that read them have run.
        steps: The number of planned steps, if it is known.
        above_target: What the target does not know.
    """

    stages: Sequence[Stage]
    frozen: Sequence[str]
    state: Sequence[StateFacts]
    early: Sequence[str]
    steps: int | None
    above_target: Sequence[str]


@dataclass(frozen=True)
class Finding:
    """A hazard that was found.

    Attributes:
        where: What it is about; where that is nothing, there is no hazard.
        why: What is wrong.
        fix: What to do.
        level: Which of its levels it has; None for the first.
    """

    where: Sequence[str]
    why: str
    fix: str
    level: Level | None = None


Search = Callable[[Subject], Iterator[Finding]]


@dataclass(frozen=True)
class Declared:
    """A hazard that is looked for.

    Attributes:
        kind: Its name, such as "no-gradient".
        levels: The levels that it may have, the worst first.
        search: Looks for it; its docstring says in the documentation what the hazard is.
    """

    kind: str
    levels: tuple[Level, ...]
    search: Search

    def found(self, subject: Subject) -> Iterator[Hazard]:
        """Where it is in a graph."""
        for finding in self.search(subject):
            level = finding.level or self.levels[0]
            assert level in self.levels, f"{self.kind} is not declared to be a {level}"
            names = tuple(finding.where[:_MOST])
            if len(finding.where) > _MOST:
                names += (f"and {len(finding.where) - _MOST} more",)
            if names:
                yield Hazard(self.kind, level, names, finding.why, finding.fix)


def hazard(kind: str, *levels: Level) -> Callable[[Search], Declared]:
    """Declare a hazard with the levels that it may have, the worst first."""
    return lambda search: Declared(kind, levels, search)
