"""Running a forward model in inference mode over samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from graphopt import _runtime
from graphopt.accumulation import UPDATE_INPUT
from graphopt.carried import averaged
from graphopt.eval_model import eval_model
from graphopt.evaluation.metrics import Metric, default_metrics, metric_of
from graphopt.feeds import Feed, Feeds, check_labels, feed_of
from graphopt.graph import TrainingGraph
from graphopt.losses import BUILT_IN, LABELS
from graphopt.manifest import Manifest
from graphopt.operators.labels import ClassLabels
from graphopt.samples import Samples, fixed_size
from graphopt.soundness.errors import about

LOSS = "loss"


@dataclass(frozen=True)
class LossOf:
    """The loss that is evaluated, and what the metrics are of.

    Attributes:
        name: A built-in loss, or an output of the model; None where there is none.
        output: The output that it applies to.
        labels: The input with the labels, which the metrics compare the output with.
    """

    name: str | None = None
    output: str | None = None
    labels: Feed | None = None


class Evaluator:
    """Computes the loss and metrics of a model on samples, with parameters given each time.

    Args:
        forward: The forward model.
        values: What is given each time, as examples: arrays by the names of initializers.
        loss: The loss.
        metrics: Names; None: what suits the loss.
        output: The output that metrics are of, where it is not that of the loss.
        providers: Execution providers.

    Attributes:
        feeds: What a batch must have.
        names: What `evaluate` returns.

    Raises:
        ValueError: There is no such output or metric, or nothing to evaluate; or the model draws
            random numbers that are no Dropout.
    """

    def __init__(
        self,
        forward: onnx.ModelProto,
        values: Mapping[str, np.ndarray],
        loss: LossOf,
        metrics: Sequence[str] | None = None,
        *,
        output: str | None = None,
        providers: Sequence[Any] | None = None,
    ) -> None:
        """See the class."""
        names = {tensor.name for tensor in forward.graph.initializer}
        self._values = [name for name in values if name in names]
        self._metrics = list(default_metrics(loss.name) if metrics is None else metrics)
        self._loss = loss
        outputs = [value.name for value in forward.graph.output]
        chosen = output or loss.output or (outputs[0] if len(outputs) == 1 else None)
        for name in self._metrics:
            metric_of(name)
        if self._metrics and (chosen not in outputs or loss.labels is None):
            if metrics is not None or output is not None:
                raise ValueError(
                    f"metrics: got {', '.join(self._metrics)} of output {chosen!r} with labels "
                    f"{loss.labels and loss.labels.name!r}; expected an output "
                    f"({', '.join(outputs)}) and an input with labels"
                )
            self._metrics = []
        self._output = chosen if self._metrics else None
        if loss.name is None and not self._metrics:
            raise ValueError(
                "there is nothing to evaluate: the graph's loss is a function in Python, which the "
                "file does not have; name metrics, and the input with labels"
            )
        model = eval_model(
            forward,
            loss.name,
            {name: values[name] for name in self._values},
            loss_output=loss.output if loss.name in BUILT_IN else None,
            labels=loss.labels.name if loss.labels and loss.name in BUILT_IN else LABELS,
            outputs=[self._output] if self._output is not None else [],
            newest_opset=onnx.defs.onnx_opset_version(),
        )
        runtime = _runtime.onnxruntime()
        self._session = runtime.InferenceSession(
            model.SerializeToString(), providers=_runtime.checked_providers(providers)
        )
        inputs = [feed_of(v) for v in model.graph.input if v.name not in self._values]
        self._inputs, self._checks = [feed.name for feed in inputs], Feeds(inputs, {})
        self._classes = _class_labels(forward, loss)
        self.names = [*([LOSS] if loss.name is not None else []), *self._metrics]
        self.feeds = inputs
        if self._output is not None and loss.labels and loss.labels.name not in self._inputs:
            self.feeds = [*inputs, loss.labels]

    def evaluate(
        self, values: Mapping[str, np.ndarray], samples: Samples, size: int
    ) -> dict[str, float]:
        """The mean of the loss, and the metrics, of samples.

        A loss of a batch counts as often as it has samples. Where the graph fixes the batch size,
        the samples that fill no batch are left out.

        Args:
            values: The parameters and running statistics.
            samples: Them.
            size: How many are computed at once.

        Raises:
            TypeError: A feed has the wrong dtype.
            ValueError: One has the wrong shape, or a label is no class.
        """
        metrics: dict[str, Metric] = {name: metric_of(name) for name in self._metrics}
        order = np.arange(self.evaluated(samples, size))
        total, count = 0.0, 0
        labels = self._loss.labels.name if self._loss.labels else ""
        fixed = {name: values[name] for name in self._values}
        for batch in samples.batches(order, size):
            feeds = self._checks.checked({name: batch[name] for name in self._inputs})
            if self._classes is not None:
                check_labels(self._classes, feeds[self._classes.name])
            results = self._session.run(None, feeds | fixed)
            length = len(next(iter(batch.values())))
            if self._loss.name is not None:
                total += float(results[0]) * length
                count += length
            for metric in metrics.values():
                metric.add(np.asarray(results[-1]), batch[labels])
        found = {LOSS: total / count if count else float("nan")} if self._loss.name else {}
        return found | {name: metric.value() for name, metric in metrics.items()}

    def evaluated(self, samples: Samples, size: int) -> int:
        """How many samples are, of those that there are.

        Raises:
            ValueError: There are fewer than a batch has.
        """
        count = len(samples)
        if fixed_size(samples.among(self.feeds)) is None:
            return count
        if count < size:
            raise ValueError(f"there are {count} samples, and the graph takes {size} at a time")
        return count // size * size


def _class_labels(forward: onnx.ModelProto, loss: LossOf) -> ClassLabels | None:
    """The labels of a cross entropy, where the model says how many classes there are."""
    feeds = [feed_of(value) for value in forward.graph.output]
    shapes = [f.shape for f in feeds if loss.output in (None, f.name)]
    if loss.name != "cross_entropy" or loss.labels is None or len(shapes) != 1:
        return None
    classes = shapes[0][1] if shapes[0] is not None and len(shapes[0]) > 1 else None
    return ClassLabels(loss.labels.name, classes, None) if isinstance(classes, int) else None


def loss_of(graph: TrainingGraph, forward: onnx.ModelProto) -> LossOf:
    """The loss of a training graph, as far as its file has it."""
    said = Manifest.read(graph.lean, "loss").loss
    known = {value.input for value in graph.carried} | {value.name for value in forward.graph.input}
    known |= {UPDATE_INPUT, "group_mask", str(graph.fed_loss_scale), *graph.fed_rates}
    labels = [feed_of(value) for value in graph.lean.graph.input if value.name not in known]
    label = labels[0] if len(labels) == 1 else None
    if said is None or said.operators is not None:  # a function of the user's
        return LossOf(None, None if said is None else said.output, label)
    return LossOf(said.name, said.output, label)


def values_of(
    graph: TrainingGraph, state: Mapping[str, np.ndarray], *, average: bool = False
) -> dict[str, np.ndarray]:
    """The parameters and running statistics of a state, or their averages.

    Raises:
        ValueError: The graph carries no averages.
    """
    if not average:
        return dict(state)
    return averaged(graph.carried, state)


def evaluator_of(
    graph: TrainingGraph,
    state: Mapping[str, np.ndarray],
    metrics: Sequence[str] | None = None,
    *,
    output: str | None = None,
    labels: str | None = None,
) -> Evaluator:
    """What evaluates a training graph with states like this one.

    Raises:
        ValueError: As `Evaluator`; the graph is an update alone.
    """
    with about(graph):
        forward = graph.forward(state)
        loss = loss_of(graph, forward)
        if labels is not None:
            loss = replace(loss, labels=feed_named(labels, forward, loss.labels))
        return Evaluator(forward, state, loss, metrics, output=output)


def feed_named(name: str, forward: onnx.ModelProto, other: Feed | None = None) -> Feed:
    """The feed of labels: an input of the model, another one, or class indices."""
    inputs = [feed_of(value) for value in forward.graph.input]
    known = [feed for feed in (*inputs, other) if feed is not None and feed.name == name]
    return known[0] if known else Feed(name, ("N",), "int64")
