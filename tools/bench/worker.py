"""One contender, alone in a process: prepares a case, then runs it when told to.

Started by `tools.bench.measure` as ``python -m tools.bench.worker CONTENDER CASE THREADS``. It
answers in lines of JSON: first what it is (see `_introduction`), then to each line that it reads,
a number of runs, the milliseconds of each run.
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Serve until the input ends."""
    contender, case, threads = sys.argv[1:]
    # As many cores as threads, before anything counts them: XLA has no other setting.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    from tools.bench.contenders import CONTENDERS, UnavailableError

    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints
    try:
        run = CONTENDERS[contender].prepare(case, int(threads))
    except UnavailableError as error:
        print(json.dumps({"unavailable": str(error)}), file=answers, flush=True)
        return
    introduction = {"versions": _versions(CONTENDERS[contender].packages), "moves": _moves(run)}
    print(json.dumps(introduction), file=answers, flush=True)
    for line in sys.stdin:
        times = [_milliseconds(run.step) for _ in range(int(line))]
        print(json.dumps(times), file=answers, flush=True)


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


def _moves(run: Any) -> list[float] | None:
    """How far a sample of the parameters moves in the first steps."""
    from tools.bench import check

    if run.parameters is None:
        return None
    before = check.sample(run.parameters())
    for _ in range(check.STEPS):
        run.step()
    moves: list[float] = (check.sample(run.parameters()) - before).tolist()
    return moves


def _milliseconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    main()
