"""What a profile holds."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

PASSES = ("forward", "backward")
"""The stages whose time modules share."""


@dataclass(frozen=True)
class StageTime:
    """A part of a step.

    Attributes:
        name: "forward", "loss", "backward", "update"; "other" for nodes that cannot be told;
            "runtime" for what ONNX Runtime spends between nodes; "python" for what
            `Session.step` spends around the run; "profiler" for the profiler's own work, which is
            no part of the step.
        nodes: How many nodes run, those of the bodies of loops not counted.
        milliseconds: Per step.
        share: Of the step, 0 to 1.
    """

    name: str
    nodes: int
    milliseconds: float
    share: float


class _Moving:
    """Time that is spent on moving bytes."""

    bytes: int
    milliseconds: float

    @property
    def gigabytes_per_second(self) -> float | None:
        """The bytes over the time; None where no time was measured."""
        return self.bytes / self.milliseconds / 1e6 if self.milliseconds else None


@dataclass(frozen=True)
class BucketTime(_Moving):
    """The update of parameters that are updated together.

    Attributes:
        name: The name of the bucket, see `TrainingGraph.layout`.
        function: The ONNX function that updates it, for example "RMSPropMomentum".
        kernel: Whether the function runs as one fused kernel.
        group: The index of its parameter group.
        parameters: The names of its parameters.
        elements: How many elements they have.
        bytes: What the update has to move at least: parameters and states are read and written,
            gradients read.
        nodes: How many nodes run, those that collect the gradients included.
        milliseconds: Per step.
        share: Of the step, 0 to 1.
    """

    name: str
    function: str
    kernel: bool
    group: int
    parameters: tuple[str, ...]
    elements: int
    bytes: int
    nodes: int
    milliseconds: float
    share: float


@dataclass(frozen=True)
class GroupTime(_Moving):
    """The update of a parameter group: the sum of its buckets.

    Attributes:
        index: The index of the group.
        buckets: The names of its buckets.
        parameters: How many parameters it has.
        elements: How many elements they have.
        bytes: See `BucketTime`.
        nodes: How many nodes run.
        milliseconds: Per step.
        share: Of the step, 0 to 1.
    """

    index: int
    buckets: tuple[str, ...]
    parameters: int
    elements: int
    bytes: int
    nodes: int
    milliseconds: float
    share: float


@dataclass(frozen=True)
class NodeTime:
    """A node that runs.

    Attributes:
        name: The node of the training graph that it was made from, if there is one.
        op_type: Its operator as it runs, for example "FusedConv".
        stage: See `StageTime`.
        bucket: The bucket whose update it is part of, if of one.
        forward_node: For the backward pass, the forward node whose gradient it computes.
        module: The module of the network, with dots between it and those around it; "" for none.
        milliseconds: Per step; for a loop with its body.
        share: Of the step, 0 to 1.
    """

    name: str
    op_type: str
    stage: str
    bucket: str | None
    forward_node: str | None
    module: str
    milliseconds: float
    share: float


@dataclass(frozen=True)
class ModuleTime:
    """The forward and the backward pass of a module of the network, with all that is inside it.

    Modules are those of the page of `inspect`: by what PyTorch's exporter has noted, scopes in the
    names of nodes, or names of parameters.

    Attributes:
        name: Its name, with dots between it and those around it, such as "encoder.layer.0"; "" for
            what is in no module.
        nodes: How many nodes run.
        forward: Milliseconds of the forward pass, per step.
        backward: Milliseconds of the backward pass.
        milliseconds: Both.
        share: Of the step, 0 to 1.
    """

    name: str
    nodes: int
    forward: float
    backward: float
    milliseconds: float
    share: float


@dataclass(frozen=True)
class OperatorTime:
    """All nodes of one operator in a stage.

    Attributes:
        stage: See `StageTime`.
        op_type: The operator.
        nodes: How many nodes run.
        milliseconds: Per step.
        share: Of the step, 0 to 1.
    """

    stage: str
    op_type: str
    nodes: int
    milliseconds: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Where a training step goes.

    Times are of a typical step: of each node, and of what comes between and around the nodes, the
    median over the steps. Everything else is a sum of these, so that the parts add up to the whole.

    Attributes:
        onnxruntime: The version of ONNX Runtime.
        providers: The execution providers, in order of preference. Times are the CPU's: on a GPU
            a node takes as long as it takes to start it.
        threads: The number of threads that was asked for; None: ONNX Runtime's choice.
        kernels: The functions that ran as fused kernels.
        steps: How many steps were measured.
        warm_up: How many steps ran before.
        graph_nodes: The number of nodes of the graph. Of those ONNX Runtime makes the nodes that
            run: it leaves some out, joins some, and adds some.
        milliseconds: A typical step: the sum of `stages` but for the profiler's own work.
        median_milliseconds: The median of whole steps under the profiler. It is longer where
            other programs keep interrupting the steps.
        unprofiled_milliseconds: The median of as many steps without the profiler, whose work
            makes small nodes look slower than they are.
        stages: The parts of a step.
        groups: The update by parameter group.
        buckets: The update by bucket.
        shared: What buckets share: waits, schedules, the counter of steps and running statistics.
            Buckets and this add up to the update.
        modules: The modules of the network, each before those inside it, in the order in which
            they run; last what is in none. Those that are in no other, and this, add up to the
            forward and the backward pass.
        nodes: All nodes, the most expensive first.
    """

    onnxruntime: str
    providers: tuple[str, ...]
    threads: int | None
    kernels: tuple[str, ...]
    steps: int
    warm_up: int
    graph_nodes: int
    milliseconds: float
    median_milliseconds: float
    unprofiled_milliseconds: float
    stages: tuple[StageTime, ...]
    groups: tuple[GroupTime, ...]
    buckets: tuple[BucketTime, ...]
    shared: StageTime
    modules: tuple[ModuleTime, ...]
    nodes: tuple[NodeTime, ...]

    @property
    def operators(self) -> tuple[OperatorTime, ...]:
        """The nodes by stage and operator, the most expensive first."""
        by_operator: defaultdict[tuple[str, str], list[NodeTime]] = defaultdict(list)
        for node in self.nodes:
            by_operator[node.stage, node.op_type].append(node)
        operators = (
            OperatorTime(stage, op_type, *summed(nodes, self.milliseconds))
            for (stage, op_type), nodes in by_operator.items()
        )
        return tuple(sorted(operators, key=lambda operator: -operator.milliseconds))

    def to_dict(self) -> dict[str, Any]:
        """The profile for JSON; every key is the attribute of that name.

        ``format`` is 1, and a bucket and a group have ``gigabytes_per_second``, which may be null.
        """
        document = {"format": 1} | asdict(self)
        document["operators"] = [asdict(operator) for operator in self.operators]
        for key in ("groups", "buckets"):
            document[key] = [
                asdict(part) | {"gigabytes_per_second": part.gigabytes_per_second}
                for part in getattr(self, key)
            ]
        return document

    def __repr__(self) -> str:
        """The step and its stages."""
        parts = ", ".join(f"{stage.name} {stage.milliseconds:.3f}" for stage in self.stages)
        return f"Profile({self.milliseconds:.3f} ms a step: {parts})"


def summed(nodes: Sequence[NodeTime], step: float) -> tuple[int, float, float]:
    """How many nodes, their milliseconds, and their share of a step of so many."""
    taken = sum(node.milliseconds for node in nodes)
    return len(nodes), taken, taken / step
