"""Whether a runtime runs a model, compared with what it does."""

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, parser

import graphopt
from graphopt.inspection.facts import TargetFacts
from graphopt.inspection.targets import exceeds, parse_target, releases, runtime_operators, targets
from models.zoo import ZOO
from tests.helpers.device import Device
from tests.helpers.environments import HAS_TRAINING_PACKAGE, needs_training_package

CPU, CUDA, ON_DEVICE = "ONNX Runtime (CPU)", "ONNX Runtime (CUDA)", "on-device training API"
VERSION = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
BUFFER = "_grad.accumulation.buffer"


def digits():
    forward = ZOO["digits_cnn"].build()
    optimizer = graphopt.RMSProp(graphopt.parameters(forward), learning_rate=0.01)
    return forward, optimizer


def exported(folder, **options):
    forward, optimizer = digits()
    return graphopt.export_on_device(forward, "cross_entropy", optimizer, folder, **options)


def targets_of(model):
    return {fact.name: fact for fact in targets(ir.from_proto(model), graphopt.requirements(model))}


def model_of(body, *, opset=17, ir_version=8, domains=("com.microsoft",), functions=""):
    imports = ", ".join(f'"{domain}": 1' for domain in domains)
    header = f'<ir_version: {ir_version}, opset_import: ["": {opset}, {imports}]>'
    return parser.parse_model(f"{header} g (float[4] x) => (float[4] y) {{ {body} }}\n{functions}")


def why_not(model):
    """Why ONNX Runtime does not load a model; "" if it does."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's own kinds
        return str(error)
    return ""


def loads(model):
    return why_not(model) == ""


HALVE = '<domain: "local", opset_import: ["": 17]> Halve (a) => (b) { b = Sqrt(a) }'
MODELS = {
    "relu": model_of("y = Relu(x)"),
    "function of ONNX": model_of("y = HardSwish(x)"),
    "constant": model_of("c = Constant<value_float = 2.0>() y = Mul(x, c)"),
    "own function": model_of("y = local.Halve(x)", domains=["local"], functions=HALVE),
    "unknown domain": model_of("y = local.Halve(x)", domains=["local"]),
    "unknown operator": model_of("y = com.microsoft.Unheard(x)"),
    "unknown operator of ONNX": model_of("y = Unheard(x)"),
    "contributed operator": model_of("y = com.microsoft.QuickGelu(x)"),
    "training operator": model_of("y = com.microsoft.ReluGrad(x, x)"),
    "training operator inside": model_of(
        "t = Size(x) z = Cast<to = 9>(t) y = If<then_branch: graph = a () => (float[4] p) "
        "{ p = com.microsoft.ReluGrad(x, x) }, "
        "else_branch: graph = b () => (float[4] q) { q = Neg(x) }>(z)"
    ),
    "operator without a kernel": model_of("y = com.microsoft.MegatronF(x)"),
    "opset 21": model_of("y = Sin(x)", opset=21, ir_version=10),
    "opset 22": model_of("y = Sin(x)", opset=22, ir_version=10),
    "opset 23": model_of("y = Sin(x)", opset=23, ir_version=10),
    "opset 99": model_of("y = Relu(x)", opset=99),
    "IR version 99": model_of("y = Relu(x)", ir_version=99),
    "IR version 11": model_of("y = Relu(x)", ir_version=11),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_runs_here_is_what_loads_here(name):
    model = MODELS[name]
    package = "onnxruntime-training" if HAS_TRAINING_PACKAGE else "onnxruntime"
    here = parse_target(f"{package}=={VERSION[0]}.{VERSION[1]}")
    reasons = exceeds(graphopt.requirements(model), here)
    if name == "operator without a kernel":
        assert not loads(model)  # it is known to builds for training
    else:
        assert loads(model) == (not reasons), reasons
    assert all(reason and not reason.endswith(".") for reason in reasons)


@pytest.mark.skipif(
    max(releases._LIMITS) != VERSION or HAS_TRAINING_PACKAGE,
    reason="NOT RUN: the facts are about the newest version of onnxruntime that is known",
)
@pytest.mark.parametrize("name", [*MODELS, *ZOO, "update"])
def test_the_cpu_runs_what_loads(name):
    if name in MODELS:
        model = MODELS[name]
    elif name == "update":
        model = graphopt.update_graph(digits()[1]).model
    else:
        forward = ZOO[name].build()
        optimizer = graphopt.RMSProp(graphopt.parameters(forward), learning_rate=0.01)
        model = graphopt.training_graph(forward, ZOO[name].loss, optimizer).model
    fact = targets_of(model)[CPU]
    assert fact.runs == loads(model), fact.reasons
    assert fact.runs or fact.reasons


@pytest.mark.skipif(
    VERSION not in releases._LIMITS,
    reason="NOT RUN: this version of ONNX Runtime is newer than those that are known",
)
def test_limits_of_this_version():
    opset, ir_version = releases._LIMITS[VERSION]
    for at in range(opset - 2, opset + 3):
        assert loads(tiny(opset=at)) == (at <= opset), at
    for at in range(ir_version - 2, ir_version + 3):
        assert loads(tiny(ir_version=at)) == (at <= ir_version), at


def tiny(opset=17, ir_version=8):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def test_the_table_of_kernels_is_that_of_this_version():
    native = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    if max(releases._LIMITS) != VERSION or not hasattr(native, "get_all_opkernel_def"):
        pytest.skip("NOT RUN: the table is of another version of ONNX Runtime")
    kernels = {}
    for kernel in native.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            name = f"{kernel.domain}::{kernel.op_name}" if kernel.domain else kernel.op_name
            start, end = kernel.version_range
            kernels.setdefault(name, set()).add((start, None if end == 2**31 - 1 else end))
    assert {name: set(ranges) for name, ranges in runtime_operators.CPU.items()} == kernels


@pytest.mark.parametrize("name", sorted(runtime_operators.TRAINING_ONLY))
def test_operators_of_training(name):
    domain, _, op_type = name.rpartition("::")
    node = helper.make_node(op_type, ["x"], ["y"], domain=domain)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain or "ai.onnx.ml", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y]), opset_imports=opsets, ir_version=8
    )
    message = why_not(model)
    unknown = "is not a registered" in message or "No Op registered" in message
    assert unknown == (not HAS_TRAINING_PACKAGE), message


# CUDA


def test_cuda_runs_what_has_kernels_there():
    fact = targets_of(MODELS["relu"])[CUDA]
    assert fact == TargetFacts(CUDA, True)


def test_nodes_without_a_kernel_for_cuda_run_on_the_cpu():
    model = model_of(
        "a = Sinh(x) b = Neg(a) c = local.Twice(b) y = Sinh(c)",
        domains=["local"],
        functions='<domain: "local", opset_import: ["": 17]> '
        "Twice (a) => (c) { b = Asinh(a) c = Asinh(b) }",
    )
    assert not {"Sinh", "Asinh"} & set(runtime_operators.CUDA)
    fact = targets_of(model)[CUDA]
    assert fact.runs
    assert fact.reasons == (
        (
            "4 nodes run on the CPU, with copies to it and back, because CUDA has no kernel for "
            "Sinh, Asinh"
        ),
    )


def test_a_kernel_of_an_older_version_does_not_run_a_newer_operator():
    assert runtime_operators.CUDA["EyeLike"] == ((9, None),)  # the operator changed in opset 22
    old, new = (
        targets_of(model_of("y = EyeLike(x)", opset=opset, ir_version=10))[CUDA]
        for opset in (21, 22)
    )
    assert old.reasons == ("from ONNX Runtime 1.18 on",)
    assert new.reasons[0] == "from ONNX Runtime 1.21 on"
    assert new.reasons[1].endswith("CUDA has no kernel for EyeLike")


def test_cuda_runs_no_operators_of_training():
    fact = targets_of(MODELS["training operator"])[CUDA]
    assert not fact.runs
    assert "com.microsoft::ReluGrad" in fact.reasons[0]


# On-device training


@pytest.mark.parametrize(
    "options", [{}, {"gradient_accumulation": True}, {"optimizer_model": True}]
)
def test_files_of_export_on_device_run_there_only(options, tmp_path):
    files = exported(tmp_path / "device", **options)
    for path in filter(None, (files.training_model, files.optimizer_model)):
        facts = targets_of(onnx.load(path))
        assert facts[ON_DEVICE] == TargetFacts(ON_DEVICE, True)
        assert not facts[CPU].runs
        assert "only builds of ONNX Runtime for training" in facts[CPU].reasons[0]
    if HAS_TRAINING_PACKAGE:
        assert Device(files).module is not None


def test_a_training_graph_does_not_run_on_device():
    forward, optimizer = digits()
    graph = graphopt.training_graph(forward, "cross_entropy", optimizer)
    fact = targets_of(graph.model)[ON_DEVICE]
    assert not fact.runs
    assert "graphopt.export_on_device" in fact.reasons[0]


def renamed(model, before, after):
    for value in model.graph.input:
        if value.name == before:
            value.name = after
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name == before:
                node.input[at] = after


def without_reset(model):
    renamed(model, "lazy_reset_grad", "reset")


def without_parameter(model):
    renamed(model, "conv1.bias", "bias")


def logits_first(model):
    outputs = list(model.graph.output)[::-1]
    del model.graph.output[:]
    model.graph.output.extend(outputs)


def newer(model):
    model.ir_version = 11


DAMAGED = {
    without_reset: "lacks the input 'lazy_reset_grad'",
    without_parameter: f"'conv1.bias{BUFFER}' belongs to no input 'conv1.bias'",
    logits_first: "first output must be the loss",
    newer: "IR version 11",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_training_model_that_does_not_run(damage, tmp_path):
    model = onnx.load(exported(tmp_path / "device", outputs=["logits"]).training_model)
    assert targets_of(model)[ON_DEVICE].runs
    damage(model)
    fact = targets_of(model)[ON_DEVICE]
    assert not fact.runs
    assert DAMAGED[damage] in fact.reasons[0]


def second_optimizer(model):
    model.graph.node.add().CopyFrom(
        next(node for node in model.graph.node if node.op_type == "AdamWOptimizer")
    )
    model.graph.node[-1].output[:] = [f"second{at}" for at in range(4)]


def no_optimizer(model):
    for node in model.graph.node:
        if node.op_type == "AdamWOptimizer":
            node.op_type = "Unheard"


def other_order(model):
    first = model.graph.input[0]
    model.graph.input.append(first)
    del model.graph.input[0]


def other_name(model):
    renamed(model, "step", "count")


OPTIMIZERS = {
    second_optimizer: "this one has 2",
    no_optimizer: "this one has 0",
    other_order: "its inputs are step, params",
    other_name: "expected for AdamWOptimizer: learning_rate, step",
}


@pytest.mark.parametrize("damage", OPTIMIZERS)
def test_an_optimizer_model_that_does_not_run(damage, tmp_path):
    files = exported(tmp_path / "device", optimizer_model=True)
    model = onnx.load(files.optimizer_model)
    damage(model)
    fact = targets_of(model)[ON_DEVICE]
    assert not fact.runs
    assert OPTIMIZERS[damage] in fact.reasons[0]


@needs_training_package
@pytest.mark.parametrize("damage", [second_optimizer, no_optimizer, other_order, other_name])
def test_onnx_runtime_refuses_it_too(damage, tmp_path):
    files = exported(tmp_path / "device", optimizer_model=True)
    Device(files)
    model = onnx.load(files.optimizer_model)
    damage(model)
    onnx.save(model, files.optimizer_model)
    with pytest.raises(Exception, match=r"\S"):
        Device(files)


# Targets by name


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "version", "trains"),
    [
        ("onnxruntime==1.19", (1, 19), False),
        (" onnxruntime==1.32.0 ", (1, 32, 0), False),
        ("onnxruntime-gpu==2.0", (2, 0), False),
        ("onnxruntime-training-cpu==1.19.2", (1, 19, 2), True),
    ],
)
def test_targets_by_name(text, version, trains):
    target = parse_target(text)
    assert (target.version, target.trains) == (version, trains)
    assert str(target) == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "", "onnxruntime", "onnxruntime==", "onnxruntime>=1.19", "tensorrt==10.0", "onnxruntime==1",
        "onnxruntime==1.14", "onnxruntime-training==1.20", "onnxruntime==1.19.x",
        "onnxruntime==1.99999999999", "onnxruntime==1.19\nonnxruntime==1.20",
    ],
)  # fmt: skip
def test_a_target_that_is_none(text):
    with pytest.raises(ValueError, match=r"(?s)target: got .*(expected|last version)"):
        parse_target(text)
    with pytest.raises(TypeError, match="target: got int"):
        parse_target(3)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("model", "target", "expected"),
    [
        ("opset 21", "onnxruntime==1.18", []),
        ("opset 21", "onnxruntime==1.17", ["opset 21", "IR version 10"]),
        ("opset 23", "onnxruntime==1.22.1", ["opset 23"]),
        ("opset 23", "onnxruntime==9.0", []),
        ("training operator", "onnxruntime==1.19", ["com.microsoft::ReluGrad: only builds"]),
        ("training operator", "onnxruntime-training==1.19.2", []),
        (
            "unknown operator",
            "onnxruntime==1.32",
            ["com.microsoft::Unheard: ONNX Runtime does not"],
        ),
        ("own function", "onnxruntime==1.15", []),
    ],
)
def test_what_exceeds_a_target(model, target, expected):
    reasons = exceeds(graphopt.requirements(MODELS[model]), parse_target(target))
    assert len(reasons) == len(expected)
    for reason, begin in zip(reasons, expected, strict=True):
        assert reason.startswith(begin)


def test_no_target_is_exceeded_by_nothing():
    assert exceeds(graphopt.requirements(MODELS["opset 99"]), None) == []


def test_functions_that_call_themselves_end():
    calls = " ".join(f"b{at} = local.Again(a)" for at in range(8))
    model = model_of(
        "y = local.Again(x)",
        domains=["local"],
        functions='<domain: "local", opset_import: ["": 17, "local": 1]> '
        f"Again (a) => (c) {{ {calls} c = Neg(a) }}",
    )
    with pytest.raises(ValueError, match="the function 'local::Again' calls itself"):
        targets_of(model)
