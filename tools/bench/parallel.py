"""Steps of several ranks beside PyTorch's: ``python -m tools.bench.parallel --help``.

Each network is trained with 1, 2 and 4 ranks of one thread, by graphopt with MPI and with gloo, and
by PyTorch's DistributedDataParallel with gloo, all with the same parts of the same batch. The links
between the ranks are measured too, and what they say for more ranks is computed by `cost`. Records
go to ``bench/parallel.json``. It needs what ``make test`` and ``make field`` install.
"""

import argparse
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.distributed import MESSAGE
from tools.launchers import launcher

_ROOT = Path(__file__).parents[2]
_RESULTS = _ROOT / "bench" / "parallel.json"
_OWN, _FIELD = ".venv", ".venv-field"
_COUNTS = (2, 4, 8, 64, 1000)


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
            times = [1e3 * cost(said, size, max(1, size // MESSAGE), k) for k in _COUNTS]
            cells = [name, f"{size / 1e6:.0f} MB", link, *(f"{time:,.0f}" for time in times)]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def by_ranks(
    engine: str, ranks: int, role: str, *arguments: Any, environment: str = _OWN
) -> dict[str, Any]:
    """What rank 0 of so many answers.

    Raises:
        RuntimeError: A rank failed; the message has what it said.
    """
    start = launcher(engine, ranks, _ROOT / environment / "bin" / "python")
    command = [*start, "-m", "tools.bench.parallel_roles", role, engine, *map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(
        command, cwd=_ROOT, env=variables, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _prepare(network: str, folder: Path) -> None:
    """Export a network, and build its training graph."""
    code = (
        "import sys, pathlib; from tools.bench import footprint_roles as r;"
        f"r.export({network!r}, pathlib.Path({str(folder)!r}), '')"
    )
    variables = {**os.environ, "PYTHONPATH": str(_ROOT)}
    python = str(_ROOT / _FIELD / "bin" / "python")
    subprocess.run([python, "-c", code], cwd=_ROOT, env=variables, check=True)
    build(folder)


def build(folder: Path) -> None:
    """Build ``train.onnx`` of ``forward.onnx``, with what PyTorch's optimizer has."""
    import graphopt

    path = folder / "forward.onnx"
    optimizer = graphopt.RMSProp(graphopt.parameters(path), 1e-4, epsilon=1e-3)
    graphopt.training_graph(path, "cross_entropy", optimizer).save(folder / "train.onnx")


def measured(network: str, folder: Path, ranks: list[int], steps: int) -> dict[str, Any]:
    """The records of a network whose files are in the folder."""
    found: dict[str, Any] = {"network": network}
    for count in ranks:
        row = {
            "graphopt mpi": by_ranks("mpi", count, "graphopt", folder, steps),
            "graphopt gloo": by_ranks("torch", count, "graphopt", folder, steps),
            "pytorch ddp": by_ranks(
                "torch", count, "ddp", network, folder, steps, environment=_FIELD
            ),
        }
        ratio = row["graphopt gloo"]["seconds"] / row["pytorch ddp"]["seconds"]
        found[str(count)] = row
        print(f"{network}, {count} ranks: {_line(row)}; gloo / ddp {ratio:.2f}", flush=True)
    return found


def _line(row: Mapping[str, Mapping[str, float]]) -> str:
    def told(name: str, answer: Mapping[str, float]) -> str:
        sums = answer.get("sums")
        share = "" if sums is None else f" (sums {100 * sums / answer['seconds']:.0f} %)"
        return f"{name} {1e3 * answer['seconds']:.1f} ms{share}"

    return ", ".join(told(*item) for item in row.items())


def predicted(links: Mapping[str, Any], size: float, messages: int) -> list[str]:
    """Lines of what the links between two ranks say for more of them."""
    lines = []
    for engine, by_count in links.items():
        link = Link.fitted({int(n): s for n, s in by_count["2"].items()}, 2)
        times = [f"{k}: {1e3 * cost(link, size, messages, k):.1f}" for k in _COUNTS]
        lines.append(
            f"{engine}: latency {1e6 * link.latency:.0f} us, {link.bandwidth / 1e9:.2f} GB/s; "
            f"ms of sums by ranks: {', '.join(times)}"
        )
    return lines


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["resnet18", "bert"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    links: dict[str, Any] = {"mpi": {}, "torch": {}}
    for engine, found in links.items():
        for count in options.ranks:
            if count > 1:
                found[str(count)] = by_ranks(engine, count, "links")["seconds"]
    records: dict[str, Any] = {"cores": os.cpu_count(), "links": links, "networks": []}
    for network in options.networks:
        with tempfile.TemporaryDirectory() as name:
            _prepare(network, Path(name))
            found = measured(network, Path(name), options.ranks, options.steps)
        records["networks"].append(found)
        size = found[str(options.ranks[-1])]["graphopt mpi"]["bytes"]
        print("\n".join(predicted(links, size, max(1, size // MESSAGE))), flush=True)
        _RESULTS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
