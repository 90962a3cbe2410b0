"""A helper that appends nodes to a graph, one method call a node."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from graphopt._slips import no_attribute
from graphopt.graphs import all_nodes, subgraphs

if TYPE_CHECKING:
    from graphopt._operator_methods import OperatorMethods
else:
    OperatorMethods = object

Operand = ir.Value | npt.ArrayLike | None

# Operators whose operands and result have one dtype, and whose operands have one.
_KEEPS_DTYPE = frozenset(
    (
        *("Abs", "Add", "Ceil", "Clip", "Cos", "Div", "Exp", "Floor", "Log", "Max", "Min", "Mul"),
        *("Neg", "Pow", "Relu", "Sigmoid", "Sin", "Sqrt", "Sub", "Tanh", "Where"),
    )
)
_ONE_DTYPE = _KEEPS_DTYPE | {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}


@cache
def operator_names() -> frozenset[str]:
    """The operators of ONNX, of all its opsets."""
    schemas = onnx.defs.get_all_schemas_with_history()
    return frozenset(schema.name for schema in schemas if not schema.domain)


class GraphBuilder(OperatorMethods):
    """Appends nodes to an `onnx_ir.Graph`; every ONNX operator is a method.

    ``op.Conv(x, w, pads=[1, 1, 1, 1])`` appends a Conv node and returns its output. Operands are
    values of the graph; anything else becomes a constant, and None leaves an optional input out.
    In arithmetic a Python number takes the dtype of the value beside it, where that is known;
    elsewhere floats are float32 and ints are int64.

    Example:
        A loss of one's own, for ``training_graph(model, loss=quantile, optimizer=...)``:

        >>> def quantile(op, prediction):
        ...     target = op.input("labels", prediction.dtype, prediction.shape)
        ...     error = op.Sub(target, prediction)
        ...     return op.ReduceMean(op.Max(op.Mul(error, 0.9), op.Mul(error, -0.1)), keepdims=0)
    """

    real: ir.DataType
    """The dtype of `number`: float32, unless what is appended computes in another one."""

    def __init__(self, graph: ir.Graph) -> None:
        """A builder that appends to ``graph``."""
        self.graph = graph
        self._outermost = graph
        self._names = {value.name for value in graph.inputs} | set(graph.initializers)
        self._node_names: set[str | None] = set()
        for node in all_nodes(graph):
            self._node_names.add(node.name)
            for value in node.outputs:
                self._names.add(value.name)
            for inner in subgraphs(node):
                self._names.update(value.name for value in inner.inputs)
                self._names.update(inner.initializers)
        self._last_number: Counter[str] = Counter()
        self._prefix = ""
        self._before: ir.Node | None = None
        self._last_node_number: Counter[str] = Counter()
        self.real = ir.DataType.FLOAT
        self._constants: dict[tuple[str, tuple[int, ...], bytes], dict[str | None, ir.Value]] = {}

    def number(self, value: float) -> np.ndarray:
        """A number of a formula, as a scalar of the dtype in which the graph computes it."""
        return np.array(value, self.real.numpy())

    @property
    def opset(self) -> int:
        """The version of ONNX's operators that the graph uses."""
        return self._outermost.opset_imports[""]

    @property
    def is_inside(self) -> bool:
        """Whether it appends to a graph in a node."""
        return self.graph is not self._outermost

    if not TYPE_CHECKING:

        def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
            """A function that appends a node of this operator and returns its first output."""
            if not op_type[:1].isupper():
                raise AttributeError(f"GraphBuilder has no attribute '{op_type}'")
            if op_type not in operator_names():
                raise no_attribute("ONNX", op_type, operator_names(), what="operator")

            def append(*operands: Operand, **attributes: Any) -> ir.Value:
                return self.node(op_type, operands, **attributes)[0]

            return append

    def node(
        self,
        op_type: str,
        operands: Sequence[Operand],
        *,
        domain: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """Append a node; returns all its outputs, which are named after the operator."""
        dtype = _dtype(operands) if op_type in _ONE_DTYPE else None
        if op_type == "Cos" and not domain and dtype == ir.DataType.DOUBLE:
            # ONNX Runtime has no float64 kernel of Cos, but one of Sin.
            return self.node("Sin", [self.Add(operands[0], math.pi / 2)])
        node = ir.node(
            op_type,
            [self._value(operand, dtype) for operand in operands],
            {key: _attribute(key, v) for key, v in attributes.items() if v is not None},
            domain=domain,
            num_outputs=outputs,
        )
        for value in node.outputs:
            value.name = self.fresh_name(op_type)
        if op_type == "Cast" and isinstance(attributes["to"], int):
            dtype = ir.DataType(attributes["to"])
        elif op_type not in _KEEPS_DTYPE:
            dtype = None if domain else _result_dtype(op_type, self.opset, node.inputs)
        if dtype is not None:
            node.outputs[0].dtype = dtype
        node.name = _unused(self._prefix + op_type, self._node_names, self._last_node_number)
        if self._before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._before, node)
        return tuple(node.outputs)

    @contextmanager
    def named(self, prefix: str) -> Iterator[None]:
        """Let the names of the nodes that are appended meanwhile begin with ``prefix/``."""
        before = self._prefix
        self._prefix = f"{prefix}/"
        try:
            yield
        finally:
            self._prefix = before

    def at_front(self) -> AbstractContextManager[None]:
        """Put the nodes that are appended meanwhile before those that are there now."""
        return self.before(next(iter(self.graph), None))

    @contextmanager
    def before(self, node: ir.Node | None) -> Iterator[None]:
        """Put the nodes that are appended meanwhile before this one; None: at the end."""
        around, self._before = self._before, node
        try:
            yield
        finally:
            self._before = around

    @contextmanager
    def inside(self, graph: ir.Graph) -> Iterator[None]:
        """Append to a graph in a node meanwhile; constants stay with the outermost graph."""
        around, self.graph = self.graph, graph
        try:
            yield
        finally:
            self.graph = around

    def copy(self, graph: ir.Graph, hint: str) -> ir.Graph:
        """A copy of a graph in a node, all of whose names are new.

        Args:
            graph: A graph without initializers; what it reads of those around it stays the same.
            hint: What the names of the copied nodes begin with.
        """
        copied = graph.clone(allow_outer_scope_values=True)
        for inner in (copied, *copied.subgraphs()):
            for value in inner.inputs:
                value.name = self.fresh_name(str(value.name))
        for node in all_nodes(copied):
            name = f"{hint}/{node.name or node.op_type}"
            node.name = _unused(name, self._node_names, self._last_node_number)
            for value in node.outputs:
                value.name = self.fresh_name(value.name) if value.name else value.name
        return copied

    def input(
        self,
        name: str,
        dtype: ir.DataType | npt.DTypeLike,
        shape: ir.Shape | Sequence[int | str | None],
    ) -> ir.Value:
        """Add an input to the graph; strings in the shape are symbolic dimensions.

        Raises:
            ValueError: The graph has a value of that name already.
        """
        self._reserve(name)
        kind = dtype if isinstance(dtype, ir.DataType) else ir.DataType.from_numpy(np.dtype(dtype))
        value = ir.val(name, dtype=kind, shape=ir.Shape(shape))
        self._outermost.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str) -> ir.Value:
        """Make a value an output of the graph under this name."""
        if value.name != name:
            if value.is_graph_input() or value.is_initializer() or value.is_graph_output():
                value = self.Identity(value)
            self._reserve(name)
            self._names.discard(value.name)
            value.name = name
        self.graph.outputs.append(value)
        return value

    def constant(self, value: npt.ArrayLike, name: str | None = None) -> ir.Value:
        """An initializer; Python floats are float32, ints int64.

        Equal ones are shared, but for those with different names.
        """
        array = np.array(value)  # a copy: the caller may change his
        if array.dtype == np.float64 and not isinstance(value, np.ndarray | np.generic):
            array = array.astype(np.float32)
        if array.dtype == np.object_:
            raise ValueError("a number of the graph is larger than 64 bits hold")
        equal = self._constants.setdefault((array.dtype.name, array.shape, array.tobytes()), {})
        for other, initializer in equal.items():
            # One that nothing read may have been removed since.
            is_there = self._outermost.initializers.get(str(initializer.name)) is initializer
            if is_there and (name == other or None in (name, other)):
                return initializer
        tensor = ir.Tensor(array, name=self.fresh_name(name or "constant"))
        equal[name] = ir.val(tensor.name, tensor.dtype, array.shape, const_value=tensor)
        self._outermost.register_initializer(equal[name])
        return equal[name]

    def fresh_name(self, hint: str) -> str:
        """A name that no value of the graph has yet."""
        return _unused(hint, self._names, self._last_number)

    def release_name(self, name: str) -> None:
        """Make a name available that no value has any more."""
        self._names.discard(name)

    def _reserve(self, name: str) -> None:
        if name in self._names:
            raise ValueError(
                f"the graph has a value named '{name}' already; choose another name or rename it "
                "in the model"
            )
        self._names.add(name)

    def _value(self, operand: Operand, dtype: ir.DataType | None) -> ir.Value | None:
        if operand is None or isinstance(operand, ir.Value):
            return operand
        if dtype is not None and isinstance(operand, int | float):
            if isinstance(operand, float) and not dtype.is_floating_point():
                raise TypeError(
                    f"got {operand!r} beside a value of dtype {dtype.numpy().name}; "
                    "cast that to a floating-point dtype first, with op.Cast(value, to=...)"
                )
            return self.constant(np.array(operand, dtype.numpy()))
        return self.constant(operand)


def _attribute(name: str, value: Any) -> Any:
    """What `onnx_ir.node` makes of a value, but that compares a list with protocols first."""
    if isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value):
        return ir.AttrInt64s(name, value)
    return value


def _unused(hint: str, names: set[str | None], last_number: Counter[str]) -> str:
    """A name that is not among these, of which it is one from now on."""
    name = hint
    while name in names:
        last_number[hint] += 1
        name = f"{hint}_{last_number[hint]}"
    names.add(name)
    return name


def _result_dtype(
    op_type: str, opset: int, operands: Sequence[ir.Value | None]
) -> ir.DataType | None:
    """The dtype of a node's first output, if that of an operand or the operator determines it."""
    source = _source_of_dtype(op_type, opset)
    if source is None or isinstance(source, ir.DataType):
        return source
    operand = operands[source] if source < len(operands) else None
    return None if operand is None else operand.dtype


@cache
def _source_of_dtype(op_type: str, opset: int) -> int | ir.DataType | None:
    """The index of the operand that has the dtype of the first output, or that dtype itself."""
    try:
        schema = onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return None
    kind = schema.outputs[0].type_str
    for index, formal in enumerate(schema.inputs):
        if formal.type_str == kind:
            return index
    allowed = next(
        (c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == kind), [kind]
    )
    fixed = {"tensor(int64)": ir.DataType.INT64, "tensor(bool)": ir.DataType.BOOL}
    return fixed.get(allowed[0]) if len(allowed) == 1 else None


def _dtype(operands: Sequence[Operand]) -> ir.DataType | None:
    """The dtype of the values among the operands; None where it is unknown or not a number's."""
    for operand in operands:
        if isinstance(operand, ir.Value) and operand.dtype not in (None, ir.DataType.BOOL):
            return operand.dtype
    return None
