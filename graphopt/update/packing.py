"""The inputs that carry parameters, and the parameters that are computed from them."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.parameter import Parameter
from graphopt.rmsprop import Rule
from graphopt.update.layout import Bucket


class Packing:
    """What carries parameters, one or several.

    Args:
        op: Appends the nodes.
        parameters: The graph's input of each parameter, by name.
        is_needed: Whether the update itself reads a parameter in its own shape.
    """

    def __init__(
        self,
        op: GraphBuilder,
        parameters: Mapping[str, ir.Value],
        is_needed: Callable[[Rule], bool],
    ) -> None:
        """Nothing is packed yet."""
        self._op = op
        self._parameters = dict(parameters)
        self._is_needed = is_needed
        self._carried: set[ir.Value] = set()

    def parameter(self, name: str) -> ir.Value:
        """A parameter in its own shape."""
        return self._parameters[name]

    def input_of(self, bucket: Bucket) -> ir.Value:
        """The input that carries the parameters of a bucket."""
        if bucket.separate or [bucket.shape] == [parameter.shape for parameter in bucket]:
            return self._parameters[bucket.name]
        self._carried.update(self._parameters[parameter.name] for parameter in bucket)
        (first, *others) = (self._parameters[parameter.name] for parameter in bucket)
        if not others and not first.is_graph_output():
            self._op.release_name(bucket.name)
        name = self._op.fresh_name(bucket.name)
        self._op.release_name(name)
        flat = self._op.input(name, bucket.dtype, bucket.shape)
        if any(self._is_read(parameter, bucket.rule) for parameter in bucket):
            self._unpack(bucket, flat)
        return flat

    def remove_carried(self) -> None:
        """Remove the inputs of parameters that others carry now, all at once."""
        inputs = self._op.graph.inputs
        kept = [value for value in inputs if value not in self._carried]
        inputs.clear()
        inputs.extend(kept)

    def split(self, flat: ir.Value, bucket: Bucket) -> Iterator[ir.Value]:
        """The parts of a bucket's tensor, each in the shape of its parameter."""
        sizes = [parameter.size for parameter in bucket]
        parts: Sequence[ir.Value] = [flat]
        if len(sizes) > 1:
            if bucket.rows is not None:
                flat = self._op.Reshape(flat, [-1])
            parts = self._op.node("Split", [flat, sizes], outputs=len(sizes), axis=0)
        for parameter, part in zip(bucket, parts, strict=True):
            if len(sizes) > 1 and len(parameter.shape) == 1:
                yield part
            else:
                yield self._op.Reshape(part, np.array(parameter.shape, np.int64))

    def _is_read(self, parameter: Parameter, rule: Rule) -> bool:
        """Whether anything but the update of the bucket reads a parameter."""
        value = self._parameters[parameter.name]
        return bool(value.uses()) or value.is_graph_output() or self._is_needed(rule)

    def _unpack(self, bucket: Bucket, flat: ir.Value) -> None:
        """Compute the parameters from what carries them, before anything reads them."""
        with self._op.at_front():
            for parameter, part in zip(bucket, self.split(flat, bucket), strict=True):
                old = self._parameters[parameter.name]
                taken = parameter.name == flat.name
                part.name = self._op.fresh_name(f"{old.name}/shaped") if taken else old.name
                part.type, part.shape = old.type, old.shape
                old.replace_all_uses_with(part, replace_graph_outputs=True)
                self._parameters[parameter.name] = part
