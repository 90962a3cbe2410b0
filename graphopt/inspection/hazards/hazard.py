"""How a hazard is declared: its kind and its levels beside the function that looks for it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from graphopt.inspection.facts import Hazard, Level, StateFacts
from graphopt.inspection.reading.dataflow import Dataflow, Value
from graphopt.inspection.reading.merged import Merged
from graphopt.inspection.reading.recovered import Recovered
from graphopt.inspection.reading.writes import Write
from graphopt.stage import Stage

_MOST = 50  # names in one hazard


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        flow: The flow of values of the model.
        carried: What it hands from step to step.
        recovered: The optimizer in its nodes.
        merged: The optimizer.
        frozen: Initializers that could be trained.
        stages: The stage of each node.
        steps: The number of planned steps, if it is known.
        above_target: What the target does not know.
        damage: What is wrong with the metadata.
        buffers: The parameters for whose gradients ONNX Runtime has a buffer.
        early: Inputs that may be overwritten before all that read them have run.
        state: What is carried, and what each is.
        in_place: Whether nodes write over inputs, or outputs have memory of their own.
    """

    flow: Dataflow
    carried: Sequence[Write]
    recovered: Recovered | None
    merged: Merged
    frozen: Sequence[str]
    stages: Sequence[Stage]
    steps: int | None
    above_target: Sequence[str]
    damage: str | None
    buffers: Mapping[str, Value]
    early: Sequence[str]
    state: Sequence[StateFacts]
    in_place: bool

    @property
    def written(self) -> set[str]:
        """What is carried, parameters that the metadata says are in a bucket included."""
        carried = {write.input.name for write in self.carried}
        return carried | {name for name, bucket in self.merged.buckets.items() if bucket in carried}


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
