"""Parameter groups: inheritance, order, centralization and masks, together with everything else."""

import json

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import graphopt
from graphopt import schedules
from graphopt.examples import digits, digits_cnn
from graphopt.reference import ReferenceRMSProp

A, B, C = (graphopt.Parameter(name, (3,)) for name in ("a", "b", "c"))


def rates(optimizer, step=0):
    return [rule.learning_rate.value(step) for rule in optimizer.rules]


def decays(optimizer):
    return [rule.weight_decay.value(0) for rule in optimizer.rules]


def test_what_a_group_lacks_is_the_optimizers():
    optimizer = graphopt.RMSProp(
        [{"params": [C], "lr": 0.5}, {"params": (A,), "weight_decay": 0}, {"params": [B]}],
        learning_rate=0.01,
        weight_decay=0.1,
    )
    assert [p.name for p in optimizer.params] == ["c", "a", "b"]
    assert rates(optimizer) == [0.5, 0.01, 0.01]
    assert decays(optimizer) == [0.1, 0.0, 0.1]
    assert [rule.group for rule in optimizer.rules] == [0, 1, 2]


@pytest.mark.parametrize("rate", [0.5, [0.5, 0.25], schedules.WarmUpLR(0.5, 2)], ids=type)
def test_a_learning_rate_has_two_names(rate):
    short, long = (
        graphopt.RMSProp([{"params": [A], key: rate}, {"params": [B]}], learning_rate=[0.1, 0.1])
        for key in ("lr", "learning_rate")
    )
    assert long.rules == short.rules
    with pytest.raises(TypeError, match=r"params\[0\]\['learning_rate'\]: got None"):
        graphopt.RMSProp([{"params": [A], "learning_rate": None}])
    with pytest.raises(ValueError, match=r"params\[0\]: 'lr' and 'learning_rate' are the same"):
        graphopt.RMSProp([{"params": [A], "lr": rate, "learning_rate": rate}])


def test_grouped_parameters_are_never_excluded_from_decay():
    gamma = graphopt.Parameter("gamma", (3,))
    for params, expected in (([gamma, A], [0, 0.1]), ([{"params": [gamma, A]}], [0.1, 0.1])):
        assert decays(graphopt.RMSProp(params, weight_decay=0.1)) == expected


def test_order_params_may_stand_anywhere():
    groups = [{"params": [B, A], "lr": 0.5}, {"params": [C]}]
    for position in range(3):
        entries = list(groups)
        entries.insert(position, {"order_params": [C, A, B]})
        optimizer = graphopt.RMSProp(entries)
        assert [p.name for p in optimizer.params] == ["c", "a", "b"]
        assert rates(optimizer) == [0.1, 0.5, 0.5]


def test_an_iterator_is_read_once_and_kept():
    optimizer = graphopt.RMSProp(
        [{"params": (p for p in (A, B)), "lr": (0.1 * k for k in (1, 2))}, {"params": [C]}]
    )
    assert [p.name for p in optimizer.params] == ["a", "b", "c"]
    np.testing.assert_allclose(rates(optimizer, 1), [0.2, 0.2, 0.1])


@pytest.mark.quick
def test_the_example_of_the_specification():
    model = digits_cnn.build()
    parameters = graphopt.parameters(model)
    conv = [p for p in parameters if "conv" in p.name]
    rest = [p for p in parameters if "conv" not in p.name]
    optimizer = graphopt.RMSProp(
        [
            {"params": conv, "weight_decay": 0.01, "grad_centralization": True},
            {"params": rest, "lr": 0.01},
            {"order_params": parameters},
        ],
        learning_rate=0.1,
        weight_decay=0.0,
    )
    assert [p.name for p in optimizer.params] == [p.name for p in parameters]
    assert [rule.grad_centralization for rule in optimizer.rules[:3]] == [True, False, True]
    session = graphopt.Session(graphopt.training_graph(model, "cross_entropy", optimizer))
    data = digits.load().train
    before = session.state
    outputs = session.step({"x": data.x[:32], "labels": data.labels[:32]})
    assert outputs["updated"]
    for p in parameters:
        assert not np.array_equal(before[p.name], session.state[p.name])


SHAPES = {
    "Conv 1-D": ("Conv", (4, 3, 5)),
    "Conv 2-D": ("Conv", (4, 3, 2, 2)),
    "Conv 2-D, 1x1": ("Conv", (4, 16, 1, 1)),
    "Conv 3-D": ("Conv", (2, 3, 2, 2, 2)),
    "ConvTranspose": ("ConvTranspose", (3, 4, 2, 2)),
    "depthwise": ("Conv", (6, 1, 3, 3)),
    "Gemm": ("Gemm", (4, 16)),
    "bias": (None, (4,)),
}


@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("op_type", "shape"), SHAPES.values(), ids=SHAPES)
def test_centralization(op_type, shape, dtype, loss_scale):
    w = graphopt.Parameter("w", shape, dtype, op_type)
    optimizer = graphopt.RMSProp(
        [{"params": [w], "grad_centralization": True, "weight_decay": 0.1}],
        learning_rate=0.01,
        momentum=0.9,
        loss_scale=loss_scale,
    )
    assert optimizer.rules[0].grad_centralization == (op_type in ("Conv", "ConvTranspose"))
    rng = np.random.default_rng(0)
    start = {"w": rng.normal(size=shape).astype(dtype)}
    session = graphopt.Session(graphopt.update_graph(optimizer), start)
    reference = ReferenceRMSProp(optimizer, start)
    for _ in range(4):
        gradient = (rng.normal(size=shape) + 1).astype(dtype)
        session.step({"w_grad": gradient})
        reference.step({"w": gradient})
        if dtype == "float16":  # what is compared is one step, not the rounding of all
            reference.state["w"] = session.state["w"].astype(np.float64)
    tolerance = 2e-3 if dtype == "float16" else 1e-5
    for name, value in session.state.items():
        np.testing.assert_allclose(value, reference.state[name], rtol=tolerance, atol=tolerance)


CONVOLUTIONS = """<ir_version: 8, opset_import: ["" : 17]>
m (float[N,3,8,8] x) => (float[N,2] y) {
    h = Conv (x, w1, b1)
    u = ConvTranspose (h, w2)
    f = GlobalAveragePool (u)
    g = Flatten (f)
    y = MatMul (g, w3)
}"""


def convolutions():
    model = onnx.parser.parse_model(CONVOLUTIONS)
    rng = np.random.default_rng(0)
    shapes = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 5, 2, 2), "w3": (5, 2)}
    for name, shape in shapes.items():
        tensor = numpy_helper.from_array(rng.normal(size=shape).astype("f"), name)
        model.graph.initializer.append(tensor)
    return model


def test_convolution_weights_are_recognised_from_the_graph():
    parameters = graphopt.parameters(convolutions())
    assert [p.op_type for p in parameters] == ["Conv", None, "ConvTranspose", "MatMul"]
    groups = [{"params": parameters, "grad_centralization": True}]
    optimizer = graphopt.RMSProp(groups)
    assert [rule.grad_centralization for rule in optimizer.rules] == [True, False, True, False]


def test_a_weight_behind_a_cast_is_one_too():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> m (float[N,3,8,8] x) => (float[N,4,6,6] y) '
        "{ i = Identity(w) c = Cast<to = 1>(i) y = Conv(x, c) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3, 3, 3), "f"), "w"))
    assert [p.op_type for p in graphopt.parameters(model)] == ["Conv"]


def masked_session(**settings):
    model = digits_cnn.build()
    parameters = graphopt.parameters(model)
    optimizer = graphopt.RMSProp(
        [
            {"params": parameters.matching("conv1*"), "lr": 0.01},
            {"params": parameters.matching("conv2*"), "weight_decay": 0.1},
            {
                "params": parameters.matching("dense*"),
                "lr": schedules.CosineDecayLR(0.001, 0.01, 9),
            },
        ],
        learning_rate=0.002,
        **settings,
    )
    graph = graphopt.training_graph(model, "cross_entropy", optimizer, group_mask=True)
    return graphopt.Session(graph)


@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.9, "centered": True, "loss_scale": 8.0}], ids=str
)
def test_a_masked_group_stays_bit_for_bit(settings):
    session, data = masked_session(**settings), digits.load().train
    prefixes = ("conv1", "conv2", "dense")
    for step, mask in enumerate([None, [True, False, True], [False, False, False], [0, 1, 1]]):
        part = slice(32 * step, 32 * step + 32)
        feeds = {"x": data.x[part], "labels": data.labels[part]}
        if mask is not None:
            feeds["group_mask"] = np.array(mask, bool)
        before = session.state
        session.step(feeds)
        after = session.state
        assert after.pop("global_step") == step + 1
        for name, value in after.items():
            group = next(k for k, prefix in enumerate(prefixes) if prefix in name)
            stays = mask is not None and not mask[group]
            assert np.array_equal(before[name], value) == stays, (step, name)


def test_without_a_mask_all_groups_are_updated():
    masked, plain = masked_session(), masked_session()
    data = digits.load().train
    for start in (0, 32):
        feeds = {"x": data.x[start : start + 32], "labels": data.labels[start : start + 32]}
        masked.step(feeds | {"group_mask": np.ones(3, bool)})
        plain.step(feeds)
    assert all(np.array_equal(value, plain.state[name]) for name, value in masked.state.items())


def test_a_masked_group_keeps_its_running_statistics():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> m (float[N,2] x) => (float[N,2] y) { '
        "h = BatchNormalization(x, s1, b1, m1, v1) y = BatchNormalization(h, s2, b2, m2, v2) }"
    )
    for name in ("s1", "b1", "m1", "v1", "s2", "b2", "m2", "v2"):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(2, "f"), name))
    parameters = graphopt.parameters(model)
    optimizer = graphopt.RMSProp(
        [{"params": parameters.matching("?1")}, {"params": parameters.matching("?2")}]
    )
    graph = graphopt.training_graph(model, "mse", optimizer, group_mask=True)
    session = graphopt.Session(graph)
    x = np.random.default_rng(0).normal(size=(8, 2)).astype("f")
    before = session.state
    session.step({"x": x, "labels": x, "group_mask": np.array([True, False])})
    changed = {
        name for name, value in session.state.items() if not np.array_equal(before[name], value)
    }
    assert {name for name in changed if name[-1] == "2"} == set()
    assert {"m1", "v1", "s1"} <= changed


def test_a_masked_group_keeps_nan_out():
    optimizer = graphopt.RMSProp([{"params": [A]}, {"params": [B]}], momentum=0.9)
    graph = graphopt.update_graph(optimizer, group_mask=True)
    session = graphopt.Session(graph, {"a": np.ones(3, "f"), "b": np.ones(3, "f")})
    nan, one = np.full(3, np.nan, "f"), np.ones(3, "f")
    session.step({"a_grad": nan, "b_grad": one, "group_mask": np.array([False, True])})
    assert all(np.all(np.isfinite(value)) for value in session.state.values())


def test_a_masked_group_keeps_the_bits_of_float16():
    # Largest, infinite, -0, smallest; of a NaN the runtime keeps only that it is one.
    bits = np.array([0x7BFF, 0xFC00, 0x8000, 0x0001], np.uint16)
    w = graphopt.Parameter("w", bits.shape, "float16")
    graph = graphopt.update_graph(graphopt.RMSProp([w]), group_mask=True)
    session = graphopt.Session(graph, {"w": bits.view(np.float16)})
    session.step({"w_grad": np.ones(bits.shape, np.float16), "group_mask": np.array([False])})
    assert np.array_equal(session.state["w"].view(np.uint16), bits)


def test_the_mask_is_checked():
    session, data = masked_session(), digits.load().train
    feeds = {"x": data.x[:2], "labels": data.labels[:2]}
    with pytest.raises(ValueError, match="'group_mask': got shape"):
        session.step(feeds | {"group_mask": np.ones(2, bool)})
    with pytest.raises(TypeError, match="'group_mask': got dtype int64"):
        session.step(feeds | {"group_mask": np.ones(3, int)})


def test_groups_are_written_in_the_model():
    metadata = {entry.key: entry.value for entry in masked_session().graph.model.metadata_props}
    groups = json.loads(metadata["graphopt.groups"])
    assert groups[0] == {
        "parameters": ["conv1.weight", "conv1.bias"],
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "grad_centralization": False,
    }
    assert groups[1]["weight_decay"] == 0.1
    assert groups[2]["learning_rate"] == {
        "schedule": "CosineDecayLR",
        "min_lr": 0.001,
        "max_lr": 0.01,
        "decay_steps": 9,
    }


NOT_INITIALIZERS = {
    "input": ("m (float[N,2] x, float[2,2] w) => (float[N,2] y) { y = MatMul(x, w) }", "input"),
    "Constant": (
        (
            "m (float[N,2] x) => (float[N,2] y) <float[2] v = {1, 2}> "
            "{ w = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>() h = Mul(x, w) y = Add(h, v) }"
        ),
        "Constant node",
    ),
    "transposed": (
        (
            "m (float[N,2] x) => (float[N,2] y) <float[2,2] v = {1, 2, 3, 4}> "
            "{ w = Transpose(v) y = MatMul(x, w) }"
        ),
        "the output of Transpose of 'v'",
    ),
    "quantized": (
        (
            "m (float[N,2] x) => (float[N,2] y) <int8[2,2] q = {1, 2, 3, 4}, float s = {0.5}> "
            "{ w = DequantizeLinear(q, s) y = MatMul(x, w) }"
        ),
        "the dequantized value of 'q'",
    ),
}


@pytest.mark.parametrize(("text", "message"), NOT_INITIALIZERS.values(), ids=NOT_INITIALIZERS)
def test_what_is_no_initializer_gets_a_clear_answer(text, message):
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (2, 2))])
    with pytest.raises(
        ValueError, match=f"'w' is not an initializer of the model, but .*{message}"
    ):
        graphopt.training_graph(model, "mse", optimizer)


def test_choosing_parameters():
    parameters = graphopt.parameters(digits_cnn.build())
    names = [p.name for p in parameters]
    assert [p.name for p in parameters.matching("conv*")] == names[:4]
    assert [p.name for p in parameters.matching("*.bias", "dense2*")] == [
        "conv1.bias",
        "conv2.bias",
        "dense1.bias",
        "dense2.weight",
        "dense2.bias",
    ]
    assert [p.name for p in parameters.of_type("Conv")] == ["conv1.weight", "conv2.weight"]
    assert [p.name for p in parameters.of_rank(2, 4)] == names[::2]
    assert parameters.without(parameters.of_rank(1)) == parameters.of_rank(2, 4)
    with pytest.raises(ValueError, match=r"'pool\*' matches no parameter"):
        parameters.matching("conv*", "pool*")
