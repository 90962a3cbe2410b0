"""Tables on a terminal."""

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[RenderableType]],
    total: Sequence[str] | None = None,
    *,
    dense: bool = False,
) -> Table:
    """A table; columns that begin with ">" are aligned on the right.

    Text in cells is shown as it is: brackets in it mean nothing. Where no column has a name there
    is no head. A dense one has less space between columns, and no empty line above and below.
    """
    made = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0) if dense else (0, 1),
        show_edge=not dense,
        show_header=any(columns),
    )
    for column in columns:
        numeric = column.startswith(">")
        made.add_column(
            column.removeprefix(">"),
            justify="right" if numeric else "left",
            no_wrap=numeric,
            overflow="fold",
        )
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    if total is not None:
        made.add_section()
        made.add_row(*(Text(cell) for cell in total))
    return made
