"""What the backward pass computes again: the same results, in less memory."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import graphopt
from models.zoo import ZOO
from tests.helpers.deep import built, deep, normalized

NETWORKS = ["mlp", "digits_cnn", "resnet", "transformer", "lstm"]
STEPS = 3


def trained(graph, feeds, **settings):
    session = graphopt.Session(graph, **settings)
    losses = [float(session.step(feeds)["loss"]) for _ in range(STEPS)]
    return losses, session.state


def again(graph):
    return [node for node in graph.model.graph.node if "/again" in node.name]


@pytest.mark.parametrize("memory", ["balanced", "low"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_results_are_the_same(name, memory):
    entry = ZOO[name]
    model = entry.build(batch=entry.batch)
    feeds = entry.feeds(np.random.default_rng(0), entry.batch)
    graph = built(model, entry.loss, memory)
    losses, state = trained(graph, feeds)
    expected_losses, expected = trained(built(model, entry.loss, "fast"), feeds)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    for key, value in expected.items():
        scale = max(1e-3, float(np.abs(value).max(initial=0)))
        np.testing.assert_allclose(state[key], value, atol=1e-5 * scale, err_msg=key)


@pytest.mark.exhaustive
@pytest.mark.any_runtime
def test_low_takes_the_square_root_of_the_number_of_layers():
    held = {
        layers: graphopt.inspect(
            built(deep(layers), "mse", "low"), batch_size=4096
        ).memory.activations
        for layers in (16, 64)
    }
    everything = graphopt.inspect(built(deep(64), "mse", "fast"), batch_size=4096)
    assert held[64] < 0.4 * everything.memory.activations
    assert held[64] < 2.5 * held[16]


def test_of_a_normalized_convolution_its_result_is_kept():
    """Its normalization and activation are computed again; the loss is the same."""
    rng = np.random.default_rng(1)
    feeds = {name: rng.normal(size=(8, 4, 16, 16)).astype("f") for name in ("x", "labels")}
    held, losses = {}, {}
    for memory in ("fast", "balanced", "low"):
        graph = built(normalized(16), "mse", memory)
        held[memory] = graphopt.inspect(graph).memory.activations
        losses[memory], _ = trained(graph, feeds)
        if memory == "balanced":
            repeated = {node.op_type for node in again(graph)}
            assert {"BatchNormalization", "Relu"} <= repeated
            assert "Conv" not in repeated
    assert held["balanced"] < 0.75 * held["fast"]
    assert held["low"] < 0.75 * held["balanced"]
    for memory in ("balanced", "low"):
        np.testing.assert_allclose(losses[memory], losses["fast"], rtol=1e-6)


@pytest.mark.exhaustive
def test_a_step_holds_less():
    """What is resident after a step: the runtime keeps what a step took."""
    batch, width, layers = 4096, 64, 48
    rng = np.random.default_rng(0)
    feeds = {n: rng.normal(size=(batch, width)).astype("f") for n in ("x", "labels")}
    taken, states = {}, {}
    for memory in ("fast", "low"):
        session = graphopt.Session(built(deep(layers, width), "mse", memory))
        before = resident()
        session.step(feeds)
        taken[memory] = resident() - before
        states[memory] = session.state
        del session
    kept = layers * batch * width * 4
    assert taken["fast"] > 0.8 * kept
    assert taken["fast"] < 1.4 * kept
    assert taken["low"] < 0.5 * taken["fast"]
    for name, value in states["fast"].items():
        np.testing.assert_allclose(states["low"][name], value, rtol=1e-5, atol=1e-6)


def resident():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


@pytest.mark.any_runtime
def test_random_numbers_are_drawn_once():
    model = deep(8)
    middle = next(node for node in model.graph.node if "h3" in node.input)
    node = onnx.parser.parse_node("dropped = Dropout(h3, half, yes)")
    model.graph.node.insert(list(model.graph.node).index(middle), node)
    middle.input[0] = "dropped"
    model.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.float32(0.5), "half"),
            onnx.numpy_helper.from_array(np.array(True), "yes"),
        ]
    )
    graph = built(model, "mse", "low")
    assert [node.op_type for node in graph.model.graph.node].count("RandomKept") == 1
    assert again(graph)


@pytest.mark.any_runtime
def test_bad_choices():
    model = deep(1)
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    with pytest.raises(ValueError, match=r"memory: got 'small' \(str\), expected 'fast' or"):
        graphopt.training_graph(model, "mse", optimizer, memory="small")
    with pytest.raises(TypeError, match="memory: got None"):
        graphopt.training_graph(model, "mse", optimizer, memory=None)
    with pytest.raises(ValueError, match="memory: has no effect beside portable=False"):
        graphopt.training_graph(model, "mse", optimizer, memory="low", portable=False)
