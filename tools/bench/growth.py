"""How cost grows with work: ``python -m tools.bench.growth``.

Along each of three axes, from a thousand parameters to a hundred million, from one tensor to ten
thousand, and from ten layers to ten thousand, each point in a process of its own: the CPU seconds
of building a graph and of loading it, the milliseconds of a step, and MiB beyond the libraries at
most. Writes ``growth.json``, ``growth.png`` and ``growth.md``, a table that also says how steep
each curve is at its steepest: the exponent between neighbors, where what is measured is not small.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.memory import resident
from tools.bench.options import session_options

_ROOT = Path(__file__).parents[2]
_STEPS = 7
_THREADS = 2
_WIDTH, _BATCH = 16, 8
_TENSORS, _ELEMENTS = 10, 1000

Point = dict[str, float]

AXES = {
    "parameters": [10**k for k in range(3, 9)],
    "tensors": [1, 10, 100, 1000, 10_000],
    "layers": [10, 100, 1000, 10_000],
}
"""What grows, and its sizes."""

MEASURES = {
    "build_s": ("Building a graph", "CPU seconds", 0.1),
    "load_s": ("Loading it", "CPU seconds", 0.1),
    "step_ms": ("A step", "milliseconds", 5.0),  # of less, all fits into a cache
    "peak_mib": ("Memory", "MiB beyond the libraries", 16.0),
}
"""What is measured: its title, its unit, and what is small, where other things cost more."""


def point(axis: str, size: int, folder: Path) -> Point:
    """Measure one point in this process."""
    import graphopt

    _warm_up()
    before = _from_here()
    begin = time.process_time()
    graph, feeds, start = _MAKERS[axis](size)
    graph.save(folder / "train.onnx")
    built = time.process_time() - begin
    del graph
    options = session_options(_THREADS)
    begin = time.process_time()
    session = graphopt.Session(folder / "train.onnx", start, session_options=options)
    loaded = time.process_time() - begin
    times = []
    for _ in range(_STEPS):
        begin = time.perf_counter()
        session.step(feeds)
        times.append((time.perf_counter() - begin) * 1e3)
    # What was there before may have been given back meanwhile.
    peak = max(0, resident("VmHWM") - before) / 2**20
    return {
        "build_s": built,
        "load_s": loaded,
        "step_ms": statistics.median(times[1:]),
        "peak_mib": peak,
    }


def _update_of(shapes: Sequence[tuple[int, ...]]) -> tuple[Any, Any, Any]:
    """An update graph, what it is fed, and the parameters that it starts from."""
    import graphopt

    parameters = [graphopt.Parameter(f"p{i}", shape) for i, shape in enumerate(shapes)]
    graph = graphopt.update_graph(graphopt.RMSProp(parameters, 1e-3))
    start = {p.name: np.ones(p.shape, np.float32) for p in parameters}
    return graph, {f"{name}_grad": value for name, value in start.items()}, start


def _layers(count: int) -> tuple[Any, Any, Any]:
    """A training graph of so many layers, and what it is fed."""
    import onnx
    from onnx import helper, numpy_helper

    import graphopt

    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for at in range(count):
        weight = rng.normal(0, _WIDTH**-0.5, (_WIDTH, _WIDTH)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{at}"))
        weights.append(numpy_helper.from_array(np.zeros(_WIDTH, np.float32), f"b{at}"))
        nodes.append(helper.make_node("Gemm", [f"x{at}", f"w{at}", f"b{at}"], [f"y{at}"]))
        nodes.append(helper.make_node("Tanh", [f"y{at}"], [f"x{at + 1}"]))
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [_BATCH, _WIDTH])
        for name in ("x0", f"x{count}")
    )
    opset = helper.make_opsetid("", 17)
    made = helper.make_graph(nodes, "net", [x], [y], weights)
    model = helper.make_model(made, opset_imports=[opset], ir_version=8)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3)
    feeds = {"x0": np.ones((_BATCH, _WIDTH), np.float32)}
    feeds["labels"] = np.zeros((_BATCH, _WIDTH), np.float32)
    return graphopt.training_graph(model, "mse", optimizer), feeds, None


_MAKERS: Mapping[str, Callable[[int], tuple[Any, Any, Any]]] = {
    "parameters": lambda size: _update_of([(size // _TENSORS,)] * _TENSORS),
    "tensors": lambda size: _update_of([(_ELEMENTS,)] * size),
    "layers": _layers,
}


def _warm_up() -> None:
    """So that what libraries load once is not counted."""
    import graphopt

    graph, feeds, start = _update_of([(1,)])
    graphopt.Session(graph, start).step(feeds)
    graph, feeds, _ = _layers(1)
    graphopt.Session(graph).step(feeds)


def _from_here() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def steepest(sizes: Sequence[int], values: Sequence[float], small: float) -> float:
    """The largest exponent between neighbors of which the first is not small; 0 if all are."""
    points = zip(sizes, values, strict=True)
    return max(
        (
            math.log(after / before) / math.log(more / less)
            for (less, before), (more, after) in pairwise(points)
            if before >= small
        ),
        default=0.0,
    )


def table(found: Mapping[str, Mapping[int, Point]]) -> list[str]:
    """The lines of a table in Markdown, and how steep the curves are."""
    lines = []
    for axis, points in found.items():
        lines += ["", f"| {axis} | {' | '.join(MEASURES)} |", f"|---:|{'---:|' * len(MEASURES)}"]
        for size, measured in points.items():
            cells = (f"{measured[key]:.3g}" for key in MEASURES)
            lines.append(f"| {size:,} | {' | '.join(cells)} |")
        exponents = (
            steepest(list(points), [p[key] for p in points.values()], small)
            for key, (_, _, small) in MEASURES.items()
        )
        lines.append(f"| steepest | {' | '.join(f'{one:.2f}' for one in exponents)} |")
    return lines[1:]


def draw(found: Mapping[str, Mapping[int, Point]], path: Path) -> None:
    """A panel of each measure, in it a curve along each axis, and a line that is linear."""
    from matplotlib import pyplot as plt

    from tools.bench.report import machine

    figure, axes = plt.subplots(
        len(found), len(MEASURES), figsize=(13, 3 * len(found)), squeeze=False
    )
    for row, (axis, points) in zip(axes, found.items(), strict=True):
        for panel, (key, (title, unit, _)) in zip(row, MEASURES.items(), strict=True):
            sizes, values = list(points), [measured[key] for measured in points.values()]
            panel.loglog(sizes, values, "o-", color="#d62728")
            line = [values[-1] * size / sizes[-1] for size in sizes]
            panel.loglog(sizes, line, ":", color="#7f7f7f", label="linear")
            panel.set_ylim(min(values) / 2, max(values) * 2)
            panel.set_title(f"{title}, {unit}", fontsize=9, loc="left")
            panel.set_xlabel(axis)
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(fontsize=8)
    figure.suptitle(f"Cost as work grows; {_THREADS} threads, {machine()}")
    figure.tight_layout()
    figure.savefig(path, dpi=90, format="png")
    plt.close(figure)


def save(found: Mapping[str, Mapping[int, Point]], folder: Path) -> None:
    """Write what was measured, as JSON, as a table and as a picture."""
    from tools.bench.report import machine

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1) + "\n"
    (folder / "growth.json").write_text(text, encoding="utf-8")
    lines = ["# Cost as work grows", "", f"{_THREADS} threads, {machine()}.", "", *table(found)]
    (folder / "growth.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(found, folder / "growth.png")


def main() -> None:
    """Measure all points, write and print what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("axes", nargs="*", default=list(AXES))
    parser.add_argument("--most", type=int, default=10**9, help="no sizes beyond that")
    parser.add_argument("--output", type=Path, default=_ROOT / "bench")
    asked = parser.parse_args()
    found: dict[str, dict[int, Point]] = {}
    for axis in asked.axes:
        found[axis] = {}
        for size in (size for size in AXES[axis] if size <= asked.most):
            found[axis][size] = _in_a_process(axis, size)
            print(axis, f"{size:,}", found[axis][size], flush=True)
    save(found, asked.output)


def _in_a_process(axis: str, size: int) -> Point:
    command = [sys.executable, "-m", "tools.bench.growth", "--point", axis, str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(_THREADS)}
    done = subprocess.run(
        command, cwd=_ROOT, text=True, stdout=subprocess.PIPE, check=True, env=environment
    )
    answer: Point = json.loads(done.stdout.splitlines()[-1])
    return answer


if __name__ == "__main__":
    if sys.argv[1:2] == ["--point"]:
        with tempfile.TemporaryDirectory() as kept:
            print(json.dumps(point(sys.argv[2], int(sys.argv[3]), Path(kept))))
    else:
        main()
