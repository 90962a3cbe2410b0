"""What a checkpoint holds, and how two of them differ, as tables on a terminal."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from graphopt._tables import table
from graphopt.inspection.checkpoints._facts import (
    BINS,
    CheckpointDifference,
    CheckpointInspection,
    ParameterValues,
    Statistics,
    StepSizes,
    TensorDifference,
    TensorValues,
)
from graphopt.inspection.facts import Hazard
from graphopt.inspection.words import shown

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:-=+*#@"
_LONGEST_NAME = 60
_LONGEST_TEXT = 200


@dataclass(frozen=True)
class Sparkline:
    """A histogram as one line of blocks, as high as the bins are full.

    A bin that is not empty shows at least the lowest block. It is `BINS` characters wide, a half or
    a third of that where there is less room. Terminals without Unicode get other characters.

    Attributes:
        counts: The number of elements in each bin.
    """

    counts: tuple[int, ...]

    def line(self, width: int = BINS, *, ascii_only: bool = False) -> str:
        """The line in the largest width that fits.

        Example:
            >>> Sparkline((0, 1, 2, 8)).line(4)
            ' ▁▂█'
        """
        size = len(self.counts)
        joined = next((j for j in (1, 2, 3) if size // j <= width), 3)
        counts = [sum(self.counts[start : start + joined]) for start in range(0, size, joined)]
        blocks = _ASCII if ascii_only else _BLOCKS
        most = max(counts, default=0)
        return "".join(blocks[math.ceil(8 * count / most) if count else 0] for count in counts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The line in the room that there is."""
        line = self.line(options.max_width, ascii_only=options.ascii_only)
        yield Text(line, no_wrap=True, overflow="crop")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """From a third of the bins to all of them."""
        size = len(self.counts)
        return Measurement(math.ceil(size / 3), size).with_maximum(options.max_width)


_Cell = str | Sparkline


def checkpoint_tables(
    title: str, inspection: CheckpointInspection, rows: int = 20
) -> Iterator[RenderableType]:
    """A checkpoint, to be printed one after the other by a ``rich.console.Console``.

    Args:
        title: What was looked at.
        inspection: What is in it.
        rows: How many parameters, states, other tensors and problems to show, the first ones.

    Example:
        >>> found = inspect_checkpoint("state.safetensors")  # doctest: +SKIP
        >>> for table in checkpoint_tables("after 5 epochs", found):  # doctest: +SKIP
        ...     Console().print(table)
    """
    yield Text(_heading(title, inspection))
    parameters = inspection.parameters
    values = [parameter.value for parameter in parameters]
    states = [state for parameter in parameters for state in parameter.states.values()]
    for name, tensors, column in (
        ("Parameters", values, "min to max"),
        ("States", states, "log10 |x|"),
        ("Others", inspection.others, "min to max"),
    ):
        if tensors:
            yield _value_table(name, tensors, column, rows)
    if any(parameter.step_sizes for parameter in parameters):
        yield from _step_size_tables(parameters, rows)
    if inspection.problems:
        yield Text(_problem_text(inspection.problems, rows))


def difference_tables(
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
    text = (
        f"{shown(title, _LONGEST_TEXT)}: steps {first} and {second}, {totals.tensors:,} tensors\n"
        f"{', '.join(f'{count:,} {name}' for name, count in counts.items() if count) or 'empty'}\n"
    )
    if totals.relative_rms is not None:
        text += f"the parameters as a whole moved by {totals.relative_rms:.3%} of their length\n"
    yield Text(text)
    if changed := [t for t in difference.tensors if t.comparable and not t.equal]:
        yield _changed_table(changed, rows)
    if unfit := [t for t in difference.tensors if not t.comparable]:
        found = [[_name(t.name), _name(t.kind), _type_in(t, 0), _type_in(t, 1)] for t in unfit]
        yield _table("Tensors that do not fit", ["name", "", "first", "second"], *_cut(found, rows))


def _heading(title: str, inspection: CheckpointInspection) -> str:
    totals = inspection.totals
    step = "step unknown" if inspection.step is None else f"step {inspection.step:,}"
    text = (
        f"{shown(title, _LONGEST_TEXT)}: {inspection.kind}, {step}, {inspection.bytes:,} bytes\n"
        f"{totals.parameters:,} parameters with {totals.parameter_elements:,} elements, "
        f"{totals.parameter_bytes:,} bytes, and {totals.state_bytes:,} bytes of states; "
        f"{totals.tensors:,} tensors\n"
        f"{totals.zeros:,} of {totals.elements:,} elements zero, "
        f"{totals.nan:,} NaN, {totals.inf:,} infinite\n"
    )
    if inspection.learning_rate is not None:
        text += f"initial learning rate {_number(inspection.learning_rate)}\n"
    return text


def _problem_text(problems: Sequence[Hazard], rows: int) -> str:
    lines = [
        f"{p.level}, {p.kind}: {_name(', '.join(p.where))}: {shown(p.why, _LONGEST_TEXT)}; {p.fix}"
        for p in problems[:rows]
    ]
    if len(problems) > rows:
        lines.append(f"{len(problems) - rows:,} more")
    return "\n".join(["Problems", *(f"  {line}" for line in lines), ""])


def _value_table(title: str, tensors: Sequence[TensorValues], spread: str, rows: int) -> Table:
    """The tensors in numbers; columns of zeros, NaN and Inf where there are any."""
    first = tensors[:rows]
    counts = [_counts(tensor) for tensor in first]
    counted = [name for name in (">zeros", ">NaN", ">Inf") if any(count[name] for count in counts)]
    cells = [
        [
            *_value_cells(tensor),
            *(f"{count[name]:,}" if count[name] else "" for name in counted),
            _sparkline(tensor.statistics),
        ]
        for tensor, count in zip(first, counts, strict=True)
    ]
    columns = ["name", "type", ">min", ">max", ">rms", *counted, spread]
    return _table(title, columns, cells, len(tensors) - len(first))


def _counts(tensor: TensorValues) -> dict[str, int]:
    found = tensor.statistics
    if found is None:
        return dict.fromkeys((">zeros", ">NaN", ">Inf"), 0)
    return {">zeros": found.zeros, ">NaN": found.nan, ">Inf": found.inf}


def _value_cells(tensor: TensorValues) -> list[str]:
    found = tensor.statistics
    numbers = (None,) * 3 if found is None else (found.minimum, found.maximum, found.rms)
    kind = _type(tensor.dtype, tensor.shape)
    return [_name(tensor.name), kind, *(_number(number) for number in numbers)]


def _step_size_tables(parameters: Sequence[ParameterValues], rows: int) -> Iterator[RenderableType]:
    found = [(p.value.name, p.step_sizes) for p in parameters if p.step_sizes is not None]
    columns = ["name", ">learning rate", ">min", ">median", ">max", ">at the guard"]
    cells = [_step_size_row(name, sizes) for name, sizes in found[:rows]]
    yield _table("Step sizes", columns, cells, len(found) - len(cells))
    if any(sizes.per_unit for _, sizes in found):
        yield Text("where no learning rate is shown, it is not known: steps for one of 1")
    if any(sizes.assumed for _, sizes in found):
        yield Text(f"epsilon is not known, {found[0][1].epsilon:g} was assumed")


def _step_size_row(name: str, sizes: StepSizes) -> list[_Cell]:
    numbers = (sizes.learning_rate, sizes.minimum, sizes.median, sizes.maximum)
    guarded = "" if sizes.guarded is None else f"{100 * sizes.guarded:.3g}%"
    return [_name(name), *(_number(number) for number in numbers), guarded]


def _changed_table(tensors: Sequence[TensorDifference], rows: int) -> Table:
    found: list[list[_Cell]] = [
        [
            _name(tensor.name),
            _name(tensor.kind),
            _number(tensor.largest),
            _number(tensor.relative_rms),
            "" if tensor.cosine is None else f"{tensor.cosine:.6f}",
            f"{tensor.left_out:,}" if tensor.left_out else "",
        ]
        for tensor in tensors[:rows]
    ]
    columns = ["name", "", ">largest", ">relative rms", ">cosine", ">not finite"]
    return _table("Tensors that differ", columns, found, len(tensors) - len(found))


def _cut(found: Sequence[list[str]], rows: int) -> tuple[Sequence[list[str]], int]:
    """The first rows, and how many there are more."""
    return found[:rows], max(len(found) - rows, 0)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[_Cell]], more: int) -> Table:
    """A table, some of whose cells adapt to the room that there is."""
    made = table(title, columns, ())
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    if more:
        made.add_row(Text(f"{more:,} more"))
    return made


def _name(name: str) -> str:
    return shown(name, _LONGEST_NAME)


def _type(dtype: str | None, shape: Sequence[int] | None) -> str:
    """The dimensions, and the dtype if it is not the usual one."""
    if dtype is None or shape is None:
        return ""
    sizes = "x".join(map(str, shape)) or "scalar"
    return sizes if dtype == "float32" else f"{sizes} {dtype}"


def _type_in(tensor: TensorDifference, index: int) -> str:
    return _type(tensor.dtypes[index], tensor.shapes[index])


def _number(number: float | None) -> str:
    return "" if number is None else f"{number:.3g}"


def _sparkline(found: Statistics | None) -> _Cell:
    histogram = None if found is None else found.histogram
    return "" if histogram is None else Sparkline(histogram.counts)
