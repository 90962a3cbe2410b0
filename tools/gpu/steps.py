"""Training steps of networks on the GPU against those of PyTorch."""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import onnx
from onnx import numpy_helper

from graphopt._runtime import CPU, CUDA
from graphopt.half.precision import PRECISIONS, Precision
from tools.gpu.networks import CLASSES, GRAPHS, NETWORKS
from tools.gpu.records import print_records
from tools.gpu.timing import Steps, milliseconds

_RATE = 1e-5


def measure(names: list[str]) -> Iterator[dict[str, Any]]:
    """A record of each contender for each of these networks."""
    import torch

    for contender, make in CONTENDERS.items():
        for name in names or NETWORKS:
            record: dict[str, Any] = {"network": name, "contender": contender}
            torch.manual_seed(0)
            torch.cuda.empty_cache()
            before = _used()
            try:
                steps, losses = make(name)
                record["losses"] = losses
                record["ms"] = milliseconds(steps)
                record["mebibytes"] = (_used() - before) / 2**20
                del steps
            except Exception as error:  # noqa: BLE001 - whatever a contender lacks
                record["left_out"] = f"{type(error).__name__}: {error}"[:600]
            yield record


def _used() -> int:
    """Bytes of the GPU's memory that are in use."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def _batch(name: str) -> tuple[Any, Any]:
    import torch

    network = NETWORKS[name]
    torch.manual_seed(1)
    return network.inputs(network.batch), torch.randint(0, CLASSES, (network.batch,))


def forward_model(name: str) -> onnx.ModelProto:
    """The forward model with the weights of a new module."""
    import torch

    torch.manual_seed(0)
    state = NETWORKS[name].make().state_dict()
    model = onnx.load(GRAPHS / f"{name}.onnx")
    for tensor in model.graph.initializer:
        if tensor.name in state:
            array = state[tensor.name].numpy()
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def _graphopt(
    name: str, *, captured: bool, tf32: bool, precision: Precision | None = None, **options: str
) -> tuple[Steps, list[float]]:
    import onnxruntime

    import graphopt

    model = forward_model(name)
    optimizer = graphopt.RMSProp(
        graphopt.parameters(model),
        _RATE,
        epsilon_inside_root=False,
        initial_mean_square=0.0,
        loss_scale=graphopt.DynamicLossScale() if precision == "float16" else 1.0,
    )
    graph = graphopt.training_graph(
        model, "cross_entropy", optimizer, provider=CUDA, precision=precision
    )
    provider = {
        "enable_cuda_graph": str(int(captured)),
        "use_tf32": str(int(tf32)),
        **options,
    }
    session = graphopt.Session(graph, providers=[(CUDA, provider), CPU])
    x, labels = _batch(name)
    feeds = {
        "x": onnxruntime.OrtValue.ortvalue_from_numpy(x.numpy(), "cuda", 0),
        "labels": onnxruntime.OrtValue.ortvalue_from_numpy(labels.numpy(), "cuda", 0),
    }
    losses = [float(session.step(feeds)["loss"]) for _ in range(3)]
    return Steps(lambda: session.step(feeds, outputs=[]), session.wait), losses


def _torch(
    name: str, *, compiled: bool, tf32: bool, precision: Precision | None = None
) -> tuple[Steps, list[float]]:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.manual_seed(0)
    module = NETWORKS[name].make().cuda().train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    x, labels = (value.cuda() for value in _batch(name))
    optimizer = torch.optim.RMSprop(module.parameters(), lr=_RATE, alpha=0.9, eps=1e-10)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "float16")
    dtype = None if precision is None else getattr(torch, precision)

    def loss_of() -> Any:
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
            return torch.nn.functional.cross_entropy(module(x), labels)

    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> Any:
        optimizer.zero_grad()
        loss = forward()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    losses = [float(step()) for _ in range(3)]
    return Steps(step, torch.cuda.synchronize), losses


CONTENDERS: dict[str, Callable[[str], tuple[Steps, list[float]]]] = {
    "graphopt, captured": functools.partial(_graphopt, captured=True, tf32=False),
    "torch": functools.partial(_torch, compiled=False, tf32=False),
    "torch.compile": functools.partial(_torch, compiled=True, tf32=False),
    "graphopt, captured, TF32": functools.partial(_graphopt, captured=True, tf32=True),
    "torch, TF32": functools.partial(_torch, compiled=False, tf32=True),
    **{
        f"{contender} {precision}": functools.partial(make, tf32=True, precision=precision)
        for precision in PRECISIONS
        for contender, make in (
            ("graphopt, captured,", functools.partial(_graphopt, captured=True)),
            ("torch, autocast", functools.partial(_torch, compiled=False)),
        )
    },
    "graphopt": functools.partial(_graphopt, captured=False, tf32=False),
    "torch.compile, TF32": functools.partial(_torch, compiled=True, tf32=True),
}

if __name__ == "__main__":
    print_records(measure(sys.argv[1:]))
