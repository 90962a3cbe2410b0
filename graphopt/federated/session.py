"""A client that trains with a training graph, on any ONNX Runtime."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from graphopt import _runtime
from graphopt.carried import Array
from graphopt.federated.client import (
    LOSS,
    UPDATED,
    Batch,
    ClientFiles,
    Groups,
    Metrics,
    Trained,
    check_given,
)
from graphopt.forward import to_ir
from graphopt.gradients import initializers_to_inputs
from graphopt.graph import TrainingGraph
from graphopt.inference import inference_model
from graphopt.manifest import Manifest
from graphopt.session import Session


class SessionClient:
    """Trains with a training graph in a `graphopt.Session`.

    Each round starts from what the server sent, and with an optimizer that has no past: its states
    and its number of steps are those of the file, unless the caller hands those of an earlier round
    over.

    Args:
        graph: A training graph, or the path of one; see `Session`.
        settings: What `Session` is to be told besides, for example ``deterministic=True``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a training graph, or an update alone.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
        ... linear (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }''')
        >>> opt = RMSProp(parameters(model), learning_rate=0.5, decay=1.0)
        >>> client = SessionClient(training_graph(model, "mse", opt))
        >>> batch = {"x": np.float32([[1, 0]]), "labels": np.float32([[0]])}
        >>> trained = client.train({"w": np.float32([[1], [0]])}, [batch])
        >>> trained.examples, trained.values["w"].ravel().tolist(), trained.metrics["loss"]
        (1, [0.0, 0.0], 1.0)
    """

    def __init__(self, graph: TrainingGraph | onnx.ModelProto | str | Any, **settings: Any) -> None:
        """See the class."""
        self._session = Session(graph, **settings)
        model = self._session.graph.model
        groups = Groups.read(Manifest.read(model, "optimizer", "groups", "parameters"))
        self._files = ClientFiles(self._session.state, groups, self._session.inputs[0].name)
        self._forward = _Forward(self._session.graph, self._files.own)
        reported = {value.name for value in model.graph.output}
        self._measured = [name for name in (LOSS, UPDATED) if name in reported]

    @property
    def values(self) -> dict[str, Array]:
        """Parameters and running statistics that the file starts from, by name: a copy."""
        return self._files.values

    def train(
        self,
        values: Mapping[str, Array],
        batches: Iterable[Batch],
        *,
        group_mask: Sequence[bool] | None = None,
        state: Mapping[str, Array] | None = None,
        seed: int | None = None,
    ) -> Trained:
        """Train from these values on batches of one's own.

        Args:
            values: What the server sent, by name. What is not among them starts as in the file.
            batches: What each step is fed; see `Session.step`. The first axis of the first input
                is that of examples.
            group_mask: Which groups of the graph are trained, which then needs
                ``group_mask=True``; all by default. What is not trained is not sent back.
            state: States of the optimizer to go on with: `Trained.state` of an earlier round.
                What was added up in it and not applied is left out: it is for other parameters.
            seed: What random numbers of the graph begin with, >= 0 and < 2**31.

        Returns:
            What is sent back; without any batch, what came, and 0 examples.

        Raises:
            RuntimeError: A step failed.
            ValueError: A value is unknown, has another shape or dtype, or is NaN; the mask does not
                fit; a parameter would be trained that the server did not send; or a batch does not
                fit.
        """
        begun = self._files.begin(values, group_mask, state, seed)
        self._session.load_state({**self._files.start, **begun.loaded})
        return begun.trained(
            batches,
            lambda feeds: self._session.step(feeds, outputs=self._measured),
            lambda: self._session.state,
        )

    def evaluate(
        self, values: Mapping[str, Array], batches: Iterable[Batch], metrics: Metrics
    ) -> tuple[int, dict[str, float]]:
        """Measure these values on batches of one's own, in inference mode.

        Args:
            values: What the server sent, by name. What is not among them is as in the file.
            batches: What the forward model and the metrics need, by name.
            metrics: Gets the outputs of the forward model and the batch, and returns means over the
                examples of the batch, by name.

        Returns:
            The number of examples, and the means over all of them.

        Raises:
            ValueError: A value is unknown.
        """
        own = self._files.own
        check_given(values, own)
        given = {**own, **values}
        means = self._files.measured(
            batches, lambda batch: metrics(self._forward.run(given, batch), batch)
        )
        return means.examples, means.means


class _Forward:
    """The forward model in inference mode, whose values are inputs."""

    def __init__(self, graph: TrainingGraph, values: Mapping[str, Array]) -> None:
        model = to_ir(inference_model(graph.forward(values)))
        initializers_to_inputs(model, values)
        runtime = _runtime.onnxruntime()
        proto = ir.to_proto(model).SerializeToString()
        options = _runtime.session_options(runtime)
        self._session = runtime.InferenceSession(proto, options, providers=[_runtime.CPU])
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def run(self, values: Mapping[str, Array], batch: Batch) -> dict[str, Array]:
        """Its outputs, by name."""
        available = {**batch, **values}
        if lacking := [name for name in self._inputs if name not in available]:
            raise ValueError(f"a batch has no '{lacking[0]}', got {sorted(batch)}")
        results = self._session.run(None, {name: available[name] for name in self._inputs})
        return dict(zip(self._outputs, results, strict=True))
