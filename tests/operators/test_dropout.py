"""The gradient of dropout, whose mask is random: known from its output."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

import graphopt
from graphopt.gradients import differentiate, prepare


def gradient_and_output(ratio, dtype="float"):
    """Of ``Dropout(x)`` at x = 1, with weights 1, 2, 3, ... in the loss."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        m ({dtype} r) => ({dtype} loss) {{
            on = Constant <value = bool {{1}}> ()
            y = Dropout ({"x, " + ratio + ", on" if ratio else "x, , on"})
            w = Mul (y, c)
            loss = ReduceSum <keepdims = 0> (w)
        }}"""
    model = onnx.parser.parse_model(text)
    numpy_dtype = {"float": np.float32, "double": np.float64}[dtype]
    weights = np.arange(1, 1001, dtype=numpy_dtype)
    arrays = {"x": np.ones(1000, numpy_dtype), "c": weights, "fixed": numpy_dtype(0.25)}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()
    )
    prepared, statistics = prepare(model, ["x"])
    built = differentiate(prepared, ["x"], prepared.graph.outputs[0], statistics)
    y = next(node for node in prepared.graph if node.op_type == "Dropout").outputs[0]
    prepared.graph.outputs.extend([built.gradients["x"], y])
    session = onnxruntime.InferenceSession(
        ir.to_proto(prepared).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    _, gradient, output = session.run(None, {"x": arrays["x"], "r": np.asarray(0.25, numpy_dtype)})
    return gradient, weights * output


@pytest.mark.quick
@pytest.mark.parametrize(
    ("ratio", "share"), [("fixed", 0.25), ("r", 0.25), ("", 0.5)], ids=["fixed", "input", "default"]
)
def test_what_was_dropped_has_no_gradient(ratio, share):
    gradient, expected = gradient_and_output(ratio)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    # Four standard deviations of a binomial distribution around its mean.
    deviation = 4 * np.sqrt(1000 * share * (1 - share))
    assert abs(np.sum(gradient == 0) - 1000 * share) < deviation


@pytest.mark.parametrize("body", ["z = Mul(x, w) y", "y = Mul(d, w) d"], ids=["behind", "before"])
@pytest.mark.parametrize("ratio", [1.0, 1.5, -0.1])
def test_a_ratio_that_onnx_runtime_does_not_know(ratio, body):
    x = "z" if "z" in body else "x"
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        m (float[2, 3] x) => (float[2, 3] y)
        <float[3] w = {{1, 1, 1}}, float ratio = {{{ratio}}}> {{
            on = Constant <value = bool {{1}}> ()
            {body} = Dropout ({x}, ratio, on)
        }}""")
    opt = graphopt.RMSProp([graphopt.Parameter("w", (3,))], learning_rate=0.1)
    with pytest.raises(ValueError, match=rf"Dropout '[yd]': its ratio is {ratio:g}.*less than 1"):
        graphopt.training_graph(model, "mse", opt)


def test_float64():
    gradient, expected = gradient_and_output("fixed", "double")
    assert gradient.dtype == np.float64
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
