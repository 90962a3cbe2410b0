"""The fused kernels against the bodies of the functions of the same names, and who uses them."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import graphopt
from graphopt import Parameter, RMSProp, Session, kernels
from graphopt.update import core, functions
from tests.helpers.documents import blocks
from tests.helpers.environments import needs_kernels
from tests.helpers.kernel_sessions import (
    CORES,
    CPU,
    EXTRAS,
    SAME_BITS,
    assert_agree,
    options,
    run,
    run_in_memory_of,
)
from tests.helpers.own_kernels import own_kernels
from tests.helpers.variants import ATTRIBUTES, SCALARS, TYPICAL

SHAPES = [(), (1,), (7,), (0,), (3, 5), (300, 130)]
CHUNKED_SHAPES = [(1, 7), (5, 64), (3, 40000)]
# Larger than what is prepared at once, and no multiple of it.
MATRIX = (33, 40)
# Around what is prepared at once, 1024 elements, and what a thread takes at once, 32768.
SIZES = [1023, 1024, 1025, 2049, 32767, 32768, 32769, 65536, 100001]
SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-40, 1e-38, 3e38, -3e38, 1e20, 1e-20, 1.0],
    np.float32,
)


def variants(extras, chunked=False):
    return [replace(variant, chunked=chunked, **extras) for variant in CORES]


def is_scalar(name):
    return name in SCALARS


def value(name, shape):
    kind = TensorProto.BOOL if name.startswith("on") else TensorProto.FLOAT
    return helper.make_tensor_value_info(name, kind, shape)


def model(called, shapes, *, bodies=True, dtype=TensorProto.FLOAT):
    """A node for each variant and shape; nodes of the same shape read the same inputs."""
    inputs, nodes, outputs = {}, [], []
    for index, shape in enumerate(shapes):
        for variant in called:
            given = [n if is_scalar(n) else f"{n}.{index}" for n in variant.inputs]
            for name, full in zip(variant.inputs, given, strict=True):
                inputs[full] = value(full, [] if is_scalar(name) else shape)
            made = [f"{name}.{variant.name}.{index}" for name in variant.outputs]
            attributes = {name: ATTRIBUTES[name] for name in variant.attributes}
            nodes.append(
                helper.make_node(variant.name, given, made, domain="graphopt", **attributes)
            )
            outputs += [value(name, shape) for name in made]
    if dtype != TensorProto.FLOAT:
        for info in (*inputs.values(), *outputs):
            info.type.tensor_type.elem_type = dtype
    return helper.make_model(
        helper.make_graph(nodes, "updates", list(inputs.values()), outputs),
        functions=core.functions_of(called, [], 17) if bodies else [],
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("graphopt", 1)],
        ir_version=8,
    )


def runtime_session(proto, made):
    return onnxruntime.InferenceSession(proto.SerializeToString(), made, providers=CPU)


def operators(session):
    """The operators that have run in a session with profiling."""
    profile = Path(session.end_profiling())
    events = json.loads(profile.read_text(encoding="utf-8"))
    profile.unlink()
    return {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}


def feeds(proto, seed, *, special, on=True):
    """Random inputs; states are what they may be after some steps."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for info in proto.graph.input:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        kind = info.name.split(".")[0]
        if is_scalar(kind):
            arrays[info.name] = np.asarray(on) if kind == "on" else SCALARS[kind]
            continue
        array = np.asarray(rng.normal(scale=0.5, size=shape)).astype(np.float32)
        if kind == "s":  # now and then below the square of the mean gradient
            array = np.abs(array)
        if special:
            array = np.where(rng.random(shape) < 0.2, rng.choice(SPECIAL, shape), array)
        arrays[info.name] = np.asarray(array, np.float32)
        if special and kind in ("g", "s", "a"):  # now and then a variance of zero
            arrays[info.name].reshape(-1)[::7] = 1
    return arrays


@needs_kernels
def test_each_function_has_a_kernel():
    every = {
        variant.name
        for extras in EXTRAS
        for chunked in (False, True)
        for variant in variants(extras, chunked)
    }
    assert len(every) == 1200
    layers = {
        name
        for name in kernels.names()
        if name.startswith(("Depthwise", "BatchNorm", "Lstm", "Gru", "Turned"))
        or name.endswith("Gradient")
    }
    # test_depthwise.py, test_normalization.py, test_rows.py, test_lstm.py, test_gru.py,
    # test_indices.py, test_selection.py, test_turning.py
    assert len(layers) == 4 + 3 + 5 + 4 + 4 + 2 + 2 + 1
    products = {name for name in kernels.names() if name.startswith("MatMul")}
    assert len(products) in (0, 7)  # test_matmul.py; none where the processor lacks AVX-512
    others = {"WeightedSum", "WeightedSumMask"}
    assert kernels.names() == every | layers | products | others


@needs_kernels
@pytest.mark.parametrize("variant", TYPICAL, ids=lambda variant: variant.name)
def test_threads_and_memory_do_not_matter(variant):
    """The same bits with each number of threads, in the memory of the inputs and elsewhere."""
    proto = model([variant], [(1, size) if variant.chunked else (size,) for size in SIZES])
    arrays = feeds(proto, 0, special=True)
    expected = run(runtime_session(proto, options(proto)), arrays)
    for threads in (1, 2, 4):
        session = runtime_session(proto, options(proto, threads=threads))
        for name, array in run(session, arrays).items():
            assert array.tobytes() == expected[name].tobytes(), (threads, name)
        for name, array in run_in_place(session, arrays).items():
            assert array.tobytes() == expected[name].tobytes(), (threads, name, "in place")


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("masked", [None, True, False], ids=["no mask", "on", "off"])
def test_weighted_sum(masked, threads):
    """That of the body, bit for bit, also in the memory of the first input."""
    name = "WeightedSum" if masked is None else "WeightedSumMask"
    inputs = ["x", "y", "a", "b", *([] if masked is None else ["on"])]
    for size, a in itertools.product((0, 1, 1025, 100001), (0.9, 0.0)):
        proto = stages(
            name, inputs, {n: [size] if n in "xy" else [] for n in inputs}, ["sum"], [size]
        )
        arrays = {n: feeds(proto, 3, special=True)[n] for n in ("x", "y")}
        arrays |= {"a": np.array(a, np.float32), "b": np.array(0.1, np.float32)}
        if masked is not None:
            arrays["on"] = np.array(masked)
        expected = run(runtime_session(proto, options()), arrays)["sum"]
        session = runtime_session(proto, options(proto, threads))
        got = run(session, arrays)["sum"]
        np.testing.assert_array_equal(got, expected)
        binding = session.io_binding()
        values = {n: onnxruntime.OrtValue.ortvalue_from_numpy(a.copy()) for n, a in arrays.items()}
        for input_name, bound in values.items():
            binding.bind_ortvalue_input(input_name, bound)
        binding.bind_ortvalue_output("sum", values["x"])
        session.run_with_iobinding(binding)
        assert values["x"].numpy().tobytes() == got.tobytes()


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bad", [None, np.inf, -np.inf, np.nan], ids=str)
def test_all_finite(bad, threads):
    """Wherever the number is that is none."""
    sizes = [5, 0, 1, 100001]
    names = [f"v{index}" for index in range(len(sizes))]
    shapes = {name: [size] for name, size in zip(names, sizes, strict=True)}
    proto = stages("AllFinite4", names, shapes, ["finite"], [])
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.BOOL
    session = runtime_session(proto, options(proto, threads))
    assert operators_of(proto) == {"AllFinite4"}
    places = [("v0", 0), ("v0", 4), ("v2", 0), ("v3", 0), ("v3", 1023), ("v3", 70000), ("v3", -1)]
    for name, place in places:
        arrays = {n: np.full(s, -3.4e38, np.float32) for n, s in shapes.items()}
        if bad is not None:
            arrays[name][place] = bad
        assert run(session, arrays)["finite"] == (bad is None)


def stages(name, inputs, shapes, outputs, shape):
    """A model that calls one stage."""
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(name, inputs, outputs, domain="graphopt")],
            "stage",
            [value(n, shapes[n]) for n in inputs],
            [value(n, shape) for n in outputs],
        ),
        functions=functions.with_stages([], [name], 17),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("graphopt", 1)],
        ir_version=8,
    )


def operators_of(proto):
    return set(kernels.called(proto, CPU))


def run_in_place(session, arrays):
    """Each output in the memory of its input."""
    places = {}
    for output in session.get_outputs():
        kind, _, index = output.name.split(".")
        places[output.name] = f"{kind.removesuffix('1')}.{index}"
    return run_in_memory_of(session, arrays, places)


@needs_kernels
def test_masked_in_place():
    variant = TYPICAL[-1]
    proto = model([variant], [(40000,)])
    arrays = feeds(proto, 0, special=True, on=False)
    session = runtime_session(proto, options(proto))
    for name, array in run_in_place(session, arrays).items():
        kind, _, index = name.split(".")
        assert array.tobytes() == arrays[f"{kind.removesuffix('1')}.{index}"].tobytes()


WRONG = {
    "g": ("g.0", np.zeros(5, np.float32), "input 'g' has 5 elements, expected 7 as 'w' has"),
    "s": ("s.0", np.zeros((2, 7), np.float32), "input 's' has 14 elements, expected 7 as 'w' has"),
    "a": ("a.0", np.zeros(1, np.float32), "input 'a' has 1 elements, expected 7 as 'w' has"),
    "m": ("m.0", np.zeros(0, np.float32), "input 'm' has 0 elements, expected 7 as 'w' has"),
    "lr": ("lr", np.zeros(7, np.float32), "input 'lr' has 7 elements, expected 1, a scalar"),
    "k": ("k", np.zeros(0, np.float32), "input 'k' has 0 elements, expected 1, a scalar"),
    "on": ("on", np.zeros(2, np.bool_), "input 'on' has 2 elements, expected 1, a scalar"),
}


@needs_kernels
@pytest.mark.parametrize(("name", "array", "message"), WRONG.values(), ids=WRONG)
def test_wrong_number_of_elements(name, array, message):
    variant = TYPICAL[-1]
    proto = model([variant], [(7,)])
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.ClearField("shape")
    session = runtime_session(proto, options(proto))
    arrays = feeds(model([variant], [(7,)]), 0, special=False)
    assert run(session, arrays)["w1." + variant.name + ".0"].shape == (7,)
    with pytest.raises(Exception, match=f"graphopt.{variant.name}: {message}"):
        session.run(None, arrays | {name: array})


@needs_kernels
@pytest.mark.parametrize("name", ["decay", "epsilon", "momentum", "loss_scale"])
def test_missing_attribute(name):
    proto = model([TYPICAL[-1]], [(7,)], bodies=False)
    attributes = proto.graph.node[0].attribute
    attributes.remove(next(attribute for attribute in attributes if attribute.name == name))
    with pytest.raises(Exception, match=name):
        runtime_session(proto, options(proto))


@needs_kernels
def test_inferred_shapes():
    """Outputs have the shape of w."""
    proto = model([core.Variant()], [(3, "N")])
    for info in proto.graph.output:
        info.type.tensor_type.ClearField("shape")
    session = runtime_session(proto, options(proto))
    assert [output.shape for output in session.get_outputs()] == [[3, "N"]] * 2


@needs_kernels
def test_unknown_shapes(capfd):
    """They stay unknown: the runtime warns where a tensor is not of the shape it was told."""
    proto = model([core.Variant()], [(7,)])
    arrays = feeds(proto, 0, special=False)
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.ClearField("shape")
    made = onnxruntime.SessionOptions()
    assert graphopt.register_kernels(made, proto)
    results = run(runtime_session(proto, made), arrays)
    assert {array.shape for array in results.values()} == {(7,)}
    assert "shape" not in capfd.readouterr().err


@needs_kernels
def test_unknown_dimensions():
    """Tensors of different sizes that are not known before do not get the same memory."""
    proto = model([core.Variant()], [(7,), (300,), (20,)])
    arrays = feeds(proto, 0, special=False)
    expected = run(runtime_session(proto, options()), arrays)
    graph = proto.graph
    graph.input.append(value("shape", [1]))
    graph.input[-1].type.tensor_type.elem_type = TensorProto.INT64
    updates = list(graph.node)
    graph.ClearField("node")
    for update in updates:
        flat, raw = f"{update.input[0]}.flat", [f"{name}.raw" for name in update.output]
        graph.node.add(op_type="Reshape", input=[update.input[0], "shape"], output=[flat])
        update.input[0] = flat
        graph.node.append(update)
        for name, output in zip(raw, list(update.output), strict=True):
            graph.node.add(op_type="Neg", input=[name], output=[f"{name}.negative"])
            graph.node.add(op_type="Neg", input=[f"{name}.negative"], output=[output])
        graph.node[-1 - 2 * len(raw)].output[:] = raw
    session = runtime_session(proto, options(proto))
    for name, array in run(session, arrays | {"shape": np.array([-1])}).items():
        np.testing.assert_allclose(array, expected[name], rtol=2e-5, err_msg=name)


@needs_kernels
@pytest.mark.parametrize("dtype", [TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_other_dtypes_do_not_load(dtype):
    """A kernel's name hides the body; graphopt itself casts everything to float32 first."""
    proto = model([core.Variant()], [(7,)], dtype=dtype)
    with pytest.raises(Exception, match=r"(?i)type"):
        runtime_session(proto, options(proto))


def small(**settings):
    return graphopt.update_graph(
        RMSProp([Parameter("w", (5,)), Parameter("v", (2, 3))], **settings), layout="buckets"
    )


def parameters():
    return {"w": np.arange(5, dtype=np.float32), "v": np.ones((2, 3), np.float32)}


def steps(session, count=3):
    rng = np.random.default_rng(0)
    for _ in range(count):
        session.step(
            {
                "w_grad": rng.normal(size=5).astype(np.float32),
                "v_grad": rng.normal(size=(2, 3)).astype(np.float32),
            }
        )
    return session.state


def assert_same_states(one, other):
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=1e-5, err_msg=name)


@pytest.mark.quick
@needs_kernels
def test_session_uses_the_kernels():
    graph = small(centered=True, momentum=0.9)
    before = graph.model.SerializeToString(deterministic=True)
    fused = Session(graph, parameters())
    bodies = Session(graph, parameters(), kernels=False)
    assert fused.kernels == ("CenteredRMSPropMomentum",)
    assert "kernels=['CenteredRMSPropMomentum']" in repr(fused)
    assert bodies.kernels == ()
    assert "kernels" not in repr(bodies)
    assert_same_states(steps(fused), steps(bodies))
    assert graph.model.SerializeToString(deterministic=True) == before


@needs_kernels
def test_session_names_each_kernel():
    sizes = {"small": 3, "large": 384 * 1024}
    optimizer = RMSProp([Parameter(name, (size,)) for name, size in sizes.items()])
    graph = graphopt.update_graph(optimizer, layout="chunks")
    session = Session(graph, {name: np.ones(size, np.float32) for name, size in sizes.items()})
    called = {node.op_type for node in graph.model.graph.node if node.domain == "graphopt"}
    assert "ChunkedRMSProp" in session.kernels
    assert session.kernels == tuple(sorted(called))


@needs_kernels
def test_profile_shows_the_kernel(tmp_path):
    used = {}
    for with_kernels in (True, False):
        profiled = onnxruntime.SessionOptions()
        profiled.enable_profiling = True
        profiled.profile_file_prefix = str(tmp_path / "profile")
        session = Session(
            small(momentum=0.9), parameters(), session_options=profiled, kernels=with_kernels
        )
        steps(session, 1)
        used[with_kernels] = operators(session._session)
    assert "RMSPropMomentum" in used[True]
    assert "Sqrt" not in used[True]
    assert "RMSPropMomentum" not in used[False]
    assert "Sqrt" in used[False]


@pytest.mark.parametrize("wrong", [None, 1, "yes"])
def test_kernels_must_be_a_bool(wrong):
    with pytest.raises(TypeError, match=r"kernels: got .*, expected True or False"):
        Session(small(), parameters(), kernels=wrong)


@needs_kernels
def test_sessions_of_the_same_options():
    """Other functions than those of the first session, none, and the first ones again."""
    shared = onnxruntime.SessionOptions()
    graph, other = small(momentum=0.9), small(centered=True, nesterov=True, momentum=0.9)
    expected = steps(Session(graph, parameters(), kernels=False))
    made = [
        Session(graph, parameters(), session_options=shared),
        Session(other, parameters(), session_options=shared),
        Session(graph, parameters(), session_options=shared, kernels=False),
        Session(graph, parameters(), session_options=shared),
    ]
    assert [session.kernels for session in made] == [
        ("RMSPropMomentum",),
        ("CenteredRMSPropNesterov",),
        (),
        ("RMSPropMomentum",),
    ]
    for index in (0, 2, 3):
        assert_same_states(steps(made[index]), expected)


@needs_kernels
def test_options_with_kernels_and_a_session_without_them(tmp_path):
    profiled = options(small().model)
    profiled.enable_profiling = True
    profiled.profile_file_prefix = str(tmp_path / "profile")
    session = Session(small(), parameters(), session_options=profiled, kernels=False)
    steps(session, 1)
    assert session.kernels == ()
    assert "RMSProp" not in operators(session._session)


@pytest.mark.parametrize(
    "providers",
    [
        ["CUDAExecutionProvider", "CPUExecutionProvider"],
        [("CUDAExecutionProvider", {"device_id": 0})],
        ["CPUExecutionProvider", "XnnpackExecutionProvider"],
    ],
)
def test_kernels_are_for_the_cpu_alone(providers):
    assert kernels.called(small().model, providers) == ()


@needs_kernels
@pytest.mark.parametrize("providers", [CPU, [("CPUExecutionProvider", {})]])
def test_kernels_are_for_the_cpu(providers):
    assert kernels.called(small().model, providers) == ("RMSProp",)


@needs_kernels
def test_foreign_session(tmp_path):
    proto = small().model
    made = onnxruntime.SessionOptions()
    assert not kernels.registered(made)
    assert graphopt.register_kernels(made, proto)
    assert graphopt.register_kernels(made)  # again, and all of them
    assert kernels.registered(made)
    made.enable_profiling = True
    made.profile_file_prefix = str(tmp_path / "profile")
    session = runtime_session(proto, made)
    arrays = {
        info.name: np.ones(
            [dim.dim_value for dim in info.type.tensor_type.shape.dim],
            helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type),
        )
        for info in proto.graph.input
    }
    session.run(None, arrays)
    assert "RMSProp" in operators(session)


@needs_kernels
def test_library_registered_by_path_as_well():
    made = onnxruntime.SessionOptions()
    made.register_custom_ops_library(str(kernels.library()))
    assert Session(small(), parameters(), session_options=made).kernels == ("RMSProp",)


def test_registering_with_something_else():
    with pytest.raises(TypeError, match=r"session_options: got dict, expected onnxruntime"):
        graphopt.register_kernels({})
    with pytest.raises(TypeError, match=r"model: got str, expected an onnx.ModelProto or None"):
        graphopt.register_kernels(onnxruntime.SessionOptions(), "train.onnx")


def damaged(tmp_path):
    path = tmp_path / "_kernels.abi3.so"
    path.write_bytes(b"not a library")
    return path


MISSING = {
    "never built": lambda _: None,
    "not there": lambda folder: folder / "_kernels.abi3.so",
    "damaged": damaged,
    "of another version": lambda _: Path(onnxruntime.capi._pybind_state.__file__),
}


@pytest.mark.parametrize("path", MISSING.values(), ids=MISSING)
def test_without_the_library(path, tmp_path, monkeypatch):
    found = path(tmp_path)
    monkeypatch.setattr(kernels, "library", lambda: found)
    assert not graphopt.register_kernels(onnxruntime.SessionOptions())
    session = Session(small(), parameters())
    assert session.kernels == ()
    steps(session)


@needs_kernels
def test_runtime_that_refuses_the_library(monkeypatch):
    """As ONNX Runtime before 1.18 does."""

    class Options(onnxruntime.SessionOptions):
        def register_custom_ops_library(self, path):
            raise RuntimeError(f"graphopt: the kernels need ONNX Runtime 1.18 or newer: {path}")

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    assert not graphopt.register_kernels(Options())
    session = Session(small(), parameters())
    assert session.kernels == ()
    steps(session)


@needs_kernels
@pytest.mark.parametrize("own", [True, False], ids=["own options", "given options"])
def test_session_that_fails_with_kernels_only(own, monkeypatch):
    create = onnxruntime.InferenceSession

    def fail(model, options, **settings):
        if kernels.registered(options) and onnx.ModelProto.FromString(model).functions:
            raise RuntimeError("cannot create a kernel")
        return create(model, options, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    expected = steps(Session(small(), parameters(), kernels=False))
    made = None if own else onnxruntime.SessionOptions()
    session = Session(small(), parameters(), session_options=made)
    assert session.kernels == ()
    assert_same_states(steps(session), expected)


def test_session_that_fails_anyway():
    graph = small()
    graph.model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ValueError, match="cannot run this training graph"):
        Session(graph, parameters())


@pytest.fixture
def no_others():
    """The sessions of a test have its own kernels alone."""
    with own_kernels():
        yield


@pytest.mark.quick
@needs_kernels
@pytest.mark.usefixtures("no_others")
@pytest.mark.parametrize("extras", EXTRAS, ids=lambda e: core.Variant(**e).name)
def test_kernel_is_the_body(extras, tmp_path):
    """Each of them; what depends on shapes is the same in all, and is tested with some."""
    assert_kernels_are_bodies(variants(extras), [MATRIX], tmp_path)


@needs_kernels
@pytest.mark.parametrize("on", [True, False])
def test_kernels_of_chunks_are_those_of_the_whole(on):
    """Bit for bit; that their bodies are so too is tested with these."""
    pairs = [
        pair
        for extras in EXTRAS
        for pair in zip(variants(extras), variants(extras, True), strict=True)
    ]
    proto = model([variant for pair in pairs for variant in pair], [MATRIX], bodies=False)
    got = run(runtime_session(proto, options(proto)), feeds(proto, 4, special=True, on=on))
    for whole, chunked in pairs:
        for name in whole.outputs:
            results = (got[f"{name}.{variant.name}.0"] for variant in (whole, chunked))
            assert len({array.tobytes() for array in results}) == 1, f"{name} of {chunked.name}"


@needs_kernels
@pytest.mark.usefixtures("no_others")
@pytest.mark.parametrize("variant", TYPICAL, ids=lambda variant: variant.name)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_shapes(variant, chunked, tmp_path):
    shapes = CHUNKED_SHAPES if chunked else SHAPES
    assert_kernels_are_bodies([replace(variant, chunked=chunked)], shapes, tmp_path)


def assert_kernels_are_bodies(called, shapes, tmp_path):
    proto = model(called, shapes)
    onnx.checker.check_model(proto)
    profiled = options(proto)
    profiled.enable_profiling = True
    profiled.profile_file_prefix = str(tmp_path / "profile")
    fused = runtime_session(proto, profiled)
    bodies = runtime_session(proto, options())
    specials = (False, True) if SAME_BITS else (False,)
    for seed, special in enumerate(specials):
        arrays = feeds(proto, seed, special=special)
        assert_agree(run(fused, arrays), run(bodies, arrays))
    if called[0].mask:
        arrays = feeds(proto, 2, special=True, on=False)
        kept = run(fused, arrays)
        assert_agree(kept, run(bodies, arrays))
        for name, array in kept.items():
            kind, _, index = name.split(".")
            old = arrays[f"{kind.removesuffix('1')}.{index}"]
            assert array.tobytes() == old.tobytes(), name
    assert {variant.name for variant in called} <= operators(fused)


SCRIPT = """
import numpy as np
import graphopt
from graphopt import kernels
optimizer = graphopt.RMSProp([graphopt.Parameter("w", (3,))])
graph = graphopt.update_graph(optimizer, layout="buckets")
session = graphopt.Session(graph, {"w": np.ones(3, np.float32)})
session.step({"w_grad": np.ones(3, np.float32)})
assert session.state["w"][0] < 1
print(graphopt.__file__, kernels.library() is not None, session.kernels)
"""


@pytest.mark.exhaustive
@pytest.mark.any_runtime
@pytest.mark.parametrize("compiler", [None, "/bin/false"], ids=["compiler", "no compiler"])
def test_installation(compiler, tmp_path):
    """graphopt installs with and without a compiler, and runs; so does the README's example."""
    if compiler is None and not shutil.which(os.environ.get("CC", "cc")):
        pytest.skip("NOT RUN: no C compiler here")
    setuptools = pytest.importorskip(
        "setuptools", minversion="77", reason="NOT RUN: needs setuptools 77 to install from source"
    )
    root = Path(graphopt.__file__).parents[1]
    if not (root / "pyproject.toml").exists():
        pytest.skip("NOT RUN: graphopt was not installed from a checkout")
    assert setuptools
    source, target = tmp_path / "source", tmp_path / "target"
    ignored = shutil.ignore_patterns("__pycache__", "_kernels*")
    shutil.copytree(root / "graphopt", source / "graphopt", ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(root / name, source)
    environment = os.environ | {"PYTHONPATH": str(target)}
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"]
    install += ["--no-compile"]  # each module is imported once
    subprocess.run(
        [*install, "--no-deps", "--target", target, source],
        check=True,
        env=environment | ({"CC": compiler} if compiler else {}),
    )
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    built = compiler is None
    names = ("RMSProp",) if built else ()
    assert result.stdout.strip() == f"{target}/graphopt/__init__.py {built} {names}"
    assert not list(target.glob("graphopt/kernels/*.[ch]"))
    if built:
        (first, *_) = blocks("python", (root / "README.md").read_text(encoding="utf-8"))
        outside = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        result = subprocess.run([sys.executable, "-c", first], check=False, **outside)
        assert (result.stdout, result.stderr) == ("True\n", "")
        assert (tmp_path / "train.onnx").is_file()
