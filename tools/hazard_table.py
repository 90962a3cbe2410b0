"""Writes the table of hazards in docs/inspection.md: ``python -m tools.hazard_table``."""

import inspect
import re
from pathlib import Path

from graphopt.inspection.facts import LEVELS
from graphopt.inspection.hazards import DECLARED

_GUIDE = Path(__file__).parent.parent / "docs" / "inspection.md"
_TABLE = re.compile(r"\| kind \| level \| \|\n(?:\|.*\n)+")


def table() -> str:
    """All hazards with their levels and what their docstrings say, the worst first."""
    ordered = sorted(DECLARED, key=lambda hazard: [LEVELS.index(level) for level in hazard.levels])
    rows = ["| kind | level | |", "|---|---|---|"]
    for hazard in ordered:
        words = " ".join((inspect.getdoc(hazard.search) or "").split())
        rows.append(f"| `{hazard.kind}` | {', '.join(hazard.levels)} | {words} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write it over the old one."""
    guide = _GUIDE.read_text(encoding="utf-8")
    _GUIDE.write_text(_TABLE.sub(lambda _: table(), guide), encoding="utf-8")


if __name__ == "__main__":
    main()
