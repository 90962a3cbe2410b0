"""What the backward pass computes again at hardly any cost, from one value that it keeps anyway."""

from collections import defaultdict
from collections.abc import Collection, Iterable

import onnx_ir as ir

from graphopt.gradients._forward import Forward, bytes_of
from graphopt.operators import of

_LEAST = 2**18  # bytes; less is not worth the nodes that let it wait
_SMALL = 32  # times as many bytes has a value as what it is scaled or moved by
_LONGEST = 4  # nodes that compute a value again


def from_one(
    forward: Forward, read: Iterable[ir.Value], fixed: Collection[ir.Value]
) -> dict[ir.Value, list[ir.Value]]:
    """What quick elementwise operators compute of one value, which is kept for other readers.

    Of x sigmoid(x), for example, the backward pass reads both factors; the second follows from
    the first. In float32 such an operator takes about as long as writing its result.

    Args:
        forward: The forward pass.
        read: What the backward pass reads, in the order of the forward pass.
        fixed: What is kept whether it is read or not.

    Returns:
        By what is kept, what is computed of it again, in order, with what lies between.
    """
    kept = {*fixed, *read}
    found: defaultdict[ir.Value, dict[ir.Value, None]] = defaultdict(dict)
    for value in read:
        if value in fixed or bytes_of(value) < _LEAST:
            continue
        source, chain = _chain(forward, value, kept)
        if source is not None:
            kept.discard(value)
            found[source].update(dict.fromkeys(reversed(chain)))
    return {source: list(values) for source, values in found.items()}


def _chain(
    forward: Forward, value: ir.Value, kept: set[ir.Value]
) -> tuple[ir.Value | None, list[ir.Value]]:
    """The one large value that is kept of which a value is computed, and what lies between.

    None where there are several, or the operators are not quick.
    """
    chain: list[ir.Value] = []
    current = value
    while len(chain) < _LONGEST:
        node = current.producer()
        if node is None or not _is_quick(node):
            break
        chain.append(current)
        computed = {v for v in node.inputs if v is not None and v in forward.place}
        large = [v for v in computed if not 0 < bytes_of(v) <= bytes_of(value) // _SMALL]
        if len(large) != 1 or not kept.issuperset(computed.difference(large)):
            break
        if large[0] in kept:
            return large[0], chain
        current = large[0]
    return None, chain


def _is_quick(node: ir.Node) -> bool:
    return of(node).is_quick and node.outputs[0].dtype == ir.DataType.FLOAT
