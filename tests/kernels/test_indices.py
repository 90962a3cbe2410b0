"""The kernels of gradients of what indices choose, against NumPy in float64."""

import numpy as np
import onnx
import pytest

import graphopt
from tests.helpers.environments import needs_kernels
from tests.helpers.kernel_sessions import (
    kernels_of_same_training,
    of_one_node,
    run_one_node,
    run_over_the_first,
)

pytestmark = needs_kernels


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def some(count, size, seed=0, lowest=0):
    return np.random.default_rng([seed, count, size]).integers(lowest, size, count)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("count", "rows", "width"),
    [(1, 1, 1), (5, 3, 7), (40, 5, 33), (600, 300, 65), (2, 5000, 130), (3, 4, 0), (0, 4, 3)],
)
def test_rows_of_a_table(count, rows, width, threads):
    dy, indices = normal(count, width), some(count, rows, lowest=-rows)
    got = run_one_node("GatherGradient4", {"dy": dy, "i": indices}, {"rows": [rows]}, threads)
    expected = np.zeros((rows, width))
    np.add.at(expected, indices, dy.astype(np.float64))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_table_without_rows():
    none = {"dy": np.zeros((0, 3), np.float32), "i": np.zeros(0, np.int64)}
    assert run_one_node("GatherGradient", none, {"rows": [0]}).shape == (0, 3)


@pytest.mark.parametrize("index", [4, -5, 2**62, -(2**63)])
def test_an_index_beyond_the_table_is_refused(index):
    given = {"dy": np.ones((2, 3), np.float32), "i": np.array([0, index])}
    with pytest.raises(Exception, match="an index is beyond the table"):
        run_one_node("GatherGradient", given, {"rows": [4]})


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("is_scalar", [True, False])
@pytest.mark.parametrize(
    ("rows", "classes"), [(1, 1), (3, 5), (4, 8), (7, 33), (500, 100), (0, 4)], ids=str
)
def test_cross_entropy(rows, classes, is_scalar, threads):
    x = normal(rows, classes).astype(np.float64) * 4
    y = x - np.log(np.exp(x).sum(-1, keepdims=True))
    labels = some(rows, classes, lowest=-classes)
    share = np.asarray(normal(), np.float32) if is_scalar else normal(rows, 1)
    given = {"y": y.astype(np.float32), "labels": labels, "share": share}
    got = run_one_node("CrossEntropyGradient2", given, {}, threads)
    expected = (np.exp(y) - np.eye(classes)[labels]) * share
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=3e-6, atol=1e-7)


def test_cross_entropy_of_what_is_special():
    y = np.array([[0, -np.inf, np.nan, -1e30, -88, -1e-45]], np.float32)
    for label in (0, 1, 2, 5):
        given = {"y": y, "labels": np.array([label]), "share": np.array(1, np.float32)}
        got = run_one_node("CrossEntropyGradient", given, {})
        expected = np.exp(y) - np.eye(6)[[label]]
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("label", [3, -4, 2**62, -(2**63)])
def test_no_class_of_a_label_beyond_them(label):
    y = np.log(np.full((1, 3), 1 / 3, np.float32))
    given = {"y": y, "labels": np.array([label]), "share": np.array(3, np.float32)}
    got = run_one_node("CrossEntropyGradient", given, {})
    np.testing.assert_allclose(got, np.ones((1, 3)), rtol=1e-6)


def test_the_bits_do_not_depend_on_threads():
    y = -np.abs(normal(600, 130))
    table = {"dy": normal(900, 130), "i": some(900, 300)}
    entropy = {"y": y, "labels": some(600, 130), "share": normal(600, 1)}
    for name, given, attributes in (
        ("GatherGradient", table, {"rows": [300]}),
        ("CrossEntropyGradient", entropy, {}),
    ):
        one, four = (run_one_node(name, given, attributes, threads) for threads in (1, 4))
        assert one.tobytes() == four.tobytes(), name


def test_the_result_may_lie_where_the_logarithms_are():
    given = {"y": -np.abs(normal(300, 13)), "labels": some(300, 13), "share": normal(300, 1)}
    session = of_one_node("CrossEntropyGradient", given, {}, 2)
    (elsewhere,), (there,) = session.run(None, given), run_over_the_first(session, given)
    assert elsewhere.tobytes() == there.tobytes()


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("GatherGradient", [(2, 3), (3,)]),
        ("GatherGradient", [(2,), (2,)]),
        ("GatherGradient", [(2, 3), (2, 1)]),
        ("CrossEntropyGradient", [(2, 3), (3,), ()]),
        ("CrossEntropyGradient", [(2, 3), (2, 1), ()]),
        ("CrossEntropyGradient", [(2, 3), (2,), (2,)]),
        ("CrossEntropyGradient", [(2, 3), (2,), (1, 3)]),
        ("CrossEntropyGradient", [(2, 3, 4), (2,), ()]),
    ],
)
def test_what_does_not_fit_is_refused(name, shapes):
    given = {f"input_{i}": np.zeros(shape, np.float32) for i, shape in enumerate(shapes)}
    given["input_1"] = given["input_1"].astype(np.int64)
    session = of_one_node(name, given, {"rows": [9]} if "Gather" in name else {})
    with pytest.raises(Exception, match=f"graphopt.{name}: the shapes"):
        session.run(None, given)


NETWORKS = {
    "rows of one axis": ("N", "h = Gather(table, x) y = MatMul(h, v)", 2),
    "rows of two axes": ("N,3", "h = Gather(table, x) y = MatMul(h, v)", 2),
    "int32": ("N", "i = Cast<to=6>(x) h = Gather(table, i) y = MatMul(h, v)", 2),
    # Of which the kernels know nothing: the gradient stays what it was.
    "another axis": (
        "N",
        "t = Gather<axis=1>(turned, x) h = Transpose(t) y = MatMul(h, v)",
        1,
    ),
}


@pytest.mark.parametrize(("dims", "lines", "count"), NETWORKS.values(), ids=NETWORKS)
def test_a_network_trains_the_same_with_kernels_and_without(dims, lines, count):
    rank = dims.count(",") + 1
    axes = "".join(f",d{i}" for i in range(rank))
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        network (int64[{dims}] x) => (float[N{axes}] y) {{ {lines} }}""")
    for name, shape in {"table": (200, 8), "turned": (8, 200), "v": (8, 5)}.items():
        if any(name in node.input for node in model.graph.node):
            tensor = onnx.numpy_helper.from_array(normal(*shape), name)
            model.graph.initializer.append(tensor)
    model = onnx.shape_inference.infer_shapes(model)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3)
    graph = graphopt.training_graph(model, "cross_entropy", optimizer)

    def feeds(values):
        shape = (30, *map(int, dims.split(",")[1:]))
        labels = values.integers(0, 3 if rank > 1 else 5, (30, *[5] * (rank - 1)))
        return {"x": values.integers(0, 20, shape), "labels": labels}

    fused = kernels_of_same_training(graph, feeds)
    found = [name for name in fused if name.startswith(("Gather", "CrossEntropy"))]
    assert len(found) == count, fused


@pytest.mark.parametrize("ignored", [None, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_trains_the_same(weighted, reduction, ignored):
    attributes = f'reduction="{reduction}"' + (f", ignore_index={ignored}" if ignored else "")
    operands = "y, labels, c" if weighted else "y, labels"
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        network (float[N,6] x, int64[N] labels) => (float loss) {{
            y = MatMul(x, w)
            loss = SoftmaxCrossEntropyLoss<{attributes}>({operands}) }}""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(normal(6, 5), "w"))
    if weighted:
        weights = np.array([1, 0.5, 2, 0, 3], np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "c"))
    model = onnx.shape_inference.infer_shapes(model)
    optimizer = graphopt.RMSProp([p for p in graphopt.parameters(model) if p.name == "w"], 1e-3)
    graph = graphopt.training_graph(model, "loss", optimizer)
    fused = kernels_of_same_training(
        graph,
        lambda values: {
            "x": values.standard_normal((9, 6)).astype(np.float32),
            "labels": values.integers(0, 5, 9),
        },
    )
    assert any(name.startswith("CrossEntropyGradient") for name in fused)
