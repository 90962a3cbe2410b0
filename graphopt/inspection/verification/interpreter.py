"""Computes the values of a graph in float64, node by node, by kernels that do not fuse anything."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from graphopt import _runtime
from graphopt._words import shown
from graphopt.graphs import captured, subgraphs
from graphopt.inspection.verification.batches import Array
from graphopt.inspection.verification.float64_kernels import KERNELS
from graphopt.inspection.verification.runnable import NotRunError

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_FATAL = 4  # ONNX Runtime's level of severity
_TYPED = {"Cast": "to", "EyeLike": "dtype", "SequenceEmpty": "dtype"}

Values = Mapping[str, Any]
Function = Callable[[Sequence[Any]], Sequence[Any]]


def in_double(model: ir.Model) -> None:
    """Let a model compute in float64 what it computes in a smaller floating-point type."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _doubled(value.const_value)
                value.dtype = value.const_value.dtype
        for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
            if value.dtype in _FLOATS:
                value.dtype = ir.DataType.DOUBLE
        for node in graph:
            _double_attributes(node)


def as_double(array: Any) -> Any:
    """A floating-point array in float64, another as it is."""
    array = np.asarray(array)
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float64) if is_float else array


class Interpreter:
    """A graph whose floating-point values are float64.

    A node runs on the kernel of ONNX Runtime where there is one in float64, otherwise on one of
    `float64_kernels` or ONNX's reference evaluator.

    Attributes:
        nodes: The nodes, in the order in which they run.
        ends: When to give up, in seconds of `time.monotonic`.
        rounded: The operators that ran in float32 and have been rounded.
    """

    def __init__(self, model: ir.Model, ends: float, *, rounds: bool = False) -> None:
        """Prepare a model that `in_double` has changed, without calls of functions.

        Args:
            model: The model.
            ends: When to give up, in seconds of `time.monotonic`.
            rounds: Run nodes in float32 for which ONNX Runtime has no other kernel.
        """
        self.ends = ends
        self.rounded: set[str] = set()
        self._rounds = rounds
        self._model = model
        self.nodes = list(model.graph)
        self._operands = {
            node: (
                [None if value is None else str(value.name) for value in node.inputs],
                sorted(str(value.name) for value in captured(node)),
            )
            for node in self.nodes
        }
        self._constants = {
            name: value.const_value.numpy()
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }
        self._prepared: dict[tuple[ir.Node, tuple[Any, ...]], Function] = {}
        self._shared: dict[bytes, Function] = {}

    def needed(self, wanted: Iterable[str], changed: Iterable[str] | None = None) -> list[ir.Node]:
        """The nodes that some values need; only those that depend on ``changed``, if given."""
        names = set(wanted)
        found = []
        for node in reversed(self.nodes):
            if any(value.name in names for value in node.outputs):
                names.update(self._reads(node))
                found.append(node)
        found.reverse()
        if changed is None:
            return found
        after = set(changed)
        chosen = []
        for node in found:
            if not after.isdisjoint(self._reads(node)):
                after.update(str(value.name) for value in node.outputs)
                chosen.append(node)
        return chosen

    def run(self, nodes: Iterable[ir.Node], known: Values) -> dict[str, Any]:
        """The values that are known, and those that nodes compute from them.

        Raises:
            NotRunError: There is no kernel for a node, or the time is over.
        """
        values = {**self._constants, **known}
        for node in nodes:
            if time.monotonic() > self.ends:
                raise NotRunError("the time was over")
            values.update(self.computed(node, values))
        return values

    def computed(self, node: ir.Node, values: Values) -> dict[str, Any]:
        """The outputs of a node."""
        names, inner = self._operands[node]
        operands = [None if name is None else values[name] for name in names]
        operands += [values[name] for name in inner]
        kinds = tuple(_kind(operand) for operand in operands)
        function = self._prepared.get((node, kinds))
        if function is None:
            function = self._prepared[node, kinds] = self._function(node, inner, operands)
        try:
            with np.errstate(all="ignore"):
                results = function(operands)
        except Exception as error:  # noqa: BLE001 - the runtimes' have no common base
            raise NotRunError(f"'{shown(_name(node))}' fails in float64: {error}") from None
        pairs = zip(node.outputs, results, strict=False)
        return {str(value.name): result for value, result in pairs if value.name}

    def _reads(self, node: ir.Node) -> list[str]:
        names, inner = self._operands[node]
        return [name for name in (*names, *inner) if name]

    def _function(self, node: ir.Node, inner: Sequence[str], operands: Sequence[Any]) -> Function:
        """What computes a node; nodes that differ by their names only have one."""
        proto = ir.serde.serialize_node(node)
        outer: list[str] = []
        if not any(subgraphs(node)):
            proto.name = ""
            proto.ClearField("metadata_props")
            proto.ClearField("doc_string")
            positions: dict[str, str] = {}
            for index, name in enumerate(proto.input):
                proto.input[index] = name and positions.setdefault(name, f"i{index}")
            for index, name in enumerate(proto.output):
                proto.output[index] = name and f"o{index}"
        outer = [*proto.input, *inner]
        kinds = tuple(_kind(operand) for operand in operands)
        key = proto.SerializeToString(deterministic=True) + repr((kinds, outer)).encode()
        if key not in self._shared:
            self._shared[key] = self._made(node, proto, outer, operands)
        return self._shared[key]

    def _made(
        self,
        node: ir.Node,
        proto: onnx.NodeProto,
        names: Sequence[str],
        operands: Sequence[Any],
    ) -> Function:
        model = self._one_node(proto, names, operands)
        outputs = [name for name in proto.output if name]
        places = [index for index, name in enumerate(proto.output) if name]

        def feeds(given: Sequence[Any]) -> dict[str, Any]:
            return {n: v for n, v in zip(names, given, strict=True) if n and v is not None}

        def ordered(results: Any) -> list[Any]:
            found: list[Any] = [None] * len(proto.output)
            for place, result in zip(places, results, strict=True):
                found[place] = result if isinstance(result, list) else np.asarray(result)
            return found

        kernel = KERNELS.get(node.op_type) if not node.domain else None
        if kernel is not None:
            return lambda given: _listed(kernel(node, *given))
        session = _session(model)
        if session is not None and _runs(session, outputs, feeds(operands)):
            return lambda given: ordered(session.run(outputs, feeds(given)))
        if self._rounds:
            narrow = [_narrow(operand) for operand in operands]
            session = _session(self._one_node(proto, names, narrow))
            if session is not None and _runs(session, outputs, feeds(narrow)):
                self.rounded.add(node.op_type)
                return lambda given: [
                    as_double(result)
                    for result in ordered(session.run(outputs, feeds([_narrow(v) for v in given])))
                ]
        from onnx.reference import ReferenceEvaluator  # slow to import, and seldom needed

        try:
            evaluator = ReferenceEvaluator(model)
        except Exception as error:  # noqa: BLE001 - onnx's
            text = f"there is no kernel of {shown(node.op_type)} in float64"
            raise NotRunError(f"{text} ('{shown(_name(node))}'): {error}") from None
        return lambda given: ordered(evaluator.run(outputs, feeds(given)))

    def _one_node(
        self, proto: onnx.NodeProto, names: Sequence[str], operands: Sequence[Any]
    ) -> onnx.ModelProto:
        model = onnx.ModelProto(ir_version=self._model.ir_version or 8)
        for domain, version in self._model.opset_imports.items():
            model.opset_import.append(helper.make_opsetid(domain, version))
        model.graph.name = "node"
        model.graph.node.append(proto)
        for name, operand in dict(zip(names, operands, strict=True)).items():
            if name and operand is not None:
                model.graph.input.append(helper.make_value_info(name, _type(operand)))
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in proto.output if name)
        return model


def _session(model: onnx.ModelProto) -> Any:
    """A session of ONNX Runtime; None where it has no kernel."""
    runtime = _runtime.onnxruntime()
    options = _runtime.session_options(runtime)
    options.log_severity_level = _FATAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        return runtime.InferenceSession(
            model.SerializeToString(), options, providers=[_runtime.CPU]
        )
    except Exception:  # noqa: BLE001 - ONNX Runtime's have no common base
        return None


def _listed(results: Any) -> list[Any]:
    return list(results) if isinstance(results, tuple) else [results]


def _runs(session: Any, wanted: Sequence[str], feeds: Values) -> bool:
    """Whether it runs: some kernels find out late that they are for float32 only."""
    try:
        session.run(wanted, feeds)
    except Exception:  # noqa: BLE001 - ONNX Runtime's have no common base
        return False
    return True


def _narrow(operand: Any) -> Any:
    is_wide = isinstance(operand, np.ndarray) and operand.dtype == np.float64
    return operand.astype(np.float32) if is_wide else operand


def _kind(operand: Any) -> Any:
    if isinstance(operand, list):
        return ("sequence", _kind(operand[0]) if operand else None)
    return None if operand is None else (operand.dtype.str, operand.ndim)


def _type(operand: Any) -> onnx.TypeProto:
    if isinstance(operand, list):
        dtype = operand[0].dtype if operand else np.dtype(np.float64)
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        return helper.make_sequence_type_proto(helper.make_tensor_type_proto(kind, None))
    kind = helper.np_dtype_to_tensor_dtype(operand.dtype)
    return helper.make_tensor_type_proto(kind, [None] * operand.ndim)


def _name(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


def _doubled(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype not in _FLOATS:
        return tensor
    return ir.tensor(tensor.numpy().astype(np.float64), name=tensor.name)


def _double_attributes(node: ir.Node) -> None:
    """Let a node whose attributes say a floating-point type give float64."""
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR:
            node.attributes[name] = ir.AttrTensor(name, _doubled(attribute.as_tensor()))
        elif node.op_type == "Constant" and name == "value_float":
            _replace(node, np.array(np.float32(attribute.as_float()), np.float64))
        elif node.op_type == "Constant" and name == "value_floats":
            _replace(node, np.array(attribute.as_floats(), np.float32).astype(np.float64))
        elif _TYPED.get(node.op_type) == name and attribute.as_int() in list(_FLOATS):
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.DOUBLE))
    if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1)))
    if node.op_type in ("EyeLike", "SequenceEmpty") and "dtype" not in node.attributes:
        node.attributes["dtype"] = ir.AttrInt64("dtype", int(ir.DataType.DOUBLE))


def _replace(node: ir.Node, array: Array) -> None:
    node.attributes.clear()
    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))
