"""An inspection as a page on a terminal."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

from rich.console import RenderableType
from rich.text import Text

from graphopt._words import count, shown, size
from graphopt.inspection.facts import (
    Hazard,
    Inspection,
    MemoryFacts,
    ModelFacts,
    ParameterFacts,
    TargetFacts,
)
from graphopt.inspection.show.optimizer_tables import (
    group_table,
    optimizer_lines,
    parameter_table,
    state_table,
)
from graphopt.inspection.show.parts import (
    few,
    first_rows,
    heading,
    indented,
    plural,
    short,
    spaced,
    titled_table,
)
from graphopt.inspection.words import shape

Sort = Literal["order", "name", "size", "bytes"]
"""The order of the optimizer, or by name, or the largest first."""

_ROWS = 20
_OTHER_ROWS = 8  # of groups, values and state, which are a page each in a large network
_LONGEST_TEXT = 1000  # what a hazard or a target says
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_KEYS: Mapping[str, Callable[[ParameterFacts], int | str]] = {
    "order": lambda parameter: 0,  # noqa: ARG005 - sorting is stable
    "name": lambda parameter: parameter.name,
    "size": lambda parameter: -parameter.size,
    "bytes": lambda parameter: -parameter.bytes - parameter.state_bytes,
}


def graph_tables(
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
        >>> for part in graph_tables(graphopt.inspect("train.onnx")):  # doctest: +SKIP
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
    yield from optimizer_lines(inspection)
    yield from group_table(inspection, others)
    yield from parameter_table(inspection, parameters, rows)
    yield _memory(inspection.memory)
    yield from _stages(inspection)
    yield from _values(inspection, others)
    yield from state_table(inspection.state, others)
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
    title = Text(short(model.name), style="bold")
    title.append(f": {shown(model.kind)}, {model.nodes:,} nodes, {size(model.bytes)}", "not bold")
    if model.precision not in ((), ("float32",)):
        title.append(f", computed in {' and '.join(model.precision)}", "not bold")
    if model.producer:
        title.append(f", written by {shown(model.producer)}", "not bold")
    return title


def _hazards(hazards: Sequence[Hazard]) -> Iterator[RenderableType]:
    for hazard in hazards:
        where = f": {few(hazard.where)}" if hazard.where else ""
        line = Text(f"{hazard.level} ", style=_COLOURS.get(hazard.level, ""))
        line.append(f"{shown(hazard.kind)}{where}", "not dim")
        yield spaced(line)
        for text in (hazard.why, hazard.fix):
            if text:
                yield indented(shown(text, _LONGEST_TEXT))
    if not hazards:
        yield spaced(Text("No hazards found.", style="green"))


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
    return titled_table(
        "Memory of a step", ["", ">bytes", ""], rows, ["together", size(together), ""]
    )


def _stages(inspection: Inspection) -> Iterator[RenderableType]:
    stages = [stage for stage in inspection.stages if stage.nodes]
    if not stages:
        return
    unknown = any(stage.unknown for stage in stages)
    inside = any(stage.inside for stage in stages)
    rows = [
        [stage.stage, f"{stage.nodes:,}"]
        + [f"{stage.inside:,}"] * inside
        + [count(stage.flops), size(stage.bytes)]
        + [f"{stage.unknown:,}"] * unknown
        for stage in stages
    ]
    columns = ["", ">nodes", *[">inside"] * inside, ">FLOPs", ">bytes moved"]
    columns += [">not counted"] * unknown
    yield titled_table("A step", columns, rows)


def _values(inspection: Inspection, most: int) -> Iterator[RenderableType]:
    """What a caller feeds and gets, without what is carried."""
    carried = {name for state in inspection.state for name in (state.input, state.output)}
    rows = []
    for kind, values in (("input", inspection.inputs), ("output", inspection.outputs)):
        cells = [
            [short(value.name), kind, shown(value.dtype), shape(value.shape)]
            for value in values
            if value.name not in carried
        ]
        rows += first_rows(cells, most)
    if rows:
        yield titled_table("Inputs and outputs", ["name", "", "dtype", "shape"], rows)


def _requirements(inspection: Inspection) -> Iterator[RenderableType]:
    needed = inspection.requirements
    opsets = ", ".join(
        f"{shown(domain) if domain else 'ONNX'} {version}"
        for domain, version in sorted(needed.opsets.items())
    )
    yield heading("Requirements")
    operators = sum(len(names) for names in needed.operators.values())
    yield indented(
        f"IR version {needed.ir_version}; opsets {opsets}; {plural(operators, 'operator')}, "
        f"{plural(len(needed.functions), 'function')} in the file"
    )
    for domain, names in needed.operators.items():
        if domain:
            yield indented(f"{shown(domain)}: {few(names, 2 * _OTHER_ROWS)}")


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
    yield titled_table("Targets", ["", "", ""], rows)
