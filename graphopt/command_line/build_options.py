"""The options of the commands that build, by the section of a configuration that they are of."""

from collections.abc import Mapping
from typing import Annotated

import typer

from graphopt.clipping import ClipNormPer
from graphopt.command_line.options import OptionTable
from graphopt.gradients import Memory
from graphopt.half import Precision
from graphopt.losses import BUILT_IN
from graphopt.update.layout import LayoutName

OPTIMIZER: OptionTable = {
    "learning_rate": (Annotated[float, typer.Option(help="Step size.")], 0.1),
    "decay": (Annotated[float, typer.Option(help="Decay of the mean square.")], 0.9),
    "momentum": (Annotated[float, typer.Option(help="Momentum of the update.")], 0.0),
    "epsilon": (
        Annotated[float, typer.Option(help="Added to the mean square under the root.")],
        1e-10,
    ),
    "centered": (
        Annotated[
            bool, typer.Option("--centered", help="Subtract the square of the mean gradient.")
        ],
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
                help="Leave out steps with a gradient that is infinite or NaN.",
            ),
        ],
        False,
    ),
    "clip_norm": (
        Annotated[
            float | None,
            typer.Option(help="The largest norm of the gradients.", show_default=False),
        ],
        None,
    ),
    "clip_norm_per": (
        Annotated[
            ClipNormPer, typer.Option(help="What each norm is over: all gradients, or each.")
        ],
        "all",
    ),
    "clip_value": (
        Annotated[
            float | None,
            typer.Option(help="The largest element of the gradients.", show_default=False),
        ],
        None,
    ),
    "use_locking": (
        Annotated[
            bool, typer.Option("--use-locking", help="Serialise steps from several threads.")
        ],
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
                help=f"{', '.join(BUILT_IN)}, or a scalar output of the model; if not in the file.",
                show_default=False,
            ),
        ],
        None,
    ),
    "loss_output": (
        Annotated[
            str | None,
            typer.Option(metavar="NAME", help="The output that the loss applies to, if several."),
        ],
        None,
    ),
    "straight_through": (
        Annotated[
            bool,
            typer.Option(
                "--straight-through", help="Train through quantization as if it did not round."
            ),
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
                help="What products and convolutions are computed in, if not in float32.",
                show_default=False,
            ),
        ],
        None,
    ),
}
PLAIN: OptionTable = {
    "provider": (
        Annotated[str, typer.Option(metavar="NAME", help="The execution provider to be fast on.")],
        "CPUExecutionProvider",
    ),
    "layout": (
        Annotated[
            LayoutName, typer.Option(help="What is updated together; auto suits the provider.")
        ],
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
                help="An output that a step reports after the loss; repeatable.",
            ),
        ],
        None,
    ),
    "optimizer_model": (
        Annotated[
            bool,
            typer.Option(
                "--optimizer-model",
                help="Write the update as a model of its own, for OptimizerStep.",
            ),
        ],
        False,
    ),
    "gradient_accumulation": (
        Annotated[
            bool,
            typer.Option(
                "--gradient-accumulation",
                help="Let an input say whether a step only adds its gradients up.",
            ),
        ],
        False,
    ),
    "nominal_checkpoint": (
        Annotated[
            bool,
            typer.Option("--nominal-checkpoint", help="Write the checkpoint without values too."),
        ],
        False,
    ),
    "ort_format": (
        Annotated[bool, typer.Option("--ort-format", help="Write the models as .ort too.")],
        False,
    ),
}
SECTIONS: Mapping[str, OptionTable] = {
    "graph": GRAPH | PLAIN,
    "optimizer": OPTIMIZER,
    "parameters": PARAMETERS,
    "on_device": ON_DEVICE,
}
