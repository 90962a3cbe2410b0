"""Which groups are trained in a round, as a server and its clients are told."""

from collections.abc import Sequence

MASK = "group_mask"
"""The input of a graph that it is fed to."""


def flags_of(group_mask: Sequence[bool] | None, groups: int, whose: str) -> list[bool]:
    """A flag for each group; all of them where none are given.

    Args:
        group_mask: The flags.
        groups: How many groups there are.
        whose: They are, for the error.

    Raises:
        ValueError: There are more or fewer flags than groups.

    Example:
        >>> flags_of(None, 2, "the optimizer"), flags_of([1, 0], 2, "the optimizer")
        ([True, True], [True, False])
    """
    flags = [True] * groups if group_mask is None else [bool(flag) for flag in group_mask]
    if len(flags) != groups:
        raise ValueError(
            f"{MASK}: got {len(flags)} flags, expected one for each of the {groups} groups of "
            f"{whose}"
        )
    return flags
