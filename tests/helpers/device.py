"""An application of ONNX Runtime's on-device training API.

It uses the native classes, because the Python package around them imports torch.
"""

import importlib
import tempfile
from pathlib import Path

import onnxruntime

from graphopt.on_device import read_state
from graphopt.on_device.checkpoint import read

_native = importlib.import_module("onnxruntime.capi._pybind_state")


class Device:
    """Trains with the files of `graphopt.export_on_device`."""

    def __init__(self, files, checkpoint=None, *, threads=1):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        memory = _native.OrtDevice.default_memory()
        device = _native.OrtDevice(_native.OrtDevice.cpu(), memory, 0)
        path = checkpoint or files.checkpoint
        self._checkpoint = _native.load_checkpoint(str(path))
        self.module = _native.Module(
            str(files.training_model), self._checkpoint, str(files.eval_model), device, options
        )
        self.optimizer = None
        if files.optimizer_model is not None:
            self.optimizer = _native.Optimizer(
                str(files.optimizer_model), self._checkpoint, device, options
            )
            # ONNX Runtime starts at 0.001, whatever the checkpoint says.
            self.optimizer.set_learning_rate(read(path).optimizer.learning_rate)

    def train(self, feeds):
        """One TrainStep; its outputs by name."""
        return self._run(self.module.train_step, feeds, training=True)

    def step(self, feeds):
        """A whole step, with either kind of files."""
        outputs = self.train(feeds)
        if self.optimizer is not None:
            self.optimizer.optimizer_step()
            self.module.lazy_reset_grad()
        return outputs

    def evaluate(self, feeds):
        """One EvalStep; its outputs by name."""
        return self._run(self.module.eval_step, feeds, training=False)

    def save(self, path):
        """Write ONNX Runtime's checkpoint."""
        _native.save_checkpoint(self._checkpoint, str(path), self.optimizer is not None)
        return path

    @property
    def state(self):
        """As in `graphopt.Session`."""
        with tempfile.TemporaryDirectory() as folder:
            return read_state(self.save(Path(folder) / "checkpoint"))

    def _run(self, run, feeds, *, training):
        names = self.module.input_names(training)
        assert set(names) <= set(feeds), names
        fetched = onnxruntime.capi.onnxruntime_pybind11_state.OrtValueVector()
        run([feeds[name] for name in names], fetched)
        outputs = [value.numpy() for value in fetched]
        return dict(zip(self.module.output_names(training), outputs, strict=True))
