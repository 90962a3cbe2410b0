"""Updates on the GPU against those of PyTorch and optax, and against a copy of the memory."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from graphopt._runtime import CPU, CUDA
from tools.bench.cases import UpdateCase, update_case
from tools.gpu.records import print_records
from tools.gpu.timing import Steps, milliseconds

CASES = [
    "update/efficientnet_b0/plain",
    "update/efficientnet_b0/decay_groups",
    "update/one_tensor/plain",
    "update/one_tensor/momentum",
    "update/efficientnet_b0/centered",
]


def measure() -> Iterator[dict[str, Any]]:
    """A record of each contender in each case."""
    yield {"case": "copy", "gigabytes_per_second": _copy()}
    for (contender, make), name in itertools.product(CONTENDERS.items(), CASES):
        case = update_case(name)
        size = sum(int(np.prod(shape)) for shape in case.shapes)
        moved = 4 * size * (3 + 2 + 2 * bool(case.variant.momentum) + 2 * case.variant.centered)
        record: dict[str, Any] = {"case": name, "contender": contender}
        try:
            record["ms"] = milliseconds(make(case))
            record["gigabytes_per_second"] = moved / record["ms"] / 1e6
        except Exception as error:  # noqa: BLE001 - whatever a contender lacks
            record["left_out"] = _first_line(error)
        yield record


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[-400:]


def _copy() -> float:
    """Bytes read and written a second, by a copy that no cache holds."""
    import torch

    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    ms = milliseconds(Steps(lambda: target.copy_(source), torch.cuda.synchronize))
    return 2 * source.nbytes / ms / 1e6


def _graphopt(case: UpdateCase, *, layout: Any, kernels: bool, captured: bool) -> Steps:
    import onnxruntime

    import graphopt
    from tools.bench.contenders.graphopt import optimizer_of

    names, optimizer = optimizer_of(case)
    graph = graphopt.update_graph(optimizer, provider=CUDA, layout=layout)
    session = graphopt.Session(
        graph,
        parameters=dict(zip(names, case.parameters(), strict=True)),
        providers=[(CUDA, {"enable_cuda_graph": str(int(captured))}), CPU],
        kernels=kernels,
    )
    if kernels and not session.kernels:
        raise RuntimeError("there are no kernels")
    feeds = {
        f"{name}_grad": onnxruntime.OrtValue.ortvalue_from_numpy(gradient, "cuda", 0)
        for name, gradient in zip(names, case.gradients(), strict=True)
    }
    return Steps(lambda: session.step(feeds, outputs=[]), session.wait)


def _torch(case: UpdateCase, *, compiled: bool) -> Steps:
    import torch

    from tools.bench.contenders.pytorch import optimizer_of

    tensors, optimizer = optimizer_of(case, "cuda", foreach=True)
    step: Callable[[], Any] = optimizer.step
    if compiled:
        if len(tensors) > 500:
            raise RuntimeError("compiling thousands of tensors takes minutes")
        step = torch.compile(optimizer.step, fullgraph=False)
    return Steps(step, torch.cuda.synchronize)


def _optax(case: UpdateCase) -> Steps:
    from tools.bench.contenders.optax import update

    run = update(case, 1)
    return Steps(run.step, lambda: None)


CONTENDERS: dict[str, Callable[[UpdateCase], Steps]] = {
    "graphopt": functools.partial(_graphopt, layout="auto", kernels=True, captured=False),
    "graphopt, captured": functools.partial(_graphopt, layout="auto", kernels=True, captured=True),
    "torch foreach": functools.partial(_torch, compiled=False),
    "torch.compile": functools.partial(_torch, compiled=True),
    "optax": _optax,
    "graphopt without kernels": functools.partial(
        _graphopt, layout="auto", kernels=False, captured=False
    ),
}

if __name__ == "__main__":
    print_records(measure())
