"""How good a model is: ``graphopt evaluate``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import graphopt
from graphopt.checkpoint_folder import best_checkpoint
from graphopt.command_line.data_options import SAMPLES, Data, sample_options
from graphopt.command_line.options import with_options
from graphopt.evaluation import Evaluator, LossOf, evaluator_of, feed_named, values_of
from graphopt.forward import read_with_files
from graphopt.graph import TrainingGraph
from graphopt.losses import LABELS
from graphopt.samples import DEFAULT_BATCH_SIZE, open_samples, size_of_batch


@with_options(SAMPLES)
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL.onnx",
            help="A training graph, or a model for inference.",
            show_default=False,
        ),
    ],
    data: Data,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="CKPT", help="Of a training graph: the checkpoint, or a folder of them."
        ),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Take the best checkpoint of the folder.")
    ] = False,
    average: Annotated[
        bool, typer.Option("--average", help="Take the averages of the parameters.")
    ] = False,
    loss: Annotated[
        str | None,
        typer.Option(help="The loss of a model that is no training graph.", show_default=False),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="accuracy, top5 (or any other k), precision, recall, f1, mae, rmse or r2; "
            "repeatable; what suits the loss by default.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The output that metrics are of, if not the loss's."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The feed with the labels, if not the loss's."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help=f"Samples at once; {DEFAULT_BATCH_SIZE} where it is open."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the values as JSON.")] = False,
    **options: Any,
) -> None:
    """Compute the loss and metrics on data, in inference mode."""
    if best and checkpoint is None:
        raise ValueError("--best: needs --checkpoint DIR")
    proto, files = read_with_files(model)
    if proto.training_info:
        if loss is not None:
            raise ValueError(f"--loss: '{model}' is a training graph, which has one; leave it out")
        graph = TrainingGraph(proto, files=files)
        session = graphopt.Session(graph)
        if checkpoint is not None:
            session.load_checkpoint(best_checkpoint(checkpoint) if best else checkpoint)
        values = values_of(session.graph, session.state, average=average)
        evaluator = evaluator_of(
            session.graph, values, metric or None, output=output, labels=labels
        )
    else:
        _refuse_of_graphs(model, checkpoint=checkpoint is not None, best=best, average=average)
        values = {}
        label = feed_named(labels or LABELS, proto)
        evaluator = Evaluator(
            proto, values, LossOf(loss, output, label), metric or None, output=output
        )
    samples = open_samples(data, evaluator.feeds, sample_options(options))
    size = size_of_batch(samples.among(evaluator.feeds), batch_size)
    count = evaluator.evaluated(samples, size)
    found = evaluator.evaluate(values, samples, size)
    if as_json:
        typer.echo(json.dumps({"samples": count, **found}))
        return
    if count < len(samples):
        left = len(samples) - count
        typer.echo(f"leaves out {left} samples: the graph takes {size} at a time", err=True)
    typer.echo(f"samples: {count}")
    for name, value in found.items():
        typer.echo(f"{name}: {value:.6f}")


def _refuse_of_graphs(model: Path, **given: bool) -> None:
    for name, there in given.items():
        if there:
            raise ValueError(f"--{name}: '{model}' is no training graph; leave it out")
