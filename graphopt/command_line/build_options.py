"""The options of the commands that build, by the section of a configuration that they are of."""

from collections.abc import Mapping
from typing import Annotated

import typer

from graphopt.clipping import ClipNormPer
from graphopt.command_line.options import OptionTable, meaning
from graphopt.gradients import Memory
from graphopt.half import Precision
from graphopt.update.layout import LayoutName

OPTIMIZER: OptionTable = {
    "learning_rate": (Annotated[float, typer.Option(help="Step size.")], 0.1),
    "decay": (Annotated[float, typer.Option(help=meaning("optimizer", "decay"))], 0.9),
    "momentum": (Annotated[float, typer.Option(help=meaning("optimizer", "momentum"))], 0.0),
    "epsilon": (
        Annotated[float, typer.Option(help=meaning("optimizer", "epsilon"))],
        1e-10,
    ),
    "centered": (
        Annotated[bool, typer.Option("--centered", help=meaning("optimizer", "centered"))],
        False,
    ),
    "weight_decay": (Annotated[float, typer.Option(help="Factor of the L2 penalty.")], 0.0),
    "loss_scale": (
        Annotated[
            str,
            typer.Option(
                metavar="NUMBER|dynamic",
                help="Scale of the loss in the gradients; dynamic: it follows overflows.",
            ),
        ],
        "1",
    ),
    "skip_on_overflow": (
        Annotated[
            bool,
            typer.Option(
                "--skip-on-overflow",
                help=meaning("optimizer", "skip_on_overflow"),
            ),
        ],
        False,
    ),
    "clip_norm": (
        Annotated[
            float | None,
            typer.Option(help=meaning("optimizer", "clip_norm"), show_default=False),
        ],
        None,
    ),
    "clip_norm_per": (
        Annotated[
            ClipNormPer,
            typer.Option(help=meaning("optimizer", "clip_norm_per")),
        ],
        "all",
    ),
    "clip_value": (
        Annotated[
            float | None,
            typer.Option(help=meaning("optimizer", "clip_value"), show_default=False),
        ],
        None,
    ),
    "use_locking": (
        Annotated[bool, typer.Option("--use-locking", help=meaning("optimizer", "use_locking"))],
        False,
    ),
}
PARAMETERS: OptionTable = {
    "freeze": (
        Annotated[
            list[str] | None,
            typer.Option(
                metavar="PATTERN",
                help="Parameters to leave as they are, e.g. 'conv1.*'; repeatable.",
            ),
        ],
        None,
    ),
}
GRAPH: OptionTable = {
    "loss": (
        Annotated[
            str | None,
            typer.Option(
                help=meaning("graph", "loss", "if not in the file"),
                show_default=False,
            ),
        ],
        None,
    ),
    "loss_output": (
        Annotated[
            str | None,
            typer.Option(metavar="NAME", help=meaning("graph", "loss_output")),
        ],
        None,
    ),
    "straight_through": (
        Annotated[
            bool,
            typer.Option("--straight-through", help=meaning("graph", "straight_through")),
        ],
        False,
    ),
    "seed": (
        Annotated[
            int,
            typer.Option(
                metavar="N", help="What random numbers begin with, such as those of Dropout."
            ),
        ],
        0,
    ),
    "memory": (
        Annotated[
            Memory,
            typer.Option(
                help="What the backward pass computes again rather than keep: nothing, what is "
                "cheap, or all but a few values."
            ),
        ],
        "fast",
    ),
    "precision": (
        Annotated[
            Precision | None,
            typer.Option(
                help=meaning("graph", "precision"),
                show_default=False,
            ),
        ],
        None,
    ),
}
PLAIN: OptionTable = {
    "provider": (
        Annotated[str, typer.Option(metavar="NAME", help=meaning("graph", "provider"))],
        "CPUExecutionProvider",
    ),
    "layout": (
        Annotated[LayoutName, typer.Option(help=meaning("graph", "layout"))],
        "auto",
    ),
}
ON_DEVICE: OptionTable = {
    "outputs": (
        Annotated[
            list[str] | None,
            typer.Option(
                "--outputs",
                metavar="NAME",
                help=meaning("on_device", "outputs", "repeatable"),
            ),
        ],
        None,
    ),
    "optimizer_model": (
        Annotated[
            bool,
            typer.Option(
                "--optimizer-model",
                help=meaning("on_device", "optimizer_model"),
            ),
        ],
        False,
    ),
    "gradient_accumulation": (
        Annotated[
            bool,
            typer.Option(
                "--gradient-accumulation",
                help=meaning("on_device", "gradient_accumulation"),
            ),
        ],
        False,
    ),
    "nominal_checkpoint": (
        Annotated[
            bool,
            typer.Option("--nominal-checkpoint", help=meaning("on_device", "nominal_checkpoint")),
        ],
        False,
    ),
    "ort_format": (
        Annotated[bool, typer.Option("--ort-format", help=meaning("on_device", "ort_format"))],
        False,
    ),
}
SECTIONS: Mapping[str, OptionTable] = {
    "graph": GRAPH | PLAIN,
    "optimizer": OPTIMIZER,
    "parameters": PARAMETERS,
    "on_device": ON_DEVICE,
}
