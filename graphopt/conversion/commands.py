"""The command that converts states: ``graphopt convert``."""

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from graphopt import conversion
from graphopt._files import existing_file
from graphopt._outputs import check_outputs
from graphopt.conversion import Framework
from graphopt.conversion._settings import trained_by
from graphopt.session import Session

Target = Literal["graphopt", "torch", "timm", "mindspore"]


def convert(
    graph: Annotated[
        Path,
        typer.Argument(metavar="TRAIN.onnx", help="The training graph.", show_default=False),
    ],
    source: Annotated[
        Path,
        typer.Option(
            "--from",
            metavar="STATE",
            help="The optimizer's state: a file of torch.save, a checkpoint of MindSpore, or one "
            "of graphopt.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="STATE", help="The state to write.", show_default=False
        ),
    ],
    to: Annotated[Target, typer.Option(help="Whose state is written.")] = "graphopt",
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The parameters, if they are in a file of their own."),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.txt",
            help="The parameters of the optimizer there, in its order, a name a line; "
            "theirs=ours where the graph has another name.",
        ),
    ] = None,
    graph_order: Annotated[
        bool,
        typer.Option("--graph-order", help="That order is the order of the graph's parameters."),
    ] = False,
    transposed: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A matrix that the graph has transposed; repeatable."),
    ] = None,
) -> None:
    """Convert the state of an optimizer, from or to another framework.

    Training goes on there as it would here, and here as it would there: the
    hyperparameters must be those of the graph. Nothing in a file is run.
    """
    inputs = [("TRAIN.onnx", graph), ("--from", source), ("--weights", weights), ("--names", names)]
    check_outputs([("--output", output)], inputs)
    if names is not None and graph_order:
        raise ValueError("--names and --graph-order: give one of them")
    session = Session(graph)
    order = None if names is None else _names_in(names)
    if graph_order:
        order = {parameter: parameter for parameter in trained_by(session.graph)}
    chosen = tuple(transposed or ())
    if to in get_args(Framework):
        if weights is not None:
            raise ValueError("--weights: a checkpoint of graphopt has its parameters itself")
        session.load_checkpoint(source)
        conversion.save_state(session, output, to, names=order, transposed=chosen)  # type: ignore[arg-type]
    else:
        report = conversion.load_state(
            session, source, weights=weights, names=order, transposed=chosen
        )
        session.save_checkpoint(output)
        for note in report.differences:
            typer.echo(f"note: {note}", err=True)
        if report.kept:
            typer.echo(
                f"note: from the graph, not from '{source}': {', '.join(report.kept)}", err=True
            )
    typer.echo(f"{to} state at step {session.global_step}: {output}")


def _names_in(path: Path) -> dict[str, str]:
    """The names of a file, and what the graph calls each.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no text, or has a name twice.
    """
    try:
        text = existing_file(path).read_text("utf-8")
    except UnicodeError as error:
        raise ValueError(f"'{path}' is not a text of names: {error}") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = {}
    for line in lines:
        theirs, _, ours = line.partition("=")
        found[theirs.strip()] = ours.strip() or theirs.strip()
    if len(found) < len(lines):
        raise ValueError(f"'{path}' has a name twice")
    return found
