"""What a step hands to the next: values that are unknown, lost or overwritten."""

from collections.abc import Iterator

from graphopt.inspection.hazards.hazard import Finding, Subject, hazard
from graphopt.inspection.reading.dataflow import Value


@hazard("unknown-update", "warning")
def unknown_update(subject: Subject) -> Iterator[Finding]:
    """A value is carried by a formula that is not known."""
    if subject.carried:
        unknown = [name for name in subject.merged.not_updated if name in subject.written]
        if subject.recovered is not None and subject.recovered.trained:
            unknown += [
                state.input
                for state in subject.state
                if state.kind == "other" and state.dtype.startswith(("float", "bfloat"))
            ]
        yield Finding(
            list(dict.fromkeys(unknown)),
            "the formula of its new value is not known: what is shown of its update is what the "
            "metadata says, if anything",
            "compare it with what was built (graphopt verify)",
        )


@hazard("state-not-carried", "error")
def state_not_carried(subject: Subject) -> Iterator[Finding]:
    """What the update computes for a state does not feed it at the next step."""
    writes = {id(write.input): write for write in subject.carried}
    lost = []
    for bucket, update in subject.recovered.updates.items() if subject.recovered else ():
        for state, old, new in update.states():
            write = writes.get(id(old.source))
            if write is None or not _computes(write.new, new, old):
                lost.append(state.of(bucket))
    yield Finding(
        lost,
        "what the update computes for it does not feed it at the next step",
        "make its new value an output, and bind it in training_info.update_binding",
    )


def _computes(value: Value, wanted: Value, old: Value) -> bool:
    """Whether a value is another one, or a choice between that and the old one."""
    source = value.source
    if source is wanted.source:
        return True
    operation = source.operation
    if operation is None or operation.op_type != "Where":
        return False
    operands = {id(operand.source) for operand in operation.inputs[1:] if operand is not None}
    return operands == {id(wanted.source), id(old.source)}


@hazard("early-write", "error", "note")
def early_write(subject: Subject) -> Iterator[Finding]:
    """An input may be overwritten before all that read it have run.

    A node writes over it; or, a note, a runtime may let an output have the memory of its input.
    """
    if subject.in_place:
        yield Finding(
            subject.early,
            "a node writes over it, perhaps before all that read it have run: ONNX Runtime runs "
            "nodes in any order that their inputs allow",
            "let the node that writes depend on every node that reads",
        )
    else:
        yield Finding(
            subject.early,
            "its new value may be there before all that read the old one have run",
            "keep input and output in different memory, or let the output depend on every reader",
            "note",
        )
