"""Where a step goes, against what the runtime itself has written."""

import io
import json
import statistics
import tempfile

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from rich.console import Console

import graphopt
from graphopt import _runtime
from graphopt.profiling import _events, _run
from graphopt.profiling.profile_tables import profile_tables
from graphopt.update import layout
from models import recurrent, transformer
from models.zoo import ZOO
from tests.helpers.environments import needs_cuda
from tools import many_parameters

STAGES = ["forward", "loss", "backward", "update", "other", "runtime", "python", "profiler"]
FEW = {"steps": 3, "warm_up": 1, "threads": 1}
KERNELS = pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "bodies"])
NETWORKS = pytest.mark.parametrize("name", ["mlp", "digits_cnn"])


def optimizer_of(parameters, **settings):
    """With two groups."""
    half = len(parameters) // 2
    groups = [{"params": parameters[:half], "lr": 0.02}, {"params": parameters[half:]}]
    return graphopt.RMSProp(groups, **{"learning_rate": 0.01, "momentum": 0.9, **settings})


def graph_of(name, **settings):
    model = ZOO[name].build()
    optimizer = optimizer_of(graphopt.parameters(model), **settings)
    return graphopt.training_graph(model, ZOO[name].loss, optimizer)


@pytest.fixture
def small_chunks(monkeypatch):
    """So small that a matrix of the networks has several."""
    monkeypatch.setattr(layout, "_LARGE", 500)
    monkeypatch.setattr(layout, "_CHUNK", 500)


@pytest.fixture
def written(monkeypatch):
    """What is read of the runtime's profiles."""
    profiles = []

    def loads(text):
        profiles.append(json.loads(text))
        return profiles[-1]

    monkeypatch.setattr(_run, "json", type("json", (), {"loads": loads}))
    return profiles


def assert_adds_up(measured):
    stages = {stage.name: stage for stage in measured.stages}
    assert list(stages) == STAGES
    total = measured.milliseconds
    own = [stage for stage in stages.values() if stage.name != "profiler"]
    assert sum(stage.milliseconds for stage in own) == pytest.approx(total)
    assert stages["profiler"].share == 0
    assert sum(stage.share for stage in stages.values()) == pytest.approx(1)
    for name in STAGES[:5]:
        nodes = [node for node in measured.nodes if node.stage == name]
        operators = [operator for operator in measured.operators if operator.stage == name]
        assert stages[name].nodes == len(nodes) == sum(o.nodes for o in operators)
        for parts in (nodes, operators):
            taken = sum(part.milliseconds for part in parts)
            assert stages[name].milliseconds == pytest.approx(taken)
    for parts in (measured.buckets, measured.groups):
        in_parts = [*parts, measured.shared]
        update = stages["update"]
        assert sum(part.nodes for part in in_parts) == update.nodes
        for key in ("milliseconds", "share"):
            assert sum(getattr(part, key) for part in in_parts) == pytest.approx(
                getattr(update, key)
            )
    return stages


@pytest.mark.quick
@KERNELS
@NETWORKS
def test_parts_add_up_to_the_step(name, kernels):
    measured = graphopt.profile(graph_of(name), kernels=kernels, **FEW)
    stages = assert_adds_up(measured)
    for stage in ("forward", "loss", "backward", "update", "python"):
        assert stages[stage].milliseconds > 0, stage
    between = stages["runtime"].milliseconds, stages["profiler"].milliseconds
    assert min(between) >= 0 < sum(between)
    assert stages["other"].nodes == 0
    assert all(bucket.milliseconds > 0 for bucket in measured.buckets)
    assert [bucket.kernel for bucket in measured.buckets] == [
        bucket.function in measured.kernels for bucket in measured.buckets
    ]
    assert kernels or not measured.kernels


def typical_milliseconds(events, steps):
    """The nodes of a typical step, straight from the events: no node inside another."""
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    spans = [
        (event["ts"], event["ts"] + event["dur"])
        for event in kernels
        if event["args"]["op_name"] == "Scan"
    ]
    runs = sorted((event["ts"], event["dur"]) for event in events if event["name"] == "model_run")
    outer, everything = [], []
    for start, length in runs[-steps:]:
        inside = [event for event in kernels if start <= event["ts"] <= start + length]
        own = [e for e in inside if not any(a < e["ts"] < b for a, b in spans)]
        outer.append([e["dur"] for e in sorted(own, key=lambda e: e["ts"])])
        everything.append(sum(e["dur"] for e in inside))
    medians = [statistics.median(times) for times in zip(*outer, strict=True)]
    return len(medians), sum(medians) / 1e3, statistics.median(everything) / 1e3


@pytest.mark.usefixtures("small_chunks")
@KERNELS
@NETWORKS
def test_nothing_is_counted_twice_or_left_out(name, kernels, written):
    measured = graphopt.profile(graph_of(name), kernels=kernels, **FEW)
    (events,) = written
    count, milliseconds, _ = typical_milliseconds(events, FEW["steps"])
    assert len(measured.nodes) == count
    assert sum(node.milliseconds for node in measured.nodes) == pytest.approx(milliseconds)


@pytest.mark.usefixtures("small_chunks")
def test_the_body_of_a_loop_is_part_of_it(written):
    """Otherwise the test before could not tell."""
    measured = graphopt.profile(graph_of("mlp"), kernels=False, **FEW)
    _, _, everything = typical_milliseconds(written[0], FEW["steps"])
    chunked = [bucket for bucket in measured.buckets if bucket.function.startswith("Chunked")]
    assert chunked
    for bucket in chunked:
        scans = [n for n in measured.nodes if n.bucket == bucket.name and n.op_type == "Scan"]
        assert len(scans) == 1
        assert scans[0].milliseconds > 0
    assert everything > sum(node.milliseconds for node in measured.nodes)


def test_nodes_are_traced_to_the_stage_they_were_made_for():
    """Fused nodes and those that the runtime inserts too."""
    measured = graphopt.profile(graph_of("digits_cnn"), kernels=False, **FEW)
    operators = {stage: set() for stage in STAGES}
    for node in measured.nodes:
        operators[node.stage].add(node.op_type)
        assert (node.bucket is None) or node.stage == "update"
    layouts = {"ReorderInput", "ReorderOutput"}
    assert operators["forward"] - layouts == {
        "FusedConv",
        "MaxPool",
        "Flatten",
        "FusedGemm",
        "Gemm",
    }
    assert {"LogSoftmax", "GatherElements"} <= operators["loss"]
    assert {"ConvTranspose", "Conv", "Gemm", "Greater", "Cast"} <= operators["backward"]
    layers = {f"{layer}{i}" for layer in ("conv", "relu", "pool", "dense") for i in (1, 2, 3)}
    sources = {node.forward_node for node in measured.nodes if node.stage == "backward"}
    assert {"conv1", "conv2", "pool1", "relu3", "dense1"} <= sources
    assert sources <= layers | {"flat", "logits", "SoftmaxCrossEntropyLoss", None}


@KERNELS
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("settings", [{}, {"centered": True}, {"momentum": 0.0}])
def test_update_graph(settings, dtype, kernels):
    parameters = [graphopt.Parameter(name, (70, 3), dtype) for name in "abcd"]
    optimizer = optimizer_of(parameters, **settings)
    graph = graphopt.update_graph(optimizer)
    measured = graphopt.profile(graph, kernels=kernels, **FEW)
    stages = assert_adds_up(measured)
    assert {name for name, stage in stages.items() if stage.nodes} == {"update"}
    assert [bucket.parameters for bucket in measured.buckets] == [("a", "b"), ("c", "d")]
    item = np.dtype(dtype).itemsize
    for bucket, group in zip(measured.buckets, measured.groups, strict=True):
        assert bucket.elements == group.elements == 2 * 210
        # The gradient read, the parameter and the states read and written.
        assert bucket.bytes == group.bytes == 420 * (3 * item + 8 * len(optimizer.states))
        assert bucket.milliseconds == pytest.approx(group.milliseconds)
        assert bucket.gigabytes_per_second == pytest.approx(
            bucket.bytes / (bucket.milliseconds / 1e3) / 1e9
        )
        assert (bucket.group, group.parameters, group.buckets) == (group.index, 2, (bucket.name,))


@pytest.mark.usefixtures("small_chunks")
@KERNELS
@pytest.mark.parametrize("name", ["chunks", "buckets", "separate"])
def test_layouts(name, kernels):
    optimizer = optimizer_of(
        [graphopt.Parameter(f"layer/{i}/weight", shape) for i, shape in enumerate([(40, 50), (7,)])]
    )
    graph = graphopt.update_graph(optimizer, layout=name)
    measured = graphopt.profile(graph, kernels=kernels, **FEW)
    assert_adds_up(measured)
    assert [bucket.name for bucket in measured.buckets] == ["layer/0/weight", "layer/1/weight"]
    assert [bucket.elements for bucket in measured.buckets] == [2000, 7]
    assert all(bucket.milliseconds > 0 for bucket in measured.buckets)
    assert measured.buckets[0].function.startswith("Chunked") == (name == "chunks")


LINEAR = """<ir_version: 8, opset_import: ["" : 17]>
m (FEED) => (OUTPUTS) {
    y = MatMul (x, w)
    square = Mul (y, y)
    mean = ReduceMean <keepdims = 0> (square)
}"""


def linear(outputs="float[N,L,2] y", loss="mse", feed="float[N,L,3] x", **settings):
    text = LINEAR.replace("OUTPUTS", outputs).replace("FEED", feed)
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 2), "f"), "w"))
    optimizer = graphopt.RMSProp(graphopt.parameters(model), **settings)
    return graphopt.training_graph(model, loss, optimizer)


@pytest.mark.parametrize(
    ("outputs", "forward"),
    [
        ("float mean", {"MatMul", "Mul", "ReduceMean"}),
        ("float[N,L,2] y, float mean", {"MatMul", "Mul", "ReduceMean"}),
    ],
)
def test_loss_of_the_model_is_part_of_its_forward_pass(outputs, forward):
    measured = graphopt.profile(linear(outputs, "mean"), dims={"L": 4}, **FEW)
    assert_adds_up(measured)
    assert {n.op_type for n in measured.nodes if n.stage == "forward"} == forward
    assert {n.op_type for n in measured.nodes if n.stage == "loss"} <= {"Identity"}


def test_names_of_the_model_do_not_mislead():
    model = ZOO["mlp"].build()
    for number, node in enumerate(model.graph.node):
        node.name = f"{'update' if number % 2 else 'backward'}/{number}/{node.op_type}"
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    graph = graphopt.training_graph(model, "cross_entropy", optimizer)
    measured = graphopt.profile(graph, **FEW)
    plain = graphopt.profile(graph_of("mlp"), **FEW)
    stages = [{s.name: s.nodes for s in m.stages} for m in (measured, plain)]
    assert stages[0]["forward"] == stages[1]["forward"] > 0
    assert stages[0]["backward"] == stages[1]["backward"] > 0


def test_a_parameter_may_be_called_as_a_stage():
    def measured(name):
        parameters = [graphopt.Parameter(n, (40,)) for n in (name, "other")]
        graph = graphopt.update_graph(graphopt.RMSProp(parameters), layout="separate")
        return graphopt.profile(graph, **FEW)

    update, plain = measured("update"), measured("w")
    assert update.shared.nodes == plain.shared.nodes > 0
    assert [b.nodes for b in update.buckets] == [b.nodes for b in plain.buckets]


def test_graph_is_left_as_it_is_and_no_file_remains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    graph = graph_of("mlp")
    before = graph.model.SerializeToString(deterministic=True)
    graphopt.profile(graph, **FEW)
    assert graph.model.SerializeToString(deterministic=True) == before
    assert list(tmp_path.iterdir()) == []
    graph.save("train.onnx")
    for source in ("train.onnx", onnx.load("train.onnx")):
        assert graphopt.profile(source, **FEW).buckets
    assert [path.name for path in tmp_path.iterdir()] == ["train.onnx"]


def assert_modules_add_up(measured):
    """Those that are in no other are both passes; a module is what is in it and its own nodes."""
    passes = [node for node in measured.nodes if node.stage in ("forward", "backward")]
    by_name = {module.name: module for module in measured.modules}
    for name, module in by_name.items():
        inside = [
            n for n in passes if n.module == name or (name and n.module.startswith(f"{name}."))
        ]
        assert module.nodes == len(inside) > 0
        for stage in ("forward", "backward"):
            taken = sum(node.milliseconds for node in inside if node.stage == stage)
            assert getattr(module, stage) == pytest.approx(taken)
        assert module.milliseconds == pytest.approx(module.forward + module.backward)
    outer = [module for module in measured.modules if "." not in module.name]
    assert sum(module.nodes for module in outer) == len(passes)
    total = sum(node.milliseconds for node in passes)
    assert sum(module.milliseconds for module in outer) == pytest.approx(total)
    return by_name


def test_modules_of_a_flat_network():
    """What the runtime joins with a convolution is the convolution's."""
    measured = graphopt.profile(graph_of("digits_cnn"), **FEW)
    found = assert_modules_add_up(measured)
    assert list(found) == ["conv1", "conv2", "dense1", "dense2", ""]
    for name in ("conv1", "conv2", "dense1", "dense2"):
        assert min(found[name].forward, found[name].backward) > 0, name


def test_modules_inside_modules():
    graph = many_parameters.training_graph(11)
    measured = graphopt.profile(graph, **FEW)
    found = assert_modules_add_up(measured)
    blocks = [f"stages.0.blocks.{n}" for n in range(10)] + ["stages.1.blocks.0"]
    assert [name for name in found if name.count(".") == 3] == blocks
    assert all(f"{block}.{layer}" in found for block in blocks for layer in ("fc1", "fc2"))
    assert list(found).index("stages.0") < list(found).index("stages.0.blocks.0")
    for block in blocks:
        own = found[block].milliseconds - sum(found[f"{block}.fc{n}"].milliseconds for n in (1, 2))
        assert own > -1e-9  # its addition
    console = Console(width=100, file=io.StringIO())
    for depth, rows, names in (
        (None, 10, ["stages.0.blocks", "stages.1.blocks"]),
        (1, 10, ["stages"]),
        (4, 20, blocks),
        (4, 3, None),
    ):
        tables = profile_tables("graph", measured, rows, depth)
        table = next(t for t in tables if getattr(t, "title", "") == "Modules")
        console.print(table)
        first = [str(cell) for cell in table.columns[0].cells]
        if names is None:
            assert len(first) == 5
            assert first[3:] == [f"{len(blocks) + 1 - 3} more", "both passes"]
        else:
            assert first[:-1] == [*names, "in no module"]


def test_json_has_stable_keys():
    measured = graphopt.profile(graph_of("mlp"), **FEW)
    document = json.loads(json.dumps(measured.to_dict()))
    assert set(document) == {
        *("format", "onnxruntime", "providers", "threads", "kernels", "steps", "warm_up"),
        "graph_nodes",
        *("milliseconds", "median_milliseconds", "unprofiled_milliseconds"),
        *("stages", "groups", "buckets", "shared", "modules", "nodes", "operators"),
    }
    time = {"milliseconds", "share"}
    moved = {"elements", "bytes", "nodes", "gigabytes_per_second"} | time
    assert set(document["stages"][0]) == set(document["shared"]) == {"name", "nodes"} | time
    assert set(document["groups"][0]) == {"index", "buckets", "parameters"} | moved
    bucket = {"name", "function", "kernel", "group", "parameters"}
    assert set(document["buckets"][0]) == bucket | moved
    assert set(document["operators"][0]) == {"stage", "op_type", "nodes"} | time
    assert set(document["modules"][0]) == {"name", "nodes", "forward", "backward"} | time
    node = {"name", "op_type", "stage", "bucket", "forward_node", "module"}
    assert set(document["nodes"][0]) == node | time
    assert (document["format"], document["threads"], document["steps"]) == (1, 1, 3)
    assert document["onnxruntime"] == _runtime.onnxruntime().__version__
    assert document["milliseconds"] == measured.milliseconds


@needs_cuda
def test_on_cuda():
    model = ZOO["mlp"].build()
    optimizer = optimizer_of(graphopt.parameters(model))
    cuda = "CUDAExecutionProvider"
    graph = graphopt.training_graph(model, "cross_entropy", optimizer, provider=cuda)
    measured = graphopt.profile(graph, providers=[cuda, "CPUExecutionProvider"], **FEW)
    assert measured.providers == (cuda, "CPUExecutionProvider")
    stages = assert_adds_up(measured)
    assert min(stages[name].milliseconds for name in ("forward", "backward", "update")) > 0


# Feeds ---------------------------------------------------------------------------------------


@pytest.fixture
def fed(monkeypatch):
    """What the steps are fed."""
    seen = []
    step = graphopt.Session.step

    def remembering(self, feeds):
        seen.append(feeds)
        return step(self, feeds)

    monkeypatch.setattr(graphopt.Session, "step", remembering)
    return seen


@pytest.mark.any_runtime
@pytest.mark.parametrize(
    ("name", "shapes", "bounds"),
    [
        ("mlp", {"x": (6, 32), "labels": (6,)}, {"labels": 10}),
        ("lstm", {"labels": (6,)}, {"labels": recurrent.OUTPUTS}),
        ("transformer", {"labels": (6,)}, {"labels": 10, "tokens": transformer.VOCABULARY}),
    ],
)
def test_random_feeds_fit(name, shapes, bounds, fed):
    expected = ZOO[name].feeds(np.random.default_rng(0), 6)
    graphopt.profile(graph_of(name), batch_size=6, steps=2, warm_up=0)
    feeds = fed[0]
    assert {k: (v.shape, v.dtype) for k, v in feeds.items()} == {
        k: (v.shape, np.asarray(v).dtype) for k, v in expected.items()
    }
    for feed, shape in shapes.items():
        assert feeds[feed].shape == shape
    for feed, bound in bounds.items():
        assert 0 <= feeds[feed].min() < feeds[feed].max() < bound
    assert len(fed) == 4  # the steps without the profiler, and those with it


@pytest.mark.any_runtime
def test_sizes_of_open_dimensions(fed):
    graphopt.profile(linear(), dims={"L": 7}, **FEW)
    assert fed[0]["x"].shape == (32, 7, 3)
    assert fed[0]["labels"].shape == (32, 7, 2)


@pytest.mark.any_runtime
def test_given_feeds_are_used(fed):
    feeds = ZOO["mlp"].feeds(np.random.default_rng(0), 5)
    graphopt.profile(graph_of("mlp"), feeds, **FEW)
    assert all(seen is feeds for seen in fed)


def test_groups_may_be_masked():
    model = ZOO["mlp"].build()
    optimizer = optimizer_of(graphopt.parameters(model))
    graph = graphopt.training_graph(model, "cross_entropy", optimizer, group_mask=True)
    assert_adds_up(graphopt.profile(graph, **FEW))


# What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (linear, {}, ValueError, r"feed 'x': its dimension 'L' is open; .* --dim L=SIZE"),
        (
            lambda: linear("float mean", "mean", "float[N,?,3] x"),
            {},
            ValueError,
            "feed 'x': its dimension 1 is open and has no name",
        ),
        (linear, {"dims": {"K": 3}}, ValueError, "'K' is not an open dimension .* 'L', 'N'"),
        (linear, {"dims": {"L": 0}}, ValueError, r"dims\['L'\]: got 0"),
        (linear, {"dims": ["L"]}, TypeError, "dims: got list, expected a dict"),
        (linear, {"parameters": 3, "dims": {"L": 2}}, TypeError, "parameters: got int"),
        (linear, {"steps": 0}, ValueError, "steps: got 0"),
        (linear, {"steps": 2.0}, TypeError, "steps: got 2.0"),
        (linear, {"steps": None}, TypeError, "steps: got None"),
        (linear, {"warm_up": -1}, ValueError, "warm_up: got -1"),
        (linear, {"threads": "2"}, TypeError, "threads: got '2'"),
        (linear, {"kernels": 1, "dims": {"L": 2}}, TypeError, "kernels: got 1"),
        (linear, {"feeds": {}}, ValueError, "'x' is missing"),
        (linear, {"feeds": {}, "batch_size": 3}, ValueError, "batch_size and dims are for random"),
        (
            linear,
            {"providers": ["NoExecutionProvider"], "dims": {"L": 2}},
            ValueError,
            "'NoExecutionProvider' is not available",
        ),
        (
            lambda: linear(learning_rate=[0.1] * 4),
            {"dims": {"L": 2}, "steps": 4, "warm_up": 1},
            ValueError,
            "1 to warm up and 4 to measure, but the graph has learning rates for 4 steps only",
        ),
        (
            lambda: graphopt.update_graph(graphopt.RMSProp([graphopt.Parameter("w", (3,))])),
            {"batch_size": 3},
            ValueError,
            "batch_size: got 3, but no feed has an open first dimension",
        ),
        (lambda: 3, {}, TypeError, "graph: got int, expected a TrainingGraph"),
        (lambda: "absent.onnx", {}, FileNotFoundError, "'absent.onnx'"),
        (ZOO["mlp"].build, {}, ValueError, "not a training graph"),
    ],
)
def test_bad_input(make, arguments, error, message):
    with pytest.raises(error, match=message):
        graphopt.profile(make(), **{"steps": 1, "warm_up": 0, **arguments})


def test_incomplete_profiles_are_refused(monkeypatch):
    def loads(text):
        events = json.loads(text)
        del events[max(i for i, event in enumerate(events) if event["name"] == "model_run")]
        return events

    monkeypatch.setattr(_run, "json", type("json", (), {"loads": loads}))
    with pytest.raises(RuntimeError, match=r"wrote 3 of 4 steps.*ask for fewer steps"):
        graphopt.profile(graph_of("mlp"), **FEW)


def test_nodes_that_ran_in_another_order_are_told_by_their_names():
    def node(name, op_type):
        return ir.node(op_type, [], name=name)

    def event(name, op_type):
        return {"name": f"{name}_kernel_time", "args": {"op_name": op_type}}

    running = [node("a", "Mul"), node("", "Add"), node("twice", "Sub"), node("twice", "Sub")]
    in_order = [event("a", "Mul"), event("Add_7", "Add"), event("twice", "Sub")]
    assert list(_events.matched([*in_order, event("twice", "Sub")], running)) == [0, 1, 2, 3]
    assert list(_events.matched(in_order[::-1], running)) == [None, None, 0]
