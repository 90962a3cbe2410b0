"""Runs a training graph, and owns its state between the steps."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx

from graphopt import _runtime, checkpoint, in_place
from graphopt._files import PathLike
from graphopt.carried import Carried, View
from graphopt.feeds import check_labels, checked_feeds, feed_of, in_native_byte_order
from graphopt.graph import TrainingGraph, load, save_model


class Session:
    """Trains: one call of `step` runs the graph once.

    The state stays in ONNX Runtime's memory, on the device of the execution provider. A new value
    overwrites the old one where that is proven safe, otherwise the two take turns. A step that
    fails leaves the state as it was.

    Args:
        graph: A `TrainingGraph`, an ``onnx.ModelProto`` of one, or the path of one.
        parameters: Values to start from, by name; the others start from the model's own.
        providers: Execution providers in order of preference, as ONNX Runtime takes them, for
            example ``["CUDAExecutionProvider", "CPUExecutionProvider"]``; the CPU by default.
        session_options: An ``onnxruntime.SessionOptions`` of your own, for example with a number
            of threads or with profiling switched on.

    Attributes:
        inputs: What a step must be given, a list of `Feed`.
        graph: The `TrainingGraph`.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: ONNX Runtime is not installed.
        TypeError: ``graph`` is none of these, or a parameter has the wrong dtype.
        ValueError: The file is not a training graph; a parameter is unknown, missing or of the
            wrong shape; a provider is not available; the installed ONNX Runtime cannot run the
            graph.

    Threads: a graph that was built with ``use_locking=True`` may be used from several threads;
    steps and reads of the state then run one after the other. Without it, use from a second
    thread while the first is at work raises RuntimeError.

    Example:
        >>> session = Session("train.onnx")  # doctest: +SKIP
        >>> session.step({"x": x, "labels": labels})["loss"]  # doctest: +SKIP
        array(2.3025851, dtype=float32)
    """

    def __init__(
        self,
        graph: TrainingGraph | onnx.ModelProto | PathLike,
        parameters: Mapping[str, Any] | None = None,
        providers: Sequence[Any] | None = None,
        *,
        session_options: Any = None,
    ) -> None:
        """See the class."""
        self.graph = _as_graph(graph)
        initial = _initial_state(self.graph.carried, parameters)
        self._runtime = _runtime.onnxruntime()
        providers = _checked_providers(providers)
        self._device = _device(providers)
        self._session = _load(self._runtime, self.graph, providers, session_options)
        model = self.graph.model.graph
        carried_inputs = {value.input for value in self.graph.carried}
        self._class_labels = self.graph.class_labels
        self._steps, self._step = self.graph.steps, 0
        self.inputs = [feed_of(value) for value in model.input if value.name not in carried_inputs]
        carried_outputs = {value.output for value in self.graph.carried}
        self._defaults = {
            feed.name: np.ones([dim for dim in feed.shape or () if isinstance(dim, int)], np.bool_)
            for feed in self.inputs
            if feed.name == "group_mask" and self.graph.group_mask
        }
        self._reported = [v.name for v in model.output if v.name not in carried_outputs]
        self._in_place: set[str] = set()
        if _runtime.keeps_order(self._runtime):
            self._in_place = in_place.overwritable(self.graph.model, self.graph.carried)
        self._binding = self._session.io_binding()
        self._values: dict[str, Any] = {}
        self._next: dict[str, Any] = {}
        for value in self.graph.carried:
            self._place(value, initial[value.input])
        self._lock = threading.Lock()
        self._blocking = self.graph.use_locking

    def step(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run one training step.

        Args:
            feeds: An array for each of `inputs`, by name, of its shape and dtype. ``group_mask``
                may be left out: all groups are updated then.

        Returns:
            Every output of the graph that is not state, by name: ``loss``, ``updated`` and the
            outputs of the forward model.

        Raises:
            ValueError: A feed is missing, unknown, of the wrong shape or empty, or a label is not
                a class.
            TypeError: A feed has the wrong dtype.
            RuntimeError: There is no learning rate for this step; the runtime failed, for example
                on an index out of range; or another thread is using the session (see the class).
                The state is as it was.

        Example:
            >>> graph = update_graph(RMSProp([Parameter("w", ())], learning_rate=1.0, decay=0.0))
            >>> session = Session(graph, parameters={"w": np.float32(5)})
            >>> session.step({"w_grad": np.float32(2)})
            {'updated': array(True)}
            >>> session.state["w"]
            array(4., dtype=float32)
        """
        arrays = checked_feeds(self.inputs, feeds, self._defaults)
        for labels in self._class_labels:
            check_labels(labels, arrays[labels.name])
        with self._exclusively():
            self._check_steps()
            for name, array in arrays.items():
                self._binding.bind_cpu_input(name, array)
            for name in self._reported:
                self._binding.bind_output(name, "cpu")
            try:
                self._session.run_with_iobinding(self._binding)
            except Exception as error:  # noqa: BLE001 - ONNX Runtime's have no common base
                raise RuntimeError(f"the step failed, the state is as it was: {error}") from None
            self._step += 1
            self._take_turns()
            # A binding lists outputs in the order in which they were first bound: these are last.
            reported = self._binding.get_outputs()[-len(self._reported) :] if self._reported else []
            return {
                name: np.array(value.numpy())
                for name, value in zip(self._reported, reported, strict=True)
            }

    @property
    def state(self) -> dict[str, np.ndarray]:
        """A copy of everything that is carried from step to step, as NumPy arrays.

        Parameters and running statistics under their own names and in their own shapes,
        ``mean_square.<p>``, ``mean_grad.<p>``, ``moment.<p>`` (float32, shaped like the parameter)
        and ``global_step`` (int64 scalar), however the graph lays them out.
        """
        with self._exclusively():
            return {
                view.name: part
                for value in self.graph.carried
                for view, part in _parts(value, np.array(self._values[value.input].numpy()))
            }

    def save_checkpoint(self, path: PathLike) -> None:
        """Write the state to a safetensors file, atomically.

        Raises:
            FileNotFoundError: The folder does not exist.
        """
        checkpoint.save(path, self.state)

    def load_checkpoint(self, path: PathLike) -> None:
        """Continue from a checkpoint, bit for bit; if it does not fit, nothing changes.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a checkpoint, or one of another graph.
        """
        expected = [(view, c.dtype) for c in self.graph.carried for view in c.views]
        state = checkpoint.load(path, expected)
        step = int(state["global_step"])
        if step < 0:
            raise ValueError(f"checkpoint '{path}' is damaged: its global_step is {step}")
        with self._exclusively():
            self._step = step
            for value in self.graph.carried:
                self._place(value, _joined(value, state))

    def export(self, path: PathLike) -> None:
        """Write the forward model with the trained parameters and running statistics, atomically.

        Raises:
            FileNotFoundError: The folder does not exist.
            ValueError: The graph is an update alone.
        """
        save_model(self.graph.forward(self.state), path)

    def __repr__(self) -> str:
        """The graph and the provider."""
        return f"Session({self.graph!r}, providers={self._session.get_providers()})"

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=self._blocking):
            raise RuntimeError(
                "another thread is using this session; build the optimizer with use_locking=True "
                "to share a session between threads"
            )
        try:
            yield
        finally:
            self._lock.release()

    def _check_steps(self) -> None:
        if self._steps is not None and self._step >= self._steps:
            raise RuntimeError(
                f"step {self._step}: the learning rate has values for steps 0 to "
                f"{self._steps - 1} only; nothing was updated"
            )

    def _place(self, value: Carried, array: np.ndarray) -> None:
        """Put a value into the runtime's memory and bind it to its input and output."""
        new = self._ort_value(array)
        self._values[value.input] = new
        if value.input in self._in_place:
            self._bind(value, new, new)
        else:
            self._next[value.input] = self._ort_value(array)
            self._bind(value, new, self._next[value.input])

    def _ort_value(self, array: np.ndarray) -> Any:
        # On the CPU the OrtValue may share the array's memory, which must then be its own.
        return self._runtime.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), *self._device)

    def _bind(self, value: Carried, old: Any, new: Any) -> None:
        self._binding.bind_ortvalue_input(value.input, old)
        self._binding.bind_ortvalue_output(value.output, new)

    def _take_turns(self) -> None:
        for value in self.graph.carried:
            if value.input in self._next:
                old, new = self._values[value.input], self._next[value.input]
                self._values[value.input], self._next[value.input] = new, old
                self._bind(value, new, old)


def _as_graph(graph: TrainingGraph | onnx.ModelProto | PathLike) -> TrainingGraph:
    if isinstance(graph, TrainingGraph):
        return graph
    if isinstance(graph, onnx.ModelProto):
        return TrainingGraph(graph)
    if isinstance(graph, str | os.PathLike):
        return load(graph)
    raise TypeError(
        f"graph: got {type(graph).__name__}, "
        "expected a TrainingGraph, an onnx.ModelProto or the path of a training graph"
    )


def _checked_providers(providers: Sequence[Any] | None) -> list[Any]:
    if providers is None:
        return ["CPUExecutionProvider"]
    if isinstance(providers, str) or not all(isinstance(p, str | tuple) for p in providers):
        raise TypeError(
            f"providers: got {providers!r}, expected a list such as ['CPUExecutionProvider']"
        )
    if not providers:
        raise ValueError("providers: got an empty list, expected at least one")
    return list(providers)


def _device(providers: Sequence[Any]) -> tuple[str, int]:
    """Where the first provider keeps tensors."""
    first = providers[0]
    name, options = first if isinstance(first, tuple) else (first, {})
    return ("cuda", int(options.get("device_id", 0))) if name.startswith("CUDA") else ("cpu", 0)


def _load(
    runtime: Any, graph: TrainingGraph, providers: Sequence[Any], session_options: Any
) -> Any:
    available = runtime.get_available_providers()
    for provider in providers:
        name = provider[0] if isinstance(provider, tuple) else provider
        if name not in available:
            raise ValueError(
                f"providers: '{name}' is not available, "
                f"onnxruntime {runtime.__version__} has {', '.join(available)}"
            )
    source = graph.model  # without training_info and metadata, which the runtime does not read
    model = onnx.ModelProto(ir_version=source.ir_version, graph=source.graph)
    model.opset_import.extend(source.opset_import)
    model.functions.extend(source.functions)
    options = session_options
    if options is None:
        options = _runtime.session_options(runtime)
    elif not isinstance(options, runtime.SessionOptions):
        raise TypeError(
            f"session_options: got {type(options).__name__}, expected onnxruntime.SessionOptions"
        )
    try:
        return runtime.InferenceSession(model.SerializeToString(), options, providers=providers)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's have no common base
        raise ValueError(
            f"onnxruntime {runtime.__version__} cannot run this training graph: {error}"
        ) from None


def _initial_state(
    carried: Sequence[Carried], parameters: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    if not isinstance(parameters, Mapping | None):
        raise TypeError(
            f"parameters: got {type(parameters).__name__}, expected a dict of arrays by name"
        )
    given = dict(parameters or {})
    own = {value.input: value for value in carried if _is_named_value(value)}
    unknown = [name for name in given if name not in own]
    if unknown:
        raise ValueError(
            f"parameters: {', '.join(repr(name) for name in unknown)} "
            f"{'is' if len(unknown) == 1 else 'are'} not trained by this graph; "
            f"it has {', '.join(repr(name) for name in own)}"
        )
    missing = [c.input for c in carried if c.initial is None and c.input not in given]
    if missing:
        raise ValueError(
            f"parameters: no value for {', '.join(repr(name) for name in missing)}; an update "
            "graph holds none, give them with Session(graph, parameters={name: array})"
        )
    state = {}
    for value in carried:
        if value.input in given:
            state[value.input] = _checked_parameter(
                value, in_native_byte_order(np.asarray(given[value.input]))
            )
        elif isinstance(value.initial, np.ndarray):
            state[value.input] = value.initial
        else:
            state[value.input] = np.full(value.shape, value.initial, value.dtype)
    return state


def _is_named_value(value: Carried) -> bool:
    """Whether it is a parameter or a running statistic, not a state of the optimizer."""
    return not isinstance(value.initial, int | float)


def _checked_parameter(value: Carried, array: np.ndarray) -> np.ndarray:
    if array.shape != value.shape:
        raise ValueError(
            f"parameter '{value.input}': got shape {list(array.shape)}, "
            f"expected {list(value.shape)}"
        )
    if array.dtype.name != value.dtype:
        raise TypeError(
            f"parameter '{value.input}': got dtype {array.dtype.name}, expected {value.dtype}; "
            f"convert it, for example with .astype('{value.dtype}')"
        )
    return array


def _parts(value: Carried, array: np.ndarray) -> Iterator[tuple[View, np.ndarray]]:
    if len(value.views) == 1 and value.views[0].shape == array.shape:
        yield value.views[0], array
        return
    for view in value.views:
        part = array[view.offset : view.offset + view.size].reshape(view.shape)
        yield view, part.copy()


def _joined(value: Carried, state: Mapping[str, np.ndarray]) -> np.ndarray:
    if len(value.views) == 1:
        return state[value.views[0].name].reshape(value.shape)
    return np.concatenate([state[view.name].ravel() for view in value.views])
