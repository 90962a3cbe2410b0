"""What a session has trained goes back into the module, or nothing does."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import graphopt

pytestmark = [pytest.mark.any_runtime, pytest.mark.usefixtures("one_registry")]


class Network(nn.Module):
    """Shared, frozen, unused and moving tensors."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = nn.Parameter(self.second.weight.detach().clone())
        self.third = nn.Linear(4, 4, bias=False)
        self.third.weight = self.second.weight
        self.scale = nn.Parameter(torch.full((4,), 2.0), requires_grad=False)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("offset", torch.arange(4.0))

    def forward(self, x):
        y = torch.tanh(self.norm(self.first(x)))
        return self.third(torch.tanh(self.second(y))) * self.scale + self.offset


@pytest.fixture(scope="module")
def trained():
    """A module, and the session of its graph after three steps."""
    torch.manual_seed(0)
    network = Network()
    model = graphopt.torch.export(network, (torch.randn(4, 3),), input_names=["x"])
    opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.01)
    session = graphopt.Session(graphopt.training_graph(model, "mse", opt))
    rng = np.random.default_rng(0)
    for size in (4, 2, 5):
        feeds = {"x": rng.normal(size=(size, 3)), "labels": rng.normal(size=(size, 4))}
        session.step({name: array.astype(np.float32) for name, array in feeds.items()})
    return network, session


TRAINED = ["first.weight", "first.bias", "norm.weight", "norm.bias", "second.weight"]
MOVED = [*TRAINED, "norm.running_mean", "norm.running_var"]


def test_what_was_trained_goes_back_bit_for_bit(trained):
    network, session = trained
    before = copy.deepcopy(network.state_dict())
    loaded = copy.deepcopy(network)
    weight = loaded.second.weight
    graphopt.torch.load_state(loaded, session)
    state, after = session.state, loaded.state_dict()
    for name in MOVED:
        assert np.array_equal(after[name], state[name])
        assert not torch.equal(after[name], before[name])
    assert loaded.second.weight is weight
    assert loaded.third.weight is weight
    for name in before.keys() - {*MOVED, "third.weight"}:
        assert torch.equal(after[name], before[name]), name
    again = graphopt.Session(session.graph, parameters={n: after[n].numpy() for n in MOVED})
    assert all(np.array_equal(again.state[name], state[name]) for name in MOVED)


def test_another_module_of_the_class_computes_what_the_trained_model_does(trained):
    network, session = trained
    torch.manual_seed(1)
    other = Network()
    with torch.no_grad():
        other.scale.fill_(7.0)
        other.offset.fill_(7.0)
    unused = other.unused.weight.clone()
    graphopt.torch.load_state(other, session)
    loaded = copy.deepcopy(network)
    graphopt.torch.load_state(loaded, session)
    x = torch.randn(5, 3)
    assert torch.equal(other.eval()(x), loaded.eval()(x))
    assert torch.equal(other.unused.weight, unused)


class More(Network):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(2, 2)


def without(name):
    network = Network()
    delattr(network, name)
    return network


def wider():
    network = Network()
    network.first = nn.Linear(5, 4)
    return network


def untied():
    network = Network()
    network.third.weight = nn.Parameter(network.third.weight.detach().clone())
    return network


REFUSED = {
    "missing": (More, r"the session has no 'more.weight', 'more.bias'"),
    "unexpected": (lambda: without("norm"), r"the module has no 'norm.weight', 'norm.bias', 'norm"),
    "shape": (
        wider,
        r"'first.weight' is float32 \[4, 5\] in the module, and float32 \[4, 3\] in the session",
    ),
    "dtype": (lambda: Network().double(), r"'first.weight' is float64 \[4, 3\] in the module"),
    "no longer shared": (untied, r"the session has no 'third.weight'"),
}


@pytest.mark.parametrize(("module", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_written(trained, module, message):
    other = module()
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=message + r".*Nothing has been written"):
        graphopt.torch.load_state(other, trained[1])
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_the_state_of_an_update_graph_goes_back_too():
    layer = nn.Linear(3, 2)
    values = {name: p.detach().numpy().copy() + 1 for name, p in layer.named_parameters()}
    params = [graphopt.Parameter(name, value.shape) for name, value in values.items()]
    graph = graphopt.update_graph(graphopt.RMSProp(params, learning_rate=0.01))
    graphopt.torch.load_state(layer, graphopt.Session(graph, parameters=values))
    assert all(np.array_equal(p.detach(), values[name]) for name, p in layer.named_parameters())


def test_types_are_checked(trained):
    with pytest.raises(TypeError, match=r"module: got int, expected a torch.nn.Module"):
        graphopt.torch.load_state(1, trained[1])
    with pytest.raises(TypeError, match=r"session: got Network, expected a graphopt.Session"):
        graphopt.torch.load_state(trained[0], trained[0])


def test_what_was_exported_does_not_learn_with_the_module():
    network = nn.Linear(3, 2)
    model = graphopt.torch.export(network, (torch.ones(4, 3),), input_names=["x"])
    start = network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(1)
    weight = model.graph.initializers["weight"].const_value
    np.testing.assert_array_equal(weight.numpy(), start.numpy())
