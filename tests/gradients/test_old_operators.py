"""Operators that have changed: a model of any opset is trained as what it meant in that opset.

The right values come from NumPy, by the documentation of the opset, or from ONNX Runtime, which
runs models of opset 7 and later as they are.
"""

import itertools
import re

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import graphopt
from graphopt.gradients import prepare
from graphopt.versions import MIN_OPSET
from tests.helpers.gradient_oracle import normal

RUNTIME = None  # the oracle

ARRAYS = {
    "x": normal(2, 3, 3),
    "wide": normal(2, 3, 4),
    "matrix": normal(3, 4),
    "image": normal(1, 2, 4, 4),
    "deep": normal(1, 8, 2, 2),
    "even": normal(1, 2, 6, 6),
    "series": normal(5, 2, 4),
    "true": np.random.default_rng(0).random((2, 3, 3)) < 0.5,
    "grid": np.tanh(normal(1, 3, 3, 2)),
    "channels": normal(2, 4, 3),
}
X, WIDE, IMAGE = ARRAYS["x"], ARRAYS["wide"], ARRAYS["image"]
CONSTANTS = {
    "c": normal(3, seed=1),
    "one": normal(1, seed=1),
    "two": np.array([1.5, -2.0], np.float32),
    "square": normal(2, 3, seed=1),
    "t": np.array([True, False, True]),
    "w": normal(3, 4, seed=1),
    "scale": normal(2, seed=1),
    "shift": normal(2, seed=2),
    "mean": normal(2, seed=3),
    "variance": np.abs(normal(2, seed=4)) + 0.5,
    "each": np.ones((2, 4, 4), np.float32),
    "sizes": np.array([1, 3], np.float32),
    "times": np.array([2], np.float32),
    "first": np.array([1], np.float32),
    "repeats": np.array([1, 2, 1]),
    "k": np.array([2]),
    "indices": np.array([2, 0]),
    "targets": np.array([0, 3, 1]),
    "pairs": np.array([[0, 1], [1, 2]]),
    "up": np.array([1, 1, 2, 2], np.float32),
    "odd": np.array([1, 1, 1.7, 1.7], np.float32),
    "down": np.array([1, 1, 0.6, 0.6], np.float32),
    "mixed": np.array([1, 1, 0.6, 1.7], np.float32),
    "none": np.zeros(0, np.float32),
    "back": np.array([-1]),
    "far": np.array([-1000]),
    "last": np.array([2]),
    "ends": np.array([1, 2]),
    "filler": np.float32(0.7),
    "kernel": normal(2, 3, 3, 3),
    "boxes": np.array([[0, 0, 3, 3], [1, 0, 2.5, 3]], np.float32),
    "batch": np.array([0, 0]),
    "wl": normal(1, 12, 4) / 2,
    "rl": normal(1, 12, 3) / 2,
    "bl": normal(1, 24) / 2,
    "wg": normal(1, 9, 4) / 2,
    "rg": normal(1, 9, 3) / 2,
    "bg": normal(1, 18) / 2,
    "wr": normal(1, 3, 4) / 2,
    "rr": normal(1, 3, 3) / 2,
    "br": normal(1, 6) / 2,
}
C, SQUARE, T = CONSTANTS["c"], CONSTANTS["square"], CONSTANTS["t"]
GIVEN = [CONSTANTS[name].reshape(2, 1, 1) for name in ("scale", "shift", "mean", "variance")]


def normalized(mean, variance):
    return (IMAGE - mean) / np.sqrt(variance + 1e-5) * GIVEN[0] + GIVEN[1]


NORM = np.sqrt((IMAGE**2).sum((2, 3), keepdims=True))
BY_GIVEN = normalized(*GIVEN[2:])
BY_BATCH = normalized(IMAGE.mean((2, 3), keepdims=True), IMAGE.var((2, 3), keepdims=True))
MEMBERS = "(image, scale, shift, mean, variance)"


def flattened(function, axis):
    """What a function of rows makes of all axes from one on."""
    rows = WIDE.reshape(int(np.prod(WIDE.shape[:axis])), -1).astype(np.float64)
    return function(rows).reshape(WIDE.shape)


def softmax(rows):
    powers = np.exp(rows - rows.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


ROWS = {
    "Softmax": softmax,
    "LogSoftmax": lambda rows: np.log(softmax(rows)),
    "Hardmax": lambda rows: (rows == rows.max(1, keepdims=True)) * 1.0,
}
PAIRS = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": lambda a, b: a**b,
}
TRUTHS = {"And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor, "Equal": np.equal}
IN_PLACE = {
    "Abs": np.abs,
    "Ceil": np.ceil,
    "Elu": lambda x: np.where(x < 0, np.exp(x) - 1, x),
    "Exp": np.exp,
    "Floor": np.floor,
    "HardSigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "LeakyRelu": lambda x: np.where(x < 0, 0.01 * x, x),
    "Log": np.log,
    "Neg": np.negative,
    "Reciprocal": np.reciprocal,
    "Relu": lambda x: np.maximum(x, 0),
    "Selu": lambda x: 1.0507 * np.where(x > 0, x, 1.6732 * (np.exp(x) - 1)),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Sqrt": np.sqrt,
    "Tanh": np.tanh,
}
SEVERAL = {
    "Max": np.maximum,
    "Mean": lambda a, b: (a + b) / 2,
    "Min": np.minimum,
    "Sum": np.add,
}
POSITIVE = "p = Exp(x)"  # before operators that take no negative numbers

PLACE = "coordinate_transformation_mode"
WINDOW = "kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]"


def p_relu(slope):
    return np.where(X < 0, X * slope, X)


# By the opset and the text of the model; what it computes is called y.
CASES = {
    **{(o, f"{POSITIVE} y = {n}<broadcast=1, axis=1>(p, c)"): f(np.exp(X), C[:, None])
       for n, f in PAIRS.items() for o in (1, 6)},
    **{(6, f"{POSITIVE} y = {n}<broadcast=1, axis=-2>(p, c)"): f(np.exp(X), C[:, None])
       for n, f in PAIRS.items()},
    **{(6, f"{POSITIVE} y = {n}<broadcast=1, axis=0>(p, square)"): f(np.exp(X), SQUARE[..., None])
       for n, f in PAIRS.items()},
    **{(6, f"{POSITIVE} y = {n}<broadcast=1>(p, c)"): f(np.exp(X), C) for n, f in PAIRS.items()},
    (6, "y = Add<broadcast=1>(x, one)"): X + CONSTANTS["one"],
    (6, "y = Mul(x, x)"): X * X,
    **{(6, f"b = {n}<broadcast=1, axis=1>(true, t) y = Cast<to=1>(b)"):
       f(ARRAYS["true"], T[:, None]) * 1.0 for n, f in TRUTHS.items()},
    (6, "b = Less<broadcast=1, axis=1>(x, c) y = Cast<to=1>(b)"): (C[:, None] > X) * 1.0,
    (6, "b = Greater<broadcast=1, axis=1>(x, c) y = Cast<to=1>(b)"): (C[:, None] < X) * 1.0,
    **{(o, "y = Gemm<broadcast=1, transB=1>(matrix, w, c)"):
       ARRAYS["matrix"] @ CONSTANTS["w"].T + C for o in (1, 6)},
    **{(o, "y = PRelu(x, c)"): p_relu(C[:, None]) for o in (1, 6)},
    (6, "y = PRelu(x, one)"): p_relu(CONSTANTS["one"]),
    (7, "y = PRelu(x, c)"): p_relu(C),
    **{(1, f"{POSITIVE} y = {n}<consumed_inputs=[0]>(p)"): f(np.exp(X))
       for n, f in IN_PLACE.items()},
    **{(1, f"y = {n}<consumed_inputs=[0]>(x)"): f(X) for n, f in IN_PLACE.items()
       if n not in ("Log", "Sqrt")},
    **{(1, f"n = Neg(x) y = {n}<consumed_inputs=[0, 0]>(x, n)"): f(X, -X)
       for n, f in SEVERAL.items()},
    (6, "y = Selu(x)"): RUNTIME,
    (1, "i = Cast<to=\"INT32\">(x) y = Cast<to=\"FLOAT\">(i)"): np.trunc(X),
    (6, "i = Cast<to=6>(x) y = Cast<to=1>(i)"): np.trunc(X),
    (1, "y = Clip<min=-0.5, max=0.5>(x)"): X.clip(-0.5, 0.5),
    (6, "y = Clip<min=-0.5>(x)"): X.clip(-0.5),
    (6, "y = Clip<max=0.5>(x)"): X.clip(None, 0.5),
    (1, "y = Concat(x, x)"): np.concatenate([X, X], 1),
    (1, "y = Pad<paddings=[0,0,1,0,0,2], value=1.5>(x)"):
       np.pad(X, ((0, 0), (0, 0), (1, 2)), constant_values=1.5),
    (2, "y = Pad<pads=[0,0,1,0,0,2], mode=\"reflect\">(x)"):
       np.pad(X, ((0, 0), (0, 0), (1, 2)), "reflect"),
    (1, "y, rest = Split<axis=2>(wide, sizes)"): WIDE[..., :1],
    (2, "y, rest = Split<axis=2, split=[1,3]>(wide)"): WIDE[..., :1],
    (2, "y, rest = Split<axis=2>(wide)"): WIDE[..., :2],
    (11, "y, rest = Split<axis=-1, split=[1,3]>(wide)"): WIDE[..., :1],
    (1, "y = Reshape<shape=[0,-1]>(x)"): X.reshape(2, 9),
    (13, "y = Reshape(x, back)"): X.ravel(),
    (1, "y = Tile(x, times, first)"): np.tile(X, (1, 2, 1)),
    (6, "y = Tile(x, repeats)"): np.tile(X, (1, 2, 1)),
    (1, "y = Slice<axes=[1,2], starts=[1,0], ends=[3,-1]>(x)"): X[:, 1:3, :-1],
    (10, "y = Slice(x, back, far, last, back)"): X[..., ::-1],
    (1, "y, i = TopK<k=2, axis=2>(x)"): -np.sort(-X, 2)[..., :2],
    (10, "y, i = TopK(x, k)"): -np.sort(-X, 2)[..., :2],
    (1, "y = Squeeze<axes=[0]>(image)"): IMAGE[0],
    (1, "y = Unsqueeze<axes=[0,2]>(x)"): X[None, :, None],
    (11, "y = Squeeze<axes=[-4]>(image)"): IMAGE[0],
    (11, "y = Unsqueeze<axes=[-1]>(x)"): X[..., None],
    (1, "y = LpPool<kernel_shape=[4,4], p=2.0>(image)"): NORM,
    (1, "y = GlobalLpPool<p=2.0>(image)"): NORM,
    (11, "y = LpPool<kernel_shape=[2,2], p=2>(image)"): RUNTIME,
    **{(o, f"y = {n}<axes=[1], keepdims=0>(x)"): f(X, 1) for o in (1, 12)
       for n, f in {"ReduceSum": np.sum, "ReduceMean": np.mean, "ReduceMax": np.max,
                    "ReduceMin": np.min, "ReduceProd": np.prod}.items()},
    **{(11, f"y = {n}<keepdims=0>(x)"): RUNTIME
       for n in ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare")},
    (11, f"{POSITIVE} y = ReduceLogSum<axes=[-1]>(p)"): RUNTIME,
    **{(o, f"y = {n}{axis}(wide)"): flattened(f, a) for n, f in ROWS.items() for o in (1, 11)
       for axis, a in (("", 1), ("<axis=0>", 0), ("<axis=1>", 1), ("<axis=2>", 2))},
    **{(11, f"y = {n}<axis=-2>(wide)"): flattened(f, 1) for n, f in ROWS.items()},
    **{(o, f"y = BatchNormalization<is_test=1{more}>{MEMBERS}"): BY_GIVEN
       for o, more in ((1, ", consumed_inputs=[0,0,0,1,1]"), (6, ""))},
    **{(o, f"y = BatchNormalization{MEMBERS}"): BY_GIVEN for o in (7, 9, 14)},
    **{(o, f"y = BatchNormalization{MEMBERS}"): BY_BATCH for o in (6,)},
    **{(o, f"y, m, v, sm, sv = BatchNormalization{MEMBERS}"): BY_BATCH for o in (6, 7, 9, 13)},
    (9, f"y, m, v = BatchNormalization{MEMBERS}"): BY_BATCH,
    (1, "y = InstanceNormalization<consumed_inputs=[0,0,0]>(image, scale, shift)"): BY_BATCH,
    **{(o, f"y = Dropout<is_test=1{more}>(x)"): X
       for o, more in ((1, ", consumed_inputs=[0]"), (6, ""))},
    **{(o, "y = Dropout<ratio=0.5>(x)"): X for o in (7, 10)},
    **{(o, "y = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1], strides=[2,2]>(image)"): RUNTIME
       for o in (7, 10, 11, 19)},
    **{(o, f"y = AveragePool<{WINDOW}, ceil_mode=1, count_include_pad={i}>(even)"): RUNTIME
       for o in (10, 19) for i in (0, 1)},
    (7, "y = MaxPool<kernel_shape=[3,3], strides=[2,2]>(image)"): RUNTIME,
    (8, "y = MaxPool<kernel_shape=[2,2], pads=[1,1,0,0]>(image)"): RUNTIME,
    (10, "y = MaxPool<kernel_shape=[2,2], strides=[3,3], ceil_mode=1>(image)"): RUNTIME,
    (7, "y = ConvTranspose<auto_pad=\"SAME_UPPER\", strides=[2,2]>(image, kernel)"): RUNTIME,
    (1, "y = Upsample<height_scale=2.0, width_scale=2.0>(image)"): IMAGE.repeat(2, 2).repeat(2, 3),
    **{(7, f'y = Upsample<scales=[1.0,1.0,{s},{s}], mode="{m}">(image)'): RUNTIME
       for s in (2.0, 1.5) for m in ("nearest", "linear")},
    **{(o, f'y = {n}<mode="{m}">(image, {s})'): RUNTIME for m in ("nearest", "linear")
       for o, n, ss in ((9, "Upsample", ("up", "odd")), (10, "Resize", ("up", "odd", "down")))
       for s in ss},
    (10, 'y = Resize<mode="linear">(image, mixed)'): RUNTIME,
    **{(o, f'y = Resize<mode="{m}", {PLACE}="{c}">(image, none, mixed)'): RUNTIME
       for o in (11, 13, 18) for m in ("nearest", "linear", "cubic")
       for c in ("half_pixel", "asymmetric", "align_corners")},
    (18, 'y = Resize<mode="linear", antialias=1>(image, , down)'): RUNTIME,
    (7, "y = DepthToSpace<blocksize=2>(deep)"): RUNTIME,
    (7, "i = ArgMax<axis=2>(x) y = Cast<to=1>(i)"): RUNTIME,
    (11, "y = GatherND(x, pairs)"): RUNTIME,
    (10, "y = Mod<fmod=1>(x, filler)"): RUNTIME,
    (9, "y = MeanVarianceNormalization(image)"): RUNTIME,
    (12, "l = LogSoftmax<axis=1>(matrix) y = NegativeLogLikelihoodLoss(l, targets)"): RUNTIME,
    (12, "y = SoftmaxCrossEntropyLoss(matrix, targets)"): RUNTIME,
    (7, "y, h, d = LSTM<hidden_size=3, clip=0.6>(series, wl, rl, bl)"): RUNTIME,
    **{(7, f"y = GRU<hidden_size=3, linear_before_reset={r}>(series, wg, rg, bg)"): RUNTIME
       for r in (0, 1)},
    (7, "y = RNN<hidden_size=3>(series, wr, rr, br)"): RUNTIME,
    (18, "y = GroupNormalization<num_groups=2>(channels, scale, shift)"): RUNTIME,
    **{(16, f'y = GridSample<mode="{m}">(image, grid)'): RUNTIME
       for m in ("bilinear", "nearest", "bicubic")},
    **{(o, "y = RoiAlign<output_height=2, output_width=2, sampling_ratio=2>(image, boxes, batch)"):
       RUNTIME for o in (10, 16)},
    (18, "y = Pad(x, ends, , last)"): np.pad(X, ((0, 0), (0, 0), (1, 2))),
    (18, "y, rest = Split<axis=2, num_outputs=2>(wide)"): WIDE[..., :2],
    (18, "y, rest = Split<axis=1, num_outputs=2>(wide)"): WIDE[:, :2],
}  # fmt: skip
BEFORE_7 = {
    "GRU-3": ("y = GRU<hidden_size=3, output_sequence=1>(series, wg, rg, bg)", 3),
    "GRU-1": ("y = GRU<hidden_size=3, output_sequence=1>(series, wg, rg, bg)", 1),
    "LSTM": ("y = LSTM<hidden_size=3, output_sequence=1>(series, wl, rl, bl)", 1),
    "RNN": ("y = RNN<hidden_size=3, output_sequence=1>(series, wr, rr, br)", 1),
    "AveragePool": ("y = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1]>(image)", 1),
}
"""What ONNX Runtime computes the same at opset 7."""


def model(text, opset):
    ir_version = 10 if opset > 18 else 8
    text = f"m () => () {{ {text} z = Identity(y) }}"
    parsed = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}]> {text}'
    )
    read = {name for node in parsed.graph.node for name in node.input}
    parsed.graph.input.extend(
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in ARRAYS.items()
        if name in read
    )
    parsed.graph.initializer.extend(
        numpy_helper.from_array(a, name) for name, a in CONSTANTS.items() if name in read
    )
    parsed.graph.output.append(helper.make_tensor_value_info("z", 1, None))
    return parsed


def run(proto):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    (y,) = session.run(["z"], {info.name: ARRAYS[info.name] for info in session.get_inputs()})
    return y


def expected_by_the_runtime(proto):
    try:
        return run(proto)
    except Exception:  # noqa: BLE001 - some have no kernel in this version
        return ReferenceEvaluator(proto).run(
            ["y"], {i.name: ARRAYS[i.name] for i in proto.graph.input}
        )[0]


@pytest.mark.parametrize(("opset", "text"), CASES, ids=str)
def test_what_is_trained_is_what_was_meant(opset, text):
    proto = model(text, opset)
    before = proto.SerializeToString()
    want = CASES[opset, text]
    want = expected_by_the_runtime(proto) if want is RUNTIME else want
    prepared, _ = prepare(proto, [])
    got = run(ir.to_proto(prepared))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("name", BEFORE_7)
def test_what_has_not_changed_since(name):
    text, opset = BEFORE_7[name]
    newer = model(text.replace(", output_sequence=1", ""), 7)
    got = run(ir.to_proto(prepare(model(text, opset), [])[0]))
    np.testing.assert_allclose(got, run(newer), rtol=1e-6, atol=1e-6)


DROPPED = model("y = Dropout<ratio=0.25>(x)", 6)


def test_dropout_that_is_in_training_mode_by_default():
    prepared = ir.to_proto(prepare(DROPPED, [])[0])
    y = np.stack([run(prepared) for _ in range(5)])  # in one of them, nothing may be dropped
    kept = y != 0
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(y[kept], np.stack([X] * 5)[kept] / 0.75, rtol=1e-6)


REFUSED = {
    "spatial=0": (
        "y = BatchNormalization<spatial=0>(image, each, each, each, each)",
        7,
        "BatchNormalization 'y': it has a statistic for each element",
    ),
    "a mask that is read": (
        "d, y = Dropout(x)",
        6,
        "Dropout 'd': it is in training mode, and its output 'y' is read",
    ),
    "both ways": (
        "y = Resize(image, mixed)",
        10,
        "Resize 'y': it shrinks along one axis and grows along another",
    ),
    "an unknown rank": (
        "r = Reshape(x, ends) s = Shape(x) q = Reshape(r, s) a = Expand(q, s) y = PRelu(a, c)",
        6,
        "PRelu 'y': the number of axes of 'a' is unknown",
    ),
    "an odd norm": ("y = LpPool<kernel_shape=[2,2], p=2.5>(image)", 1, "its p is 2.5"),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(("text", "opset", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(text, opset, message):
    with pytest.raises(
        ValueError, match=f"{message}.*opset {opset}.*export it again with opset 17"
    ):
        prepare(model(text, opset), [])


def test_a_slope_of_each_channel_is_trained():
    """An open batch, and as many channels as there are in the last axis."""
    proto = model("y = PRelu(x, c)", 6)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    optimizer = graphopt.RMSProp(graphopt.parameters(proto), learning_rate=1e-9)
    session = graphopt.Session(graphopt.training_graph(proto, "mse", optimizer))
    want = p_relu(C[:, None])
    outputs = session.step({"x": X, "labels": want})
    np.testing.assert_allclose(outputs["z"], want, rtol=1e-6)
    assert outputs["loss"] < 1e-12


def interface(schema):
    """What a node of an operator looks like, and what it means where it says nothing."""
    return (
        [formal.name for formal in schema.inputs],
        len(schema.outputs),
        {n: helper.get_attribute_value(a.default_value) if a.default_value.type else a.required
         for n, a in schema.attributes.items()},
    )  # fmt: skip


def changes():
    """Operators of ONNX, each with the opsets between which its interface was changed."""
    history = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            history.setdefault(schema.name, {})[schema.since_version] = schema
    for name, schemas in history.items():
        versions = sorted(schemas)
        for before, after in itertools.pairwise(versions):
            changed = interface(schemas[before]) != interface(schemas[after])
            if changed and after <= MIN_OPSET:
                yield name, before, after


ELSEWHERE = {
    "ArgMax": "`select_last_index` is new, and says what it was",
    "ArgMin": "as ArgMax",
    "Constant": "more kinds of values",
    "DequantizeLinear": "`axis` is new, and says what it was",
    "QuantizeLinear": "as DequantizeLinear",
    "Scan": "of opset 8, which the converter refuses",
    "ScatterElements": "`reduction` is new, and says what it was",
    "ScatterND": "as ScatterElements",
    "Shape": "`start` and `end` are new, and say what it was",
}


@pytest.mark.any_runtime
def test_each_change_has_a_case():
    texts = [*CASES, *((opset, text) for text, opset in BEFORE_7.values())]
    missing = [
        f"{name} {before} -> {after}"
        for name, before, after in changes()
        if name not in ELSEWHERE
        and not any(
            before <= opset < after and re.search(rf"\b{name}[<(]", text) for opset, text in texts
        )
    ]
    assert missing == []
