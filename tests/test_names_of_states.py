"""Layers that are called as states of the optimizer are: what they hold are parameters."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt.federated.client import travelling
from graphopt.inspection.checkpoints import inspect_checkpoint
from graphopt.states import OF_PARAMETERS
from tests.helpers.gradient_oracle import normal

pytestmark = pytest.mark.any_runtime

LAYERS = [state.name for state in OF_PARAMETERS]
WEIGHTS = [f"{layer}.weight" for layer in LAYERS]


def network():
    """A chain of layers with these names, and one of batch normalization."""
    layers = "".join(f'h{i + 1} = MatMul(h{i}, "{weight}") ' for i, weight in enumerate(WEIGHTS))
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> net (float[N,3] h0) => (float[N,3] y) {{
            {layers} y = BatchNormalization(h{len(LAYERS)}, "average.scale", "average.shift",
                "average.running_mean", "average.running_var") }}"""
    )
    arrays = {weight: normal(3, 3, seed=i) - 0.5 for i, weight in enumerate(WEIGHTS)}
    arrays |= {"average.scale": -np.ones(3, "f"), "average.shift": np.zeros(3, "f")}
    arrays |= {"average.running_mean": normal(3), "average.running_var": np.ones(3, "f")}
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model, set(arrays)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The graph, the names of its values, a session and checkpoints of some steps."""
    folder = tmp_path_factory.mktemp("names")
    model, names = network()
    opt = graphopt.RMSProp(
        graphopt.parameters(model), 0.01, momentum=0.9, centered=True, average=0.9
    )
    graph = graphopt.training_graph(model, "mse", opt, accumulation=2)
    session = graphopt.Session(graph)
    for step in range(4):
        session.step({"h0": normal(4, 3, seed=step), "labels": normal(4, 3, seed=9)})
        session.save_checkpoint(folder / f"{step}.safetensors")
    return graph, names, session, folder


def test_checkpoints_are_loaded_again(trained):
    graph, _, session, folder = trained
    other = graphopt.Session(graph)
    other.load_checkpoint(folder / "3.safetensors")
    for name, array in session.state.items():
        np.testing.assert_array_equal(other.state[name], array)
    assert not inspect_checkpoint(folder / "3.safetensors").problems


def test_they_are_exported_and_averaged(trained):
    _, names, session, folder = trained
    state = session.state
    session.export(folder / "last.onnx")
    found = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(folder / "last.onnx").graph.initializer
    }
    for name in names & found.keys():
        np.testing.assert_array_equal(found[name], state[name])
    assert set(WEIGHTS) <= found.keys()
    session.export(folder / "average.onnx", average=True)
    initializers = onnx.load(folder / "average.onnx").graph.initializer
    found = {t.name: numpy_helper.to_array(t) for t in initializers}
    for weight in WEIGHTS:
        np.testing.assert_array_equal(found[weight], state[f"average.{weight}"])


def test_the_mean_of_checkpoints(trained):
    graph, names, _, folder = trained
    mean = folder / "mean.safetensors"
    graphopt.average_checkpoints([folder / "1.safetensors", folder / "3.safetensors"], mean)
    states = []
    for file in ("1.safetensors", "3.safetensors", mean.name):
        other = graphopt.Session(graph)
        other.load_checkpoint(folder / file)
        states.append(other.state)
    for name in names:
        wanted = (states[0][name].astype("d") + states[1][name]) / 2
        np.testing.assert_array_equal(states[2][name], wanted.astype("f"))


def test_they_travel_to_clients(trained):
    _, names, session, _ = trained
    assert travelling(session.state).keys() == names


def test_a_module_gets_them_back():
    """Each of its parameters, and its running statistics."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = {layer: torch.nn.Linear(3, 3) for layer in LAYERS[1:]}
    network = torch.nn.Sequential()
    for layer, module in layers.items():
        network.add_module(layer, module)
    network.add_module(LAYERS[0], torch.nn.BatchNorm1d(3))
    model = graphopt.torch.export(network.train(), (torch.randn(4, 3),), input_names=["x"])
    opt = graphopt.RMSProp(graphopt.parameters(model), 0.01, momentum=0.9, average=0.9)
    session = graphopt.Session(graphopt.training_graph(model, "mse", opt))
    session.step({"x": normal(4, 3), "labels": normal(4, 3, seed=1)})
    graphopt.torch.load_state(network, session)
    state = session.state
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value.numpy(), state[name], err_msg=name)
