"""The kernel that turns the weight of a convolution around, against NumPy."""

import numpy as np
import onnx
import pytest

import graphopt
from tests.helpers.environments import needs_kernels
from tests.helpers.kernel_sessions import kernels_of_same_training, of_one_node

pytestmark = needs_kernels


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (5, 3, 3, 3), (70, 33, 3, 3), (4, 17, 2, 5), (2, 3, 4), (3, 2, 3, 2, 4), (0, 3, 3)],
    ids=str,
)
def test_it_is_swapped_and_turned(shape, threads):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    operands = {"weight": weight}
    (got,) = of_one_node("TurnedWeight1", operands, {}, threads).run(None, operands)
    axes = tuple(range(2, len(shape)))
    np.testing.assert_array_equal(got, np.flip(weight, axes).swapaxes(0, 1))


def test_what_has_no_kernel_is_refused():
    operands = {"weight": np.ones((2, 3), np.float32)}
    session = of_one_node("TurnedWeight", operands, {})
    with pytest.raises(Exception, match="TurnedWeight: the weight has less than three axes"):
        session.run(None, operands)


def test_a_network_trains_the_same_with_kernels_and_without():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        network (float[N,3,9,8] x) => (float[N,4] y) {
            c = Conv<pads=[1,1,1,1]>(x, v) r = Relu(c)
            d = Conv<pads=[1,0,1,2], dilations=[1,2]>(r, w)
            p = GlobalAveragePool(d) y = Flatten(p) }""")
    values = np.random.default_rng(0)
    for name, shape in {"v": (5, 3, 3, 3), "w": (4, 5, 3, 2)}.items():
        array = values.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3)
    graph = graphopt.training_graph(
        onnx.shape_inference.infer_shapes(model), "cross_entropy", optimizer
    )
    fused = kernels_of_same_training(
        graph,
        lambda values: {
            "x": values.standard_normal((6, 3, 9, 8)).astype(np.float32),
            "labels": values.integers(0, 4, 6),
        },
    )
    assert "TurnedWeight1" in fused
