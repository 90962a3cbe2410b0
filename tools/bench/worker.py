"""One contender, alone in a process: prepares a case, then runs it when told to.

Started by `tools.bench.measure` as ``python -m tools.bench.worker CONTENDER CASE THREADS``. Each
line that it reads is a number of runs; it answers with a line of JSON, the milliseconds of each.
"""

import json
import sys
import time
from collections.abc import Callable

from tools.bench import contenders


def main() -> None:
    """Serve until the input ends."""
    contender, case, threads = sys.argv[1:]
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints
    run = contenders.prepare(contender, case, int(threads))
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps([_milliseconds(run) for _ in range(int(line))]), file=answers, flush=True)


def _milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    main()
