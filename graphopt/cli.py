"""The command line: build a training graph, train it, export the trained model, look into it."""

import signal
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import graphopt
from graphopt.command_line import build, demo, evaluate, export, profile, train
from graphopt.conversion.commands import convert
from graphopt.inspection import commands as inspection


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


def _add(command: Callable[..., Any], example: str, **settings: Any) -> None:
    """Let the command line have a command, whose help ends with an example."""
    name = command.__name__.replace("_", "-")
    app.command(name, epilog=f"Example:\n\ngraphopt {name} {example}", **settings)(command)


_add(demo.demo, "first-steps")
_add(build.build, "model.onnx --loss mse --learning-rate 0.01 -o train.onnx")
_add(build.config, "--example -o train.toml")
_add(train.train, "train.onnx --data digits.npz --epochs 20 --export model.onnx")
_add(evaluate.evaluate, "train.onnx --checkpoint run --data digits.npz --metric top5")
_add(export.export, "train.onnx --checkpoint state.safetensors -o model.onnx")
_add(build.export_on_device, "model.onnx --loss mse --learning-rate 0.01 -o device")
_add(export.average, "run --last 5 -o average.safetensors")
_add(
    profile.profile,
    "train.onnx --batch-size 64 --json profile.json",
    context_settings={  # --top is what --rows was called before
        "token_normalize_func": lambda name: "rows" if name == "top" else name
    },
)
_add(convert, "train.onnx --from optimizer.pt --graph-order -o state.ckpt")
_add(inspection.inspect, "train.onnx --steps 10000 --html train.html")
_add(inspection.verify, "train.onnx")
_add(inspection.diff, "before.onnx after.onnx")
