"""LSTM, GRU and RNN, against ONNX Runtime's kernels and PyTorch in float64."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch.nn import functional

import graphopt
from graphopt.gradients import differentiate, prepare
from graphopt.kernels import called, library
from tests.helpers.environments import typical
from tests.helpers.gradient_oracle import normal

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
WEIGHTS = ("W", "R", "B", "P")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
FUNCTIONS = {
    "Affine": lambda x, alpha, beta: alpha * x + beta,
    "Elu": functional.elu,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "LeakyRelu": lambda x, alpha=0.01: functional.leaky_relu(x, alpha),
    "Relu": torch.relu,
    "ScaledTanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "Sigmoid": torch.sigmoid,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Tanh": torch.tanh,
    "tanh": torch.tanh,
    "ThresholdedRelu": lambda x, alpha=1.0: functional.threshold(x, alpha, 0.0),
}


@dataclass(frozen=True)
class Case:
    """One node.

    Attributes:
        op: The operator.
        given: The optional inputs that it has.
        attributes: Its attributes, save hidden_size.
        parameters: Those of each activation function, for the oracle.
        lengths: The length of each sequence.
        steps, batch, features, hidden: Sizes.
        outputs: How many outputs it has.
        opset: Of the model.
        kernel: Whether ONNX Runtime has a kernel that computes it.
    """

    op: str
    given: Sequence[str] = ("B",)
    attributes: Mapping[str, object] = field(default_factory=dict)
    parameters: Sequence[Mapping[str, float]] = ()
    lengths: Sequence[int] = ()
    steps: int = 3
    batch: int = 2
    features: int = 4
    hidden: int = 3
    outputs: int = 3
    opset: int = 17
    kernel: bool = True

    @property
    def backwards(self) -> Sequence[bool]:
        name = self.attributes.get("direction", "forward")
        return {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[name]

    @property
    def layout(self) -> int:
        return self.attributes.get("layout", 0)

    def names(self) -> list[str]:
        return ["Y", "Y_h", "Y_c"][: min(self.outputs, 3 if self.op == "LSTM" else 2)]

    def arrays(self) -> dict[str, np.ndarray]:
        directions, rows = len(self.backwards), GATES[self.op] * self.hidden
        state = (directions, self.batch, self.hidden)
        shapes = {
            "X": (self.steps, self.batch, self.features),
            "W": (directions, rows, self.features),
            "R": (directions, rows, self.hidden),
            "B": (directions, 2 * rows),
            "initial_h": state,
            "initial_c": state,
            "P": (directions, 3 * self.hidden),
        }
        arrays = {
            name: normal(*shape, seed=seed)
            for seed, (name, shape) in enumerate(shapes.items())
            if name in ("X", "W", "R", *self.given)
        }
        if self.layout:
            for name in {"X", "initial_h", "initial_c"} & set(arrays):
                arrays[name] = arrays[name].swapaxes(0, 1).copy()
        if self.lengths:
            arrays["sequence_lens"] = np.array(self.lengths, np.int32)
        return {name: arrays[name] for name in INPUTS if name in arrays}


def oracle(case, arrays):
    """The outputs in PyTorch, one sample and one step after the other, and the leaves."""
    leaves = {
        name: torch.tensor(array).double().requires_grad_(name != "sequence_lens")
        for name, array in arrays.items()
    }
    swap = (lambda t: t.transpose(0, 1)) if case.layout else (lambda t: t)
    x = swap(leaves["X"])
    zeros = torch.zeros(len(case.backwards), case.batch, case.hidden, dtype=torch.float64)
    initial = [
        swap(leaves[name]) if name in leaves else zeros for name in ("initial_h", "initial_c")
    ]
    lengths = case.lengths or [case.steps] * case.batch
    y, h, c = [], [], []
    for d, backwards in enumerate(case.backwards):
        cell = {"LSTM": lstm, "GRU": gru, "RNN": rnn}[case.op](case, leaves, d)
        for n, length in enumerate(lengths):
            state = [value[d, n] * (length > 0) for value in initial]
            outputs = [torch.zeros(case.hidden, dtype=torch.float64)] * case.steps
            for t in reversed(range(length)) if backwards else range(length):
                state = cell(x[t, n], *state)
                outputs[t] = state[0]
            y.append(torch.stack(outputs))
            h.append(state[0])
            c.append(state[1])
    shape = (len(case.backwards), case.batch, -1)
    y = torch.stack(y).reshape(*shape[:2], case.steps, case.hidden)
    y = y.permute(1, 2, 0, 3) if case.layout else y.permute(2, 0, 1, 3)
    states = [swap(torch.stack(value).reshape(shape)) for value in (h, c)]
    return leaves, dict(zip(("Y", "Y_h", "Y_c"), (y, *states), strict=True))


def operands(case, leaves, d):
    rows = GATES[case.op] * case.hidden
    bias = leaves["B"][d] if "B" in leaves else torch.zeros(2 * rows, dtype=torch.float64)
    names = case.attributes.get("activations", DEFAULTS[case.op] * len(case.backwards))
    count = len(DEFAULTS[case.op])
    clip = case.attributes.get("clip", np.inf)

    def function(name, parameters, bound):
        return lambda x: FUNCTIONS[name](x.clamp(-bound, bound), **parameters)

    parameters = [*case.parameters, *[{}] * len(names)]
    of_direction = slice(d * count, (d + 1) * count)
    bounds = (clip, clip, np.inf)  # the last function of an LSTM is not one of a gate
    functions = [
        function(*each)
        for each in zip(names[of_direction], parameters[of_direction], bounds, strict=False)
    ]
    return leaves["W"][d], leaves["R"][d], bias[:rows], bias[rows:], functions


def lstm(case, leaves, d):
    w, r, wb, rb, (f_, g_, h_) = operands(case, leaves, d)
    p = leaves["P"][d] if "P" in leaves else torch.zeros(3 * case.hidden, dtype=torch.float64)
    p_i, p_o, p_f = p.split(case.hidden)

    def cell(x, h, c):
        i, o, f, g = (w @ x + r @ h + wb + rb).split(case.hidden)
        i, f = f_(i + p_i * c), f_(f + p_f * c)
        if case.attributes.get("input_forget"):
            f = 1 - i
        c = f * c + i * g_(g)
        return f_(o + p_o * c) * h_(c), c

    return cell


def gru(case, leaves, d):
    w, r, wb, rb, (f_, g_) = operands(case, leaves, d)
    h_size = case.hidden

    def cell(x, h, _):
        x_z, x_r, x_n = (w @ x + wb).split(h_size)
        h_z, h_r, h_n = (r @ h + rb).split(h_size)
        z, reset = f_(x_z + h_z), f_(x_r + h_r)
        if not case.attributes.get("linear_before_reset"):
            n = g_(x_n + r[2 * h_size :] @ (reset * h) + rb[2 * h_size :])
        else:
            n = g_(x_n + reset * h_n)
        return (1 - z) * n + z * h, h

    return cell


def rnn(case, leaves, d):
    w, r, wb, rb, (f_,) = operands(case, leaves, d)
    return lambda x, h, _: (f_(w @ x + r @ h + wb + rb), h)


def model(case, arrays, batch=None, trained=()):
    """A graph of the node.

    Args:
        case: The node.
        arrays: Its inputs.
        batch: The name of the batch, "" for one without a name, None for its number.
        trained: The inputs that are initializers.
    """
    given = [name if name in arrays else "" for name in INPUTS]
    while not given[-1]:
        given.pop()
    node = helper.make_node(
        case.op, given, case.names(), "cell", hidden_size=case.hidden, **case.attributes
    )
    values, initializers = [], []
    for name, array in arrays.items():
        if name in trained:
            initializers.append(numpy_helper.from_array(array, name))
            continue
        shape = list(array.shape)
        if batch is not None and name not in WEIGHTS:
            shape[0 if name == "sequence_lens" else 1 - case.layout] = batch or None
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        values.append(helper.make_tensor_value_info(name, kind, shape))
    kind = helper.np_dtype_to_tensor_dtype(arrays["X"].dtype)
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in case.names()]
    graph = helper.make_graph([node], "g", values, outputs, initializers)
    opsets = [helper.make_opsetid("", case.opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def session(proto, *, fused=False):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if fused:
        assert graphopt.register_kernels(options, proto)
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(proto, feeds, *, fused=False):
    needed = {value.name for value in proto.graph.input}
    return session(proto, fused=fused).run(None, {k: v for k, v in feeds.items() if k in needed})


def ways(proto):
    """Whether kernels run functions: both where there are kernels for some, otherwise not."""
    return (False, True) if called(proto, ["CPUExecutionProvider"]) else (False,)


STATES = ("B", "initial_h", "initial_c")
ALL = (*STATES, "P")
LSTM = {
    "plain": Case("LSTM"),
    "no bias": Case("LSTM", ()),
    "reverse": Case("LSTM", attributes={"direction": "reverse"}),
    "bidirectional": Case("LSTM", STATES, {"direction": "bidirectional"}),
    "initial state": Case("LSTM", STATES),
    "initial cell alone": Case("LSTM", ("B", "initial_c")),
    "initial hidden alone": Case("LSTM", ("initial_h",)),
    "peepholes": Case("LSTM", ALL),
    "peepholes, no state": Case("LSTM", ("P",), {"direction": "reverse"}),
    "coupled": Case("LSTM", STATES, {"input_forget": 1}),
    "coupled with peepholes": Case("LSTM", ALL, {"input_forget": 1}),
    "clip": Case("LSTM", STATES, {"clip": 0.5}),
    "clip with peepholes": Case("LSTM", ALL, {"clip": 0.5, "direction": "bidirectional"}),
    "layout": Case("LSTM", STATES, {"layout": 1}, kernel=False),
    "layout, bidirectional": Case(
        "LSTM", ALL, {"layout": 1, "direction": "bidirectional"}, kernel=False
    ),
    "layout, lengths": Case("LSTM", STATES, {"layout": 1}, lengths=(2, 3), kernel=False),
    "lengths": Case("LSTM", STATES, lengths=(1, 3, 2, 0), batch=4),
    "lengths, no state": Case("LSTM", lengths=(1, 3, 2, 0), batch=4),
    "lengths, reverse": Case("LSTM", ALL, {"direction": "reverse"}, lengths=(0, 3, 1), batch=3),
    "lengths, bidirectional": Case("LSTM", (), {"direction": "bidirectional"}, lengths=(1, 2)),
    "Y alone": Case("LSTM", outputs=1),
    "Y and Y_h": Case("LSTM", outputs=2),
    "one step": Case("LSTM", ("B", "P"), steps=1),
    "one step, state": Case("LSTM", ALL, {"direction": "bidirectional"}, steps=1),
    "one of all": Case("LSTM", steps=1, batch=1, features=1, hidden=1),
    "one feature": Case("LSTM", STATES, features=1, hidden=1),
    "twelve steps": Case("LSTM", STATES, {"direction": "bidirectional"}, steps=12),
    "opset 18": Case("LSTM", STATES, {"direction": "bidirectional"}, opset=18),
    "opset 21": Case("LSTM", ALL, {"direction": "bidirectional"}, lengths=(3, 1), opset=21),
    "activations": Case(
        "LSTM",
        ALL,
        {
            "activations": ["HardSigmoid", "ScaledTanh", "Affine"],
            "activation_alpha": [0.3, 1.7, 0.5],
            "activation_beta": [0.4, 0.6, 0.2],
        },
        ({"alpha": 0.3, "beta": 0.4}, {"alpha": 1.7, "beta": 0.6}, {"alpha": 0.5, "beta": 0.2}),
    ),
    "activations of two directions": Case(
        "LSTM",
        STATES,
        {
            "activations": [*("Sigmoid", "Relu", "Tanh"), *("HardSigmoid", "Tanh", "Softsign")],
            "direction": "bidirectional",
        },
    ),
}
GRU = {
    f"{name}, linear_before_reset={before}": Case(
        "GRU",
        **(
            {"given": STATES[:2]}
            | settings
            | {"attributes": {"linear_before_reset": before, **settings.get("attributes", {})}}
        ),
    )
    for before in (0, 1)
    for name, settings in {
        "plain": {"given": ("B",)},
        "no bias": {"given": ()},
        "no bias, state": {"given": ("initial_h",)},
        "reverse": {"attributes": {"direction": "reverse"}},
        "bidirectional": {"attributes": {"direction": "bidirectional"}},
        "clip": {"attributes": {"clip": 0.5}},
        "layout": {
            "attributes": {"layout": 1, "direction": "bidirectional"},
            "kernel": False,
        },
        "lengths": {"lengths": (1, 3, 2, 0), "batch": 4},
        "lengths, bidirectional": {
            "given": ("B",),
            "attributes": {"direction": "bidirectional"},
            "lengths": (1, 3),
        },
        "Y alone": {"outputs": 1},
        "one step": {"given": ("B",), "steps": 1},
        "one of all": {"given": ("B",), "steps": 1, "batch": 1, "features": 1, "hidden": 1},
        "twelve steps": {"steps": 12},
        "opset 21": {"attributes": {"direction": "bidirectional"}, "opset": 21},
        "activations": {"attributes": {"activations": ["HardSigmoid", "Softsign"]}},
    }.items()
}
RNN = {
    "plain": Case("RNN"),
    "no bias": Case("RNN", ()),
    "state": Case("RNN", STATES[:2]),
    "reverse": Case("RNN", STATES[:2], {"direction": "reverse"}),
    "bidirectional": Case("RNN", STATES[:2], {"direction": "bidirectional"}),
    "layout": Case("RNN", STATES[:2], {"direction": "bidirectional", "layout": 1}, kernel=False),
    "clip": Case("RNN", STATES[:2], {"clip": 0.5}),
    "lengths": Case("RNN", STATES[:2], {"direction": "bidirectional"}, lengths=(1, 3)),
    "one step": Case("RNN", steps=1),
    "twelve steps": Case("RNN", steps=12),
    # Without parameters, ONNX Runtime's RNN takes 0 for them, against ONNX.
    "activations": Case(
        "RNN",
        STATES[:2],
        {
            "activations": ["Relu", "HardSigmoid"],
            "activation_alpha": [0.6, 0.6],
            "activation_beta": [0.3, 0.3],
            "direction": "bidirectional",
        },
        ({}, {"alpha": 0.6, "beta": 0.3}),
    ),
}
ACTIVATIONS = {
    f"{name}{parameters or ''}": Case(
        "GRU",
        STATES[:2],
        {
            "activations": ["Sigmoid", name],
            **{f"activation_{key}": [value] for key, value in parameters.items()},
        },
        ({}, parameters),
    )
    for name, tried in {
        "Affine": ({"alpha": 0.6, "beta": 0.3},),
        "Elu": ({}, {"alpha": 0.6}),
        "HardSigmoid": ({}, {"alpha": 0.6}, {"alpha": 0.6, "beta": 0.3}),
        "LeakyRelu": ({}, {"alpha": 0.6}),
        "Relu": ({},),
        "ScaledTanh": ({"alpha": 0.6, "beta": 0.3},),
        "Softplus": ({},),
        "Softsign": ({},),
        "ThresholdedRelu": ({"alpha": 0.6},),
        "tanh": ({},),
    }.items()
    for parameters in tried
} | {
    "ThresholdedRelu": Case(  # ONNX Runtime takes 0 for alpha
        "GRU", attributes={"activations": ["Sigmoid", "ThresholdedRelu"]}, kernel=False
    )
}
CASES = {
    f"{op} {name}": case
    for op, table in (("LSTM", LSTM), ("GRU", GRU), ("RNN", RNN), ("with", ACTIVATIONS))
    for name, case in table.items()
}


ON_EACH_RUNTIME = [
    *("LSTM plain", "LSTM clip with peepholes", "LSTM coupled with peepholes", "LSTM opset 21"),
    *("LSTM layout, bidirectional", "LSTM lengths, reverse", "LSTM activations", "LSTM one step"),
    *("GRU lengths, linear_before_reset=0", "GRU bidirectional, linear_before_reset=1"),
    *("GRU opset 21, linear_before_reset=1", "RNN bidirectional", "RNN lengths", "RNN activations"),
    *(f"with {name}" for name in ACTIVATIONS),
]


@pytest.mark.parametrize("case", typical(CASES, *ON_EACH_RUNTIME))
def test_forward(case):
    arrays = case.arrays()
    proto = model(case, arrays)
    prepared, _ = prepare(proto, WEIGHTS)
    assert not {"LSTM", "GRU", "RNN"} & {node.op_type for node in prepared.graph}
    unrolled = ir.to_proto(prepared)
    onnx.checker.check_model(unrolled, full_check=True)
    got = dict(zip(case.names(), run(unrolled, arrays), strict=True))
    _, expected = oracle(case, arrays)
    for name in case.names():
        np.testing.assert_allclose(got[name], expected[name].detach(), rtol=1e-5, atol=1e-6)
    if case.kernel:
        for name, kernel in zip(case.names(), run(proto, arrays), strict=True):
            np.testing.assert_allclose(got[name], kernel, rtol=1e-5, atol=1e-6, err_msg=name)


def with_gradients(proto, weights, trained):
    """The gradients of a weighted sum of all outputs."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    names = [output.name for output in proto.graph.output]
    for name in names:
        array = weights[f"{name}.weight"]
        model.graph.initializer.append(numpy_helper.from_array(array, f"{name}.weight"))
        product = helper.make_node("Mul", [name, f"{name}.weight"], [f"{name}.weighted"])
        total = helper.make_node("ReduceSum", [f"{name}.weighted"], [f"{name}.sum"], keepdims=0)
        model.graph.node.extend([product, total])
    model.graph.node.append(helper.make_node("Sum", [f"{name}.sum" for name in names], ["loss"]))
    del model.graph.output[:]
    kind = proto.graph.output[0].type.tensor_type.elem_type
    model.graph.output.append(helper.make_tensor_value_info("loss", kind, []))
    prepared, statistics = prepare(model, trained)
    built = differentiate(prepared, trained, prepared.graph.outputs[0], statistics)
    prepared.graph.outputs[:] = [built.gradients[name] for name in trained]
    result = ir.to_proto(prepared)
    onnx.checker.check_model(result)
    assert {node.domain for node in result.graph.node} <= {"", "graphopt"}
    return result


def weights_of(case, arrays, outputs):
    """What the outputs are multiplied by in the loss."""
    return {
        f"{name}.weight": normal(*outputs[name].shape, seed=9).astype(arrays["X"].dtype)
        for name in case.names()
    }


def compare_gradients(case, batch, trained, arrays, tolerance):
    leaves, outputs = oracle(case, arrays)
    weights = weights_of(case, arrays, outputs)
    loss = sum((outputs[n] * torch.tensor(weights[f"{n}.weight"])).sum() for n in case.names())
    expected = torch.autograd.grad(
        loss, [leaves[name] for name in trained], allow_unused=True, materialize_grads=True
    )
    graph = with_gradients(model(case, arrays, batch, trained), weights, trained)
    for fused in ways(graph):
        results = run(graph, arrays, fused=fused)
        for name, want, got in zip(trained, expected, results, strict=True):
            assert got.shape == want.shape, name
            scale = float(want.abs().max())
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale, err_msg=name)
    return graph


@pytest.mark.quick
@pytest.mark.parametrize("case", typical(CASES, *ON_EACH_RUNTIME))
def test_gradients_of_all_operands(case):
    arrays = case.arrays()
    trained = [name for name in arrays if name != "sequence_lens"]
    compare_gradients(case, None, trained, arrays, 5e-6)


DYNAMIC = {
    f"{op} {name}": table[name]
    for op, table, names in (
        ("LSTM", LSTM, ("bidirectional", "initial cell alone", "clip with peepholes")),
        ("LSTM", LSTM, ("layout, bidirectional", "lengths", "lengths, no state", "one step")),
        ("LSTM", LSTM, ("opset 21", "twelve steps")),
        ("GRU", GRU, ("no bias, linear_before_reset=0", "bidirectional, linear_before_reset=1")),
        ("RNN", RNN, ("bidirectional", "layout", "one step")),
    )
    for name in names
}


def check_with_a_batch_of_any_size(case, batch):
    arrays = case.arrays()
    trained = [name for name in arrays if name in WEIGHTS]
    graph = compare_gradients(case, batch, trained, arrays, 5e-6)
    # Only the weights of the loss have a size that may not be that of the batch.
    operators = Counter(node.op_type for node in graph.graph.node)
    assert operators["Compress"] <= len(case.names())


@pytest.mark.parametrize("case", DYNAMIC.values(), ids=DYNAMIC)
def test_gradients_with_a_dynamic_batch(case):
    check_with_a_batch_of_any_size(case, "N")


@pytest.mark.parametrize("name", ["LSTM bidirectional", "LSTM lengths", "RNN layout"])
def test_gradients_with_an_unnamed_batch(name):
    check_with_a_batch_of_any_size(CASES[name], "")


OPEN = {
    f"{op} {name}": table[name]
    for op, table, names in (
        ("LSTM", LSTM, ("plain", "bidirectional", "clip with peepholes", "layout, bidirectional")),
        ("LSTM", LSTM, ("lengths", "lengths, reverse", "initial cell alone", "coupled")),
        ("LSTM", LSTM, ("opset 21", "one step", "Y and Y_h", "activations of two directions")),
        ("GRU", GRU, ("no bias, linear_before_reset=0", "bidirectional, linear_before_reset=1")),
        ("GRU", GRU, ("lengths, bidirectional, linear_before_reset=1",)),
        ("RNN", RNN, ("bidirectional", "layout")),
    )
    for name in names
}


@pytest.mark.parametrize("case", OPEN.values(), ids=OPEN)
def test_gradients_with_any_number_of_steps(case):
    arrays = case.arrays()
    trained = [name for name in arrays if name in (*WEIGHTS, "initial_h", "initial_c")]
    proto = with_open_steps(model(case, arrays, None, trained), case)
    leaves, outputs = oracle(case, arrays)
    weights = {
        f"{name}.weight": normal(*outputs[name].shape, seed=9).astype(np.float32)
        for name in case.names()
    }
    loss = sum((outputs[n] * torch.tensor(weights[f"{n}.weight"])).sum() for n in case.names())
    *expected, x = torch.autograd.grad(loss, [*(leaves[name] for name in trained), leaves["X"]])
    graph = with_gradients(proto, weights, [*trained, "shift"])
    assert scans(graph)
    feeds, expected = arrays | {"shift": np.zeros(case.features, "f")}, [*expected, x.sum((0, 1))]
    for fused in ways(graph):
        got = run(graph, feeds, fused=fused)
        for name, want, one in zip([*trained, "shift"], expected, got, strict=True):
            assert one.shape == want.shape, name
            near = 1e-5 * float(want.abs().max())
            np.testing.assert_allclose(one, want, rtol=0, atol=near, err_msg=name)


SCANNED = {
    name: replace(case, steps=9, lengths=[3 * length for length in case.lengths])
    for name, case in CASES.items()
    if case.steps == 3 and (not name.startswith("with") or name.endswith(("Elu", "Relu")))
}


@pytest.mark.parametrize("case", SCANNED.values(), ids=SCANNED)
def test_gradients_of_a_cell_that_is_scanned(case):
    arrays = case.arrays()
    trained = [name for name in arrays if name != "sequence_lens"]
    graph = compare_gradients(case, None, trained, arrays, 1e-5)
    assert scans(graph) == 2 * len(case.backwards)
    attributes = dict(case.attributes)
    is_usual = case.op == "LSTM" or bool(attributes.pop("linear_before_reset", 0))
    is_usual = is_usual and not case.lengths and "P" not in case.given
    is_usual = is_usual and not attributes.keys() - {"direction", "layout"}
    functions = [node.op_type for node in graph.graph.node if node.domain]
    assert len(functions) == 2 * is_usual * len(case.backwards)
    assert {name.strip("0123456789") for name in functions} <= LAYERS
    assert len(ways(graph)) == 1 + (is_usual and library() is not None)


LAYERS = {
    f"{op}Layer{way}{kind}"
    for op in ("Lstm", "Gru")
    for way in ("", "Reverse")
    for kind in ("", "Gradient")
}


def scans(proto):
    """How many Scans a graph runs, where there are no kernels."""
    bodies = {function.name: function.node for function in proto.functions}
    nodes = [inner for node in proto.graph.node for inner in bodies.get(node.op_type) or [node]]
    return [node.op_type for node in nodes].count("Scan")


def with_open_steps(proto, case):
    """The same for any number of steps, with something that is trained added to the input."""
    (x,) = (value for value in proto.graph.input if value.name == "X")
    x.type.tensor_type.shape.dim[case.layout].dim_param = "T"
    proto.graph.node[0].input[0] = "shifted"
    proto.graph.node.insert(0, helper.make_node("Add", ["X", "shift"], ["shifted"]))
    shift = numpy_helper.from_array(np.zeros(case.features, np.float32), "shift")
    proto.graph.initializer.append(shift)
    return proto


# PyTorch's order of the gates, in ONNX's.
ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def layers_of(module, op, steps, features, **attributes):
    """The layers of a PyTorch module, with a batch of any size; the parameters are in float32."""
    directions = 2 if module.bidirectional else 1
    hidden = module.hidden_size

    def stacked(name, layer):
        parts = []
        for suffix in ("", "_reverse")[:directions]:
            value = getattr(module, f"{name}_l{layer}{suffix}").detach()
            gates = torch.stack([value.chunk(GATES[op])[i] for i in ORDER[op]])
            parts.append(gates.flatten(0, 1))
        return torch.stack(parts).float().numpy()

    nodes, initializers, x = [], [], "X"
    for layer in range(module.num_layers):
        bias = [stacked(f"bias_{kind}", layer) for kind in ("ih", "hh")]
        arrays = {
            f"W{layer}": stacked("weight_ih", layer),
            f"R{layer}": stacked("weight_hh", layer),
            f"B{layer}": np.concatenate(bias, axis=1),
        }
        initializers += [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        direction = "bidirectional" if directions == 2 else "forward"
        attributes = attributes | {"hidden_size": hidden, "direction": direction}
        nodes.append(helper.make_node(op, [x, *arrays], [f"Y{layer}"], **attributes))
        x = "Y" if layer == module.num_layers - 1 else f"X{layer + 1}"
        nodes.append(helper.make_node("Transpose", [f"Y{layer}"], [f"T{x}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"T{x}", "flat"], [x]))
    initializers.append(numpy_helper.from_array(np.array([0, 0, -1]), "flat"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("X", 1, [steps, "N", features])],
        [helper.make_tensor_value_info("Y", 1, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize(
    ("op", "layers", "steps"), [("LSTM", 2, 12), ("GRU", 2, 12), ("RNN", 3, 5)]
)
def test_layers_of_pytorch(op, layers, steps, bidirectional):
    torch.manual_seed(0)
    module = getattr(torch.nn, op)(
        4, 3, num_layers=layers, bidirectional=bidirectional, dtype=torch.float64
    )
    for parameter in module.parameters():
        parameter.data = parameter.data.float().double()
    x = normal(steps, 5, 4)
    y, _ = module(torch.tensor(x).double())
    weights = {"Y.weight": normal(*y.shape, seed=1)}
    (y * torch.tensor(weights["Y.weight"])).sum().backward()
    attributes = {"linear_before_reset": 1} if op == "GRU" else {}
    proto = layers_of(module, op, steps, 4, **attributes)
    trained = [t.name for t in proto.graph.initializer if t.name != "flat"]
    feeds = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer} | {"X": x}
    graph = with_gradients(proto, weights, trained)
    for parameter in module.parameters():
        parameter.data = parameter.grad
    expected = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in layers_of(module, op, steps, 4, **attributes).graph.initializer
    }
    for fused in ways(graph):
        for name, gradient in zip(trained, run(graph, feeds, fused=fused), strict=True):
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=5e-6 * scale)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_float64(op):
    case = Case(op, STATES if op == "LSTM" else STATES[:2], {"clip": 1.5}, lengths=(2, 3))
    arrays = {
        name: array.astype(np.float64) if array.dtype == np.float32 else array
        for name, array in case.arrays().items()
    }
    trained = [name for name in arrays if name != "sequence_lens"]
    compare_gradients(case, None, trained, arrays, 1e-12)
    compare_gradients(case, "N", [name for name in trained if name in WEIGHTS], arrays, 1e-12)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_weights_that_multiply_zeros_have_gradient_zero(op):
    case = Case(op, steps=1)
    arrays = case.arrays()
    weights = {f"{name}.weight": np.ones(1, np.float32) for name in case.names()}
    graph = with_gradients(model(case, arrays, "N", ["R"]), weights, ["R"])
    (gradient,) = run(graph, arrays)
    assert gradient.shape == arrays["R"].shape
    assert not gradient.any()


@pytest.mark.parametrize("opset", [17, 21])
def test_an_empty_batch(opset):
    case = Case("GRU", ("B",), opset=opset)
    arrays = case.arrays()
    proto = ir.to_proto(prepare(model(case, arrays, "N", WEIGHTS), WEIGHTS)[0])
    y, h = run(proto, {"X": np.zeros((3, 0, 4), np.float32)})
    assert y.shape == (3, 1, 0, 3)
    assert h.shape == (1, 0, 3)


def test_outputs_that_are_left_out_are_not_computed():
    case = Case("LSTM", ("B",))
    arrays = case.arrays()
    proto = model(case, arrays)
    whole = run(ir.to_proto(prepare(proto, WEIGHTS)[0]), arrays)
    proto.graph.node[0].output[:] = ["", "", "Y_c"]
    del proto.graph.output[:2]
    prepared, _ = prepare(proto, WEIGHTS)
    assert "Transpose" not in {node.op_type for node in prepared.graph}
    np.testing.assert_array_equal(run(ir.to_proto(prepared), arrays), whole[2:])


def test_hidden_size_may_be_left_out():
    case = Case("RNN")
    arrays = case.arrays()
    proto = model(case, arrays)
    expected = run(proto, arrays)
    del proto.graph.node[0].attribute[:]
    for got, want in zip(
        run(ir.to_proto(prepare(proto, WEIGHTS)[0]), arrays), expected, strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(("op", "most"), [("LSTM", 10), ("GRU", 10), ("RNN", 2)])
def test_few_nodes_a_step(op, most):
    def count(steps, provider):
        case = Case(op, attributes={} if op != "GRU" else {"linear_before_reset": 1}, steps=steps)
        proto = model(case, case.arrays(), "N")
        return len(prepare(proto, WEIGHTS, provider=provider)[0].graph)

    def on_cuda(steps):
        return count(steps, "CUDAExecutionProvider")

    assert on_cuda(20) - on_cuda(10) == 10 * most
    assert on_cuda(30) - on_cuda(20) == 10 * most
    assert count(1000, "CPUExecutionProvider") == count(10, "CPUExecutionProvider") < on_cuda(10)


def test_weights_of_a_cell_that_is_scanned_are_summed_by_one_product():
    case = Case("LSTM", STATES, {"input_forget": 1}, steps=9)
    arrays = case.arrays()
    graph = with_gradients(
        model(case, arrays, "N", WEIGHTS),
        weights_of(case, arrays, oracle(case, arrays)[1]),
        ("W", "R"),
    )
    forward, backward = (node for node in graph.graph.node if node.op_type == "Scan")
    bodies = [ir.from_proto(scan).attributes["body"].as_graph() for scan in (forward, backward)]
    counts = [Counter(node.op_type for node in body) for body in bodies]
    assert [count["Gemm"] for count in counts] == [1, 1]
    assert counts[1]["Sigmoid"] + counts[1]["Tanh"] == 0


def altered(case, **attributes):
    """The model of a case with other attributes."""
    proto = model(case, case.arrays())
    for name, value in attributes.items():
        kept = [a for a in proto.graph.node[0].attribute if a.name != name]
        del proto.graph.node[0].attribute[:]
        proto.graph.node[0].attribute.extend([*kept, helper.make_attribute(name, value)])
    return proto


def of_steps(steps, **attributes):
    proto = altered(Case("LSTM"), **attributes)
    axis = attributes.get("layout", 0)
    dim = proto.graph.input[0].type.tensor_type.shape.dim[axis]
    dim.Clear()
    if isinstance(steps, int):
        dim.dim_value = steps
    elif steps:
        dim.dim_param = steps
    return proto


def of_sizes(**sizes):
    """An LSTM of three units of whose inputs some have another last size."""
    case = Case("LSTM", STATES)
    arrays = case.arrays()
    for name, size in sizes.items():
        arrays[name] = np.zeros((*arrays[name].shape[:-1], size), np.float32)
    return model(case, arrays)


ERRORS = {
    "no steps": (of_steps(0), "'X' has no time steps"),
    "direction": (altered(Case("GRU"), direction="sideways"), "got direction 'sideways'"),
    "weights of the input": (
        altered(Case("GRU"), hidden_size=4),
        r"its input 'W' has shape \[1, 9, 4\], which does not fit its hidden_size 4",
    ),
    "weights of the state": (of_sizes(R=1), r"its input 'R' has shape \[1, 12, 1\], which"),
    "the state": (of_sizes(initial_h=1), r"its input 'initial_h' has shape \[1, 2, 1\], which"),
    "the state of the cell": (of_sizes(initial_c=1), "'initial_c' .* leave proj_size out"),
    "activation": (
        altered(Case("GRU"), activations=["Sigmoid", "Mish"]),
        "GRU 'cell': got the activation 'Mish', expected one of affine, elu",
    ),
    "activations": (altered(Case("LSTM"), activations=["Tanh"]), "got 1 activations, expected 3"),
    "alpha": (
        altered(Case("RNN"), activations=["Affine"], activation_alpha=[1.0]),
        "'Affine' has no default; give activation_beta",
    ),
}


@pytest.mark.parametrize(("proto", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(proto, message):
    with pytest.raises(ValueError, match=message):
        prepare(proto, WEIGHTS)
