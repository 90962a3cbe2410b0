"""The parts of a page on a terminal: headings, lines, tables, and what stands in their cells."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from graphopt._tables import table
from graphopt._words import shown

_T = TypeVar("_T")

_LONGEST_NAME = 60
_FEW_NAMES = 3
Cells = Mapping[str, Callable[[_T], str]]
"""What stands in the columns of a table, by their heads, for a thing of each row."""


def heading(text: str) -> RenderableType:
    """A line below an empty one, as the titles of tables are."""
    return spaced(Text(text, style="italic"))


def spaced(part: RenderableType) -> RenderableType:
    """A part below an empty line."""
    return Padding(part, (1, 0, 0, 0), expand=False)


def indented(text: str) -> RenderableType:
    """Lines that belong to what is above them."""
    return Padding(Text(text, overflow="fold"), (0, 0, 0, 2), expand=False)


def titled_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[RenderableType]],
    total: Sequence[str] | None = None,
) -> RenderableType:
    """A table below an empty line and its title, which may be wider and is not markup."""
    body = table("", columns, rows, total, dense=True)
    return spaced(Group(Text(title, style="italic"), body))


def cut_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[RenderableType]], more: int
) -> Table:
    """A table of the first rows, which says how many there are more."""
    return table(title, columns, [*rows, *([[f"... and {more:,} more"]] if more > 0 else [])])


def first_rows(rows: Sequence[list[str]], most: int) -> list[list[str]]:
    """The first rows; the others are one, unless that would be no shorter."""
    if len(rows) <= most + 1 or not rows:
        return list(rows)
    return [*rows[:most], [f"... {len(rows) - most:,} more", *[""] * (len(rows[0]) - 1)]]


def in_common(things: Sequence[_T], columns: Cells[_T]) -> tuple[list[str], Cells[_T]]:
    """What all of several things have in common, in words, and the columns where they differ."""
    common, differing = [], {}
    for header, cell in columns.items():
        values = {cell(thing) for thing in things}
        if len(values) == 1 and len(things) > 1:
            common.append(f"{header} {values.pop()}")
        else:
            differing[header] = cell
    return common, differing


def short(name: str) -> str:
    """A name that fits into a cell."""
    return shown(name, _LONGEST_NAME)


def short_number(number: float | None) -> str:
    """A number in three digits; nothing where there is none."""
    return "" if number is None else f"{number:.3g}"


def tensor_type(dtype: str | None, dimensions: Sequence[int] | None) -> str:
    """The dimensions, and the dtype if it is not the usual one; nothing where there is none."""
    if dtype is None or dimensions is None:
        return ""
    sizes = "x".join(map(str, dimensions)) or "scalar"
    return sizes if dtype == "float32" else f"{sizes} {dtype}"


def few(names: Sequence[str], most: int = _FEW_NAMES) -> str:
    """The first names."""
    more = [f"{len(names) - most:,} more"] if len(names) > most else []
    return ", ".join([*map(short, names[:most]), *more])


def plural(amount: int, noun: str) -> str:
    """A number of things."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"
