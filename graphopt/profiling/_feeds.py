"""Random feeds for a graph."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from graphopt.feeds import Feed
from graphopt.graph import TrainingGraph
from graphopt.samples import DEFAULT_BATCH_SIZE


def random_feeds(
    graph: TrainingGraph, batch_size: int | None, dims: Mapping[str, int]
) -> dict[str, Any]:
    """An array for each input of a step.

    Args:
        graph: What is fed.
        batch_size: The open first dimension.
        dims: The sizes of other open dimensions, by name.

    Raises:
        ValueError: A size is missing, or is for no open dimension.
    """
    left_out = {"group_mask"} if graph.group_mask else set()  # all groups are updated
    feeds = [feed for feed in graph.inputs if feed.name not in left_out]
    sizes = _sizes(feeds, batch_size, dims)
    bounds = _bounds(graph)
    rng = np.random.default_rng(0)
    return {
        feed.name: _random(feed, _shape(feed, sizes), bounds.get(feed.name, 1), rng)
        for feed in feeds
    }


def _sizes(
    feeds: Iterable[Feed], batch_size: int | None, dims: Mapping[str, int]
) -> dict[str | None, int]:
    """The sizes of open dimensions by name; an unnamed first one is under None."""
    shapes = [feed.shape for feed in feeds if feed.shape]
    first = [shape[0] for shape in shapes if not isinstance(shape[0], int)]
    named = {dim for shape in shapes for dim in shape if isinstance(dim, str)}
    if batch_size is not None and not first:
        raise ValueError(
            f"batch_size: got {batch_size}, but no feed has an open first dimension; leave it out"
        )
    for name in dims:
        if name not in named:
            listed = ", ".join(f"'{dim}'" for dim in sorted(named)) or "none"
            raise ValueError(f"dims: '{name}' is not an open dimension of a feed; open: {listed}")
    return dict.fromkeys(first, batch_size or DEFAULT_BATCH_SIZE) | dict(dims)


def _shape(feed: Feed, sizes: Mapping[str | None, int]) -> list[int]:
    if feed.shape is None:
        raise ValueError(f"feed '{feed.name}' may have any shape, so none can be made up; give it")
    return [
        dim if isinstance(dim, int) else _size(feed, axis, dim, sizes)
        for axis, dim in enumerate(feed.shape)
    ]


def _size(feed: Feed, axis: int, dim: str | None, sizes: Mapping[str | None, int]) -> int:
    """The size of an open dimension."""
    if dim is None and axis > 0:
        raise ValueError(
            f"feed '{feed.name}': its dimension {axis} is open and has no name, so it cannot "
            "be made up; give the feed"
        )
    if dim not in sizes:
        raise ValueError(
            f"feed '{feed.name}': its dimension '{dim}' is open; say how large it is "
            f"(dims={{'{dim}': ...}}, on the command line --dim {dim}=SIZE), or give the feed"
        )
    return sizes[dim]


def _bounds(graph: TrainingGraph) -> dict[str, int]:
    """How many classes or rows an integer feed chooses from, where that is known."""
    model = graph.lean.graph
    shapes = {tensor.name: list(tensor.dims) for tensor in model.initializer}
    for value in (*model.input, *model.value_info):
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    bounds: dict[str, int] = {}
    for node in model.node:
        if node.op_type == "Gather" and (rows := shapes.get(node.input[0])):
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            name = node.input[1]
            bounds[name] = max(1, min(bounds.get(name, rows[axis]), rows[axis]))
    return bounds | {labels.name: labels.classes for labels in graph.class_labels}


def _random(feed: Feed, shape: list[int], bound: int, rng: np.random.Generator) -> Any:
    dtype = np.dtype(feed.dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        return np.asarray(rng.integers(0, bound, shape), dtype)
    scale = 1.0 if shape else 1e-3  # a scalar may be a learning rate
    return np.asarray(rng.random(shape) * scale, dtype)
