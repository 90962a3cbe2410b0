"""The optimizer on a terminal: its groups, its parameters and their state."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import RenderableType

from graphopt._words import UNKNOWN, number, shown, size
from graphopt.inspection.facts import (
    Inspection,
    OptimizerFacts,
    ParameterFacts,
    Schedule,
    StateFacts,
)
from graphopt.inspection.show.parts import (
    few,
    first_rows,
    heading,
    in_common,
    indented,
    plural,
    short,
    titled_table,
)
from graphopt.inspection.words import (
    accumulation,
    average,
    loss_scale,
    norms,
    schedule,
    schedule_name,
    shape,
)

_MOST_KINDS = 8
_LONGEST_LINE = 1000


def optimizer_lines(inspection: Inspection) -> Iterator[RenderableType]:
    """The optimizer, its hyperparameters, its formula and its layout."""
    optimizer = inspection.optimizer
    if optimizer is None:
        yield heading("No optimizer")
        return
    source = {"none": "not read"}.get(optimizer.source, f"read in {optimizer.source}")
    yield heading(f"Optimizer: {shown(optimizer.name)}, {source}")
    if words := _hyperparameters(optimizer):
        yield indented(", ".join(words))
    if optimizer.formula:
        yield indented("\n".join(shown(line, _LONGEST_LINE) for line in optimizer.formula))
    if inspection.layout is not None:
        functions = dict.fromkeys(bucket.function for bucket in inspection.buckets)
        by = few([function for function in functions if function])
        yield indented(
            f"layout {shown(inspection.layout)}: {plural(len(inspection.buckets), 'bucket')}"
            + (f", updated by {by}" if by else "")
        )


def _hyperparameters(optimizer: OptimizerFacts) -> list[str]:
    """Each that is known, in words."""
    facts = optimizer
    place = {None: "", True: " inside the root", False: " added to the root"}
    inside = "inside" if facts.learning_rate_inside_moment else "outside"
    words = [
        (facts.decay, f"decay {number(facts.decay)}"),
        (
            facts.momentum,
            f"momentum {number(facts.momentum)}" + " (Nesterov)" * bool(facts.nesterov),
        ),
        (facts.epsilon, f"epsilon {number(facts.epsilon)}{place[facts.epsilon_inside_root]}"),
        (facts.centered, "centered" if facts.centered else "not centered"),
        (facts.guarded, "guarded" if facts.guarded else "not guarded"),
        (facts.initial_mean_square, f"mean square from {number(facts.initial_mean_square)}"),
        (facts.loss_scale, f"loss scale {loss_scale(facts.loss_scale)}"),
        (facts.learning_rate_inside_moment, f"learning rate {inside} the moment"),
        (
            facts.decoupled_weight_decay,
            f"weight decay {'decoupled' if facts.decoupled_weight_decay else 'in gradient'}",
        ),
        (facts.skip_on_overflow or None, "skips steps that overflow"),
        (
            facts.clip_norm,
            f"clips the norm of {norms(facts.clip_norm_per)} to {number(facts.clip_norm)}",
        ),
        (facts.average, f"averages parameters, {average(facts.average)}"),
        (facts.accumulation, accumulation(facts.accumulation)),
        (facts.clip_value, f"clips gradients to {number(facts.clip_value)}"),
        (facts.group_mask or None, "group mask"),
        (facts.use_locking or None, "use_locking"),
        (facts.steps, f"for {plural(facts.steps or 0, 'step')}"),
    ]
    others = (f"{shown(name)} {number(value)}" for name, value in facts.others.items())
    return [*(text for value, text in words if value is not None), *others]


def group_table(inspection: Inspection, most: int) -> Iterator[RenderableType]:
    """The groups, if there are any."""
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
    yield titled_table("Groups", columns, first_rows(rows, most))


def parameter_table(
    inspection: Inspection, parameters: Sequence[ParameterFacts], rows: int
) -> Iterator[RenderableType]:
    """Some of the parameters, and what all of them have in common."""
    if not inspection.parameters:
        yield heading("No parameters are trained")
        return
    title = f"Parameters: {len(inspection.parameters):,}"
    if len(parameters) < len(inspection.parameters):
        title = f"Parameters: {len(parameters):,} of {len(inspection.parameters):,}"
    title += f", {plural(sum(p.size for p in parameters), 'element')}"
    if inspection.frozen:
        title += f"; {len(inspection.frozen):,} frozen"
    common, columns = in_common(parameters, _parameter_columns(inspection))
    first, rest = parameters[:rows], parameters[rows:]
    cells = [
        [
            short(p.name),
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
    yield titled_table(title, ["name", "shape", *columns, ">bytes", ">states"], cells, total)
    if common:
        yield indented(f"all: {', '.join(common)}")


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


def _sizes(parameters: Sequence[ParameterFacts]) -> list[str]:
    return [
        size(sum(parameter.bytes for parameter in parameters)),
        size(sum(parameter.state_bytes for parameter in parameters)),
    ]


def state_table(state: Sequence[StateFacts], most: int) -> Iterator[RenderableType]:
    """What is carried from step to step."""
    if not state:
        return
    common, columns = in_common(state, _STATE_COLUMNS)
    rows = [
        [short(value.input), *(cell(value) for cell in columns.values()), size(value.bytes)]
        for value in state
    ]
    known = [value.bytes for value in state if value.bytes is not None]
    together = size(sum(known) if len(known) == len(state) else None)
    kinds = Counter(value.kind for value in state)
    title = f"Carried to the next step: {len(state):,} (" + ", ".join(
        f"{amount:,} {shown(kind, 20)}" for kind, amount in kinds.most_common(_MOST_KINDS)
    )
    total = ["together", *[""] * len(columns), together]
    yield titled_table(f"{title})", ["input", *columns, ">bytes"], first_rows(rows, most), total)
    if common:
        yield indented(f"all: {', '.join(common)}")


def _output(state: StateFacts) -> str:
    """What feeds an input; where it is named after the input, only how."""
    if state.output is None:
        return "in place"
    if state.output.startswith(state.input) and len(state.output) > len(state.input):
        return f"<input>{shown(state.output[len(state.input) :], 20)}"
    return short(state.output)


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
