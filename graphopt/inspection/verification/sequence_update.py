"""The update of an on-device optimizer model, cut out and run by any ONNX Runtime.

ONNX Runtime's training API feeds such a model with sequences, and it writes over their tensors by
``SGDOptimizerV2``, an operator of that API. What that takes off is computed by operators that every
ONNX Runtime has, of sequences that can be fed; so they are fed, and it is taken off here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.inspection.facts import ParameterFacts
from graphopt.inspection.reading.dataflow import Dataflow, Value
from graphopt.inspection.reading.members import joined_gradients
from graphopt.inspection.reading.pattern import Any, Number, Op, match
from graphopt.inspection.reading.read_model import Reading
from graphopt.inspection.reading.recovered import Recovered, updates_of_sequences
from graphopt.inspection.reading.update import Update, gradient_of
from graphopt.inspection.verification.batches import PARAMETER, Array, Updated
from graphopt.inspection.verification.runnable import Given, NotRunError, RunnableUpdate, State
from graphopt.on_device.tensor_names import OPTIMIZER_INPUTS
from graphopt.states import MEAN_SQUARE

_WRITES = "com.microsoft::SGDOptimizerV2"
_RATE, _STEP, _PARAMETERS, _GRADIENTS, *_ = OPTIMIZER_INPUTS
_RATE_IF_UNKNOWN = 0.01
# Where the metadata does not say any.
_SHAPES = ((3, 4), (5, 1), (2, 3, 2), (7, 3))
_MOST_OPERATIONS = 10_000


@dataclass(frozen=True)
class _Write:
    """A sequence, and what is taken off its tensors.

    Attributes:
        sequence: The input.
        deltas: The value that holds one tensor for each.
        rate: What they are multiplied by.
    """

    sequence: str
    deltas: Value
    rate: float


class SequenceUpdate(RunnableUpdate):
    """The update of an optimizer model, which has no mask."""

    twice_rounded = True

    def __init__(self, reading: Reading, nodes: Recovered, providers: Sequence[str]) -> None:
        """Prepare it.

        Args:
            reading: The model.
            nodes: What was recognised in it.
            providers: The execution providers.

        Raises:
            NotRunError: It cannot be run.
        """
        model, flow, said = reading.file.model, reading.flow, reading.described
        described = () if said is None else said.parameters
        self.step = nodes.step
        self._update = _first_update(model, flow, alike=not described)
        kinds = _kinds(self._update)
        self._sequences = {PARAMETER: _PARAMETERS} | kinds
        self._writes = {write.sequence: write for write in _writes(flow)}
        for kind, sequence in self._sequences.items():
            if sequence not in self._writes:
                raise NotRunError(
                    f"nothing writes '{sequence}', which holds the {kind or 'weights'}"
                )
        rate = _first_rate(described)
        self.fed = {_RATE: rate}
        self.parameters = [
            Updated(
                **vars(facts) | {"dtype": "float32", "states": tuple(kinds)},
                gradient_dtype="float32",
            )
            for facts in described or self._chosen(rate)
        ]
        known = None if said is None else said.optimizer.initial_mean_square
        self._start = _initial(self._update) if known is None else known
        inputs = {*self._sequences.values(), _GRADIENTS, _RATE, _STEP}
        fed = {str(v.name): v for v in model.graph.inputs if v.name in inputs}
        wanted = [write.deltas.name for write in self._writes.values()]
        self._cut_out(model, fed, wanted, providers)

    def starts(self, number: int) -> Mapping[str, float]:
        """The mean square before the first step: the sequence holds zeros, the model adds it."""
        return {} if number else {MEAN_SQUARE.name: float(np.float32(self._start))}

    def run(self, state: State, gradients: Mapping[str, Array], given: Given) -> State:
        """See the class."""
        number = given.number
        names = [parameter.name for parameter in self.parameters]
        old = {kind: [state[kind][name] for name in names] for kind in self._sequences}
        if number == 0:
            old |= {kind: [np.zeros_like(array) for array in old[kind]] for kind in self.starts(0)}
        feeds: dict[str, object] = {
            sequence: old[kind] for kind, sequence in self._sequences.items()
        }
        feeds[_GRADIENTS] = [gradients[name] for name in names]
        feeds[_RATE] = np.full(1, self.fed[_RATE], np.float32)
        feeds[_STEP] = np.full(1, number + 1, np.int64)
        deltas = self._computed(feeds, number)
        after: dict[str, dict[str, Array]] = {}
        for kind, sequence in self._sequences.items():
            write = self._writes[sequence]
            parts = deltas[write.deltas.name]
            if [part.shape for part in parts] != [array.shape for array in old[kind]]:
                raise NotRunError(f"what is taken off '{sequence}' has other shapes than that")
            rate = np.float32(write.rate)
            with np.errstate(all="ignore"):
                new = [a - rate * d for a, d in zip(old[kind], parts, strict=True)]
            after[kind] = dict(zip(names, new, strict=True))
        return after

    def _chosen(self, rate: float) -> Iterator[ParameterFacts]:
        """Parameters of some shapes."""
        update = self._update
        gradients = joined_gradients(update)
        if not gradients:
            raise NotRunError("its gradient was not recognised")
        gradient = gradient_of(gradients[0])
        factor = update.value("k") or gradient.factor or _factor(update)
        number = 0.0 if factor is None else factor.source.number
        if number is None:
            raise NotRunError("its weight decay is a schedule, and no metadata says which")
        scale = 1.0 if update.has("decoupled") else update.number("loss_scale", 1.0)
        made = self._writes[_PARAMETERS].deltas.operation
        for index in range(0 if made is None else len(made.inputs)):
            yield ParameterFacts(
                name=f"{_PARAMETERS}[{index}]",
                shape=_SHAPES[index % len(_SHAPES)],
                dtype="float32",
                learning_rate=rate,
                weight_decay=number / scale,
                grad_centralization=gradient.centralized,
            )


def _factor(update: Update) -> Value | None:
    """That of weight decay which is added to the gradients of all tensors."""
    gradient = update.value("gradient")
    pattern = Op("Add", Any("raw"), Op("Mul", Any("w"), Any("k")))
    found = None if gradient is None else match(pattern, gradient)
    if found is None:
        return None
    return found.value("k") if _sequences_of(found.value("w")) == {_PARAMETERS} else None


def _first_rate(described: Sequence[ParameterFacts]) -> float:
    """What is fed as learning rate: that of the first group."""
    rates = [facts.learning_rate for facts in described if facts.group == 0] or [_RATE_IF_UNKNOWN]
    if not isinstance(rates[0], int | float):
        raise NotRunError("the learning rate of its first group is no number")
    return float(rates[0])


def _first_update(model: ir.Model, flow: Dataflow, *, alike: bool) -> Update:
    """The update of the first tensors; those of all, if they are to be alike."""
    updates, nodes = updates_of_sequences(flow), tuple(model.graph)
    made = [update.new.operation for update in updates]
    if alike and any(o is not None and nodes[o.node].op_type == "If" for o in made):
        raise NotRunError(
            "it tells parameters apart by their shapes, and no metadata says which shapes there are"
        )
    return updates[0]


def _initial(update: Update) -> float:
    """What is added to the mean square in the first step."""
    old = update.value("s")
    pattern = Op("Add", Any("held"), Op("Mul", Any("first"), Number("start")))
    found = None if old is None else match(pattern, old)
    return 0.0 if found is None else found.number("start")


def _writes(flow: Dataflow) -> Iterator[_Write]:
    for operation in flow.operations:
        if operation.op_type != _WRITES or len(operation.inputs) < 3:
            continue
        rate, sequence, deltas = operation.inputs[:3]
        if rate is None or sequence is None or deltas is None or rate.number is None:
            continue
        if sequence.is_input:
            yield _Write(sequence.name, deltas, rate.number)


def _kinds(update: Update) -> dict[str, str]:
    """The sequence that holds each kind of state."""
    found = {}
    for state, old, _ in update.states():
        sequences = _sequences_of(old)
        if len(sequences) != 1:
            raise NotRunError(f"the sequence that holds the {state.name} was not recognised")
        found[state.name] = sequences.pop()
    return found


def _sequences_of(value: Value) -> set[str]:
    """The sequences that a value is made of."""
    found: set[str] = set()
    seen: set[int] = set()
    waiting = [value]
    while waiting and len(seen) < _MOST_OPERATIONS:
        operation = waiting.pop().operation
        if operation is None or id(operation) in seen:
            continue
        seen.add(id(operation))
        operands = [operand for operand in operation.inputs if operand is not None]
        if operation.op_type == "SequenceAt" and operands and operands[0].is_input:
            found.add(operands[0].name)
        elif operation.op_type in {"Add", "Concat", "Identity", "Reshape"}:
            # What a Reshape makes of it says only the shape.
            waiting += operands[:1] if operation.op_type == "Reshape" else operands
    return found
