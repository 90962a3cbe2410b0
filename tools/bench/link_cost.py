"""What sums over ranks cost, by the latency and the bandwidth of the links between them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from graphopt.distributed import MESSAGE

COUNTS = (2, 4, 8, 64, 1000)
"""Numbers of ranks that are told about."""


@dataclass(frozen=True)
class Link:
    """What connects two ranks.

    Attributes:
        latency: Seconds until the first byte is there.
        bandwidth: Bytes a second in each direction.
    """

    latency: float
    bandwidth: float

    @classmethod
    def fitted(cls, seconds: Mapping[int, float], ranks: int) -> "Link":
        """The link that explains the times of sums over so many ranks, small and large.

        Args:
            seconds: Of a sum, by its bytes.
            ranks: How many added up.

        Example:
            >>> link = Link(1e-5, 1e9)
            >>> times = {n: min(ring(link, n, 4), tree(link, n, 4)) for n in (8, 2**26)}
            >>> fitted = Link.fitted(times, 4)
            >>> round(fitted.latency * 1e6, 1), round(fitted.bandwidth / 1e9, 2)
            (10.0, 1.0)
        """
        small, large = min(seconds), max(seconds)
        latency = seconds[small] / math.ceil(math.log2(ranks))
        moved = 2 * (ranks - 1) / ranks * large
        rest = seconds[large] - 2 * (ranks - 1) * latency
        return cls(latency, moved / max(rest, 1e-9))


def ring(link: Link, size: float, ranks: int) -> float:
    """The seconds of a sum by a ring: each rank sends 2 (k - 1) / k of the bytes.

    Example:
        >>> round(ring(Link(1e-6, 1e9), 1e9, 2), 3)
        1.0
    """
    steps = 2 * (ranks - 1)
    return steps * (link.latency + size / ranks / link.bandwidth)


def tree(link: Link, size: float, ranks: int) -> float:
    """The seconds of a sum by doubling: in each of log2 k rounds, all bytes go both ways.

    Example:
        >>> round(tree(Link(1e-6, 1e9), 8, 1024) * 1e6, 1)
        10.1
    """
    return math.ceil(math.log2(ranks)) * (link.latency + size / link.bandwidth)


def cost(link: Link, size: float, messages: int, ranks: int) -> float:
    """The seconds of the sums of a step: two small ones, and the gradients in so many messages."""
    if ranks == 1:
        return 0.0
    part = size / messages
    large = messages * min(ring(link, part, ranks), tree(link, part, ranks))
    return large + 2 * tree(link, 64, ranks)


NOMINAL = {
    "1 Gb/s Ethernet": Link(50e-6, 0.125e9),
    "10 Gb/s Ethernet": Link(25e-6, 1.25e9),
    "100 Gb/s InfiniBand": Link(2e-6, 12.5e9),
}
"""Links as they are sold, with the latency that a sum by TCP, or by MPI, usually has."""

PARAMETERS = {"ResNet-18": 11_689_512, "BERT-base": 109_514_298}
"""Networks, with the number of their parameters."""


def table() -> list[str]:
    """The rows of the table of `docs/distributed.md`: milliseconds of sums in a step."""
    rows = []
    for name, count in PARAMETERS.items():
        size = 4 * count
        for link, said in NOMINAL.items():
            times = [1e3 * cost(said, size, max(1, size // MESSAGE), k) for k in COUNTS]
            cells = [name, f"{size / 1e6:.0f} MB", link, *(f"{time:,.0f}" for time in times)]
            rows.append(f"| {' | '.join(cells)} |")
    return rows
