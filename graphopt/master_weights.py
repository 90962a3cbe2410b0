"""Float32 copies of the parameters of a model in half precision, which are what is trained."""

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.forward import ForwardModel, read_forward
from graphopt.half.casts import cast
from graphopt.half.precision import HALVES
from graphopt.parameter import parameters
from graphopt.soundness.errors import about

_FLOAT = ir.DataType.FLOAT


def with_master_weights(model: ForwardModel) -> ir.Model:
    """The model with its parameters in float32, of which it reads what they were, rounded.

    An update that is smaller than half a unit of a float16 or bfloat16 parameter would be lost; in
    the float32 copy it is not. What `graphopt.parameters` finds in the result is the copies; they
    are the state of a training graph of it, and what `Session.export` writes. Inputs and outputs
    that are bfloat16, which NumPy lacks, become float32 too. All else is computed as before.

    Args:
        model: A path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``, which is left as it is.

    Raises:
        FileNotFoundError: The path does not exist.
        TypeError: ``model`` is none of these.
        ValueError: The file is no ONNX model, or no parameter of it is float16 or bfloat16.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
        ... linear (float16[N,2] x) => (float16[N,1] y) <float16[2,1] w = {1, 2}>
        ... { y = MatMul(x, w) }''')
        >>> [(p.name, p.dtype) for p in parameters(with_master_weights(model))]
        [('w', 'float32')]
    """
    with about(model):
        trained = parameters(model)
        made = read_forward(model).clone()
        graph = made.graph
        narrow = [
            value
            for parameter in trained
            if (value := graph.initializers.get(parameter.name)) is not None
            and value.const_value is not None
            and value.const_value.dtype in HALVES
        ]
        if not narrow:
            raise ValueError(
                "no parameter of the model is float16 or bfloat16, which is what master weights "
                "are for; train it as it is"
            )
    op = GraphBuilder(graph)
    with op.at_front():
        for value in narrow:
            _widen(op, value)
        for value in graph.inputs:
            if value.dtype == ir.DataType.BFLOAT16:
                _read_rounded(op, value, ir.DataType.BFLOAT16)
                value.dtype = _FLOAT
    for index, value in enumerate(graph.outputs):
        if value.dtype == ir.DataType.BFLOAT16:
            _report(op, index, value)
    return made


def _widen(op: GraphBuilder, value: ir.Value) -> None:
    """Make an initializer float32, and let all that reads it read it rounded."""
    tensor = value.const_value
    assert tensor is not None
    _read_rounded(op, value, tensor.dtype)
    array = tensor.numpy().astype(np.float32)
    value.const_value = ir.tensor(array, name=value.name)
    value.dtype = _FLOAT


def _read_rounded(op: GraphBuilder, value: ir.Value, dtype: ir.DataType) -> None:
    readers = [(use.node, use.idx) for use in value.uses()]
    rounded = cast(op, value, dtype)
    for node, index in readers:
        node.replace_input_with(index, rounded)


def _report(op: GraphBuilder, index: int, value: ir.Value) -> None:
    name, wide = str(value.name), cast(op, value, _FLOAT)
    op.graph.outputs[index] = wide
    value.name = op.fresh_name(f"{name}/bfloat16")
    op.release_name(name)
    wide.name = op.fresh_name(name)
