"""What is made of checkpoints: ``graphopt export`` and ``average``."""

from pathlib import Path
from typing import Annotated

import typer

import graphopt
from graphopt._outputs import check_outputs
from graphopt.checkpoint_folder import best_checkpoint
from graphopt.command_line.options import Graph


def export(
    graph: Graph,
    checkpoint: Annotated[
        Path, typer.Option(metavar="CKPT", help="A checkpoint of it.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="MODEL.onnx",
            help="The trained model to write.",
            show_default=False,
        ),
    ],
    best: Annotated[
        bool, typer.Option("--best", help="Take the best checkpoint of the folder.")
    ] = False,
    training: Annotated[
        bool,
        typer.Option("--training", help="Write it in the mode in which it was given."),
    ] = False,
    average: Annotated[
        bool,
        typer.Option("--average", help="Write the averages of the parameters that it carries."),
    ] = False,
) -> None:
    """Write the forward model with the parameters of a checkpoint, for inference."""
    check_outputs([("--output", output)], [("TRAIN.onnx", graph), ("--checkpoint", checkpoint)])
    session = graphopt.Session(graph)
    session.load_checkpoint(best_checkpoint(checkpoint) if best else checkpoint)
    session.export(output, training=training, average=average)
    typer.echo(f"trained model: {output}")


def average(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CKPT...",
            help="Checkpoints of one graph; a folder stands for all that it has.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="CKPT", help="The checkpoint to write.", show_default=False
        ),
    ],
    last: Annotated[
        int | None,
        typer.Option(metavar="N", help="Take only so many, those with the most updates."),
    ] = None,
) -> None:
    """Write the mean of the parameters and running statistics of several checkpoints."""
    taken = graphopt.average_checkpoints(checkpoints, output, last=last)
    typer.echo(f"average of {len(taken)} checkpoints: {output}")
