"""In which order the runtime computes what the update waits for."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import graphopt
from graphopt import _runtime
from tests.helpers.deep import built, deep

LAYERS = 40  # of 64 x 64: two buckets


def run_order(graph, feeds, folder, options):
    """The names of the nodes of a step, as they ran."""
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = graphopt.Session(graph, session_options=options)
    session.step(feeds)
    events = json.loads(Path(session._session.end_profiling()).read_text(encoding="utf-8"))
    ending = "_kernel_time"
    names = (event["name"] for event in events if event["cat"] == "Node")
    return [name.removesuffix(ending) for name in names if name.endswith(ending)]


def test_a_gradient_is_computed_as_soon_as_it_can_be(tmp_path):
    """Before the backward pass goes on from the layer below: then nothing is held for it."""
    rng = np.random.default_rng(0)
    feeds = {n: rng.normal(size=(3, 64)).astype("f") for n in ("x", "labels")}
    graph = built(deep(LAYERS), "mse", "fast")
    assert len(graph.layout["buckets"]) > 1
    options = _runtime.session_options(onnxruntime)
    order = run_order(graph, feeds, tmp_path, options)
    waits = {node.input[0]: node.name for node in graph.model.graph.node if node.op_type == "Size"}
    for layer in range(2, LAYERS):
        known = order.index(waits[f"w{layer}_grad"])
        below = [at for at, n in enumerate(order) if n.startswith(f"backward/h{layer - 2}/")]
        assert below
        assert known < min(below), layer


@pytest.mark.any_runtime
def test_a_gradient_is_waited_for_once():
    graph = built(deep(LAYERS), "mse", "fast").model.graph
    read = [node.input[0] for node in graph.node if node.op_type == "Size"]
    assert len(read) == len(set(read))
    assert {f"w{layer}_grad" for layer in range(LAYERS + 1)} <= set(read)


@pytest.mark.any_runtime  # 1.19 has an order of its own
def test_gradients_of_the_last_layers_are_computed_first(tmp_path):
    """One after the other from the end: else what the later ones read is held for long."""
    layers = 150  # more than a node waits for
    graph = built(deep(layers, width=2), "mse", "fast")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # names
    feeds = {"x": np.ones((3, 2), np.float32), "labels": np.zeros((3, 2), np.float32)}
    names = run_order(graph, feeds, tmp_path, options)
    of = {output: node.name for node in graph.model.graph.node for output in node.output}
    order = [names.index(of[f"w{i}_grad"]) for i in range(layers + 1)]
    assert [i for i in range(layers) if order[i] < order[i + 1]] == []


@pytest.mark.any_runtime
def test_gradients_of_one_node_have_an_order_too():
    """The same whenever a graph is built: that of a scale and a bias are outputs of one node."""
    layers, width = 24, 96
    text = "".join(
        f"h{i} = MatMul(x{i}, w{i}) x{i + 1} = LayerNormalization(h{i}, s{i}, b{i}) "
        for i in range(layers)
    )
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> m (float[N,{width}] x0) => '
        f"(float[N,{width}] y) {{ {text} y = Identity(x{layers}) }}"
    )
    for i in range(layers):
        arrays = {"w": np.eye(width), "s": np.ones(width), "b": np.zeros(width)}
        for name, array in arrays.items():
            tensor = onnx.numpy_helper.from_array(array.astype(np.float32), f"{name}{i}")
            model.graph.initializer.append(tensor)
    graph = built(model, "mse", "fast")
    assert len(graph.layout["buckets"]) > 1
    nodes = graph.model.graph.node
    waits = [node.input[0] for node in nodes if node.op_type == "Size"]
    for i in range(layers):
        assert waits.index(f"b{i}_grad") < waits.index(f"s{i}_grad"), i
