"""What compares networks in float64."""

import copy

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.nn import functional

import graphopt
from graphopt.inspection.verification.runnable import NotRunError
from tools.field.exact import exact_output, exact_steps

pytestmark = [pytest.mark.any_runtime, pytest.mark.usefixtures("one_registry")]

EPSILON = 2.0**-16  # a number that float32 has exactly, as the others below
RATE = 2.0**-7


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4, eps=EPSILON),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def batches():
    return [(torch.randn(4, 1, 5, 5), torch.randint(0, 3, (4,))) for _ in range(3)]


def test_steps_are_those_of_pytorch_in_float64():
    module, fed = network(), batches()
    model = graphopt.torch.export(module, (fed[0][0],), input_names=["x"])
    optimizer = graphopt.RMSProp(
        graphopt.parameters(model),
        learning_rate=RATE,
        decay=0.5,
        momentum=0.5,
        epsilon=EPSILON,
        epsilon_inside_root=False,
        learning_rate_inside_moment=False,
        initial_mean_square=0.0,
    )
    graph = graphopt.training_graph(model, "cross_entropy", optimizer)
    after = exact_steps(graph, [{"x": x.numpy(), "labels": y.numpy()} for x, y in fed])
    double = copy.deepcopy(module).double()
    steps = torch.optim.RMSprop(double.parameters(), lr=RATE, alpha=0.5, eps=EPSILON, momentum=0.5)
    for x, y in fed:
        steps.zero_grad()
        functional.cross_entropy(double(x.double()), y).backward()
        steps.step()
    for name, parameter in double.named_parameters():
        wanted = parameter.detach().numpy()
        assert abs(wanted - module.get_parameter(name).detach().numpy()).max() > RATE
        np.testing.assert_allclose(after[name], wanted, rtol=0, atol=1e-12, err_msg=name)


def test_the_output_of_other_weights():
    module = network().eval()
    model = graphopt.torch.export(module, (torch.randn(2, 1, 5, 5),), output_names=["y"])
    x = torch.randn(2, 1, 5, 5)
    run = exact_output(ir.to_proto(model), {model.graph.inputs[0].name: x.numpy()}, "y")
    double = copy.deepcopy(module).double()
    for factor in (1.0, 1 + 1e-9):
        weight = factor * module[4].weight.detach().double()
        double[4].weight.data = weight
        wanted = double(x.double()).detach().numpy()
        np.testing.assert_allclose(run({"4.weight": weight.numpy()}), wanted, rtol=0, atol=1e-14)
    with pytest.raises(NotRunError, match="'elsewhere' is inside a branch"):
        run({"elsewhere": np.ones(1)})
