"""Gradients through branches, loops and sequences, against PyTorch in float64."""

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import numpy_helper

import graphopt
from graphopt.in_place import overwritable
from tests.helpers.gradient_oracle import Case, cases, check, normal

V, W, X = normal(3, 4), normal(4, 4, seed=1), normal(5, 4, seed=2)
YES, NO = np.array(True), np.array(False)
WHEN = "zero = Constant<value_int=0>() yes = Equal(nought, zero) no = Not(yes) "
TWICE = "one = Constant<value_int=2>() two = Add(nought, one) "


def branch(condition, then, otherwise):
    return (
        f"y = If ({condition}) <then_branch = t () => (float p) {{ {then} }}, "
        f"else_branch = e () => (float q) {{ {otherwise} }}>"
    )


NEGATIVE = ("a = Mul(v, v) p = Neg(a)", "d = Exp(v) q = Mul(d, w)")
BRANCHES = {
    "constant, then": Case(
        "s = Mul(v, w) " + branch("c", "p = Neg(s)", "q = Exp(s)"),
        {"v": V[0], "w": W[0], "c": YES}, lambda v, w, _c: -v * w
    ),
    "constant, else": Case(
        branch("c", *NEGATIVE), {"v": V[0], "w": W[0], "c": NO}, lambda v, w, _c: v.exp() * w
    ),
    "then": Case(
        WHEN + branch("yes", *NEGATIVE), {"v": V[0], "w": W[0]}, lambda v, w: -v * v + 0 * w
    ),
    "else": Case(WHEN + branch("no", *NEGATIVE), {"v": V[0], "w": W[0]}, lambda v, w: v.exp() * w),
    "beside the branches": Case(
        WHEN + "s = Sin(v) " + branch("yes", "p = Mul(s, w)", "q = Identity(w)"),
        {"v": V, "w": V + 1}, lambda v, w: v.sin() * w),
    "two outputs": Case(
        WHEN + "y, z = If (yes) <then_branch = t () => (float p, float r) { p = Sin(v) r = "
        "Mul(p, p) },"
        " else_branch = e () => (float q, float s) { q = Cos(v) s = Identity(q) }>",
        {"v": V}, lambda v: (v.sin(), v.sin() ** 2), outputs=("y", "z")),
    "one value twice": Case(
        WHEN + "y, z = If (no) <then_branch = t () => (float p, float r) { p = Sin(v) r = "
        "Mul(p, p) },"
        " else_branch = e () => (float q, float q) { q = Cos(v) }>",
        {"v": V}, lambda v: (v.cos(), v.cos()), outputs=("y", "z")),
    "what is around": Case(
        WHEN + branch("yes", "p = Identity(v)", "q = Neg(v)"), {"v": V}, lambda v: v),
    "in a branch": Case(
        WHEN + branch("no", "p = Exp(v)", "f = Sin(v) q = If (yes) "
                      "<then_branch = g () => (float h) { k = Mul(f, w) h = Mul(k, v) },"
                      " else_branch = i () => (float j) { j = Exp(w) }>"),
        {"v": V, "w": V + 1}, lambda v, w: v.sin() * w * v),
    "broadcast in a branch": Case(
        WHEN + branch("yes", "p = Add(x, b)", "q = Identity(x)"), {"x": X, "b": W[0]},
        lambda x, b: x + b),
    "layers in a branch": Case(
        WHEN + branch("yes", "g = MatMul(x, w) h = Relu(g) p = MatMul(h, w)", "q = Mul(x, x)"),
        {"x": X, "w": W}, lambda x, w: (x @ w).relu() @ w),
    "a pooling in a branch": Case(
        WHEN + branch("yes", "p = MaxPool<kernel_shape=[2]>(x)", "q = Neg(x)"),
        {"x": normal(1, 2, 6)}, lambda x: torch.nn.functional.max_pool1d(x, 2, 1), dynamic="batch"),
    "a root in a branch": Case(
        WHEN + branch("yes", "k = Max(x, n) p = Sqrt(k)", "q = Neg(x)"),
        {"x": X, "n": np.float32([[0.1]])}, lambda x, n: x.maximum(n).sqrt(), constants=("n",)),
}  # fmt: skip


def loop(times, condition, states, body, outputs="y"):
    return f"{outputs} = Loop ({times}, {condition}, {states}) <body = b {body}>"


STEP = "(int64 i, bool c, float s) => (bool d, float r) { d = Identity(c) "
POWER = STEP + "m = Mul(s, w) r = Sin(m) }"


def power(times):
    def compute(v, w, *_):
        for _ in range(times):
            v = (v * w).sin()
        return v

    return compute


RUNNING = (
    "(int64 i, bool c, float s) => (bool d, float r, float e) "
    "{ d = Identity(c) m = MatMul(s, w) r = Tanh(m) e = Mul(r, s) }"
)


def running(times):
    def compute(v, w, *_):
        rows = []
        for _ in range(times):
            before, v = v, (v @ w).tanh()
            rows.append(v * before)
        return v, torch.stack(rows)

    return compute


LOOPS = {
    "counted": Case(
        loop("n", "", "v", POWER), {"v": V, "w": V + 1, "n": np.array(3)}, power(3)),
    "of a known number of none": Case(
        loop("n", "", "v", POWER), {"v": V, "w": V + 1, "n": np.array(0)}, power(0),
        constants=("w",)),
    "of rounds": Case(TWICE + loop("two", "", "v", POWER), {"v": V, "w": V + 1}, power(2)),
    "of no rounds": Case(
        TWICE + loop("nought", "", "v", POWER), {"v": V, "w": V + 1}, power(0)),
    "that never begins": Case(
        WHEN + TWICE + loop("two", "no", "v", POWER), {"v": V, "w": V + 1}, power(0)),
    "with a list, counted": Case(
        loop("n", "", "v", RUNNING, "y, z"), {"v": V, "w": W, "n": np.array(3)}, running(3),
        outputs=("y", "z")),
    "with a list": Case(
        TWICE + loop("two", "", "v", RUNNING, "y, z"), {"v": V, "w": W}, running(2),
        outputs=("y", "z")),
    "of which the list alone is read": Case(
        TWICE + loop("two", "", "v", RUNNING, "z, y"), {"v": V, "w": W},
        lambda v, w: running(2)(v, w)[1], outputs=("y",)),
    "until": Case(
        TWICE + "limit = Add(two, two) ten = Constant<value_int=10>() "
        + loop("", "true", "nought, v",
               "(int64 i, bool c, int64 k, float s) => (bool d, int64 j, float r) "
               "{ j = Add(k, one) d = Less(j, ten) m = Mul(s, w) r = Cos(m) }", "k, y"),
        {"v": V, "w": V + 1, "true": YES},
        lambda v, w, _t: [v := (v * w).cos() for _ in range(5)][-1]),
    "that reads the round": Case(
        TWICE + loop("two", "", "v", STEP + ""
                     "k = Gather(x, i) m = Mul(s, k) r = Sin(m) }"),
        {"v": V, "x": X}, lambda v, x: ((v * x[0]).sin() * x[1]).sin()),
    "with a state that is set": Case(
        TWICE + loop("two", "", "v", STEP + ""
                     "r = Sin(w) }"), {"v": V, "w": V + 1}, lambda v, w: w.sin() + 0 * v),
    "with states that change places": Case(
        TWICE + "three = Add(two, two) " + loop(
            "three", "", "v, w", "(int64 i, bool c, float s, float t) => (bool d, float u, "
            "float r) "
            "{ d = Identity(c) u = Identity(t) r = Mul(s, w) }", "y, z"),
        {"v": V, "w": V + 1}, lambda v, w: (v * w**2, w * w**2), outputs=("y", "z")),
    "in a branch": Case(
        WHEN + TWICE + branch("yes", loop("two", "", "v", POWER, "p"), "q = Neg(v)"),
        {"v": V, "w": V + 1}, power(2)),
    "with a branch": Case(
        TWICE + loop("two", "", "v", STEP + ""
                     "f = Equal(i, nought) r = If (f) <then_branch = t () => (float p) { p "
                     "= Mul(s, w) },"
                     " else_branch = e () => (float q) { q = Exp(s) }> }"),
        {"v": V, "w": V + 1}, lambda v, w: (v * w).exp()),
    "in a loop": Case(
        TWICE + loop("two", "", "v", STEP + ""
                     "h = Loop (two, , s) <body = inner (int64 j, bool k, float l) => (bool "
                     "m, float o) "
                     "{ m = Identity(k) n = Mul(l, w) o = Sin(n) }> r = Exp(h) }"),
        {"v": V, "w": V + 1}, lambda v, w: power(2)(power(2)(v, w).exp(), w).exp()),
}  # fmt: skip


ROWS = (
    "(float s, float r) => (float t, float o) "
    "{ m = MatMul(s, w) n = Add(m, r) t = Tanh(n) o = Mul(t, r) }"
)


def scan(inputs, body, attributes="", outputs="y, z"):
    return f"{outputs} = Scan <body = b {body}, num_scan_inputs=1{attributes}> ({inputs})"


def rows(backwards=False, axis=0, prepended=False, out=0):
    def compute(s, x, w, *_):
        listed = []
        parts = list(x.unbind(axis))
        for r in parts[::-1] if backwards else parts:
            s = (s @ w + r).tanh()
            listed.append(s * r)
        return s, torch.stack(listed[::-1] if prepended else listed, out)

    return compute


S = {"s0": normal(2, 4), "x": normal(3, 2, 4, seed=3), "w": W}
MOVED = {**S, "x": S["x"].transpose(1, 0, 2).copy()}
LONG = "k = Expand(xs, three) x = Reshape<allowzero=1>(k, three) "
SCANS = {
    "forward": Case(scan("s0, x", ROWS), S, rows(), outputs=("y", "z")),
    "backwards": Case(
        scan("s0, x", ROWS, ", scan_input_directions=[1]"), S, rows(True), outputs=("y", "z")),
    "prepended": Case(
        scan("s0, x", ROWS, ", scan_output_directions=[1]"), S, rows(prepended=True),
        outputs=("y", "z")),
    "axes": Case(
        scan("s0, x", ROWS, ", scan_input_axes=[1], scan_output_axes=[-1]"), MOVED,
        rows(axis=1, out=-1), outputs=("y", "z")),
    "axes, backwards": Case(
        scan("s0, x", ROWS, ", scan_input_axes=[1], scan_output_axes=[1], "
             "scan_input_directions=[1], scan_output_directions=[1]"), MOVED,
        rows(True, 1, True, 1), outputs=("y", "z")),
    "the state alone": Case(scan("s0, x", ROWS), S, lambda *a: rows()(*a)[0]),
    "the list alone": Case(scan("s0, x", ROWS, "", "z, y"), S, lambda *a: rows()(*a)[1]),
    "without a state": Case(
        scan("x", "(float r) => (float o) { o = Mul(r, w) }", "", "y"),
        {"x": S["x"], "w": W[:2]}, lambda x, w: x * w),
    "a constant list": Case(
        scan("s0, x", ROWS), S, rows(), outputs=("y", "z"), constants=("x",)),
    "products of rows": Case(
        scan("s0, x", "(float s, float r) => (float t) { t = Mul(s, r) }", "", "y"),
        {"s0": S["s0"], "x": S["x"]}, lambda s, x: s * x[0] * x[1] * x[2]),
}  # fmt: skip

SEQUENCES = {
    "split by a length": Case(
        "s = SplitToSequence<axis=1>(x, n) i = Constant<value_int=0>() j = "
        "Constant<value_int=-1>() "
        "a = SequenceAt(s, i) b = SequenceAt(s, j) y = Mul(a, b)",
        {"x": normal(3, 6), "n": np.array(2)}, lambda x, _n: x[:, :2] * x[:, 4:], dynamic="batch"),
    "split by lengths": Case(
        "s = SplitToSequence(x, n) i = Constant<value_int=1>() y = SequenceAt(s, i)",
        {"x": X, "n": np.array([2, 3])}, lambda x, _n: x[2:]),
    "split by lengths that are computed": Case(
        "k = Add(n, nought) s = SplitToSequence(x, k) i = Constant<value_int=1>() y = "
        "SequenceAt(s, i)",
        {"x": X, "n": np.array([2, 3])}, lambda x, _n: x[2:]),
    "split into rows": Case(
        "s = SplitToSequence<keepdims=0>(x) i = Constant<value_int=1>() y = SequenceAt(s, i)",
        {"x": X}, lambda x: x[1], dynamic="none"),
    "split into columns, which stay": Case(
        "s = SplitToSequence<axis=-1>(x) i = Constant<value_int=1>() y = SequenceAt(s, i)",
        {"x": X}, lambda x: x[:, 1:2], dynamic="batch"),
    "split and joined": Case(
        "s = SplitToSequence(x) e = Exp(x) c = ConcatFromSequence<axis=0>(s) y = Mul(c, e)",
        {"x": X}, lambda x: x * x.exp()),
    "split and joined by lengths": Case(
        "s = SplitToSequence<axis=1>(x, n) y = ConcatFromSequence<axis=0>(s)",
        {"x": normal(3, 4), "n": np.array([2, 2])}, lambda x, _n: torch.cat([x[:, :2], x[:, 2:]]),
        dynamic="batch"),
    "constructed": Case(
        "s = SequenceConstruct(v, u) i = Constant<value_int=1>() t = SequenceAt(s, i) y = Sin(t)",
        {"v": V, "u": V + 1}, lambda v, u: u.sin() + 0 * v, constants=("v",)),
    "joined": Case(
        "s = SequenceConstruct(v, u) y = ConcatFromSequence<axis=1>(s)",
        {"v": V, "u": V + 1}, lambda v, u: torch.cat([v, u], 1)),
    "stacked": Case(
        "s = SequenceConstruct(v, u) y = ConcatFromSequence<axis=-1, new_axis=1>(s)",
        {"v": V, "u": V + 1}, lambda v, u: torch.stack([v, u], -1)),
    "edited": Case(
        "i = Constant<value_int=1>() e = SequenceEmpty() a = SequenceInsert(e, v) "
        "b = SequenceInsert(a, u) d = SequenceInsert(b, w, i) f = SequenceErase(d, i) "
        "g = SequenceInsert(f, w) h = SequenceErase(g) l = SequenceInsert(h, w) "
        "y = ConcatFromSequence<axis=0>(l)",
        {"v": V, "u": V + 1, "w": W}, lambda v, u, w: torch.cat([v, u, w])),
    "at a place that is computed": Case(
        "s = SequenceConstruct(v, u) t = SequenceAt(s, nought) y = Sin(t)",
        {"v": V, "u": V + 1}, lambda v, u: v.sin() + 0 * u, dynamic="none"),
    "in a branch": Case(
        WHEN + branch("yes", "i = Constant<value_int=1>() s = SequenceConstruct(v, u) "
                      "p = SequenceAt(s, i)", "q = Neg(v)"),
        {"v": V, "u": V + 1}, lambda v, u: u + 0 * v),
    "of rounds": Case(
        "e = SequenceEmpty() l, k = Loop (n, , e, v) <body = b (int64 i, bool c, seq(float) "
        "a, float s)"
        " => (bool d, seq(float) f, float r) { d = Identity(c) r = Sin(s) f = "
        "SequenceInsert(a, r) }> "
        "y = ConcatFromSequence<axis=0>(l)",
        {"v": V, "n": np.array(2)}, lambda v, _n: torch.cat([v.sin(), v.sin().sin()])),
}  # fmt: skip


@cases({**BRANCHES, **LOOPS, **SCANS, **SEQUENCES})
def test_gradients(case, dynamic):
    check(case, dynamic)


BAG = (
    "(int64 i, bool c) => (bool d, float r) { d = Identity(c) j = Add(i, one) "
    "a = Gather(starts, i) b = Gather(starts, j) e = Unsqueeze(a, ax) f = Unsqueeze(b, ax) "
    "g = Slice(k, e, f, ax) h = Gather(x, g) r = ReduceMean<keepdims=0, axes=[0]>(h) }"
)
COLLECTED = (
    "(int64 i, bool c, seq(float) q, float s) => (bool d, seq(float) p, float r) "
    "{ d = Identity(c) r = Sin(s) t = Unsqueeze(r, ax) p = SequenceInsert(q, t) }"
)
COLLECTIONS = {
    "bags": Case(
        "one = Constant<value_int=1>() ax = Constant<value_ints=[0]>() zero = Sub(nought, nought) "
        "two = Constant<value_int=2>() n = Add(nought, two) starts = Add(s, zero) "
        f"on = Constant<value=bool {{1}}>() y = Loop (n, on) <body = b {BAG}>",
        {"x": X, "k": np.array([3, 0, 3, 4, 1]), "s": np.array([0, 2, 5])},
        lambda x, k, _s: torch.stack([x[k[:2]].mean(0), x[k[2:]].mean(0)])),
    "joined": Case(
        "ax = Constant<value_ints=[0]>() two = Constant<value_int=2>() n = Add(nought, two) "
        f"e = SequenceEmpty() q, z = Loop (n, , e, v) <body = b {COLLECTED}> "
        "y = ConcatFromSequence<axis=0>(q)",
        {"v": V}, lambda v: torch.stack([v.sin(), v.sin().sin()])),
    "joined along another axis": Case(
        "ax = Constant<value_ints=[1]>() two = Constant<value_int=2>() n = Add(nought, two) "
        f"e = SequenceEmpty() q, z = Loop (n, , e, v) <body = b {COLLECTED}> "
        "y = ConcatFromSequence<axis=-2>(q)",
        {"v": V}, lambda v: torch.stack([v.sin(), v.sin().sin()], 1)),
    "stacked": Case(
        "ax = Constant<value_ints=[0]>() two = Constant<value_int=2>() n = Add(nought, two) "
        f"e = SequenceEmpty() q, z = Loop (n, , e, v) <body = b {COLLECTED}> "
        "y = ConcatFromSequence<axis=2, new_axis=1>(q)",
        {"v": V}, lambda v: torch.stack([v.sin()[None], v.sin().sin()[None]], 2)),
}  # fmt: skip


@cases(COLLECTIONS)
def test_what_rounds_collect(case, dynamic):
    check(case, dynamic)


DROPOUT = "u = Constant<value_float=0.5>() on = Constant<value=bool {1}>() "
DRAWN = {
    "branch": DROPOUT
    + WHEN
    + branch("yes", "g = Mul(v, w) p, mask = Dropout(g, u, on)", "q = Neg(v)"),
    "loop": DROPOUT
    + TWICE
    + loop("two", "", "v", STEP + "m = Mul(s, w) r, mask = Dropout(m, u, on) }"),
    "scan": DROPOUT
    + "rows = Expand(v, sizes) k = Reshape(rows, sizes) y = Scan <body = b (float s, float r) "
    "=> (float t) { m = Mul(s, w) t, mask = Dropout(m, u, on) }, num_scan_inputs=1> (v, k)",
}


@pytest.mark.parametrize("text", DRAWN.values(), ids=DRAWN)
def test_what_is_drawn_is_drawn_once(text):
    """Where the result is 0, the gradient is; elsewhere the result is a product of its factors."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> m (int64 nought, int64[3] sizes) => '
        f"(float loss, float[40,50] y) {{ {text} loss = ReduceSum<keepdims=0>(y) }}"
    )
    size = (40, 50)
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name)
        for name, value in {"v": 1 + np.abs(normal(*size)), "w": np.full(size, 0.5)}.items()
    )
    parameters = graphopt.parameters(model).matching("v", "w")
    optimizer = graphopt.RMSProp(parameters, decay=0.0, learning_rate=0.1)
    session = graphopt.Session(graphopt.training_graph(model, "loss", optimizer))
    v = session.state["v"]
    y = session.step({"nought": np.array(0), "sizes": np.array([2, *size])})["y"]
    times = 1 if "If" in text else 2
    assert 0.2 < np.mean(y == 0) < 0.8
    np.testing.assert_allclose(np.sqrt(session.state["mean_square.v"]), np.abs(y / v), rtol=1e-5)
    np.testing.assert_allclose(
        np.sqrt(session.state["mean_square.w"]), np.abs(times * y / 0.5), rtol=1e-5
    )


TRAINED = {
    **{
        operator: (
            (
                "m (float[T,N,3] x) => (float[N,4] y) "
                f"{{ , h = {layer}<hidden_size=4{more}>(x, W, R) y = Squeeze(h, ax) }}"
            ),
            {"W": normal(1, gates * 4, 3), "R": normal(1, gates * 4, 4), "ax": np.array([0])},
        )
        for operator, layer, gates, more in (
            ("Scan", "RNN", 1, ""),
            ("LstmLayer", "LSTM", 4, ""),
            ("GruLayer", "GRU", 3, ", linear_before_reset=1"),
        )
    },
    "If": (
        (
            "m (float[N,3] x, bool c) => (float[N,2] y) { h = MatMul(x, w) y = If (c) "
            "<then_branch = t () => (float[N,2] a) { a = Add(h, b) }, "
            "else_branch = e () => (float[N,2] q) { q = Tanh(h) }> }"
        ),
        {"w": normal(3, 2), "b": normal(2)},
    ),
}


@pytest.mark.parametrize("operator", TRAINED)
def test_a_graph_with_them_is_verified_and_exported(operator, tmp_path):
    text, arrays = TRAINED[operator]
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in arrays.items()
    )
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.01)
    graph = graphopt.training_graph(model, "mse", optimizer)
    assert sum(node.op_type.startswith(operator) for node in graph.model.graph.node) == 2
    assert {carried.input for carried in graph.carried} == overwritable(graph.model, graph.carried)
    inspection = graphopt.inspect(graph.model)
    assert not inspection.hazards
    assert graphopt.verify(graph.model).verified
    graphopt.export_on_device(model, loss="mse", optimizer=optimizer, directory=tmp_path)
    assert (tmp_path / "training_model.onnx").exists()
