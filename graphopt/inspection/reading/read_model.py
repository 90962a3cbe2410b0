"""A model that has been read: what its nodes compute, and what its metadata says of that."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphopt.inspection.opening.sound_model import SoundModel, sound_model
from graphopt.inspection.reading.dataflow import Dataflow, Value
from graphopt.inspection.reading.merged import Merged, merged
from graphopt.inspection.reading.metadata import Described, described
from graphopt.inspection.reading.recovered import Recovered, recovered
from graphopt.inspection.reading.writes import Write, gradient_buffers, writes
from graphopt.soundness.errors import about


@dataclass(frozen=True)
class Reading:
    """A model that has been read.

    Attributes:
        file: The model, and what its file says beside it.
        flow: Its flow of values.
        carried: What it hands from step to step.
        buffers: Where ONNX Runtime adds gradients up: what is added for each parameter.
        described: What the metadata says of the optimizer; None if it does not, or is damaged.
        damage: What is wrong with the metadata.
        recovered: The optimizer that the nodes compute.
        merged: One view of both.
    """

    file: SoundModel
    flow: Dataflow
    carried: list[Write]
    buffers: Mapping[str, Value]
    described: Described | None
    damage: str | None
    recovered: Recovered | None
    merged: Merged

    @property
    def in_place(self) -> bool:
        """Whether nodes write over inputs; otherwise outputs have memory of their own."""
        return any(write.output is None for write in self.carried) or bool(self.buffers)

    @property
    def written(self) -> set[str]:
        """What is carried, parameters that the metadata says are in a bucket included."""
        carried = {write.input.name for write in self.carried}
        return carried | {name for name, bucket in self.merged.buckets.items() if bucket in carried}


def read(model: Any, steps: int | None = None) -> Reading:
    """Read a model of which nothing is known.

    Args:
        model: A path, a `TrainingGraph`, an ``onnx.ModelProto`` or an ``onnx_ir.Model``; one that
            was read stays as it is.
        steps: For how many steps learning rates are shown; None for as many as matter.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: ``model`` is no model.
        ValueError: It is no ONNX model, is damaged, or too large; the error names the file.
    """
    if isinstance(model, Reading):
        return model
    file = sound_model(model)
    with about(model):
        flow = Dataflow(file.model)
        carried = writes(file.model, file.training, flow)
        said, damage = _metadata(file)
        nodes = recovered(flow, carried, said)
        optimizer = merged(said, nodes, steps)
    return Reading(file, flow, carried, gradient_buffers(flow), said, damage, nodes, optimizer)


def _metadata(file: SoundModel) -> tuple[Described | None, str | None]:
    """What the metadata says, and what is wrong with it: the nodes are what runs."""
    try:
        return described(file.model), None
    except ValueError as error:
        return None, str(error)
