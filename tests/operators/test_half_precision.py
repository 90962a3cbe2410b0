"""Operators that runtimes have in float32 only, in float16."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from graphopt.gradients import differentiate, prepare


@pytest.mark.any_runtime
@pytest.mark.parametrize(
    ("node", "values", "expected"),
    [
        ("y = Celu<alpha=2.0>(x)", {"x": [-1, 0, 2]}, {"x": [np.exp(-0.5), 1, 1]}),
        ("y = Range(s, l, d)", {"s": 0, "l": 3, "d": 1}, {"s": 3, "d": 3}),
    ],
)
def test_gradients(node, values, expected):
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 27]>
        m () => (float16 loss) {{ {node} loss = ReduceSum<keepdims=0>(y) }}""")
    arrays = {name: np.array(value, np.float16) for name, value in values.items()}
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    prepared, statistics = prepare(model, list(expected))
    built = differentiate(prepared, list(expected), prepared.graph.outputs[0], statistics)
    prepared.graph.outputs[:] = built.gradients.values()
    proto = ir.to_proto(prepared)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    got = session.run(None, {x.name: arrays[x.name] for x in session.get_inputs()})
    for ours, theirs in zip(got, expected.values(), strict=True):
        assert ours.dtype == np.float16
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)
