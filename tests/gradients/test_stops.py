"""Where no gradient flows: marked nodes, and detached tensors of exported networks."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, parser
from torch import nn

import graphopt
from graphopt.marks import FROZEN, STOP_GRADIENT
from tests.helpers import exporter
from tests.helpers.gradient_oracle import normal

# The gradient stops at Relu and in the function; opset 11 is converted, which drops metadata.
MODEL = """<ir_version: 10, opset_import: ["": {opset}, "local": 1]>
net (float[N,2] x, bool flag) => (float[] loss)
    <float[2,2] w = {{1,-2,3,4}}, float[2,2] v = {{1,2,3,4}}>
{{
    h = MatMul(x, w)
    stopped = Relu(h)
    called = local.twice(h)
    branch = If (flag) <
        then_branch = a () => (float[N,2] inner) {{ inner = Identity(stopped) }},
        else_branch = b () => (float[N,2] inner) {{ inner = Identity(stopped) }}
    >
    product = MatMul(h, v)
    first = Mul(product, called)
    second = Mul(first, branch)
    loss = ReduceMean<keepdims = 0>(second)
}}
<domain: "local", opset_import: ["": {opset}]> twice (x) => (y)
{{ a = Identity(x) y = Add(a, a) }}"""


def stopping(*, opset):
    model = parser.parse_model(MODEL.format(opset=opset))
    for node in (model.graph.node[1], model.functions[0].node[0]):
        node.metadata_props.add(key=STOP_GRADIENT, value="no_grad")
    return model


def gradients(model, feeds, loss="loss"):
    """By the first step from a mean of 0 without decay, which holds the gradient."""
    optimizer = graphopt.RMSProp(
        graphopt.parameters(model), learning_rate=1e-9, decay=0.0, centered=True
    )
    session = graphopt.Session(graphopt.training_graph(model, loss, optimizer))
    session.step(feeds)
    kind = "mean_grad."
    return {
        name.removeprefix(kind): value
        for name, value in session.state.items()
        if name.startswith(kind)
    }


@pytest.mark.parametrize("opset", [11, 17])
def test_no_gradient_flows_through_a_marked_node(opset, tmp_path):
    x = normal(3, 2)
    w = torch.tensor([[1.0, -2], [3, 4]], requires_grad=True)
    v = torch.tensor([[1.0, 2], [3, 4]], requires_grad=True)
    h = torch.tensor(x) @ w
    ((h @ v) * (torch.relu(h) * 2 * h).detach()).mean().backward()
    onnx.save(stopping(opset=opset), tmp_path / "net.onnx")
    found = gradients(tmp_path / "net.onnx", {"x": x, "flag": np.array(True)})
    np.testing.assert_allclose(found["w"], w.grad, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(found["v"], v.grad, rtol=2e-5, atol=1e-6)


@pytest.mark.any_runtime
def test_a_parameter_behind_marks_alone_has_no_gradient():
    model = stopping(opset=17)
    model.graph.node[0].metadata_props.add(key=STOP_GRADIENT, value="detach")
    with pytest.raises(ValueError, match="no gradient of the loss reaches 'w'"):
        gradients(model, {})


@pytest.mark.any_runtime
def test_the_model_is_left_as_it_is():
    model = stopping(opset=11)
    before = model.SerializeToString(deterministic=True)
    graphopt.training_graph(model, "loss", graphopt.RMSProp(graphopt.parameters(model)))
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.any_runtime
def test_the_builder_of_the_runtime_is_told():
    model = stopping(opset=17)
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    with pytest.raises(ValueError, match=r"portable=False cannot stop the gradient.*no_grad"):
        graphopt.training_graph(model, "loss", optimizer, portable=False)


@pytest.mark.any_runtime
@pytest.mark.parametrize("place", ["tensor", "value"])
def test_frozen_initializers_are_no_parameters(place):
    model = stopping(opset=17)
    marked = model.graph.initializer[1]
    if place == "value":
        marked = model.graph.value_info.add()
        marked.CopyFrom(helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, [2, 2]))
    marked.metadata_props.add(key=FROZEN, value="requires_grad=False")
    assert [p.name for p in graphopt.parameters(model)] == ["w"]


class ActorCritic(nn.Module):
    """The advantage is a constant to the policy."""

    def __init__(self):
        super().__init__()
        self.value, self.policy = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x, reward):
        value = self.value(x)
        loss = (self.policy(x) * (reward - value).detach()).mean() + (value - reward).pow(2).mean()
        return loss.reshape(())


class Itself(nn.Module):
    """A tensor beside itself, detached."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, reward):
        y = self.layer(x)
        return (torch.add(y, y.detach(), alpha=2) * reward).pow(2).mean().reshape(())


class Weight(nn.Module):
    """A weight, detached, with the layer in training besides."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x, reward):
        y = nn.functional.linear(self.layer(x) * reward + x, self.layer.weight.detach())
        return y.pow(2).mean().reshape(())


class Input(nn.Module):
    """What is detached is no parameter's doing."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("offset", torch.ones(1))

    def forward(self, x, detach):
        y = self.layer(x) * detach.detach() + self.offset.detach()
        return (y * detach).pow(2).mean().reshape(())


def export(module, *, optimize):
    example = torch.from_numpy(normal(5, 3)), torch.from_numpy(normal(5, 1))
    names = {"input_names": ["observed", "reward"], "output_names": ["loss"]}
    return exporter.dynamo(module, example, optimize=optimize, **names), example


def assert_gradients(module, model, example):
    feeds = dict(zip(("observed", "reward"), (x.numpy() for x in example), strict=True))
    module.zero_grad()
    module(*example).backward()
    for name, found in gradients(model, feeds).items():
        expected = module.get_parameter(name).grad
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.any_runtime
@pytest.mark.usefixtures("one_registry")
@pytest.mark.parametrize("network", [ActorCritic, Itself, Weight, Input])
def test_an_export_that_was_not_optimized_detaches(network):
    torch.manual_seed(0)
    assert_gradients(module := network(), *export(module, optimize=False))


@pytest.mark.any_runtime
@pytest.mark.usefixtures("one_registry")
@pytest.mark.parametrize("network", [ActorCritic, Itself, Weight])
def test_an_optimized_export_is_refused(network):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"reads a detached tensor.*graphopt\.torch\.export"):
        gradients(export(network(), optimize=True)[0], {})


@pytest.mark.any_runtime
@pytest.mark.usefixtures("one_registry")
def test_an_optimized_export_whose_inputs_are_detached_trains():
    torch.manual_seed(0)
    assert_gradients(module := Input(), *export(module, optimize=True))
