"""Measuring: ``graphopt profile``."""

import json
from pathlib import Path
from typing import Annotated

import typer

import graphopt
from graphopt._files import about, write_atomically
from graphopt._outputs import check_outputs
from graphopt.command_line.options import Graph, check_folders
from graphopt.inspection.commands import console, named_size
from graphopt.profiling.profile_tables import profile_tables
from graphopt.samples import DEFAULT_BATCH_SIZE, first_batch


def profile(
    graph: Graph,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="An array for each feed, of which the first samples are used; random ones if not "
            "given.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help=f"Samples in a step; {DEFAULT_BATCH_SIZE} where it is open."),
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SIZE", help="The size of another open dimension; repeatable."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to measure.")] = 20,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of ONNX Runtime; by default its choice.")
    ] = None,
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="The execution provider.")
    ] = "CPUExecutionProvider",
    kernels: Annotated[
        bool, typer.Option("--kernels/--no-kernels", help="Use the fused kernels of the update.")
    ] = True,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a table.")] = 10,
    depth: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How deep modules are told apart in their table; by default as deep as the rows "
            "allow.",
        ),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="OUT.json", help="The whole profile, to write.")
    ] = None,
) -> None:
    """Show where a training step goes, from ONNX Runtime's own profiler.

    Times are of a typical step: the median of each node over the steps. The
    profiler's own work counts as runtime, and makes small nodes look slow.
    """
    check_folders(json_path)
    check_outputs([("--json", json_path)], [("TRAIN.onnx", graph), ("--data", data)])
    loaded = graphopt.load(graph)
    feeds = None if data is None else first_batch(loaded, data, batch_size)
    measured = graphopt.profile(
        loaded,
        feeds,
        steps=steps,
        batch_size=batch_size if feeds is None else None,
        dims=dict(named_size(text) for text in dim or []),
        providers=list(dict.fromkeys([provider, "CPUExecutionProvider"])),
        threads=threads,
        kernels=kernels,
    )
    screen = console()
    for part in profile_tables(str(graph), measured, rows, depth):
        screen.print(part)
    if json_path is not None:
        with about(json_path):
            text = json.dumps(measured.to_dict(), indent=2) + "\n"
            write_atomically(json_path, lambda part: part.write_text(text, encoding="utf-8"))
        typer.echo(f"profile: {json_path}")
