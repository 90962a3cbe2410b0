"""Writes the tables of docs/precision.md: ``python -m tools.precision_tables``."""

import re
from pathlib import Path

from graphopt._runtime import CPU, CUDA
from graphopt.half.kernels import KERNELS
from graphopt.half.operators import OPERATORS
from graphopt.half.precision import DTYPES

_GUIDE = Path(__file__).parent.parent / "docs" / "precision.md"


def operators() -> str:
    """Which operators are computed in which precision, and why."""
    rows = ["| computed in | operators | because |", "|---|---|---|"]
    for several in OPERATORS:
        reason = several.reason[0].upper() + several.reason[1:]
        rows.append(f"| {several.computed.value} | {', '.join(several.names)} | {reason}. |")
    return "\n".join(rows) + "\n"


def kernels() -> str:
    """What providers run in half precision."""
    rows = ["| on | in | runs |", "|---|---|---|"]
    for provider, name in ((CPU, "CPU"), (CUDA, "CUDA")):
        for precision, dtype in DTYPES.items():
            listed = ", ".join(sorted(KERNELS[provider, dtype]))
            rows.append(f"| {name} | {precision} | {listed} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write them over the old ones."""
    guide = _GUIDE.read_text(encoding="utf-8")
    for table in (operators(), kernels()):
        head = re.escape(table.partition("\n")[0])
        guide = re.sub(rf"{head}\n(?:\|.*\n)+", table.replace("\\", r"\\"), guide)
    _GUIDE.write_text(guide, encoding="utf-8")


if __name__ == "__main__":
    main()
