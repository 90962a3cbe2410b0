"""Trains the digits network inside its ONNX graph: ``python -m tools.demo``."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import onnxruntime
import typer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

import graphopt
from graphopt.examples import digits, digits_cnn

BATCH_SIZE = 32


class History(NamedTuple):
    """What was measured during the training.

    Attributes:
        losses: The mean cross entropy of each step's batch.
        accuracies: The test accuracy after each epoch, from 0 to 1.
        seconds: The time that the steps took, without the tests of accuracy.
    """

    losses: list[float]
    accuracies: list[float]
    seconds: float


class Files(NamedTuple):
    """What the demo writes into its folder."""

    graph: Path
    model: Path
    checkpoint: Path
    picture: Path

    @classmethod
    def under(cls, folder: Path) -> "Files":
        """The files' places in a folder."""
        return cls(
            graph=folder / "train.onnx",
            model=folder / "model.onnx",
            checkpoint=folder / "checkpoint.safetensors",
            picture=folder / "training.png",
        )


def run(folder: Path, epochs: int) -> History:
    """Builds the training graph, trains it, and writes the `Files` into a folder.

    The test accuracy is that of the exported model in a plain inference session.
    """
    files = Files.under(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = digits.load()

    forward = digits_cnn.build()
    steps = epochs * -(-len(data.train.labels) // BATCH_SIZE)
    optimizer = graphopt.RMSProp(
        graphopt.parameters(forward),
        learning_rate=graphopt.schedules.CosineDecayLR(0.0, 0.002, steps),
        momentum=0.9,
    )
    graph = graphopt.training_graph(forward, loss="cross_entropy", optimizer=optimizer)
    graph.save(files.graph)

    history = _train(graphopt.Session(graph), data, epochs, files)
    _plot(history, files.picture)
    return history


def accuracy(model: Path, samples: digits.Samples) -> float:
    """The part of the samples that an exported model classifies right, from 0 to 1."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"x": samples.x})
    return float(np.mean(np.argmax(logits, axis=1) == samples.labels))


def _train(session: graphopt.Session, data: digits.Digits, epochs: int, files: Files) -> History:
    rng = np.random.default_rng(0)
    losses: list[float] = []
    accuracies: list[float] = []
    seconds = 0.0
    columns = (
        TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  test accuracy {task.fields[accuracy]}"),
        TimeElapsedColumn(),
    )
    steps = -(-len(data.train.labels) // BATCH_SIZE)
    with Progress(*columns) as progress:
        task = progress.add_task("", total=epochs * steps, epoch=1, loss=np.nan, accuracy="n/a")
        for epoch in range(epochs):
            progress.update(task, epoch=epoch + 1)
            start = time.perf_counter()
            for batch in _batches(data.train, rng):
                outputs = session.step(batch._asdict())
                losses.append(float(outputs["loss"]) + 0.0)  # -0.0 looks odd
                progress.update(task, advance=1, loss=losses[-1])
            seconds += time.perf_counter() - start
            session.save_checkpoint(files.checkpoint)
            session.export(files.model)
            accuracies.append(accuracy(files.model, data.test))
            progress.update(task, accuracy=f"{accuracies[-1]:.2%}")
    return History(losses, accuracies, seconds)


def _batches(samples: digits.Samples, rng: np.random.Generator) -> Iterator[digits.Samples]:
    """All samples in a new order; the last batch may be smaller."""
    order = rng.permutation(len(samples.labels))
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        yield digits.Samples(samples.x[chosen], samples.labels[chosen])


def _plot(history: History, path: Path) -> None:
    """Draws the loss of each step and the test accuracy after each epoch."""
    epochs = len(history.accuracies)
    steps = len(history.losses) // epochs
    epoch_of_step = np.arange(1, len(history.losses) + 1) / steps
    window = steps // 3
    smooth = np.convolve(history.losses, np.full(window, 1 / window), mode="valid")
    middle = window // 2

    figure = Figure(figsize=(8, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    figure.suptitle("Digits CNN trained with RMSProp inside its ONNX graph")

    upper.semilogy(
        epoch_of_step, history.losses, color="C0", alpha=0.3, linewidth=0.8, label="each step"
    )
    upper.semilogy(
        epoch_of_step[middle : middle + len(smooth)],
        smooth,
        color="C0",
        label=f"mean of {window} steps",
    )
    upper.set_ylim(bottom=1e-4)  # below lies noise
    upper.set_ylabel("training loss (cross entropy)")
    upper.legend(frameon=False)

    lower.plot(
        np.arange(1, epochs + 1), history.accuracies, "o-", color="C1", markersize=3, clip_on=False
    )
    lower.annotate(
        f"{history.accuracies[-1]:.2%}",
        (epochs, history.accuracies[-1]),
        xytext=(0, -14),
        textcoords="offset points",
        ha="right",
    )
    lower.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    lower.set_ylabel("test accuracy")
    lower.set_xlabel("epoch")
    lower.set_xlim(0, epochs)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))

    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Where the files go.")] = Path(
        "build/demo"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training data.")] = 20,
) -> None:
    """Train the digits network with RMSProp inside its ONNX graph.

    Example: python -m tools.demo --epochs 10
    """
    history = run(folder, epochs)
    files = Files.under(folder)
    print(f"trained {len(history.losses)} steps in {history.seconds:.1f} s")
    print(f"training graph   {files.graph}")
    print(f"trained model    {files.model}")
    print(f"checkpoint       {files.checkpoint}")
    print(f"loss, accuracy   {files.picture}")
    print(f"test accuracy    {history.accuracies[-1]:.2%}")


if __name__ == "__main__":
    typer.run(main)
