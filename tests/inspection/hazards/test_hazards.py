"""Every hazard is found on a graph that was made to have it, and none on a clean one."""

import json

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, inliner, numpy_helper

import graphopt
from graphopt import DynamicLossScale, Parameter, RMSProp
from graphopt.examples import digits_cnn
from graphopt.schedules import (
    CosineDecayLR,
    ExponentialDecayLR,
    FromCaller,
    NaturalExpDecayLR,
    PolynomialDecayLR,
    SequentialLR,
    WarmUpLR,
)
from models import zoo
from tests.helpers.configurations import inlined, without_metadata
from tests.helpers.zoo import zoo_graph

pytestmark = pytest.mark.any_runtime

MODEL = digits_cnn.build()
PARAMETERS = graphopt.parameters(MODEL)
SMALL = [Parameter("w", (3, 2)), Parameter("b", (2,))]


def kinds(model, **arguments):
    return [(hazard.kind, hazard.level) for hazard in graphopt.inspect(model, **arguments).hazards]


def only(model, **arguments):
    """The one hazard of a model."""
    (hazard,) = graphopt.inspect(model, **arguments).hazards
    assert hazard.why
    assert hazard.fix
    return hazard


def update(parameters=SMALL, layout="separate", **optimizer):
    opt = RMSProp(parameters, **{"learning_rate": 0.01} | optimizer)
    return graphopt.update_graph(opt, layout=layout).model


def trained(model=MODEL, loss="cross_entropy", parameters=None, graph=None, **optimizer):
    parameters = graphopt.parameters(model) if parameters is None else parameters
    return graphopt.training_graph(model, loss, RMSProp(parameters, **optimizer), **graph or {})


class TestClean:
    @pytest.mark.parametrize("name", zoo.ZOO)
    def test_networks(self, name):
        assert kinds(zoo_graph(name).model) == []

    @pytest.mark.parametrize("accumulate", [False, True])
    def test_on_device(self, tmp_path, accumulate):
        opt = RMSProp(PARAMETERS, momentum=0.9, centered=True)
        files = graphopt.export_on_device(
            MODEL, "cross_entropy", opt, tmp_path, gradient_accumulation=accumulate
        )
        assert kinds(files.training_model) == []
        assert kinds(files.eval_model) == []

    def test_on_device_optimizer(self, tmp_path):
        opt = RMSProp(PARAMETERS, momentum=0.9)
        files = graphopt.export_on_device(
            MODEL, "cross_entropy", opt, tmp_path, optimizer_model=True
        )
        assert kinds(files.training_model) == []
        assert kinds(files.optimizer_model) == []


QUANTIZED = """<ir_version: 8, opset_import: ["": 17]> m (float[5,8] x) => (float[5,4] y)
<float sx = {0.02}, uint8 zx = {128}, float sw = {0.01}, int8 zw = {0},
 float sy = {0.05}, uint8 zy = {128}>
{
    xq = QuantizeLinear(x, sx, zx) xd = DequantizeLinear(xq, sx, zx)
    wq = QuantizeLinear(w, sw, zw) wd = DequantizeLinear(wq, sw, zw)
    h = MatMul(xd, wd) hq = QuantizeLinear(h, sy, zy) hd = DequantizeLinear(hq, sy, zy)
    y = MatMul(hd, v)
}"""


class TestQuantized:
    def graph(self, *trained, **options):
        rng = np.random.default_rng(0)
        model = onnx.parser.parse_model(QUANTIZED)
        for name, shape in (("w", (8, 4)), ("v", (4, 4))):
            array = rng.normal(scale=0.5, size=shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        parameters = graphopt.parameters(model).matching(*trained)
        optimizer = RMSProp(parameters, learning_rate=1e-9)
        return graphopt.training_graph(model, "mse", optimizer, **options)

    def test_named_where_only_the_head_is_trained(self):
        assert ("quantized-fusion", "note") in kinds(self.graph("v").model)
        (hazard,) = (h for h in graphopt.inspect(self.graph("v")).hazards if "quant" in h.kind)
        assert hazard.where == ("h",)

    def test_not_where_a_gradient_reads_what_lies_between(self):
        assert kinds(self.graph("v", "w", straight_through=True).model) == []


@pytest.mark.parametrize(("name", "value"), [("decay", 0.8), ("epsilon", 1e-3)])
def test_parameters_that_are_updated_in_different_ways(name, value):
    model = without_metadata(update())
    node = next(node for node in model.graph.node if "b.next" in node.output)
    next(attribute for attribute in node.attribute if attribute.name == name).f = value
    hazard = only(model)
    assert (hazard.kind, hazard.level, hazard.where) == ("mixed-updates", "error", ("b",))


class TestNoGradient:
    @pytest.mark.quick
    def test_nothing_updates_it(self):
        model = update()
        keep = [entry for entry in model.training_info[0].update_binding if entry.key != "b"]
        del model.training_info[0].update_binding[:]
        model.training_info[0].update_binding.extend(keep)
        found = {hazard.kind: hazard for hazard in graphopt.inspect(model).hazards}
        assert found["no-gradient"].where == ("b",)
        assert found["no-gradient"].level == "error"

    @pytest.mark.parametrize("layout", ["chunks", "separate"])
    def test_its_gradient_is_a_constant(self, layout):
        model = trained(graph={"layout": layout}).model
        gradient = next(
            parameter.gradient
            for parameter in graphopt.inspect(model).parameters
            if parameter.name == "dense2.bias"
        )
        for node in model.graph.node:
            for index, name in enumerate(node.output):
                if name == gradient:
                    node.output[index] = "unused"
        zeros = numpy_helper.from_array(np.zeros(10, np.float32), gradient)
        model.graph.initializer.append(zeros)
        assert only(model).where == ("dense2.bias",)
        assert only(model).kind == "no-gradient"


class TestNoGroup:
    def test_a_group_lacks_it(self):
        model = update()
        for entry in model.metadata_props:
            if entry.key == "graphopt.groups":
                groups = json.loads(entry.value)
                groups[0]["parameters"].remove("b")
                entry.value = json.dumps(groups)
        hazard = only(model)
        assert (hazard.kind, hazard.level, hazard.where) == ("no-group", "warning", ("b",))

    def test_it_is_not_trained(self):
        conv = PARAMETERS.matching("conv*")
        model = trained(parameters=PARAMETERS.without(conv)).model
        for graph in (model, without_metadata(model)):
            hazard = only(graph)
            assert (hazard.kind, hazard.level) == ("not-trained", "note")
            assert set(hazard.where) == {parameter.name for parameter in conv}
            assert set(graphopt.inspect(graph).frozen) == set(hazard.where)


class TestStateNotCarried:
    @pytest.mark.parametrize("state", ["mean_square.w", "mean_grad.w", "moment.w"])
    def test_its_new_value_is_lost(self, state):
        model = update(momentum=0.9, centered=True)
        binding = model.training_info[0].update_binding
        keep = [entry for entry in binding if entry.key != state]
        del binding[:]
        binding.extend(keep)
        hazard = only(without_metadata(model))
        assert (hazard.kind, hazard.level, hazard.where) == ("state-not-carried", "error", (state,))

    def test_another_value_is_carried(self):
        model = update(momentum=0.9)
        for entry in model.training_info[0].update_binding:
            if entry.key == "mean_square.w":
                entry.value = "moment.w.next"
            elif entry.key == "moment.w":
                entry.value = "mean_square.w.next"
        found = {hazard.kind: hazard for hazard in graphopt.inspect(model).hazards}
        assert set(found["state-not-carried"].where) == {"mean_square.w", "moment.w"}

    def test_it_is_a_constant(self):
        model = without_metadata(update([SMALL[0]]))
        kept = [value for value in model.graph.input if value.name != "mean_square.w"]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        ones = numpy_helper.from_array(np.ones((3, 2), np.float32), "mean_square.w")
        model.graph.initializer.append(ones)
        binding = model.training_info[0].update_binding
        keep = [entry for entry in binding if entry.key != "mean_square.w"]
        del binding[:]
        binding.extend(keep)
        assert only(model).kind == "state-not-carried"


class TestEarlyWrite:
    TEXT = """<ir_version: 8, opset_import: ["": 17]>
    early (float[2,2] w, float[2,2] x) => (float[2,2] "w.next", float[2,2] back)
    <float lr = {0.1}> {
        y = MatMul(x, w)
        back = MatMul(y, w)
        lg = Mul(y, lr)
        "w.next" = Sub(w, lg)
    }"""

    def test_an_output_over_its_input(self):
        hazard = only(onnx.parser.parse_model(self.TEXT))
        assert (hazard.kind, hazard.level, hazard.where) == ("early-write", "note", ("w",))

    def test_in_place(self, tmp_path):
        """Without what makes writes wait, a parameter may be written before a gradient reads it."""
        files = graphopt.export_on_device(MODEL, "cross_entropy", RMSProp(PARAMETERS), tmp_path)
        model = onnx.load(files.training_model)
        flat = numpy_helper.from_array(np.array([-1]), "now")
        model.graph.initializer.append(flat)
        waits = {name for node in model.graph.node if node.op_type == "Min" for name in node.output}
        for node in model.graph.node:
            if node.op_type == "Reshape" and node.input[1] in waits:
                node.input[1] = "now"
        hazard = only(model)
        assert (hazard.kind, hazard.level) == ("early-write", "error")
        assert "dense2.weight" in hazard.where


class TestEpsilon:
    @pytest.mark.quick
    @pytest.mark.parametrize(
        ("epsilon", "level"), [(1e-46, "error"), (1e-40, "warning"), (1.2e-38, None)]
    )
    def test_float32(self, epsilon, level):
        expected = [] if level is None else [("epsilon-too-small", level)]
        assert kinds(update(epsilon=epsilon)) == expected

    @pytest.mark.parametrize(("epsilon", "level"), [(1e-10, "error"), (1e-5, "warning")])
    def test_states_in_float16(self, epsilon, level):
        text = f"""<ir_version: 8, opset_import: ["": 17]>
        half (float16[4] w, float16[4] s, float16[4] w_grad)
            => (float16[4] "w.next", float16[4] "s.next")
        <float rho32 = {{0.9}}, float one32 = {{1.0}}, float eps = {{{epsilon:.12f}}},
         float lr32 = {{0.1}}> {{
            rho = Cast<to = 10>(rho32)
            one = Cast<to = 10>(one32)
            lr = Cast<to = 10>(lr32)
            gg = Mul(w_grad, w_grad)
            rest = Sub(one, rho)
            old = Mul(s, rho)
            new = Mul(gg, rest)
            "s.next" = Add(old, new)
            e = Cast<to = 10>(eps)
            r = Add("s.next", e)
            d = Sqrt(r)
            lg = Mul(w_grad, lr)
            u = Div(lg, d)
            "w.next" = Sub(w, u)
        }}"""
        hazard = only(onnx.parser.parse_model(text))
        assert (hazard.kind, hazard.level) == ("epsilon-too-small", level)
        assert "float16" in hazard.why


class TestSchedules:
    @pytest.mark.parametrize(
        ("schedule", "steps", "level"),
        [
            ([0.1] * 100, 100, None),
            ([0.1] * 100, 101, "error"),
            (CosineDecayLR(0.0, 0.1, 100), 100, None),
            (CosineDecayLR(0.0, 0.1, 100), 200, "warning"),
            (CosineDecayLR(0.01, 0.1, 100), 200, "note"),
            (PolynomialDecayLR(0.1, 0.0, 100, 1.0), 200, "warning"),
            (PolynomialDecayLR(0.1, 0.01, 100, 1.0, True), 200, None),
            (SequentialLR([WarmUpLR(0.1, 10), CosineDecayLR(0.0, 0.1, 90)], [10]), 100, None),
            (SequentialLR([WarmUpLR(0.1, 10), CosineDecayLR(0.0, 0.1, 90)], [10]), 101, "warning"),
            (ExponentialDecayLR(0.1, 0.9, 10), 10_000, None),
            (WarmUpLR(0.1, 10), 10_000, None),
            (NaturalExpDecayLR(1.0, 50.0, 1), 10_000, "warning"),
            (0.1, 10_000, None),
        ],
    )
    def test_too_short(self, schedule, steps, level):
        model = update(learning_rate=schedule)
        expected = [] if level is None else [("schedule-too-short", level)]
        assert kinds(model, steps=steps) == expected
        assert kinds(inlined(model), steps=steps) == expected
        assert kinds(model) == []

    @pytest.mark.parametrize("rate", [0.0, [0.0] * 3, WarmUpLR(0.0, 10)], ids=repr)
    def test_zero_at_every_step(self, rate):
        groups = [{"params": SMALL[:1]}, {"params": SMALL[1:], "lr": rate}]
        model = update(groups)
        for same in (model, inlined(model)):
            hazard = only(same)
            assert (hazard.kind, hazard.level) == ("zero-rate", "warning")
            assert hazard.where == ("group 1",)

    @pytest.mark.parametrize("rate", [[0.0, 0.1], WarmUpLR(0.1, 10), FromCaller()], ids=repr)
    def test_zero_at_times(self, rate):
        assert kinds(update(learning_rate=rate)) == []


class TestTarget:
    @pytest.mark.parametrize(
        ("target", "expected"),
        [(None, []), ("onnxruntime==1.19", []), ("onnxruntime==1.16", [("above-target", "error")])],
    )
    def test_opset(self, target, expected):
        model = update()
        for entry in [*model.opset_import, *(e for f in model.functions for e in f.opset_import)]:
            if not entry.domain:
                entry.version = 21
        assert kinds(model, target=target) == expected

    def test_ir_version(self):
        model = update()
        model.ir_version = 11
        hazard = only(model, target="onnxruntime==1.19")
        assert hazard.kind == "above-target"
        assert "IR" in hazard.why


CENTERED = """<ir_version: 8, opset_import: ["": 17]>
centered (float[4] w, float[4] s, float[4] a, float[4] w_grad)
    => (float[4] "w.next", float[4] "s.next", float[4] "a.next")
<float rho = {0.9}, float rest = {0.1}, float eps = {1e-10}, float lr = {0.1}> {
    gg = Mul(w_grad, w_grad)
    old_s = Mul(s, rho)
    new_s = Mul(gg, rest)
    "s.next" = Add(old_s, new_s)
    old_a = Mul(a, rho)
    new_a = Mul(w_grad, rest)
    "a.next" = Add(old_a, new_a)
    aa = Mul("a.next", "a.next")
    variance = Sub("s.next", aa)
    radicand = Add(variance, eps)
    d = Sqrt(radicand)
    lg = Mul(w_grad, lr)
    u = Div(lg, d)
    "w.next" = Sub(w, u)
}"""


def test_centered_without_the_guard():
    model = onnx.parser.parse_model(CENTERED)
    hazard = only(model)
    assert (hazard.kind, hazard.level, hazard.where) == ("unguarded-centered", "warning", ("w",))
    found = graphopt.inspect(model).optimizer
    assert (found.centered, found.guarded, found.decay, found.epsilon) == (True, False, 0.9, 1e-10)


def test_centered_with_a_guard_of_another_kind():
    guarded = CENTERED.replace(
        "u = Div(lg, d)\n",
        "q = Div(lg, d)\n zero = Constant<value = float {0.0}>()\n moves = Greater(d, zero)\n"
        " u = Where(moves, q, zero)\n",
    )
    model = onnx.parser.parse_model(guarded)
    assert kinds(model) == []
    assert graphopt.inspect(model).optimizer.guarded is True


def normalized(bias: bool, between: str = "") -> onnx.ModelProto:
    """A convolution, perhaps with a bias, before batch normalization."""
    rng = np.random.default_rng(0)
    shapes = {"cw": (3, 2, 3, 3), "cb": (3,), "scale": (3,), "shift": (3,), "mean": (3,)}
    shapes |= {"var": (3,), "dw": (3, 4)}
    values = {n: rng.standard_normal(s).astype(np.float32) ** 2 for n, s in shapes.items()}
    if not bias:
        del values["cb"]
    normalizes = between or "c"
    nodes = [
        helper.make_node("Conv", ["x", "cw", "cb"] if bias else ["x", "cw"], ["c"]),
        *([helper.make_node(between, ["c"], [between])] if between else []),
        helper.make_node(
            "BatchNormalization", [normalizes, "scale", "shift", "mean", "var"], ["n"]
        ),
        helper.make_node("GlobalAveragePool", ["n"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "dw"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, ["N", 2, 6, 6])],
        [helper.make_tensor_value_info("y", 1, ["N", 4])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class TestNoise:
    @pytest.mark.parametrize("strip", [lambda model: model, without_metadata, inlined])
    @pytest.mark.parametrize("layout", ["chunks", "separate"])
    def test_bias_before_batch_normalization(self, strip, layout):
        model = strip(trained(normalized(bias=True), graph={"layout": layout}).model)
        hazard = only(model)
        assert (hazard.kind, hazard.level, hazard.where) == ("noise-gradient", "note", ("cb",))

    @pytest.mark.parametrize(("bias", "between"), [(False, ""), (True, "Relu")])
    def test_others(self, bias, between):
        assert kinds(trained(normalized(bias, between)).model) == []

    def test_frozen_statistics(self):
        """Normalization by running statistics does not take the bias away."""
        model = normalized(bias=True)
        parameters = graphopt.parameters(model)
        frozen = parameters.matching("scale", "shift")
        graph = trained(model, parameters=parameters.without(frozen)).model
        assert kinds(graph) == [("not-trained", "note")]

    def test_its_gradient_is_indeed_rounding_error(self):
        model = normalized(bias=True)
        session = graphopt.Session(trained(model, learning_rate=0.001))
        before = session.state["cb"]
        rng = np.random.default_rng(1)
        for _ in range(3):
            x = rng.standard_normal((8, 2, 6, 6)).astype(np.float32)
            session.step({"x": x, "labels": rng.integers(0, 4, 8)})
        squares = session.state["mean_square.cb"]
        assert np.all(squares < 0.9**3 * (1 + 1e-6))  # it only shrinks: the gradient adds nothing
        assert np.abs(session.state["cb"] - before).max() < 1e-8


class TestLossScale:
    def test_float32(self):
        hazard = only(update(loss_scale=1024.0))
        assert (hazard.kind, hazard.level) == ("loss-scale-unchecked", "note")

    def test_float16(self):
        half = [Parameter("w", (3,), dtype="float16")]
        hazard = only(update(half, loss_scale=1024.0))
        assert (hazard.kind, hazard.level) == ("loss-scale-unchecked", "warning")

        assert "skip_on_overflow=True" in hazard.fix
        assert "DynamicLossScale()" in hazard.fix

    @pytest.mark.parametrize(
        "optimizer",
        [
            {"loss_scale": DynamicLossScale()},
            {"loss_scale": 1024.0, "skip_on_overflow": True},
            {"loss_scale": FromCaller("loss_scale"), "skip_on_overflow": True},
            {"loss_scale": DynamicLossScale(growth_interval=2)},
            {"loss_scale": DynamicLossScale(growth_interval=1, ceiling=65536.0)},
            {"clip_norm": 1e-6},
            {"skip_on_overflow": True},
        ],
    )
    @pytest.mark.parametrize("strip", [lambda model: model, inlined])
    def test_none(self, optimizer, strip):
        half = [Parameter("w", (3,), dtype="float16"), Parameter("b", (2,))]
        assert kinds(strip(update(half, **optimizer))) == []

    def test_fed_and_unchecked(self):
        half = [Parameter("w", (3,), dtype="float16")]
        hazard = only(update(half, loss_scale=FromCaller("loss_scale")))
        assert (hazard.kind, hazard.level) == ("loss-scale-unchecked", "warning")

    @pytest.mark.parametrize("strip", [lambda model: model, inlined])
    def test_it_grows_each_step(self, strip):
        model = strip(update(loss_scale=DynamicLossScale(growth_interval=1)))
        hazard = only(model)
        assert (hazard.kind, hazard.level) == ("growth-each-step", "warning")

    @pytest.mark.parametrize("layout", ["separate", "chunks", "foreach"])
    def test_the_gradient_of_one_parameter_is_not_looked_at(self, layout):
        model = inlined(update(layout=layout, skip_on_overflow=True))
        (product, *_) = [
            node
            for node in model.graph.node
            if node.op_type == "Mul" and node.input[0] == "b_grad" and "zeros" in node.output[0]
        ]
        product.input[0] = "w_grad"
        hazard = only(model)
        assert (hazard.kind, hazard.where) == ("unchecked-gradient", ("b",))

    def test_checked(self):
        """A graph that looks for infinite gradients itself."""
        model = inliner.inline_local_functions(update([SMALL[0]], loss_scale=1024.0))
        model.graph.node.insert(0, helper.make_node("IsInf", ["w_grad"], ["overflowed"]))
        model.graph.output.append(helper.make_tensor_value_info("overflowed", 9, [3, 2]))
        assert kinds(model) == []


class TestUnknownUpdate:
    def test_of_one_of_two_parameters(self):
        """The metadata says RMSProp of both, and one takes the sign of its gradient."""
        model = update()
        node = next(node for node in model.graph.node if "b.next" in node.output)
        node.output[list(node.output).index("b.next")] = "unused"
        model.graph.node.append(helper.make_node("Sign", ["b_grad"], ["sign"]))
        model.graph.node.append(helper.make_node("Sub", ["b", "sign"], ["b.next"]))
        for graph in (model, without_metadata(model)):
            found = {hazard.kind: hazard for hazard in graphopt.inspect(graph).hazards}
            assert found["unknown-update"].level == "warning"
            assert "b" in found["unknown-update"].where
            assert "no-gradient" not in found

    def test_what_a_mask_keeps(self):
        """A parameter that takes the value of another one where its group is not enabled."""
        opt = RMSProp([Parameter("w", (3,)), Parameter("v", (3,))])
        graph = graphopt.update_graph(opt, group_mask=True, layout="separate").model
        model = inliner.inline_local_functions(without_metadata(graph))
        (node,) = (node for node in model.graph.node if "w.next" in node.output)
        node.input[list(node.input).index("w")] = "v"
        found = graphopt.inspect(model)
        assert [parameter.name for parameter in found.parameters] == ["v"]
        assert "unknown-update" in [hazard.kind for hazard in found.hazards]


@pytest.mark.parametrize(("name", "value"), [("decay", 1.0), ("decay", 2.0), ("momentum", 1.5)])
def test_averages_that_never_forget(name, value):
    model = update(**{name: value})
    assert ("unstable", "warning") in kinds(model)
    assert kinds(update(decay=0.999, momentum=0.99)) == []


def test_without_epsilon():
    """As tools that take it for zero leave the graph."""
    model = inliner.inline_local_functions(without_metadata(update([SMALL[0]])))
    (root,) = (node for node in model.graph.node if node.op_type == "Sqrt")
    (added,) = (node for node in model.graph.node if root.input[0] in node.output)
    root.input[0] = added.input[0]
    hazard = only(model)
    assert (hazard.kind, hazard.level) == ("epsilon-too-small", "error")
    assert "no epsilon" in hazard.why
    assert graphopt.inspect(model).optimizer.formula[-1] == "w ← w - learning_rate · g / √s"


def test_the_worst_comes_first():
    model = update(loss_scale=2.0, epsilon=1e-46, learning_rate=CosineDecayLR(0.0, 0.1, 10))
    levels = [hazard.level for hazard in graphopt.inspect(model, steps=20).hazards]
    assert levels == ["error", "warning", "note"]


BATCH_NORMALIZATION = """<ir_version: 8, opset_import: ["": {opset}]>
m (float[4,2] x) => (float[4,2] y) <float[2] s = {{1, 2}}, float[2] b = {{0, 1}},
 float[2] mean = {{0.5, 0}}, float[2] var = {{1, 2}}>
{{ {given} = BatchNormalization {attributes} (x, s, b, mean, var) }}"""

DROPOUT = """<ir_version: 8, opset_import: ["": {opset}]>
m (float[4,2] x) => (float[4,2] y) <float[2,2] w = {{1, 2, 3, 4}}, float p = {{0.5}},
 bool yes = {{1}}, bool no = {{0}}, float[4,2] like = {{1, 1, 1, 1, 1, 1, 1, 1}}>
{{ z = MatMul(x, w) {nodes} }}"""

WRITTEN = (
    """u = RandomUniformLike(like) c = Less(u, p) m = Cast<to = 1>(c) k = Div(m, p) y = Mul(z, k)"""
)


def normalization(opset, attributes="", given="y"):
    text = BATCH_NORMALIZATION.format(opset=opset, attributes=attributes, given=given)
    return onnx.parser.parse_model(text)


def dropout(nodes, opset=17):
    return onnx.parser.parse_model(DROPOUT.format(opset=opset, nodes=nodes))


class TestTrainingMode:
    @pytest.mark.parametrize(
        ("model", "where"),
        [
            (normalization(17, "<training_mode = 1>", "y, m2, v2"), "y"),
            (normalization(13, given="y, m2, v2"), "y"),
            (normalization(6), "y"),
            (dropout("y = Dropout(z, p, yes)"), "y"),
            (dropout("y = Dropout(z)", opset=6), "y"),
            (dropout(WRITTEN), "c"),
        ],
        ids=[
            "normalization",
            "normalization 13",
            "normalization 6",
            "dropout",
            "dropout 6",
            "mask",
        ],
    )
    def test_found(self, model, where):
        hazard = only(model)
        assert (hazard.kind, hazard.level, hazard.where) == ("training-mode", "warning", (where,))
        assert "session.export" in hazard.fix

    @pytest.mark.parametrize(
        "model",
        [
            normalization(17),
            normalization(13),
            normalization(6, "<is_test = 1>"),
            dropout("y = Dropout(z, p, no)"),
            dropout("y = Dropout(z, p)"),
            dropout("y = Dropout(z)", opset=10),
        ],
        ids=["normalization", "13", "6", "dropout", "without a mode", "10"],
    )
    def test_inference(self, model):
        assert kinds(model) == []

    @pytest.mark.parametrize("training", [True, False])
    def test_exported(self, tmp_path, training):
        """What a session exports is clean, unless the mode of training was asked for."""
        model = dropout("y = Dropout(z, p, yes)")
        graph = trained(model, "mse", graphopt.parameters(model).matching("w"))
        session = graphopt.Session(graph)
        path = tmp_path / "trained.onnx"
        session.export(path, training=training)
        found = [("training-mode", "warning")] if training else []
        assert kinds(path) == found
        assert "training-mode" not in dict(kinds(graph))
