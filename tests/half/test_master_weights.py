"""Models whose parameters are float16 or bfloat16: as they are, and with float32 copies."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import graphopt
from models.zoo import ZOO

HALVES = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}


def in_half(precision, name="mlp"):
    """A network of the zoo, all of which is in a type of 16 bits."""
    model, kind = ZOO[name].build(), HALVES[precision]
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
            tensor.CopyFrom(numpy_helper.from_array(array.astype(dtype), tensor.name))
    return model


def session_of(model, **options):
    optimizer = graphopt.RMSProp(graphopt.parameters(model), **options)
    return graphopt.Session(graphopt.training_graph(model, "cross_entropy", optimizer))


def batches(dtype, count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        feeds = ZOO["mlp"].feeds(rng, 16)
        yield {"x": feeds["x"].astype(dtype), "labels": feeds["labels"]}


TINY = {"learning_rate": 1e-6, "initial_mean_square": 0.0}


def test_small_updates_count_in_float32_copies():
    """A float16 weight of 0.1 moves by 6e-5 or not at all."""
    plain = in_half("float16")
    copies = graphopt.with_master_weights(plain)
    moved = {}
    for name, model in {"plain": plain, "copies": copies}.items():
        session = session_of(model, **TINY)
        before = session.state["dense1.weight"].astype(np.float64)
        for batch in batches(np.float16, 20):
            session.step(batch)
        after = session.state["dense1.weight"]
        assert after.dtype == {"plain": np.float16, "copies": np.float32}[name]
        moved[name] = np.mean(after != before)
    assert moved["plain"] < 0.2
    assert moved["copies"] > 0.9


@pytest.mark.parametrize("precision", HALVES)
def test_it_trains_as_float32_does_and_is_exported(precision, tmp_path):
    """Inputs in bfloat16 are fed in float32."""
    model = graphopt.with_master_weights(in_half(precision))
    session = session_of(model, learning_rate=1e-3)
    expected = session_of(ZOO["mlp"].build(), learning_rate=1e-3)
    dtype = np.float16 if precision == "float16" else np.float32
    for batch in batches(dtype, 5):
        found = session.step(batch)["loss"]
        wanted = expected.step({**batch, "x": batch["x"].astype(np.float32)})["loss"]
        np.testing.assert_allclose(found, wanted, rtol=0.02)
        assert found.dtype == np.float32
    assert {v.dtype.name for v in session.state.values()} == {"float32", "int64"}
    assert graphopt.inspect(session.graph).optimizer.name == "RMSProp"
    assert graphopt.verify(session.graph).verified
    session.export(tmp_path / "trained.onnx")
    trained = {t.name: t for t in onnx.load(tmp_path / "trained.onnx").graph.initializer}
    name = "dense1.weight"
    np.testing.assert_array_equal(numpy_helper.to_array(trained[name]), session.state[name])
    if precision == "float16":
        onnxruntime.InferenceSession(
            tmp_path / "trained.onnx", providers=["CPUExecutionProvider"]
        ).run(None, {"x": next(batches(dtype, 1))["x"]})


@pytest.mark.any_runtime
def test_a_model_without_any_is_refused():
    with pytest.raises(ValueError, match="no parameter of the model is float16 or bfloat16"):
        graphopt.with_master_weights(ZOO["mlp"].build())


@pytest.mark.any_runtime
def test_the_model_is_left_as_it_is():
    model = in_half("float16")
    before = model.SerializeToString()
    graphopt.with_master_weights(model)
    assert model.SerializeToString() == before


@pytest.mark.any_runtime
def test_weights_that_are_read_twice():
    """Both readers read the same copy."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        m (float16[N,2] x) => (float16[N,2] y) { h = MatMul(x, w) y = MatMul(h, w) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float16), "w"))
    made = graphopt.with_master_weights(model)
    (rounded,) = (node for node in made.graph if node.op_type == "Cast")
    assert [str(v.name) for v in rounded.inputs] == ["w"]
    assert len(rounded.outputs[0].uses()) == 2


def test_bfloat16_without_copies_says_so():
    parameter = graphopt.Parameter("w", (2,), "bfloat16")
    with pytest.raises(TypeError, match=r"has dtype bfloat16.*train graphopt\.with_master_weights"):
        graphopt.RMSProp([parameter], learning_rate=0.1)
