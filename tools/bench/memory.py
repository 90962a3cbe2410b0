"""How much memory an update takes, and how long it takes to load: ``python -m tools.bench.memory``.

Each measurement runs in a process of its own. Memory: what is resident before the first step, how
far the peak of the steps lies above that, and what parameters, gradients and states alone take.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.bench.cases import SETS, update_case

_ROOT = Path(__file__).parents[2]
_STEPS = 5
_LOADS = 5
_MIB = 2**20
_ENVIRONMENTS = (".venv", ".venv-training")


def memory(case: str) -> dict[str, float]:
    """Bytes of an update case, measured in this process: ``needed``, ``held`` and ``extra``.

    Returns:
        ``needed``: parameters, gradients and states. ``held``: resident before the first step,
        above what was resident before there was any of them. ``extra``: how far the peak of the
        steps lies above that.
    """
    import graphopt
    from tools.bench.contenders.graphopt import optimizer_of

    update = update_case(case)
    names, optimizer = optimizer_of(update)
    graph = graphopt.update_graph(optimizer)
    _load_runtime()
    before = resident("VmRSS")
    session = graphopt.Session(graph, parameters=dict(zip(names, update.parameters(), strict=True)))
    feeds = {f"{n}_grad": g for n, g in zip(names, update.gradients(), strict=True)}
    held = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident
    for _ in range(_STEPS):
        session.step(feeds)
    needed = sum(g.nbytes for g in feeds.values()) * (2 + len(optimizer.states))
    return {"needed": needed, "held": held - before, "extra": resident("VmHWM") - held}


def load(case: str) -> dict[str, float]:
    """Milliseconds to make a session of an update case's graph, in this process."""
    import numpy as np

    import graphopt
    from tools.bench.contenders.graphopt import optimizer_of

    _, optimizer = optimizer_of(update_case(case))
    graph = graphopt.update_graph(optimizer)
    start = {p.name: np.zeros(p.shape, np.float32) for p in optimizer.params}
    times = []
    for _ in range(_LOADS):
        begin = time.perf_counter()
        graphopt.Session(graph, parameters=start)
        times.append((time.perf_counter() - begin) * 1e3)
    return {"first": times[0], "median": statistics.median(times)}


def main() -> None:
    """Measure everything; print two tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="An update with momentum, MiB")
    for column in (
        "set",
        "needed",
        "held before the first step",
        "more in the steps",
        "all/needed",
    ):
        table.add_column(column, justify="left" if column == "set" else "right")
    for which in SETS:
        sizes = _measured(".venv", "memory", f"update/{which}/momentum")
        needed, held, extra = (sizes[key] for key in ("needed", "held", "extra"))
        cells = [f"{size / _MIB:.1f}" for size in (needed, held, extra)]
        table.add_row(which, *cells, f"{(held + extra) / needed:.2f}")
    console.print(table)
    table = Table(title="Loading an update graph of 2,000 parameters, milliseconds")
    for column in ("environment", "first", "median"):
        table.add_column(column, justify="left" if column == "environment" else "right")
    for environment in _ENVIRONMENTS:
        times = _measured(environment, "load", "update/tiny/momentum")
        table.add_row(environment, f"{times['first']:.0f}", f"{times['median']:.0f}")
    console.print(table)


def _load_runtime() -> None:
    """So that what the runtime itself takes is not counted."""
    import numpy as np

    import graphopt

    small = graphopt.RMSProp([graphopt.Parameter("w", (1,))])
    start = {"w": np.zeros(1, np.float32)}
    graphopt.Session(graphopt.update_graph(small), parameters=start).step({"w_grad": start["w"]})


def _measured(environment: str, what: str, case: str) -> dict[str, float]:
    """What `memory` or `load` returns in a process of its own."""
    python = _ROOT / environment / "bin" / "python"
    command = [str(python), "-m", "tools.bench.memory", what, case]
    done = subprocess.run(command, cwd=_ROOT, text=True, stdout=subprocess.PIPE, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def resident(field: str) -> int:
    """A field of this process's status in bytes: VmRSS, what is resident, or VmHWM, its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps({"memory": memory, "load": load}[sys.argv[1]](sys.argv[2])))
    else:
        main()
