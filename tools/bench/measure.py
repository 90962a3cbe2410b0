"""Times contenders in turns, each in a process of its own."""

import json
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.bench.contenders import CONTENDERS

_WARM_UP_MS = 300.0
_ROUND_MS = 150.0


@dataclass(frozen=True)
class Record:
    """What was measured of a contender in a case.

    Attributes:
        case: The case.
        contender: The contender.
        median_ms: Median of a run, in milliseconds.
        spread_ms: Half the distance between the quartiles.
        threads: How many it used.
        ratio: graphopt's median over this contender's: below 1, graphopt is faster.
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


def measure(
    case: str, contenders: Sequence[str], threads: int, *, root: Path, rounds: int
) -> list[Record]:
    """Run a case with several contenders in turns; the first one is compared with the others.

    Raises:
        RuntimeError: A contender failed.
    """
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(_Worker(name, case, threads, root)) for name in contenders
        }
        repeats = {name: worker.warm_up() for name, worker in workers.items()}
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, worker in workers.items():
                # The first run after the others' wakes the threads.
                times[name] += worker.run(repeats[name] + 1)[1:]
    return list(_records(case, threads, times))


def _records(case: str, threads: int, times: Mapping[str, Sequence[float]]) -> Iterable[Record]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
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


class _Worker:
    """A contender's process."""

    def __init__(self, contender: str, case: str, threads: int, root: Path) -> None:
        python = root / CONTENDERS[contender].environment / "bin" / "python"
        self._name = f"{contender} in {case}"
        self._process = subprocess.Popen(
            [str(python), "-m", "tools.bench.worker", contender, case, str(threads)],
            cwd=root,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def warm_up(self) -> int:
        """Wait until it is ready, and run for a while; returns how many runs make a round."""
        self._answer()
        spent, last = 0.0, 0.0
        while spent < _WARM_UP_MS:
            (last,) = self.run(1)
            spent += last
        return max(1, round(_ROUND_MS / last))

    def run(self, count: int) -> list[float]:
        """The milliseconds of each of several runs."""
        assert self._process.stdin is not None
        print(count, file=self._process.stdin, flush=True)
        times: list[float] = self._answer()
        return times

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} failed, see above")
        return json.loads(line)

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)  # closes its input, at which it ends
