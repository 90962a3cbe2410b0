"""Building: ``graphopt build``, ``export-on-device`` and ``config``."""

from pathlib import Path
from typing import Annotated, Any

import typer

import graphopt
from graphopt._files import write_atomically
from graphopt._outputs import check_outputs
from graphopt.command_line.build_options import (
    GRAPH,
    ON_DEVICE,
    OPTIMIZER,
    PARAMETERS,
    PLAIN,
    SECTIONS,
)
from graphopt.command_line.options import given, with_options
from graphopt.configuration import (
    Configuration,
    checked_alone,
    device_arguments,
    example,
    graph_arguments,
    left_to_the_command,
    optimizer_of,
    read_configuration,
)
from graphopt.graph import Start
from graphopt.schedules import LearningRateSchedule

_Forward = Annotated[
    Path, typer.Argument(metavar="FORWARD.onnx", help="The forward model.", show_default=False)
]
_Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml",
        help="Everything of the graph in a file (graphopt config --example prints one). "
        "What stands beside it on the command line overrides it.",
    ),
]


@with_options(GRAPH | OPTIMIZER | PARAMETERS | PLAIN)
def build(
    ctx: typer.Context,
    forward: _Forward,
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
    config: _Config = None,
    start: Annotated[
        Start | None,
        typer.Option(
            help="Write what training starts from beside the graph too, as "
            "TRAIN.start.safetensors, for programs without Python.",
            show_default=False,
        ),
    ] = None,
    **options: Any,  # noqa: ARG001 - they are read where it is known which were given
) -> None:
    """Build the training graph of a forward model."""
    check_outputs([("--output", output)], [("FORWARD.onnx", forward), ("--config", config)])
    configuration = _configuration(ctx, config)
    parameters = graphopt.parameters(forward)
    optimizer = optimizer_of(configuration, parameters)
    with configuration.naming("graph"):
        graph = graphopt.training_graph(
            forward, optimizer=optimizer, **graph_arguments(configuration)
        )
    graph.save(output, start=start)
    typer.echo(f"{output}: trains {len(optimizer.params)} of {len(parameters)} parameters")


@with_options(GRAPH | OPTIMIZER | PARAMETERS | ON_DEVICE)
def export_on_device(
    ctx: typer.Context,
    forward: _Forward,
    directory: Annotated[
        Path,
        typer.Option(
            "--directory",
            "-o",
            metavar="DIR",
            help="The folder for the files, which is made if its parent exists.",
            show_default=False,
        ),
    ],
    config: _Config = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="CKPT",
            help="A checkpoint to start from, of a session or of a device, instead of the values "
            "of the model.",
        ),
    ] = None,
    **options: Any,  # noqa: ARG001
) -> None:
    """Write the files with which ONNX Runtime's on-device training API trains."""
    configuration = _configuration(ctx, config)
    parameters = graphopt.parameters(forward)
    optimizer = optimizer_of(configuration, parameters)
    with configuration.naming("on_device"), configuration.naming("graph"):
        files = graphopt.export_on_device(
            forward,
            optimizer=optimizer,
            directory=directory,
            state=state,
            **device_arguments(configuration),
        )
    for path in sorted(files.description.parent.iterdir()):
        typer.echo(f"{path}: {path.stat().st_size} bytes")


def config(
    show: Annotated[
        bool, typer.Option("--example", help="Print a complete file, with comments.")
    ] = False,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FILE.toml", help="Check a file.")
    ] = None,
    forward: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FORWARD.onnx]",
            help="With --check: the model, in which its patterns are looked for.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.toml", help="Where the example is written."),
    ] = None,
) -> None:
    """Print an example of a file for build and train --config, or check one."""
    if show == (check is not None):
        raise typer.BadParameter("give --example, or --check FILE.toml")
    if check is not None:
        if output is not None:
            raise typer.BadParameter("--output: needs --example")
        _check(check, forward)
        return
    if forward is not None:
        raise typer.BadParameter("FORWARD.onnx: needs --check FILE.toml")
    if output is None:
        typer.echo(example(), nl=False)
        return
    write_atomically(output, lambda part: part.write_text(example(), encoding="utf-8"))
    typer.echo(f"example: {output}")


def _configuration(ctx: typer.Context, file: Path | None) -> Configuration:
    """What the file says, and the options that were given, which override it."""
    beside: dict[str, dict[str, Any]] = {}
    for section, options in SECTIONS.items():
        values = given(ctx, (name for name in options if name in ctx.params))
        if "loss_scale" in values:
            values["loss_scale"] = _loss_scale(values["loss_scale"])
        if values:
            beside[section] = values
    configuration = read_configuration(file, beside)
    if "loss" not in configuration.section("graph"):
        where = "" if file is None else f" ('{file}' has no graph.loss)"
        raise typer.BadParameter(f"Missing option '--loss'{where}.")
    return configuration


def _loss_scale(text: str) -> float | str:
    if text == "dynamic":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"--loss-scale: got '{text}', expected a number > 0, or 'dynamic'"
        ) from None


def _check(file: Path, forward: Path | None) -> None:
    """Say what a configuration comes to, or what is wrong with it."""
    configuration = read_configuration(file)
    if "loss" not in configuration.section("graph"):
        typer.echo(f"note: '{file}' has no graph.loss; give --loss to build", err=True)
    for name in left_to_the_command(configuration):
        option = f"--{name.replace('_', '-')}"
        typer.echo(f"note: '{file}' has no train.{name}; give {option} to train", err=True)
    if forward is None:
        checked_alone(configuration)
        typer.echo(f"{file}: no mistakes found (without a model, patterns are not looked at)")
        return
    parameters = graphopt.parameters(forward)
    optimizer = optimizer_of(configuration, parameters)
    typer.echo(f"{file}: trains {len(optimizer.params)} of {len(parameters)} parameters")
    for index, group in enumerate(optimizer.groups):
        names = ", ".join(parameter.name for parameter in group.params)
        rate, decay = _said(group.learning_rate), _said(group.weight_decay)
        typer.echo(f"  group {index}: learning rate {rate}, weight decay {decay}: {names}")
    trained = {parameter.name for parameter in optimizer.params}
    if frozen := [parameter.name for parameter in parameters if parameter.name not in trained]:
        typer.echo(f"  frozen: {', '.join(frozen)}")


def _said(schedule: LearningRateSchedule) -> str:
    """The number that a rate always is, or the name of its schedule."""
    kind = schedule.describe().get("schedule")
    return f"{schedule.value(0):g}" if kind == "Fixed" else str(kind)
