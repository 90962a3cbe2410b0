"""Gradients of softmax and its logarithm."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import graphopt
from tests.helpers.exporter import legacy
from tests.helpers.gradient_oracle import Case, cases, check, normal, onnx_gradients

FUNCTIONS = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax}
CASES = (
    {
        f"{name} {shape} axis={axis}": Case(
            f"y = {name}<axis={axis}>(x)", {"x": normal(*shape)}, lambda x, f=f, a=axis: f(x, a)
        )
        for name, f in FUNCTIONS.items()
        for shape, axis in (((3, 4), 1), ((3, 4), 0), ((2, 3, 4), -2), ((5,), 0), ((3, 1), 1))
    }
    | {
        f"{name} default axis": Case(
            f"y = {name}(x)", {"x": normal(2, 3, 4)}, lambda x, f=f: f(x, -1), opset=opset
        )
        for opset, (name, f) in zip((17, 21), FUNCTIONS.items(), strict=True)
    }
    | {
        f"{name} of an empty batch": Case(
            f"y = {name}(x)", {"x": normal(0, 4)}, lambda x, f=f: f(x, -1)
        )
        for name, f in FUNCTIONS.items()
    }
    | {
        "LogSoftmax of large numbers": Case(
            "y = LogSoftmax(x)", {"x": 80 * normal(3, 4)}, lambda x: torch.log_softmax(x, -1)
        )
    }
)


# The second row is masked whole.
MASK = np.array([[True, False, True], [False, False, False], [True, True, True]])
ADDED = np.where(MASK, 0, -np.inf).astype(np.float32)
NONE = {"zero": np.float32(0), "none": np.float32(-np.inf)}


def masked(node, opset=17, **more):
    """Scores and values; ``node`` computes p, which is 0 in a row that is masked whole."""
    return Case(
        f"{node} y = MatMul(p, v)",
        {"x": normal(2, 3, 3), "v": normal(2, 3, 4), "mask": MASK, "added": ADDED, **NONE, **more},
        lambda x, v, *_: (
            torch.nan_to_num(torch.softmax(x.masked_fill(~torch.tensor(MASK), -torch.inf), -1)) @ v
        ),
        constants=("added", *NONE, *more),
        known=("x", "v"),
        opset=opset,
    )


MASKED = {
    "Add, Softmax, IsNaN": masked(
        "s = Add(x, added) e = Softmax(s) n = IsNaN(e) p = Where(n, zero, e)"
    ),
    "Where, Softmax, IsNaN": masked(
        "s = Where(mask, x, none) e = Softmax(s) n = IsNaN(e) p = Where(n, zero, e)"
    ),
    "Add, Softmax, Where": masked("s = Add(x, added) e = Softmax(s) p = Where(mask, e, zero)"),
    "Add, Softmax, Cast, Where": masked(
        "s = Add(x, added) e = Softmax(s) d = Cast<to=11>(e) f = Cast<to=1>(d) "
        "p = Where(mask, f, zero)"
    ),
    "Add, Softmax over the first axis, Where": masked(
        "s = Add(x, added) t = Transpose<perm=[2, 0, 1]>(s) e = Softmax<axis=0>(t) "
        "u = Transpose<perm=[1, 2, 0]>(e) n = IsNaN(u) p = Where(n, zero, u)"
    ),
    "Add, LogSoftmax, Where": masked(
        "s = Add(x, added) l = LogSoftmax(s) k = Where(mask, l, none) p = Exp(k)"
    ),
}


def attention(q, k, v, mask):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


Q, K, V = (normal(2, 2, 3, 4, seed=seed) for seed in range(3))
ATTENTION = {
    f"Attention-{opset} {kind}": Case(
        "y = Attention(q, k, v, mask)",
        {"q": Q, "k": K, "v": V, "mask": mask},
        attention,
        constants=("mask",),
        opset=opset,
        dynamic="batch",
    )
    for opset in (23, 24)
    for kind, mask in (("bool", MASK), ("float", ADDED))
}


@cases(MASKED | ATTENTION)
def test_a_row_that_is_masked_whole(case, dynamic):
    check(case, dynamic)


def test_a_row_that_is_not_a_number_stays_so():
    """Something is selected elsewhere only: PyTorch's gradients are NaN too."""
    case = Case(
        "s = Add(x, added) e = Softmax(s) y = Where(mask, e, zero)",
        {"x": normal(2, 3), "mask": MASK[[0, 2]], "added": ADDED[[0, 1]], **NONE},
        lambda x, *_: x,
        constants=("added", *NONE),
    )
    gradient = onnx_gradients(case, ["x"], dynamic=False)["x"]
    np.testing.assert_array_equal(np.isnan(gradient), [[False] * 3, [True] * 3])


@pytest.mark.quick
@cases(CASES)
def test_gradients(case, dynamic):
    check(case, dynamic)


def test_cases_are_complete():
    assert len(CASES) == 15
    with pytest.raises(AssertionError):
        check(Case("y = Softmax(x)", {"x": normal(3, 4)}, lambda x: 1.01 * torch.softmax(x, -1)), 0)


class SelfAttention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        # The loss does not depend on a bias of the keys: its gradient would be rounding.
        self.q, self.k, self.v = (torch.nn.Linear(4, 4, bias=i != 1) for i in range(3))

    def forward(self, x, mask):
        return functional.scaled_dot_product_attention(
            self.q(x), self.k(x), self.v(x), attn_mask=mask
        )[:, -1]


def test_steps_with_a_padded_row(tmp_path):
    """The row's own loss is not even read; the parameters are those of PyTorch."""
    torch.manual_seed(0)
    network = SelfAttention()
    x, mask = torch.randn(3, 4, 4), torch.ones(3, 4, 4, dtype=torch.bool).tril()
    mask[2, 0] = False
    path = tmp_path / "attention.onnx"
    legacy(network, (x, mask), path, input_names=["x", "mask"])
    optimizer = graphopt.RMSProp(
        graphopt.parameters(path),
        learning_rate=0.01,
        epsilon=1e-8,
        epsilon_inside_root=False,
        initial_mean_square=0.0,
    )
    session = graphopt.Session(graphopt.training_graph(path, "mse", optimizer))
    peer = torch.optim.RMSprop(network.parameters(), lr=0.01, alpha=0.9, eps=1e-8)
    labels = torch.zeros(3, 4)
    for _ in range(3):
        session.step({"x": x.numpy(), "mask": mask.numpy(), "labels": labels.numpy()})
        peer.zero_grad()
        functional.mse_loss(network(x, mask), labels).backward()
        peer.step()
    for name, parameter in network.named_parameters():
        np.testing.assert_allclose(
            session.state[name], parameter.detach().numpy(), atol=2e-5, err_msg=name
        )
