"""An inspection as a page on a terminal."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Literal, TypeVar, get_args

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from graphopt._tables import table
from graphopt.inspection.facts import (
    Hazard,
    Inspection,
    MemoryFacts,
    ModelFacts,
    OptimizerFacts,
    ParameterFacts,
    Schedule,
    StateFacts,
    TargetFacts,
)
from graphopt.inspection.words import (
    UNKNOWN,
    count,
    number,
    schedule,
    schedule_name,
    shape,
    shown,
    size,
)

_T = TypeVar("_T")

Sort = Literal["order", "name", "size", "bytes"]
"""The order of the optimizer, or by name, or the largest first."""

_ROWS = 20
_OTHER_ROWS = 8  # of groups, values and state, which are a page each in a large network
_LONGEST_NAME = 60
_LONGEST_TEXT = 1000  # what a hazard or a target says
_FEW_NAMES = 3
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_KEYS: Mapping[str, Callable[[ParameterFacts], int | str]] = {
    "order": lambda parameter: 0,  # noqa: ARG005 - sorting is stable
    "name": lambda parameter: parameter.name,
    "size": lambda parameter: -parameter.size,
    "bytes": lambda parameter: -parameter.bytes - parameter.state_bytes,
}


def tables(
    inspection: Inspection,
    *,
    rows: int = _ROWS,
    names: Sequence[str] = (),
    groups: Sequence[int] = (),
    sort: str = "order",
    all: bool = False,  # noqa: A002 - as on the command line
) -> Iterator[RenderableType]:
    """An inspection, to be printed one after the other by a ``rich.console.Console``.

    Names from the model are shown with their control characters written out, and not as markup.

    Args:
        inspection: What was found.
        rows: How many parameters to show; the others are one line.
        names: Patterns such as ``"conv*"``: parameters that match one of them are shown. None: all.
        groups: Indices: parameters of these groups are shown. None: all.
        sort: "order" of the optimizer, "name", "size" or "bytes", the largest first; bytes are
            those of parameter and states.
        all: Show all parameters, groups, inputs, outputs and carried values.

    Raises:
        ValueError: An unknown order, a group that is not there, a pattern that nothing matches, or
            ``rows`` below 0.

    Example:
        >>> from rich.console import Console
        >>> for part in tables(graphopt.inspect("train.onnx")):  # doctest: +SKIP
        ...     Console().print(part)
    """
    if rows < 0:
        raise ValueError(f"rows: got {rows}, expected 0 or more")
    selected = _selected(inspection, names, groups, sort)
    most, others = (sys.maxsize, sys.maxsize) if all else (rows, _OTHER_ROWS)
    return _page(inspection, selected, most, others)


def _page(
    inspection: Inspection, parameters: Sequence[ParameterFacts], rows: int, others: int
) -> Iterator[RenderableType]:
    yield _title(inspection.model)
    yield from _hazards(inspection.hazards)
    yield from _optimizer(inspection)
    yield from _groups(inspection, others)
    yield from _parameters(inspection, parameters, rows)
    yield _memory(inspection.memory)
    yield from _stages(inspection)
    yield from _values(inspection, others)
    yield from _state(inspection.state, others)
    yield from _requirements(inspection)
    yield from _targets(inspection.targets)


def _selected(
    inspection: Inspection, names: Sequence[str], groups: Sequence[int], sort: str
) -> list[ParameterFacts]:
    if sort not in get_args(Sort):
        raise ValueError(f"sort: got '{sort}', expected one of {', '.join(get_args(Sort))}")
    for group in groups:
        if not 0 <= group < len(inspection.groups):
            raise ValueError(
                f"groups: got {group}, expected an index below {len(inspection.groups)}, the "
                "number of groups"
            )
    for pattern in names:
        if not any(fnmatchcase(parameter.name, pattern) for parameter in inspection.parameters):
            raise ValueError(
                f"names: no parameter matches '{pattern}'; patterns are such as 'conv*'"
            )
    selected = [
        parameter
        for parameter in inspection.parameters
        if (not names or any(fnmatchcase(parameter.name, pattern) for pattern in names))
        and (not groups or parameter.group in groups)
    ]
    return sorted(selected, key=_KEYS[sort])


def _title(model: ModelFacts) -> Text:
    title = Text(_name(model.name), style="bold")
    title.append(f": {shown(model.kind)}, {model.nodes:,} nodes, {size(model.bytes)}", "not bold")
    if model.producer:
        title.append(f", written by {shown(model.producer)}", "not bold")
    return title


def _hazards(hazards: Sequence[Hazard]) -> Iterator[RenderableType]:
    for hazard in hazards:
        where = f": {_few(hazard.where)}" if hazard.where else ""
        line = Text(f"{hazard.level} ", style=_COLOURS.get(hazard.level, ""))
        line.append(f"{shown(hazard.kind)}{where}", "not dim")
        yield _spaced(line)
        for text in (hazard.why, hazard.fix):
            if text:
                yield _indented(shown(text, _LONGEST_TEXT))
    if not hazards:
        yield _spaced(Text("No hazards found.", style="green"))


def _optimizer(inspection: Inspection) -> Iterator[RenderableType]:
    optimizer = inspection.optimizer
    if optimizer is None:
        yield _heading("No optimizer")
        return
    source = {"none": "not read"}.get(optimizer.source, f"read in {optimizer.source}")
    yield _heading(f"Optimizer: {shown(optimizer.name)}, {source}")
    if words := list(_hyperparameters(optimizer)):
        yield _indented(", ".join(words))
    if optimizer.formula:
        yield _indented("\n".join(shown(line, _LONGEST_TEXT) for line in optimizer.formula))
    if inspection.layout is not None:
        functions = dict.fromkeys(bucket.function for bucket in inspection.buckets)
        by = _few([function for function in functions if function])
        yield _indented(
            f"layout {shown(inspection.layout)}: {_plural(len(inspection.buckets), 'bucket')}"
            + (f", updated by {by}" if by else "")
        )


def _hyperparameters(optimizer: OptimizerFacts) -> Iterator[str]:
    """Each that is known, in words."""
    if optimizer.decay is not None:
        yield f"decay {number(optimizer.decay)}"
    if optimizer.momentum is not None:
        yield f"momentum {number(optimizer.momentum)}" + (" (Nesterov)" * bool(optimizer.nesterov))
    if optimizer.epsilon is not None:
        places = {None: "", True: " inside the root", False: " added to the root"}
        yield f"epsilon {number(optimizer.epsilon)}{places[optimizer.epsilon_inside_root]}"
    if optimizer.centered is not None:
        yield "centered" if optimizer.centered else "not centered"
    if optimizer.guarded is not None:
        yield "guarded" if optimizer.guarded else "not guarded"
    if optimizer.initial_mean_square is not None:
        yield f"mean square from {number(optimizer.initial_mean_square)}"
    if optimizer.loss_scale is not None:
        yield f"loss scale {number(optimizer.loss_scale)}"
    if optimizer.learning_rate_inside_moment is not None:
        inside = "inside" if optimizer.learning_rate_inside_moment else "outside"
        yield f"learning rate {inside} the moment"
    if optimizer.decoupled_weight_decay is not None:
        yield f"weight decay {'decoupled' if optimizer.decoupled_weight_decay else 'in gradient'}"
    if optimizer.group_mask:
        yield "group mask"
    if optimizer.use_locking:
        yield "use_locking"
    if optimizer.steps is not None:
        yield f"for {_plural(optimizer.steps, 'step')}"
    for name, value in optimizer.others.items():
        yield f"{shown(name)} {number(value)}"


def _groups(inspection: Inspection, most: int) -> Iterator[RenderableType]:
    if not inspection.groups:
        return
    rows = [
        [
            str(index),
            str(len(group.parameters)),
            schedule(group.learning_rate),
            schedule(group.weight_decay),
            "yes" if group.grad_centralization else "no",
        ]
        for index, group in enumerate(inspection.groups)
    ]
    columns = [">group", ">parameters", "learning rate", "weight decay", "centralized"]
    yield _table("Groups", columns, _first(rows, most))


def _parameters(
    inspection: Inspection, parameters: Sequence[ParameterFacts], rows: int
) -> Iterator[RenderableType]:
    if not inspection.parameters:
        yield _heading("No parameters are trained")
        return
    title = f"Parameters: {len(inspection.parameters):,}"
    if len(parameters) < len(inspection.parameters):
        title = f"Parameters: {len(parameters):,} of {len(inspection.parameters):,}"
    title += f", {_plural(sum(p.size for p in parameters), 'element')}"
    if inspection.frozen:
        title += f"; {len(inspection.frozen):,} frozen"
    common, columns = _common(parameters, _parameter_columns(inspection))
    first, rest = parameters[:rows], parameters[rows:]
    cells = [
        [
            _name(p.name),
            shape(p.shape).replace(", ", ","),
            *(cell(p) for cell in columns.values()),
            *_sizes([p]),
        ]
        for p in first
    ]
    blank = [""] * (1 + len(columns))
    if rest:
        cells.append([f"... {len(rest):,} more", *blank, *_sizes(rest)])
    total = ["together", *blank, *_sizes(parameters)]
    yield _table(title, ["name", "shape", *columns, ">bytes", ">states"], cells, total)
    if common:
        yield _indented(f"all: {', '.join(common)}")


def _parameter_columns(inspection: Inspection) -> dict[str, Callable[[ParameterFacts], str]]:
    columns: dict[str, Callable[[ParameterFacts], str]] = {}
    if inspection.optimizer is not None or inspection.groups:
        rates = [group.learning_rate for group in inspection.groups]
        decays = [group.weight_decay for group in inspection.groups]
        columns = {
            "group": lambda p: UNKNOWN if p.group is None else str(p.group),
            "learning rate": lambda p: _of_group(p.learning_rate, p.group, rates),
            "weight decay": lambda p: _of_group(p.weight_decay, p.group, decays),
            "centralized": lambda p: "yes" if p.grad_centralization else "no",
            "with": lambda p: ", ".join(shown(state, 20) for state in p.states) or "none",
        }
    return columns | {"dtype": lambda p: shown(p.dtype, 20)}


def _of_group(value: Schedule, group: int | None, of_groups: Sequence[Schedule]) -> str:
    """A schedule by its name alone, if the table of groups says what it is."""
    if group is not None and 0 <= group < len(of_groups) and of_groups[group] == value:
        return schedule_name(value)
    return schedule(value)


def _common(
    things: Sequence[_T], columns: Mapping[str, Callable[[_T], str]]
) -> tuple[list[str], dict[str, Callable[[_T], str]]]:
    """What all of several things have in common, in words, and the columns where they differ."""
    common, differing = [], {}
    for header, cell in columns.items():
        values = {cell(thing) for thing in things}
        if len(values) == 1 and len(things) > 1:
            common.append(f"{header} {values.pop()}")
        else:
            differing[header] = cell
    return common, differing


def _sizes(parameters: Iterable[ParameterFacts]) -> list[str]:
    parameters = list(parameters)
    return [
        size(sum(parameter.bytes for parameter in parameters)),
        size(sum(parameter.state_bytes for parameter in parameters)),
    ]


def _memory(memory: MemoryFacts) -> RenderableType:
    sizes = ", ".join(f"{shown(name, 20)} = {value}" for name, value in memory.sizes.items())
    rows = [
        ["parameters", size(memory.parameters), ""],
        ["frozen", size(memory.frozen), "initializers"],
        ["gradients", size(memory.gradients), ""],
        ["states", size(memory.states), "of the optimizer"],
        ["activations", size(memory.activations), "at most" + (f", if {sizes}" if sizes else "")],
    ]
    known = [memory.parameters, memory.frozen, memory.gradients, memory.states]
    together = None if memory.activations is None else sum(known) + memory.activations
    return _table("Memory of a step", ["", ">bytes", ""], rows, ["together", size(together), ""])


def _stages(inspection: Inspection) -> Iterator[RenderableType]:
    stages = [stage for stage in inspection.stages if stage.nodes]
    if not stages:
        return
    unknown = any(stage.unknown for stage in stages)
    rows = [
        [stage.stage, f"{stage.nodes:,}", count(stage.flops), size(stage.bytes)]
        + [f"{stage.unknown:,}"] * unknown
        for stage in stages
    ]
    columns = ["", ">nodes", ">FLOPs", ">bytes moved"] + [">not counted"] * unknown
    yield _table("A step", columns, rows)


def _values(inspection: Inspection, most: int) -> Iterator[RenderableType]:
    """What a caller feeds and gets, without what is carried."""
    fed = {state.input for state in inspection.state}
    got = {state.output for state in inspection.state}
    inputs = [value for value in inspection.inputs if value.name not in fed]
    outputs = [value for value in inspection.outputs if value.name not in got]
    rows = [
        *_first([[_name(v.name), "input", shown(v.dtype), shape(v.shape)] for v in inputs], most),
        *_first([[_name(v.name), "output", shown(v.dtype), shape(v.shape)] for v in outputs], most),
    ]
    if rows:
        yield _table("Inputs and outputs", ["name", "", "dtype", "shape"], rows)


def _state(state: Sequence[StateFacts], most: int) -> Iterator[RenderableType]:
    if not state:
        return
    common, columns = _common(state, _STATE_COLUMNS)
    rows = [
        [_name(value.input), *(cell(value) for cell in columns.values()), size(value.bytes)]
        for value in state
    ]
    known = [value.bytes for value in state if value.bytes is not None]
    together = size(sum(known) if len(known) == len(state) else None)
    kinds = Counter(value.kind for value in state)
    title = f"Carried to the next step: {len(state):,} (" + ", ".join(
        f"{amount:,} {shown(kind, 20)}" for kind, amount in kinds.most_common(_OTHER_ROWS)
    )
    total = ["together", *[""] * len(columns), together]
    yield _table(f"{title})", ["input", *columns, ">bytes"], _first(rows, most), total)
    if common:
        yield _indented(f"all: {', '.join(common)}")


def _output(state: StateFacts) -> str:
    """What feeds an input; where it is named after the input, only how."""
    if state.output is None:
        return "in place"
    if state.output.startswith(state.input) and len(state.output) > len(state.input):
        return f"<input>{shown(state.output[len(state.input) :], 20)}"
    return _name(state.output)


def _start(initial: float | str | None) -> str:
    if initial is None:
        return "as fed"
    return shown(initial, 20) if isinstance(initial, str) else number(initial)


_STATE_COLUMNS: Mapping[str, Callable[[StateFacts], str]] = {
    "fed by": _output,
    "kind": lambda value: shown(value.kind, 20),
    "type": lambda value: f"{shown(value.dtype, 20)}{shape(value.shape)}",
    "overwritable": lambda value: "yes" if value.overwritable else "no",
    "starts as": lambda value: _start(value.initial),
}


def _requirements(inspection: Inspection) -> Iterator[RenderableType]:
    needed = inspection.requirements
    opsets = ", ".join(
        f"{shown(domain) if domain else 'ONNX'} {version}"
        for domain, version in sorted(needed.opsets.items())
    )
    yield _heading("Requirements")
    operators = sum(len(names) for names in needed.operators.values())
    yield _indented(
        f"IR version {needed.ir_version}; opsets {opsets}; {_plural(operators, 'operator')}, "
        f"{_plural(len(needed.functions), 'function')} in the file"
    )
    for domain, names in needed.operators.items():
        if domain:
            yield _indented(f"{shown(domain)}: {_few(names, 2 * _OTHER_ROWS)}")


def _targets(targets: Sequence[TargetFacts]) -> Iterator[RenderableType]:
    if not targets:
        return
    rows: list[list[str | Text]] = [
        [
            shown(target.name),
            Text("runs", style="green") if target.runs else Text("does not", style="red"),
            "; ".join(shown(reason, _LONGEST_TEXT) for reason in target.reasons),
        ]
        for target in targets
    ]
    yield _table("Targets", ["", "", ""], rows)


def _first(rows: Sequence[list[str]], most: int) -> list[list[str]]:
    """The first rows; the others are one, unless that would be no shorter."""
    if len(rows) <= most + 1 or not rows:
        return list(rows)
    return [*rows[:most], [f"... {len(rows) - most:,} more", *[""] * (len(rows[0]) - 1)]]


def _table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    total: Sequence[str] | None = None,
) -> RenderableType:
    """A table below an empty line and its title, which may be wider and is not markup."""
    heading = Text(title, style="italic")
    return _spaced(Group(heading, table("", columns, rows, total, dense=True)))


def _few(names: Sequence[str], most: int = _FEW_NAMES) -> str:
    """The first names."""
    more = [f"{len(names) - most:,} more"] if len(names) > most else []
    return ", ".join(chain(map(_name, names[:most]), more))


def _plural(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def _name(name: str) -> str:
    return shown(name, _LONGEST_NAME)


def _heading(text: str) -> RenderableType:
    """As the titles of tables are."""
    return _spaced(Text(text, style="italic"))


def _spaced(part: RenderableType) -> RenderableType:
    return Padding(part, (1, 0, 0, 0), expand=False)


def _indented(text: str) -> RenderableType:
    return Padding(Text(text, overflow="fold"), (0, 0, 0, 2), expand=False)
