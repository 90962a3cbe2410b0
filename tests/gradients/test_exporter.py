"""What PyTorch's exporter does to a model, and what is said about it."""

import re

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import graphopt
from tests.helpers.exporter import dynamo

pytestmark = [pytest.mark.any_runtime, pytest.mark.usefixtures("one_registry")]


class Network(nn.Module):
    """Batch normalization behind a convolution, and two layers with equal weights."""

    def __init__(self, *, tied=False):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.first, self.second = nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False)
        if tied:
            self.second.weight = self.first.weight
        else:
            with torch.no_grad():
                self.second.weight.copy_(self.first.weight)

    def forward(self, x):
        y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.first(y) + 2 * self.second(torch.tanh(y))


def export(module, shape=(3, 8, 8), **options):
    return dynamo(module.train(), (torch.randn(4, *shape),), **options)


def build(model, names=None):
    trained = [p for p in graphopt.parameters(model) if names is None or p.name in names]
    return graphopt.training_graph(model, "mse", graphopt.RMSProp(trained, learning_rate=0.01))


@pytest.fixture(scope="module")
def optimized():
    torch.manual_seed(0)
    return export(Network())


@pytest.mark.quick
def test_folded_batch_normalization_is_refused(optimized):
    with pytest.raises(ValueError, match=r"folded batch normalization into it.*optimize=False"):
        build(optimized)


def test_merged_parameters_are_refused(optimized):
    with pytest.raises(
        ValueError, match=r"removed the parameters.*'second.weight'.*optimize=False"
    ):
        build(optimized, {"first.weight"})


def test_what_was_not_touched_trains(optimized):
    other = [p.name for p in graphopt.parameters(optimized)]
    assert other == ["conv.weight", "conv.bias", "first.weight"]
    layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    assert build(export(layers, shape=(3,)))


def test_tied_parameters_are_one():
    model = export(Network(tied=True), optimize=False)
    names = {p.name for p in graphopt.parameters(model)}
    assert len(names & {"first.weight", "second.weight"}) == 1
    carried = {view.name for value in build(model).carried for view in value.views}
    assert names & {"first.weight", "second.weight"} <= carried


def test_a_bias_of_zeros_that_was_left_out_is_refused():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.bias)
    with pytest.raises(ValueError, match=r"removed the parameters 'bias'.*optimize=False"):
        build(export(layer, shape=(3,)))
    assert build(export(layer, shape=(3,), optimize=False))


def test_attention_is_not_trained_by_its_scale():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(4, 2, bias=False)

        def forward(self, x):
            return self.inner(x, x, x, need_weights=False)[0]

    names = {p.name for p in graphopt.parameters(export(Attention(), shape=(3, 4)))}
    assert names <= {"inner.in_proj_weight", "inner.out_proj.weight"}


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.share = nn.Linear(3, 2), nn.Parameter(torch.tensor(0.5))
        self.register_buffer("offset", torch.tensor([0.5, 0.25]))

    def forward(self, x):
        return self.share * (3 * self.dense(x) - self.offset)


@pytest.mark.parametrize("optimize", [True, False])
def test_numbers_and_buffers_of_the_program_are_no_parameters(optimize):
    model = export(Scaled(), shape=(3,), optimize=optimize)
    names = {p.name for p in graphopt.parameters(model)}
    assert names == {"dense.weight", "dense.bias", "share"}


def train_alike(module, x_shape, y_shape):
    model = export(module, shape=x_shape[1:], optimize=False)
    session = graphopt.Session(build(model))
    module = module.double().train()
    oracle = graphopt.reference.ReferenceRMSProp(
        graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.01),
        {name: value.detach().numpy() for name, value in module.named_parameters()},
    )
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, y = (rng.normal(size=shape).astype("f") for shape in (x_shape, y_shape))
        module.zero_grad()
        loss = nn.functional.mse_loss(module(torch.tensor(x).double()), torch.tensor(y).double())
        loss.backward()
        feeds = {session.inputs[0].name: x, "labels": y}
        assert abs(float(session.step(feeds)["loss"]) - loss.item()) < 1e-5
        oracle.step({name: value.grad.numpy() for name, value in module.named_parameters()})
        with torch.no_grad():
            for name, value in module.named_parameters():
                value.copy_(torch.tensor(oracle.state[name]))
    state = session.state
    for name, _ in module.named_parameters():
        if name != "conv.bias":  # whose gradient is noise in front of the norm
            np.testing.assert_allclose(
                state[name], oracle.state[name], rtol=0, atol=1e-5, err_msg=name
            )


def test_an_export_that_was_not_optimized_trains_as_in_pytorch():
    torch.manual_seed(1)
    train_alike(Network(), (4, 3, 8, 8), (4, 2))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.dense = nn.LSTM(4, 5, bidirectional=True), nn.Linear(10, 2)

    def forward(self, x):
        return self.dense(self.cell(x)[0][-1])


def test_weights_that_have_become_constants_are_refused():
    model = export(Recurrent(), shape=(3, 4))
    assert {p.name for p in graphopt.parameters(model)} == {"dense.weight", "dense.bias"}
    with pytest.raises(
        ValueError, match=r"removed the parameters 'cell.weight_ih_l0'.* and 3 more"
    ):
        build(model)


def test_recurrent_layers_train_as_in_pytorch():
    torch.manual_seed(2)
    train_alike(Recurrent(), (4, 3, 4), (3, 2))


class Folded(nn.Module):
    """Parameters that are read only through what can be computed beforehand."""

    def __init__(self):
        super().__init__()
        self.conv, self.gamma = nn.Conv2d(3, 4, 1), nn.Parameter(torch.ones(4))
        self.position = nn.Embedding(9, 5)
        self.dense = nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))
        self.register_buffer("offset", torch.tensor([0.5, 0.25, 0, 0, 1]))

    def forward(self, x):
        y = self.conv(x) * self.gamma.view(1, -1, 1, 1) + self.offset.reshape(1, 5)
        return self.dense(y) + self.position(torch.arange(5))


@pytest.fixture(scope="module")
def folded():
    return export(Folded(), shape=(3, 5, 5))


def test_parameters_of_which_constants_were_computed_are_refused(folded):
    with pytest.raises(ValueError, match="constants from the parameters") as caught:
        build(folded, {"conv.weight"})
    named = set(re.findall(r"'([^']+)' \('", str(caught.value)))
    weights = {f"dense.parametrizations.weight.original{i}" for i in (0, 1)}
    assert named == {"gamma", "position.weight", *weights}
    assert "graphopt.torch.export" in str(caught.value)


def test_constants_may_be_left_as_they_are(folded):
    model = onnx.ModelProto()
    model.CopyFrom(folded)
    for value in model.graph.value_info:
        kept = [entry for entry in value.metadata_props if "folded_from" not in entry.key]
        del value.metadata_props[:]
        value.metadata_props.extend(kept)
    assert build(model, {"conv.weight"})


def test_a_network_in_which_only_buffers_became_constants_trains():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(3, 2)
            self.register_buffer("offset", torch.tensor([0.5, 0.25]))

        def forward(self, x):
            return self.dense(x) + self.offset.exp()

    assert build(export(Shifted(), shape=(3,)))


def test_layers_on_three_axes_are_refused():
    with pytest.raises(ValueError, match=r"'weight'.*graphopt\.torch\.export"):
        build(export(nn.Linear(3, 4), shape=(5, 3)))


class Scattered(nn.Module):
    """The rows of a layer, put together by a reduction."""

    def __init__(self, reduce):
        super().__init__()
        self.dense, self.reduce = nn.Linear(3, 2), reduce

    def forward(self, x):
        rows = torch.tensor([[0, 0], [1, 1], [0, 1], [0, 1]])
        return x.new_zeros(2, 2).scatter_reduce(0, rows, self.dense(x), self.reduce)


def test_a_scatter_of_means_is_refused():
    model = export(Scattered("mean"), shape=(3,))
    with pytest.raises(ValueError, match=r'scatter_reduce\(..., "mean"\).*graphopt.torch.export'):
        build(model)
    for node in model.graph.node:
        del node.metadata_props[:]
    assert build(model)
    assert build(export(Scattered("amax"), shape=(3,)))
