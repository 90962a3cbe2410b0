"""Which constants of a graph are weights, and which are numbers of its formulas: one rule for all.

A file of ONNX does not tell what is trained. Notes of an exporter do, then the operators that read
a constant: a matrix of MatMul is a weight, the bounds of Clip are not. What is left is decided by
what it is combined with, and by its values; where that is a guess, the reason is given.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from graphopt.graphs import subgraphs
from graphopt.marks import FROZEN, TRAINED
from graphopt.operators import ZERO, Moves, Operator, of

FLOATING = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE}
"""The dtypes of weights."""

_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
_FOLDED = "pkg.onnxscript.optimizer.folded_from"
_OF_EXPORTERS = re.compile(r"val_\d+|onnx::\w+_\d+|.*Constant(_\d+)?_output_\d+|\d+")
_STATISTIC = re.compile(r"(.*?)\.?running_(mean|var)")
_NUMBER = "it is one number of a formula"
_SETTING = "it is a setting of"
_FREQUENCIES = "these are frequencies by which positions are multiplied"
_TWO_VALUES = "it is a table of two values, such as a mask"
_DEEPEST = 3  # changes of shape or precision between a weight and its operator
_LARGEST = 2**20  # of a table that is looked at: longer ones are weights
_ROUNDING = 1e-2  # of sines in bfloat16
_SLOWEST = 0.5  # the first frequency is 1
_FEWEST = 4  # numbers that count from 0 are no weights; fewer may be some
_WHOLE = {"Range", "Shape", "Size", "NonZero", "ArgMax", "ArgMin"}


@dataclass(frozen=True)
class Verdict:
    """Whether a constant is a weight, the operator of which it is one, and why if it is a guess."""

    is_weight: bool
    op_type: str | None = None
    why: str | None = None


class Weights:
    """Says which constants of a graph are weights.

    Attributes:
        graph: The graph.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        learned: Collection[ir.Value] = (),
        within: Callable[[ir.Node], bool] = lambda _: True,
    ) -> None:
        """Look through the graph of a model.

        Args:
            model: Functions are looked into for the operators of weights alone; see `inlined`.
            learned: Inputs that are weights.
            within: Whether a node belongs to the forward pass; readers elsewhere do not count.
        """
        self.graph = graph = model.graph
        self._functions = model.functions
        self._is_pytorch = model.producer_name == "pytorch"  # it names what is in a module
        self._within = within
        self._noted = any(key.startswith("pkg.torch.export") for key in graph.metadata_props)
        self._frozen_norms = self._norms_written_out()
        self._data: set[ir.Value] = set()
        self._normalized: set[ir.Value] = set()
        self._touched: set[ir.Value] = set(learned)
        self._follow()

    def verdicts(self) -> dict[ir.Value, Verdict]:
        """The verdict on each constant; where there is no weight, numbers of formulas are some."""
        found = {value: self.of(value) for value in constants(self.graph)}
        if any(verdict.is_weight for verdict in found.values()):
            return found
        return {
            value: replace(verdict, is_weight=True, why="nothing else could be trained")
            if verdict.why is not None and verdict.why.startswith(_NUMBER)
            else verdict
            for value, verdict in found.items()
        }

    def of(self, value: ir.Value) -> Verdict:
        """The verdict on a constant of a floating-point dtype."""
        if (noted := self._noted_of(value)) is not None:
            is_weight, why = noted
            return Verdict(is_weight, self.operator_of(value), why)
        uses = [use for use in value.uses() if self._within(use.node)]
        found = [self._use(value, use.node, use.idx) for use in uses]
        if value.is_graph_output() or not value.uses():
            found.append((True, "no node reads it"))
        elif not uses:
            found.append((False, "the forward pass does not read it"))
        settings = [one for one in found if one[1] and one[1].startswith(_SETTING)]
        is_weight = any(is_one for is_one, _ in found) and not settings
        reasons = [why for is_one, why in found if is_one == is_weight]
        why = None if None in reasons else reasons[0]
        return Verdict(is_weight, self.operator_of(value), why)

    def operator_of(self, value: ir.Value, depth: int = 0) -> str | None:
        """The operator of which a value is the weight, perhaps in another shape or order."""
        for node, index in value.uses():
            if not self._within(node):
                continue
            operator = of(node)
            if index in operator.weights:
                return operator.fused or node.op_type
            function = self._functions.get(node.op_identifier())
            if function is not None and depth < _DEEPEST:
                found = self.operator_of(function.inputs[index], depth + 1)
                if found is not None:
                    return found
            if _is_the_same(node) and index == 0 and depth < _DEEPEST:
                found = self.operator_of(node.outputs[0], depth + 1)
                if found is not None:
                    return found
        return None

    def _noted_of(self, value: ir.Value) -> tuple[bool, str | None] | None:
        """What marks, an exporter's notes and the name say."""
        tensor = value.const_value  # in a file, metadata stand at the tensor or at its value
        notes = {**value.metadata_props, **(tensor.metadata_props if tensor is not None else {})}
        name = str(value.name)
        if self._is_pytorch and not value.is_initializer():
            return False, "PyTorch's exporter writes parameters as initializers"
        if FROZEN in notes:
            return False, f"it is marked as {notes[FROZEN]}"
        if TRAINED in notes:
            return True, None
        if notes.get(_KIND, "PARAMETER") != "PARAMETER":
            return False, f"PyTorch's exporter notes that it is a {notes[_KIND].lower()}"
        if _FOLDED in notes or (self._noted and _OF_EXPORTERS.fullmatch(name)):
            return False, "PyTorch's exporter has computed it"
        if _KIND in notes:
            return True, None
        if _STATISTIC.fullmatch(name):
            return False, "its name is that of a running statistic"
        if name.rpartition(".")[0] in self._frozen_norms:
            return False, "it stands beside running statistics that no BatchNormalization reads"
        return None

    def _norms_written_out(self) -> set[str]:
        """The names of layers with running statistics that no node BatchNormalization has."""
        found = set()
        for name, value in self.graph.initializers.items():
            match = _STATISTIC.fullmatch(str(name))
            if match is not None and match[1]:
                readers = [(use.node, use.idx) for use in value.uses()]
                if readers and not any(index in of(node).settings for node, index in readers):
                    found.add(match[1])
        return found

    def _follow(self) -> None:
        """Find what is computed from what is fed, and what a weight has touched."""
        for value in self.graph.inputs:
            if value not in self._touched and not value.is_initializer():
                self._data.add(value)
        for node in self.graph:
            operands = [value for value in node.inputs if value is not None]
            is_touched = not self._touched.isdisjoint(operands) or self._reads_weight(node)
            if is_touched or any(subgraphs(node)):
                self._touched.update(node.outputs)
            elif not self._data.isdisjoint(operands):
                self._data.update(node.outputs)
                constants = any(tensor_of(value) for value in operands)
                is_scaled = node.op_type in ("Sub", "Div") and constants
                if is_scaled or not self._normalized.isdisjoint(operands):
                    self._normalized.update(node.outputs)

    def _reads_weight(self, node: ir.Node) -> bool:
        for index in of(node).weights:
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or value in self._data:
                continue
            is_fixed = _is_waves(value) if node.op_type == "Gather" else self._steps(value, node)
            if not is_fixed:
                return True
        return False

    def _steps(self, value: ir.Value, node: ir.Node) -> bool:
        """Whether these are frequencies by which positions are multiplied."""
        others = [other for other in node.inputs if other is not None and other is not value]
        if any(other not in self._data for other in others):
            return False
        return _is_geometric(value) or (all(map(_is_whole, others)) and _is_phase(node.outputs[0]))

    def _use(
        self, value: ir.Value, node: ir.Node, index: int, depth: int = 0
    ) -> tuple[bool, str | None]:
        operator, name = of(node), node.op_type
        if index in operator.settings:
            return False, f"{_SETTING} {name}"
        if _counts(value):
            return False, "it counts 0, 1, 2, ..."
        if index in operator.starts and _is_zero(value):
            return False, f"{name} starts from it, and it is all zeros"
        if _is_the_same(node) and index == 0 and depth < _DEEPEST and node.outputs:
            return self._behind(node.outputs[0], depth)
        if index in operator.weights:
            if name == "Gather" and _is_waves(value):
                return False, "it is a table of sines and cosines"
            if name != "Gather" and self._steps(value, node):
                return False, _FREQUENCIES
            return True, None
        if index == operator.bias or (operator.weights and name != "Gather"):
            return True, None
        if operator.gradient is ZERO:
            return False, f"no gradient flows through {name}"
        if name in ("Add", "Sub", "Mul", "Div"):
            return self._in_sum_or_product(value, node)
        if _size(value) == 1:
            return self._number(value, node)
        if name == "Attention" and _has_two_values(value):
            return False, _TWO_VALUES
        return True, f"{name} reads it, and the model does not tell whether it is trained"

    def _behind(self, moved: ir.Value, depth: int) -> tuple[bool, str | None]:
        """The same, where it is read in another shape, order or dtype."""
        found = [self._use(moved, use.node, use.idx, depth + 1) for use in moved.uses()]
        if not found:
            return True, None
        return next((one for one in found if one == (True, None)), max(found, key=lambda f: f[0]))

    def _in_sum_or_product(self, value: ir.Value, node: ir.Node) -> tuple[bool, str | None]:
        others = [other for other in node.inputs if other is not None and other is not value]
        if _size(value) == 1:
            is_bias = node.op_type == "Add" and any(map(_is_product, others))
            return (True, None) if is_bias else self._number(value, node)
        if any(other in self._data for other in others):
            if node.op_type == "Mul" and self._steps(value, node):
                return False, _FREQUENCIES
            if node.op_type in ("Sub", "Div") or not self._normalized.isdisjoint(others):
                return False, "an input is normalized by it"
            return True, f"{node.op_type} reads it with an input, which may be normalized by it"
        if _is_waves(value):
            return False, "it is a table of sines and cosines"
        if _has_two_values(value):
            return False, _TWO_VALUES
        if self._is_pytorch and not self._noted and not any(map(_is_product, others)):
            return True, "the exporter does not tell parameters from buffers"
        return True, None

    def _number(self, value: ir.Value, node: ir.Node) -> tuple[bool, str | None]:
        """One element that no operator takes as a weight."""
        others = [other for other in node.inputs if other is not None and other is not value]
        fixed = not any(other in self._data or other in self._touched for other in others)
        of_module = self._is_pytorch and not _OF_EXPORTERS.fullmatch(str(value.name))
        if (fixed and others) or not of_module:
            return False, f"{_NUMBER} ({node.op_type}), as far as this tells"
        return True, "it is one number, and the exporter does not tell parameters from constants"


def inlined(model: ir.Model) -> ir.Model:
    """The model, or a copy in which its functions are written out, if it has any."""
    if not model.functions:
        return model
    model = model.clone()
    passes.InlinePass()(model)
    return model


def constants(graph: ir.Graph) -> Iterable[ir.Value]:
    """The floating-point initializers of a graph, then its nodes Constant of several elements.

    Then those of the graphs in its nodes. Of a node Constant, one of equal elements is none: it
    stands for a scale or bias that a layer does not have.
    """
    for inner in (graph, *graph.subgraphs()):
        for value in inner.initializers.values():
            if value.const_value is not None and value.const_value.dtype in FLOATING:
                yield value
        yield from filter(_is_several, _outputs_of_constants(inner))


def _outputs_of_constants(graph: ir.Graph) -> Iterable[ir.Value]:
    return (node.outputs[0] for node in graph if node.op_type == "Constant" and not node.domain)


def _is_several(value: ir.Value) -> bool:
    """Whether a node Constant holds floating-point numbers that differ."""
    tensor, array = tensor_of(value), _array(value)
    is_large = tensor is not None and tensor.dtype in FLOATING and tensor.size > _LARGEST
    return is_large or (array is not None and bool(np.ptp(array) > 0))


def tensor_of(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a node Constant, which is left as it is.

    What onnx-ir offers gives it a name, in the caller's model.
    """
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain or "value" not in node.attributes:
        return None
    attribute = node.attributes["value"]
    return attribute.as_tensor() if attribute.type == ir.AttributeType.TENSOR else None


def _is_the_same(node: ir.Node) -> bool:
    """Whether a weight is one behind it too: in another shape, order or precision."""
    return of(node).moves <= Moves.ORDER or node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _size(value: ir.Value) -> int | None:
    tensor = _source(value)
    return None if tensor is None else tensor.size


def _source(value: ir.Value) -> ir.TensorProtocol | None:
    """The constant of which a value has the elements, perhaps in another shape or dtype."""
    node = value.producer()
    while node is not None and _is_the_same(node) and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return tensor_of(value)


def _is_product(value: ir.Value) -> bool:
    """Whether it is the result of a layer, perhaps in another shape or dtype."""
    node = value.producer()
    while node is not None and _is_the_same(node) and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    operator = Operator("") if node is None else of(node)
    return bool(operator.weights and operator.name != "Gather") or operator.name == "Einsum"


def _array(value: ir.Value) -> np.ndarray | None:
    tensor = _source(value)
    if tensor is None or not 1 < tensor.size <= _LARGEST or tensor.dtype not in FLOATING:
        return None
    try:
        return tensor.numpy().astype(np.float64)
    except (ValueError, TypeError, OSError):  # its values have been taken out
        return None


def _has_two_values(value: ir.Value) -> bool:
    """Whether a matrix does; a row, or one value, may be a bias that has not been trained."""
    array = _array(value)
    if array is None or sum(size > 1 for size in array.shape) < 2:
        return False
    low, high = array.min(), array.max()
    return bool(low < high and ((array == low) | (array == high)).all())


def _is_geometric(value: ir.Value) -> bool:
    """Whether these are powers of a number: 1, q, q q, ..."""
    array = _array(value)
    if array is None or array.size < 3 or array.size != max(array.shape):
        return False
    row = array.reshape(-1)
    ratio = row[1]
    wanted = ratio ** np.arange(row.size) if 0 < ratio < 1 else np.zeros(row.size)
    return bool(row[0] == 1 and np.allclose(row, wanted, rtol=_ROUNDING))


def _is_whole(value: ir.Value) -> bool:
    """Whether these are whole numbers, perhaps in another shape or as floats."""
    while value.dtype is None or not value.dtype.is_integer():
        node = value.producer()
        if node is None or node.op_type in _WHOLE:
            return node is not None
        if node.op_type == "Cast" and ir.DataType(node.attributes.get_int("to")).is_integer():
            return True
        if not (_is_the_same(node) or node.op_type == "Expand") or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return True


def _is_phase(value: ir.Value) -> bool:
    """Whether only sines and cosines are taken of it, perhaps in another shape or order."""
    readers = [use.node for use in value.uses()]
    return bool(readers) and all(
        node.op_type in ("Sin", "Cos")
        or ((_is_the_same(node) or node.op_type == "Concat") and _is_phase(node.outputs[0]))
        for node in readers
    )


def _counts(value: ir.Value) -> bool:
    """Whether these are 0, 1, 2, ... along one axis."""
    array = _array(value)
    if array is None or array.size < _FEWEST or array.size != max(array.shape):
        return False
    return bool((array.reshape(-1) == np.arange(array.size)).all())


def _is_zero(value: ir.Value) -> bool:
    """Whether all elements of a constant are 0."""
    array = _array(value)
    return array is not None and not array.any()


def _is_waves(value: ir.Value) -> bool:
    """Whether rows are the sines and cosines of 0, 1, 2 ... times some frequencies."""
    array = _array(value)
    if array is None or array.ndim < 2:
        return False
    table = array.reshape(-1, array.shape[-1])[:3]
    if len(table) < 3:
        return False
    first, second, third = table
    if np.allclose(first, second, atol=_ROUNDING):
        return False  # the scale of a layer that has not been trained
    with np.errstate(invalid="ignore", over="ignore"):
        cosine = (first == 1) & np.isclose(third, 2 * second**2 - 1, atol=_ROUNDING)
        double = 2 * second * np.sqrt(1 - second**2)
        sine = (first == 0) & np.isclose(third, double, atol=_ROUNDING)
    return bool((cosine | sine).all()) and bool(second.max() > _SLOWEST)
