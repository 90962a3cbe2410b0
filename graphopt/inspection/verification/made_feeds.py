"""Feeds for a graph of which nothing is known but what it declares and computes."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt._words import shown, size as in_bytes
from graphopt.feeds import Feed
from graphopt.graphs import subgraphs
from graphopt.inspection.verification.runnable import MOST_BYTES, NotRunError
from graphopt.operators.labels import ClassLabels

BATCHES = (3, 5)
"""Sizes of the batch."""

_TRUE_SHARE = 0.7
# Operators whose result holds the integers that they get, at these inputs; None for all.
_PASSES: Mapping[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Cast", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Identity"), (0,)),
    **dict.fromkeys(("Flatten", "Slice", "Expand", "Split", "Tile", "Clip"), (0,)),
    **dict.fromkeys(("Concat", "Max", "Min"), None),
    "Where": (1, 2),
}
_LOSSES = ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")

KINDS = ("normal", "rows of zeros", "rows of ones", "between 0 and 1")
"""What feeds are tried: booleans, and integers that may be a mask, also with rows that are all
False and rows that are all True; floats also where a logarithm takes them."""

SIZES = (4, 7, 16, 32, 64, 128, 224)
"""Of open dimensions that are no batch: the first for which the graph runs."""


@dataclass(frozen=True)
class Maker:
    """Makes feeds.

    Attributes:
        feeds: What is fed.
        bounds: The integers below which those of a feed are, by name.
        masks: The feeds that are booleans, or integers of which nothing is known.
    """

    feeds: Sequence[Feed]
    bounds: Mapping[str, int]

    @classmethod
    def of(
        cls, feeds: Sequence[Feed], graph: ir.Graph, labels: Iterable[ClassLabels] = ()
    ) -> "Maker":
        """Look up in a graph what integers it takes."""
        wanted = {feed.name for feed in feeds if np.dtype(feed.dtype).kind in "iu"}
        bounds = {
            str(value.name): bound
            for value in graph.inputs
            if value.name in wanted and (bound := _bound(value)) is not None
        }
        bounds |= {label.name: label.classes for label in labels}
        return cls(feeds, bounds)

    @property
    def masks(self) -> list[str]:
        """The feeds that are booleans, or integers of which nothing is known."""
        return [
            feed.name
            for feed in self.feeds
            if feed.shape and np.dtype(feed.dtype).kind in "biu" and feed.name not in self.bounds
        ]

    def check(self, given: Mapping[str, Any]) -> None:
        """Refuse integers that are not in the range of what they look up.

        Raises:
            ValueError: There is one.
        """
        for name in self.bounds.keys() & given.keys():
            array, bound = given[name], self.bounds[name]
            wrong = (array < -bound) | (array >= bound)
            if wrong.any():
                raise ValueError(
                    f"feed '{name}': got {array[wrong].flat[0]}, expected numbers below {bound}"
                )

    def make(
        self, kind: str, size: int, random: np.random.Generator, batch: int = BATCHES[0]
    ) -> dict[str, Any]:
        """An array for each feed.

        Args:
            kind: One of `KINDS`.
            size: The size of open dimensions that are no batch.
            random: The generator.
            batch: The size of the batch.

        Raises:
            NotRunError: A feed may have any shape, or they take too much memory.
        """
        shapes = [self._shape(feed, size, batch) for feed in self.feeds]
        total = sum(
            math.prod(shape) * np.dtype(feed.dtype).itemsize
            for feed, shape in zip(self.feeds, shapes, strict=True)
        )
        if total > MOST_BYTES:
            raise NotRunError(
                f"what is fed takes {in_bytes(total)}, more than the {in_bytes(MOST_BYTES)} that "
                "are used for this"
            )
        return {
            feed.name: self._array(feed, kind, shape, random)
            for feed, shape in zip(self.feeds, shapes, strict=True)
        }

    def _array(
        self, feed: Feed, kind: str, shape: Sequence[int], random: np.random.Generator
    ) -> Any:
        dtype = np.dtype(feed.dtype)
        if feed.name == "group_mask":
            return np.ones(shape, np.bool_)
        if feed.name in self.bounds:
            return random.integers(0, max(self.bounds[feed.name], 1), shape).astype(dtype)
        if dtype.kind in "biu":
            return _mask(kind, shape, random).astype(dtype)
        if not shape:  # it may be a learning rate
            return np.asarray(random.uniform(0.001, 0.01), dtype)
        if kind == "between 0 and 1":
            return np.asarray(random.uniform(0.1, 0.9, shape)).astype(dtype)
        return random.standard_normal(shape).astype(dtype)

    def _shape(self, feed: Feed, size: int, batch: int) -> list[int]:
        if feed.shape is None:
            raise NotRunError(f"'{shown(feed.name)}' may have any shape")
        batches = {f.shape[0] for f in self.feeds if f.shape and not isinstance(f.shape[0], int)}
        return [
            dim
            if isinstance(dim, int)
            else batch
            if axis == 0 or (dim is not None and dim in batches)
            else size
            for axis, dim in enumerate(feed.shape)
        ]


def _mask(kind: str, shape: Sequence[int], random: np.random.Generator) -> Any:
    """Ones and zeros; "rows of ..." has one row that is all the same, in each matrix."""
    mask = np.asarray(random.random(shape) < _TRUE_SHARE)
    if shape and kind.startswith("rows"):
        rows = mask.reshape(-1, shape[-1])
        rows = mask.reshape(-1, *shape[-2:])[:, 0] if len(shape) > 2 else rows[:1]
        rows[...] = kind.endswith("ones")
    elif shape:
        mask[..., 0] = True
    return mask


def _bound(value: ir.Value) -> int | None:
    """The integers that may be fed are below this, as far as that is seen."""
    bounds: list[int] = []
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        for node, index in current.uses():
            if node.domain not in ("", "ai.onnx"):
                continue
            bounds += _bounds_at(node, index)
            bounds += _inside(node, current)
            passes = _PASSES.get(node.op_type, ())
            if passes is None or index in passes or _is_lookup(node, index):
                for output in node.outputs:
                    if output not in seen and _is_integer(output):
                        seen.add(output)
                        waiting.append(output)
    return min(bounds, default=None)


def _is_integer(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_integer()


def _is_lookup(node: ir.Node, index: int) -> bool:
    return node.op_type == "Gather" and index == 1


def _bounds_at(node: ir.Node, index: int) -> Iterator[int]:
    if node.op_type in ("Gather", "GatherElements", "ScatterElements") and index == 1:
        axis = node.attributes.get_int("axis", 0)
        yield from _size(node.inputs[0], axis)
    elif node.op_type in _LOSSES and index == 1:
        yield from _size(node.inputs[0], 1)
    elif node.op_type == "OneHot" and index == 0:
        depth = node.inputs[1]
        known = None if depth is None else ir.convenience.get_const_tensor(depth)
        if known is not None:
            yield int(known.numpy().reshape(-1)[0])


def _inside(node: ir.Node, value: ir.Value) -> Iterator[int]:
    """What the graphs in a node look up with a value of the graph around them."""
    for graph in subgraphs(node):
        for inner in graph:
            for index, read in enumerate(inner.inputs):
                if read is value:
                    yield from _bounds_at(inner, index)


def _size(value: ir.Value | None, axis: int) -> Iterator[int]:
    shape = None if value is None else value.shape
    if shape is not None and -len(shape) <= axis < len(shape):
        dim = shape[axis]
        if isinstance(dim, int):
            yield dim
