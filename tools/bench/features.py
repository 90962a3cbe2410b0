"""What each option of an update costs: ``python -m tools.bench.features``.

Each is run beside the same update without it, in turns and in one process: of 5.2 M parameters in
213 tensors, or with ``--step`` of a training step: of the zoo's ResNet, or of a network that
`tools.bench.footprint` exported, ``--step build/footprint/resnet18``. Printed are the median time
of a turn, the median of the ratios, and of an update what the ratio would be if all that counted
were the bytes that must be read and written.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import graphopt
from graphopt import DynamicLossScale, ParameterAverage, RMSProp
from models.zoo import ZOO
from tools.bench.cases import SETS
from tools.bench.options import session_options

_SET, _NETWORK = "efficientnet_b0", "resnet"
_THREADS, _TURN = 2, 0.1  # seconds
Options = dict[str, tuple[dict[str, Any], dict[str, Any]]]
OPTIONS: Options = {
    "skip_on_overflow": ({"skip_on_overflow": True}, {}),
    "dynamic loss scale": ({"loss_scale": DynamicLossScale()}, {}),
    "clip_norm": ({"clip_norm": 1.0}, {}),
    "clip_value": ({"clip_value": 1.0}, {}),
    "average": ({"average": ParameterAverage()}, {}),
    "accumulation of 4": ({}, {"accumulation": 4}),
}
"""What is measured: arguments of the optimizer, and of the graph."""
_BYTES = 20.0  # an element of the update reads parameter, gradient and mean square, and writes two
_OPTION_BYTES = {
    "skip_on_overflow": _BYTES + 4,  # the gradient twice
    "dynamic loss scale": _BYTES + 4,
    "clip_norm": _BYTES + 4,
    "clip_value": _BYTES,
    "average": _BYTES + 12,  # the parameter again, and the average twice
    "accumulation of 4": 12 + _BYTES / 4,  # the gradient, the sum twice; an update in each fourth
}
STEP_OPTIONS: Options = {
    "float16": ({"loss_scale": 1024.0}, {"precision": "float16"}),
    "bfloat16": ({}, {"precision": "bfloat16"}),
}
"""The same, of a training step alone."""


def update(optimizer: dict[str, Any], graph: dict[str, Any], *, kernels: bool) -> Callable[[], Any]:
    """A step of an update alone."""
    shapes = SETS[_SET]
    names = [f"p{index}" for index in range(len(shapes))]
    rng = np.random.default_rng(0)
    arrays = {
        name: np.asarray(rng.standard_normal(shape), np.float32)
        for name, shape in zip(names, shapes, strict=True)
    }
    parameters = [graphopt.Parameter(name, array.shape) for name, array in arrays.items()]
    made = graphopt.update_graph(RMSProp(parameters, 1e-4, **optimizer), **graph)
    session = graphopt.Session(
        made, arrays, session_options=session_options(_THREADS), kernels=kernels
    )
    feeds = {f"{name}_grad": array for name, array in arrays.items()}
    return lambda: session.step(feeds)


def step(
    network: Path | None,
    optimizer: dict[str, Any],
    graph: dict[str, Any],
    *,
    kernels: bool,
) -> Callable[[], Any]:
    """A training step of the zoo's network, or of one in a folder."""
    entry = ZOO[_NETWORK]
    model: Any
    if network is None:
        model, loss = entry.build(batch=entry.batch), entry.loss
        feeds = entry.feeds(np.random.default_rng(0), entry.batch)
    else:
        model, loss = network / "forward.onnx", "cross_entropy"
        feeds = dict(np.load(network / "batch.npz"))
    opt = RMSProp(graphopt.parameters(model), 1e-4, **optimizer)
    made = graphopt.training_graph(model, loss, opt, **graph)
    session = graphopt.Session(made, session_options=session_options(_THREADS), kernels=kernels)
    return lambda: session.step(feeds)


def measured(
    make: Callable[..., Callable[[], Any]], option: str, rounds: int, *, kernels: bool
) -> dict[str, Any]:
    """The time with and without an option, in milliseconds, and their ratio."""
    runs = [make({}, {}, kernels=kernels), make(*(OPTIONS | STEP_OPTIONS)[option], kernels=kernels)]
    repeats = [max(1, int(_TURN / _timed(run, 2))) for run in runs]
    turns = [
        [_timed(run, count) for run, count in zip(runs, repeats, strict=True)]
        for _ in range(rounds)
    ]
    without, with_it = (1e3 * statistics.median(times) for times in zip(*turns, strict=True))
    ratio = statistics.median(turn[1] / turn[0] for turn in turns)
    found = {"option": option, "without_ms": without, "with_ms": with_it, "ratio": ratio}
    if make is update:
        found["ratio_of_bytes"] = _OPTION_BYTES[option] / _BYTES
    return found


def _timed(run: Callable[[], Any], count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - begin) / count


def main() -> None:
    """Measure, and print a line of JSON for each option."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--step", nargs="?", const="", metavar="FOLDER", help="a training step of a network"
    )
    parser.add_argument("--only", choices=[*OPTIONS, *STEP_OPTIONS], help="one option")
    parser.add_argument("--bodies", action="store_true", help="without the kernels")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    make = update if given.step is None else partial(step, Path(given.step) if given.step else None)
    options = (*OPTIONS, *(() if make is update else STEP_OPTIONS))
    for option in (given.only,) if given.only else options:
        result = measured(make, option, given.rounds, kernels=not given.bodies)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
