"""Every network of the zoo, against PyTorch in float64."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import graphopt
from models.torch_peers import LOSSES, peer
from models.zoo import ZOO
from tests.helpers.environments import needs_training_package
from tests.helpers.zoo import zoo_graph, zoo_optimizer

torch.set_num_threads(1)  # its threads wait by spinning, and the test processes fill the cores
BATCH = 4
every_model = pytest.mark.parametrize("name", ZOO)
every_batch = pytest.mark.parametrize("batch", [None, BATCH], ids=["dynamic batch", "static batch"])


class Peer:
    """The same network in PyTorch, in float64, with the gradients under the ONNX model's names."""

    def __init__(self, name):
        self.model = ZOO[name].build()
        self.names = [parameter.name for parameter in graphopt.parameters(self.model)]
        self.module = peer(name, self.model).double()
        self.loss = LOSSES[ZOO[name].loss]
        self.name = name

    def __call__(self, feeds):
        """The loss and the gradients of a batch."""
        x, labels = (
            torch.tensor(array).double() if array.dtype == np.float32 else torch.tensor(array)
            for array in feeds.values()
        )
        self.module.zero_grad()
        loss = self.loss(self.module(x), labels)
        loss.backward()
        gradients = {key: value.grad.numpy() for key, value in self.module.named_parameters()}
        return loss.item(), self.to_onnx(gradients)

    def set(self, values):
        """Take over parameters in float64."""
        with torch.no_grad():
            for key, value in self.from_onnx(values).items():
                self.module.get_parameter(key).copy_(torch.tensor(value))

    def from_onnx(self, values):
        convert = getattr(self.module, "converted", lambda tensors: tensors)
        return convert(values)

    def to_onnx(self, values):
        if not hasattr(self.module, "order"):
            return values
        back = np.argsort(self.module.order)

        def gates(key):
            return np.concatenate([np.split(values[key], len(back))[gate] for gate in back])

        return {
            "cell.weight": gates("cell.weight_ih_l0")[None],
            "cell.recurrence": gates("cell.weight_hh_l0")[None],
            "cell.bias": np.concatenate([gates("cell.bias_ih_l0"), gates("cell.bias_hh_l0")])[None],
            **{key: value for key, value in values.items() if "cell" not in key},
        }


def loss_and_gradients(graph, feeds, parameters):
    """What a plain session computes in a step, before the update."""
    probe = onnx.ModelProto()
    probe.CopyFrom(graph.model)
    probe.ClearField("training_info")
    outputs = ["loss", *(f"{name}_grad" for name in parameters)]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs[1:])
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    start = {
        carried.input: carried.initial
        if isinstance(carried.initial, np.ndarray)
        else np.full(carried.shape, carried.initial, carried.dtype)
        for carried in graph.carried
    }
    loss, *gradients = session.run(outputs, start | feeds)
    return loss, dict(zip(parameters, gradients, strict=True))


@pytest.mark.any_runtime
@every_model
def test_peer_has_the_same_parameters(name):
    model = ZOO[name].build()
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    total = sum(tensors[parameter.name].size for parameter in graphopt.parameters(model))
    assert total == sum(value.numel() for value in peer(name, model).parameters())


@pytest.mark.quick
@every_batch
@every_model
def test_loss_and_every_gradient(name, batch):
    twin = Peer(name)
    feeds = ZOO[name].feeds(np.random.default_rng(3), BATCH)
    loss, gradients = loss_and_gradients(zoo_graph(name, batch), feeds, twin.names)
    expected_loss, expected = twin(feeds)
    assert abs(loss - expected_loss) <= 1e-5 * abs(expected_loss)
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for parameter in twin.names:
        scale = np.abs(expected[parameter]).max()
        # Relative to the gradient itself, or, where that is next to nothing, to all gradients.
        np.testing.assert_allclose(
            gradients[parameter], expected[parameter], rtol=0,
            atol=2e-5 * scale + 1e-7 * largest, err_msg=parameter,
        )  # fmt: skip


@pytest.mark.quick
@pytest.mark.any_runtime  # tests/test_two_runtimes.py has the same losses in both
@every_model
def test_ten_steps(name):
    twin = Peer(name)
    session = graphopt.Session(zoo_graph(name))
    oracle = graphopt.reference.ReferenceRMSProp(
        zoo_optimizer(twin.model),
        {p: session.state[p].astype(np.float64) for p in twin.names},
    )
    rng = np.random.default_rng(5)
    for _ in range(10):
        feeds = ZOO[name].feeds(rng, BATCH)
        loss, gradients = twin(feeds)
        assert abs(float(session.step(feeds)["loss"]) - loss) <= 2e-4 * abs(loss)
        oracle.step(gradients)
        twin.set({p: oracle.state[p] for p in twin.names})
    state = session.state
    for parameter in twin.names:
        np.testing.assert_allclose(
            state[parameter], oracle.state[parameter], rtol=0, atol=1e-4, err_msg=parameter
        )


@pytest.mark.any_runtime
@every_model
def test_only_standard_operators(name):
    model = zoo_graph(name).model
    domains = {node.domain for node in model.graph.node}
    domains |= {node.domain for function in model.functions for node in function.node}
    assert domains <= {"", "graphopt"}
    onnx.checker.check_model(model, full_check=True)


@needs_training_package
@pytest.mark.parametrize(
    ("name", "batch"), [*((name, None) for name in ZOO), ("digits_cnn", BATCH), ("lstm", BATCH)]
)
def test_gradients_of_the_training_package_train_alike(name, batch):
    graphs = (zoo_graph(name, batch, portable=portable) for portable in (True, False))
    own, other = map(graphopt.Session, graphs)
    rng = np.random.default_rng(6)
    for _ in range(10):
        feeds = ZOO[name].feeds(rng, BATCH)
        losses = [float(session.step(feeds)["loss"]) for session in (own, other)]
        assert abs(losses[0] - losses[1]) <= 1e-5 * max(1, abs(losses[1]))
