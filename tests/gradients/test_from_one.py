"""What the backward pass computes again by default: of one value that is kept anyway."""

import numpy as np
import onnx.parser
import pytest
import torch

import graphopt
from graphopt.stage import AGAIN_PREFIX

WIDTH = 1024
ROWS = 64  # of 4 KiB each: the least for which it is done

# By name: what is between two products of matrices, x and r; the same in PyTorch; and the
# operators that run again.
CASES = {
    "silu": (
        "s = Sigmoid (x) \n r = Mul (x, s)",
        torch.nn.functional.silu,
        [],
    ),
    "hard swish": (
        "s = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) \n r = Mul (x, s)",
        torch.nn.functional.hardswish,
        ["HardSigmoid"],
    ),
    "hard swish, written out": (
        """moved = Add (x, three) \n inside = Clip (moved, zero, six)
        s = Div (inside, six) \n r = Mul (x, s)""",
        torch.nn.functional.hardswish,
        ["Add", "Clip", "Div"],
    ),
    "three readers": (
        "s = Sigmoid (x) \n t = Mul (s, three) \n u = Mul (x, t) \n r = Mul (u, s)",
        lambda x: 3 * x * torch.sigmoid(x) ** 2,
        ["Mul", "Sigmoid"],
    ),
    "a slow operator between": (
        "p = Softplus (x) \n s = Tanh (p) \n r = Mul (x, s)",
        torch.nn.functional.mish,
        [],
    ),
    "scaled by row": (
        """two = Mul (x, x) \n sum = ReduceSum (two, axes) \n root = Sqrt (sum)
        scale = Reciprocal (root) \n n = Mul (x, scale) \n s = Mul (n, weight) \n r = Mul (s, n)""",
        lambda x: (x / x.norm(dim=1, keepdim=True)) ** 2 * WEIGHT,
        ["Mul", "Mul"],
    ),
    "of two": (
        "other = MatMul (fed, second) \n s = Add (x, other) \n t = Cos (s) \n r = Mul (t, s)",
        None,
        [],
    ),
}
_RNG = np.random.default_rng(0)
VALUES = {
    "first": _RNG.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype("f"),
    "second": _RNG.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype("f"),
    "last": _RNG.normal(0, WIDTH**-0.5, (WIDTH, 1)).astype("f"),
    "weight": _RNG.uniform(0.5, 1.5, WIDTH).astype("f"),
    "axes": np.array([1]),
    **{name: np.float32(value) for name, value in (("zero", 0), ("three", 3), ("six", 6))},
}
WEIGHT = torch.tensor(VALUES["weight"], dtype=torch.float64)
FEEDS = {
    "fed": _RNG.normal(size=(ROWS, WIDTH)).astype("f"),
    "labels": _RNG.normal(size=(ROWS, 1)).astype("f"),
}


def graph_of(body, rows=ROWS, **settings):
    made = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        one (float[{rows},{WIDTH}] fed) => (float[{rows},1] y)
        {{ x = MatMul (fed, first) \n {body} \n y = MatMul (r, last) }}""")
    read = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name)
        for name, value in VALUES.items()
        if name in read
    )
    trained = [p for p in graphopt.parameters(made) if p.name in ("first", "last")]
    optimizer = graphopt.RMSProp(trained, initial_mean_square=0.0)
    return graphopt.training_graph(made, "mse", optimizer, **settings)


def again(graph):
    names = {node.name: node.op_type for node in graph.model.graph.node}
    return sorted(
        operator
        for name, operator in names.items()
        if "/again/" in name and not name.startswith(AGAIN_PREFIX)  # what lets it wait
    )


@pytest.mark.any_runtime
@pytest.mark.parametrize("name", CASES)
def test_what_is_computed_again(name):
    body, _, operators = CASES[name]
    assert again(graph_of(body)) == operators


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[1]])
def test_the_gradients_are_those_of_pytorch(name):
    body, function, _ = CASES[name]
    session = graphopt.Session(graph_of(body))
    first, last = (
        torch.tensor(VALUES[n], dtype=torch.float64, requires_grad=True) for n in ("first", "last")
    )
    fed, labels = (torch.tensor(value, dtype=torch.float64) for value in FEEDS.values())
    loss = torch.nn.functional.mse_loss(function(fed @ first) @ last, labels)
    loss.backward()
    assert float(session.step(FEEDS)["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    state = session.state
    for key, parameter in (("first", first), ("last", last)):
        expected = parameter.grad.abs().numpy()
        found = np.sqrt(state[f"mean_square.{key}"] / 0.1)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.max())


@pytest.mark.any_runtime
def test_where_it_does_not_pay_all_is_kept():
    body = CASES["hard swish"][0]
    assert again(graph_of(body, rows=ROWS - 1)) == []
    assert again(graph_of(body, provider="CUDAExecutionProvider")) == []


@pytest.mark.any_runtime
def test_inspect_shows_what_is_saved():
    """Of x and sigmoid(x), which are kept along with their product, one is not."""
    layers = 8
    body = "\n".join(
        f"s{k} = Sigmoid (x{k}) \n r{k} = Mul (x{k}, s{k}) \n x{k + 1} = MatMul (r{k}, second)"
        for k in range(layers)
    )
    body = f"x0 = Identity (x) \n {body} \n r = Identity (x{layers})"
    held = {
        provider: graphopt.inspect(
            graph_of(body, rows=1024, provider=f"{provider}ExecutionProvider")
        ).memory.activations
        for provider in ("CPU", "CUDA")
    }
    assert held["CPU"] < 0.8 * held["CUDA"]
