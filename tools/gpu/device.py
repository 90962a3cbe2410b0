"""What there is, and whether updates on CUDA have the values that they have on the CPU."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime

import graphopt
from graphopt import kernels

CUDA = "CUDAExecutionProvider"


def measure() -> Iterator[dict[str, Any]]:
    """First what there is, then how far kernels and bodies on CUDA are from the CPU's kernels."""
    yield {
        "onnxruntime": onnxruntime.__version__,
        "providers": onnxruntime.get_available_providers(),
        "kernels": str(kernels.library()),
        "has_cuda": kernels.has_cuda(),
    }
    import torch

    yield {"torch": torch.__version__, "gpu": torch.cuda.get_device_name()}
    yield from _values()


def _values() -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (1000,), (257, 33), (1,), (4, 4), (300, 70)]
    parameters = [graphopt.Parameter(f"p{i}", shape) for i, shape in enumerate(shapes)]
    initial = {p.name: rng.standard_normal(p.shape, np.float32) for p in parameters}
    steps = [
        {f"{p.name}_grad": rng.standard_normal(p.shape, np.float32) for p in parameters}
        for _ in range(4)
    ]
    configurations: dict[str, dict[str, Any]] = {
        "plain": {},
        "momentum": {"momentum": 0.9, "weight_decay": 0.01},
        "centered": {"centered": True, "momentum": 0.9, "loss_scale": 8.0},
        "nesterov": {"momentum": 0.9, "nesterov": True, "epsilon_inside_root": False},
    }
    for name, options in configurations.items():
        states: dict[str, dict[str, np.ndarray]] = {}
        used: dict[str, Any] = {}
        for layout in ("foreach", "buckets"):
            for run in ("cpu", "cuda", "cuda, bodies", "cuda, captured"):
                optimizer = graphopt.RMSProp(parameters, learning_rate=0.01, **options)
                graph = graphopt.update_graph(optimizer, layout=layout, provider=CUDA)
                captured = {"enable_cuda_graph": "1"} if "captured" in run else {}
                providers = None if run == "cpu" else [(CUDA, captured), "CPUExecutionProvider"]
                key = f"{layout}, {run}"
                try:
                    session = graphopt.Session(
                        graph, initial, providers, kernels="bodies" not in run
                    )
                    for feeds in steps:
                        session.step(feeds)
                    states[key], used[key] = session.state, session.kernels
                except Exception as error:  # noqa: BLE001 - reported
                    yield {"configuration": name, "run": key, "failed": str(error)[-700:]}
        right = states["buckets, cpu"]
        for key, state in states.items():
            differing = max(float(np.max(np.abs(state[n] - right[n]))) for n in right)
            yield {"configuration": name, "run": key, "max_error": differing, "kernels": used[key]}


if __name__ == "__main__":
    from tools.gpu.records import print_records

    print_records(measure())
