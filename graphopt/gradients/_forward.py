"""The forward pass, as what keeps or repeats it sees it: nodes in order, values, their bytes."""

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.graphs import operands, subgraphs
from graphopt.operators import of

FloatArray = npt.NDArray[np.float64]
_OPEN = 8  # the size that is assumed of open dimensions, where values are compared


class Forward:
    """The forward pass: its nodes in order, and where each of its values is computed and read."""

    def __init__(self, nodes: Sequence[ir.Node], gradients: Mapping[ir.Value, ir.Value]) -> None:
        self.nodes = nodes
        self.place = {value: at for at, node in enumerate(nodes) for value in node.outputs}
        self.first_reader: dict[ir.Value, int] = {}
        self.last_reader: dict[ir.Value, int] = {}
        for at, node in enumerate(nodes):
            for value in operands(node):
                self.first_reader.setdefault(value, at)
                self.last_reader[value] = at
        self._gradients = gradients
        self._moving: set[ir.Value] = set()
        for node in nodes:
            if any(v in self._moving or is_fed(v) for v in operands(node)):
                self._moving.update(node.outputs)

    @cached_property
    def _gates(self) -> list[ir.Value | None]:
        """The gate of the cut before each node: of the first value that no node before it reads."""
        gates: list[ir.Value | None] = []
        crossing: deque[ir.Value] = deque()
        for cut, node in enumerate(self.nodes):
            while crossing and self.first_reader[crossing[0]] < cut:
                crossing.popleft()
            gates.append(self._gradients[crossing[0]] if crossing else None)
            crossing += (v for v in node.outputs if v in self.first_reader and v in self._gradients)
        return gates

    def can_repeat(self, value: ir.Value) -> bool:
        """Whether a copy of its node gives the same, and it depends on what is fed.

        What depends on parameters alone is kept: it does not grow with the batch.
        """
        node = self.nodes[self.place[value]]
        return (
            value in self._moving
            and not node.domain
            and not of(node).is_random
            and not any(True for _ in subgraphs(node))
            and isinstance(value.type, ir.TensorType | None)
        )

    def values(self, first: int, end: int) -> Iterator[ir.Value]:
        """What the nodes from one to before another compute."""
        for node in self.nodes[first:end]:
            yield from node.outputs

    def before(self, first: int) -> set[ir.Value]:
        """What is computed before a node."""
        return {*self.values(0, first)}

    def crossing(self, cut: int) -> set[ir.Value]:
        """What is computed before a cut and read behind it."""
        return {v for v in self.values(0, cut) if self.last_reader.get(v, -1) >= cut}

    def gate(self, cut: int) -> ir.Value | None:
        """The gradient of what crosses a cut, which needs nothing of what lies before it."""
        return self._gates[cut]

    def parameter_gradients(self) -> FloatArray:
        """Bytes of the gradients that are there when the backward pass comes before each node.

        Zeros where what is fed has an open size: what they are beside it is not known.
        """
        total = np.zeros(len(self.nodes) + 1)
        if any(is_fed(v) and not _is_of_known_size(v) for v in self.first_reader):
            return total
        for value in self._gradients:
            if value.producer() is None and value not in self._moving:
                total[self.last_reader.get(value, 0)] += bytes_of(value)
        return np.cumsum(total[::-1])[::-1]

    def possible_cuts(self) -> list[int]:
        """Where a segment may end: the gradient there needs nothing of what lies before."""
        return [at for at, gate in enumerate(self._gates) if gate is not None]

    def bytes_by_node(self, values: Collection[ir.Value]) -> list[int]:
        """Bytes of the results of each node that are among some values."""
        return [sum(bytes_of(v) for v in node.outputs if v in values) for node in self.nodes]

    def crossing_bytes(self, beside: Collection[ir.Value]) -> list[int]:
        """Bytes of what crosses a cut at each node, without some values."""
        changes = [0] * (len(self.nodes) + 1)
        for value, at in self.place.items():
            if value in beside:
                continue
            last = self.last_reader.get(value, at)
            changes[min(at + 1, len(self.nodes))] += bytes_of(value)
            changes[min(last + 1, len(self.nodes))] -= bytes_of(value)
        return [*accumulate(changes)]


def is_fed(value: ir.Value) -> bool:
    """Whether a value is fed: neither computed nor a parameter."""
    return value.is_graph_input() and not value.is_initializer()


def _is_of_known_size(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(size, int) for size in value.shape)


def bytes_of(value: ir.Value | None) -> int:
    """As far as it is known, for a batch of some size."""
    if value is None or value.shape is None or value.dtype is None:
        return 0
    sizes = [size if isinstance(size, int) else _OPEN for size in value.shape]
    return int(math.prod(sizes) * value.dtype.itemsize)
