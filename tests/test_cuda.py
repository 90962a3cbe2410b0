"""Training on CUDA: the state stays on the GPU, and nothing but shape arithmetic on the CPU."""

import functools

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import graphopt
from graphopt.shapes.in_place import infer_shapes
from models.zoo import ZOO
from tests.helpers.environments import needs_cuda, needs_kernels
from tools.gpu.placement import floats_on_cpu, profiled_nodes

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
    *(
        "InstanceNormalization",
        "IsInf",
        "IsNaN",
        "LayerNormalization",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
    ),
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
def graph(name, provider="CUDAExecutionProvider", precision=None):
    model = ZOO[name].build()
    scale = graphopt.DynamicLossScale(1024.0) if precision == "float16" else 1.0
    optimizer = graphopt.RMSProp(
        graphopt.parameters(model),
        learning_rate=0.002,
        momentum=0.9,
        centered=True,
        loss_scale=scale,
    )
    return graphopt.training_graph(
        model, ZOO[name].loss, optimizer, provider=provider, precision=precision
    )


@pytest.mark.exhaustive
@pytest.mark.any_runtime
@pytest.mark.parametrize("precision", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("name", ZOO)
def test_every_operator_has_a_cuda_kernel(name, precision):
    operators = set(graphopt.requirements(graph(name, precision=precision)).operators[""])
    assert operators <= KERNELS | REPLACED


def steps(session, name, count):
    rng = np.random.default_rng(0)
    return [float(session.step(ZOO[name].feeds(rng, BATCH))["loss"]) for _ in range(count)]


@pytest.mark.exhaustive
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
def test_a_captured_graph_trains_as_any_other(name):
    """The first step, which captures it, is one step too."""
    captured = [("CUDAExecutionProvider", {"use_tf32": "0", "enable_cuda_graph": "1"}), *CUDA[1:]]
    session = graphopt.Session(graph(name), providers=captured)
    on_cpu = graphopt.Session(graph(name))
    np.testing.assert_allclose(steps(session, name, 20), steps(on_cpu, name, 20), rtol=1e-3)
    assert session.state["global_step"] == 20


# Of the losses of some steps: how far the sums of the two providers, rounded, may lie apart.
HALVES = {"float16": 1e-2, "bfloat16": 5e-2}


@needs_cuda
@pytest.mark.parametrize("captured", ["0", "1"], ids=["runs", "captured"])
@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", ZOO)
def test_half_precision_trains_as_on_the_cpu(name, precision, captured):
    provider = {"use_tf32": "0", "enable_cuda_graph": captured}
    on_cuda = graphopt.Session(
        graph(name, precision=precision), providers=[("CUDAExecutionProvider", provider), CUDA[1]]
    )
    on_cpu = graphopt.Session(graph(name, "CPUExecutionProvider", precision))
    found, expected = steps(on_cuda, name, 6), steps(on_cpu, name, 6)
    np.testing.assert_allclose(found, expected, rtol=HALVES[precision], atol=HALVES[precision])
    assert on_cuda.state["global_step"] == 6
    assert {v.dtype.name for v in on_cuda.state.values()} <= {"float32", "int64"}


PRODUCTS = pytest.mark.parametrize(
    ("precision", "products"),
    [("float16", {"Conv", "ConvTranspose", "Gemm", "MatMul"}), ("bfloat16", {"Gemm", "MatMul"})],
)


@pytest.mark.any_runtime
@PRODUCTS
@pytest.mark.parametrize("name", ["digits_cnn", "resnet", "mobilenet_v3", "transformer"])
def test_products_are_in_half_precision(name, precision, products):
    """In the forward and in the backward pass."""
    model = ir.from_proto(graph(name, precision=precision).model)
    infer_shapes(model)
    given = {node.outputs[0].dtype.numpy().name for node in model.graph if node.op_type in products}
    assert given == {precision}


@needs_cuda
@PRODUCTS
@pytest.mark.parametrize("name", ["digits_cnn", "resnet", "transformer"])
def test_products_are_computed_in_half_precision(name, precision, products):
    """By the profile of the runtime, on the GPU, in the forward and in the backward pass."""
    batches = [ZOO[name].feeds(np.random.default_rng(0), BATCH)]
    _, nodes = profiled_nodes(graph(name, precision=precision), CUDA, batches)
    given = [
        kind
        for node in nodes
        if node["op_name"].removeprefix("Fused") in products
        for output in node["output_type_shape"]
        for kind in output
    ]
    assert given
    assert set(given) == {precision}
    assert floats_on_cpu(nodes) == []


@needs_cuda
def test_a_captured_graph_takes_one_batch_size():
    captured = [("CUDAExecutionProvider", {"enable_cuda_graph": "1"}), "CPUExecutionProvider"]
    session = graphopt.Session(graph("mlp"), providers=captured)
    rng = np.random.default_rng(0)
    session.step(ZOO["mlp"].feeds(rng, 4))
    with pytest.raises(ValueError, match="the CUDA graph has been captured for"):
        session.step(ZOO["mlp"].feeds(rng, 3))


@needs_cuda
def test_a_captured_graph_goes_on_from_a_checkpoint(tmp_path):
    captured = [("CUDAExecutionProvider", {"enable_cuda_graph": "1"}), "CPUExecutionProvider"]
    session = graphopt.Session(graph("mlp"), providers=captured)
    before = steps(session, "mlp", 3)
    session.save_checkpoint(tmp_path / "three.safetensors")
    expected = steps(session, "mlp", 3)
    session.load_checkpoint(tmp_path / "three.safetensors")
    assert steps(session, "mlp", 3) == expected != before


@needs_cuda
def test_steps_of_which_nothing_is_read():
    session = graphopt.Session(graph("resnet"), providers=CUDA)
    on_cpu = graphopt.Session(graph("resnet"))
    rng = np.random.default_rng(0)
    batches = [ZOO["resnet"].feeds(rng, BATCH) for _ in range(12)]
    for batch in batches:
        assert session.step(batch, outputs=[]) == {}
        on_cpu.step(batch)
    state = session.state
    for name, value in on_cpu.state.items():
        np.testing.assert_allclose(state[name], value, rtol=2e-3, atol=1e-4, err_msg=name)


@needs_cuda
def test_feeds_on_the_device():
    on_device, on_cpu = (graphopt.Session(graph("mlp"), providers=p) for p in (CUDA, None))
    feeds = ZOO["mlp"].feeds(np.random.default_rng(0), BATCH)
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
        for name, array in feeds.items()
    }
    losses = [float(on_device.step(values)["loss"]) for _ in range(5)]
    expected = [float(on_cpu.step(feeds)["loss"]) for _ in range(5)]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


OPTIMIZERS = {
    "plain": {},
    "momentum": {"momentum": 0.9, "weight_decay": 0.01},
    "centered": {"centered": True, "momentum": 0.9, "loss_scale": 8.0},
    "centered, outside": {"centered": True, "epsilon_inside_root": False},
    "nesterov": {"momentum": 0.9, "nesterov": True, "learning_rate_inside_moment": False},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
}


@needs_cuda
@needs_kernels
@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "bodies"])
@pytest.mark.parametrize("layout", ["foreach", "buckets", "chunks", "separate"])
@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_updates_have_the_bits_of_the_cpu(options, layout, kernels):
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (1000,), (257, 33), (1,), (4, 4), (300, 700)]
    parameters = [graphopt.Parameter(f"p{i}", shape) for i, shape in enumerate(shapes)]
    initial = {p.name: rng.standard_normal(p.shape, np.float32) for p in parameters}
    gradients = [
        {f"{p.name}_grad": rng.standard_normal(p.shape, np.float32) for p in parameters}
        for _ in range(4)
    ]
    optimizer = graphopt.RMSProp(
        [{"params": parameters[:4], "lr": 0.1}, {"params": parameters[4:]}], 0.01, **options
    )
    update = graphopt.update_graph(optimizer, layout=layout, group_mask=True)
    on_cuda = graphopt.Session(update, initial, providers=CUDA, kernels=kernels)
    on_cpu = graphopt.Session(update, initial)
    for number, feeds in enumerate(gradients):
        mask = np.array([True, number != 2])
        for session in (on_cuda, on_cpu):
            session.step({**feeds, "group_mask": mask})
    assert on_cuda.kernels == (on_cpu.kernels if kernels else ())
    state = on_cuda.state
    for name, value in on_cpu.state.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


TRAINING_OPTIONS = {
    "dynamic scale": {"loss_scale": graphopt.DynamicLossScale(64.0, growth_interval=2)},
    "skip": {"skip_on_overflow": True, "momentum": 0.9},
    "clip by the global norm": {"clip_norm": 1.0},
    "clip by each group's norm": {"clip_norm": 1.0, "clip_norm_per": "group"},
    "clip by each parameter's norm": {"clip_norm": 1.0, "clip_norm_per": "parameter"},
    "clip by value": {"clip_value": 0.5},
    "average": {"average": graphopt.ParameterAverage(0.9), "skip_on_overflow": True},
}


@needs_cuda
@pytest.mark.parametrize(
    ("layout", "captured"),
    [("foreach", "1"), ("foreach", "0"), ("buckets", "0"), ("chunks", "0"), ("separate", "0")],
)
@pytest.mark.parametrize("options", TRAINING_OPTIONS.values(), ids=TRAINING_OPTIONS)
def test_training_options_give_what_the_cpu_gives(options, layout, captured):
    """One of the batches has gradients that are not finite where such are skipped."""
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (1000,), (257, 33), (1,), (4, 4), (300, 70)]
    parameters = [graphopt.Parameter(f"p{i}", shape) for i, shape in enumerate(shapes)]
    initial = {p.name: rng.standard_normal(p.shape, np.float32) for p in parameters}
    optimizer = graphopt.RMSProp(
        [{"params": parameters[:4], "lr": 0.1}, {"params": parameters[4:]}], 0.01, **options
    )
    update = graphopt.update_graph(optimizer, layout=layout)
    provider = {"use_tf32": "0", "enable_cuda_graph": captured}
    on_cuda = graphopt.Session(
        update, initial, providers=[("CUDAExecutionProvider", provider), "CPUExecutionProvider"]
    )
    on_cpu = graphopt.Session(update, initial)
    for number in range(8):
        feeds = {f"{p.name}_grad": rng.standard_normal(p.shape, np.float32) for p in parameters}
        if optimizer.skip_on_overflow and number in {2, 5}:
            feeds["p2_grad"][3, 4] = [np.inf, 0, 0, np.nan][number - 2]
        for session in (on_cuda, on_cpu):
            session.step(feeds)
    state = on_cuda.state
    for name, value in on_cpu.state.items():
        np.testing.assert_allclose(state[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@needs_cuda
@pytest.mark.parametrize("captured", ["0", "1"], ids=["runs", "captured"])
def test_accumulation_gives_what_the_cpu_gives(captured):
    model = ZOO["digits_cnn"].build()
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 0.002, skip_on_overflow=True)
    accumulating = graphopt.training_graph(
        model,
        ZOO["digits_cnn"].loss,
        optimizer,
        provider="CUDAExecutionProvider",
        accumulation=graphopt.Accumulation(3),
    )
    provider = {"use_tf32": "0", "enable_cuda_graph": captured}
    on_cuda = graphopt.Session(
        accumulating, providers=[("CUDAExecutionProvider", provider), "CPUExecutionProvider"]
    )
    on_cpu = graphopt.Session(accumulating)
    np.testing.assert_allclose(
        steps(on_cuda, "digits_cnn", 20), steps(on_cpu, "digits_cnn", 20), rtol=1e-3
    )
    assert on_cuda.state["global_step"] == on_cpu.state["global_step"] == 6


@needs_cuda
@pytest.mark.parametrize("memory", ["low", "balanced"])
def test_choices_of_memory_give_what_the_cpu_gives(memory):
    model = ZOO["transformer"].build()
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 0.002)
    built = graphopt.training_graph(
        model,
        ZOO["transformer"].loss,
        optimizer,
        provider="CUDAExecutionProvider",
        memory=memory,
    )
    on_cuda, on_cpu = (graphopt.Session(built, providers=p) for p in (CUDA, None))
    np.testing.assert_allclose(
        steps(on_cuda, "transformer", 20), steps(on_cpu, "transformer", 20), rtol=1e-3
    )


@needs_cuda
@pytest.mark.parametrize("name", ZOO)
def test_state_stays_on_the_gpu(name):
    session = graphopt.Session(graph(name), providers=CUDA)
    steps(session, name, 3)
    assert {value.device_name() for value in session._values.values()} == {"cuda"}


@needs_cuda
@pytest.mark.parametrize("name", ZOO)
def test_only_shape_arithmetic_runs_on_the_cpu(name):
    """From the runtime's own profile: which provider ran each node, and what came out."""
    rng = np.random.default_rng(0)
    batches = [ZOO[name].feeds(rng, BATCH) for _ in range(2)]
    _, nodes = profiled_nodes(graph(name), CUDA, batches)
    assert any(node["provider"] == "CUDAExecutionProvider" for node in nodes)
    assert floats_on_cpu(nodes) == []


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
