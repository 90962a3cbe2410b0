"""What `graphopt train --distributed` does: several processes go through the samples together."""

import json
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from graphopt.distributed import DataParallel, mpi, torch_distributed
from graphopt.distributed.errors import OtherRankError
from graphopt.feeds import Feed
from graphopt.graph import TrainingGraph
from graphopt.samples import Batch, fixed_size, size_of_batch
from graphopt.session import Session
from graphopt.training_run import History, Plan, Run, Stop, Target

Distributed = Literal["mpi", "torch"]

_ENGINES = {"mpi": mpi, "torch": torch_distributed}
_PATIENCE = 5.0  # seconds in which a rank that has failed ends the others


@dataclass(frozen=True, kw_only=True)
class _Shards(Plan):
    """The part of one rank: of each batch, as many samples as the others have, or one more."""

    rank: int
    ranks: int
    fed: Collection[str]  # inputs of the update, which a rank without samples is fed as well

    def from_position(self, position: int) -> Iterator[Batch]:
        """The parts of the batches from there on; no samples where a batch has too few."""
        alone = {name: array for name, array in self.constants.items() if name in self.fed}
        for chosen in self.chosen_from(position):
            begin, end = (len(chosen) * r // self.ranks for r in (self.rank, self.rank + 1))
            mine = chosen[begin:end]
            yield {**self.samples.take(mine), **self.constants} if len(mine) else alone


class _RunByRanks(Run):
    """The run of one rank, which saves nothing unless it is the first."""

    session: DataParallel

    def resume(self, resume: Path | None) -> None:
        """Go on from where rank 0 was.

        Raises:
            RuntimeError: Another rank has other data.
            ValueError: As `Run.resume`.
        """
        ranks = self.session.ranks
        mine = resume if ranks.rank == 0 else None
        ranks.together(lambda: super(_RunByRanks, self).resume(mine))
        ours = json.dumps([self._described, self.position, self.summed, self.history.epochs])
        found = json.loads(ranks.from_first(ours.encode()))
        described, self.position, (count, total), self.history.epochs = found
        self.summed = int(count), float(total)
        ranks.together(lambda: self._check_data(described))
        self.session.broadcast()

    def _check_data(self, described: dict[str, Any]) -> None:
        for name, value in described.items():
            if self._described[name] != value:
                raise ValueError(f"rank {self.session.rank} has another {name} than rank 0")

    def _values(self) -> dict[str, float]:
        """What rank 0 finds, so that all ranks end after the same epoch."""
        ranks = self.session.ranks
        values = ranks.together(super()._values if ranks.rank == 0 else dict)
        found: dict[str, float] = json.loads(ranks.from_first(json.dumps(values).encode()))
        return found

    def _is_to_stop(self, stop: Stop) -> bool:
        """All ranks end after the same step, also where one alone is told to."""
        stop.signal = self.session.ranks.largest(stop.signal or 0) or None
        return super()._is_to_stop(stop)


class Company:
    """The processes of a run: this one alone, or several ranks.

    Args:
        engine: What adds arrays up between them; None where this one is alone.
    """

    def __init__(self, engine: Any = None) -> None:
        """See the class."""
        self._engine = engine

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self._engine is None or bool(self._engine.rank == 0)

    def session(self, graph: TrainingGraph) -> Session:
        """The session of a training graph."""
        return Session(graph) if self._engine is None else DataParallel(graph, self._engine)

    def size_of_batch(self, inputs: Iterable[Feed], wanted: int | None) -> int:
        """The samples of a step, those of all ranks together.

        Raises:
            ValueError: The graph fixes another number.
        """
        inputs = list(inputs)
        fixed, ranks = fixed_size(inputs), 1 if self._engine is None else self._engine.size
        if fixed is None or ranks == 1:
            return size_of_batch(inputs, wanted)
        if wanted not in (None, ranks * fixed):
            raise ValueError(
                f"--batch-size {wanted}: the batch size of the graph is fixed to {fixed}, which is "
                f"{ranks * fixed} for {ranks} ranks"
            )
        return ranks * fixed

    def run(self, session: Session, plan: Plan, target: Target, history: History) -> Run:
        """The run of this process."""
        if not isinstance(session, DataParallel):
            return Run(session, plan, target, history)
        same = {field.name: getattr(plan, field.name) for field in fields(plan)}
        shards = _Shards(**same, rank=session.rank, ranks=session.size, fed=session.fed)
        return _RunByRanks(session, shards, target if self.is_first else Target(None), history)


@contextmanager
def company(distributed: Distributed | None) -> Iterator[Company]:
    """The processes of a run; where one fails, all end.

    Args:
        distributed: What has started them; None: this one is alone.

    Raises:
        ImportError: What it needs is not installed.
        RuntimeError: It has not started this process.
    """
    if distributed is None:
        yield Company()
        return
    engine: Any = _ENGINES[distributed]()
    try:
        yield Company(engine)
    except Exception as error:
        if engine.size == 1:
            raise
        if isinstance(engine, torch_distributed):
            engine.end(error)
        if isinstance(error, OtherRankError):  # the rank that has failed says why, and ends all
            time.sleep(_PATIENCE)
            raise
        time.sleep(0.1 * min(engine.rank, 10))  # what all ranks say is said once
        engine.end(error, shortly=True)
        raise
    if isinstance(engine, torch_distributed):
        engine.__exit__(None, None, None)
