"""Gradients of Fourier transforms, against PyTorch's."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

import graphopt
from graphopt.gradients import differentiate, prepare
from graphopt.shapes.engine import Shapes
from tests.helpers.exporter import dynamo
from tests.helpers.gradient_oracle import Case, cases, check, normal, onnx_model, torch_gradients


def transform(axis, length, *, inverse=False, onesided=False):
    def compute(x, *_):
        signal = torch.view_as_complex(x) if x.shape[-1] == 2 else x[..., 0]
        if onesided and inverse:
            return torch.fft.irfft(signal, length, axis)[..., None]
        function = torch.fft.ifft if inverse else torch.fft.rfft if onesided else torch.fft.fft
        return torch.view_as_real(function(signal, length, axis))

    return compute


def operands(opset, axis, length):
    """The inputs behind the first, and the attribute of the older form."""
    inputs = {}
    if length is not None:
        inputs["n"] = np.array(length, np.int64)
    if opset >= 20:
        inputs["a"] = np.array(axis, np.int64)
    names = ["x", "n" if length is not None else "", *(["a"] if opset >= 20 else [])]
    while not names[-1]:
        names.pop()
    return inputs, ", ".join(names), "" if opset >= 20 else f"axis={axis}, "


def dft(shape, axis, length, opset, *, inverse=False, onesided=False, at_run_time=False):
    inputs, names, attribute = operands(opset, axis, length)
    before = ""
    if at_run_time:
        before, names = "k = Add(n, nought)", names.replace("n", "k")
    return Case(
        f"{before} y = DFT<{attribute}inverse={int(inverse)}, onesided={int(onesided)}>({names})",
        {"x": normal(*shape), **inputs},
        transform(axis if axis >= 0 else axis + len(shape), length, inverse=inverse,
                  onesided=onesided),
        opset=opset,
        dynamic="none" if at_run_time else "all",
        tolerance=2e-5,
    )  # fmt: skip


WAYS = {"": {}, " inverse": {"inverse": True}, " one side": {"onesided": True}}
TRANSFORMS = {
    f"DFT{way} {shape} axis={axis} length={length} opset {opset}{' at run time' * late}": dft(
        shape, axis, length, opset, at_run_time=late, **WAYS[way]
    )
    for way, shape, axis, length, opset, late in (
        ("", (2, 8, 1), 1, None, 17, False),
        ("", (2, 5, 2), 1, None, 20, False),
        ("", (2, 3, 4, 2), 1, None, 17, False),
        ("", (2, 3, 4, 2), -3, 5, 20, False),
        ("", (2, 6, 1), 1, 4, 20, False),
        ("", (2, 6, 2), 1, 9, 17, True),
        (" inverse", (2, 8, 2), 1, None, 17, False),
        (" inverse", (3, 2, 5, 2), -2, None, 20, False),
        (" inverse", (2, 6, 2), 1, 4, 17, False),
        (" inverse", (2, 3, 2), 1, 5, 20, True),
        (" one side", (2, 8, 1), 1, None, 17, False),
        (" one side", (2, 7, 1), 1, None, 20, False),
        (" one side", (7, 3, 1), 0, None, 20, False),
        (" one side", (2, 8, 1), 1, 5, 17, False),
        (" one side", (2, 5, 1), 1, 8, 20, False),
        (" one side", (2, 5, 1), 1, 6, 20, True),
        (" one side", (2, 8, 1), 1, 5, 17, True),
    )
}


def short_time(width, step, window=True, onesided=True):
    def compute(x, *rest):
        signal = torch.view_as_complex(x) if x.shape[-1] == 2 else x[..., 0]
        frames = signal.unfold(1, width, step)
        if window:
            frames = frames * next(r for r in rest if r.ndim)
        return torch.view_as_real((torch.fft.rfft if onesided else torch.fft.fft)(frames))

    return compute


INTS = {"s": np.array(3, np.int64), "f": np.array(4, np.int64)}
WINDOW = {"w": normal(4, seed=1)}
STFT = {
    "STFT with a window": Case(
        "y = STFT(x, s, w)",
        {"x": normal(2, 13, 1), **INTS, **WINDOW},
        short_time(4, 3),
        known=["w"],
        tolerance=2e-5,
    ),
    "STFT with a window and its length": Case(
        "y = STFT(x, s, w, f)",
        {"x": normal(2, 12, 1), **INTS, **WINDOW},
        short_time(4, 3),
        opset=20,
        tolerance=2e-5,
    ),
    "STFT without a window": Case(
        "y = STFT(x, s,, f)",
        {"x": normal(2, 13, 1), **INTS},
        short_time(4, 3, window=False),
        tolerance=2e-5,
    ),
    "STFT on both sides": Case(
        "y = STFT<onesided=0>(x, s, w)",
        {"x": normal(1, 10, 1), **INTS, **WINDOW},
        short_time(4, 3, onesided=False),
        opset=21,
        tolerance=2e-5,
    ),
    "STFT of complex numbers": Case(
        "y = STFT<onesided=0>(x, s, w)",
        {"x": normal(2, 11, 2), **INTS, **WINDOW},
        short_time(4, 3, onesided=False),
        tolerance=2e-5,
    ),
    "STFT by int32": Case(
        "t = Cast<to=6>(s) y = STFT(x, t, w)",
        {"x": normal(2, 11, 1), **INTS, **WINDOW},
        short_time(4, 3),
        tolerance=2e-5,
    ),
}


# ONNX Runtime has no inverse of one side.
INVERSE_OF_ONE_SIDE = {
    f"DFT inverse one side {shape} length={length}{' at run time' * late}": dft(
        shape, 1, length, 20, inverse=True, onesided=True, at_run_time=late
    )
    for shape, length, late in (
        ((2, 5, 2), None, False),
        ((2, 5, 2), 9, False),
        ((2, 5, 2), 6, True),
        ((2, 3, 2), 8, True),
    )
}


@pytest.mark.quick
@cases(TRANSFORMS | STFT)
def test_gradients(case, dynamic):
    check(case, dynamic)


@cases(INVERSE_OF_ONE_SIDE)
def test_inverse_of_one_side(case, dynamic):
    """By ONNX's reference evaluator."""
    names = ["x"]
    model = onnx_model(case, names, dynamic=dynamic)
    trained = ["p_x" if dynamic else "x"]
    prepared, statistics = prepare(model, trained)
    built = differentiate(prepared, trained, prepared.graph.outputs[0], statistics)
    prepared.graph.outputs.extend(built.gradients.values())
    feeds = {trained[0]: case.inputs["x"].reshape(-1) if dynamic else case.inputs["x"]}
    if dynamic:
        feeds["shape_x"] = np.array(case.inputs["x"].shape)
    if "nought" in case.node:
        feeds["nought"] = np.array(0)
    got = ReferenceEvaluator(ir.to_proto(prepared)).run(None, feeds)[-1]
    expected = torch_gradients(case, names)["x"]
    np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=1e-5)


SHAPES = {
    "DFT(x, n)": (8, 5, 2),
    "DFT<onesided=1>(x, n)": (8, 3, 2),
    "DFT(x,, a)": (8, 7, 2),
    "DFT<onesided=1>(x)": (8, 4, 2),
    "DFT<onesided=1, inverse=1>(z)": (8, 12, 1),
    "STFT(x, s, w)": (8, 2, 3, 2),
    "STFT<onesided=0>(x, s,, n)": (8, 1, 5, 2),
    "STFT(x, s)": (8, 1, 4, 2),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(("node", "shape"), SHAPES.items())
def test_shapes(node, shape):
    text = (
        '<ir_version: 8, opset_import: ["" : 20]> m (float[8,7,1] x, float[8,7,2] z, float[4] w) '
        "=> (float y) <int64 n = {5}, int64 a = {1}, int64 s = {3}> "
        f"{{ y = {node} }}"
    )
    model = onnx.parser.parse_model(text.replace("=> (float y)", "=> (float[N,M,K,L] y)"))
    del model.graph.output[:]
    found = Shapes(ir.from_proto(model)).of("y")
    assert found.shape == shape
    feeds = {"x": normal(8, 7, 1), "z": normal(8, 7, 2), "w": normal(4)}
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", 1, None))
    (got,) = ReferenceEvaluator(model).run(None, feeds)
    assert got.shape == shape


class Spectrum(nn.Module):
    def __init__(self, short):
        super().__init__()
        self.linear, self.short = nn.Linear(8, 16), short

    def forward(self, x):
        y = self.linear(x)
        if not self.short:
            return torch.view_as_real(torch.fft.rfft(y)).pow(2).sum(-1)
        window = torch.hann_window(8)
        frames = torch.stft(y, 8, 4, window=window, center=True, return_complex=True)
        return torch.view_as_real(frames).pow(2).sum(-1)


@pytest.mark.exhaustive
@pytest.mark.any_runtime
@pytest.mark.usefixtures("one_registry")
@pytest.mark.parametrize("short", [False, True])
def test_exported_by_pytorch(short):
    torch.manual_seed(0)
    network, x = Spectrum(short), torch.randn(2, 8)
    model = dynamo(network, (x,), optimize=False)
    optimizer = graphopt.RMSProp(
        graphopt.parameters(model),
        learning_rate=0.01,
        decay=0.9,
        epsilon=1e-8,
        epsilon_inside_root=False,
        initial_mean_square=0.0,
    )
    session = graphopt.Session(graphopt.training_graph(model, "mse", optimizer))
    labels = torch.rand_like(network(x))
    session.step({session.inputs[0].name: x.numpy(), "labels": labels.numpy()})
    peer = torch.optim.RMSprop(network.parameters(), lr=0.01, alpha=0.9, eps=1e-8)
    torch.nn.functional.mse_loss(network(x), labels).backward()
    peer.step()
    for name, value in network.named_parameters():
        np.testing.assert_allclose(session.state[name], value.detach().numpy(), atol=1e-5)
