"""Times contenders in turns, each in a process of its own."""

import statistics
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.bench import check
from tools.bench.answering import Answering
from tools.bench.cases import is_update, update_case
from tools.bench.contenders import CONTENDERS, UnavailableError

_WARM_UP_MS = 300.0
_ROUND_MS = 150.0
_PAUSE_S = 0.02  # the threads of the one before wait for work for a while, on the same cores
_END_S = 60.0


@dataclass(frozen=True)
class Record:
    """What was measured of a contender in a case.

    Attributes:
        case: The case.
        contender: The contender.
        median_ms: Median of a run, in milliseconds.
        spread_ms: Half the distance between the quartiles.
        threads: How many it used.
        ratio: The median of the first contender, graphopt by default, over this one's: below 1,
            graphopt is faster.
    """

    case: str
    contender: str
    median_ms: float
    spread_ms: float
    threads: int
    ratio: float

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """What came of a case.

    Attributes:
        records: A record of each contender that ran.
        left_out: Why the others did not, by contender.
        versions: The versions of its packages, by contender.
    """

    records: list[Record]
    left_out: dict[str, str]
    versions: dict[str, dict[str, str]]


def measure(
    case: str, contenders: Sequence[str], threads: int, *, root: Path, rounds: int
) -> Measured:
    """Run a case with several contenders in turns; the first one is compared with the others.

    Args:
        case: The name of the case.
        contenders: Names of contenders that can run it.
        threads: How many threads, and cores, each has.
        root: The folder of the repository.
        rounds: How often each has a turn.

    Raises:
        RuntimeError: A contender failed, or computes something else than the others.
    """
    left_out: dict[str, str] = {}
    versions: dict[str, dict[str, str]] = {}
    workers: dict[str, _Worker] = {}
    with ExitStack() as stack:
        for name in contenders:
            try:
                workers[name] = stack.enter_context(_Worker(name, case, threads, root))
            except UnavailableError as error:
                left_out[name] = str(error)
        expected = check.expected_moves(update_case(case)) if is_update(case) else None
        for name, worker in list(workers.items()):
            try:
                versions[name], moves = worker.introduction()
            except UnavailableError as error:
                left_out[name] = str(error)
                del workers[name]
                continue
            if moves is not None and expected is not None:
                _check_moves(name, case, moves, expected)
        times = _take_turns(workers, rounds)
    return Measured(list(_records(case, threads, times)), left_out, versions)


def _take_turns(workers: Mapping[str, "_Worker"], rounds: int) -> dict[str, list[float]]:
    """The milliseconds of all runs of each."""
    repeats = {name: worker.warm_up() for name, worker in workers.items()}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            time.sleep(_PAUSE_S)
            # The first run after the others' wakes the threads.
            times[name] += worker.run(repeats[name] + 1)[1:]
    return times


def _check_moves(name: str, case: str, moves: list[float], expected: check.Float64) -> None:
    if case.rpartition("/")[2] in CONTENDERS[name].departures:
        return
    problem = check.disagreement(moves, expected)
    if problem is not None:
        raise RuntimeError(f"{name} in {case}: {problem}")


def _records(case: str, threads: int, times: Mapping[str, Sequence[float]]) -> Iterable[Record]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()), 0.0)
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        yield Record(
            case,
            name,
            round(medians[name], 4),
            round((high - low) / 2, 4),
            threads,
            round(first / medians[name], 3),
        )


class _Worker(Answering):
    """A contender's process."""

    def __init__(self, contender: str, case: str, threads: int, root: Path) -> None:
        environment = root / CONTENDERS[contender].environment
        python = environment / "bin" / "python"
        if not python.exists():
            raise UnavailableError(
                f"there is no environment {CONTENDERS[contender].environment}; "
                "'make bench' makes it where its packages can be installed"
            )
        process = subprocess.Popen(
            [str(python), "-m", "tools.bench.worker", contender, case, str(threads)],
            cwd=root,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        super().__init__(process, f"{contender} in {case}")

    def introduction(self) -> tuple[dict[str, str], list[float] | None]:
        """Wait until it is ready: versions of its packages, moves of a sample of its parameters.

        Raises:
            UnavailableError: The machine lacks what it needs.
        """
        answer: dict[str, Any] = self.answer()
        if "unavailable" in answer:
            raise UnavailableError(answer["unavailable"])
        return answer["versions"], answer["moves"]

    def warm_up(self) -> int:
        """Run for a while; returns how many runs make a round."""
        spent, last = 0.0, 0.0
        while spent < _WARM_UP_MS:
            (last,) = self.run(1)
            spent += last
        return max(1, round(_ROUND_MS / last))

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is not None:
            self.process.kill()  # it may be at work for long
        try:
            self.process.communicate(timeout=_END_S)  # closes its input, at which it ends
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
