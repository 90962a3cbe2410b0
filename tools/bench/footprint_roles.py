"""What the processes of `tools.bench.footprint` do, each in one of its own.

Started as ``python -m tools.bench.footprint_roles ROLE NETWORK FOLDER HOW``; answers are lines
of JSON. What is resident is counted beyond what was, with all libraries loaded and used once.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.memory import resident
from tools.bench.options import session_options

THREADS = 2
_WARM_UP = 5
_MIB = 2**20


def export(network: str, folder: Path, _: str) -> None:
    """Write the forward model of a network and a batch for it."""
    import onnx_ir as ir

    import graphopt.torch
    from tools.bench.footprint_networks import made

    module, x, labels = made(network)
    model = graphopt.torch.export(module, (x,), input_names=["x"])
    ir.save(model, folder / "forward.onnx")
    np.savez(folder / "batch.npz", x=x.numpy(), labels=labels.numpy())
    print(json.dumps({}))


def build(_: str, folder: Path, memory: Any) -> None:
    """Build the training graph and write it: peak, milliseconds, sizes."""
    _small_graph()
    before = _from_here()
    begin = time.perf_counter()
    graph = graph_of(folder, memory)
    graph.save(trained(folder, memory))
    taken = (time.perf_counter() - begin) * 1e3
    peak = _mebibytes("VmHWM") - before
    state = sum(
        int(np.prod(value.shape, dtype=np.int64)) * np.dtype(value.dtype).itemsize
        for value in graph.carried
    )
    size = trained(folder, memory).stat().st_size
    sizes = {"file": size / _MIB, "state": state / _MIB}
    print(json.dumps({"build_peak": peak, "build_ms": taken, **sizes}))


def graph_of(folder: Path, memory: Any) -> Any:
    """The training graph of ``forward.onnx``, with the same optimizer as `torch_step`."""
    import graphopt

    path = folder / "forward.onnx"
    optimizer = graphopt.RMSProp(graphopt.parameters(path), 1e-4, epsilon=1e-3)
    return graphopt.training_graph(path, "cross_entropy", optimizer, memory=memory)


def trained(folder: Path, memory: str) -> Path:
    """The training graph of a network."""
    return folder / f"train_{memory}.onnx"


def run_graphopt(_: str, folder: Path, memory: str) -> None:
    """Make a session of the training graph, and take steps."""
    import graphopt

    feeds = dict(np.load(folder / "batch.npz"))
    small = {"x": np.ones((1, 2), np.float32), "labels": np.ones((1, 1), np.float32)}
    graphopt.Session(_small_graph()).step(small)
    before = _from_here()
    options = session_options(THREADS)
    begin = time.perf_counter()
    session = graphopt.Session(trained(folder, memory), session_options=options)
    taken = (time.perf_counter() - begin) * 1e3
    sizes = {"load_peak": _mebibytes("VmHWM") - before, "held": _mebibytes("VmRSS") - before}
    _serve(lambda: session.step(feeds)["loss"], before, {"load_ms": taken, **sizes})


def run_torch(network: str, _: Path, how: str) -> None:
    """Take PyTorch's steps, eager or compiled."""
    import torch

    from tools.bench.footprint_networks import made

    torch.set_num_threads(THREADS)
    loss_of: Any = torch.nn.functional.cross_entropy
    small = torch.nn.Conv2d(1, 1, 1)
    training = torch_step(small, torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2).long(), loss_of, how)
    training()
    made("lstm_256")  # imports what makes networks
    before = _from_here()
    step = torch_step(*made(network), loss_of, how)
    if how == "compiled":
        step()  # what compiling takes is not what a step does
    _serve(step, before, {})


def torch_step(module: Any, x: Any, labels: Any, loss_of: Any, how: str) -> Callable[[], float]:
    """A step of PyTorch's, eager or compiled."""
    import torch

    optimizer = torch.optim.RMSprop(module.parameters(), 1e-4, alpha=0.9, eps=1e-3)

    def loss(x: Any, labels: Any) -> Any:
        return loss_of(module(x), labels)

    forward: Any = torch.compile(loss) if how == "compiled" else loss

    def step() -> float:
        optimizer.zero_grad()
        result = forward(x, labels)
        result.backward()
        optimizer.step()
        return float(result.item())

    return step


def _serve(step: Callable[[], Any], before: float, sizes: dict[str, float]) -> None:
    """Say what steps take; then, for each line, a number, the milliseconds of so many."""
    _from_here()
    for _ in range(_WARM_UP):
        loss, taken = _timed(step)
    print(f"loss after {_WARM_UP} steps: {loss:.6f}", file=sys.stderr)
    peak = _mebibytes("VmHWM") - before
    print(json.dumps({**sizes, "peak": peak, "step": taken}), flush=True)
    for line in sys.stdin:
        print(json.dumps([_timed(step)[1] for _ in range(int(line))]), flush=True)


def _timed(step: Callable[[], Any]) -> tuple[float, float]:
    """What a step gives, and its milliseconds."""
    begin = time.perf_counter()
    loss = float(step())
    return loss, (time.perf_counter() - begin) * 1e3


def _small_graph() -> Any:
    """A graph of which making and running loads all that a library loads once."""
    import onnx

    import graphopt

    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        linear (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }""")
    return graphopt.training_graph(model, "mse", graphopt.RMSProp(graphopt.parameters(model)))


def _from_here() -> float:
    """What is resident, in MiB, from which the peak starts anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _mebibytes("VmRSS")


def _mebibytes(field: str) -> float:
    return resident(field) / _MIB


ROLES = {"export": export, "build": build, "graphopt": run_graphopt, "torch": run_torch}

if __name__ == "__main__":
    role, network_name, folder_name, how_name = sys.argv[1:]
    ROLES[role](network_name, Path(folder_name), how_name)
