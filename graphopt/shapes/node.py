"""A node, with what it says of itself and what is known of what it reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from graphopt.shapes.sizes import Dim, Dims, axis_of, whole
from graphopt.shapes.values import MOST_RANK, NO_DTYPE, UNKNOWN, TensorInfo, of_tensor


class Attributes:
    """The attributes of a node, of the kind that is asked for."""

    def __init__(self, node: ir.Node, outer: Mapping[str, ir.Attr]) -> None:
        """Those of a node.

        Args:
            node: The node.
            outer: Those of the function that it is in, which it may refer to.
        """
        self._own = node.attributes
        self._outer = outer

    def get(self, name: str) -> ir.Attr | None:
        """An attribute, or that of the function to which it refers."""
        found = self._own.get(name)
        if found is not None and found.ref_attr_name:
            return self._outer.get(found.ref_attr_name)
        return found

    def all(self) -> dict[str, ir.Attr]:
        """All that have a value."""
        return {name: found for name in self._own if (found := self.get(name)) is not None}

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def integer(self, name: str, default: int = 0) -> int:
        """An integer."""
        found = self._value(name, ir.AttributeType.INT)
        return default if found is None else int(found)

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers."""
        found = self._value(name, ir.AttributeType.INTS)
        return None if found is None else tuple(found)

    def count(self, name: str) -> int:
        """How many numbers a list has."""
        found = self._value(name, ir.AttributeType.FLOATS)
        return len(found) if found is not None else len(self.integers(name) or ())

    def text(self, name: str, default: str = "") -> str:
        """A text."""
        found = self._value(name, ir.AttributeType.STRING)
        return default if found is None else str(found)

    def tensor(self, name: str) -> TensorInfo | None:
        """What is known of a tensor."""
        found = self._value(name, ir.AttributeType.TENSOR)
        return None if found is None else of_tensor(found)

    def graph(self, name: str) -> ir.Graph | None:
        """A subgraph."""
        found = self._value(name, ir.AttributeType.GRAPH)
        return found if isinstance(found, ir.Graph) else None

    def dtype(self, name: str, default: ir.DataType = NO_DTYPE) -> ir.DataType:
        """A dtype; ValueError if ONNX has no such."""
        return ir.DataType(self.integer(name, default))

    def _value(self, name: str, kind: ir.AttributeType) -> Any:
        found = self.get(name)
        return found.value if found is not None and found.type == kind else None


@dataclass(frozen=True)
class Node:
    """A node, with what is known of what it reads.

    Attributes:
        op_type: Its operator; those that are not ONNX's own begin with their domain and "::".
        inputs: What is known of each; None for one that is left out.
        outputs: How many it has.
        attributes: Its attributes.
    """

    op_type: str
    inputs: tuple[TensorInfo | None, ...]
    outputs: int
    attributes: Attributes

    def input(self, index: int) -> TensorInfo:
        """What is known of an input; nothing of one that is left out."""
        return (self.inputs[index] if index < len(self.inputs) else None) or UNKNOWN

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def shape(self, index: int = 0) -> Dims:
        """The shape of an input; IndexError where its rank is not known."""
        shape = self.input(index).shape
        if shape is None:
            raise IndexError("the rank is not known")
        return shape

    def sizes(self, index: int) -> tuple[Dim, ...] | None:
        """The elements of an input that is a list of sizes."""
        numbers = self.input(index).numbers
        if numbers is None:
            return None
        return tuple(n if n is None or isinstance(n, str) else int(n) for n in numbers)

    def dims(self, index: int) -> Dims | None:
        """The shape that an input is: of unknown sizes where only their number is known."""
        found = self.sizes(index)
        if found is not None or self.input(index).shape is None:
            return found
        (rank,) = self.shape(index)
        return (None,) * rank if isinstance(rank, int) and rank <= MOST_RANK else None

    def integers(self, index: int) -> tuple[int, ...] | None:
        """The elements of an input that is a list of integers, all of which are known."""
        sizes = self.sizes(index)
        return None if sizes is None else whole(sizes)

    def axis(self, default: int, rank: int) -> int:
        """The attribute ``axis``, counted from the front."""
        return axis_of(self.attributes.integer("axis", default), rank)

    def axes(self) -> tuple[int, ...] | None:
        """The attribute or second input ``axes``; empty where it is given in neither way."""
        found = self.attributes.integers("axes")
        if found is not None:
            return found
        return self.integers(1) if self.has(1) else ()


Rule = Callable[[Node], Sequence[TensorInfo]]
"""What is known of the outputs of a node.

It may raise IndexError, TypeError, ValueError or ArithmeticError where nothing is known.
"""
