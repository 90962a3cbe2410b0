"""Kernels, and the bodies of their functions, in sessions of the runtime itself."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

import graphopt
from graphopt import kernels
from graphopt.update import core

CPU = ["CPUExecutionProvider"]
# Older runtimes compute quotients and roots with approximate instructions.
SAME_BITS = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 32)
CORES = [
    core.Variant(centered, momentum, outside, late)
    for centered in (False, True)
    for momentum in ("", "Momentum", "Nesterov")
    for outside in (False, True)
    for late in ((False, True) if momentum else (False,))
]
EXTRAS = [
    {"weight_decay": decay, "mask": mask, **before}
    for decay in ("", "WeightDecay", "DecoupledWeightDecay")
    for mask in (False, True)
    for before in (
        *({"unscale": unscale} for unscale in (False, True)),
        *({"scale": scale, "clip_value": not scale} for scale in (False, True)),
        {"scale": True, "clip_value": True},
    )
]


def options(proto=None, threads=1):
    """Options with the kernels that a model calls, or with none."""
    made = onnxruntime.SessionOptions()
    made.log_severity_level = 4
    made.intra_op_num_threads = threads
    if proto is not None:
        assert graphopt.register_kernels(made, proto)
    return made


def run(session, arrays):
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, arrays), strict=True))


def assert_agree(fused, bodies):
    assert list(fused) == list(bodies)
    for name, got in fused.items():
        want = bodies[name]
        assert got.shape == want.shape, name
        if SAME_BITS:
            np.testing.assert_array_equal(got, want, err_msg=name)
        else:
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5, err_msg=name)


def of_one_node(name, operands, attributes, threads=1, outputs=1):
    """A session of one node that is a kernel, for arrays of these dtypes and shapes."""
    inputs = [
        helper.make_tensor_value_info(
            key, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for key, array in operands.items()
    ]
    given = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(name, list(operands), given, domain="graphopt", **attributes)
    values = [helper.make_tensor_value_info(y, TensorProto.FLOAT, None) for y in given]
    model = helper.make_model(
        helper.make_graph([node], "g", inputs, values),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("graphopt", 1)],
        ir_version=8,
    )
    made = options(threads=threads)
    assert kernels.register(made, [name])
    return onnxruntime.InferenceSession(model.SerializeToString(), made, providers=CPU)


def run_in_memory_of(session, arrays, places):
    """The results by name, of which some are in the memory of an input: ``places`` says whose."""
    binding = session.io_binding()
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array.copy())
        for name, array in arrays.items()
    }
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    names = [output.name for output in session.get_outputs()]
    for name in names:
        if name in places:
            binding.bind_ortvalue_output(name, values[places[name]])
        else:
            binding.bind_output(name)
    session.run_with_iobinding(binding)
    results = [value.numpy().copy() for value in binding.get_outputs()]
    return dict(zip(names, results, strict=True))


def run_over_the_first(session, operands):
    """The results of `of_one_node`, of which the first is in the memory of the first operand."""
    first = session.get_outputs()[0].name
    return list(run_in_memory_of(session, operands, {first: next(iter(operands))}).values())


def kernels_of_same_training(graph, feeds_of):
    """The kernels of a session, which trains as one does that runs the bodies of functions.

    Args:
        graph: The training graph.
        feeds_of: Gives the feeds of a step, from a generator of random numbers.
    """
    sessions = [graphopt.Session(graph, kernels=fused) for fused in (True, False)]
    values = np.random.default_rng(1)
    for _ in range(5):
        feeds = feeds_of(values)
        with_kernels, without = (session.step(feeds)["loss"] for session in sessions)
        np.testing.assert_allclose(with_kernels, without, rtol=1e-5)
    one, other = (session.state for session in sessions)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=5e-3, atol=5e-5)
    return sessions[0].kernels


def run_one_node(name, operands, attributes, threads=1):
    """The result of `of_one_node`."""
    return of_one_node(name, operands, attributes, threads).run(None, operands)[0]
