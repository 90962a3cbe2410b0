"""The difference of two training graphs as tables on a terminal."""

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from graphopt.inspection import words
from graphopt.inspection.comparison.differences import Change, Difference

_LONGEST = 60


def diff_tables(title: str, difference: Difference, *, rows: int = 20) -> Iterator[RenderableType]:
    """What changed, part by part, and what did not.

    Args:
        title: What was compared.
        difference: What was found.
        rows: How many changes of a part to show.
    """
    yield Text(words.shown(title, 200))
    if not difference.changes:
        yield Text("no difference")
        return
    parts: dict[str, list[Change]] = {}
    for change in difference.changes:
        parts.setdefault(change.part, []).append(change)
    for part, changes in parts.items():
        table = Table(title=Text(words.shown(part), "bold"), title_justify="left", box=SIMPLE_HEAD)
        for column in ("", "fact", "before", "after"):
            table.add_column(column, overflow="fold")
        for change in changes[:rows]:
            cells = (change.where, change.what, _shown(change.before), _shown(change.after))
            table.add_row(*(Text(words.shown(cell)) for cell in cells))
        yield table
        if len(changes) > rows:
            yield Text(f"... and {len(changes) - rows} more\n")
    if difference.same:
        yield Text(f"the same: {', '.join(map(words.shown, difference.same))}")


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, dict):
        return words.shown(words.schedule(value), _LONGEST)
    if isinstance(value, int | float):
        return words.number(value)
    if isinstance(value, tuple | list):
        return words.shown(f"[{', '.join(map(str, value))}]", _LONGEST)
    return words.shown(value, _LONGEST)
