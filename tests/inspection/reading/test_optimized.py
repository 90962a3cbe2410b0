"""What `graphopt.inspect` finds in graphs that ONNX Runtime has optimized and saved."""

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt import Parameter, RMSProp
from graphopt.inspection.reading.members import listed, members
from graphopt.inspection.reading.metadata import described as said
from graphopt.inspection.reading.rates import schedule_steps
from graphopt.inspection.reading.read_model import read
from graphopt.inspection.reading.update import recognised
from graphopt.inspection.structure.roles import stages_of_nodes
from graphopt.inspection.structure.untrained import parameters_of, weights_of
from graphopt.schedules import (
    CosineDecayLR,
    ExponentialDecayLR,
    InverseDecayLR,
    MultiStepLR,
    NaturalExpDecayLR,
    PolynomialDecayLR,
    SequentialLR,
    WarmUpLR,
)
from models import zoo
from tests.helpers.configurations import (
    by_nodes,
    check,
    configured,
    described,
    without_declarations,
)
from tests.helpers.environments import needs_training_package

pytestmark = pytest.mark.any_runtime

CONFIGURATIONS = [
    "defaults",
    "buckets",
    "separate",
    "nesterov",
    "centered momentum",
    "epsilon outside",
    "rate outside",
    "weight decay",
    "centralized, decayed",
    "group mask",
    "cosine",
    "polynomial again",
    "three in sequence",
    "scaled decay schedule",
    "list",
    "dynamic loss scale",
    "skipping",
    "averaged",
    "averaged with warm-up",
    "clipped",
    "clipped by value",
    "clipped one by one",
    "clipped by group",
    "everything",
]


def optimized(model: onnx.ModelProto, folder) -> onnx.ModelProto:
    """What ONNX Runtime saves of a model, with the model's own metadata."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    saved = onnx.load(folder / "optimized.onnx")
    del saved.metadata_props[:]
    saved.metadata_props.extend(model.metadata_props)
    return saved


@pytest.mark.parametrize("name", CONFIGURATIONS)
class TestConfigurations:
    @pytest.mark.quick
    def test_with_metadata(self, name, tmp_path):
        opt, model = configured(name)
        found = graphopt.inspect(optimized(model, tmp_path))
        check(found, opt, "metadata and graph", described, opt.initial_mean_square)
        assert serious(found) == []

    def test_without_metadata(self, name, tmp_path):
        opt, model = configured(name)
        found = graphopt.inspect(optimized(without_declarations(model), tmp_path))
        check(found, opt, "graph", by_nodes, None)
        assert serious(found) == []


def serious(found: graphopt.inspection.Inspection) -> list[str]:
    """The hazards that are more than notes."""
    return [hazard.kind for hazard in found.hazards if hazard.level != "note"]


# Schedules of which optimizers leave out a sum with 0, or a product or quotient with 1.
NEUTRAL = [
    CosineDecayLR(0.0, 0.1, 90),
    CosineDecayLR(0.0, 1.0, 90),
    CosineDecayLR(0.25, 1.25, 90),
    CosineDecayLR(0.0, 0.1, 1),
    PolynomialDecayLR(0.1, 0.0, 90, 1.0),
    PolynomialDecayLR(1.0, 0.0, 90, 2.0),
    PolynomialDecayLR(0.1, 0.0, 90, 0.5, True),
    PolynomialDecayLR(0.1, 0.0, 1, 2.0, True),
    PolynomialDecayLR(1.0, 0.0, 1, 2.0),
    ExponentialDecayLR(0.1, 0.5, 1),
    ExponentialDecayLR(0.1, 0.5, 1, True),
    ExponentialDecayLR(1.0, 0.5, 4),
    NaturalExpDecayLR(0.1, 0.9, 1, True),
    NaturalExpDecayLR(1.0, 1.0, 5, True),
    NaturalExpDecayLR(1.0, 0.9, 1),
    InverseDecayLR(0.1, 1.0, 1),
    InverseDecayLR(0.1, 1.0, 7, True),
    InverseDecayLR(0.1, 0.5, 1, True),
    InverseDecayLR(1.0, 1.0, 1),
    MultiStepLR(0.1, 0.5, [1]),
    MultiStepLR(1.0, 0.5, [4, 7]),
    WarmUpLR(1.0, 10),
    WarmUpLR(0.1, 1),
    WarmUpLR(1.0, 1),
    SequentialLR([WarmUpLR(1.0, 10), CosineDecayLR(0.0, 1.0, 90)], [10]),
    SequentialLR([WarmUpLR(1.0, 1), PolynomialDecayLR(1.0, 0.0, 9, 1.0)], [1]),
]


@pytest.mark.parametrize("schedule", NEUTRAL, ids=repr)
@pytest.mark.parametrize("metadata", [True, False])
def test_numbers_that_change_nothing(schedule, metadata, tmp_path):
    opt = RMSProp([Parameter("w", (3, 2))], learning_rate=schedule)
    model = graphopt.update_graph(opt, layout="separate").model
    model = model if metadata else without_declarations(model)
    found = graphopt.inspect(optimized(model, tmp_path))
    (group,) = found.groups
    show = described if metadata else by_nodes
    assert group.learning_rate == show(schedule)
    assert found.hazards == ()
    for step, value in group.curve[::9]:
        assert value == pytest.approx(schedule.value(step), rel=1e-6, abs=1e-12)


HEAD = '<ir_version: 8, opset_import: ["": 17]>'


@pytest.mark.parametrize(
    "rate",
    [
        "r = Min(t, two)",  # no quotient: 2 steps cannot have been left out
        "m = Min(t, two) r = Div(m, three)",
        "m = Mul(t, t) r = Pow(tenth, m)",
        "m = Min(c, one) r = Mul(m, tenth)",  # not the step
    ],
)
def test_other_formulas_stay_expressions(rate):
    model = parser.parse_model(f"""{HEAD}
        u (float[3] w, float[3] s, float[3] g, float c, int64 global_step)
            => (float[3] "w.next", float[3] "s.next", int64 "global_step.next")
        <float d = {{0.9}}, float q = {{0.1}}, float e = {{1e-8}}, float tenth = {{0.1}},
         float one = {{1}}, float two = {{2}}, float three = {{3}}, int64 i = {{1}}>
        {{ "global_step.next" = Add(global_step, i) t = Cast<to = 1>(global_step) {rate}
           a = Mul(s, d) gg = Mul(g, g) b = Mul(gg, q) "s.next" = Add(a, b)
           v = Add("s.next", e) root = Sqrt(v) u = Div(g, root) x = Mul(u, r)
           "w.next" = Sub(w, x) }}""")
    (parameter,) = graphopt.inspect(model).parameters
    assert parameter.learning_rate["schedule"] == "expression"


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (CosineDecayLR(0.0, 0.1, 90), 90),
        (PolynomialDecayLR(0.1, 0.0, 9, 1.0), 9),
        (PolynomialDecayLR(0.1, 0.0, 9, 1.0, True), None),
        (WarmUpLR(0.1, 7), 7),
        (SequentialLR([WarmUpLR(0.1, 10), CosineDecayLR(0.0, 0.1, 90)], [10]), 100),
        (ExponentialDecayLR(0.1, 0.5, 4), None),
    ],
)
def test_when_a_schedule_ends(schedule, steps):
    assert schedule_steps(described(schedule)) == steps


SHAPES = {
    "cell.weight": (1, 128, 16),
    "cell.recurrence": (1, 128, 32),
    "cell.bias": (1, 256),
    "dense.weight": (5, 32),
    "dense.bias": (5,),
}


class TestMembers:
    """The parameters of a recurrent network, whose shapes the optimizer takes away."""

    @staticmethod
    @cache
    def lstm() -> onnx.ModelProto:
        model = zoo.ZOO["lstm"].build()
        opt = RMSProp(graphopt.parameters(model), momentum=0.9)
        return graphopt.training_graph(model, zoo.ZOO["lstm"].loss, opt, layout="buckets").model

    def members(self, model, names):
        """Those of the only bucket, with what the metadata lists."""
        for write in read(model).carried:
            update = recognised(write.new)
            if update is not None:
                found = members(write.input, update, names and names[write.input.name])
                return {member.name: member.shape for member in found}
        raise AssertionError("no update was recognised")

    def names(self, model):
        metadata = said(model)
        assert metadata is not None
        return listed(metadata.buckets, metadata.parameters)

    def nameless(self):
        """The graph, where no value is called as a parameter or its gradient."""
        model = onnx.ModelProto()
        model.CopyFrom(self.lstm())
        hidden = {f"{name}{end}": f"value_{name}{end}_" for name in SHAPES for end in ("", "_grad")}
        for node in model.graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    names[place] = hidden.get(name, name)
        return model

    def test_names_and_shapes_are_as_listed(self, tmp_path):
        for model in (optimized(self.lstm(), tmp_path), self.nameless()):
            assert self.members(model, self.names(model)) == SHAPES

    def test_names_that_nothing_says(self):
        found = self.members(self.nameless(), None)
        assert set(found).isdisjoint(SHAPES)
        assert [np.prod(shape) for shape in found.values()] == [
            np.prod(shape) for shape in SHAPES.values()
        ]

    @pytest.mark.parametrize(
        "change",
        [
            lambda names: names.pop("dense.bias"),  # another number
            lambda names: names.update({"cell.weight": (1, 128, 17)}),  # another size
        ],
    )
    def test_lists_that_do_not_fit_are_not_believed(self, change):
        saved = self.nameless()
        names = self.names(saved)
        for members_of_bucket in names.values():
            change(members_of_bucket)
        assert self.members(saved, names) == self.members(saved, None)

    def test_names_of_the_graph_count(self):
        names = self.names(self.lstm())
        for members_of_bucket in names.values():
            members_of_bucket["cell.weight"] = (128, 16)
        assert self.members(self.lstm(), names) == SHAPES

    def test_a_part_is_called_after_its_gradient(self):
        model = without_declarations(self.lstm())
        renamed = {"dense.weight": "Reshape_1", "Reshape_1": "another"}
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
        assert self.members(model, None) == SHAPES


def forward(body: str, arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A forward model of ``x`` float32 [N,4] and ``at`` int64 [N], with these initializers."""
    model = parser.parse_model(f"{HEAD} m (float[N,4] x, int64[N] at) => (y) {{ {body} }}")
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in arrays.items()
    )
    return model


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


MASK = np.triu(np.full((4, 4), -1e9, np.float32), 1)
ANGLES = np.arange(4)[:, None] * 100.0 ** -np.linspace(0, 1, 4)
COSINE, SINE = np.cos(ANGLES).astype(np.float32), np.sin(ANGLES).astype(np.float32)
WEIGHT = normal(4, 4)


@pytest.mark.parametrize(
    ("body", "arrays", "wanted"),
    [
        ("h = MatMul(x, w) y = Add(h, mask)", {"mask": MASK}, ["w"]),
        ("h = MatMul(x, w) y = Mul(h, cosine)", {"cosine": COSINE}, ["w"]),
        ("h = MatMul(x, w) y = Mul(h, sine)", {"sine": SINE}, ["w"]),
        (
            "h = MatMul(x, w) c = Gather(cosine, at) y = Mul(h, c)",
            {"cosine": COSINE.astype(np.float16).astype(np.float32)},
            ["w"],
        ),
        ("d = Sub(x, mean) y = MatMul(d, w)", {"mean": normal(4)}, ["w"]),
        ("d = Sub(x, mean) e = Div(d, std) y = MatMul(e, w)",
         {"mean": normal(4), "std": normal(4)}, ["w"]),
        ("h = MatMul(x, w) y = Add(h, b)", {"b": normal(4)}, ["w", "b"]),
        ("h = MatMul(x, w) y = Add(h, b)", {"b": np.zeros(4, np.float32)}, ["w", "b"]),
        ("h = MatMul(x, w) y = Mul(h, scale)", {"scale": np.ones(4, np.float32)}, ["w", "scale"]),
        ("h = MatMul(x, w) y = Div(h, scale)", {"scale": normal(4)}, ["w", "scale"]),
        ("h = MatMul(x, w) y = Add(h, p)", {"p": normal(4, 4)}, ["w", "p"]),
        ("t = Transpose(w) h = MatMul(x, t) y = Add(h, b)", {"b": normal(4)}, ["w", "b"]),
        ("e = Gather(w, at) y = Add(e, p)", {"p": normal(4)}, ["w", "p"]),
        ("v = Mul(w, g) y = MatMul(x, v)", {"g": normal(4)}, ["w", "g"]),
    ],
)  # fmt: skip
def test_what_could_be_trained(body, arrays, wanted):
    found = graphopt.inspect(forward(body, {"w": WEIGHT} | arrays))
    assert [parameter.name for parameter in found.parameters] == wanted


@needs_training_package
def test_a_causal_mask_is_not_trained():
    model = zoo.ZOO["language_model"].build()
    opt = RMSProp(graphopt.parameters(model))
    graph = graphopt.training_graph(model, zoo.ZOO["language_model"].loss, opt, portable=False)
    assert graphopt.inspect(graph).frozen == ()


def test_weights_are_those_of_the_forward_pass():
    """Whatever stands first, forward or backward pass."""
    opt, model = configured("separate")
    model = without_declarations(model)
    reading = read(model)
    weights = weights_of(reading, stages_of_nodes(reading))
    readers = {node.op_type for node in reading.file.model.graph if node.op_type.startswith("Conv")}
    assert readers == {"Conv", "ConvTranspose"}
    found = {p.name: p.op_type for p in parameters_of(reading, weights, ())}
    assert found == {parameter.name: parameter.op_type for parameter in opt.params}


@pytest.mark.parametrize(
    ("op_type", "wanted", "operands"),
    [("FusedConv", "Conv", "x, w, b"), ("FusedGemm", "Gemm", "x, w, b"),
     ("FusedMatMul", "MatMul", "x, w")],
)  # fmt: skip
def test_operators_that_are_joined(op_type, wanted, operands):
    shape = (4, 4, 1, 1) if op_type == "FusedConv" else (4, 4)
    x = "float[1,4,8,8]" if op_type == "FusedConv" else "float[2,4]"
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>'
        f"m ({x} x) => (y) {{ y = com.microsoft.{op_type} ({operands}) }}"
    )
    model.graph.initializer.append(numpy_helper.from_array(normal(*shape), "w"))
    model.graph.initializer.append(numpy_helper.from_array(normal(4), "b"))
    found = {p.name: p.op_type for p in graphopt.inspect(model).parameters}
    assert found["w"] == wanted


def test_an_input_with_a_default_is_an_input():
    """As files before IR version 4 have it, and some exporters since."""
    model = parser.parse_model(f"{HEAD} m (float[2] x, float rate) => (y) {{ y = Mul(x, rate) }}")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "rate"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "other"))
    values = read(model).flow.values
    assert values["rate"].is_input
    assert values["rate"].constant is None
    assert values["rate"].number is None
    assert (values["rate"].shape, values["rate"].dtype) == ((), "float32")
    assert not values["other"].is_input
    assert values["other"].number == 0.5
