"""Options that several commands have, and what users have said with them."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from graphopt._files import check_writable
from graphopt.configuration.schema import SECTIONS

_Command = TypeVar("_Command", bound=Callable[..., Any])

Graph = Annotated[
    Path, typer.Argument(metavar="TRAIN.onnx", help="The training graph.", show_default=False)
]

OptionTable = dict[str, tuple[Any, Any]]
"""The annotation of each option, and its default."""


def meaning(section: str, key: str, besides: str = "") -> str:
    """The help of an option: what its key in a configuration file means.

    Args:
        section: That of the key.
        key: Its name, which is that of the option.
        besides: What is so on the command line alone.

    Example:
        >>> meaning("train", "export_best")
        'Export that of the best epoch; needs --keep-best.'
    """
    keys = SECTIONS[section].by_name
    says = keys[key].says
    for name in keys:
        if "_" in name:
            says = says.replace(name, f"--{name.replace('_', '-')}")
    says = f"{says.removesuffix('.')}; {besides}." if besides else says
    return says.replace("[", r"\[")  # which is no markup


def with_options(options: OptionTable) -> Callable[[_Command], _Command]:
    """Let a command have options, in the place of its ``**options``.

    Several commands then have the same, and each is written once.
    """

    def with_them(command: _Command) -> _Command:
        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
            for name, (kind, default) in options.items()
        ]
        command.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        command.__annotations__ |= {name: kind for name, (kind, _) in options.items()}
        return command

    return with_them


def given(ctx: typer.Context, names: Iterable[str]) -> dict[str, Any]:
    """The options among some that stand on the command line, or in the environment."""
    found = {}
    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP"):
            found[name] = ctx.params[name]
    return found


def check_folders(*paths: Path | None) -> None:
    """Refuse to begin what could not be written in the end.

    Args:
        paths: Of files; of folders that files are written to; None for what is not asked for.

    Raises:
        FileNotFoundError: The folder of a path does not exist.
        OSError: No file can be made in it, or in the folder that the path is.
    """
    for path in paths:
        if path is None:
            continue
        if not path.parent.is_dir():
            raise FileNotFoundError(f"cannot write '{path}': there is no folder '{path.parent}'")
        check_writable(path if path.is_dir() else path.parent, path)
