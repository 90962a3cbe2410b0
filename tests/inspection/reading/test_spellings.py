"""RMSProp as others write it is recognised, and what is not RMSProp is not taken for it."""

import itertools

import numpy as np
import onnx
import pytest

import graphopt

pytestmark = pytest.mark.any_runtime

SQUARES = {
    "g * g": "gg = Mul(g, g)",
    "g ** 2": "two = Constant<value = float {2.0}>()  gg = Pow(g, two)",
}
AVERAGES = {
    "decay * s + rest * gg": "o = Mul(s, rho)  n = Mul(gg, rest)  s1 = Add(o, n)",
    "lerp": "l = Sub(gg, s)  m = Mul(l, rest)  s1 = Add(s, m)",
    "lerp, other way": "l = Sub(s, gg)  m = Mul(l, rest)  s1 = Sub(s, m)",
    "addcmul": "o = Mul(s, rho)  n = Mul(rest, g)  ngg = Mul(n, g)  s1 = Add(o, ngg)",
}
ROOTS = {
    "inside": "r = Add(s1, eps)  d = Sqrt(r)",
    "inside, power": "r = Add(eps, s1)  h = Constant<value = float {0.5}>()  d = Pow(r, h)",
    "outside": "r = Sqrt(s1)  d = Add(r, eps)",
}
STEPS = {
    "lr * g / d": "lg = Mul(lr, g)  u = Div(lg, d)  w1 = Sub(w, u)",
    "lr * (g / d)": "q = Div(g, d)  u = Mul(q, lr)  w1 = Sub(w, u)",
    "g * (lr / d)": "q = Div(lr, d)  u = Mul(g, q)  w1 = Sub(w, u)",
    "reciprocal": "q = Reciprocal(d)  p = Mul(g, q)  u = Mul(p, lr)  w1 = Sub(w, u)",
    "one over": "q = Div(one, d)  p = Mul(q, g)  u = Mul(lr, p)  w1 = Sub(w, u)",
    "w + (-u)": "lg = Mul(g, lr)  u = Div(lg, d)  v = Neg(u)  w1 = Add(w, v)",
    "negative rate": "q = Div(g, d)  u = Mul(q, minus)  w1 = Add(w, u)",
}


def model(body: str, states="float[4] s", results="float[4] s1") -> onnx.ModelProto:
    return onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
    step (float[4] w, {states}, float[4] g) => (float[4] w1, {results})
    <float rho = {{0.9}}, float rest = {{0.1}}, float eps = {{1e-7}}, float lr = {{0.02}},
     float minus = {{-0.02}}, float one = {{1.0}}, float beta = {{0.5}}> {{ {body} }}""")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("square", "average", "root", "step"),
    [
        (square, average, root, step)
        for square, average, root, step in itertools.product(SQUARES, AVERAGES, ROOTS, STEPS)
        if not (average == "addcmul" and square != "g * g")
    ],
)
def test_spellings(square, average, root, step):
    squared = "" if average == "addcmul" else SQUARES[square]
    found = graphopt.inspect(
        model("\n".join([squared, AVERAGES[average], ROOTS[root], STEPS[step]]))
    )
    assert found.optimizer.name == "RMSProp"
    assert found.optimizer.decay == 0.9
    assert found.optimizer.epsilon == 1e-7
    assert found.optimizer.epsilon_inside_root == (root != "outside")
    (parameter,) = found.parameters
    assert (parameter.name, parameter.learning_rate, parameter.gradient) == ("w", 0.02, "g")
    assert [hazard for hazard in found.hazards if hazard.level != "note"] == []


def test_they_compute_the_same():
    """What is recognised is also what it computes."""
    for average, root, step in itertools.product(AVERAGES, ROOTS, STEPS):
        body = "\n".join([SQUARES["g * g"], AVERAGES[average], ROOTS[root], STEPS[step]])
        done = graphopt.verify(model(body), steps=1)
        assert done.verified, (average, root, step, done.differences)


ADAM = """a = Mul(m, beta)  b = Mul(g, beta)  m1 = Add(a, b)
gg = Mul(g, g)  o = Mul(s, rho)  n = Mul(gg, rest)  s1 = Add(o, n)
r = Sqrt(s1)  d = Add(r, eps)  q = Div(m1, d)  u = Mul(q, lr)  w1 = Sub(w, u)"""
ADAGRAD = """gg = Mul(g, g)  s1 = Add(s, gg)
r = Sqrt(s1)  d = Add(r, eps)  q = Div(g, d)  u = Mul(q, lr)  w1 = Sub(w, u)"""
SIGN = "q = Sign(g)  u = Mul(q, lr)  w1 = Sub(w, u)  s1 = Mul(s, rho)"
# The body, the states and their new values.
OTHERS = {
    "Adam": (ADAM, "float[4] s, float[4] m", "float[4] s1, float[4] m1"),
    "Adagrad": (ADAGRAD, "float[4] s", "float[4] s1"),
    "signSGD": (SIGN, "float[4] s", "float[4] s1"),
}


def bound(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Let what ends in 1 feed the input without it."""
    info = graph.training_info.add()
    for value in graph.graph.output:
        entry = info.update_binding.add()
        entry.key, entry.value = value.name[:-1], value.name
    return graph


@pytest.mark.parametrize("name", OTHERS)
def test_other_optimizers_are_not_known(name):
    body, states, results = OTHERS[name]
    found = graphopt.inspect(bound(model(body, states, results)))
    assert found.optimizer.name == "unknown"
    assert found.parameters == ()


@pytest.mark.parametrize(
    ("body", "momentum", "decay"),
    [
        ("u = Mul(g, lr) w1 = Sub(w, u) s1 = Identity(s)", 0.0, 0.0),
        ("a = Mul(s, beta) s1 = Add(a, g) u = Mul(s1, lr) w1 = Sub(w, u)", 0.5, 0.0),
        ("k = Mul(w, rest) d = Add(g, k) u = Mul(d, lr) w1 = Sub(w, u) s1 = Identity(s)", 0.0, 0.1),
    ],
)
def test_gradient_descent(body, momentum, decay):
    found = graphopt.inspect(bound(model(body)))
    assert (found.optimizer.name, found.optimizer.momentum) == ("SGD", momentum)
    (parameter,) = found.parameters
    assert (parameter.name, parameter.learning_rate, parameter.weight_decay) == ("w", 0.02, decay)
    assert [hazard for hazard in found.hazards if hazard.level == "error"] == []


def test_a_network_that_subtracts_a_product_is_no_optimizer():
    halves = ", ".join(["0.5"] * 16)
    graph = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
    net (float[4,4] x) => (float[4,4] y) <float[4,4] k = {{{halves}}}, float c = {{0.1}}>
    {{ h = MatMul(x, k)  p = Mul(h, c)  y = Sub(x, p) }}""")
    found = graphopt.inspect(graph)
    assert found.model.kind == "model"
    assert found.optimizer is None


def test_a_gradient_that_ends_in_a_division_has_no_loss_scale():
    """A mean over a batch, in the gradient of one of two parameters."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    step (float[4] w, float[4] s, float[4] g, float[1] v, float[1] t, float[1] h)
        => (float[4] w1, float[4] s1, float[1] v1, float[1] t1)
    <float rho = {0.9}, float rest = {0.1}, float eps = {1e-7}, float lr = {0.02},
     float n = {32.0}> {
        gg = Mul(g, g)  o = Mul(s, rho)  p = Mul(gg, rest)  s1 = Add(o, p)
        r = Add(s1, eps)  d = Sqrt(r)  lg = Mul(g, lr)  u = Div(lg, d)  w1 = Sub(w, u)
        k = Div(h, n)
        kk = Mul(k, k)  ov = Mul(t, rho)  pv = Mul(kk, rest)  t1 = Add(ov, pv)
        rv = Add(t1, eps)  dv = Sqrt(rv)  lk = Mul(k, lr)  uv = Div(lk, dv)  v1 = Sub(v, uv)
    }"""
    found = graphopt.inspect(bound(onnx.parser.parse_model(text)))
    assert found.optimizer.loss_scale == 1.0
    assert {p.name: p.gradient for p in found.parameters} == {"w": "g", "v": "k"}
    assert [hazard.kind for hazard in found.hazards] == []


def test_weight_decay_that_was_multiplied_by_the_rate():
    """As constant folding leaves it."""
    for body in ("k = Mul(w, c)  b = Sub(w, k)", "b = Mul(w, c1)"):
        text = f"""<ir_version: 8, opset_import: ["": 17]>
        step (float[4] w, float[4] s, float[4] g) => (float[4] w1, float[4] s1)
        <float rho = {{0.9}}, float rest = {{0.1}}, float eps = {{1e-7}}, float lr = {{0.02}},
         float c = {{{np.float32(0.02 * 0.05)}}}, float c1 = {{{np.float32(1 - 0.001)}}}> {{
            gg = Mul(g, g)  o = Mul(s, rho)  p = Mul(gg, rest)  s1 = Add(o, p)
            r = Add(s1, eps)  d = Sqrt(r)  lg = Mul(g, lr)  u = Div(lg, d)
            {body}  w1 = Sub(b, u)
        }}"""
        found = graphopt.inspect(onnx.parser.parse_model(text))
        assert found.optimizer.decoupled_weight_decay
        assert found.parameters[0].weight_decay == pytest.approx(0.05, rel=1e-4)
