"""The trainable tensors of a forward model."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import SupportsIndex, overload

import numpy as np
import onnx_ir as ir

from graphopt._memory import give_back_models
from graphopt._slips import nearest
from graphopt.forward import ForwardModel, read_forward
from graphopt.graphs import named_once
from graphopt.soundness.errors import about
from graphopt.weights import Weights, inlined, tensor_of

_NOT_LIFTED = (
    "it stands in a function, or in a branch or loop under a name that another value has too; "
    "write functions out (onnx.inliner), and give it a name of its own"
)


@dataclass(frozen=True)
class Parameter:
    """A tensor that an optimizer updates.

    Attributes:
        name: The name of the initializer in the forward model.
        shape: Its dimensions; ``()`` for a scalar.
        dtype: Its element type by NumPy's name. Optimizers take float32, float16 and float64.
        op_type: The operator whose weight it is (``"Conv"``, ``"Gemm"``, ...), or None for a bias
            or where the graph does not tell.
        why: Why it is or is not counted a parameter, where the model does not tell that for
            certain, or left it out; not compared.

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
    why: str | None = field(default=None, compare=False, repr=False)

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
        for attribute, text in (("op_type", self.op_type), ("why", self.why)):
            if not isinstance(text, str | None):
                raise TypeError(
                    f"{attribute} of parameter '{self.name}': got {text!r}, expected a string"
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
        >>> network["head.weight"].shape
        (10, 8)
        >>> [p.name for p in network.without_decay()]
        ['conv1.bias']
    """

    left_out: "Parameters"
    """What `parameters` has not counted, each with the reason in `Parameter.why`."""

    def __init__(self, found: Iterable[Parameter] = ()) -> None:
        """A list of these."""
        super().__init__(found)
        self.left_out = self if not self else Parameters()

    @overload
    def __getitem__(self, at: str | SupportsIndex) -> Parameter: ...
    @overload
    def __getitem__(self, at: slice) -> "Parameters": ...
    def __getitem__(self, at: str | SupportsIndex | slice) -> "Parameter | Parameters":
        """The one of a name, or at a place; or those of a slice.

        Raises:
            IndexError: There is no such place.
            KeyError: There is none of this name.
        """
        if isinstance(at, slice):
            return Parameters(super().__getitem__(at))
        if not isinstance(at, str):
            return super().__getitem__(at)
        names = [parameter.name for parameter in self]
        if at not in names:
            meant = nearest(at, names)
            remedy = f"did you mean '{meant}'?" if meant else f"there are {', '.join(names)}"
            raise KeyError(f"no parameter is called '{at}'; {remedy}")
        return super().__getitem__(names.index(at))

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

    def without_decay(self) -> "Parameters":
        """Those that recipes exclude from weight decay: biases, and the scales of normalization.

        These are the parameters of normalization, what is called a bias, and what has at most one
        axis longer than 1 without being the weight of another operator: so also single tokens and
        scales. `with_decay` gives the others.
        """
        return Parameters(parameter for parameter in self if not _decays(parameter))

    def with_decay(self) -> "Parameters":
        """Those to which recipes apply weight decay: the weights of layers."""
        return Parameters(parameter for parameter in self if _decays(parameter))

    def without(self, others: Iterable[Parameter]) -> "Parameters":
        """Those that are not among the others, by name."""
        names = {parameter.name for parameter in others}
        return Parameters(parameter for parameter in self if parameter.name not in names)


def _decays(parameter: Parameter) -> bool:
    if parameter.op_type is not None:
        return "Normalization" not in parameter.op_type and parameter.op_type != "PRelu"
    is_row = sum(size > 1 for size in parameter.shape) <= 1
    return not is_row and "bias" not in parameter.name.rpartition(".")[2]


def parameters(model: ForwardModel) -> Parameters:
    """The trainable tensors of a forward model, in graph order.

    These are its floating-point initializers that are weights, and weights that stand in nodes
    Constant, also in the branches of If and the bodies of loops; a training graph has those as
    initializers of its own graph. Left out is what is none: the running mean and variance of batch
    normalization, which a training graph carries along, settings such as the ratio of Dropout or
    the bounds of Clip, numbers of formulas, tables of sines or of two values, frequencies of
    positions, numbers that count from 0, zeros that a recurrent layer starts from, what inputs are
    normalized by, and what is marked as frozen or what PyTorch's exporter notes as a buffer or a
    constant. Where the model
    does not tell for certain, the reason stands in `Parameter.why`; what was left out, with the
    reasons, in `Parameters.left_out`.

    Args:
        model: A path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``.

    Returns:
        One `Parameter` for each, as a list; take a subset to leave the others frozen.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an ONNX model, or has no weight, or is a training graph.
        TypeError: ``model`` is none of the three.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
        ... linear (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }''')
        >>> parameters(model)
        [Parameter(name='w', shape=(2, 1), dtype='float32', op_type='MatMul')]
    """
    opened = read_forward(model, leaving=True)
    with about(model):
        found = _parameters(opened)
    del opened
    give_back_models(sum(p.size * np.dtype(p.dtype).itemsize for p in found))
    return found


def _parameters(opened: ir.Model) -> Parameters:
    """The trainable tensors of a model."""
    liftable = named_once(opened.graph)
    opened = inlined(opened)
    weights = Weights(opened)
    initializers = set(opened.graph.initializers.values())
    found, left_out = Parameters(), Parameters()
    for value, verdict in weights.verdicts().items():
        tensor = tensor_of(value)
        assert tensor is not None
        is_parameter, why = verdict.is_weight, verdict.why
        if value not in initializers:  # then only what is one for certain, and can be lifted
            if is_parameter and value.name not in liftable:
                why = _NOT_LIFTED
            is_parameter &= why is None
        (found if is_parameter else left_out).append(
            Parameter(
                str(value.name),
                tuple(tensor.shape.numpy()),
                tensor.dtype.numpy().name,
                verdict.op_type,
                why,
            )
        )
    if not found:
        raise ValueError(
            "the model has no floating-point initializer that is a weight, so there is nothing to "
            f"train{_reasons(left_out)}; weights must stand in it as constants, not as inputs"
        )
    found.left_out = left_out
    return found


def _reasons(left_out: Iterable[Parameter]) -> str:
    return "".join(f"; '{parameter.name}': {parameter.why}" for parameter in left_out)
