"""Five steps of a module's training graph, beside PyTorch's own in float64."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

import graphopt

RATE, EPSILON = 0.01, 1e-3


@dataclass(frozen=True)
class Case:
    """A module of one feature.

    Attributes:
        module: Makes it.
        inputs: Makes inputs for a batch of this size.
        batches: The sizes of the batches of the steps, where the batch is open.
        frozen: The parameters that are not trained.
        tolerance: The largest error of a parameter.
        options: Further arguments of `graphopt.torch.export`.
    """

    module: Callable[[], nn.Module]
    inputs: Callable[[int], tuple]
    batches: tuple[int, ...] = (4, 3, 5, 4, 6)
    frozen: tuple[str, ...] = ()
    tolerance: float = 2e-6
    options: dict = field(default_factory=dict)


def floats(*shape):
    """Inputs: a batch of normal numbers in this shape."""
    return lambda batch: (torch.randn(batch, *shape),)


def optimizer(model):
    """The RMSprop of `peer_steps`, for all parameters of a model."""
    return graphopt.RMSProp(
        graphopt.parameters(model),
        learning_rate=RATE,
        decay=0.99,
        epsilon=EPSILON,
        epsilon_inside_root=False,
        initial_mean_square=0.0,
        learning_rate_inside_moment=False,
    )


def in_double(value):
    return (
        value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
    )


def peer_steps(module, batches):
    """The state of a copy of a module in float64, after RMSprop's steps on these batches."""
    peer = copy.deepcopy(module).double()
    trained = [p for p in peer.parameters() if p.requires_grad]
    rmsprop = torch.optim.RMSprop(trained, lr=RATE, eps=EPSILON)
    losses = []
    for inputs, labels in batches:
        rmsprop.zero_grad()
        y = peer(*[in_double(value) for value in inputs])
        value = y if labels is None else nn.functional.mse_loss(y, labels.double())
        value.backward()
        losses.append(value.item())
        rmsprop.step()
    return peer.state_dict(), losses


def session_steps(session, batches):
    """The losses of a session's steps on these batches."""
    names = [feed.name for feed in session.inputs]
    losses = []
    for inputs, labels in batches:
        tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
        tensors += [] if labels is None else [labels]
        feeds = {name: t.numpy() for name, t in zip(names, tensors, strict=True)}
        losses.append(float(session.step(feeds)["loss"]))
    return losses


def check(case):
    """Export, train, and compare with PyTorch."""
    torch.manual_seed(0)
    module = case.module()
    before = copy.deepcopy(module.state_dict())
    model = graphopt.torch.export(module, case.inputs(case.batches[0]), **case.options)
    assert {n.op_type for n in model.graph if "Sequence" in n.op_type} == set()
    expected_names = [
        name for name, p in module.named_parameters() if p.requires_grad and name not in case.frozen
    ]
    assert sorted(p.name for p in graphopt.parameters(model)) == sorted(expected_names)
    with torch.no_grad():
        shapes = [copy.deepcopy(module)(*case.inputs(size)).shape for size in case.batches]
    is_loss = not shapes[0]
    batches = [
        (case.inputs(size), None if is_loss else torch.randn(shape))
        for size, shape in zip(case.batches, shapes, strict=True)
    ]
    loss = str(model.graph.outputs[0].name) if is_loss else "mse"
    session = graphopt.Session(graphopt.training_graph(model, loss, optimizer(model)))
    losses = session_steps(session, batches)
    expected, expected_losses = peer_steps(module, batches)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5, atol=1e-6)
    state = session.state
    for name in expected_names:
        np.testing.assert_allclose(
            state[name], expected[name].numpy(), rtol=0, atol=case.tolerance, err_msg=name
        )
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} has been changed"
    return session, module, expected
