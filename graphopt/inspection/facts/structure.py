"""What a file is made of: what is fed, what comes out, what is carried, and its layers."""

from collections.abc import Mapping
from dataclasses import dataclass

from graphopt.stage import Stage

Shape = tuple[int | str | None, ...]
"""Dimensions: a size, the name of an open one, or None where nothing is known of it."""


def static(shape: Shape | None) -> tuple[int, ...] | None:
    """The sizes of a shape; None where one is not known."""
    sizes = tuple(size for size in shape or () if isinstance(size, int))
    return sizes if shape is not None and len(sizes) == len(shape) else None


@dataclass(frozen=True)
class ModelFacts:
    """What kind of file it is.

    Attributes:
        name: The path as it was given, or the name of the graph.
        kind: "training graph" (forward, gradients and update), "update graph", "on-device training
            model" (the update is in it), "on-device gradient model" (it is not), "on-device
            optimizer model", or "model".
        producer: Who wrote it; "" if it does not say.
        nodes: Their number, those in branches, loops and functions not counted.
        bytes: The size of the model.
        precision: The floating-point types in which the forward pass computes, those of the most
            digits first.
    """

    name: str
    kind: str
    producer: str
    nodes: int
    bytes: int
    precision: tuple[str, ...] = ()


@dataclass(frozen=True)
class ValueFacts:
    """What a caller feeds or gets.

    Attributes:
        name: Its name.
        shape: Its dimensions; None where even their number is open.
        dtype: NumPy's name of its element type, or the type as text.
    """

    name: str
    shape: Shape | None
    dtype: str


@dataclass(frozen=True)
class StateFacts:
    """A value that one step hands to the next.

    Attributes:
        input: The graph's input.
        output: The output that feeds it at the next step; None if it is written in place.
        kind: "parameter", "mean_square", "mean_grad", "moment", "statistic" (of batch
            normalization), "average", "accumulated", "step", "loss scale", "counter", "seed" or
            "other".
        shape: Its shape in the graph.
        dtype: NumPy's name of its element type.
        bytes: Its size.
        overwritable: Whether it is proven that every node that reads it runs before its new value
            is written, so that one may have the memory of the other.
        initial: What it starts from: "values", a number that fills it, or None where the caller
            must give it.
    """

    input: str
    output: str | None
    kind: str
    shape: Shape
    dtype: str
    bytes: int | None
    overwritable: bool
    initial: float | str | None


@dataclass(frozen=True)
class BucketFacts:
    """Parameters that are updated together.

    Attributes:
        name: Its name.
        function: The ONNX function that updates it; None where the nodes stand in the graph.
        shape: In which it is updated.
        parameters: Their names, in order.
        nodes: The nodes of the graph that update it, as ONNX text, in order.
    """

    name: str
    function: str | None
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerFacts:
    """The nodes of one stage that belong to one forward node.

    Attributes:
        stage: The stage.
        name: The forward node, or the bucket in the update.
        op_types: The operators, each with how often it occurs.
        nodes: The number of nodes.
        parameters: The trained parameters that the forward node reads.
        after: Names of the layers of the same stage whose results it reads.
    """

    stage: Stage
    name: str
    op_types: Mapping[str, int]
    nodes: int
    parameters: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
