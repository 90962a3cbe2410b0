"""The products and convolutions of a training graph, each to be run alone."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from graphopt.graph import TrainingGraph
from graphopt.profiling._events import is_of_node, node_name
from graphopt.profiling._run import Run
from tools.bench.options import session_options

_OPSET = 17
_CONVOLUTION = {"Conv": "conv", "ConvTranspose": "conv_transpose"}
_TAKEN = frozenset((*_CONVOLUTION, "Gemm", "MatMul"))


@dataclass(frozen=True)
class Call:
    """An operator, its attributes, and the shapes of what it reads."""

    op_type: str
    attributes: tuple[tuple[str, Any], ...]
    shapes: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        """As tables call it."""
        shapes = " ".join("x".join(map(str, shape)) for shape in self.shapes)
        group = dict(self.attributes).get("group", 1)
        return f"{self.op_type} {shapes}" + (f" of {group} groups" if group > 1 else "")


def calls(graph: Path, feeds: Mapping[str, Any]) -> Counter[Call]:
    """The products and convolutions of a step, from ONNX Runtime's own record of one."""
    model = onnx.load(graph)
    nodes = dict(_nodes(model.graph))
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    run = _AsWritten(
        TrainingGraph(model), feeds, steps=1, warm_up=0, threads=None, settings={"kernels": False}
    )
    found: Counter[Call] = Counter()
    for event in run.profiled().events:
        name = node_name(event)
        if not is_of_node(event) or name not in nodes:
            continue
        node, attributes = nodes[name]
        read = event["args"]["input_type_shape"]
        shapes = [tuple(shape) for one in read for shape in one.values()]
        if len(shapes) < len(node.input):  # the record leaves out constants that were packed before
            told = iter(shapes)
            shapes = [constants[i] if i in constants else next(told) for i in node.input]
        found[Call(node.op_type, attributes, tuple(shapes))] += 1
    return found


class _AsWritten(Run):
    """Steps of the nodes as they are in the graph, of which the names are those of the record."""

    def _options(self) -> Any:
        import onnxruntime

        options = super()._options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return options


def _nodes(
    graph: onnx.GraphProto,
) -> Iterator[tuple[str, tuple[onnx.NodeProto, tuple[tuple[str, Any], ...]]]]:
    """Each node that is taken by its name, with its attributes; also those inside of others.

    A node without a name gets one.
    """
    for node in graph.node:
        node.name = node.name or f"of {node.output[0]}"
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
        if node.op_type in _TAKEN and not node.domain:
            given = ((one.name, _frozen(helper.get_attribute_value(one))) for one in node.attribute)
            yield node.name, (node, tuple(sorted(given)))


def _frozen(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return tuple(value) if isinstance(value, list) else value


def in_onnxruntime(call: Call, values: Sequence[Any], threads: int) -> Callable[[], Any]:
    """The call in ONNX Runtime, as a graph of one node."""
    import onnxruntime

    names = [f"x{place}" for place in range(len(values))]
    node = helper.make_node(call.op_type, names, ["y"], **dict(call.attributes))
    inputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, value.shape)
        for name, value in zip(names, values, strict=True)
    ]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph([node], "alone", inputs, [output]),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=8,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options(threads))
    feeds = dict(zip(names, values, strict=True))
    return lambda: session.run(None, feeds)[0]


def in_pytorch(call: Call, values: Sequence[Any], threads: int) -> Callable[[], Any]:
    """The call in PyTorch, as a function of the same arguments."""
    import torch

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in values]
    attributes = dict(call.attributes)
    run: Callable[[], Any]
    if call.op_type in _CONVOLUTION:
        run = _convolution(call, tensors, attributes)
    elif call.op_type == "Gemm":
        first, second, *addend = tensors
        first = first.T if attributes.get("transA") else first
        second = second.T if attributes.get("transB") else second
        alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
        if addend:
            run = lambda: torch.addmm(addend[0], first, second, alpha=alpha, beta=beta)  # noqa: E731
        else:
            run = lambda: first @ second if alpha == 1 else alpha * (first @ second)  # noqa: E731
    else:
        run = lambda: tensors[0] @ tensors[1]  # noqa: E731

    def without_gradients() -> Any:
        with torch.no_grad():
            return run()

    return without_gradients


def _convolution(
    call: Call, tensors: Sequence[Any], attributes: Mapping[str, Any]
) -> Callable[[], Any]:
    from torch.nn import functional

    rank = len(call.shapes[0]) - 2
    function = getattr(functional, f"{_CONVOLUTION[call.op_type]}{rank}d")
    begin, end = np.reshape(attributes.get("pads", (0,) * (2 * rank)), (2, rank)).tolist()
    settings = {
        "stride": attributes.get("strides", (1,) * rank),
        "dilation": attributes.get("dilations", (1,) * rank),
        "groups": attributes.get("group", 1),
    }
    if call.op_type == "ConvTranspose":
        # What is cut off behind less than in front of it is a padding of the output.
        more = [b - e for b, e in zip(begin, end, strict=True)]
        given = attributes.get("output_padding", (0,) * rank)
        settings["output_padding"] = [o + m for o, m in zip(given, more, strict=True)]
        return lambda: function(*tensors, padding=begin, **settings)
    if begin == end:
        return lambda: function(*tensors, padding=begin, **settings)
    around = [size for pair in reversed(list(zip(begin, end, strict=True))) for size in pair]
    x, *others = tensors
    return lambda: function(functional.pad(x, around), *others, **settings)
