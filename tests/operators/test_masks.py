"""Attention as exporters write it, with rows that a mask leaves nothing to look at."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch.nn import functional

from graphopt.gradients import differentiate, prepare
from tests.helpers.gradient_oracle import Case, cases, check, normal, onnx_model

# The second row is masked whole.
MASK = np.array([[True, False, True], [False, False, False], [True, True, True]])
LOWEST = np.finfo(np.float32).min
NUMBERS = {
    "zero": np.float32(0),
    "infinity": np.float32(-np.inf),
    "lowest": np.float32(LOWEST),
    "wide": np.array([2, 2, 3, 3]),
}
Q, K, V = (normal(2, 2, 3, 4, seed=seed) for seed in range(3))
KT = np.ascontiguousarray(K.transpose(0, 1, 3, 2))


def attention(mask):
    def compute(q, k, v, *_):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return functional.scaled_dot_product_attention(
                q, k.transpose(-1, -2), v, attn_mask=mask, scale=1.0
            )

    return compute


def case(node, mask=MASK, expected=MASK, **inputs):
    """``node`` computes y from the products s, the values v and the mask."""
    return Case(
        f"s = MatMul(q, k) {node}",
        {"q": Q, "k": KT, "v": V, "mask": mask, **NUMBERS, **inputs},
        attention(torch.tensor(expected)),
        constants=("mask", *NUMBERS, *inputs),
        dynamic="batch",
    )


INFINITE = np.where(MASK, 0, -np.inf).astype(np.float32)
FINITE = np.where(MASK, 0, LOWEST).astype(np.float32)
SUM = "a = Add(s, m) e = Softmax(a) y = MatMul(e, v)"
ASKED = "a = Add(s, m) e = Softmax(a) n = IsNaN(e) p = Where(n, zero, e) y = MatMul(p, v)"
CASES = {
    "a constant": case(SUM.replace("m)", "mask)"), INFINITE),
    "a choice": case(f"m = Where(mask, zero, infinity) {SUM}"),
    "a choice, expanded": case(f"c = Where(mask, zero, infinity) m = Expand(c, wide) {SUM}"),
    "on the other side": case(
        "m = Where(mask, zero, infinity) a = Add(m, s) e = Softmax<axis=3>(a) y = MatMul(e, v)"
    ),
    "a sum with other numbers": case(
        f"c = Where(mask, zero, infinity) m = Add(c, more) {SUM}", more=np.zeros((3, 3), np.float32)
    ),
    "the lowest number, asked for NaN": case(f"m = Where(mask, zero, lowest) {ASKED}"),
    "a constant of the lowest number, asked for NaN": case(ASKED.replace("m)", "mask)"), FINITE),
    # PyTorch looks at everything then.
    "a constant of the lowest number": case(SUM.replace("m)", "mask)"), FINITE, expected=FINITE),
}


@cases(CASES)
def test_gradients(case, dynamic):
    check(case, dynamic)


@pytest.mark.any_runtime
@pytest.mark.parametrize(
    ("node", "is_guarded"),
    [
        (SUM.replace("m)", "mask)"), False),
        (f"m = Where(mask, zero, lowest) {SUM}", False),
        (f"m = Where(mask, zero, infinity) {SUM}", True),
    ],
)
def test_only_what_may_mask_a_row_whole_costs_a_product(node, is_guarded):
    mask = np.where(np.tri(3, dtype=bool), 0, -np.inf).astype(np.float32)
    given = case(node, mask if "m = " not in node else MASK)
    prepared, _ = prepare(onnx_model(given, ["q"], dynamic=False), ["q"])
    assert ("ReduceMax" in {n.op_type for n in prepared.graph}) == is_guarded


def test_a_mask_that_is_fed():
    """Rows that it masks whole are zeros, and get no gradient."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 18]>
        m (float[b,1,3,3] mask) => (float loss) {
            a = Add(w, mask) e = Softmax(a) y = MatMul(e, v)
            q = Mul(y, y) loss = ReduceSum<keepdims=0>(q)
        }""")
    w = normal(2, 2, 3, 3)
    for name, array in (("w", w), ("v", V)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    prepared, statistics = prepare(model, ["w", "v"])
    built = differentiate(prepared, ["w", "v"], prepared.graph.outputs[0], statistics)
    prepared.graph.outputs.extend(built.gradients.values())
    session = onnxruntime.InferenceSession(
        ir.to_proto(prepared).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    got = session.run(None, {"mask": INFINITE[None, None], "w": w, "v": V})
    scores, values = (torch.tensor(x).double().requires_grad_() for x in (w, V))
    weights = torch.softmax(scores.masked_fill(~torch.tensor(MASK), -torch.inf), -1)
    loss = ((torch.where(torch.tensor(MASK), weights, 0) @ values) ** 2).sum()
    expected = torch.autograd.grad(loss, [values])[0]
    np.testing.assert_allclose(got[0], loss.detach(), rtol=1e-6)
    np.testing.assert_allclose(got[2], expected, atol=1e-5)
    assert np.isfinite(got[1]).all()
    np.testing.assert_array_equal(got[1][..., 1, :], 0)
