"""The browser page of an inspection: what it holds, and what Chromium makes of it."""

# ruff: noqa: RUF001  # formulas have minus signs and Greek letters

import base64
import hashlib
import json
import math
import re
from collections import namedtuple
from dataclasses import replace
from functools import reduce
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import graphopt
from graphopt.examples import digits_cnn
from graphopt.inspection import facts as f, words as words
from graphopt.inspection.reading.read_model import read
from graphopt.inspection.show.formula import update_lines
from graphopt.inspection.show.page import page
from graphopt.inspection.show.page.page_facts import payload
from graphopt.reference import ReferenceRMSProp
from graphopt.requirement import Requirements
from tests.helpers.page_browser import CONTRAST, visited

pytestmark = pytest.mark.any_runtime

COSINE = {"schedule": "CosineDecayLR", "min_lr": 0.0, "max_lr": 0.01, "decay_steps": 900}
FORMULA = (
    "g ← (g + w · weight_decay · loss_scale) / loss_scale",
    "s ← decay · s + (1 − decay) · g²",
    "a ← decay · a + (1 − decay) · g",
    "m ← momentum · m + learning_rate · g / √(s − a² + epsilon)",
    "w ← w − m",
)
RMSPROP = f.OptimizerFacts(
    name="RMSProp",
    source="metadata and graph",
    decay=0.9,
    momentum=0.9,
    epsilon=1e-10,
    centered=True,
    loss_scale=2.0,
    use_locking=False,
    epsilon_inside_root=True,
    initial_mean_square=1.0,
    learning_rate_inside_moment=True,
    decoupled_weight_decay=False,
    nesterov=False,
    group_mask=True,
    guarded=True,
    formula=FORMULA,
)
STATES = ("mean_square", "mean_grad", "moment")
HAZARDS = (
    f.Hazard(
        "no-gradient",
        "error",
        ("conv1.bias",),
        "The loss does not depend on it, so its gradient is missing.",
        "Freeze it, or connect it to the loss.",
    ),
    f.Hazard("old-opset", "note", (), "The graph needs opset 17.", "Nothing, unless it is old."),
)
TARGETS = (
    f.TargetFacts("ONNX Runtime (CPU)", True),
    f.TargetFacts("ONNX Runtime (CUDA)", True, ("2 nodes of Scan run on the CPU, with copies.",)),
    f.TargetFacts(
        "on-device training API", False, ("It takes no whole step; use graphopt.export_on_device.",)
    ),
)

Row = namedtuple("Row", "name shape op_type group")
DIGITS = [
    Row("conv1.weight", (16, 1, 3, 3), "Conv", 0),
    Row("conv1.bias", (16,), None, 0),
    Row("conv2.weight", (32, 16, 3, 3), "Conv", 0),
    Row("conv2.bias", (32,), None, 0),
    Row("dense1.weight", (64, 128), "Gemm", 1),
    Row("dense1.bias", (64,), None, 1),
    Row("dense2.weight", (10, 64), "Gemm", 1),
    Row("dense2.bias", (10,), None, 1),
]
HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>--><svg/onload=alert(1)>",
    "&lt;b&gt; {{facts}} ${1} `'\"\\",
    "__proto__",
    "constructor",
    "a\u202eb\u2028c\x00d\x1b[31m",
    "名前.重み",
]


def parameter(row, index=0):
    size = math.prod(row.shape)
    centralized = row.group == 0 and row.op_type == "Conv"
    return f.ParameterFacts(
        name=row.name,
        shape=row.shape,
        dtype="float32",
        op_type=row.op_type,
        group=row.group,
        learning_rate=0.1 if row.group == 0 else COSINE,
        weight_decay=0.01 if row.group == 0 else 0.0,
        grad_centralization=centralized,
        states=STATES,
        bytes=4 * size,
        state_bytes=12 * size,
        gradient=f"{row.name}_grad",
        bucket=f"bucket{index}",
    )


def groups(parameters):
    cosine = tuple(
        (step, 0.005 * (1 + math.cos(math.pi * min(step, 900) / 900)))
        for step in range(0, 1000, 20)
    )
    return tuple(
        f.GroupFacts(
            tuple(p.name for p in parameters if p.group == index), rate, decay, index == 0, curve
        )
        for index, (rate, decay, curve) in enumerate(
            [(0.1, 0.01, ((0, 0.1),)), (COSINE, 0.0, cosine)]
        )
    )


def bucket(name, parameters):
    """A bucket with the nodes that a graph has for it, as ONNX text."""
    nodes = [
        f'Reshape_{index} = Reshape ("{p.gradient}", flat_1)' for index, p in enumerate(parameters)
    ]
    states = ", ".join([f'"{name}"', *(f'"{state}.{name}"' for state in STATES)])
    made = ", ".join([f'"{name}.next"', *(f'"{state}.{name}.next"' for state in STATES)])
    function = "CenteredRMSPropMomentumUnscaleMask"
    call = f"graphopt.{function} <decay: float = 0.9, epsilon: float = 1e-10> ({states}, Reshape_0)"
    return f.BucketFacts(
        name,
        function,
        (1, sum(p.size for p in parameters)),
        tuple(p.name for p in parameters),
        (*nodes, f"{made} = {call}"),
    )


def states_of(bucket):
    return tuple(
        f.StateFacts(
            f"{prefix}{bucket.name}",
            f"{prefix}{bucket.name}.next",
            kind,
            bucket.shape,
            "float32",
            4 * bucket.shape[1],
            True,
            initial,
        )
        for kind, prefix, initial in [
            ("parameter", "", "values"),
            ("mean_square", "mean_square.", 1.0),
            ("mean_grad", "mean_grad.", 0.0),
            ("moment", "moment.", 0.0),
        ]
    )


def chain(stage, entries):
    """Layers of which each reads the one before, and every third the one that is three before."""
    names = [name for name, _, _ in entries]
    return tuple(
        f.LayerFacts(
            stage,
            name,
            op_types,
            sum(op_types.values()),
            trained,
            tuple(names[at - back] for back in (1, 3) if at >= back and (back == 1 or at % 3 == 0)),
        )
        for at, (name, op_types, trained) in enumerate(entries)
    )


def inspection(rows, layers, buckets_of=4, **changes):
    """An inspection of a network with these parameters and layers."""
    parameters = tuple(parameter(row, index // buckets_of) for index, row in enumerate(rows))
    by_bucket = {}
    for p in parameters:
        by_bucket.setdefault(p.bucket, []).append(p)
    buckets = tuple(bucket(name, own) for name, own in by_bucket.items())
    size = sum(p.bytes for p in parameters)
    entries = [(name, {op_type: 1, "Relu": 1}, trained) for name, op_type, trained in layers]
    back = [(name, {"Mul": 2, op_type: 2}, trained) for name, op_type, trained in layers[::-1]]
    update = [(own.name, {"Reshape": 3, own.function: 1}, ()) for own in buckets]
    loss = [("SoftmaxCrossEntropyLoss", {"LogSoftmax": 1, "Neg": 1, "Div": 1}, ())]
    step = f.StateFacts("global_step", "global_step.next", "step", (), "int64", 8, True, 0.0)
    whole = f.Inspection(
        model=f.ModelFacts("build/train.onnx", "training graph", "graphopt", 1234, 2 * size),
        optimizer=RMSPROP,
        groups=groups(parameters),
        parameters=parameters,
        frozen=("embedding.positions",),
        state=(*(state for own in buckets for state in states_of(own)), step),
        layout="chunks",
        buckets=buckets,
        inputs=(
            f.ValueFacts("x", ("N", 1, 8, 8), "float32"),
            f.ValueFacts("labels", ("N",), "int64"),
            f.ValueFacts("group_mask", (2,), "bool"),
        ),
        outputs=(
            f.ValueFacts("logits", ("N", 10), "float32"),
            f.ValueFacts("loss", (), "float32"),
            f.ValueFacts("updated", None, "bool"),
        ),
        stages=(
            f.StageFacts("forward", 10, 9_437_184, 812_416),
            f.StageFacts("loss", 16, 4_096, 21_504, 2),
            f.StageFacts("backward", 58, 18_874_368, 2_812_416),
            f.StageFacts("update", 60, 301_000, 620_000),
        ),
        layers=(
            *chain("forward", entries),
            *chain("loss", loss),
            *chain("backward", back),
            *chain("update", update),
        ),
        memory=f.MemoryFacts(size, 2048, size, 3 * size, 1_572_864, {"N": 32}),
        requirements=Requirements(
            17, {"": 17, "graphopt": 1}, {"": ["Add", "Conv", "Gemm", "Scan"]}, ["graphopt::Scale"]
        ),
        targets=TARGETS,
        hazards=HAZARDS,
    )
    return replace(whole, **changes)


def digits(**changes):
    """Ten layers and eight parameters."""
    layers = [
        ("conv1", "Conv", ("conv1.weight", "conv1.bias")),
        ("relu1", "Relu", ()),
        ("pool1", "MaxPool", ()),
        ("conv2", "Conv", ("conv2.weight", "conv2.bias")),
        ("relu2", "Relu", ()),
        ("pool2", "MaxPool", ()),
        ("flat", "Flatten", ()),
        ("dense1", "Gemm", ("dense1.weight", "dense1.bias")),
        ("relu3", "Relu", ()),
        ("logits", "Gemm", ("dense2.weight", "dense2.bias")),
    ]
    return inspection(DIGITS, layers, **changes)


def large(**changes):
    """1,000 parameters in 1,000 layers."""
    rows, layers = [], []
    for block in range(500):
        name = f"stages.{block // 50}.blocks.{block % 50}.attention.projection"
        width = 16 * (1 + block // 50)
        rows += [
            Row(f"{name}.weight", (width, width, 3, 3), "Conv", 0),
            Row(f"{name}.bias", (width,), None, 1),
        ]
        layers += [(name, "Conv", (f"{name}.weight", f"{name}.bias")), (f"{name}.act", "Relu", ())]
    return inspection(rows, layers, buckets_of=5, **changes)


def without_facts():
    """A model of which nothing is known, not even its shapes."""
    unknown = f.LayerFacts("forward", "node0", {"Mystery": 1}, 1)
    return replace(
        inspection([], []),
        optimizer=None,
        groups=(),
        frozen=(),
        state=(),
        layout=None,
        inputs=(f.ValueFacts("x", (None, "N"), "sequence of float32"),),
        stages=(f.StageFacts("forward", 1, None, None, 1),),
        layers=(unknown,),
        memory=f.MemoryFacts(0, 0, 0, 0, None, {}),
        targets=(),
        hazards=(),
    )


def hostile():
    """Every name is one that would do something if it were HTML, JSON or a key."""
    rows = [Row(name, (2, 3), "Conv", at % 2) for at, name in enumerate(HOSTILE)]
    layers = [(name, name, (name,)) for name in HOSTILE]
    whole = inspection(rows, layers)
    evil = HOSTILE[0]
    sizes = dict.fromkeys(HOSTILE, 3)
    return replace(
        whole,
        model=replace(whole.model, name=evil, producer=evil),
        optimizer=replace(RMSPROP, name=evil, formula=tuple(HOSTILE), others={evil: math.nan}),
        groups=tuple(
            replace(g, learning_rate={"schedule": evil, evil: evil}) for g in whole.groups
        ),
        frozen=tuple(HOSTILE),
        layout=evil,
        buckets=tuple(
            replace(own, nodes=(*own.nodes, *HOSTILE), function=evil) for own in whole.buckets
        ),
        inputs=tuple(f.ValueFacts(name, (name,), name) for name in HOSTILE),
        outputs=tuple(f.ValueFacts(name, (name,), name) for name in HOSTILE),
        memory=replace(whole.memory, sizes=sizes),
        requirements=Requirements(8, sizes, dict.fromkeys(HOSTILE, HOSTILE), HOSTILE),
        targets=tuple(f.TargetFacts(name, False, (name,)) for name in HOSTILE),
        hazards=tuple(f.Hazard(n, "error", (n, HOSTILE[0]), n, n) for n in HOSTILE),
    )


MADE = {"digits": digits, "large": large, "hostile": hostile, "without_facts": without_facts}


# ---- What the file holds ---------------------------------------------------------------------


class Structure(HTMLParser):
    """The elements of a page, and the text in its scripts and styles."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.policy, self.within = [], {}, None, None

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, *sorted(attributes)))
        self.within = attributes.get("id", tag)
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]

    def handle_endtag(self, _):
        self.within = None

    def handle_data(self, text):
        self.texts[self.within] = self.texts.get(self.within, "") + text


def structure(html):
    parser = Structure()
    parser.feed(html)
    return parser


def embedded(html):
    return json.loads(structure(html).texts["facts"])


def unpacked(facts):
    """The facts with their tables as lists of dicts again."""
    return {
        name: [dict(zip(value["keys"], row, strict=True)) for row in value["rows"]]
        if isinstance(value, dict) and value.keys() == {"keys", "rows"}
        else value
        for name, value in facts.items()
    }


@pytest.mark.parametrize("name", ["digits", "large", "without_facts"])
def test_all_facts_are_in_the_page(name):
    whole = MADE[name]()
    expected = json.loads(json.dumps(whole.to_dict()))
    del expected["layers"]  # the drawing has the nodes themselves
    assert unpacked(embedded(page(whole))["facts"]) == expected


def test_hostile_names_are_in_the_page_and_change_nothing_of_it():
    html = page(hostile())
    assert structure(html).tags == structure(page(digits())).tags
    parameters = unpacked(embedded(html)["facts"])["parameters"]
    assert [parameter["name"] for parameter in parameters] == HOSTILE
    facts = re.search(r'id="facts">(.*?)</script>', html, re.DOTALL)[1]
    assert not re.search(r"[<>&\u2028\u2029]|[^\x20-\x7e]", facts)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_are_text(value):
    text = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    whole = digits(optimizer=replace(RMSPROP, epsilon=value, decay=value))
    html = page(whole)

    def refuse(constant):
        pytest.fail(f"{constant} is no JSON")

    facts = json.loads(structure(html).texts["facts"], parse_constant=refuse)["facts"]
    assert facts["optimizer"]["epsilon"] == text


def test_the_same_facts_give_the_same_page():
    assert page(hostile()) == page(hostile())


def test_a_large_network_gives_a_page_of_less_than_two_megabytes():
    assert len(page(large()).encode()) < 2_000_000


def test_the_policy_allows_the_script_and_the_style_and_nothing_else():
    html = structure(page(digits()))
    hashes = {
        kind: base64.b64encode(hashlib.sha256(html.texts[kind].encode()).digest()).decode()
        for kind in ("script", "style")
    }
    assert html.policy == (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; "
        f"script-src 'sha256-{hashes['script']}'; base-uri 'none'; form-action 'none'"
    )


@pytest.mark.quick
def test_every_part_of_the_page_is_in_it():
    html = page(digits())
    folder = Path(str(resources.files("graphopt.inspection.show.page")))
    parts = [*folder.glob("*/*.js"), *folder.glob("*/*.css")]
    others = {
        *("histogram.js", "modules.js", "checkpoint.js", "checkpoint_difference.js"),
        "difference.js",
    }
    assert {part.name for part in parts if part.read_text(encoding="utf-8") not in html} == others


def test_the_model_tells_what_reads_a_parameter_and_makes_its_gradient():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "graphopt": 1]>
        g (float[2] x, float[2] w) => (float[2] y)
        { y = Mul(x, w)  w_grad = graphopt.Half <a: float = 1> (x, w)  z = Add(y, w) }"""
    )
    one = parameter(Row("w", (2,), None, 0))
    other = replace(parameter(Row("v", (2,), None, 0)), gradient=None)
    nodes = payload(replace(digits(), parameters=(one, other)), ir.from_proto(model).graph)["nodes"]
    assert nodes == [
        {
            "made": "w_grad = graphopt.Half(x, w)",
            "read": ["y = Mul(x, w)", "w_grad = graphopt.Half(x, w)", "z = Add(y, w)"],
        },
        {"made": None, "read": []},
    ]


def test_a_training_graph_from_its_file_to_the_page(tmp_path):
    model = digits_cnn.build()
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.1, momentum=0.9)
    graph = graphopt.training_graph(model, "cross_entropy", optimizer)
    graph.save(tmp_path / "train.onnx")
    reading = read(tmp_path / "train.onnx")
    shown = embedded(page(graphopt.inspect(reading), reading))
    parameters = unpacked(shown["facts"])["parameters"]
    assert [parameter["name"] for parameter in parameters] == [row.name for row in DIGITS]
    assert shown["rules"][0]["lines"][-2:] == [
        ["m ← 0.9 · m + 0.1 · g / √(s + 1e-10)", "moment, starts at 0"],
        ["w ← w − m", "step"],
    ]
    for parameter, nodes in zip(parameters, shown["nodes"], strict=True):
        assert nodes["made"].split(" = ")[0] == parameter["gradient"]
        layers = (" = Conv(", " = Gemm(", " = graphopt.MatMul")
        assert any(layer in node for node in nodes["read"] for layer in layers)


def test_a_node_that_is_large_is_cut():
    model = onnx.ModelProto()
    model.graph.node.add(op_type="Sum", input=["w", *["a" * 50_000] * 1000], output=["y"])
    whole = replace(digits(), parameters=(parameter(Row("w", (2,), None, 0)),))
    assert len(payload(whole, ir.from_proto(model).graph)["nodes"][0]["read"][0]) < 500


# ---- The formula of a parameter, against the reference ---------------------------------------


def executed(lines, values):
    """Carries the lines out: the state after a step."""
    changes = {"←": "=", "·": "*", "−": "-", "²": "**2", "√s": "sqrt(s)", "√": "sqrt"}
    scope = {"sqrt": np.sqrt, "mean": centre, **values}
    for expression, _ in lines:
        code = reduce(lambda text, change: text.replace(*change), changes.items(), expression)
        exec(code, {}, scope)
    return scope


def centre(gradient):
    return gradient.mean(axis=tuple(range(1, gradient.ndim)), keepdims=True)


CONFIGURATIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.8, "centered": True, "decay": 0.95, "epsilon": 0.01},
    {"loss_scale": 8.0, "weight_decay": 0.03},
    {"loss_scale": 8.0, "weight_decay": 0.03, "momentum": 0.5, "nesterov": True},
    {"weight_decay": 0.03, "decoupled_weight_decay": True, "initial_mean_square": 0.25},
    {"epsilon_inside_root": False, "epsilon": 0.1},
    {"epsilon_inside_root": False, "epsilon": 0.1, "centered": True, "momentum": 0.9},
    {"learning_rate_inside_moment": False, "momentum": 0.9},
    {"learning_rate_inside_moment": False, "momentum": 0.9, "nesterov": True, "centered": True},
    {"learning_rate_inside_moment": False},
]


@pytest.mark.parametrize("centralized", [False, True])
@pytest.mark.parametrize("arguments", CONFIGURATIONS)
def test_the_formula_computes_the_update(arguments, centralized):
    group = {"params": [graphopt.Parameter("w", (4, 3), op_type="Conv")]}
    if centralized:
        group["grad_centralization"] = True
    optimizer = graphopt.RMSProp([group], learning_rate=0.05, **arguments)
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 3))
    reference = ReferenceRMSProp(optimizer, {"w": start})
    facts = f.OptimizerFacts(
        "RMSProp",
        "metadata",
        **{name: getattr(optimizer, name) for name in HYPERPARAMETERS},
    )
    lines = update_lines(
        facts,
        replace(
            parameter(Row("w", (4, 3), "Conv", 0)),
            learning_rate=0.05,
            weight_decay=arguments.get("weight_decay", 0.0),
            grad_centralization=centralized,
        ),
    )
    values = {"w": start, "s": np.full((4, 3), optimizer.initial_mean_square), "a": 0.0, "m": 0.0}
    for _ in range(3):
        gradient = rng.normal(size=(4, 3))
        reference.step({"w": gradient})
        values = executed(lines, values | {"g": gradient})
    assert not np.allclose(values["w"], start, rtol=0, atol=1e-3)
    np.testing.assert_allclose(values["w"], reference.state["w"], rtol=1e-9)
    np.testing.assert_allclose(values["s"], reference.state["mean_square.w"], rtol=1e-9)


HYPERPARAMETERS = (
    "decay",
    "momentum",
    "epsilon",
    "centered",
    "loss_scale",
    "epsilon_inside_root",
    "initial_mean_square",
    "learning_rate_inside_moment",
    "decoupled_weight_decay",
    "nesterov",
)


def test_the_formula_has_letters_for_what_is_not_known():
    unknown = f.OptimizerFacts("RMSProp", "graph")
    whole = replace(parameter(DIGITS[0]), learning_rate=None, weight_decay=None)
    assert update_lines(unknown, whole) == [
        ("η ← ?", "learning rate of the step"),
        ("λ ← ?", "weight decay of the step"),
        ("g ← g + λ · loss_scale · w", "weight decay"),
        ("g ← g − mean(g)", "centralization: mean over all axes but the first"),
        ("g ← g / loss_scale", "loss scale"),
        ("s ← ρ · s + (1 − ρ) · g²", "mean square"),
        ("m ← β · m + η · g / √(s + ε)", "moment, starts at 0"),
        ("w ← w − m", "step"),
    ]


def test_the_formula_of_a_schedule_and_a_mask():
    lines = update_lines(RMSPROP, parameter(DIGITS[4]))
    assert lines[0] == (f"η ← {words.schedule(COSINE)}", "learning rate of the step")
    assert lines[-2:] == [
        ("w ← w − m", "where s − a² + 1e-10 > 0"),
        ("only where group_mask[1] is true", "group mask"),
    ]


def test_the_formula_of_another_optimizer_is_its_own():
    adam = f.OptimizerFacts("AdamW", "graph", formula=("w ← w − m",), others={"beta1": 0.9})
    assert update_lines(adam, replace(parameter(DIGITS[0]), weight_decay=None)) == [
        ("w ← w − m", ""),
        ("learning rate = 0.1", ""),
        ("weight decay = ?", ""),
        ("beta1 = 0.9", ""),
    ]


# ---- What Chromium makes of it ---------------------------------------------------------------

OF_THE_TEST = {"/", "/frame.html", "/page.html", "/favicon.ico"}

EVERYTHING = """
    for (const button of all("thead button, .small-button, .toggle, .link")) button.click();
    for (const drawing of all(".chart svg[tabindex]")) press(drawing, "ArrowRight");
    for (const scroll of all(".scroll")) scroll.scrollTop = 1e6;
    await pause();
    return { images: all("img").length, scripts: all("script").length, title: page.title };
"""


@pytest.mark.parametrize("name", [*MADE])
def test_a_page_loads_nothing_and_complains_of_nothing(name, tmp_path):
    seen = visited(page(MADE[name]()), tmp_path, EVERYTHING)
    assert seen.console == []
    assert {"/page.html"} <= seen.addresses <= OF_THE_TEST
    assert seen.result["images"] == 0
    assert seen.result["scripts"] == 2
    assert seen.result["title"].endswith(" – inspection")


@pytest.mark.parametrize("policy", [True, False])
def test_what_is_smuggled_into_a_page_runs_only_without_the_policy(policy, tmp_path):
    """The control of the test above: what it looks for, it would see."""
    elsewhere = "http://elsewhere.invalid/image.png"
    smuggled = (
        f'<img src="{elsewhere}"><img src="image.png" onerror="parent.ran = 1">'
        "<script>parent.ran = 1</script><main"
    )
    html = page(digits()).replace("<main", smuggled, 1)
    if not policy:
        html = html.replace("Content-Security-Policy", "none")
    script = "return [typeof ran, all('#parameters .row').length]"
    seen = visited(html, tmp_path, script)
    assert seen.result == ["undefined" if policy else "number", 8]
    assert seen.addresses - OF_THE_TEST == (set() if policy else {"/image.png", elsewhere})
    assert bool(seen.console) == policy


def test_hostile_names_are_shown_as_text(shown):
    script = """
        for (const button of all("#parameters .toggle")) button.click();
        return [texts("#parameters .toggle"), texts("#parameters dd:first-of-type > .name")];
    """
    in_cells, in_details = shown(page(hostile()), script)
    assert in_cells[:6] == HOSTILE[:6]
    assert in_cells[6] == r"a\u{202e}b\u{2028}c\u{0}d\u{1b}[31m"
    assert in_cells[7] == HOSTILE[7]
    assert in_details == in_cells


@pytest.mark.quick
def test_the_page_shows_what_the_facts_say(shown):
    script = """
        return {
          overview: texts("#overview .line > span"),
          tiles: texts("#overview dd"),
          terms: texts("#optimizer .facts dt"),
          values: texts("#optimizer .facts dd"),
          formula: texts("#optimizer .expression"),
          source: one("#optimizer h2 small").textContent,
          hazards: texts("#hazards li.hazard"),
          groups: texts("#groups .facts dd"),
          state: texts("#state tbody tr:first-child > *"),
          inputs: texts("#interface .table:first-of-type tbody th"),
          stages: texts("#stages tbody tr:first-child > *"),
          requirements: texts("#requirements .facts dd"),
          targets: texts("#requirements .targets > li"),
          memory: texts("#memory .card:first-child .bars .number"),
          frozen: texts("#memory .chips"),
        };
    """
    seen = shown(page(digits()), script)
    size = "training graph", "1,234 nodes", "107 KiB", "made by graphopt", "build/train.onnx"
    assert seen["overview"] == [*size]
    assert seen["tiles"][0] == "13,706in 8 tensors"
    hyperparameters = dict(zip(seen["terms"], seen["values"], strict=True))
    assert hyperparameters["epsilon"] == "1e-10"
    assert hyperparameters["loss scale"] == "2"
    assert hyperparameters["group mask"] == "yes"
    assert seen["formula"] == [*FORMULA]
    assert "Read in the metadata and in the nodes" in seen["source"]
    assert len(seen["hazards"]) == 2
    assert "The loss does not depend on it" in seen["hazards"][0]
    assert "Freeze it, or connect it to the loss." in seen["hazards"][0]
    assert "conv1.bias" in seen["hazards"][0]
    assert seen["groups"] == [
        *("0.1", "0.01", "of convolution weights"),
        *(words.schedule(COSINE), "0", "no"),
    ]
    assert seen["state"] == [
        *("bucket0", "bucket0.next", "parameter", "1 × 4800", "float32", "18.8 KiB"),
        *("values in the file", "yes"),
    ]
    assert seen["inputs"][:3] == ["x", "labels", "group_mask"]
    assert seen["stages"] == ["forward", "10", "9.44 MFLOP", "793 KiB", "11.62", "–"]
    assert seen["requirements"] == ["17", "ONNX 17, graphopt 1", "yes"]
    assert len(seen["targets"]) == 3
    assert "use graphopt.export_on_device" in seen["targets"][2]
    assert seen["memory"] == ["53.5 KiB", "2.00 KiB", "53.5 KiB", "161 KiB", "1.50 MiB"]
    assert seen["frozen"] == ["embedding.positions"]


def test_a_page_without_an_optimizer_says_so(shown):
    script = """
        const hidden = all("main > section").filter((section) => section.hidden);
        return [hidden.map((section) => section.id), texts("#optimizer .card, #hazards .card")];
    """
    hidden, said = shown(page(without_facts()), script)
    assert hidden == ["groups", "graph", "state"]
    assert "No hazards were found." in said[0]
    assert "no optimizer" in said[1]


SEARCHES = {
    "CONV1": ["conv1.weight", "conv1.bias"],
    "conv weight": ["conv1.weight", "conv2.weight"],
    "op:gemm": ["dense1.weight", "dense2.weight"],
    "group:1 bias": ["dense1.bias", "dense2.bias"],
    "bucket:bucket0 op:none": ["conv1.bias", "conv2.bias"],
    "dense1.bias": ["dense1.bias"],
    "group:": [row.name for row in DIGITS],
    "nothing like it": [],
    "": [row.name for row in DIGITS],
}


def test_the_search_keeps_what_fits(shown):
    script = f"""
        return {json.dumps([*SEARCHES])}.map((text) => {{
          search(text);
          return [texts("#parameters .toggle"), one("#found").textContent.split(",")[0]];
        }});
    """
    found = shown(page(digits()), script)
    for (text, names), (kept, said) in zip(SEARCHES.items(), found, strict=True):
        assert kept == names, text
        plural = "parameter" if len(names) == 1 else "parameters"
        assert said == ("" if text in ("", "group:") else f"{len(names)} {plural}"), text


def test_columns_sort_both_ways(shown):
    script = """
        const seen = {};
        all("#parameters thead button").forEach((button, column) => {
          for (const way of [1, 2]) {
            button.click();
            const cells = all(`#parameters tbody tr > :nth-child(${column + 1})`);
            const sorted = button.closest("th").getAttribute("aria-sort");
            seen[`${button.textContent} ${sorted}`] = cells.map((cell) => cell.textContent);
          }
        });
        const marked = all("#parameters th[aria-sort]:not([aria-sort=none])").length;
        return { seen, marked, order: texts("#parameters .toggle") };
    """
    result = shown(page(digits()), script)
    seen = result["seen"]
    assert result["marked"] == 1
    names = sorted(row.name for row in DIGITS)
    sizes = sorted(math.prod(row.shape) for row in DIGITS)
    assert seen["Name ascending"] == names
    assert seen["Name descending"] == names[::-1]
    assert [int(size.replace(",", "")) for size in seen["Size ascending"]] == sizes
    assert [int(size.replace(",", "")) for size in seen["Size descending"]] == sizes[::-1]
    assert seen["Group ascending"] == ["0"] * 4 + ["1"] * 4
    assert seen["Weight decay ascending"] == ["0"] * 4 + ["0.01"] * 4
    assert seen["Centralized descending"] == ["yes"] * 2 + ["no"] * 6
    assert len(seen) == 2 * 11


def test_a_row_opens_with_its_formula_its_bucket_and_its_nodes(shown):
    script = """
        const toggle = all("#parameters .toggle")[2];
        toggle.click();
        const opened = toggle.getAttribute("aria-expanded");
        const seen = {
          formula: texts("#parameters .detail .expression"),
          facts: texts("#parameters .detail dd"),
          mates: texts("#parameters .detail .chip"),
          here: texts("#parameters .detail .chip.here"),
          nodes: texts("#parameters .detail .nodes li"),
          own: texts("#parameters .detail .nodes li.own"),
        };
        all("#parameters .detail .chip")[3].click();  // a neighbour
        const open = texts("#parameters tr.open .toggle");
        const focused = page.activeElement.textContent;
        toggle.click();
        return { ...seen, opened, open, focused, left: all("#parameters .detail").length };
    """
    seen = shown(page(digits()), script)
    assert seen["opened"] == "true"
    assert seen["formula"] == [
        "g ← g + 0.01 · 2 · w",
        "g ← g − mean(g)",
        "g ← g / 2",
        "s ← 0.9 · s + 0.1 · g²",
        "a ← 0.9 · a + 0.1 · g",
        "m ← 0.9 · m + 0.1 · g / √(s − a² + 1e-10)",
        "w ← w − m",
        "only where group_mask[0] is true",
    ]
    assert "conv2.weight_grad" in seen["facts"]
    assert seen["mates"] == ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]
    assert seen["here"] == ["conv2.weight"]
    assert seen["nodes"] == [*digits().buckets[0].nodes]
    assert seen["own"] == ['Reshape_2 = Reshape ("conv2.weight_grad", flat_1)']
    assert seen["open"] == ["conv2.weight", "conv2.bias"]
    assert seen["focused"] == "conv2.bias"
    assert seen["left"] == 1


def test_the_learning_rate_is_said_where_one_points(shown):
    script = """
        const [fixed, curve] = all(".chart");
        const drawing = curve.querySelector("svg");
        const box = drawing.getBoundingClientRect();
        const said = () => curve.querySelector("output").textContent;
        const seen = [fixed.querySelector("output").textContent, said()];
        const Pointer = frame.contentWindow.PointerEvent;
        const right = { clientX: box.right - 2, clientY: box.top };
        drawing.dispatchEvent(new Pointer("pointermove", right));
        seen.push(said());
        drawing.dispatchEvent(new Pointer("pointerleave"));
        seen.push(said());
        press(drawing, "ArrowRight");
        seen.push(said());
        curve.querySelector("button").click();
        seen.push([...curve.querySelectorAll("text")].map((text) => text.textContent)[0]);
        return seen;
    """
    whole = "0 to 0.01, steps 0 to 980"
    assert shown(page(digits()), script) == [
        *("0.1 at every step", whole, "step 980: 0", whole, "step 0: 0.01", "1e-5"),
    ]


def test_a_thousand_parameters(tmp_path):
    script = """
        const seen = { rows: all("#parameters .row").length };
        const scroll = one("#parameters .scroll");
        scroll.scrollTop = scroll.scrollHeight;
        await pause();
        seen.more = all("#parameters .row").length;
        search("stages.9.blocks.49.attention.projection.bias");
        await pause();
        seen.kept = texts("#parameters .toggle");
        seen.found = one("#found").textContent;
        search("");
        all("#parameters .foot button")[0].click();
        seen.all = all("#parameters .row").length;
        one("#parameters thead th:nth-child(3) button").click();
        seen.largest = one("#parameters tbody td:nth-child(3)").textContent;
        return seen;
    """
    visit = visited(page(large()), tmp_path, script)
    seen = visit.result
    name = "stages.9.blocks.49.attention.projection"
    assert visit.console == []
    assert seen["rows"] < seen["more"] < 1000
    assert seen["kept"] == [f"{name}.bias"]
    assert seen["found"] == "1 parameter"
    assert seen["all"] == 1000
    assert seen["largest"] == "230,400"


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_text_stands_out_from_its_ground(scheme, dark, tmp_path):
    seen = visited(page(digits()), tmp_path, CONTRAST, scheme=scheme).result
    assert seen["worst"] == {}
    assert seen["texts"] > 300
    assert (sum(seen["ground"]) < 150) == dark


@pytest.mark.parametrize("width", [320, 400, 800, 1400])
@pytest.mark.parametrize("name", ["large", "hostile"])
def test_the_page_is_not_wider_than_the_window(name, width, shown):
    script = """
        all("#parameters .toggle")[1].click();
        const root = page.documentElement;
        const wide = all("main *").filter((element) =>
          element.getBoundingClientRect().right > root.clientWidth + 1 &&
          !element.closest(".scroll, .nodes, .formula, nav"));
        const fits = root.scrollWidth <= root.clientWidth;
        return [fits, root.clientWidth, wide.map((element) => element.outerHTML.slice(0, 300))];
    """
    fits, inner, wide = shown(page(MADE[name]()), script, width=width)
    assert inner <= width
    assert wide == []
    assert fits


def test_what_can_be_clicked_can_be_reached_and_has_a_name(shown):
    script = """
        const buttons = all("button, a, input");
        const named = (button) => button.textContent.trim() || button.labels.length;
        const nameless = buttons.filter((button) => !named(button));
        const rows = all("#parameters .toggle");
        rows[0].focus();
        press(rows[0], "ArrowDown");
        const headings = all("h1, h2").length;
        const scopes = all("th:not([scope])").length;
        const captions = all("table").every((table) => table.caption.textContent);
        return [nameless.length, page.activeElement.textContent, headings, scopes, captions];
    """
    assert shown(page(digits()), script) == [*(0, "conv1.bias", 11, 0, True)]
