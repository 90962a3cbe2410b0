"""Functions of the update alone, run by ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper


def session_of(nodes, inputs, outputs, called, opset=17, shapes_are_known=True):
    """A session of a model of these nodes, which is valid.

    ONNX's checker wants to know the rank of each input, ONNX Runtime does not.
    """
    model = helper.make_model(
        helper.make_graph(nodes, "alone", inputs, outputs),
        functions=called,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("graphopt", 1)],
        ir_version=8,
    )
    if shapes_are_known:
        onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def assert_close(got, expected, rtol, atol, message=""):
    """As NumPy's, which takes ten times as long where all is well."""
    if not (np.abs(got - expected) <= atol + rtol * np.abs(expected)).all():
        np.testing.assert_allclose(got, expected, rtol, atol, err_msg=message)


def has_exact_roots():
    """Whether Sqrt gives the nearest float32, which then is the same in a tensor of any shape.

    That of ONNX Runtime 1.19 is off by an ulp for some numbers, and NaN for Inf, but only where it
    takes several elements at once.
    """
    x = np.append(np.random.default_rng(0).uniform(0.1, 2, 1000), np.inf).astype(np.float32)[::-1]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name in "xy"]
    session = session_of([helper.make_node("Sqrt", ["x"], ["y"])], tensors[:1], tensors[1:], [])
    (y,) = session.run(None, {"x": x.copy()})
    return np.array_equal(y, np.sqrt(x))


EXACT_ROOTS = has_exact_roots()
