"""Training: ``graphopt train``."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

import graphopt
from graphopt._outputs import Named, check_outputs
from graphopt.checkpoint import note_of
from graphopt.checkpoint_folder import best_checkpoint
from graphopt.command_line.data_options import (
    CONSTANT,
    SAMPLES,
    Data,
    sample_options,
)
from graphopt.command_line.options import Graph, check_folders, meaning, with_options
from graphopt.command_line.progress import Logged, Shown, log_columns, progress_bar, said
from graphopt.command_line.training_inputs import TrainingInputs
from graphopt.configuration import read_configuration
from graphopt.evaluation import Evaluator
from graphopt.samples import DEFAULT_BATCH_SIZE
from graphopt.training_by_ranks import Distributed, company
from graphopt.training_run import (
    LOSS,
    VALIDATION,
    History,
    Log,
    Plan,
    Run,
    check_plot,
    draw,
    log_format,
    rate_of,
    scalars,
    stopping,
    target_at,
)


def _from_file(ctx: typer.Context, file: Path | None) -> Path | None:
    """Let the options that are not given be what a file says."""
    if file is not None and not ctx.resilient_parsing:
        ctx.default_map = dict(read_configuration(file).section("train"))
    return file


@with_options(SAMPLES)
def train(
    graph: Graph,
    data: Data,
    epochs: Annotated[
        int,
        typer.Option(
            min=1,
            help=meaning("train", "epochs"),
            show_default=False,
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="A file whose section [train] says what is not given here (graphopt config "
            "--example prints one).",
            is_eager=True,
            callback=_from_file,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=meaning(
                "train",
                "batch_size",
                f"by default what the graph fixes, or {DEFAULT_BATCH_SIZE} where it leaves it open",
            ),
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help=meaning("train", "seed"))] = 0,
    constant: CONSTANT = None,
    validation: Annotated[
        str | None,
        typer.Option(metavar="DATA", help=meaning("train", "validation")),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=meaning("train", "metric", "repeatable; what suits the loss by default"),
        ),
    ] = None,
    monitor: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=meaning("train", "monitor", "the loss by default"),
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(min=1, metavar="EPOCHS", help=meaning("train", "patience")),
    ] = None,
    min_delta: Annotated[float, typer.Option(min=0, help=meaning("train", "min_delta"))] = 0.0,
    resume: Annotated[
        Path | None, typer.Option(metavar="CKPT", help=meaning("train", "resume"))
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help=meaning(
                "train",
                "checkpoint",
                "TRAIN.safetensors beside the graph, if neither this nor --export is given",
            ),
        ),
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help=meaning("train", "save_every"))
    ] = None,
    save_minutes: Annotated[
        float | None, typer.Option(metavar="MINUTES", help=meaning("train", "save_minutes"))
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help=meaning("train", "keep"))] = 3,
    keep_best: Annotated[
        bool,
        typer.Option("--keep-best/--no-keep-best", help=meaning("train", "keep_best")),
    ] = False,
    background: Annotated[
        bool,
        typer.Option("--background/--no-background", help=meaning("train", "background")),
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(metavar="MODEL.onnx", help=meaning("train", "export")),
    ] = None,
    export_best: Annotated[
        bool,
        typer.Option(
            "--export-best/--no-export-best",
            help=meaning("train", "export_best"),
        ),
    ] = False,
    log: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv|.jsonl", help=meaning("train", "log")),
    ] = None,
    log_every: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help=meaning("train", "log_every"))
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png|.svg|.pdf", help=meaning("train", "plot")),
    ] = None,
    distributed: Annotated[
        Distributed | None,
        typer.Option(
            help=meaning("train", "distributed", "each has a part of each batch"),
            show_default=False,
        ),
    ] = None,
    **options: Any,
) -> None:
    """Train on samples.

    The samples are shuffled anew for each epoch. The same command goes on
    from its checkpoint until all epochs are done, as if never interrupted.
    Ctrl-C and SIGTERM end it after the running step, and save.
    """
    if export_best and not (export and keep_best):
        raise ValueError("--export-best: needs --export and --keep-best")
    if log_every is not None and log is None:
        raise ValueError("--log-every: needs --log FILE")
    with stopping() as stop, company(distributed) as ranks, ExitStack() as ending:
        say = typer.echo if ranks.is_first else _say_nothing
        if checkpoint is None and export is None:
            checkpoint = graph.with_suffix(".safetensors")
        _check_files(graph, data, validation, config, resume, checkpoint, export, log, plot)
        loaded = graphopt.load(graph)
        inputs = TrainingInputs.of(loaded, data, validation, sample_options(options), constant)
        outputs = [("--checkpoint", checkpoint), ("--export", export)]
        inputs.check_not_read([*outputs, ("--log", log), ("--plot", plot)])
        session = ranks.session(loaded)
        evaluator = inputs.evaluator(loaded, session, metric)
        del loaded
        size = ranks.size_of_batch(inputs.sampled(), batch_size)
        steps, left_out = inputs.steps_of_epoch(session, size)
        if left_out:
            say(f"each epoch leaves out {left_out} samples: the graph takes {size} at a time")
        plan = Plan(inputs.samples, size, steps, epochs, seed, inputs.constants)
        tracked = keep_best or patience is not None or monitor is not None
        history = History(_monitored(monitor, evaluator), patience, min_delta)
        target = target_at(
            checkpoint,
            every=save_every,
            minutes=save_minutes,
            keep=keep,
            best=history.mode if keep_best else None,
            background=background,
        )
        ending.callback(target.leave)
        run = ranks.run(session, plan, target, history)
        if left := inputs.validate_in(run, evaluator, size):
            say(f"validation leaves out {left} samples: the graph takes so many at a time")
        if tracked:
            run.validated = {**run.validated, "monitored value": history.monitored}
        run.resume(resume)
        if run.position and not run.has_ended:
            say(f"goes on after step {run.position} of {plan.total}")
        began, rate = run.position, rate_of(session.graph, scalars(inputs.constants))
        with progress_bar(size, shown=ranks.is_first) as progress:
            watchers: list[Any] = [Shown(progress, run, rate)] if ranks.is_first else []
            if log is not None and ranks.is_first:
                columns = log_columns(evaluator.names if evaluator else [])
                watchers.append(Logged(Log(log, columns, began), run, rate, log_every))
            run.train(stop, watchers)
        if plot is not None and history.epochs and ranks.is_first:
            draw(plot, history.epochs, history.best["epoch"] if history.best else None)
        stopped = None if run.has_ended else stop.signal
        if stopped is not None:
            say(_stopped(stopped, run), err=True)
        elif export is not None:
            if export_best and checkpoint is not None and ranks.is_first:
                session.load_checkpoint(_best_of(run, checkpoint))
            session.export(export)
    if stopped is not None:
        raise typer.Exit(128 + stopped)
    for line in _came_of(run, tracked=tracked):
        say(line)
    for name, path in (("checkpoint", checkpoint), ("log", log), ("plot", plot)):
        if path is not None:
            say(f"{name}: {path}")
    if export is not None:
        say(f"trained model: {export}")


def _say_nothing(message: str, *, err: bool = False) -> None:
    """What another rank says."""
    del message, err


def _check_files(
    graph: Path,
    data: str,
    validation: str | None,
    config: Path | None,
    resume: Path | None,
    checkpoint: Path | None,
    export: Path | None,
    log: Path | None,
    picture: Path | None,
) -> None:
    """Refuse to write what is read, or what could not be written in the end."""
    check_folders(checkpoint, export)
    inputs: list[Named] = [("TRAIN.onnx", graph), ("--data", data), ("--validation", validation)]
    inputs.append(("--config", config))
    check_outputs([("--checkpoint", checkpoint)], inputs)  # which --resume may be
    others: list[Named] = [("--export", export), ("--log", log), ("--plot", picture)]
    check_outputs(others, [*inputs, ("--resume", resume)])
    check_outputs([*others, ("--checkpoint", checkpoint)], [])
    if log is not None:
        log_format(log)
    if picture is not None:
        check_plot(picture)
    check_folders(log, picture)


def _monitored(monitor: str | None, evaluator: Evaluator | None) -> str:
    """The value that says which epoch is the best."""
    names = [LOSS] if evaluator is None else evaluator.names
    chosen = monitor or names[0]
    if chosen not in names:
        remedy = "" if evaluator else "; metrics need --validation DATA"
        raise ValueError(f"--monitor: got '{chosen}', expected {', '.join(names)}{remedy}")
    return chosen if evaluator is None else f"{VALIDATION}{chosen}"


def _best_of(run: Run, folder: Path) -> Path:
    """The checkpoint of the best epoch.

    Raises:
        ValueError: It was not kept.
    """
    found, best = best_checkpoint(folder), run.history.best
    metric = note_of(found)["metric"]
    if best is not None and best[run.monitored] != metric:
        raise ValueError(
            f"--export-best: the checkpoint of the best epoch, {best['epoch']}, was not kept, "
            f"because the run began without --keep-best; '{found}' is the best that is there: "
            "graphopt export --best writes it"
        )
    return found


def _came_of(run: Run, *, tracked: bool) -> Iterator[str]:
    """What came of a run that has ended."""
    history = run.history
    if run.losses:
        yield f"mean loss of the last epoch: {run.summed[1] / run.summed[0]:.6f}"
    else:
        yield f"nothing to do: {run.position} of {run.plan.total} steps were done before"
    if run.validate is not None and history.epochs:
        yield f"epoch {history.epochs[-1]['epoch']}: {said(history.epochs[-1])}"
    if history.has_ended and run.position < run.plan.total:
        yield (
            f"stopped early: {history.waited} epochs without a better {history.monitored} "
            f"(--patience {history.patience})"
        )
    if tracked and history.best is not None:
        yield f"best: epoch {history.best['epoch']}: {said(history.best)}"
    if run.skipped:
        yield f"skipped steps: {run.skipped}"


def _stopped(number: int, run: Run) -> str:
    """How to go on."""
    name = signal.Signals(number).name
    how = (
        "nothing is saved, because there is no --checkpoint"
        if run.target.path is None
        else f"the same command goes on from '{run.target.path}'"
    )
    done = f"step {run.position} of {run.plan.total}"
    return f"stopped by {name} after {done}: {how}"
