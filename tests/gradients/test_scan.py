"""Scan: what its rounds report, and the products that are computed behind it."""

from collections import Counter

import onnx
import onnx_ir as ir
import pytest
import torch

import graphopt
from tests.helpers.gradient_oracle import Case, cases, check, normal

H, X3 = normal(2, 4), normal(3, 2, 4, seed=3)
W1, W2 = normal(4, 4, seed=5), normal(4, 4, seed=6)
GIVEN = {"s0": H, "x": X3, "w": W1, "u": W2}


def scan(body, attributes="", inputs="s0, x"):
    return f"y, z = Scan <body = b {body}, num_scan_inputs=1{attributes}> ({inputs})"


def rounds(step, backwards=False):
    def compute(s, x, w, u):
        listed = []
        for r in x.flip(0) if backwards else x:
            s, o = step(s, r, w, u)
            listed.append(o)
        return s, torch.stack(listed)

    return compute


BODY = "(float s, float r) => (float t, float o) "
GATED = (
    "{ a = Gemm<transB=1>(s, w, r) g = Sigmoid(a) m = Mul(g, s) c = Gemm<alpha=0.5>(m, u) "
    "t = Tanh(c) o = Mul(t, g) }"
)


def gated(s, r, w, u):
    g = torch.sigmoid(s @ w.T + r)
    t = torch.tanh(0.5 * (g * s) @ u)
    return t, t * g


TWICE = "{ a = MatMul(s, w) c = MatMul(r, w) d = Add(a, c) t = Tanh(d) o = Gemm(t, u) }"
TRANSPOSED = (
    "{ p = Transpose<perm=[1, 0]>(w) a = MatMul(s, p) b = Add(a, r) t = Sin(b) "
    "k = Mul(u, u) o = MatMul(t, k) }"
)
ADDED = "{ a = MatMul(s, w) b = Add(a, w) t = Sin(b) e = Mul(t, u) o = Add(e, r) }"
SPLIT = (
    "{ a = Gemm(s, w) p, q = Split<axis=1>(a, halves) g = Sigmoid(p) h = Tanh(q) m = Mul(g, h) "
    "n = Concat<axis=1>(m, h) t = Add(n, r) o = Gemm(t, u) }"
)


def split(s, r, w, u):
    p, q = (s @ w).chunk(2, 1)
    h = q.tanh()
    t = torch.cat([p.sigmoid() * h, h], 1) + r
    return t, t @ u


BOTH = ("y", "z")
CASES = {
    "gates": Case(scan(BODY + GATED), GIVEN, rounds(gated), outputs=BOTH),
    "gates, backwards": Case(
        scan(BODY + GATED, ", scan_input_directions=[1], scan_output_directions=[1]"), GIVEN,
        lambda *a: (lambda s, o: (s, o.flip(0)))(*rounds(gated, True)(*a)), outputs=BOTH),
    "gates, backwards, in the order of the rounds": Case(
        scan(BODY + GATED, ", scan_input_directions=[1]"), GIVEN, rounds(gated, True),
        outputs=BOTH),
    "a weight of two products": Case(
        scan(BODY + TWICE), GIVEN,
        rounds(lambda s, r, w, u: (t := (s @ w + r @ w).tanh(), t @ u)), outputs=BOTH),
    "a weight of two products, backwards": Case(
        scan(BODY + TWICE, ", scan_input_directions=[1]"), GIVEN,
        rounds(lambda s, r, w, u: (t := (s @ w + r @ w).tanh(), t @ u), True), outputs=BOTH),
    "a weight that is transposed, one that is computed": Case(
        scan(BODY + TRANSPOSED), GIVEN,
        rounds(lambda s, r, w, u: (t := (s @ w.T + r).sin(), t @ (u * u))), outputs=BOTH),
    "a weight that is added too": Case(
        scan(BODY + ADDED), {**GIVEN, "s0": normal(4, 4), "x": normal(3, 4, 4, seed=3)},
        rounds(lambda s, r, w, u: (t := (s @ w + w).sin(), t * u + r)), outputs=BOTH),
    "parts": Case(
        "halves = Constant<value_ints=[2, 2]>() " + scan(BODY + SPLIT), GIVEN, rounds(split),
        outputs=BOTH),
    "one round": Case(
        scan(BODY + GATED), {**GIVEN, "x": X3[:1]}, rounds(gated), outputs=BOTH),
    "rows of batches": Case(
        scan(BODY + "{ a = MatMul(r, w) b = Tanh(a) o = MatMul(b, u) t = Add(s, o) }"),
        {**GIVEN, "s0": normal(2, 3, 4), "x": normal(3, 2, 3, 4, seed=3)},
        rounds(lambda s, r, w, u: (s + (o := (r @ w).tanh() @ u), o)), outputs=BOTH),
}  # fmt: skip


@cases(CASES)
def test_gradients(case, dynamic):
    check(case, dynamic)


MODEL = f"""<ir_version: 8, opset_import: ["": 17]>
net (float[T,2,4] x) => (float[2,4] y) <float[4,4] w = {{{", ".join("0.1" for _ in range(16))}}},
     float[4,4] u = {{{", ".join("0.2" for _ in range(16))}}}, float[2,4] s0 = {{{"0, " * 7}0}}> {{
     {scan(BODY + GATED)} }}"""


@pytest.mark.any_runtime
def test_weights_are_summed_by_products_behind_it_and_gates_are_not_computed_again():
    model = onnx.parser.parse_model(MODEL)
    optimizer = graphopt.RMSProp([p for p in graphopt.parameters(model) if p.name in "wu"])
    graph = ir.from_proto(graphopt.training_graph(model, "mse", optimizer).model).graph
    _, backward = (node for node in graph if node.op_type == "Scan")
    inside = Counter(node.op_type for node in backward.attributes["body"].as_graph())
    # Of both products, what goes to their rows alone; Mul(g, s) is cheap, and not needed.
    assert inside["Gemm"] + inside["MatMul"] == 2
    assert not inside["Sigmoid"] + inside["Tanh"]
    behind = [node for node in graph if node.op_type == "Gemm"]
    assert len(behind) == 2
