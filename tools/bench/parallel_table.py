"""The table of steps by ranks in ``docs/distributed.md``, from ``bench/parallel.json``.

Run it as ``python -m tools.bench.parallel_table`` after ``python -m tools.bench.parallel``.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
PAGE = _ROOT / "docs" / "distributed.md"
_RESULTS = _ROOT / "bench" / "parallel.json"
_NETWORKS = {"resnet18": "ResNet-18", "bert": "BERT, 4 layers of 256"}
_WIRES = {"loopback": "none", "gigabit": "1 Gb/s", "gigabit, 1 ms": "1 Gb/s, 1 ms"}
_COLUMNS = ["network", "wire", "ranks", "MPI", "gloo", "gloo, `pieces=3`", "DDP"]
_COLUMNS += ["gloo / DDP", "`pieces=3` / DDP"]


def table() -> str:
    """The table, in Markdown."""
    networks = json.loads(_RESULTS.read_text("utf-8"))["networks"]
    rows = (
        _row(name, wire, ranks, networks[network][key][ranks])
        for network, name in _NETWORKS.items()
        for key, wire in _WIRES.items()
        for ranks in networks[network].get(key, {})
    )
    return f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}\n{''.join(rows)}"


def _row(network: str, wire: str, ranks: str, found: Mapping[str, Any]) -> str:
    cells = [network, wire if ranks != "1" else "", ranks]
    ours = ["graphopt mpi", "graphopt gloo, 1", "graphopt gloo, 3"]
    cells += [_time(found.get(name)) for name in ours]
    cells.append(f"{found['pytorch ddp']['seconds'] * 1e3:.0f}")
    cells += list(_ratios(found, ours[1:]))
    return f"| {' | '.join(cells)} |\n"


def _time(taken: Mapping[str, Any] | None) -> str:
    """Milliseconds of a step, and the share of the sums."""
    if taken is None:
        return ""
    share = taken["sums"] / taken["seconds"]
    return f"{taken['seconds'] * 1e3:.0f}" + (f" ({share:.0%})" if share >= 0.005 else "")


def _ratios(found: Mapping[str, Any], names: list[str]) -> Iterator[str]:
    for name in names:
        yield f"{found[name]['ratio']:.2f}" if name in found else ""


def main() -> None:
    """Write the table into the page, in place of the one there."""
    new = table()
    head = re.escape(new.partition("\n")[0])
    PAGE.write_text(
        re.sub(rf"{head}\n(?:\|.*\n)+", lambda _: new, PAGE.read_text("utf-8")), "utf-8"
    )


if __name__ == "__main__":
    main()
