"""Every snippet of docs/pytorch.md runs, and trains as PyTorch does."""

import copy
import re
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional

import graphopt
from tests.helpers.folders import DOCS

pytestmark = [pytest.mark.any_runtime, pytest.mark.usefixtures("one_registry")]

DOCUMENT = (DOCS / "pytorch.md").read_text("utf-8")
FORWARD, TRAIN_FORWARD, LOSS_INSIDE, JOINT, TRAIN_JOINT, CONVOLUTION = re.findall(
    r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL
)
IMPORTED = {"graphopt": graphopt, "nn": torch.nn, "torch": torch}


def run(snippet, namespace, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of training mode and of its own doings
        exec(compile(snippet, "docs/pytorch.md", "exec"), namespace)
    printed = [line for line in capsys.readouterr().out.splitlines() if "torch.onnx" not in line]
    assert printed == re.findall(r"^ *print\(.*\)  # (.*)$", snippet, re.MULTILINE)


@pytest.fixture(autouse=True)
def _own_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained_by_pytorch(network, batches, **settings):
    """A copy in float64, and its parameters after these batches."""
    peer = copy.deepcopy(network).double().train()
    optimizer = torch.optim.RMSprop(peer.parameters(), **settings)
    for x, labels in batches:
        optimizer.zero_grad()
        functional.cross_entropy(peer(x.double()), labels).backward()
        optimizer.step()
    return peer.state_dict()


def compare(state, expected, names, tolerance=1e-5):
    for name in names:
        np.testing.assert_allclose(
            state[name], expected[name].detach(), rtol=0, atol=tolerance, err_msg=name
        )


@pytest.mark.quick
def test_forward_pass(capsys):
    namespace = {}
    run(FORWARD, namespace, capsys)
    before = copy.deepcopy(namespace["network"])
    run(TRAIN_FORWARD, namespace, capsys)
    expected = trained_by_pytorch(before, namespace["batches"], lr=0.01)
    names = [name for name, _ in before.named_parameters()]
    compare(namespace["session"].state, expected, [*names, "1.running_mean"])
    loaded = namespace["network"].state_dict()
    for name in (*names, "1.running_mean", "1.running_var"):
        assert np.array_equal(loaded[name], namespace["session"].state[name]), name
    # PyTorch's variance is larger by n / (n - 1), for n = 36 positions of each example.
    excess = (expected["1.running_var"] - loaded["1.running_var"]) / loaded["1.running_var"]
    assert 0 < float(excess.min()) < float(excess.max()) < 1 / (3 * 36 - 1)
    run(LOSS_INSIDE, namespace, capsys)
    x, labels = (tensor.numpy() for tensor in namespace["batches"][2])
    outputs = namespace["session"].step({"x": x, "labels": labels})
    with torch.no_grad():
        y = namespace["network"].double()(torch.tensor(x).double())
        smoothed = functional.cross_entropy(y, torch.tensor(labels), label_smoothing=0.1)
    assert abs(float(outputs["loss"]) - float(smoothed)) < 1e-5


def test_gradients_of_pytorch(capsys):
    torch.manual_seed(0)
    namespace = dict(IMPORTED)
    run(JOINT, namespace, capsys)
    network = copy.deepcopy(namespace["network"])
    run(TRAIN_JOINT, namespace, capsys)
    peer = copy.deepcopy(network).double()
    parameters = dict(peer.named_parameters())
    start = {name: value.detach().numpy() for name, value in parameters.items()}
    oracle = graphopt.reference.ReferenceRMSProp(namespace["opt"], start)
    for x, labels in namespace["batches"]:
        loss = functional.cross_entropy(peer(x.double()), labels)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        oracle.step({name: g.numpy() for name, g in zip(parameters, gradients, strict=True)})
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(torch.tensor(oracle.state[name]))
    with torch.no_grad():
        assert all(
            (p - parameters[name]).abs().max() > 1e-3 for name, p in network.named_parameters()
        )
    compare(namespace["session"].state, parameters, parameters, tolerance=1e-6)
    compare(namespace["network"].state_dict(), parameters, parameters, tolerance=1e-6)


@pytest.mark.exhaustive
def test_convolutions_of_pytorch(capsys):
    torch.manual_seed(0)
    namespace = dict(IMPORTED)
    run(JOINT.partition("network = ")[0], namespace, capsys)
    run(CONVOLUTION, namespace, capsys)
    network = namespace["network"]
    values = {name: p.detach().numpy() for name, p in network.named_parameters()}
    optimizer = graphopt.RMSProp(
        [graphopt.Parameter(name, value.shape) for name, value in values.items()],
        learning_rate=0.01,
        decay=0.99,
        epsilon=1e-8,
        epsilon_inside_root=False,
        initial_mean_square=0.0,
        learning_rate_inside_moment=False,
    )
    gradients = {name: f"{name}.grad" for name in values}
    graph = graphopt.training_graph(namespace["model"], "loss", optimizer, gradients=gradients)
    session = graphopt.Session(graph, parameters=values)
    batches = [(torch.randn(n, 1, 6, 6), torch.randint(0, 4, (n,))) for n in (9, 1, 9, 11)]
    for x, labels in batches:
        session.step({"x": x.numpy(), "labels": labels.numpy()})
    expected = trained_by_pytorch(network, batches, lr=0.01)
    compare(session.state, expected, expected, tolerance=1e-4)


def test_links_exist():
    links = re.findall(r"\]\(([\w.]+)(#\w+)?\)", DOCUMENT)
    assert links
    for link, anchor in links:
        text = (DOCS / link).read_text("utf-8")
        assert anchor.removeprefix("#") in [
            title.lower() for title in re.findall(r"^#+ (\S+)$", text, re.MULTILINE)
        ]
