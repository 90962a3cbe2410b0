"""Layers for the networks of this folder; parameters have PyTorch's names, shapes and layout."""

import math
from collections.abc import Sequence

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir

from graphopt import GraphBuilder


class Network:
    """A forward model under construction.

    Attributes:
        op: Appends nodes; every ONNX operator is a method.
    """

    def __init__(self, name: str, seed: int, opset: int = 17) -> None:
        self.op = GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": opset}, name=name))
        self._rng = np.random.default_rng(seed)
        self._parameters: set[str] = set()

    def input(
        self, name: str, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.FLOAT
    ) -> ir.Value:
        """An input of the model."""
        return self.op.input(name, dtype, shape)

    def finish(self, value: ir.Value, name: str, shape: Sequence[int | str]) -> onnx.ModelProto:
        """The checked model, whose output is ``value``."""
        self._constants_to_nodes()
        output = self.op.output(value, name)
        output.dtype, output.shape = ir.DataType.FLOAT, ir.Shape(shape)
        model = ir.to_proto(ir.Model(self.op.graph, ir_version=8, producer_name="graphopt"))
        onnx.checker.check_model(model, full_check=True)
        return model

    def parameter(self, name: str, values: np.ndarray) -> ir.Value:
        """An initializer."""
        tensor = ir.tensor(values.astype(np.float32), name=name)
        value = ir.val(name, ir.DataType.FLOAT, values.shape, const_value=tensor)
        self.op.graph.register_initializer(value)
        self._parameters.add(name)
        return value

    def normal(self, name: str, shape: Sequence[int], scale: float) -> ir.Value:
        """A parameter with normally distributed values."""
        return self.parameter(name, self._rng.normal(scale=scale, size=shape))

    def uniform(self, name: str, shape: Sequence[int], bound: float) -> ir.Value:
        """A parameter with evenly distributed values."""
        return self.parameter(name, self._rng.uniform(-bound, bound, shape))

    def zeros(self, name: str, size: int) -> ir.Value:
        """A parameter of zeros."""
        return self.parameter(name, np.zeros(size))

    def ones(self, name: str, size: int) -> ir.Value:
        """A parameter of ones."""
        return self.parameter(name, np.ones(size))

    def dense(self, x: ir.Value, name: str, inputs: int, outputs: int) -> ir.Value:
        """X Wᵀ + b for rows x of shape [N, inputs]."""
        weight = self.normal(f"{name}.weight", (outputs, inputs), math.sqrt(2 / inputs))
        return self.op.Gemm(x, weight, self._bias(name, outputs), transB=1)

    def projection(self, x: ir.Value, name: str, inputs: int, outputs: int) -> ir.Value:
        """X Wᵀ + b for x of shape [..., inputs], as PyTorch's exporter writes it."""
        weight = self.normal(f"{name}.weight", (outputs, inputs), math.sqrt(1 / inputs))
        product = self.op.MatMul(x, self.op.Transpose(weight, perm=[1, 0]))
        return self.op.Add(product, self._bias(name, outputs))

    def convolution(
        self,
        x: ir.Value,
        name: str,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = False,
    ) -> ir.Value:
        """A convolution that keeps the size but for its stride."""
        shape = (outputs, inputs // groups, kernel, kernel)
        weight = self.normal(f"{name}.weight", shape, math.sqrt(2 / math.prod(shape[1:])))
        operands = [x, weight, self._bias(name, outputs)] if bias else [x, weight]
        return self.op.Conv(
            *operands,
            group=groups,
            strides=[stride] * 2,
            dilations=[dilation] * 2,
            pads=[dilation * (kernel - 1) // 2] * 4,
            kernel_shape=[kernel] * 2,
        )

    def batch_norm(
        self, x: ir.Value, name: str, channels: int, epsilon: float = 1e-5, momentum: float = 0.9
    ) -> ir.Value:
        """Batch normalization; ``momentum`` is what stays of the running statistics."""
        return self.op.BatchNormalization(
            x,
            self.ones(f"{name}.weight", channels),
            self.zeros(f"{name}.bias", channels),
            self.zeros(f"{name}.running_mean", channels),
            self.ones(f"{name}.running_var", channels),
            epsilon=epsilon,
            momentum=momentum,
        )

    def layer_norm(self, x: ir.Value, name: str, size: int) -> ir.Value:
        """Layer normalization over the last axis."""
        return self.op.LayerNormalization(
            x, self.ones(f"{name}.weight", size), self.zeros(f"{name}.bias", size)
        )

    def embedding(self, tokens: ir.Value, name: str, count: int, size: int) -> ir.Value:
        """A learned vector for each token."""
        return self.op.Gather(self.normal(f"{name}.weight", (count, size), 1.0), tokens, axis=0)

    def _bias(self, name: str, size: int) -> ir.Value:
        # Not zeros: a gradient that forgets the bias should be seen.
        return self.normal(f"{name}.bias", (size,), 0.05)

    def _constants_to_nodes(self) -> None:
        """What is no parameter is a Constant, as exporters write it."""
        graph = self.op.graph
        for name, value in list(graph.initializers.items()):
            if name in self._parameters:
                continue
            node = ir.node("Constant", [], {"value": value.const_value})
            del graph.initializers[name]
            ir.convenience.replace_all_uses_with(value, node.outputs[0])
            node.outputs[0].name = name
            first = next(iter(graph))
            graph.insert_before(first, node)
