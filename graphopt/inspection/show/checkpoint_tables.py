"""What a checkpoint holds, as tables on a terminal."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from graphopt._words import shown
from graphopt.inspection.checkpoints import (
    BINS,
    CheckpointInspection,
    ParameterValues,
    Statistics,
    StepSizes,
    TensorValues,
)
from graphopt.inspection.facts import Hazard
from graphopt.inspection.show.parts import cut_table, short, short_number, tensor_type

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:-=+*#@"
_LONGEST_TEXT = 200
_NOTHING = Statistics(None, None, None, None, 0, 0, 0, None)


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
        text += f"initial learning rate {short_number(inspection.learning_rate)}\n"
    return text


def _problem_text(problems: Sequence[Hazard], rows: int) -> str:
    lines = [
        f"{p.level}, {p.kind}: {short(', '.join(p.where))}: {shown(p.why, _LONGEST_TEXT)}; {p.fix}"
        for p in problems[:rows]
    ]
    if len(problems) > rows:
        lines.append(f"{len(problems) - rows:,} more")
    return "\n".join(["Problems", *(f"  {line}" for line in lines), ""])


def _value_table(title: str, tensors: Sequence[TensorValues], spread: str, rows: int) -> Table:
    """The tensors in numbers; columns of zeros, NaN and Inf where there are any."""
    first = tensors[:rows]
    found = [tensor.statistics or _NOTHING for tensor in first]
    columns = {
        ">zeros": [statistics.zeros for statistics in found],
        ">NaN": [statistics.nan for statistics in found],
        ">Inf": [statistics.inf for statistics in found],
    }
    counts = {name: column for name, column in columns.items() if any(column)}
    cells = [
        [
            short(tensor.name),
            tensor_type(tensor.dtype, tensor.shape),
            *map(short_number, (statistics.minimum, statistics.maximum, statistics.rms)),
            *(f"{column[at]:,}" if column[at] else "" for column in counts.values()),
            "" if statistics.histogram is None else Sparkline(statistics.histogram.counts),
        ]
        for at, (tensor, statistics) in enumerate(zip(first, found, strict=True))
    ]
    names = ["name", "type", ">min", ">max", ">rms", *counts, spread]
    return cut_table(title, names, cells, len(tensors) - len(first))


def _step_size_tables(parameters: Sequence[ParameterValues], rows: int) -> Iterator[RenderableType]:
    found = [(p.value.name, p.step_sizes) for p in parameters if p.step_sizes is not None]
    columns = ["name", ">learning rate", ">min", ">median", ">max", ">at the guard"]
    cells = [_step_size_row(name, sizes) for name, sizes in found[:rows]]
    yield cut_table("Step sizes", columns, cells, len(found) - len(cells))
    if any(sizes.per_unit for _, sizes in found):
        yield Text("where no learning rate is shown, it is not known: steps for one of 1")
    if any(sizes.assumed for _, sizes in found):
        yield Text(f"epsilon is not known, {found[0][1].epsilon:g} was assumed")


def _step_size_row(name: str, sizes: StepSizes) -> list[RenderableType]:
    numbers = (sizes.learning_rate, sizes.minimum, sizes.median, sizes.maximum)
    guarded = "" if sizes.guarded is None else f"{100 * sizes.guarded:.3g}%"
    return [short(name), *(short_number(number) for number in numbers), guarded]
