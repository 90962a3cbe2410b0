"""Modules whose training graphs take steps beside PyTorch's own in float64."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils import _pytree as pytree

import graphopt

RATE, EPSILON = 0.01, 1e-3


@dataclass(frozen=True)
class Case:
    """A module of one feature.

    Attributes:
        module: Makes it; it returns a tensor, or a loss.
        inputs: Makes its inputs for a batch of this size.
    """

    module: Callable[[], nn.Module]
    inputs: Callable[[int], tuple]


class Together(nn.Module):
    """Many modules, and the sum of their losses: each has its own gradients."""

    def __init__(self, modules):
        super().__init__()
        self.parts = nn.ModuleDict(modules)

    def forward(self, inputs, labels):
        loss = 0.0
        for part, given, label in zip(self.parts.values(), inputs, labels, strict=True):
            y = part(*given)
            loss = loss + (y if label is None else functional.mse_loss(y, label))
        return loss


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


def start(module, args, **options):
    """The session of a module that returns a loss."""
    model = graphopt.torch.export(module, args, output_names=["loss"], **options)
    return graphopt.Session(graphopt.training_graph(model, "loss", optimizer(model)))


def step(session, args):
    """The loss of a session's step on these arguments of the module."""
    tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
    names = [feed.name for feed in session.inputs]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    return float(session.step(feeds)["loss"])


def peer_steps(module, batches):
    """A copy of a module in float64 after RMSprop's steps, and the losses."""

    def in_double(leaf):
        is_float = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        return leaf.double() if is_float else leaf

    peer = copy.deepcopy(module).double()
    trained = [p for p in peer.parameters() if p.requires_grad]
    rmsprop = torch.optim.RMSprop(trained, lr=RATE, eps=EPSILON)
    losses = []
    for args in batches:
        rmsprop.zero_grad()
        loss = peer(*pytree.tree_map(in_double, args))
        loss.backward()
        losses.append(loss.item())
        rmsprop.step()
    return peer, losses


def check(cases, sizes=(4, 3, 6), tolerance=2e-6):
    """Train the modules of these cases in one graph, and compare each parameter with PyTorch's."""
    torch.manual_seed(0)
    module = Together({name: case.module() for name, case in cases.items()})

    def batch(size):
        inputs = [case.inputs(size) for case in cases.values()]
        with torch.no_grad():
            parts = copy.deepcopy(module).parts.values()
            results = [part(*given) for part, given in zip(parts, inputs, strict=True)]
        return inputs, [torch.randn(y.shape) if y.dim() else None for y in results]

    batches = [batch(size) for size in sizes]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    session = start(module, batches[0])
    peer, expected_losses = peer_steps(module, batches)
    losses = [step(session, args) for args in batches]
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)
    state, expected = session.state, peer.state_dict()
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert {f"mean_square.{name}" for name in trained} == {n for n in state if "mean_square" in n}
    for name in trained:
        np.testing.assert_allclose(
            state[name], expected[name].numpy(), rtol=0, atol=tolerance, err_msg=name
        )
    check_statistics(state, peer)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} has been changed"


def check_statistics(state, peer):
    """Running means are PyTorch's; those that do not move are not carried."""
    for name, value in peer.state_dict().items():
        if name.endswith("running_mean"):
            moves = peer.get_submodule(name.rpartition(".")[0]).training
            assert (name in state) == moves, name
            if moves:
                np.testing.assert_allclose(state[name], value.numpy(), rtol=0, atol=1e-6)
