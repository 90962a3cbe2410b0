"""Gradients of one operator from ONNX Runtime, against PyTorch in float64.

A case is a line of ONNX text; in it, ``nought`` is an int64 0 that only the running graph knows:
what it is added to is unknown before. The loss is a random weighting of all outputs, so that every
output gets a gradient that is not 1. Each case runs with static shapes and, unless it says
otherwise, with shapes that only the running graph knows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from graphopt import kernels
from graphopt.gradients import differentiate, prepare
from graphopt.graphs import without_functions

STANDARD = {""}


@dataclass(frozen=True)
class Case:
    """One operator with its inputs.

    Attributes:
        node: ONNX text, such as ``y = Gemm<alpha=0.5>(a, b)``; several lines for several nodes.
        inputs: The arrays that the text names. Gradients are those of the float32 ones.
        torch: The same in PyTorch: takes the inputs in their order (floats in float64), returns
            the outputs ``y``, or a tuple for several.
        outputs: The float outputs of the text.
        opset: Of the model.
        constants: Inputs that are float but constant: they get no gradient.
        dynamic: The axes whose size is unknown in the second run of the case: "all", those of the
            "batch" (axis 0), or "none", where there is no second run.
        known: Inputs whose whole shape is known in the second run too, such as weights.
        tolerance: Largest error, relative to the largest element of the gradient.
    """

    node: str
    inputs: Mapping[str, np.ndarray]
    torch: Callable[..., object]
    outputs: Sequence[str] = ("y",)
    opset: int = 17
    constants: Sequence[str] = ()
    dynamic: str = "all"
    known: Sequence[str] = ()
    tolerance: float = 5e-6
    options: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def weights(self) -> list[np.ndarray]:
        """For each output what the loss multiplies it with."""
        _, outputs = torch_outputs(self, [])
        return [normal(*output.shape, seed=7 + i) for i, output in enumerate(outputs)]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Normally distributed float32; another seed gives other values."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def distinct(*shape: int, seed: int = 0) -> np.ndarray:
    """Float32 values between -2 and 2, no two closer than rounding errors: there are no ties."""
    count = int(np.prod(shape))
    order = np.random.default_rng([seed, *shape]).permutation(count)
    return ((order + 0.5) / max(count, 1) * 4 - 2).astype(np.float32).reshape(shape)


def cases(table: Mapping[str, Case]) -> pytest.MarkDecorator:
    """Parametrize a test by the cases of a table, each static and, where it can be, dynamic.

    Then the static one runs on one runtime only: it has the nodes of the dynamic one, and constants
    instead of those that compute sizes.
    """
    both = []
    for name, case in table.items():
        once = () if case.dynamic == "none" else pytest.mark.any_runtime
        both.append(pytest.param(case, False, id=name, marks=once))
        if case.dynamic != "none":
            both.append(pytest.param(case, True, id=f"{name} (dynamic)"))
    return pytest.mark.parametrize(("case", "dynamic"), both)


def check(case: Case, dynamic: bool) -> None:
    """Compare the gradients of a case with PyTorch's."""
    names = [
        name
        for name, array in case.inputs.items()
        if array.dtype == np.float32 and name not in case.constants
    ]
    expected = torch_gradients(case, names)
    got = onnx_gradients(case, names, dynamic=dynamic)
    for name in names:
        assert got[name].shape == case.inputs[name].shape, name
        scale = float(np.abs(expected[name]).max(initial=0))
        np.testing.assert_allclose(
            got[name], expected[name], rtol=0, atol=case.tolerance * scale + 1e-30, err_msg=name
        )


def torch_outputs(case: Case, names: Sequence[str]) -> tuple[dict[str, torch.Tensor], list]:
    """The inputs, and the outputs, in float64."""
    inputs = {
        name: torch.tensor(array).double().requires_grad_(name in names)
        if array.dtype == np.float32
        else torch.tensor(array)
        for name, array in case.inputs.items()
    }
    result = case.torch(*inputs.values())
    return inputs, list(result) if isinstance(result, tuple | list) else [result]


def torch_gradients(case: Case, names: Sequence[str]) -> dict[str, np.ndarray]:
    inputs, outputs = torch_outputs(case, names)
    loss = sum(
        (y * torch.tensor(w).double()).sum() for y, w in zip(outputs, case.weights, strict=True)
    )
    gradients = torch.autograd.grad(
        loss, [inputs[name] for name in names], allow_unused=True, materialize_grads=True
    )
    return {name: g.numpy() for name, g in zip(names, gradients, strict=True)}


def onnx_model(case: Case, names: Sequence[str], *, dynamic: bool) -> onnx.ModelProto:
    """The forward graph with its loss; where dynamic, inputs come from a Reshape."""
    lines, infos, initializers = [], [], []
    for name, array in case.inputs.items():
        if dynamic and name in names:
            lines.append(f"{name} = Reshape<allowzero=1>(p_{name}, shape_{name})")
            shape = [
                size if name in case.known or (case.dynamic != "all" and axis) else None
                for axis, size in enumerate(array.shape)
            ]
            infos.append(helper.make_tensor_value_info(name, 1, shape))
            initializers.append(numpy_helper.from_array(array.reshape(-1), f"p_{name}"))
        else:
            initializers.append(numpy_helper.from_array(array, name))
    lines.append(case.node)
    for i, (output, w) in enumerate(zip(case.outputs, case.weights, strict=True)):
        lines.append(f"wy{i} = Mul({output}, weight{i})")
        lines.append(f"part{i} = ReduceSum<keepdims=0>(wy{i})")
        initializers.append(numpy_helper.from_array(w, f"weight{i}"))
    parts = [f"part{i}" for i in range(len(case.outputs))]
    lines.append(f"loss = Sum({', '.join(parts)})")
    feeds = [f"int64[{case.inputs[name].ndim}] shape_{name}" for name in names if dynamic]
    if "nought" in case.node:
        feeds.append("int64 nought")
    text = f"m ({', '.join(feeds)}) => (float loss) {{ {' '.join(lines)} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {case.opset}]> {text}')
    model.graph.initializer.extend(initializers)
    model.graph.value_info.extend(infos)
    onnx.checker.check_model(model)
    return model


def onnx_gradients(case: Case, names: Sequence[str], *, dynamic: bool) -> dict[str, np.ndarray]:
    """The gradients that our graph computes in ONNX Runtime."""
    forward = onnx_model(case, names, dynamic=dynamic)
    trained = [f"p_{name}" if dynamic else name for name in names]
    model, statistics = prepare(forward, trained)
    loss = model.graph.outputs[0]
    built = differentiate(model, trained, loss, statistics, **case.options)
    model.graph.outputs.extend(built.gradients.values())
    proto = ir.to_proto(model)
    assert {node.domain for node in without_functions(proto).graph.node} <= STANDARD
    onnx.checker.check_model(proto)
    feeds = {f"shape_{name}": np.array(case.inputs[name].shape, np.int64) for name in names}
    feeds = feeds if dynamic else {}
    if "nought" in case.node:
        feeds["nought"] = np.array(0)
    feeds |= {
        parameter: case.inputs[name].reshape(-1) if dynamic else case.inputs[name]
        for name, parameter in zip(names, trained, strict=True)
    }
    feeds |= {name: case.inputs[name] for name in built.statistics}
    outputs = [f"{parameter}_grad" for parameter in trained]
    results = _session(proto, []).run(outputs, feeds)
    fused = kernels.called(proto, ["CPUExecutionProvider"])
    if fused:
        for result, other in zip(results, _session(proto, fused).run(outputs, feeds), strict=True):
            largest = np.max(np.abs(result[np.isfinite(result)]), initial=0)
            near = case.tolerance * float(largest) + 1e-30
            np.testing.assert_allclose(other, result, rtol=0, atol=near, err_msg=str(fused))
    return {
        name: result.reshape(case.inputs[name].shape)
        for name, result in zip(names, results, strict=True)
    }


def _session(proto: onnx.ModelProto, fused: Sequence[str]) -> onnxruntime.InferenceSession:
    """A session of the runtime that has these kernels."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # starting threads takes longer than these nodes
    if fused:
        assert kernels.register(options, fused)
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def check_types(case: Case, dtype: type[np.floating]) -> None:
    """The gradients have types throughout when all floats of the case are of another dtype."""
    names = [name for name, array in case.inputs.items() if array.dtype == np.float32]
    forward = onnx_model(case, names, dynamic=False)
    for tensor in forward.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(dtype), tensor.name))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    forward.graph.output[0].type.tensor_type.elem_type = kind
    trained = [name for name in names if name not in case.constants]
    model, statistics = prepare(forward, trained)
    built = differentiate(model, trained, model.graph.outputs[0], statistics)
    model.graph.outputs.extend(built.gradients.values())
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert {value.dtype for value in built.gradients.values()} == {ir.DataType(kind)}
