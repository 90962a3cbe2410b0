"""Of many gradients, the runtime computes those of the last layers first."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import graphopt

LAYERS = 150  # more than a node waits for


def chain():
    nodes = "".join(f"h{i + 1} = MatMul(h{i}, w{i}) " for i in range(LAYERS))
    weights = ", ".join(f"float[2,2] w{i} = {{1, 0, 0, 1}}" for i in range(LAYERS))
    return onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> chain (float[3,2] x) => (float[3,2] y)
        <{weights}> {{ h0 = Identity(x) {nodes} y = Identity(h{LAYERS}) }}"""
    )


@pytest.mark.any_runtime  # 1.19 has an order of its own
def test_gradients_are_computed_as_soon_as_they_can_be(tmp_path):
    """One after the other from the end: else what the later ones read is held for long."""
    model = chain()
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3)
    graph = graphopt.training_graph(model, "mse", optimizer)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # names
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = graphopt.Session(graph, session_options=options)
    session.step({"x": np.ones((3, 2), np.float32), "labels": np.zeros((3, 2), np.float32)})
    events = json.loads(Path(session._session.end_profiling()).read_text())
    names = [e["name"] for e in events if e.get("cat") == "Node" and "kernel" in e["name"]]
    of = {output: node.name for node in graph.model.graph.node for output in node.output}
    order = [names.index(f"{of[f'w{i}_grad']}_kernel_time") for i in range(LAYERS)]
    late = [i for i in range(LAYERS - 1) if order[i] < order[i + 1]]
    assert late == []
