"""A client that trains with ONNX Runtime's on-device training API, as a phone does."""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt import _runtime
from graphopt._files import PathLike, existing_file
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
from graphopt.manifest import Manifest
from graphopt.on_device import load_state, read_state
from graphopt.on_device.checkpoint import read

_TRAINING, _EVAL, _OPTIMIZER = "training_model.onnx", "eval_model.onnx", "optimizer_model.onnx"


class OnDeviceClient:
    """Trains with the files of `graphopt.export_on_device`, of either kind.

    A round is what an application on a phone does: load the files, set the values that the server
    sent, by name; train; save the checkpoint, and read the values by name. It needs
    onnxruntime-training.

    Args:
        directory: The folder with the files, which stay as they are.
        threads: How many threads a step takes; as many as there are cores by default.

    Raises:
        FileNotFoundError: A file is missing.
        ImportError: onnxruntime-training is not installed.
        ValueError: The files do not come from `graphopt.export_on_device`.
    """

    def __init__(self, directory: PathLike, *, threads: int | None = None) -> None:
        """See the class."""
        self._native = _runtime.training_package("OnDeviceClient", "and train with a SessionClient")
        self._folder, self._threads = Path(directory), threads
        said = json.loads(existing_file(self._folder / "graphopt.json").read_text("utf-8"))
        models = said["models"]
        self._checkpoint = existing_file(self._folder / "checkpoint")
        self._has_optimizer = said["update"] == _OPTIMIZER
        start = read_state(self._checkpoint)
        file = existing_file(self._folder / said["update"])
        manifest = Manifest.read(onnx.load(file), "optimizer", "groups", "parameters")
        axis_of = models[_TRAINING]["inputs"][0]["name"]
        self._files = ClientFiles(start, Groups.read(manifest), axis_of)

    @property
    def values(self) -> dict[str, Array]:
        """Parameters and running statistics that the checkpoint starts from, by name: a copy."""
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
        """Train from these values on batches of one's own; see `SessionClient.train`."""
        begun = self._files.begin(values, group_mask, state, seed)
        with tempfile.TemporaryDirectory() as folder:
            application = self._application(Path(folder), begun.loaded)
            return begun.trained(batches, application.step, application.state)

    def evaluate(
        self, values: Mapping[str, Array], batches: Iterable[Batch], metrics: Metrics
    ) -> tuple[int, dict[str, float]]:
        """Measure these values on batches of one's own; see `SessionClient.evaluate`.

        The outputs are ``loss`` and those that `graphopt.export_on_device` was told.
        """
        check_given(values, self._files.own)
        with tempfile.TemporaryDirectory() as folder:
            application = self._application(Path(folder), values)
            means = self._files.measured(
                batches, lambda batch: metrics(application.evaluate(batch), batch)
            )
        return means.examples, means.means

    def _application(self, folder: Path, start: Mapping[str, Array]) -> "_Application":
        checkpoint = folder / "checkpoint"
        load_state(self._checkpoint, start, output=checkpoint)
        optimizer = self._folder / _OPTIMIZER if self._has_optimizer else None
        return _Application(self._native, self._folder, checkpoint, optimizer, self._threads)


class _Application:
    """ONNX Runtime's training session with the files of a folder."""

    def __init__(
        self,
        native: Any,
        folder: Path,
        checkpoint: Path,
        optimizer: Path | None,
        threads: int | None,
    ) -> None:
        runtime = _runtime.onnxruntime()
        options = _runtime.session_options(runtime)
        options.intra_op_num_threads = threads or 0
        device = native.OrtDevice(native.OrtDevice.cpu(), native.OrtDevice.default_memory(), 0)
        self._native, self._checkpoint = native, checkpoint
        self._state = native.load_checkpoint(str(checkpoint))
        training, evaluation = str(folder / _TRAINING), str(folder / _EVAL)
        self._module = native.Module(training, self._state, evaluation, device, options)
        self._optimizer = None
        if optimizer is not None:
            self._optimizer = native.Optimizer(str(optimizer), self._state, device, options)
            # ONNX Runtime starts at 0.001, whatever the checkpoint says.
            said = read(checkpoint).optimizer
            assert said is not None  # the checkpoint of such files has one
            self._optimizer.set_learning_rate(said.learning_rate)

    def step(self, feeds: Batch) -> dict[str, Array]:
        """A whole training step: the loss, and whether it has updated, where it says so."""
        outputs = self._run(self._module.train_step, feeds, training=True)
        if self._optimizer is not None:
            self._optimizer.optimizer_step()
            self._module.lazy_reset_grad()
        return {name: outputs[name] for name in (LOSS, UPDATED) if name in outputs}

    def evaluate(self, feeds: Batch) -> dict[str, Array]:
        """What the evaluation model reports, by name."""
        return self._run(self._module.eval_step, feeds, training=False)

    def state(self) -> dict[str, Array]:
        """The state of a session, from ONNX Runtime's own checkpoint."""
        self._native.save_checkpoint(
            self._state, str(self._checkpoint), self._optimizer is not None
        )
        return read_state(self._checkpoint)

    def _run(self, run: Any, feeds: Batch, *, training: bool) -> dict[str, Array]:
        names = self._module.input_names(training)
        if lacking := [name for name in names if name not in feeds]:
            raise ValueError(f"a batch has no '{lacking[0]}', got {sorted(feeds)}")
        fetched = self._native.OrtValueVector()
        run([np.asarray(feeds[name]) for name in names], fetched)
        outputs = [value.numpy() for value in fetched]
        return dict(zip(self._module.output_names(training), outputs, strict=True))
