"""Where ONNX Runtime runs the nodes of training graphs, and which it copies between devices."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import graphopt
from graphopt._runtime import CPU, CUDA
from graphopt.graph import TrainingGraph
from models.zoo import ZOO
from tools.gpu.networks import NETWORKS
from tools.gpu.records import print_records


def measure() -> Iterator[dict[str, Any]]:
    """A record of each network: the operators that ran on the CPU, and the copies."""
    for name, entry in ZOO.items():
        model = entry.build()
        graph = _trained(model, entry.loss)
        yield {"network": name, **_placed(graph, entry.feeds(np.random.default_rng(0), 4))}
    from tools.gpu.steps import forward_model

    for name, network in NETWORKS.items():
        graph = _trained(forward_model(name), "cross_entropy")
        feeds = {"x": network.inputs(2).numpy(), "labels": np.array([1, 2])}
        yield {"network": name, **_placed(graph, feeds)}


def _trained(model: Any, loss: str) -> TrainingGraph:
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=1e-4)
    return graphopt.training_graph(model, loss, optimizer, provider=CUDA)


def profiled_nodes(
    graph: TrainingGraph, providers: Sequence[Any], steps: Iterable[Mapping[str, Any]]
) -> tuple[graphopt.Session, list[dict[str, Any]]]:
    """The session of some steps, and what the runtime's profile says of each node that ran."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = graphopt.Session(graph, providers=providers, session_options=options)
        for feeds in steps:
            session.step(feeds)
        events = json.loads(Path(session._session.end_profiling()).read_text())  # noqa: SLF001
    return session, [
        event["args"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]


def floats_on_cpu(nodes: Iterable[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """The operators that gave floating-point numbers on the CPU, and what they gave."""
    return [
        (node["op_name"], node["output_type_shape"])
        for node in nodes
        if node["provider"] == CPU
        and any(kind.startswith("float") for output in node["output_type_shape"] for kind in output)
    ]


def _placed(graph: TrainingGraph, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    session, nodes = profiled_nodes(graph, [CUDA, CPU], [feeds, feeds])
    on_cpu = [node for node in nodes if node["provider"] == CPU]
    copies = [node for node in nodes if node["op_name"].startswith("Memcpy")]
    return {
        "kernels": list(session.kernels),
        "nodes": len(nodes) // 2,
        "on_cpu": Counter(node["op_name"] for node in on_cpu),
        "copies": [
            f"{node['op_name']} {node['output_type_shape']}" for node in copies[: len(copies) // 2]
        ],
        "floats_on_cpu": Counter(name for name, _ in floats_on_cpu(nodes)),
    }


if __name__ == "__main__":
    print_records(measure())
