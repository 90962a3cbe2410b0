"""How two training graphs, or two checkpoints, differ, as tables on a terminal."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from graphopt import _words
from graphopt.inspection import words
from graphopt.inspection.checkpoints import CheckpointDifference, TensorDifference
from graphopt.inspection.comparison.differences import Change, Difference
from graphopt.inspection.show.parts import cut_table, short, short_number, tensor_type

_LONGEST_TEXT = 200


def graph_difference_tables(
    title: str, difference: Difference, *, rows: int = 20
) -> Iterator[RenderableType]:
    """What changed, part by part, and what did not.

    Args:
        title: What was compared.
        difference: What was found.
        rows: How many changes of a part to show.
    """
    yield Text(_words.shown(title, _LONGEST_TEXT))
    if not difference.changes:
        yield Text("no difference")
        return
    parts: dict[str, list[Change]] = {}
    for change in difference.changes:
        parts.setdefault(change.part, []).append(change)
    for part, changes in parts.items():
        cells = [
            [*map(_words.shown, (c.where, c.what)), *map(fact_text, (c.before, c.after))]
            for c in changes[:rows]
        ]
        columns = ["", "fact", "before", "after"]
        yield cut_table(_words.shown(part), columns, cells, len(changes) - rows)
    if difference.same:
        yield Text(f"the same: {', '.join(map(_words.shown, difference.same))}")


def fact_text(value: Any) -> str:
    """A fact as a cell of a table shows it."""
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, dict):
        if "schedule" in value:
            return short(words.schedule(value))
        return short(", ".join(f"{_words.shown(k)} {fact_text(v)}" for k, v in value.items()))
    if isinstance(value, int | float):
        return _words.number(value)
    if isinstance(value, tuple | list):
        return short(f"[{', '.join(map(str, value))}]")
    return short(value)


def checkpoint_difference_tables(
    title: str, difference: CheckpointDifference, rows: int = 20
) -> Iterator[RenderableType]:
    """How two checkpoints differ, to be printed like `checkpoint_tables`.

    Args:
        title: What was compared.
        difference: What was found.
        rows: How many tensors to show that differ, the first ones, and how many that do not fit.
    """
    totals = difference.totals
    first, second = ("unknown" if step is None else f"{step:,}" for step in difference.steps)
    counts = {
        "equal": totals.equal,
        "different": totals.different,
        "of another shape or dtype": totals.mismatched,
        "only in the first": totals.only_first,
        "only in the second": totals.only_second,
    }
    name = _words.shown(title, _LONGEST_TEXT)
    text = (
        f"{name}: steps {first} and {second}, {totals.tensors:,} tensors\n"
        f"{', '.join(f'{count:,} {what}' for what, count in counts.items() if count) or 'empty'}\n"
    )
    if totals.relative_rms is not None:
        text += f"the parameters as a whole moved by {totals.relative_rms:.3%} of their length\n"
    yield Text(text)
    if changed := [t for t in difference.tensors if t.comparable and not t.equal]:
        yield _changed_table(changed, rows)
    if unfit := [t for t in difference.tensors if not t.comparable]:
        found = [
            [short(t.name), short(t.kind), *map(tensor_type, t.dtypes, t.shapes)] for t in unfit
        ]
        yield cut_table(
            "Tensors that do not fit",
            ["name", "", "first", "second"],
            found[:rows],
            len(found) - rows,
        )


def _changed_table(tensors: Sequence[TensorDifference], rows: int) -> Table:
    found = [
        [
            short(tensor.name),
            short(tensor.kind),
            short_number(tensor.largest),
            short_number(tensor.relative_rms),
            "" if tensor.cosine is None else f"{tensor.cosine:.6f}",
            f"{tensor.left_out:,}" if tensor.left_out else "",
        ]
        for tensor in tensors[:rows]
    ]
    columns = ["name", "", ">largest", ">relative rms", ">cosine", ">not finite"]
    return cut_table("Tensors that differ", columns, found, len(tensors) - rows)
