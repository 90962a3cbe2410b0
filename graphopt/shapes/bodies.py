"""What goes into the bodies of Scan, Loop and functions, and what comes out of them."""

from collections.abc import Sequence
from dataclasses import replace

from graphopt.shapes.node import Node
from graphopt.shapes.sizes import Dim, Element, axis_of
from graphopt.shapes.values import UNKNOWN, TensorInfo, either, tensor


def without_numbers(info: TensorInfo | None) -> TensorInfo:
    """What is known of a tensor whatever its elements are."""
    return UNKNOWN if info is None else replace(info, numbers=None)


def without_inner_symbols(
    found: Sequence[TensorInfo], inputs: Sequence[TensorInfo | None]
) -> list[TensorInfo]:
    """What a function gives, without symbols of its own: of another call, it is another size."""
    outer = {
        size for info in inputs if info for size in (*(info.shape or ()), *(info.numbers or ()))
    }

    def is_inner(size: Element) -> bool:
        return isinstance(size, str) and size not in outer

    results = []
    for info in found:
        shape, numbers = info.shape, info.numbers
        if shape is not None:
            shape = tuple(None if is_inner(size) else size for size in shape)
        if numbers is not None:
            numbers = tuple(None if is_inner(number) else number for number in numbers)
        results.append(replace(info, shape=shape, numbers=numbers))
    return results


def scan_inputs(node: Node) -> tuple[list[TensorInfo], list[TensorInfo], tuple[int, ...]]:
    """The states of a Scan, what it scans, and along which axes."""
    given = [info or UNKNOWN for info in node.inputs]
    count = node.attributes.integer("num_scan_inputs")
    if not 0 <= count <= len(given):
        raise ValueError(f"num_scan_inputs: got {count}, expected {len(given)} at most")
    states, scanned = given[: len(given) - count], given[len(given) - count :]
    return states, scanned, node.attributes.integers("scan_input_axes") or (0,) * count


def loop_outputs(node: Node, times: Dim, inner: Sequence[TensorInfo]) -> list[TensorInfo]:
    """What a Scan or Loop gives: the states, and what each round adds to a list.

    Args:
        node: The Scan or Loop.
        times: How often its body runs.
        inner: What is known of the outputs of the body.
    """
    if node.op_type == "Loop":
        condition, *inner = inner
        # Once it is false, no more rounds follow, or none at all.
        if (node.has(1) and node.integers(1) != (1,)) or condition.numbers != (1,):
            times = None
        states, axes = [info or UNKNOWN for info in node.inputs[2:]], None
    else:
        states, axes = scan_inputs(node)[0], node.attributes.integers("scan_output_axes")
    found = []
    for at, info in enumerate(inner):
        if at < len(states) and node.op_type == "Scan":  # whose states stay as large as they are
            found.append(_as_large(info, states[at]))
        elif at < len(states):  # after no round, a state is what it was
            found.append(either([states[at], info]))
        elif info.shape is None:
            found.append(TensorInfo(info.dtype))
        else:
            axis = axis_of(axes[at - len(states)], len(info.shape) + 1) if axes else 0
            found.append(tensor(info.dtype, [*info.shape[:axis], times, *info.shape[axis:]]))
    return found


def _as_large(info: TensorInfo, other: TensorInfo) -> TensorInfo:
    """A tensor of the shape of another, as far as that is known."""
    shape = info.shape
    if other.shape is not None and (shape is None or len(shape) == len(other.shape)):
        own = shape or (None,) * len(other.shape)
        pairs = zip(other.shape, own, strict=True)
        shape = tuple(mine if size is None else size for size, mine in pairs)
    return TensorInfo(info.dtype, shape)
