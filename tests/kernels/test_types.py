"""Kernels for other types than float32, against the bodies of their functions, bit for bit."""

import itertools
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt import DynamicLossScale, Parameter, RMSProp, Session, kernels
from graphopt.update import core, functions
from tests.helpers.environments import needs_kernels
from tests.helpers.kernel_sessions import CORES, CPU, EXTRAS, SAME_BITS, assert_agree, options, run
from tests.helpers.variants import ATTRIBUTES, SCALARS

SIZES = [(), (0,), (7,), (3, 700), (33000,)]
TYPES = {
    "float64": TensorProto.DOUBLE,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
}
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 6e-8, 3e-8, 65519.0, 65520.0, 3e38, 1e300]


def variant_of(dtype, **made):
    return core.Variant(**made, float64=dtype == "float64", float16=dtype == "float16")


def typed(dtype):
    """Each core in the type, and each of what comes before it and after it with one."""
    types = {"float64": dtype == "float64", "float16": dtype == "float16"}
    most = [replace(CORES[-1 - at % 2], **extras) for at, extras in enumerate(EXTRAS)]
    return [replace(one, **types) for one in dict.fromkeys([*CORES, *most])]


def types_of(variant, gradients):
    """The dtypes of the operands: states of float16 parameters are float32."""
    real = "float64" if variant.float64 else "float32"
    found = dict.fromkeys(variant.inputs, real) | dict.fromkeys(("on", "gate"), "bool")
    if variant.float16:
        found |= {"w": "float16", "g": gradients}
    return found


def model(called, shapes, gradients="float32"):
    """A node for each variant and shape."""
    inputs, nodes, outputs = {}, [], []
    for (index, shape), variant in itertools.product(enumerate(shapes), called):
        types = types_of(variant, gradients)
        given = [n if n in SCALARS else f"{n}.{index}" for n in variant.inputs]
        for name, full in zip(variant.inputs, given, strict=True):
            kind = TensorProto.BOOL if name == "on" else TYPES[types[name]]
            inputs[full] = helper.make_tensor_value_info(
                full, kind, [] if name in SCALARS else shape
            )
        made = [f"{name}.{variant.name}.{index}" for name in variant.outputs]
        attributes = {name: attribute(variant, name) for name in variant.attributes}
        nodes.append(helper.make_node(variant.name, given, made, domain="graphopt", **attributes))
        outputs += [
            helper.make_tensor_value_info(full, TYPES[types[name.removesuffix("1")]], shape)
            for name, full in zip(variant.outputs, made, strict=True)
        ]
    return helper.make_model(
        helper.make_graph(nodes, "updates", list(inputs.values()), outputs),
        functions=core.functions_of(called, [], 17),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("graphopt", 1)],
        ir_version=8,
    )


def attribute(variant, name):
    number = ATTRIBUTES[name]
    return numpy_helper.from_array(np.array(number)) if variant.float64 else number


def feeds(proto, seed, *, special, on=True):
    rng = np.random.default_rng(seed)
    arrays = {}
    for info in proto.graph.input:
        kind = info.name.split(".")[0]
        dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        if kind in SCALARS:
            arrays[info.name] = np.asarray(on if kind == "on" else SCALARS[kind].astype(dtype))
            continue
        array = np.asarray(rng.normal(scale=0.5, size=shape))
        array = np.abs(array) if kind == "s" else array
        if special:
            array = np.where(rng.random(shape) < 0.2, rng.choice(SPECIAL, shape), array)
        with np.errstate(over="ignore"):
            arrays[info.name] = np.array(array.astype(dtype))
        if special and kind in ("g", "s", "a"):
            arrays[info.name].reshape(-1)[::7] = 1
    return arrays


def session(proto, made):
    return onnxruntime.InferenceSession(proto.SerializeToString(), made, providers=CPU)


def assert_kernels_are_bodies(proto, called, on=True):
    assert set(kernels.called(proto, CPU)) == {variant.name for variant in called}
    fused, bodies = session(proto, options(proto)), session(proto, options())
    for seed, special in enumerate((False, True) if SAME_BITS else (False,)):
        arrays = feeds(proto, seed, special=special, on=on)
        assert_agree(run(fused, arrays), run(bodies, arrays))


@needs_kernels
@pytest.mark.parametrize(
    ("dtype", "gradients"), [("float64", ""), ("float16", "float16"), ("float16", "float32")]
)
def test_the_kernel_is_the_body(dtype, gradients):
    """That they all are in float32, of which this is the code once more, is tested with those."""
    called = typed(dtype)
    assert_kernels_are_bodies(model(called, [(33, 40)], gradients), called)


@needs_kernels
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("on", [True, False])
def test_sizes_and_masks(dtype, chunked, on):
    shapes = [(1, 7), (5, 64), (3, 12000)] if chunked else SIZES
    called = [
        variant_of(dtype, centered=True, momentum="Momentum", mask=True, chunked=chunked),
        variant_of(dtype, weight_decay="DecoupledWeightDecay", mask=True, chunked=chunked),
    ]
    proto = model(called, shapes, "float16")
    assert_kernels_are_bodies(proto, called, on)
    if not on:
        arrays = feeds(proto, 1, special=True, on=False)
        for name, array in run(session(proto, options(proto, threads=2)), arrays).items():
            kind, _, index = name.split(".")
            old = arrays[f"{kind.removesuffix('1')}.{index}"]
            np.testing.assert_array_equal(array, old, err_msg=name)


@needs_kernels
def test_float16_is_rounded_as_the_runtime_does():
    """Every number, what lies halfway to the next, and what is just beside that; half away, too."""
    proto = model([variant_of("float16")], [(65536 * 6,)])
    every_half = np.arange(65536, dtype=np.uint16).view(np.float16)
    wide = every_half.astype(np.float32)
    with np.errstate(all="ignore"):
        middle = (wide + np.nextafter(every_half, np.float16(np.inf)).astype(np.float32)) / 2
        below, above = (np.nextafter(middle, np.float32(to)) for to in (-np.inf, np.inf))
    others = np.random.default_rng(0).integers(0, 2**32, 2 * 65536, dtype=np.uint32)
    numbers = np.concatenate([wide, middle, below, above, others.view(np.float32)])
    # Of a mean square that is 1 - epsilon after the step, the gradient alone is left, divided by 1.
    proto.graph.node[0].attribute[0].f = 1.0
    proto.graph.node[0].attribute[1].f = 0.0
    moved = {"w.0": np.zeros(numbers.size, np.float16), "g.0": numbers}
    moved |= {"s.0": np.ones(numbers.size, np.float32), "lr": np.asarray(np.float32(-1))}
    fused = run(session(proto, options(proto)), moved)["w1.RMSPropFloat16.0"]
    body = run(session(proto, options()), moved)["w1.RMSPropFloat16.0"]
    with np.errstate(all="ignore"):
        finite = np.isfinite(numbers * numbers)
        np.testing.assert_array_equal(fused[finite], numbers.astype(np.float16)[finite])
    np.testing.assert_array_equal(fused, body)
    widened = {**moved, "w.0": np.resize(every_half, numbers.size), "g.0": np.zeros_like(numbers)}
    fused = run(session(proto, options(proto)), widened)["w1.RMSPropFloat16.0"]
    np.testing.assert_array_equal(fused, widened["w.0"])


STAGES = {
    "WeightedSumFloat64": (("x", "y"), ("a", "b"), "sum"),
    "WeightedSumMaskFloat64": (("x", "y"), ("a", "b", "on"), "sum"),
    "Foreach2MovingAverageFloat64": (("m0", "m1", "v0", "v1"), ("gate",), "m"),
}


@needs_kernels
@pytest.mark.parametrize("name", STAGES)
def test_stages_in_float64(name):
    tensors, scalars, _ = STAGES[name]
    rng = np.random.default_rng(0)
    arrays = {n: rng.choice([*SPECIAL, *rng.standard_normal(99)], 2000) for n in tensors}
    arrays |= {n: np.array(True) if n in ("on", "gate") else np.array(0.3) for n in scalars}
    given = {"decay": numpy_helper.from_array(np.array(0.7))} if "Moving" in name else {}
    outputs = ["p", "q"] if "Foreach" in name else ["p"]
    proto = stage(name, arrays, outputs, given)
    assert kernels.called(proto, CPU) == (name,)
    fused, bodies = (run(session(proto, made), arrays) for made in (options(proto), options()))
    assert_agree(fused, bodies)


def stage(name, arrays, outputs, given):
    kinds = {np.dtype(np.float64): TensorProto.DOUBLE, np.dtype(bool): TensorProto.BOOL}
    graph = helper.make_graph(
        [helper.make_node(name, list(arrays), outputs, domain="graphopt", **given)],
        "stage",
        [helper.make_tensor_value_info(n, kinds[a.dtype], a.shape) for n, a in arrays.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs],
    )
    return helper.make_model(
        graph,
        functions=functions.with_stages([], [name], 17),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("graphopt", 1)],
        ir_version=8,
    )


@needs_kernels
@pytest.mark.parametrize("bad", [None, np.inf, -np.inf, np.nan], ids=str)
def test_all_finite_in_float64(bad):
    """Numbers that float32 does not hold are finite."""
    for place in (0, 1, 40000):
        arrays = {"a": np.full(3, -1e300), "b": np.full(40001, 1e300)}
        if bad is not None:
            arrays["b"][place] = bad
        proto = stage("AllFinite2Float64", arrays, ["finite"], {})
        assert run(session(proto, options(proto)), arrays)["finite"] == (bad is None)


@needs_kernels
@pytest.mark.parametrize("layout", ["chunks", "foreach"])
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_sessions(dtype, layout):
    """Whole graphs with the kernels and without, of which each has what it needs."""
    shapes = {"a": (300, 120), "b": (50,), "c": ()}
    rng = np.random.default_rng(0)
    start = {n: np.array(rng.standard_normal(s)).astype(dtype) for n, s in shapes.items()}
    optimizer = RMSProp(
        [Parameter(n, s, dtype) for n, s in shapes.items()],
        0.003,
        momentum=0.9,
        centered=True,
        average=0.9,
        clip_norm=1.0,
        loss_scale=DynamicLossScale(16.0),
    )
    graph = graphopt.update_graph(optimizer, layout=layout, accumulation=2)
    sessions = [Session(graph, start, kernels=with_kernels) for with_kernels in (True, False)]
    assert sessions[0].kernels
    assert not sessions[1].kernels
    if layout == "chunks":
        (name,) = (n for n in sessions[0].kernels if "RMSProp" in n)
        assert name.endswith(dtype.capitalize())
    for _ in range(5):
        gradients = {f"{n}_grad": rng.standard_normal(s).astype(dtype) for n, s in shapes.items()}
        gradients = {n: np.asarray(g) for n, g in gradients.items()}
        for one in sessions:
            one.step(gradients)
    assert_agree(*(one.state for one in sessions))


@needs_kernels
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("g", "graphopt.RMSPropFloat16: input 'g' is neither float32 nor float16"),
        ("w", r"Type 'tensor\(double\)' of input parameter \(w.0\)"),
    ],
)
def test_other_types_are_refused(wrong, told):
    proto = model([variant_of("float16")], [(7,)])
    for info in proto.graph.input:
        if info.name == f"{wrong}.0":
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    arrays = feeds(proto, 0, special=False)
    with pytest.raises(Exception, match=told):
        session(proto, options(proto)).run(None, arrays)


def test_cuda_runs_the_bodies():
    """What no GPU has run; inside of the body, the function in float32 is a kernel there."""
    for name in ("RMSPropFloat16", "RMSPropFloat64", "Foreach2RMSPropFloat64", "AllFinite2Float64"):
        assert not kernels.has(name, "CUDAExecutionProvider")
    for name in ("Foreach2RMSPropFloat16", "WeightedSumFloat16", "MovingAverageFloat64"):
        assert not kernels.has(name)
