"""Training on CUDA: the state stays on the GPU, and nothing but shape arithmetic on the CPU."""

import functools
import json

import numpy as np
import onnxruntime
import pytest

import graphopt
from models.zoo import ZOO
from tests.helpers.environments import needs_cuda

# Without TF32, which rounds the operands of products to 10 bits.
CUDA = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
BATCH = 4

# The operators for which ONNX Runtime documents a CUDA kernel in float32, and those on indices
# and conditions (docs/OperatorKernels.md of ONNX Runtime); the ones that our graphs may use.
KERNELS = {
    *(
        "Abs",
        "Add",
        "And",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Compress",
        "Concat",
    ),
    *("ConstantOfShape", "Conv", "ConvTranspose", "Cos", "CumSum", "DepthToSpace", "Div"),
    *("Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather"),
    *("GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool"),
    *("Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity"),
    *("InstanceNormalization", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log"),
    *("LogSoftmax", "LRN", "MatMul", "Max", "MaxPool", "Min", "Mod", "Mul", "Neg", "NonZero"),
    *("Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "Range", "Reciprocal", "ReduceMax"),
    *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Reshape", "Resize"),
    *("ScatterElements", "ScatterND", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Size", "Slice"),
    *("Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum"),
    *("Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor"),
}
# The runtime replaces these before it looks for kernels: by a tensor, or by a Cast.
REPLACED = {"Constant", "CastLike"}


@functools.cache
def graph(name, provider="CUDAExecutionProvider"):
    model = ZOO[name].build()
    optimizer = graphopt.RMSProp(
        graphopt.parameters(model), learning_rate=0.002, momentum=0.9, centered=True
    )
    return graphopt.training_graph(model, ZOO[name].loss, optimizer, provider=provider)


@pytest.mark.any_runtime
@pytest.mark.parametrize("name", ZOO)
def test_every_operator_has_a_cuda_kernel(name):
    operators = set(graphopt.requirements(graph(name)).operators[""])
    assert operators <= KERNELS | REPLACED


def steps(session, name, count):
    rng = np.random.default_rng(0)
    return [float(session.step(ZOO[name].feeds(rng, BATCH))["loss"]) for _ in range(count)]


@pytest.mark.any_runtime
@pytest.mark.parametrize("name", ZOO)
def test_the_formulations_for_cuda_compute_the_same(name):
    """On the CPU, which every machine has."""
    for_cuda, for_cpu = (
        graphopt.Session(graph(name, provider))
        for provider in ("CUDAExecutionProvider", "CPUExecutionProvider")
    )
    np.testing.assert_allclose(
        steps(for_cuda, name, 5), steps(for_cpu, name, 5), rtol=1e-5, atol=1e-6
    )


@needs_cuda
@pytest.mark.parametrize("name", ZOO)
def test_trains_as_on_the_cpu(name):
    on_cuda = graphopt.Session(graph(name), providers=CUDA)
    on_cpu = graphopt.Session(graph(name))
    np.testing.assert_allclose(steps(on_cuda, name, 20), steps(on_cpu, name, 20), rtol=1e-3)


@needs_cuda
@pytest.mark.parametrize("name", ZOO)
def test_state_stays_on_the_gpu(name):
    session = graphopt.Session(graph(name), providers=CUDA)
    steps(session, name, 3)
    assert {value.device_name() for value in session._values.values()} == {"cuda"}


@needs_cuda
@pytest.mark.parametrize("name", ZOO)
def test_only_shape_arithmetic_runs_on_the_cpu(name, tmp_path):
    """From the runtime's own profile: which provider ran each node, and what came out."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = graphopt.Session(graph(name), providers=CUDA, session_options=options)
    steps(session, name, 2)
    events = json.loads((tmp_path / session._session.end_profiling()).read_text())
    nodes = [
        event["args"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    assert any(node["provider"] == "CUDAExecutionProvider" for node in nodes)
    on_cpu = [node for node in nodes if node["provider"] == "CPUExecutionProvider"]
    floats = [
        (node["op_name"], node["output_type_shape"])
        for node in on_cpu
        if any(kind.startswith("float") for output in node["output_type_shape"] for kind in output)
    ]
    assert floats == []


@pytest.mark.quick
@pytest.mark.parametrize(
    ("provider", "error", "message"),
    [
        ("cuda", ValueError, "provider: got 'cuda', expected the name of an execution provider"),
        (["CUDAExecutionProvider"], TypeError, "provider: got list, expected a string"),
    ],
)
def test_bad_provider(provider, error, message):
    model = ZOO["mlp"].build()
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    with pytest.raises(error, match=message):
        graphopt.training_graph(model, "cross_entropy", optimizer, provider=provider)
