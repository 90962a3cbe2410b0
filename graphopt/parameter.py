"""The trainable tensors of a forward model."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from graphopt.forward import ForwardModel, read_forward
from graphopt.marks import FROZEN
from graphopt.operators import of

_SAME = {"Cast", "Identity", "QuantizeLinear", "DequantizeLinear"}  # the weight all the same
_FLOATING = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE}


@dataclass(frozen=True)
class Parameter:
    """A tensor that an optimizer updates.

    Attributes:
        name: The name of the initializer in the forward model.
        shape: Its dimensions; ``()`` for a scalar.
        dtype: Its element type by NumPy's name. Optimizers take float32 and float16.
        op_type: The operator whose weight it is (``"Conv"``, ``"Gemm"``, ...), or None for a bias
            or where the graph does not tell.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: An empty name or a negative dimension.

    Example:
        >>> Parameter("fc.weight", (3, 5))
        Parameter(name='fc.weight', shape=(3, 5), dtype='float32', op_type=None)
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    op_type: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name: got {self.name!r}, expected a string")
        if not self.name:
            raise ValueError("name: got an empty string, expected the name of an initializer")
        try:
            shape = tuple(self.shape)
        except TypeError:
            raise TypeError(
                f"shape of parameter '{self.name}': got {self.shape!r}, expected a tuple of ints"
            ) from None
        for dimension in shape:
            if isinstance(dimension, bool) or not isinstance(dimension, int | np.integer):
                raise TypeError(
                    f"shape of parameter '{self.name}': got {self.shape!r}, expected ints"
                )
            if dimension < 0:
                raise ValueError(
                    f"shape of parameter '{self.name}': got {self.shape!r}, expected ints >= 0"
                )
        object.__setattr__(self, "shape", tuple(int(dimension) for dimension in shape))
        try:
            dtype = None if self.dtype is None else np.dtype(self.dtype).name
        except TypeError:
            dtype = None
        if dtype is None:
            raise TypeError(
                f"dtype of parameter '{self.name}': got {self.dtype!r}, expected a NumPy dtype"
            )
        object.__setattr__(self, "dtype", dtype)
        if not isinstance(self.op_type, str | None):
            raise TypeError(
                f"op_type of parameter '{self.name}': got {self.op_type!r}, expected a string"
            )

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class Parameters(list[Parameter]):
    """A list of parameters that can be narrowed down.

    Every method returns another such list, in the same order; an optimizer takes it as it is.

    Example:
        >>> network = Parameters([Parameter("conv1.weight", (8, 1, 3, 3), op_type="Conv"),
        ...                       Parameter("conv1.bias", (8,)),
        ...                       Parameter("head.weight", (10, 8), op_type="Gemm")])
        >>> [p.name for p in network.matching("conv*")]
        ['conv1.weight', 'conv1.bias']
        >>> [p.name for p in network.of_type("Conv", "ConvTranspose")]
        ['conv1.weight']
        >>> [p.name for p in network.of_rank(1)]
        ['conv1.bias']
        >>> [p.name for p in network.without(network.matching("conv*"))]
        ['head.weight']
    """

    def matching(self, *patterns: str) -> "Parameters":
        """Those whose name matches a pattern; ``*`` and ``?`` as in file names.

        Raises:
            ValueError: A pattern matches no parameter.
        """
        for pattern in patterns:
            if not any(fnmatchcase(parameter.name, pattern) for parameter in self):
                raise ValueError(
                    f"pattern '{pattern}' matches no parameter; there are "
                    f"{', '.join(repr(parameter.name) for parameter in self) or 'none'}"
                )
        return Parameters(
            parameter
            for parameter in self
            if any(fnmatchcase(parameter.name, pattern) for pattern in patterns)
        )

    def of_type(self, *op_types: str) -> "Parameters":
        """Those that are the weight of one of these operators."""
        return Parameters(parameter for parameter in self if parameter.op_type in op_types)

    def of_rank(self, *ranks: int) -> "Parameters":
        """Those with one of these numbers of dimensions."""
        return Parameters(parameter for parameter in self if len(parameter.shape) in ranks)

    def without(self, others: Iterable[Parameter]) -> "Parameters":
        """Those that are not among the others, by name."""
        names = {parameter.name for parameter in others}
        return Parameters(parameter for parameter in self if parameter.name not in names)


def parameters(model: ForwardModel) -> Parameters:
    """The floating-point initializers of a forward model, in graph order.

    Left out is what has no gradient: the running mean and variance of batch normalization, which a
    training graph carries along, settings such as the ratio of Dropout or the bounds of Clip, and
    what `graphopt.marks.FROZEN` or PyTorch's exporter marks as a buffer or as a constant.

    Args:
        model: A path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``.

    Returns:
        One `Parameter` for each, as a list; take a subset to leave the others frozen.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an ONNX model, or has no floating-point initializer.
        TypeError: ``model`` is none of the three.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
        ... linear (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }''')
        >>> parameters(model)
        [Parameter(name='w', shape=(2, 1), dtype='float32', op_type='MatMul')]
    """
    graph = read_forward(model).graph
    settings = {
        value.name
        for node in graph.all_nodes()
        for index, value in enumerate(node.inputs)
        if value is not None and index in of(node).settings
    }
    found = Parameters(
        Parameter(
            str(value.name),
            tuple(value.const_value.shape.numpy()),
            value.const_value.dtype.numpy().name,
            _weight_of(value),
        )
        for value in graph.initializers.values()
        if value.const_value is not None
        and value.name not in settings
        and not _is_exported_constant(value)
        and value.const_value.dtype in _FLOATING
    )
    if not found:
        raise ValueError(
            "the model has no floating-point initializer, so there is nothing to train; "
            "weights must stand in it as initializers, not as inputs or Constant nodes"
        )
    return found


def _is_exported_constant(value: ir.Value) -> bool:
    """Whether it is marked as frozen, or PyTorch's exporter notes a buffer or a constant."""
    tensor = value.const_value  # in a file, metadata stand at the tensor or at its value
    metadata = {**value.metadata_props, **(tensor.metadata_props if tensor else {})}
    if FROZEN in metadata:
        return True
    kind = metadata.get("pkg.torch.export.graph_signature.InputSpec.kind", "PARAMETER")
    if kind != "PARAMETER":
        return True
    if "pkg.onnxscript.optimizer.folded_from" in metadata:
        return True
    graph = value.graph
    by_exporter = graph is not None and any(
        key.startswith("pkg.torch.export") for key in graph.metadata_props
    )
    return by_exporter and re.fullmatch(r"val_\d+", str(value.name)) is not None


def _weight_of(value: ir.Value) -> str | None:
    for use in value.uses():
        node = use.node
        if node.domain == "" and use.idx in of(node).weights:
            return node.op_type
        if node.op_type in _SAME and (found := _weight_of(node.outputs[0])):
            return found
    return None
