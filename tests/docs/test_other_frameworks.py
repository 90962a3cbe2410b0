"""What other frameworks do, said with the options of RMSProp: 12 steps against each of them."""

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import graphopt
from tests.helpers.folders import DOCS

pytestmark = pytest.mark.any_runtime

DOCUMENT = (DOCS / "other_frameworks.md").read_text("utf-8")
STEPS = 12
# Of the largest absolute value that an array has anywhere in the 12 steps. The graph is float32,
# the peers are float64; 1 - decay is a difference of float32 numbers, which for a decay of 0.99
# alone costs 1e-6 of the mean square, and half of that in each update.
TOLERANCE = {"w": 1e-6, "mean_square": 2e-6, "mean_grad": 2e-6, "moment": 2e-6}
SHAPES = {"scalar": (), "one": (1,), "bias": (5,), "weight": (3, 4), "kernel": (4, 3, 3, 2)}
# They change, because only then it matters whether the moment holds the learning rate.
RATES = [0.01 * 0.8**step for step in range(STEPS)]


# The peers: from a parameter, its gradients and learning rates to the state after each step.


def torch_rmsprop(w, gradients, rates, **settings):
    """torch.optim.RMSprop itself, on float64."""
    weight = torch.tensor(w, dtype=torch.float64)
    optimizer = torch.optim.RMSprop([weight], **settings)
    names = {"square_avg": "mean_square", "grad_avg": "mean_grad", "momentum_buffer": "moment"}
    for g, lr in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
        state = optimizer.state[weight]
        yield {"w": weight.numpy().copy()} | {
            name: state[key].numpy().copy() for key, name in names.items() if key in state
        }


def timm_rmsprop_tf(
    w,
    gradients,
    rates,
    *,
    alpha=0.9,
    eps=1e-10,
    weight_decay=0.0,
    momentum=0.0,
    centered=False,
    decoupled_decay=False,
    lr_in_momentum=True,
):
    """timm 1.0.31, timm.optim.RMSpropTF: _single_tensor_rmsprop_tf in timm/optim/rmsprop_tf.py."""
    s, a, m = np.ones_like(w), np.zeros_like(w), np.zeros_like(w)
    for gradient, lr in zip(gradients, rates, strict=True):
        g = gradient if decoupled_decay else gradient + weight_decay * w
        if decoupled_decay:
            w = w * (1 - lr * weight_decay)
        s = s + (1 - alpha) * (g**2 - s)
        a = a + (1 - alpha) * (g - a)
        average = np.sqrt((s - a * a if centered else s) + eps)
        if lr_in_momentum:
            m = momentum * m + lr * g / average
            w = w - m
        else:
            m = momentum * m + g / average
            w = w - lr * m
        yield stored(w, s, a, m, centered, momentum)


def keras_rmsprop(
    w,
    gradients,
    rates,
    *,
    rho=0.9,
    momentum=0.0,
    epsilon=1e-7,
    centered=False,
    weight_decay=None,
    loss_scale_factor=None,
):
    """Keras 3.15.1, keras.optimizers.RMSprop.update_step and Optimizer._apply_weight_decay."""
    velocity, average, m = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for gradient, lr in zip(gradients, rates, strict=True):
        g = gradient / (loss_scale_factor or 1)
        w = w - w * (weight_decay or 0) * lr
        velocity = rho * velocity + (1 - rho) * g**2
        average = rho * average + (1 - rho) * g
        denominator = velocity - average**2 + epsilon if centered else velocity + epsilon
        m = momentum * m + lr * g / np.sqrt(denominator)
        w = w - m
        yield stored(w, velocity, average, m, centered, momentum)


def optax_rmsprop(
    w,
    gradients,
    rates,
    *,
    decay=0.9,
    eps=1e-8,
    initial_scale=0.0,
    eps_in_sqrt=True,
    centered=False,
    momentum=None,
    nesterov=False,
    weight_decay=0.0,
):
    """optax 0.2.8, optax.chain(add_decayed_weights(weight_decay), rmsprop(...)).

    Which is scale_by_rms or scale_by_stddev, scale_by_learning_rate and trace.
    """
    nu, mu, trace = np.full_like(w, initial_scale), np.zeros_like(w), np.zeros_like(w)
    for gradient, lr in zip(gradients, rates, strict=True):
        g = gradient + weight_decay * w
        mu = decay * mu + (1 - decay) * g
        nu = decay * nu + (1 - decay) * g**2
        variance = nu - mu**2 if centered else nu
        scaling = 1 / (np.sqrt(variance + eps) if eps_in_sqrt else np.sqrt(variance) + eps)
        update = -lr * scaling * g
        if momentum is not None:
            trace = update + momentum * trace
            update = update + momentum * trace if nesterov else trace
        w = w + update
        yield stored(w, nu, mu, -trace, centered, momentum)


def optax_decoupled(w, gradients, rates, *, decay=0.9, eps=1e-8, weight_decay=0.0):
    """optax 0.2.8, chain(scale_by_rms(...), add_decayed_weights(...), scale_by_learning_rate)."""
    nu = np.zeros_like(w)
    for g, lr in zip(gradients, rates, strict=True):
        nu = decay * nu + (1 - decay) * g**2
        w = w - lr * (g / np.sqrt(nu + eps) + weight_decay * w)
        yield {"w": w, "mean_square": nu}


def stored(w, mean_square, mean_grad, moment, centered, momentum):
    state = {"w": w, "mean_square": mean_square}
    state |= {"mean_grad": mean_grad} if centered else {}
    return state | ({"moment": moment} if momentum else {})


@dataclass(frozen=True)
class Framework:
    """How to say in graphopt what a framework does."""

    peer: Callable
    names: dict  # its arguments; the others have the same name, or none
    options: dict  # what is always said, its defaults among them

    def said(self, settings):
        return self.options | {self.names.get(key, key): v for key, v in settings.items()}


FRAMEWORKS = {
    "torch": Framework(
        torch_rmsprop,
        {"alpha": "decay", "eps": "epsilon"},
        {
            "decay": 0.99,
            "epsilon": 1e-8,
            "epsilon_inside_root": False,
            "initial_mean_square": 0.0,
            "learning_rate_inside_moment": False,
        },
    ),
    "timm": Framework(
        timm_rmsprop_tf,
        {
            "alpha": "decay",
            "eps": "epsilon",
            "decoupled_decay": "decoupled_weight_decay",
            "lr_in_momentum": "learning_rate_inside_moment",
        },
        {},
    ),
    "keras": Framework(
        keras_rmsprop,
        {"rho": "decay", "loss_scale_factor": "loss_scale"},
        {"epsilon": 1e-7, "initial_mean_square": 0.0, "decoupled_weight_decay": True},
    ),
    "optax": Framework(
        optax_rmsprop,
        {
            "eps": "epsilon",
            "initial_scale": "initial_mean_square",
            "eps_in_sqrt": "epsilon_inside_root",
        },
        {"epsilon": 1e-8, "initial_mean_square": 0.0},
    ),
    "optax_decoupled": Framework(
        optax_decoupled,
        {"eps": "epsilon"},
        {"epsilon": 1e-8, "initial_mean_square": 0.0, "decoupled_weight_decay": True},
    ),
}
CASES = {
    "torch": [
        {},
        {"momentum": 0.9},
        {"centered": True},
        {"centered": True, "momentum": 0.9},
        {"weight_decay": 0.01},
        {"weight_decay": 0.01, "centered": True, "momentum": 0.9},
        {"alpha": 0.9, "eps": 1e-3, "momentum": 0.5},
    ],
    "timm": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "lr_in_momentum": False},
        {"centered": True},
        {"centered": True, "momentum": 0.9, "lr_in_momentum": False},
        {"weight_decay": 0.01, "momentum": 0.9},
        {"weight_decay": 0.1, "decoupled_decay": True, "momentum": 0.9},
        {"weight_decay": 0.1, "decoupled_decay": True, "centered": True},
        {"alpha": 0.95, "eps": 1e-3, "momentum": 0.9},
    ],
    "keras": [
        {},
        {"momentum": 0.9},
        {"centered": True},
        {"centered": True, "momentum": 0.9},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "centered": True, "momentum": 0.9},
        {"rho": 0.95, "epsilon": 1e-3, "momentum": 0.5},
        {"weight_decay": 0.1, "loss_scale_factor": 4.0},
    ],
    "optax": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"eps_in_sqrt": False},
        {"initial_scale": 1.0, "momentum": 0.9},
        {"centered": True},
        {"centered": True, "eps_in_sqrt": False, "momentum": 0.9},
        {"centered": True, "momentum": 0.9, "nesterov": True},
        {"weight_decay": 0.01, "momentum": 0.9},
        {"decay": 0.95, "eps": 1e-3, "initial_scale": 0.5, "momentum": 0.5, "nesterov": True},
    ],
    "optax_decoupled": [{}, {"weight_decay": 0.1}],
}


def data(shapes):
    """Initial values and the gradients of each step, float32 numbers."""
    rng = np.random.default_rng(1)
    initial = {name: np.float32(rng.standard_normal(shape)) for name, shape in shapes.items()}
    gradients = {name: np.float32(rng.standard_normal((STEPS, *s))) for name, s in shapes.items()}
    for name, shape in shapes.items():
        gradients[name][rng.random((STEPS, *shape)) < 0.2] = 0  # now and then
        if len(shape) > 1:
            gradients[name][:, 0, 0] = 0  # always
            gradients[name][:3, 1] = 0  # at first
    return initial, gradients


def agree(optimizer, peer, settings, rates):
    """Compare every array at every step; returns the largest error of each kind of state."""
    initial, gradients = data({p.name: p.shape for p in optimizer.params})
    session = graphopt.Session(graphopt.update_graph(optimizer), parameters=initial)
    states = []
    for step in range(STEPS):
        session.step({f"{name}_grad": g[step] for name, g in gradients.items()})
        states.append(session.state)
    errors = dict.fromkeys(TOLERANCE, 0.0)
    for name, w in initial.items():
        expected = list(peer(np.float64(w), np.float64(gradients[name]), rates, **settings))
        assert set(expected[0]) == {"w", *optimizer.states}
        for kind in expected[0]:
            key = name if kind == "w" else f"{kind}.{name}"
            ours = np.array([state[key] for state in states])
            theirs = np.array([state[kind] for state in expected])
            error = np.abs(ours - theirs).max() / np.abs(theirs).max()
            assert error < TOLERANCE[kind], f"{key}: {error:.1e}"
            errors[kind] = max(errors[kind], error)
    return errors


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param(name, case, id=f"{name}-{','.join(f'{k}={v}' for k, v in case.items())}")
        for name, cases in CASES.items()
        for case in cases
    ],
)
def test_equivalence(name, settings):
    framework = FRAMEWORKS[name]
    params = [graphopt.Parameter(key, shape) for key, shape in SHAPES.items()]
    optimizer = graphopt.RMSProp(params, RATES, **framework.said(settings))
    agree(optimizer, framework.peer, settings, RATES)


SNIPPETS = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
CALLS = {
    "torch.optim.RMSprop": "torch",
    "timm.optim.RMSpropTF": "timm",
    "keras.optimizers.RMSprop": "keras",
    "optax.chain": "optax",
}


def test_documented_snippets():
    """The call of the framework, a comment at the top, does what the optimizer below it does."""
    assert len(SNIPPETS) == len(CALLS)
    for snippet, (call, name) in zip(SNIPPETS, CALLS.items(), strict=True):
        namespace = {}
        exec(compile(snippet, "other_frameworks.md", "exec"), namespace)
        comment = re.match(r"(?:#.*\n)+", snippet)[0].replace("#", "")
        expression = ast.parse(comment.strip(), mode="eval").body
        assert ast.unparse(expression.func) == call
        settings = {
            keyword.arg: ast.literal_eval(keyword.value)
            for node in ast.walk(expression)
            if isinstance(node, ast.Call)
            for keyword in node.keywords
        }
        lr = next(settings.pop(key) for key in ("lr", "learning_rate") if key in settings)
        agree(namespace["opt"], FRAMEWORKS[name].peer, settings, [lr] * STEPS)


@pytest.mark.parametrize("name", CALLS.values())
def test_every_argument_is_documented(name):
    heading = {"torch": "PyTorch", "timm": "timm", "keras": "Keras", "optax": "optax"}[name]
    section = DOCUMENT.partition(f"\n## {heading}")[2].partition("\n## ")[0]
    peer = torch.optim.RMSprop if name == "torch" else FRAMEWORKS[name].peer
    for argument in list(inspect.signature(peer).parameters)[1:]:
        assert argument in ("gradients", "rates") or f"`{argument}" in section, argument
