"""The page on the terminal: what it says, whatever is found, however wide it is."""

import re
from dataclasses import replace

import pytest

from graphopt import _words
from graphopt.inspection import words
from graphopt.inspection.facts import (
    BucketFacts,
    GroupFacts,
    Hazard,
    Inspection,
    MemoryFacts,
    ModelFacts,
    OptimizerFacts,
    ParameterFacts,
    StageFacts,
    StateFacts,
    TargetFacts,
    ValueFacts,
)
from graphopt.inspection.show.graph_tables import graph_tables
from graphopt.requirement import Requirements
from tests.helpers.tables import drawn

pytestmark = pytest.mark.any_runtime

COSINE = {"schedule": "CosineDecayLR", "min_lr": 0.0, "max_lr": 0.1, "decay_steps": 100}
SHAPES = [(16, 1, 3, 3), (16,), (10, 256), (10,)]
NAMES = ["conv1.weight", "conv1.bias", "fc.weight", "fc.bias"]


def parameter(name, shape, group=0, rate=0.01, decay=0.0, **fields):
    made = ParameterFacts(
        name=name, shape=shape, dtype="float32", op_type=None, group=group, learning_rate=rate,
        weight_decay=decay, grad_centralization=False, states=("mean_square", "moment"), bytes=0,
        state_bytes=0,
    )  # fmt: skip
    made = replace(made, bytes=4 * made.size, state_bytes=8 * made.size)
    return replace(made, **fields)


def group(parameters, rate, centralized=False):
    return GroupFacts(tuple(parameters), rate, 0.0001, centralized)


def carried(name, kind="parameter", shape=(1, 2), **fields):
    values = {"overwritable": True, "initial": "values", "bytes": 8, "output": f"{name}/next"}
    return StateFacts(name, kind=kind, shape=shape, dtype="float32", **values | fields)


def inspection(**fields):
    """A small network with two groups."""
    parameters = [parameter(n, s) for n, s in zip(NAMES[:2], SHAPES[:2], strict=True)]
    parameters += [
        parameter(n, s, group=1, rate=COSINE) for n, s in zip(NAMES[2:], SHAPES[2:], strict=True)
    ]
    parameters[-1] = replace(parameters[-1], learning_rate=0.5)
    found = Inspection(
        model=ModelFacts("train.onnx", "training graph", "graphopt", 1234, 1536),
        optimizer=OptimizerFacts(
            "RMSProp", "metadata and graph", decay=0.9, momentum=0.5, epsilon=1e-10, centered=True,
            loss_scale=1024.0, epsilon_inside_root=True,
            formula=("s = 0.9 s + 0.1 g^2", "w = w - m"),
        ),
        groups=(group(NAMES[:2], 0.01), group(NAMES[2:], COSINE, centralized=True)),
        parameters=tuple(parameters),
        frozen=("old.weight",),
        state=(
            carried("conv1.weight"),
            carried("global_step", "step", shape=(), initial=0.0, output="step.out"),
            carried("labels_seen", "other", shape=("N", None), initial=None, bytes=None,
                    overwritable=False, output=None),
        ),
        layout="buckets",
        buckets=(BucketFacts("b0", "graphopt::RMSProp", (9,), tuple(NAMES)),),
        inputs=(ValueFacts("x", ("N", 1, 8, 8), "float32"),
                ValueFacts("conv1.weight", (1, 2), "f")),
        outputs=(ValueFacts("loss", (), "float32"), ValueFacts("boxes", None, "float32")),
        stages=(
            StageFacts("forward", 10, 1_234_567, 2048), StageFacts("update", 30, None, None, 2),
        ),
        layers=(),
        memory=MemoryFacts(100, 200, 2**20, 400, 1000, {"N": 32}),
        requirements=Requirements(8, {"": 17, "com.microsoft": 1},
                                  {"": ["Add", "Mul"], "com.microsoft": ["FusedGemm"]}, ["a::b"]),
        targets=(TargetFacts("ONNX Runtime (CPU)", True),
                 TargetFacts("on-device training API", False, ("it is no such model",))),
        hazards=(Hazard("no-gradient", "error", ("fc.bias",), "It never moves.", "Leave it out."),),
    )  # fmt: skip
    return replace(found, **fields)


def page(found=None, width=100, color=None, **options):
    return drawn(graph_tables(inspection() if found is None else found, **options), width, color)


def squeezed(text):
    return re.sub(r"\s+", " ", text)


def parameter_rows(text):
    """The lines of the parameter table."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Parameters: "))
    head = next(i for i in range(start, len(lines)) if "──" in lines[i])
    end = next(i for i in range(head, len(lines)) if not lines[i].strip())
    return [line for line in lines[head + 1 : end] if line[0] != " "]  # without what is folded


def first_words(text):
    return [row.split()[0] for row in parameter_rows(text)]


EXPECTED = {
    "title": "train.onnx: training graph, 1,234 nodes, 1.5 KiB, written by graphopt",
    "hazard": "error no-gradient: fc.bias It never moves. Leave it out.",
    "optimizer": "Optimizer: RMSProp, read in metadata and graph decay 0.9, momentum 0.5, "
    "epsilon 1e-10 inside the root, centered, loss scale 1024 s = 0.9 s + 0.1 g^2 w = w - m",
    "layout": "layout buckets: 1 bucket, updated by graphopt::RMSProp",
    "group": "1 2 CosineDecayLR(0 .. 0.1, 100) 0.0001 yes",
    "parameters": "Parameters: 4, 2,730 elements; 1 frozen",
    "parameter": "fc.weight [10,256] 1 CosineDecayLR 10.0 KiB 20.0 KiB",
    "other than its group": "fc.bias [10] 1 0.5 40 B 80 B",
    "common": "all: weight decay 0, centralized no, with mean_square, moment, dtype float32",
    "sums": "together 10.7 KiB 21.3 KiB",
    "memory": "gradients 1.0 MiB",
    "activations": "activations 1000 B at most, if N = 32",
    "stage": "forward 10 1.2 M 2.0 KiB 0",
    "unknown stage": "update 30 ? ? 2",
    "input": "x input float32 [N, 1, 8, 8]",
    "output": "loss output float32 []",
    "open output": "boxes output float32 [...]",
    "states": "Carried to the next step: 3 (1 parameter, 1 step, 1 other)",
    "state": "conv1.weight <input>/next parameter float32[1, 2] yes values 8 B",
    "step": "global_step step.out step float32[] yes 0 8 B",
    "state in place": "labels_seen in place other float32[N, ?] no as fed ?",
    "requirements": "IR version 8; opsets ONNX 17, com.microsoft 1; 3 operators, 1 function in",
    "other operators": "com.microsoft: FusedGemm",
    "target": "ONNX Runtime (CPU) runs",
    "other target": "on-device training API does not it is no such model",
}


@pytest.mark.quick
@pytest.mark.parametrize("expected", EXPECTED.values(), ids=EXPECTED)
def test_what_it_says(expected):
    assert expected in squeezed(page(width=120))


def test_what_is_carried_is_not_fed():
    assert "conv1.weight input" not in squeezed(page())


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("count", [4, 1000])
def test_no_line_is_too_wide(width, count):
    long = tuple(parameter(f"layer{i}." * 9, (10,) * 6, rate=COSINE) for i in range(count))
    text = page(replace(inspection(), parameters=long), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert all(word in squeezed(text) for word in ("RMSProp", "Memory", "Targets"))


def test_one_page():
    assert len(page().splitlines()) < 90
    assert max(map(len, page().splitlines())) <= 100


def test_without_a_terminal_there_are_no_escapes():
    assert "\x1b" not in page()


@pytest.mark.parametrize(
    ("level", "code"), [("error", "1;31m"), ("warning", "33m"), ("note", "36m")]
)
def test_hazards_have_colours_and_come_first(level, code):
    hazard = Hazard("odd", level, ("a", "b", "c", "d", "e"), "Why.", "Fix.")
    text = page(inspection(hazards=(hazard,)), color="standard")
    assert f"\x1b[{code}{level}" in text
    plain = page(inspection(hazards=(hazard,)))
    assert f"{level} odd: a, b, c, 2 more" in plain
    assert plain.index("odd") < plain.index("Optimizer") < plain.index("Groups")


def test_no_hazards():
    assert "No hazards found." in page(inspection(hazards=()))


def test_names_select_parameters():
    text = page(names=["conv1.*", "*.bias"])
    assert first_words(text) == ["conv1.weight", "conv1.bias", "fc.bias"]
    assert "Parameters: 3 of 4" in text
    assert "together 680 B 1.3 KiB" in squeezed(text)


def test_groups_select_parameters():
    assert first_words(page(groups=[1])) == ["fc.weight", "fc.bias"]
    assert first_words(page(groups=[1], names=["*.bias"])) == ["fc.bias"]
    assert "Parameters: 0 of 4" in page(groups=[0], names=["fc.*"])


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("order", NAMES),
        ("name", ["conv1.bias", "conv1.weight", "fc.bias", "fc.weight"]),
        ("size", ["fc.weight", "conv1.weight", "conv1.bias", "fc.bias"]),
        ("bytes", ["fc.bias", "fc.weight", "conv1.weight", "conv1.bias"]),
    ],
)
def test_sorting(sort, expected):
    found = inspection()
    heavy = replace(found.parameters[3], state_bytes=10**6)
    found = replace(found, parameters=(*found.parameters[:3], heavy))
    assert first_words(page(found, sort=sort)) == expected


REFUSED = {
    "order": ({"sort": "rank"}, "sort: got 'rank', expected one of order, name, size, bytes"),
    "group": ({"groups": [2]}, "groups: got 2, expected an index below 2"),
    "negative group": ({"groups": [-1]}, "groups: got -1"),
    "pattern": ({"names": ["conv*", "dense*"]}, r"no parameter matches 'dense\*'"),
    "rows": ({"rows": -1}, "rows: got -1"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_there_is_refused_before_anything_is_printed(options, message):
    with pytest.raises(ValueError, match=message):
        graph_tables(inspection(), **options)


def large(count=1000):
    names = [f"layer{i}.weight" for i in range(count)]
    return inspection(
        parameters=tuple(parameter(name, (2, 3)) for name in names),
        groups=(group(names, 0.01),),
        state=tuple(carried(name) for name in names),
        inputs=tuple(ValueFacts(f"x{i}", (), "int64") for i in range(count)),
    )


def test_a_thousand_parameters():
    text = page(large())
    assert first_words(text)[:2] == ["layer0.weight", "layer1.weight"]
    assert len(parameter_rows(text)) == 21
    assert "... 980 more 23.0 KiB 45.9 KiB" in squeezed(text)
    assert "Parameters: 1,000" in text
    assert "Carried to the next step: 1,000 (1,000 parameter)" in text
    assert "all: fed by <input>/next, kind parameter, type float32[1, 2], overwritable yes" in text
    assert "... 992 more" in squeezed(text)
    assert len(text.splitlines()) < 140
    assert "layer999.weight" not in text


def test_rows():
    assert len(parameter_rows(page(large(), rows=3))) == 4
    assert len(parameter_rows(page(large(), rows=0))) == 1
    everything = page(large(), all=True)
    assert len(parameter_rows(everything)) == 1000
    assert "more" not in everything
    assert everything.count("layer999.weight") >= 2


HOSTILE = "\x1b[2J[red]bold[/red]\r\n\u202egnp\x07" + "x" * 70000
SAFE = r"\x1b[2J[red]bold[/red]"


def hostile():
    """Every text that comes from a file."""
    h = HOSTILE
    schedule = {"schedule": h, h: h}
    return inspection(
        model=ModelFacts(h, h, h, 1, 1),
        optimizer=OptimizerFacts(h, "graph", formula=(h,), others={h: 1.0}),
        groups=(group([h], schedule),),
        parameters=(parameter(h, (1,), rate=schedule, dtype=h, states=(h,)),
                    parameter("w", (1,), rate={"schedule": "expression", "formula": h})),
        state=(carried(h, h, shape=(h,), initial=h, output=h),),
        layout=h, buckets=(BucketFacts(h, h, (), (h,)),),
        inputs=(ValueFacts(h, (h,), h),), outputs=(ValueFacts(h, (h,), h),),
        memory=MemoryFacts(1, 1, 1, 1, 1, {h: 1}),
        requirements=Requirements(8, {h: 1}, {h: [h]}, [h]),
        targets=(TargetFacts(h, False, (h,)),),
        hazards=(Hazard(h, "error", (h,), h, h),),
    )  # fmt: skip


@pytest.mark.parametrize("width", [60, 100])
def test_names_cannot_write_on_the_terminal(width):
    text = page(hostile(), width=width)
    assert all(line.isprintable() for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= width
    assert len(text) < 40_000
    assert r"\x1b[2J[red]bo" in text


def test_names_are_no_markup():
    kinds = page(inspection(state=(carried("w", "[red]k[/red]"),)))
    assert "(1 [red]k[/red])" in kinds
    colored = page(inspection(model=ModelFacts("[bold red]a[/]", "model", "[link]", 1, 1)))
    assert "[bold red]a[/]: model, 1 nodes, 1 B, written by [link]" in colored


def test_no_optimizer():
    found = inspection(
        optimizer=None, groups=(), parameters=(parameter("w", (3,), None, None, None, states=()),),
        state=(), layout=None, buckets=(), stages=(), targets=(), frozen=(), inputs=(), outputs=(),
    )  # fmt: skip
    text = squeezed(page(found))
    assert "No optimizer" in text
    assert "name shape dtype bytes states" in text
    assert "w [3] float32 12 B 24 B" in text
    assert "group" not in text
    assert not any(word in text for word in ("Carried", "Targets", "A step", "Inputs"))


def test_stages_without_nodes_are_left_out():
    stages = (StageFacts("forward", 10, 1, 1), StageFacts("backward", 0, 0, 0))
    text = page(inspection(stages=stages))
    assert "forward" in text
    assert "backward" not in text


def test_nothing_trained():
    assert "No parameters are trained" in page(inspection(parameters=(), groups=()))


def test_unknown_sizes():
    found = inspection(memory=MemoryFacts(1, 2, 3, 4, None, {}))
    text = squeezed(page(found))
    assert "activations ? at most" in text
    assert "together ?" in text


SCHEDULES = [
    (0.1, "0.1"),
    (0, "0"),
    (1e-12, "1e-12"),
    (None, "?"),
    (float("nan"), "nan"),
    (10**400, "inf"),
    (COSINE, "CosineDecayLR(0 .. 0.1, 100)"),
    ({"schedule": "WarmUpLR", "learning_rate": 0.1, "warmup_steps": 5}, "WarmUpLR(0 .. 0.1, 5)"),
    ({"schedule": "MultiStepLR", "learning_rate": 0.1, "decay_rate": 0.5, "milestones": [4, 9]},
     "MultiStepLR(0.1, 0.5, at 4, 9)"),
    ({"schedule": "MultiStepLR", "learning_rate": 0.1, "decay_rate": 0.5,
      "milestones": [*range(1, 10)]}, "MultiStepLR(0.1, 0.5, at 1, 2, 3, 4, ...)"),
    ({"schedule": "ExponentialDecayLR", "learning_rate": 0.1, "decay_rate": 0.5, "decay_steps": 4,
      "is_stair": False}, "ExponentialDecayLR(0.1, 0.5, 4)"),
    ({"schedule": "InverseDecayLR", "learning_rate": 0.1, "decay_rate": 0.5, "decay_steps": 4,
      "is_stair": True}, "InverseDecayLR(0.1, 0.5, 4, is_stair)"),
    ({"schedule": "PolynomialDecayLR", "learning_rate": 0.1, "end_learning_rate": 0.0,
      "decay_steps": 10, "power": 2.0, "update_decay_steps": True},
     "PolynomialDecayLR(0.1 .. 0, 10, power 2, update_decay_steps)"),
    ({"schedule": "SequentialLR", "schedules": [{"schedule": "Fixed", "constant": 0.5}, COSINE],
      "milestones": [10]}, "0.5, from 10 CosineDecayLR(0 .. 0.1, 100)"),
    ({"schedule": "SequentialLR", "schedules": [0.5] * 9, "milestones": [*range(8)]},
     "0.5, from 0 0.5, from 1 0.5, from 2 0.5, and 5 more"),
    ({"schedule": "list", "length": 30}, "list of 30"),
    ({"schedule": "FromCaller", "input": "rate"}, "input 'rate'"),
    ({"schedule": "OnnxSchedule", "text": "r (t) => ..."}, "OnnxSchedule"),
    ({"schedule": "expression", "formula": "0.1 / sqrt(step)"}, "0.1 / sqrt(step)"),
    ({"schedule": "Mine", "start": 0.5, "every": 10}, "Mine(start=0.5, every=10)"),
    ({"schedule": "CosineDecayLR"}, "CosineDecayLR()"),
    ({"schedule": "SequentialLR", "schedules": 3, "milestones": None},
     "SequentialLR(schedules=3, milestones=?)"),
    ({}, "None()"),
    ({"schedule": ["a"], "b": {"c": 1}}, "['a'](b=...)"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), SCHEDULES, ids=str)
def test_schedules(value, expected):
    assert words.schedule(value) == expected


def test_names_of_schedules():
    assert words.schedule_name(COSINE) == "CosineDecayLR"
    assert words.schedule_name(0.5) == "0.5"
    assert words.schedule_name({}) == "None"


def test_schedules_in_schedules_end():
    value = 0.1
    for _ in range(500):
        value = {"schedule": "SequentialLR", "schedules": [value, value], "milestones": [1]}
    assert len(words.schedule(value)) <= 160


SIZES = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1048575, "1.0 MiB"),
         (10 * 2**30, "10.0 GiB"), (2**62, "4.0 EiB"),
         (2**90, "1.23794e+27 B"), (None, "?")]  # fmt: skip
COUNTS = [(0, "0"), (999, "999"), (1000, "1.0 k"), (999_949, "999.9 k"), (999_950, "1.0 M"),
          (123_456_789, "123.5 M"), (10**15, "1.0 P"), (None, "?")]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), SIZES)
def test_bytes_in_units(value, expected):
    assert _words.size(value) == expected


@pytest.mark.parametrize(("value", "expected"), COUNTS)
def test_counts_in_units(value, expected):
    assert _words.count(value) == expected


NAMES_SHOWN = [
    ("conv1.weight", "conv1.weight"),
    ("größe/重み", "größe/重み"),
    ("a\tb\n", r"a\tb\n"),
    ("\x1b[31m\x9b", r"\x1b[31m\x9b"),
    ("\u202eabc\u2028", r"\u202eabc\u2028"),
    ("\ud800", r"\ud800"),
    (b"\xff", r"b'\xff'"),
    ("a" * 80, "a" * 80),
]


@pytest.mark.parametrize(("name", "expected"), NAMES_SHOWN)
def test_names(name, expected):
    assert _words.shown(name) == expected


def test_long_names_lose_their_middle():
    assert _words.shown("a" * 50 + "b" * 50, 20) == "a" * 6 + "..." + "b" * 11
