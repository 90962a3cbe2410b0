"""How many samples a step takes."""

from collections.abc import Iterable

from graphopt.feeds import Feed

DEFAULT_BATCH_SIZE = 32


def fixed_size(inputs: Iterable[Feed]) -> int | None:
    """The batch size that is part of the graph, if one is."""
    sizes = (feed.shape[0] for feed in inputs if feed.shape)
    return next((size for size in sizes if isinstance(size, int)), None)


def size_of_batch(inputs: Iterable[Feed], wanted: int | None) -> int:
    """What the graph fixes, what is wanted, or `DEFAULT_BATCH_SIZE`.

    Raises:
        ValueError: What is wanted is not what the graph fixes.
    """
    fixed = fixed_size(inputs)
    if fixed is None:
        return wanted or DEFAULT_BATCH_SIZE
    if wanted not in (None, fixed):
        raise ValueError(f"--batch-size {wanted}: the batch size of the graph is fixed to {fixed}")
    return fixed
