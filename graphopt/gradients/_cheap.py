"""What the backward pass computes again at little cost, from what it keeps."""

from collections import defaultdict
from collections.abc import Collection, Iterable

import onnx_ir as ir

from graphopt.gradients._forward import Forward, bytes_of
from graphopt.operators import Moves, of

_SMALL = 32  # times as many bytes has what is computed again than what is kept for that alone
_LONGEST = 16  # nodes that compute a value again


def kept_for(
    forward: Forward, read: Iterable[ir.Value], kept: Collection[ir.Value]
) -> set[ir.Value]:
    """What to keep, so that cheap operators compute the rest of what the backward pass reads.

    Where they compute several values from one that it does not read, that one is kept in their
    place: of a normalization and an activation behind a convolution, only what that gave.

    Args:
        forward: The forward pass.
        read: What the backward pass reads, in the order of the forward pass.
        kept: What is kept anyway.
    """
    every = [value for value in read if value not in kept]
    sources = {source for value in every for source in _sources(forward, value, kept)}
    chosen = {*kept, *every, *sources}
    for value in reversed(every):
        if _operands(forward, value, chosen) is not None:
            chosen.discard(value)
    _leave_out_idle(forward, every, sources.difference(every, kept), chosen)
    for value in every:
        if value not in chosen:
            chosen |= _operands(forward, value, chosen) or set()
    return chosen


def _leave_out_idle(
    forward: Forward,
    every: Iterable[ir.Value],
    sources: Iterable[ir.Value],
    chosen: set[ir.Value],
) -> None:
    """Take sources out of what is chosen that save no bytes of what is computed from them."""
    computed = defaultdict(list)
    for value in every:
        if value not in chosen:
            for operand in _operands(forward, value, chosen) or ():
                computed[operand].append(value)
    for source in sorted(sources, key=forward.place.__getitem__):
        chosen.discard(source)
        instead = []
        for value in computed[source]:
            if value not in chosen and _operands(forward, value, chosen) is None:
                chosen.add(value)
                instead.append(value)
        if sum(map(bytes_of, instead)) > bytes_of(source):
            chosen.difference_update(instead)
            chosen.add(source)


def _sources(forward: Forward, value: ir.Value, kept: Collection[ir.Value]) -> set[ir.Value]:
    """What other operators gave, of which cheap ones compute a value; itself, if they do not."""
    operands = _operands(forward, value, kept, stop=True)
    return {value} if operands is None else operands


def _operands(
    forward: Forward, value: ir.Value, kept: Collection[ir.Value], stop: bool = False
) -> set[ir.Value] | None:
    """What is kept, or small, of which cheap operators compute a value; None if they do not.

    Args:
        forward: The forward pass.
        value: A value of it.
        kept: What is kept; but for the value.
        stop: Whether to take what other operators gave as if it were kept.
    """
    small = bytes_of(value) // _SMALL
    found: set[ir.Value] = set()
    waiting, nodes = [value], set[ir.Node]()
    while waiting:
        current = waiting.pop()
        node = current.producer()
        if node is None or node in nodes:
            continue
        if not _is_cheap(node) or len(nodes) == _LONGEST:
            if not stop or current is value:
                return None
            found.add(current)
            continue
        nodes.add(node)
        for operand in node.inputs:
            if operand is None or operand not in forward.place:
                continue
            if operand in kept or 0 < bytes_of(operand) <= small:
                found.add(operand)
            else:
                waiting.append(operand)
    return found


def _is_cheap(node: ir.Node) -> bool:
    operator = of(node)
    is_by_channel = operator.is_by_channel and len(node.outputs) == 1
    return operator.is_elementwise or is_by_channel or operator.moves is not Moves.NOT
