"""Arithmetic with sizes, of which some are open: a symbol of their own, or unknown."""

from collections.abc import Iterable, Sequence

Dim = int | str | None
"""A size, the symbol of one that is open, or nothing."""
Dims = tuple[Dim, ...]
Number = int | float
Element = Number | str | None
"""An element that is known, the symbol of the size that it is, or nothing."""


def known(size: Element) -> int | None:
    """A size that is a number."""
    return size if isinstance(size, int) else None


def product(*sizes: Dim) -> Dim:
    """The product of sizes; of a symbol and ones it is the symbol, of more it is unknown."""
    count, symbols = 1, []
    for size in sizes:
        if isinstance(size, int):
            count *= size
        else:
            symbols.append(size)
    if not symbols:
        return count
    return symbols[0] if len(symbols) == 1 and count == 1 else None


def plus(size: Dim, more: Dim) -> Dim:
    """The sum of two sizes; of a symbol and 0 it is the symbol."""
    if isinstance(size, int) and isinstance(more, int):
        return size + more
    return size if more == 0 else more if size == 0 else None


def whole(sizes: Iterable[Dim]) -> tuple[int, ...] | None:
    """Sizes all of which are numbers; None if one is not."""
    found = tuple(size for size in sizes)
    return found if all(isinstance(size, int) for size in found) else None  # type: ignore[return-value]


def needed(numbers: tuple[int, ...] | None) -> tuple[int, ...]:
    """Numbers that are known; IndexError otherwise, which makes the result unknown."""
    if numbers is None:
        raise IndexError("the elements are not known")
    return numbers


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front.

    Raises:
        IndexError: There is no such axis.
    """
    if not -rank <= axis < rank:
        raise IndexError(f"axis: got {axis}, expected one of {rank}")
    return axis % rank


def broadcast(*shapes: Dims | None) -> Dims | None:
    """The shape of an elementwise operation.

    Raises:
        ValueError: They do not fit.
    """
    if None in shapes:
        return None
    given = [shape for shape in shapes if shape is not None]
    rank = max(map(len, given), default=0)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in given]
    return tuple(broadcast_size(sizes) for sizes in zip(*padded, strict=True))


def broadcast_size(sizes: Sequence[Dim]) -> Dim:
    """The size to which these are broadcast.

    Raises:
        ValueError: They do not fit.
    """
    larger = set(sizes) - {1}
    fixed = {size for size in larger if isinstance(size, int)}
    if len(fixed) > 1:
        raise ValueError(f"sizes {sorted(fixed)} do not fit each other")
    if fixed:
        return fixed.pop()
    return larger.pop() if len(larger) == 1 else None if larger else 1
