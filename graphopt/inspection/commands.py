"""The commands that look into files: ``graphopt inspect``, ``verify`` and ``diff``."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console, RenderableType

from graphopt._files import about, write_atomically
from graphopt._outputs import check_outputs
from graphopt._words import shown
from graphopt.checkpoint import file_of, in_folder
from graphopt.graph import load
from graphopt.inspection import checkpoints
from graphopt.inspection._inspect import inspect as inspected
from graphopt.inspection.comparison.differences import diff as difference
from graphopt.inspection.facts import LEVELS, Hazard, Level
from graphopt.inspection.reading.read_model import read
from graphopt.inspection.show.checkpoint_tables import checkpoint_tables
from graphopt.inspection.show.difference_tables import (
    checkpoint_difference_tables,
    graph_difference_tables,
)
from graphopt.inspection.show.graph_tables import graph_tables
from graphopt.inspection.show.page import (
    checkpoint_difference_page,
    checkpoint_page,
    difference_page,
    page,
)
from graphopt.inspection.show.page.times import node_times
from graphopt.inspection.verification.verdict import Verification, verify as verified
from graphopt.inspection.words import for_json
from graphopt.samples import first_batch

_WIDTH = 100  # where it is not known
_LONGEST_LINE = 400
_File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="A model in ONNX, or a checkpoint; a folder stands for its newest.",
        show_default=False,
    ),
]


def inspect(
    ctx: typer.Context,
    file: _File,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON, for programs.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="OUT.html", help="Write a page for the browser, in one file."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Planned steps: which schedule is too short for them?")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What it shall run on, e.g. onnxruntime==1.19 or coreml."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="The size that is assumed for open dimensions.")
    ] = 32,
    dim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SIZE", help="The size of one of them; repeatable."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Parameters to show, e.g. 'conv1.*'; repeatable."),
    ] = None,
    group: Annotated[
        list[int] | None, typer.Option(min=0, help="Groups whose parameters to show; repeatable.")
    ] = None,
    sort: Annotated[
        Literal["order", "name", "size", "bytes"], typer.Option(help="The order of parameters.")
    ] = "order",
    rows: Annotated[int, typer.Option(min=0, help="How many parameters to show.")] = 20,
    show_all: Annotated[bool, typer.Option("--all", help="Show all of everything.")] = False,
    graph: Annotated[
        Path | None,
        typer.Option(metavar="TRAIN.onnx", help="Of a checkpoint: the graph that it belongs to."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="PROFILE.json",
            help="With --html: what graphopt profile --json wrote, to color the graph by.",
        ),
    ] = None,
    fail_on: Annotated[
        Literal["error", "warning", "note"] | None,
        typer.Option(help="Exit with 1 if there is a hazard of this level or a worse one."),
    ] = None,
) -> None:
    """Show what a training graph, or a checkpoint, holds.

    The optimizer, its groups and parameters, what each stage costs, what the runtime must support,
    and what may go wrong: read in the file alone, which is not run.
    """
    check_outputs([("--html", html)], [("FILE", file), ("--graph", graph), ("--profile", profile)])
    if profile is not None and html is None:
        raise ValueError("--profile: its times are shown on the page; add --html OUT.html")
    if as_json:
        _refuse(ctx, ("name", "group", "sort", "rows", "show_all"), "--json prints everything")
    elif html is not None:
        _refuse(ctx, ("name", "group", "sort", "rows", "show_all"), "--html writes everything")
    file = _newest(file)
    if checkpoints.is_checkpoint(file):
        of_graphs = ("profile", "steps", "target", "batch_size", "dim", "name", "group", "sort")
        _refuse(ctx, of_graphs, f"'{file}' is a checkpoint, and this is for graphs")
        rows = sys.maxsize if show_all else rows
        checkpoint = checkpoints.inspect_checkpoint(file, inspected(graph) if graph else None)
        if as_json or html is None:
            _show(checkpoint, checkpoint_tables(str(file), checkpoint, rows), as_json=as_json)
        if html is not None:
            _write(html, checkpoint_page(checkpoint), as_json=as_json)
        _exit_if(checkpoint.problems, fail_on)
        return
    if graph is not None:
        raise ValueError(f"--graph: got it for '{file}', which is not a checkpoint; leave it out")
    model = read(file, steps)
    found = inspected(
        model,
        steps=steps,
        target=target,
        batch_size=batch_size,
        dims=dict(named_size(text) for text in dim or []),
    )
    if as_json or html is None:
        tables = graph_tables(
            found, rows=rows, names=name or (), groups=group or (), sort=sort, all=show_all
        )
        _show(found, tables, as_json=as_json)
    if html is not None:
        with about(html):
            times = None if profile is None else node_times(profile, model.file.model.graph)
            _write(html, page(found, model, times), as_json=as_json)
    _exit_if(found.hazards, fail_on)


def verify(
    file: Annotated[
        Path, typer.Argument(metavar="TRAIN.onnx", help="A training graph.", show_default=False)
    ],
    steps: Annotated[int, typer.Option(min=1, help="Steps to compare.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 0,
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="The execution provider.")
    ] = "CPUExecutionProvider",
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATA.npz", help="What a step is fed; made up where left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a graph, and compare its update with RMSProp and its gradients with its loss.

    The update in NumPy; the gradients with differences of the loss in float64; and the values that
    the runtime computes with those of the nodes, one by one. Exits with 1 if something is not the
    same, or the update could not be run.
    """
    feeds = None if data is None else first_batch(load(file), data, None)
    found = verified(file, steps=steps, seed=seed, providers=[provider], feeds=feeds)
    if as_json:
        _print_json(found.to_dict())
    else:
        _tell(file, found)
    if not found.verified:
        raise typer.Exit(1)


def _tell(file: Path, found: Verification) -> None:
    """Say in a few lines what was compared, and what not."""
    if found.verified:
        typer.echo(
            f"{file}: this graph computes {found.optimizer}: {found.steps} steps on random "
            f"gradients, the largest deviation is {found.deviation:.2g} of what rounding explains"
        )
    else:
        typer.echo(f"{file}: {found.optimizer}, not verified")
        for line in found.differences:
            typer.echo(f"  {shown(line, _LONGEST_LINE)}")
    if (checked := found.gradients) is not None and checked.deviation <= 1:
        typer.echo(
            f"  gradients: those of the loss, {checked.parameters} parameters along "
            f"{checked.directions} directions, the largest deviation is {checked.deviation:.2g} of "
            f"what differences in {checked.precision} tolerate"
        )
    if (values := found.forward) is not None and values.deviation <= 1:
        beside = " and the forward model" if values.forward_model else ""
        typer.echo(
            f"  values: those of the nodes{beside} in {values.precision}, {values.values} values "
            f"at {values.samples} points, the largest deviation is {values.deviation:.2g} of what "
            "rounding explains"
        )
    for line in found.unchecked:
        typer.echo(f"  not compared: {shown(line, _LONGEST_LINE)}")


def diff(
    ctx: typer.Context,
    before: Annotated[Path, typer.Argument(metavar="A", help="A graph or a checkpoint.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another of the same kind.")],
    rows: Annotated[int, typer.Option(min=1, help="Rows of a table.")] = 20,
    html: Annotated[
        Path | None,
        typer.Option(metavar="OUT.html", help="Write a page for the browser, in one file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show what is different between two training graphs, or two checkpoints."""
    check_outputs([("--html", html)], [("A", before), ("B", after)])
    if as_json or html is not None:
        way = "--json prints" if as_json else "--html writes"
        _refuse(ctx, ("rows",), f"{way} everything")
    before, after = _newest(before), _newest(after)
    kinds = [checkpoints.is_checkpoint(file) for file in (before, after)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"'{before}' and '{after}': one is a checkpoint, the other a model")
    found: Any
    if all(kinds):
        found = checkpoints.diff_checkpoints(before, after)
        parts = checkpoint_difference_tables(f"{before} and {after}", found, rows=rows)
        text = checkpoint_difference_page(found) if html is not None else ""
    else:
        models = read(before), read(after)
        first, second = (inspected(model) for model in models)
        found = difference(first, second)
        parts = graph_difference_tables(f"{before} and {after}", found, rows=rows)
        sides = (first, models[0]), (second, models[1])
        text = difference_page(found, *sides) if html is not None else ""
    if as_json or html is None:
        _show(found, parts, as_json=as_json)
    if html is not None:
        _write(html, text, as_json=as_json)


def _newest(path: Path) -> Path:
    """A path; of a folder of checkpoints, that of the newest, as for all that reads checkpoints."""
    return Path(file_of(path)) if path.is_dir() and in_folder(path) else path


def _write(html: Path, text: str, *, as_json: bool) -> None:
    write_atomically(html, lambda part: part.write_text(text, encoding="utf-8"))
    typer.echo(f"page: {html}", err=as_json)


def _refuse(ctx: typer.Context, parameters: Iterable[str], reason: str) -> None:
    """Refuse options that stand on the command line and would have no effect."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name in parameters and source is not None and source.name == "COMMANDLINE":
            raise ValueError(f"{parameter.opts[0]}: {reason}; leave it out")


def named_size(text: str) -> tuple[str, int]:
    """NAME=SIZE, taken apart."""
    name, _, size = text.rpartition("=")
    if not name or not size.isdecimal():
        raise ValueError(f"--dim: got '{text}', expected NAME=SIZE, such as length=128")
    return name, int(size)


def console() -> Console:
    """What prints tables; of a fixed width where nobody looks."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=_WIDTH)


def _exit_if(hazards: Iterable[Hazard], level: Level | None) -> None:
    """Exit with 1 if one of the hazards is of this level or worse."""
    if level is not None:
        levels = LEVELS[: LEVELS.index(level) + 1]
        if any(hazard.level in levels for hazard in hazards):
            raise typer.Exit(1)


def _show(found: Any, parts: Iterable[RenderableType], *, as_json: bool) -> None:
    """Print what was found, as JSON or in parts for people."""
    if as_json:
        _print_json(found.to_dict())
        return
    screen = console()
    for part in parts:
        screen.print(part)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(for_json(value), indent=2, allow_nan=False))
