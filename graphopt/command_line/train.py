"""Training: ``graphopt train``."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import graphopt
from graphopt._outputs import check_outputs
from graphopt.command_line.options import Graph, check_folders
from graphopt.samples import DEFAULT_BATCH_SIZE, fixed_size, read_samples
from graphopt.training_by_ranks import Distributed, company
from graphopt.training_run import Plan, Run, stopping, target_at


def train(
    graph: Graph,
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE.npz",
            help="An array for each feed of the graph, by name; the first axis counts samples.",
            show_default=False,
        ),
    ],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.", show_default=False)],
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples in a step; by default what the graph fixes, "
            f"or {DEFAULT_BATCH_SIZE} where it leaves it open.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of the samples.")] = 0,
    resume: Annotated[
        Path | None, typer.Option(metavar="CKPT", help="A checkpoint to continue from.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="A folder for checkpoints, or one file, to save to after each epoch and to go on "
            "from; TRAIN.safetensors beside the graph, if neither this nor --export is given.",
        ),
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="Save after so many steps too.")
    ] = None,
    save_minutes: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Save after so many minutes too.")
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="How many checkpoints stay in the folder.")] = 3,
    keep_best: Annotated[
        bool,
        typer.Option(
            "--keep-best", help="Keep that of the epoch with the lowest mean loss beside them."
        ),
    ] = False,
    background: Annotated[
        bool, typer.Option("--background", help="Write to the folder while training goes on.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(metavar="MODEL.onnx", help="The trained model to write, for inference."),
    ] = None,
    distributed: Annotated[
        Distributed | None,
        typer.Option(
            help="Train with all processes that mpiexec or torchrun has started, each with a part "
            "of each batch.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train on the samples of a file.

    The samples are shuffled anew for each epoch. The same command goes on
    from its checkpoint until all epochs are done, as if never interrupted.
    Ctrl-C and SIGTERM end it after the running step, and save.
    """
    with stopping() as stop, company(distributed) as ranks:
        say = typer.echo if ranks.is_first else _say_nothing
        if checkpoint is None and export is None:
            checkpoint = graph.with_suffix(".safetensors")
        check_folders(checkpoint, export)
        inputs = [("TRAIN.onnx", graph), ("--data", data)]
        check_outputs([("--checkpoint", checkpoint)], inputs)  # which --resume may be
        check_outputs([("--export", export)], [*inputs, ("--resume", resume)])
        check_outputs([("--export", export), ("--checkpoint", checkpoint)], [])
        samples = read_samples(data)
        session = ranks.session(graph)
        size = ranks.size_of_batch(session.inputs, batch_size)
        steps, left_out = _steps_of_epoch(session, samples, size, data)
        if left_out:
            say(f"each epoch leaves out {left_out} samples: the graph takes {size} at a time")
        plan = Plan(samples, size, steps, epochs, seed)
        target = target_at(
            checkpoint,
            every=save_every,
            minutes=save_minutes,
            keep=keep,
            best=keep_best,
            background=background,
        )
        run = ranks.run(session, plan, target)
        run.resume(resume)
        if 0 < run.position < plan.total:
            say(f"goes on after step {run.position} of {plan.total}")
        with _progress_bar(shown=ranks.is_first) as progress:
            task = progress.add_task("epoch", total=plan.total, loss=float("nan"))

            def report(position: int, loss: float) -> None:
                epoch = f"epoch {max(0, position - 1) // plan.steps + 1}/{epochs}"
                progress.update(task, description=epoch, completed=position, loss=loss)

            report(run.position, float("nan"))
            run.train(stop, report)
        stopped = stop.signal if run.position < plan.total else None
        if stopped is not None:
            say(_stopped(stopped, run), err=True)
        elif export is not None:
            session.export(export)
    if stopped is not None:
        raise typer.Exit(128 + stopped)
    if run.losses:
        say(f"mean loss of the last epoch: {np.mean(run.losses):.6f}")
    else:
        say(f"nothing to do: {run.position} of {plan.total} steps were done before")
    if run.skipped:
        say(f"skipped steps: {run.skipped}")
    if checkpoint is not None:
        say(f"checkpoint: {checkpoint}")
    if export is not None:
        say(f"trained model: {export}")


def _say_nothing(message: str, *, err: bool = False) -> None:
    """What another rank says."""
    del message, err


def _steps_of_epoch(
    session: graphopt.Session, samples: Mapping[str, np.ndarray], size: int, data: Path
) -> tuple[int, int]:
    """How many steps go through all samples once, and how many samples they leave out."""
    count = len(next(iter(samples.values())))
    steps, rest = divmod(count, size)
    if rest and fixed_size(session.inputs) is None:
        return steps + 1, 0
    if steps == 0:
        file = next(iter(session.graph.files), "the graph")
        raise ValueError(f"'{data}' has {count} samples, and '{file}' takes {size} at a time")
    return steps, rest


def _stopped(number: int, run: Run) -> str:
    """Say how to go on."""
    name = signal.Signals(number).name
    how = (
        "nothing is saved, because there is no --checkpoint"
        if run.target.path is None
        else f"the same command goes on from '{run.target.path}'"
    )
    done = f"step {run.position} of {run.plan.total}"
    return f"stopped by {name} after {done}: {how}"


def _progress_bar(*, shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
