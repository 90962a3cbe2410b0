"""The digits network and its data."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch.nn import functional

import graphopt
from graphopt.examples import digits, digits_cnn

SHAPES = {
    "conv1.weight": (16, 1, 3, 3),
    "conv1.bias": (16,),
    "conv2.weight": (32, 16, 3, 3),
    "conv2.bias": (32,),
    "dense1.weight": (64, 128),
    "dense1.bias": (64,),
    "dense2.weight": (10, 64),
    "dense2.bias": (10,),
}


def initial_parameters(**arguments):
    model = digits_cnn.build(**arguments)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def logits(model, x):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["logits"], {"x": x})[0]


def dims(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.quick
@pytest.mark.parametrize(("batch", "first"), [(None, "batch"), (7, 7)])
def test_interface(batch, first):
    model = digits_cnn.build(batch=batch)
    (x,), (output,) = model.graph.input, model.graph.output
    assert (x.name, dims(x)) == ("x", [first, 1, 8, 8])
    assert (output.name, dims(output)) == ("logits", [first, 10])
    assert x.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    # ONNX Runtime 1.19 reads no later ones.
    assert model.ir_version <= 10
    assert model.opset_import[0].version <= 21


def test_parameters():
    found = graphopt.parameters(digits_cnn.build())
    assert {parameter.name: parameter.shape for parameter in found} == SHAPES
    assert {parameter.dtype for parameter in found} == {"float32"}
    assert [parameter.op_type for parameter in found if parameter.op_type] == [
        *("Conv", "Conv", "Gemm", "Gemm")
    ]


def test_initial_parameters_follow_he_and_the_seed():
    first, again, other = (initial_parameters(seed=seed) for seed in (3, 3, 4))
    for name, shape in SHAPES.items():
        np.testing.assert_array_equal(first[name], again[name])
        if name.endswith("bias"):
            np.testing.assert_array_equal(first[name], 0)
            continue
        assert not np.array_equal(first[name], other[name])
        # The relative standard error of a standard deviation is 1 / sqrt(2n); allow four of them.
        expected = np.sqrt(2 / np.prod(shape[1:]))
        assert np.std(first[name]) == pytest.approx(expected, rel=4 / np.sqrt(2 * np.prod(shape)))


def test_logits_are_those_of_the_same_network_in_pytorch():
    parameters = {name: torch.tensor(value) for name, value in initial_parameters().items()}
    x = digits.load().test.x

    hidden = torch.tensor(x)
    for layer in ("conv1", "conv2"):
        weight, bias = parameters[f"{layer}.weight"], parameters[f"{layer}.bias"]
        hidden = functional.max_pool2d(functional.conv2d(hidden, weight, bias, padding=1).relu(), 2)
    hidden = functional.linear(
        hidden.flatten(1), parameters["dense1.weight"], parameters["dense1.bias"]
    )
    expected = functional.linear(
        hidden.relu(), parameters["dense2.weight"], parameters["dense2.bias"]
    )

    np.testing.assert_allclose(logits(digits_cnn.build(), x), expected.numpy(), rtol=0, atol=1e-5)


def test_a_static_batch_gives_the_same_step_as_a_dynamic_one():
    batch = digits.Samples(*(array[:8] for array in digits.load().train))
    states = []
    for size in (None, 8):
        model = digits_cnn.build(batch=size)
        optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.001)
        session = graphopt.Session(graphopt.training_graph(model, "cross_entropy", optimizer))
        session.step(batch._asdict())
        states.append(session.state)
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, rtol=0, atol=1e-7, err_msg=name)


def test_data():
    data = digits.load()
    for part, count in ((data.train, 1437), (data.test, 360)):
        assert part.x.shape == (count, 1, 8, 8)
        assert part.x.dtype == np.float32
        assert part.labels.shape == (count,)
        assert part.labels.dtype == np.int64
        assert part.x.min() == 0
        assert part.x.max() == 1
        # Every digit is about a tenth of either part.
        assert np.bincount(part.labels) / count == pytest.approx(np.full(10, 0.1), abs=0.005)


def test_no_sample_is_in_both_parts():
    train, test = ({x.tobytes() for x in part.x} for part in digits.load())
    assert len(train) == 1437
    assert len(test) == 360
    assert not train & test
