"""What a step costs, and what runs it."""

from collections.abc import Mapping
from dataclasses import dataclass

from graphopt.stage import Stage


@dataclass(frozen=True)
class StageFacts:
    """What a stage of a step does.

    Attributes:
        stage: Which one.
        nodes: The number of nodes of the graph; those of all stages are the nodes of the model.
        flops: Floating-point operations, a multiplication with an addition counted as two. None
            where nothing of it is known.
        bytes: What its operators read and write, as if nothing stayed in caches.
        unknown: How many nodes could not be counted, because a shape is not known; those inside
            included.
        inside: The number of nodes in the functions, branches and loops that these call, counted
            once for each call.
    """

    stage: Stage
    nodes: int
    flops: int | None
    bytes: int | None
    unknown: int = 0
    inside: int = 0


@dataclass(frozen=True)
class MemoryFacts:
    """Bytes that a step needs.

    Attributes:
        parameters: Those that are trained.
        frozen: Initializers.
        gradients: The gradient of each trained parameter.
        states: The states of the optimizer.
        activations: The most that forward and backward pass hold at once, beside the other four:
            nodes run in the order of the file, and each tensor is held until its last reader. None
            where shapes are not known.
        sizes: The open dimensions, and the size that was assumed for each.
    """

    parameters: int
    frozen: int
    gradients: int
    states: int
    activations: int | None
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class TargetFacts:
    """Whether something runs the graph.

    Attributes:
        name: What.
        runs: Whether it does.
        reasons: Why not, or what to know.
    """

    name: str
    runs: bool
    reasons: tuple[str, ...] = ()
