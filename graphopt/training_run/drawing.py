"""A picture of what the epochs of a run came to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphopt._files import check_target, write_atomically
from graphopt.training_run.history import LOSS

_FORMATS = ("pdf", "png", "svg")


def check_plot(path: Path) -> None:
    """Refuse a picture that could not be drawn in the end.

    Raises:
        FileNotFoundError: Its folder does not exist.
        ImportError: matplotlib is not installed.
        ValueError: The ending is none of a picture.
    """
    if path.suffix.lower().removeprefix(".") not in _FORMATS:
        endings = ", ".join(f".{name}" for name in _FORMATS)
        raise ValueError(f"--plot: got '{path}', expected a name that ends with {endings}")
    check_target(path)
    _figure()


def draw(path: Path, epochs: Sequence[Mapping[str, Any]], best: int | None = None) -> None:
    """Draw losses, and metrics below them, over the epochs.

    Args:
        path: Of the picture; its ending says the format.
        epochs: What each came to.
        best: The number of the best epoch, which is marked.
    """
    names = [n for n in dict.fromkeys(k for e in epochs for k in e) if n not in ("epoch", "step")]
    losses = [name for name in names if name.endswith(LOSS)]
    metrics = [name for name in names if name not in losses]
    figure = _figure()(figsize=(7, 3.2 * (1 + bool(metrics))), layout="constrained")
    axes = figure.subplots(1 + bool(metrics), 1, sharex=True, squeeze=False)[:, 0]
    numbers = [epoch["epoch"] for epoch in epochs]
    for axis, shown in zip(axes, (losses, metrics), strict=False):
        for name in shown:
            values = [epoch.get(name) for epoch in epochs]
            axis.plot(
                numbers,
                [float("nan") if value is None else value for value in values],
                label=name,
                marker="o" if len(epochs) == 1 else None,
            )
        if best is not None:
            axis.axvline(best, color="0.7", linestyle=":", label="best", zorder=0)
        axis.legend()
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("epoch")
    kind = path.suffix.lower().removeprefix(".")
    write_atomically(path, lambda part: figure.savefig(part, format=kind))


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "plots need matplotlib, which is not installed: pip install 'graphopt[plot]'"
        ) from None
    return Figure
