"""Parameters that are not updated as they should be."""

from collections.abc import Iterator

from graphopt.inspection.hazards.hazard import Finding, Subject, hazard
from graphopt.inspection.reading.dataflow import Dataflow
from graphopt.operators import of


@hazard("mixed-updates", "error")
def mixed_updates(subject: Subject) -> Iterator[Finding]:
    """Parameters are updated by different formulas or hyperparameters."""
    if subject.recovered is not None:
        yield Finding(
            subject.recovered.odd,
            "it is updated with other hyperparameters than the first, or by another formula; "
            "what is shown are those of the first",
            "build the graph again",
        )


@hazard("no-gradient", "error")
def no_gradient(subject: Subject) -> Iterator[Finding]:
    """Nothing updates a trained parameter, or its gradient is a constant."""
    if subject.carried or subject.buffers:
        known = subject.written | subject.buffers.keys()
        yield Finding(
            [name for name in subject.merged.not_updated if name not in known],
            "the metadata lists it as trained, and no node updates it",
            "build the graph again, or leave it out of the optimizer",
        )
    if subject.recovered is not None:
        moving = _dependent(subject.flow)
        yield Finding(
            [
                trained.facts.name
                for trained in subject.recovered.trained
                if trained.gradient is None or id(trained.gradient) not in moving
            ],
            "its gradient is a constant: it depends on nothing that is fed or trained",
            "let the loss depend on it, or leave it out of the optimizer",
        )


def _dependent(flow: Dataflow) -> set[int]:
    """The values that depend on the values of some input."""
    found = {id(value) for value in flow.values.values() if value.is_input}
    for operation in flow.operations:
        if of(operation.op_type).elements != 0 and any(
            operand is not None and (operand.is_input or id(operand) in found)
            for operand in operation.inputs
        ):
            found.update(id(value) for value in operation.outputs)
    return found


@hazard("no-group", "warning")
def no_group(subject: Subject) -> Iterator[Finding]:
    """A parameter is updated, but in no group."""
    yield Finding(
        subject.merged.in_no_group,
        "it is updated, but in no group of the metadata: no one sets its learning rate",
        "put it into a group, and build the graph again",
    )


@hazard("not-trained", "note")
def not_trained(subject: Subject) -> Iterator[Finding]:
    """A weight is not given to the optimizer."""
    if subject.recovered is not None and subject.recovered.trained:
        yield Finding(
            subject.frozen,
            "the optimizer does not have it, so it stays as it is",
            "if it is to be trained, give it to the optimizer",
        )
