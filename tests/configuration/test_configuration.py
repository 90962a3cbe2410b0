"""Configuration files: they say what Python says, and mistakes are named by file and key."""

import re
import tomllib

import onnx
import pytest

import graphopt
from graphopt import DynamicLossScale, ParameterAverage, schedules
from graphopt.configuration import (
    checked_alone,
    device_arguments,
    example,
    graph_arguments,
    optimizer_of,
    read_configuration,
)
from graphopt.configuration.schema import SECTIONS
from graphopt.configuration.semantics import SEMANTICS
from graphopt.examples import digits_cnn
from tests.helpers.folders import DOCS

pytestmark = pytest.mark.any_runtime

MODEL = digits_cnn.build()
PARAMETERS = graphopt.parameters(MODEL)
NAMES = [parameter.name for parameter in PARAMETERS]


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads a text as a file, with what is given beside it."""
    monkeypatch.chdir(tmp_path)

    def reader(text, **beside):
        (tmp_path / "train.toml").write_text(text, encoding="utf-8")
        return read_configuration("train.toml", beside)

    return reader


def built(configuration):
    optimizer = optimizer_of(configuration, PARAMETERS)
    return graphopt.training_graph(MODEL, optimizer=optimizer, **graph_arguments(configuration))


WHOLE = """
[graph]
loss = "cross_entropy"
loss_output = "logits"
labels = "digit"
memory = "low"
group_mask = true
accumulation = { steps = 3, reduction = "sum" }
gradient_outputs = ["conv2.bias"]
seed = 4
layout = "separate"

[optimizer]
learning_rate = { schedule = "SequentialLR", milestones = [10], schedules = [
  { schedule = "WarmUpLR", learning_rate = 1, warmup_steps = 10 },
  { schedule = "MultiStepLR", learning_rate = 1.0, decay_rate = 0.1, milestones = [3, 5] },
] }
decay = 0.8
momentum = 1
epsilon = 1e-4
centered = true
weight_decay = { schedule = "ExponentialDecayLR", learning_rate = 0.1, decay_rate = 0.9, decay_steps = 4 }
epsilon_inside_root = false
initial_mean_square = 0
learning_rate_inside_moment = false
decoupled_weight_decay = true
nesterov = true
loss_scale = { initial = 8, growth_interval = 5 }
clip_norm = 2
clip_norm_per = "group"
average = { decay = 0.9, warm_up = true }
use_locking = true

[parameters]
freeze = ["conv1.*"]
order = ["dense2.*", "*"]

[[groups]]
types = ["Conv"]
lr = [0.1, 0.2]
grad_centralization = true

[[groups]]
decays = false
except = ["dense2.bias"]
weight_decay = 0
learning_rate = { schedule = "FromCaller", name = "rate" }

[[groups]]
rest = true
"""  # noqa: E501


@pytest.mark.quick
def test_a_file_says_what_python_says(read):
    trained = PARAMETERS.without(PARAMETERS.matching("conv1.*"))
    first = trained.matching("dense2.*")
    trained = graphopt.parameter.Parameters([*first, *trained.without(first)])
    convolutions = trained.of_type("Conv")
    plain = trained.without_decay().without(trained.matching("dense2.bias"))
    optimizer = graphopt.RMSProp(
        [
            {"params": convolutions, "lr": [0.1, 0.2], "grad_centralization": True},
            {
                "params": plain,
                "learning_rate": schedules.FromCaller("rate"),
                "weight_decay": 0.0,
            },
            {"params": trained.without([*convolutions, *plain])},
            {"order_params": trained},
        ],
        learning_rate=schedules.SequentialLR(
            [schedules.WarmUpLR(1.0, 10), schedules.MultiStepLR(1.0, 0.1, [3, 5])], [10]
        ),
        decay=0.8,
        momentum=1.0,
        epsilon=1e-4,
        centered=True,
        weight_decay=schedules.ExponentialDecayLR(0.1, 0.9, 4),
        epsilon_inside_root=False,
        initial_mean_square=0.0,
        learning_rate_inside_moment=False,
        decoupled_weight_decay=True,
        nesterov=True,
        loss_scale=DynamicLossScale(8.0, growth_interval=5),
        clip_norm=2.0,
        clip_norm_per="group",
        average=ParameterAverage(0.9, warm_up=True),
        use_locking=True,
    )
    expected = graphopt.training_graph(
        MODEL,
        "cross_entropy",
        optimizer,
        loss_output="logits",
        labels="digit",
        memory="low",
        group_mask=True,
        accumulation=graphopt.Accumulation(3, "sum"),
        gradient_outputs=["conv2.bias"],
        seed=4,
        layout="separate",
    )
    assert built(read(WHOLE)).model == expected.model


WARM_UP = """learning_rate = { schedule = "warmup_lr", learning_rate = 1, total_step = 4,
    step_per_epoch = 2, warmup_epoch = 1 }""".replace("\n", "")
TEXT = '<domain: "my", opset_import: ["": 17]> rate (step) => (y) { y = Add(step, step) }'


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("loss_scale = 'dynamic'", {"loss_scale": DynamicLossScale()}),
        ("loss_scale = 64", {"loss_scale": 64.0}),
        ("loss_scale = { like = 'keras' }", {"loss_scale": DynamicLossScale.keras()}),
        (
            "loss_scale = { like = 'flax', growth_interval = 3 }",
            {"loss_scale": DynamicLossScale.flax(3)},
        ),
        ("loss_scale = { input = 'scale' }", {"loss_scale": schedules.FromCaller("scale")}),
        ("average = 0.5", {"average": ParameterAverage(0.5)}),
        ("clip_value = 1\nskip_on_overflow = true", {"clip_value": 1.0, "skip_on_overflow": True}),
        (WARM_UP, {"learning_rate": schedules.warmup_lr(1.0, 4, 2, 1)}),
        (
            f"learning_rate = {{ schedule = 'OnnxSchedule', text = '{TEXT}' }}",
            {"learning_rate": schedules.OnnxSchedule(TEXT)},
        ),
    ],
)
def test_values_of_the_optimizer(read, text, arguments):
    made = optimizer_of(read(f"[optimizer]\n{text}"), PARAMETERS)
    expected = graphopt.RMSProp(PARAMETERS, **arguments)
    assert vars(made) == vars(expected)


def test_seed_and_accumulation_of_the_caller(read):
    configuration = read("[graph]\nseed = 'runtime'\naccumulation = { reduction = 'sum' }")
    assert graph_arguments(configuration) == {
        "loss": None,
        "seed": None,
        "accumulation": graphopt.Accumulation(None, "sum"),
    }


@pytest.mark.parametrize("framework", SEMANTICS)
def test_semantics_are_what_the_guide_says(read, framework):
    page = (DOCS / "other_frameworks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE)[:8]
    column = {"mindspore": 0, "torch": 1, "timm": 2, "keras": 3, "optax": 4}[framework]
    read_there = {}
    for name, cells in rows:
        word = cells.split(" | ")[column].strip("*").partition(",")[0].strip("*")
        read_there[name] = {"True": True, "False": False, "no default": None}.get(word, word)
    rate = read_there["learning_rate"] is None
    text = f"semantics = '{framework}'" + ("\nlearning_rate = 0.5" if rate else "")
    made = optimizer_of(read(f"[optimizer]\n{text}"), PARAMETERS)
    assert len(rows) == 8
    for name, value in read_there.items():
        if name == "learning_rate":
            assert made.groups[0].learning_rate.value(0) == (0.5 if rate else float(value)), name
        elif isinstance(value, bool):
            assert getattr(made, name) == value, name
        else:
            assert getattr(made, name) == float(value), name


def test_other_frameworks_decay_all_and_keys_override_them(read):
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float[N,2] x) => (float[N,2] y) <float[2] gamma = {1, 2}, float[2,2] w = {1, 2, 3, 4}>
        { h = MatMul(x, w) y = Mul(h, gamma) }""")
    found = graphopt.parameters(model)
    text = "[optimizer]\nsemantics = '{}'\nweight_decay = 0.1\nepsilon = 0.5"
    for framework, decays in (("mindspore", 1), ("torch", 2), ("keras", 2)):
        made = optimizer_of(read(text.format(framework)), found)
        assert sum(rule.decays for rule in made.rules) == decays, framework
        assert made.epsilon == 0.5


def test_what_is_given_beside_the_file_overrides_it(read):
    text = "[optimizer]\nlearning_rate = 0.5\nmomentum = 0.5\n[parameters]\nfreeze = ['conv1.*']"
    beside = {"optimizer": {"learning_rate": 0.25}, "parameters": {"freeze": ["dense*"]}}
    made = optimizer_of(read(text, **beside), PARAMETERS)
    assert (made.groups[0].learning_rate.value(0), made.momentum) == (0.25, 0.5)
    assert [parameter.name for parameter in made.params] == NAMES[:4]
    with pytest.raises(ValueError, match=r"^learning_rate: got -1\.0 ") as error:
        read(text, optimizer={"learning_rate": -1.0})
    assert "train.toml" not in str(error.value)


def test_files_for_devices(read):
    text = "[graph]\nloss = 'mse'\nlayout = '{}'\n[on_device]\noutputs = ['logits']"
    assert device_arguments(read(text.format("auto"))) == {"loss": "mse", "outputs": ["logits"]}
    with pytest.raises(
        ValueError, match=r"'train.toml': graph.layout: is of training graphs alone"
    ):
        device_arguments(read(text.format("chunks")))


MISTAKES = {
    "[optimizer]\nmomentun = 0.9": "optimizer.momentun: there is no such key; did you mean "
    "'optimizer.momentum'?",
    "[optimizer]\nlr = 0.9": "optimizer.lr: there is no such key; did you mean 'groups.lr'?",
    "[optimizer]\neps = 0.9": "optimizer.eps: there is no such key; did you mean "
    "'optimizer.epsilon'?",
    "[graph]\nmomentum = 0.9": "graph.momentum: there is no such key; did you mean "
    "'optimizer.momentum'?",
    "[graph]\nfrobnicate = 0.9": "graph.frobnicate: there is no such key; expected loss, ",
    "[[groups]]\nparam = ['*']": "groups[0].param: there is no such key; did you mean "
    "'groups.params'?",
    "[optimiser]\nmomentum = 0.9": "optimiser: there is no such section; did you mean "
    "'optimizer'?",
    "momentum = 0.9": "momentum: there is no such section; did you mean the key "
    "'optimizer.momentum'?",
    "optimizer = 3": "optimizer: got 3 (int), expected a section [optimizer]",
    "[groups]\nrest = true": "groups: expected [[groups]], a section for each group",
    "[optimizer": "is not TOML: ",
    "[optimizer]\ndecay = 'much'": "optimizer.decay: got 'much' (str), expected a number",
    "[optimizer]\ndecay = true": "optimizer.decay: got True (bool), expected a number",
    "[optimizer]\ndecay = -1": "optimizer.decay: got -1.0 (float), expected a finite number >= 0",
    "[optimizer]\nepsilon = 0": "optimizer.epsilon: got 0.0 (float), expected a finite number > 0",
    "[optimizer]\nepsilon = inf": "optimizer.epsilon: got inf (float), expected a finite",
    "[optimizer]\ncentered = 1": "optimizer.centered: got 1 (int), expected True or False",
    "[optimizer]\nsemantics = 'pytorch'": "optimizer.semantics: got 'pytorch' (str), expected "
    "'mindspore' or 'torch' or",
    "[optimizer]\nsemantics = 'optax'": "optimizer.learning_rate: is missing",
    "[optimizer]\nnesterov = true": "optimizer.nesterov: got True with momentum=0.0, expected a",
    "[optimizer]\nclip_norm = 1\nclip_value = 1": "optimizer.clip_value: got 1.0 beside",
    "[optimizer]\nlearning_rate = 'fast'": "optimizer.learning_rate: got 'fast' (str), expected a "
    "number, a list",
    "[optimizer]\nlearning_rate = [0.1, -1]": "optimizer.learning_rate[1]: got -1.0 (float), "
    "expected",
    "[optimizer]\nlearning_rate = []": "optimizer.learning_rate: got no value, expected one",
    "[optimizer]\nlearning_rate = { min_lr = 0 }": "optimizer.learning_rate.schedule: got no "
    "'schedule', expected CosineDecayLR,",
    "[optimizer]\nlearning_rate = { schedule = 'CosineDecay' }": "optimizer.learning_rate."
    "schedule: got 'CosineDecay' (str), did you mean 'CosineDecayLR'?",
    "[optimizer]\nlearning_rate = { schedule = 'WarmUpLR', learning_rate = 0.1 }": "optimizer."
    "learning_rate.warmup_steps: is missing, schedule 'WarmUpLR' needs it",
    "[optimizer]\nlearning_rate = { schedule = 'WarmUpLR', warmup_step = 1 }": "optimizer."
    "learning_rate.warmup_step: schedule 'WarmUpLR' has no such entry; did you mean "
    "'warmup_steps'?",
    "[optimizer]\nlearning_rate = { schedule = 'WarmUpLR', learning_rate = 0.1, warmup_steps = 0 }":
    "optimizer.learning_rate.warmup_steps: got 0 (int), expected an int >= 1",
    "[optimizer]\nlearning_rate = { schedule = 'SequentialLR', milestones = [1], schedules = [1] }":
    "optimizer.learning_rate.schedules[0]: got 1 (int), expected a table with a schedule",
    "[optimizer]\nlearning_rate = { schedule = 'SequentialLR', milestones = [1], schedules = [{ "
    "schedule = 'WarmUpLR', learning_rate = 0.1, warmup_steps = -1 }] }":
    "optimizer.learning_rate.schedules[0].warmup_steps: got -1 (int), expected an int >= 1",
    "[optimizer]\nweight_decay = [0.1]": "optimizer.weight_decay: got [0.1] (list), expected a",
    "[optimizer]\nloss_scale = 'static'": "optimizer.loss_scale: got 'static', expected a number",
    "[optimizer]\nloss_scale = { growth_factor = 0.5 }": "optimizer.loss_scale.growth_factor: got "
    "0.5, expected a number > 1",
    "[optimizer]\nloss_scale = { like = 'jax' }": "optimizer.loss_scale.like: got 'jax' (str), "
    "expected 'pytorch' or",
    "[optimizer]\naverage = 1.5": "optimizer.average.decay: got 1.5, expected a number >= 0 and",
    "[optimizer]\naverage = { warmup = true }": "optimizer.average.warmup: an average has no such "
    "entry; did you mean 'warm_up'?",
    "[graph]\naccumulation = 0": "graph.accumulation: got 0 (int), expected an int >= 1",
    "[graph]\naccumulation = { reduction = 'max' }": "graph.accumulation.reduction: got 'max'",
    "[graph]\nmemory = 'little'": "graph.memory: got 'little' (str), expected 'fast' or",
    "[graph]\nseed = 'random'": "graph.seed: got 'random' (str), expected an int >= 0, or",
    "[graph]\nloss = ''": "graph.loss: got an empty string, expected a name",
    "[graph]\ngradient_outputs = 'w'": "graph.gradient_outputs: got 'w' (str), expected a list of "
    "strings, such as ['w']",
    "[parameters]\nfreeze = 'conv1.*'": "parameters.freeze: got 'conv1.*' (str), expected a list "
    "of strings, such as ['conv1.*']",
    "[[groups]]\nranks = [1, -1]": "groups[0].ranks[1]: got -1 (int), expected a whole number",
}  # fmt: skip


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_named_by_file_and_key(read, text):
    with pytest.raises((TypeError, ValueError)) as error:
        checked_alone(read(text))
    expected = MISTAKES[text]
    between = " " if expected.startswith("is not TOML") else ": "
    assert str(error.value).startswith(f"'train.toml'{between}{expected}")


OF_A_MODEL = {
    "[parameters]\nfreeze = ['conv3.*']": "parameters.freeze: pattern 'conv3.*' matches no",
    "[parameters]\nfreeze = ['*']": "parameters.freeze: got patterns of all parameters",
    "[parameters]\norder = ['conv*']": "parameters.order: lacks 'dense1.weight', 'dense1.bias', "
    "'dense2.weight', 'dense2.bias' are; expected",
    "[[groups]]\nparams = ['conv*']": "groups: 'dense1.weight', 'dense1.bias', 'dense2.weight', "
    "'dense2.bias' are in no group; add a group with rest = true",
    "[[groups]]\nparams = ['conv*']\n[[groups]]\nparams = ['*']": "groups[1]: has 'conv1.weight', "
    "which groups[0] has too; see 'except'",
    "[[groups]]\nparams = ['conv3*']\n[[groups]]\nrest = true": "groups[0].params: pattern "
    "'conv3*' matches no parameter",
    "[[groups]]\nlr = 1": "groups[0]: selects nothing; expected params, types, ranks, decays, or",
    "[[groups]]\ntypes = ['Gru']": "groups[0]: no parameter is all of what it selects",
    "[[groups]]\nparams = ['*']\n[[groups]]\nrest = true": "groups[1].rest: there is nothing left",
    "[[groups]]\nrest = true\n[[groups]]\nrest = true": "groups[1].rest: the group before has",
    "[[groups]]\nrest = true\ntypes = ['Conv']": "groups[0].types: stands with rest = true; leave",
    "[[groups]]\nrest = true\nlr = 1\nlearning_rate = 1": "groups[0].lr: is the same as",
}  # fmt: skip


@pytest.mark.parametrize("text", OF_A_MODEL)
def test_a_mistake_that_a_model_shows(read, text):
    with pytest.raises(ValueError, match=r"^'train.toml': ") as error:
        optimizer_of(read(text), PARAMETERS)
    assert str(error.value).startswith(f"'train.toml': {OF_A_MODEL[text]}")


def test_the_example_has_all_keys_and_is_one(read):
    text = example()
    configuration = read(text)
    assert built(configuration).model.graph.node
    for section in SECTIONS.values():
        for key in section.keys:
            assert re.search(rf"^#?{key.name} = ", text, re.MULTILINE), key.name


@pytest.mark.parametrize(
    ("section", "key"),
    [(section, key) for section in SECTIONS.values() for key in section.keys],
    ids=lambda part: part.name,
)
def test_each_example_of_a_key_is_one(read, section, key):
    head = f"[[{section.name}]]" if section.repeated else f"[{section.name}]"
    configuration = read(f"{head}\n{key.name} = {key.example}")
    found = configuration.groups[0] if section.repeated else configuration.section(section.name)
    assert list(found) == [key.name]
    assert tomllib.loads(f"{key.name} = {key.example}")


def test_there_is_no_such_file():
    with pytest.raises(FileNotFoundError, match=r"there is no file 'absent\.toml'"):
        read_configuration("absent.toml")
