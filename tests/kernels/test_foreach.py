"""Functions for several parameters: the kernels against the bodies, and these against one each."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import graphopt
from graphopt import kernels
from graphopt.update import core, functions
from tests.helpers.environments import needs_kernels
from tests.helpers.variants import ATTRIBUTES, SCALARS as ONE_SCALARS, TYPICAL

SHAPES = [(3, 5), (), (7,), (40, 1000), (0,), (1,)]
VARIANTS = [replace(variant, tensors=len(SHAPES)) for variant in TYPICAL if not variant.chunked]
SCALARS = ONE_SCALARS | {"gate": np.array(True)}


def ids(variant):
    return variant.name


def arrays(variant, seed):
    rng = np.random.default_rng(seed)
    made = {}
    for name in variant.inputs:
        if name in SCALARS:
            made[name] = SCALARS[name]
            continue
        kind, index = name.split("_")
        shape = SHAPES[int(index)]
        flat = shape if kind in "wg" else (int(np.prod(shape)),)
        array = rng.standard_normal(flat).astype(np.float32)
        made[name] = np.asarray(np.abs(array) + 2 if kind == "s" else array)
    return made


def model(function, inputs, outputs, attributes):
    types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(bool): TensorProto.BOOL}
    node = helper.make_node(function, list(inputs), outputs, domain="graphopt", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, types[a.dtype], a.shape) for n, a in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("graphopt", 1)],
        ir_version=8,
    )


def run(proto, feeds, *, with_kernels):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if with_kernels:
        wanted = [node.op_type for node in proto.graph.node]
        assert all(map(kernels.has, wanted))
        assert kernels.register(options, wanted)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def with_bodies(proto, bodies):
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    whole.functions.extend(bodies)
    return whole


@needs_kernels
@pytest.mark.parametrize("variant", VARIANTS, ids=ids)
def test_the_kernel_computes_what_the_body_computes(variant):
    feeds = arrays(variant, 0)
    attributes = {name: ATTRIBUTES[name] for name in variant.attributes}
    proto = model(variant.name, feeds, variant.outputs, attributes)
    bodies = core.functions_of([variant], [], 17)
    got = run(proto, feeds, with_kernels=True)
    expected = run(with_bodies(proto, bodies), feeds, with_kernels=False)
    for name, array in expected.items():
        assert got[name].shape == array.shape
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS, ids=ids)
def test_the_body_computes_each_as_one(variant):
    feeds, one = arrays(variant, 1), variant.one
    attributes = {name: ATTRIBUTES[name] for name in variant.attributes}
    proto = model(variant.name, feeds, variant.outputs, attributes)
    several = run(
        with_bodies(proto, core.functions_of([variant], [], 17)), feeds, with_kernels=False
    )
    for index in range(len(SHAPES)):
        own = {n: feeds[n] if n in SCALARS else feeds[f"{n}_{index}"].ravel() for n in one.inputs}
        alone = run(
            with_bodies(
                model(one.name, own, one.outputs, attributes), core.functions_of([one], [], 17)
            ),
            own,
            with_kernels=False,
        )
        for name, array in alone.items():
            np.testing.assert_array_equal(several[f"{name}_{index}"].ravel(), array)


@needs_kernels
def test_moving_averages():
    rng = np.random.default_rng(0)
    old, new = ([rng.standard_normal(n).astype(np.float32) for n in (3, 0, 5000)] for _ in "ab")
    feeds = {f"a{i}": a for i, a in enumerate(old)} | {f"v{i}": v for i, v in enumerate(new)}
    feeds["gate"] = np.array(True)
    name, outputs = "Foreach3MovingAverage", ["m0", "m1", "m2"]
    proto = model(name, feeds, outputs, {"decay": 0.9})
    bodies = functions.with_stages([], [name], 17)
    got = run(proto, feeds, with_kernels=True)
    body = run(with_bodies(proto, bodies), feeds, with_kernels=False)
    for index, (a, v) in enumerate(zip(old, new, strict=True)):
        expected = a.astype(np.float64) * 0.9 + v.astype(np.float64) * 0.1
        np.testing.assert_allclose(got[f"m{index}"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got[f"m{index}"], body[f"m{index}"])


@needs_kernels
@pytest.mark.parametrize("with_kernels", [True, False])
def test_ready(with_kernels):
    feeds = {"a": np.zeros((2, 3), np.float32), "b": np.array(True), "c": np.zeros(0, np.float32)}
    proto = model("Ready3", feeds, ["ready"], {})
    if not with_kernels:
        proto = with_bodies(proto, functions.with_stages([], ["Ready3"], 17))
    ready = run(proto, feeds, with_kernels=with_kernels)["ready"]
    assert ready.dtype == bool
    assert ready.shape == ()
    assert ready


@pytest.mark.parametrize(
    "name", ["Foreach0RMSProp", "Foreach2", "ForeachRMSProp", "Ready0", "Ready", "Ready2x"]
)
def test_names_of_no_kernel(name):
    assert not kernels.has(name)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_graph_of_the_layout_trains_as_any_other(groups, dtype):
    rng = np.random.default_rng(0)
    parameters = [
        graphopt.Parameter(f"p{index}", shape, dtype)
        for index, shape in enumerate([(3, 4), (5,), (7, 11), (1,)])
    ]
    initial = {p.name: rng.standard_normal(p.shape).astype(dtype) for p in parameters}
    gradients = [
        {f"{p.name}_grad": rng.standard_normal(p.shape).astype(dtype) for p in parameters}
        for _ in range(3)
    ]
    given = parameters
    if groups == 2:
        given = [
            {"params": parameters[:3], "weight_decay": 0.1, "grad_centralization": True},
            {"params": parameters[3:], "lr": [0.1, 0.05, 0.02]},
        ]
    optimizer = graphopt.RMSProp(given, learning_rate=0.05, momentum=0.9)
    states = []
    for layout in ("chunks", "foreach"):
        session = graphopt.Session(graphopt.update_graph(optimizer, layout=layout), initial)
        for feeds in gradients:
            assert session.step(feeds)["updated"]
        states.append(session.state)
    for name, value in states[0].items():
        np.testing.assert_array_equal(states[1][name], value, err_msg=name)
