"""What the rounds of a backward pass read of those of the forward pass.

A value that costs little is computed again, from what the rounds get anyway. All else is reported,
as a list with a row of each round.
"""

from collections.abc import Collection

import onnx_ir as ir

from graphopt.graphs import operands
from graphopt.operators._rounds import Rounds
from graphopt.operators.record import Moves, of

_CHEAP = frozenset(
    (
        *("Abs", "Add", "And", "Cast", "CastLike", "Clip", "Equal", "Greater", "GreaterOrEqual"),
        *("Identity", "Less", "LessOrEqual", "Max", "Min", "Mul", "Neg", "Not", "Or", "Relu"),
        *("Sub", "Where"),
    )
)


def rows_to_keep(rounds: Rounds, results: Collection[ir.Value]) -> list[ir.Value]:
    """The values of the forward pass that are reported, as the copy calls them.

    The copy has the nodes of both passes, and none that the results do not need.
    """
    read = {value for value in rounds.original if value in results or _is_read(rounds, value)}
    wanted = {_source(rounds, value) for value in read}
    there = {*rounds.copy.inputs}
    same: set[ir.Value] = set()  # in all rounds
    kept = []
    for node in rounds.copy:
        if node not in rounds.forward:
            continue
        read_here = [value for value in operands(node) if value.graph is rounds.copy]
        if same.issuperset(read_here):
            same.update(node.outputs)
            continue
        is_there = _is_cheap(node) and all(v in there or v in same for v in read_here)
        for value in node.outputs:
            if not is_there and value in wanted and can_be_reported(rounds, value):
                kept.append(value)
                there.add(value)
            elif is_there:
                there.add(value)
    return kept


def _is_read(rounds: Rounds, value: ir.Value) -> bool:
    """Whether the backward pass reads a value of the forward pass."""
    return any(use.node not in rounds.forward for use in value.uses())


def _source(rounds: Rounds, value: ir.Value) -> ir.Value:
    """What a value is a part of, or the same in another shape."""
    while value in rounds.original:
        node = value.producer()
        assert node is not None
        is_same = of(node).moves in (Moves.SHAPE, Moves.ORDER) or node.op_type == "Split"
        if not is_same or node.domain or node.inputs[0] is None:
            break
        value = node.inputs[0]
    return value


def _is_cheap(node: ir.Node) -> bool:
    moves = of(node).moves not in (Moves.NOT, Moves.AT_TIMES)
    return not node.domain and (node.op_type in _CHEAP or moves)


def can_be_reported(rounds: Rounds, value: ir.Value) -> bool:
    """Whether it is a value of the body, of which a list can be made."""
    is_tensor = isinstance(value.type, ir.TensorType) and value.shape is not None
    return value in rounds.original and is_tensor
