"""The command line: build a training graph, train it, export the trained model, look into it."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
from typer.core import TyperGroup

import graphopt
from graphopt._files import write_atomically
from graphopt._outputs import check_outputs
from graphopt.clipping import ClipNormPer
from graphopt.conversion.commands import convert
from graphopt.gradients import Memory
from graphopt.half import Precision
from graphopt.inspection import commands
from graphopt.inspection.commands import console, named_size
from graphopt.loss_scale import LossScale
from graphopt.losses import BUILT_IN
from graphopt.profiling.profile_tables import profile_tables
from graphopt.samples import (
    DEFAULT_BATCH_SIZE,
    first_batch,
    fixed_size,
    read_samples,
    size_of_batch,
)
from graphopt.training_run import Plan, Run, stopping, target_at
from graphopt.update.layout import LayoutName

_Graph = Annotated[
    Path, typer.Argument(metavar="TRAIN.onnx", help="The training graph.", show_default=False)
]


class _ErrorsInOneLine(TyperGroup):
    """Prints what the library says about bad input in one line, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; exit code 1 where the library refuses."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):  # these are RuntimeErrors too
            raise
        except KeyboardInterrupt as error:
            typer.echo("stopped by SIGINT", err=True)
            raise typer.Exit(128 + signal.SIGINT) from error
        except (
            FloatingPointError,
            ImportError,
            MemoryError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_ErrorsInOneLine,
    help="Train ONNX models with RMSProp inside the ONNX graph.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"graphopt {graphopt.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Say which it is."),
    ] = False,
) -> None:
    """What every command has."""


@app.command(
    epilog="Example:\n\ngraphopt build model.onnx --loss mse --learning-rate 0.01 -o train.onnx"
)
def build(
    forward: Annotated[
        Path, typer.Argument(metavar="FORWARD.onnx", help="The forward model.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="TRAIN.onnx",
            help="The training graph to write.",
            show_default=False,
        ),
    ],
    loss: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(BUILT_IN)}, or a scalar output of the model.",
            show_default=False,
        ),
    ],
    loss_output: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The output that the loss applies to, if several."),
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Step size.")] = 0.1,
    decay: Annotated[float, typer.Option(help="Decay of the mean square.")] = 0.9,
    momentum: Annotated[float, typer.Option(help="Momentum of the update.")] = 0.0,
    epsilon: Annotated[
        float, typer.Option(help="Added to the mean square under the root.")
    ] = 1e-10,
    centered: Annotated[
        bool, typer.Option("--centered", help="Subtract the square of the mean gradient.")
    ] = False,
    weight_decay: Annotated[float, typer.Option(help="Factor of the L2 penalty.")] = 0.0,
    loss_scale: Annotated[
        str,
        typer.Option(
            metavar="NUMBER|dynamic",
            help="Scale of the loss in the gradients; dynamic: it follows overflows.",
        ),
    ] = "1",
    skip_on_overflow: Annotated[
        bool,
        typer.Option(
            "--skip-on-overflow", help="Leave out steps with a gradient that is infinite or NaN."
        ),
    ] = False,
    clip_norm: Annotated[
        float | None, typer.Option(help="The largest norm of the gradients.", show_default=False)
    ] = None,
    clip_norm_per: Annotated[
        ClipNormPer, typer.Option(help="What each norm is over: all gradients, or each.")
    ] = "all",
    clip_value: Annotated[
        float | None,
        typer.Option(help="The largest element of the gradients.", show_default=False),
    ] = None,
    use_locking: Annotated[
        bool, typer.Option("--use-locking", help="Serialise steps from several threads.")
    ] = False,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Parameters to leave as they are, e.g. 'conv1.*'; repeatable."
        ),
    ] = None,
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="The execution provider to be fast on.")
    ] = "CPUExecutionProvider",
    layout: Annotated[
        LayoutName, typer.Option(help="What is updated together; auto suits the provider.")
    ] = "auto",
    straight_through: Annotated[
        bool,
        typer.Option(
            "--straight-through", help="Train through quantization as if it did not round."
        ),
    ] = False,
    seed: Annotated[
        int,
        typer.Option(metavar="N", help="What random numbers begin with, such as those of Dropout."),
    ] = 0,
    memory: Annotated[
        Memory,
        typer.Option(
            help="What the backward pass computes again rather than keep: nothing, what is cheap, "
            "or all but a few values."
        ),
    ] = "fast",
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="What products and convolutions are computed in, if not in float32.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Build the training graph of a forward model."""
    check_outputs([("--output", output)], [("FORWARD.onnx", forward)])
    parameters = graphopt.parameters(forward)
    trained = parameters.without(parameters.matching(*freeze or ()))
    optimizer = graphopt.RMSProp(
        trained,
        learning_rate=learning_rate,
        decay=decay,
        momentum=momentum,
        epsilon=epsilon,
        use_locking=use_locking,
        centered=centered,
        loss_scale=_loss_scale(loss_scale),
        weight_decay=weight_decay,
        skip_on_overflow=skip_on_overflow,
        clip_norm=clip_norm,
        clip_norm_per=clip_norm_per,
        clip_value=clip_value,
    )
    graph = graphopt.training_graph(
        forward,
        loss=loss,
        optimizer=optimizer,
        loss_output=loss_output,
        provider=provider,
        layout=layout,
        straight_through=straight_through,
        memory=memory,
        precision=precision,
        seed=seed,
    )
    graph.save(output)
    typer.echo(f"{output}: trains {len(trained)} of {len(parameters)} parameters")


def _loss_scale(text: str) -> LossScale:
    if text == "dynamic":
        return graphopt.DynamicLossScale()
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"--loss-scale: got '{text}', expected a number > 0, or 'dynamic'"
        ) from None


@app.command(
    epilog="Example:\n\ngraphopt train train.onnx --data digits.npz --epochs 20 --export model.onnx"
)
def train(
    graph: _Graph,
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
) -> None:
    """Train on the samples of a file.

    The samples are shuffled anew for each epoch. The same command goes on
    from its checkpoint until all epochs are done, as if never interrupted.
    Ctrl-C and SIGTERM end it after the running step, and save.
    """
    with stopping() as stop:
        if checkpoint is None and export is None:
            checkpoint = graph.with_suffix(".safetensors")
        _check_folders(checkpoint, export)
        inputs = [("TRAIN.onnx", graph), ("--data", data)]
        check_outputs([("--checkpoint", checkpoint)], inputs)  # which --resume may be
        check_outputs([("--export", export)], [*inputs, ("--resume", resume)])
        check_outputs([("--export", export), ("--checkpoint", checkpoint)], [])
        samples = read_samples(data)
        session = graphopt.Session(graph)
        size = size_of_batch(session.inputs, batch_size)
        plan = Plan(samples, size, _steps_of_epoch(session, samples, size, data), epochs, seed)
        target = target_at(
            checkpoint,
            every=save_every,
            minutes=save_minutes,
            keep=keep,
            best=keep_best,
            background=background,
        )
        run = Run(session, plan, target)
        run.resume(resume)
        if 0 < run.position < plan.total:
            typer.echo(f"goes on after step {run.position} of {plan.total}")
        with _progress_bar() as progress:
            task = progress.add_task("epoch", total=plan.total, loss=float("nan"))

            def report(position: int, loss: float) -> None:
                epoch = f"epoch {max(0, position - 1) // plan.steps + 1}/{epochs}"
                progress.update(task, description=epoch, completed=position, loss=loss)

            report(run.position, float("nan"))
            run.train(stop, report)
        if stop.signal is not None and run.position < plan.total:
            _tell_stopped(stop.signal, run)
            raise typer.Exit(128 + stop.signal)
    if run.losses:
        typer.echo(f"mean loss of the last epoch: {np.mean(run.losses):.6f}")
    else:
        typer.echo(f"nothing to do: {run.position} of {plan.total} steps were done before")
    if run.skipped:
        typer.echo(f"skipped steps: {run.skipped}")
    if checkpoint is not None:
        typer.echo(f"checkpoint: {checkpoint}")
    if export is not None:
        session.export(export)
        typer.echo(f"trained model: {export}")


def _steps_of_epoch(
    session: graphopt.Session, samples: Mapping[str, np.ndarray], size: int, data: Path
) -> int:
    """How many steps go through all samples once."""
    count = len(next(iter(samples.values())))
    steps, rest = divmod(count, size)
    if rest and fixed_size(session.inputs) is None:
        return steps + 1
    if steps == 0:
        file = next(iter(session.graph.files), "the graph")
        raise ValueError(f"'{data}' has {count} samples, and '{file}' takes {size} at a time")
    if rest:
        typer.echo(f"each epoch leaves out {rest} samples: the graph takes {size} at a time")
    return steps


def _tell_stopped(number: int, run: Run) -> None:
    """Say how to go on."""
    name = signal.Signals(number).name
    how = (
        "nothing is saved, because there is no --checkpoint"
        if run.target.path is None
        else f"the same command goes on from '{run.target.path}'"
    )
    done = f"step {run.position} of {run.plan.total}"
    typer.echo(f"stopped by {name} after {done}: {how}", err=True)


@app.command(
    epilog="Example:\n\ngraphopt export train.onnx --checkpoint state.safetensors -o model.onnx"
)
def export(
    graph: _Graph,
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
    session.load_checkpoint(checkpoint)
    session.export(output, training=training, average=average)
    typer.echo(f"trained model: {output}")


@app.command(epilog="Example:\n\ngraphopt average run --last 5 -o average.safetensors")
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


@app.command(
    epilog="Example:\n\ngraphopt profile train.onnx --batch-size 64 --json profile.json",
    context_settings={  # --top is what --rows was called before
        "token_normalize_func": lambda name: "rows" if name == "top" else name
    },
)
def profile(
    graph: _Graph,
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
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="OUT.json", help="The whole profile, to write.")
    ] = None,
) -> None:
    """Show where a training step goes, from ONNX Runtime's own profiler.

    Times are of a typical step: the median of each node over the steps. The
    profiler's own work counts as runtime, and makes small nodes look slow.
    """
    _check_folders(json_path)
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
    for part in profile_tables(str(graph), measured, rows):
        screen.print(part)
    if json_path is not None:
        text = json.dumps(measured.to_dict(), indent=2) + "\n"
        write_atomically(json_path, lambda part: part.write_text(text, encoding="utf-8"))
        typer.echo(f"profile: {json_path}")


app.command(
    epilog="Example:\n\ngraphopt convert train.onnx --from optimizer.pt --graph-order -o state.ckpt"
)(convert)
app.command(epilog="Example:\n\ngraphopt inspect train.onnx --steps 10000 --html train.html")(
    commands.inspect
)
app.command(epilog="Example:\n\ngraphopt verify train.onnx")(commands.verify)
app.command(epilog="Example:\n\ngraphopt diff before.onnx after.onnx")(commands.diff)


def _check_folders(*paths: Path | None) -> None:
    """Refuse to begin what could not be written in the end."""
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"cannot write '{path}': there is no folder '{path.parent}'")


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
