"""Runs a training graph, and owns its state between the steps."""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx

from graphopt import _checks, _runtime, checkpoint, in_place
from graphopt._files import PathLike
from graphopt._runtime_session import captures, runtime_session, without_capture
from graphopt._step_io import step_io
from graphopt.carried import Carried, View, filled, initial_values, joined, parts
from graphopt.feeds import Feeds, check_labels, check_rate, feed_of, in_native_byte_order, sizes_of
from graphopt.finite import check_finite
from graphopt.graph import TrainingGraph, as_training_graph, check_state, save_model
from graphopt.inference import inference_model
from graphopt.on_device import read_state
from graphopt.soundness.errors import about
from graphopt.states import GLOBAL_STEP


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
            of threads or with profiling switched on. Where kernels are used, they are registered
            with it, once; a later session of the same options may still do without them. Without
            options, quantized operators are computed as they are written, and not in integers
            (the entry ``session.disable_quant_qdq``), no memory is planned ahead
            (``enable_mem_pattern`` is off), and where the backward pass computes something again,
            nodes run in the order of the file (``execution_order`` is PRIORITY_BASED): a step
            takes much less memory so.
        kernels: Use the fused CPU kernels where they are installed; False runs the ONNX function
            bodies.

    Attributes:
        inputs: What a step must be given, a list of `Feed`.
        graph: The `TrainingGraph`, without the values that parameters and running statistics
            start from: once they are placed, the session keeps none. `state` has today's.
        kernels: The names of the graph's functions that run as kernels, a sorted tuple; empty
            where their bodies run: without a compiler at installation, or with any provider but
            the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: ONNX Runtime is not installed.
        TypeError: ``graph`` is none of these, a parameter has the wrong dtype, or ``kernels`` is
            not a bool.
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
        kernels: bool = True,
    ) -> None:
        """See the class."""
        _checks.boolean("kernels", kernels)
        given = as_training_graph(graph)
        check_state(given)
        start = _Start(given.carried, parameters)
        self.graph = given.without_initial_values()
        self._runtime = _runtime.onnxruntime()
        self._providers = _runtime.checked_providers(providers)
        self._options, self._with_kernels = session_options, kernels
        self._device = _device(self._providers)
        model = self.graph.model.graph
        carried_inputs = {value.input for value in self.graph.carried}
        self._class_labels, self._rates = self.graph.class_labels, self.graph.fed_rates
        self._steps, self._step = self.graph.steps, 0
        self.inputs = [feed_of(value) for value in model.input if value.name not in carried_inputs]
        carried_outputs = {value.output for value in self.graph.carried}
        defaults = {
            feed.name: np.ones([dim for dim in feed.shape or () if isinstance(dim, int)], np.bool_)
            for feed in self.inputs
            if feed.name == "group_mask" and self.graph.group_mask
        }
        self._feeds = Feeds(self.inputs, defaults)
        self._reported = [v.name for v in model.output if v.name not in carried_outputs]
        self._in_place: set[str] = set()
        if _runtime.keeps_order(self._runtime):
            with about(self.graph):
                self._in_place = in_place.overwritable(self.graph.model, self.graph.carried)
        self._values: dict[str, Any] = {}
        self._next: dict[str, Any] = {}
        # A CUDA graph is captured at the first step, when all sizes are known.
        self._captures = any(map(captures, self._providers))
        # What the runtime computes elsewhere than where it is bound, by its place in the binding.
        self._elsewhere: list[int] = []
        self._open([without_capture(provider) for provider in self._providers])
        for value in self.graph.carried:
            self._place(value, start.of(value))
        del given, start
        _runtime.give_back_memory()
        self._check_captures()
        self._lock = threading.Lock()
        self._blocking = self.graph.use_locking

    def step(
        self, feeds: Mapping[str, Any], *, outputs: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run one training step.

        Args:
            feeds: An array for each of `inputs`, by name, of its shape and dtype; or an
                ``onnxruntime.OrtValue``, which may be on the device already, and whose labels are
                not looked at; call `wait` before you write to one that a step may still read.
                ``group_mask`` may be left out: all groups are updated then.
            outputs: The names of the outputs to return; all by default. On a GPU each is a copy
                that waits for the step, and with none a step returns before it has run.

        Returns:
            Every output of the graph that is not state, by name: ``loss``, ``updated`` and the
            outputs of the forward model; or those of ``outputs``.

        Raises:
            ValueError: A feed is missing, unknown, of the wrong shape or empty, a label is not a
                class, a learning rate is NaN, infinite or below zero, or there is no such output.
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
        values = self._feeds.checked(feeds)
        for labels in self._class_labels:
            if isinstance(array := values[labels.name], np.ndarray):
                check_labels(labels, array)
        for rate in self._rates:
            if isinstance(array := values[rate], np.ndarray):
                check_rate(rate, array)
        names = self._reported if outputs is None else self._checked_outputs(outputs)
        with self._exclusively():
            self._check_steps()
            try:
                if self._captures:
                    self._capture(values)
                reported = self._io.run(values, names)
                self._bring_home()
            except ValueError:
                raise
            except Exception as error:  # noqa: BLE001 - ONNX Runtime's have no common base
                raise RuntimeError(f"the step failed, the state is as it was: {error}") from None
            self._step += 1
            self._take_turns()
            return reported

    @property
    def state(self) -> dict[str, np.ndarray]:
        """A copy of everything that is carried from step to step, as NumPy arrays.

        Parameters and running statistics under their own names and in their own shapes,
        ``mean_square.<p>``, ``mean_grad.<p>``, ``moment.<p>`` (float32, shaped like the parameter)
        and ``global_step`` (int64 scalar), however the graph lays them out.
        """
        with self._exclusively():
            self._io.wait()
            return {
                view.name: part.copy()
                for value in self.graph.carried
                for view, part in parts(value, self._values[value.input].numpy())
            }

    def wait(self) -> None:
        """Return when all steps are done: on a GPU, one that returned may still be running.

        Reading outputs or the state waits too.
        """
        with self._exclusively():
            self._io.wait()

    def check(self) -> None:
        """Look for numbers in the state that are NaN or infinite: training is lost with them.

        `save_checkpoint` and `export` do it; between them, do it every so many steps. It takes as
        long as reading the state.

        Raises:
            FloatingPointError: There are some.
        """
        check_finite(self.state)

    def save_checkpoint(self, path: PathLike, *, force: bool = False) -> None:
        """Write the state to a safetensors file, atomically.

        Args:
            path: Of the file.
            force: Write also a state with NaN or infinite numbers.

        Raises:
            FloatingPointError: The state has NaN or infinite numbers.
            FileNotFoundError: The folder does not exist.
            ValueError: It is a file that the graph was read from.
        """
        self.graph.check_output(path)
        checkpoint.save(path, self._sound_state(force=force))

    def load_checkpoint(self, path: PathLike) -> None:
        """Continue from a checkpoint, bit for bit; if it does not fit, nothing changes.

        It may also be one of on-device training, with files of `export_on_device`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a checkpoint, or one of another graph.
        """
        state = read_state(path)
        expected = {v.name: (v.shape, c.dtype) for c in self.graph.carried for v in c.views}
        if problems := checkpoint.misfits(state, expected):
            raise ValueError(f"checkpoint '{path}' does not belong to this graph: {problems}")
        step = int(state[GLOBAL_STEP.name])
        if step < 0:
            raise ValueError(f"checkpoint '{path}' is damaged: its global_step is {step}")
        with self._exclusively():
            self._io.wait()
            self._step = step
            for value in self.graph.carried:
                self._write(value, joined(value, state))

    def export(self, path: PathLike, *, training: bool = False, force: bool = False) -> None:
        """Write the forward model with the trained parameters and running statistics, atomically.

        Args:
            path: Of the file.
            training: Write it in the mode in which it was given. By default it is written for
                inference: batch normalization uses its running statistics, and nothing is dropped.
            force: Write also a model with NaN or infinite numbers.

        Raises:
            FloatingPointError: The state has NaN or infinite numbers.
            FileNotFoundError: The folder does not exist.
            TypeError: ``training`` is not a bool.
            ValueError: The graph is an update alone; or the model draws a random mask that is no
                Dropout, so that what it is for inference is not known; or the file is one that the
                graph was read from.
        """
        _checks.boolean("training", training)
        self.graph.check_output(path)
        model = self.graph.forward(self._sound_state(force=force))
        save_model(model if training else inference_model(model), path)

    def _sound_state(self, *, force: bool) -> dict[str, np.ndarray]:
        """The state, if its numbers are numbers."""
        _checks.boolean("force", force)
        state = self.state
        if not force:
            check_finite(state)
        return state

    def __repr__(self) -> str:
        """The graph, the provider and the kernels."""
        used = f", kernels={list(self.kernels)}" if self.kernels else ""
        return f"Session({self.graph!r}, providers={self._session.get_providers()}{used})"

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

    def _checked_outputs(self, outputs: Collection[str]) -> list[str]:
        if isinstance(outputs, str):
            raise TypeError(f"outputs: got '{outputs}', expected a list such as ['{outputs}']")
        unknown = [name for name in outputs if name not in self._reported]
        if unknown:
            raise ValueError(
                f"outputs: got '{unknown[0]}', expected some of {', '.join(self._reported)}"
            )
        return list(outputs)

    def _open(self, providers: Sequence[Any], sizes: Mapping[str, int] | None = None) -> None:
        """Create the runtime's session, for these sizes of symbolic dimensions."""
        self._session, self.kernels = runtime_session(
            self.graph, providers, self._options, kernels=self._with_kernels, sizes=sizes or {}
        )
        self._binding = self._session.io_binding()
        self._io = step_io(self._runtime, self._session, self._binding, self._reported)

    def _check_captures(self) -> None:
        """Refuse to capture a graph that waits on the CPU, or whose state changes its place."""
        if self._captures and not any(name.startswith("Ready") for name in self.kernels):
            raise ValueError(
                "providers: enable_cuda_graph needs the fused kernels and a graph whose layout is "
                f"'foreach', got kernels {list(self.kernels)} and layout "
                f"'{self.graph.layout['name']}'; build the graph with "
                "provider='CUDAExecutionProvider', or leave it out"
            )
        if self._captures and self._next:
            raise ValueError(
                f"providers: enable_cuda_graph needs state that stays in its place, but "
                f"'{next(iter(self._next))}' cannot be overwritten; leave it out"
            )

    def _capture(self, values: Mapping[str, Any]) -> None:
        """Let the runtime capture the graph, which runs it more often, and put the state back."""
        kept = {name: held.numpy() for name, held in self._values.items()}
        try:
            self._io.run(values, self._reported)  # to find out what its outputs need
            before = self._io
            self._open(self._providers, sizes_of(self.inputs, values))
            self._io.take_outputs(before)
            for value in self.graph.carried:
                self._bind(value, self._values[value.input], self._values[value.input])
            self._io.run(values, self._reported)
        finally:
            for value in self.graph.carried:
                self._write(value, kept[value.input])
        self._captures = False

    def _place(self, value: Carried, array: np.ndarray) -> None:
        """Put a value into the runtime's memory and bind it to its input and output."""
        new = self._ort_value(array)
        self._values[value.input] = new
        if value.input in self._in_place:
            self._bind(value, new, new)
        else:
            self._next[value.input] = self._ort_value(array)
            self._bind(value, new, self._next[value.input])

    def _write(self, value: Carried, array: np.ndarray) -> None:
        """Put a value where the old one is: a captured graph knows no other place."""
        self._values[value.input].update_inplace(np.array(array, order="C"))

    def _ort_value(self, array: np.ndarray) -> Any:
        # On the CPU the OrtValue may share the array's memory, which must then be its own.
        return self._runtime.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), *self._device)

    def _bind(self, value: Carried, old: Any, new: Any) -> None:
        self._binding.bind_ortvalue_input(value.input, old)
        self._binding.bind_ortvalue_output(value.output, new)

    def _bring_home(self) -> None:
        """Copy to its place what the runtime has put elsewhere: on a GPU, what the CPU computed."""
        if self._io.is_new:
            outputs = zip(self.graph.carried, self._binding.get_outputs(), strict=False)
            self._elsewhere = [
                index
                for index, (value, got) in enumerate(outputs)
                if got.data_ptr() != self._new(value).data_ptr() and 0 not in value.shape
            ]
        if self._elsewhere:
            self._io.wait()
            outputs = self._binding.get_outputs()
            for index in self._elsewhere:
                self._new(self.graph.carried[index]).update_inplace(outputs[index].numpy())

    def _new(self, value: Carried) -> Any:
        """What holds the new value after a step."""
        return self._next.get(value.input, self._values[value.input])

    def _take_turns(self) -> None:
        for value in self.graph.carried:
            if value.input in self._next:
                old, new = self._values[value.input], self._next[value.input]
                self._values[value.input], self._next[value.input] = new, old
                self._bind(value, new, old)


def _device(providers: Sequence[Any]) -> tuple[str, int]:
    """Where the first provider keeps tensors."""
    first = providers[0]
    name, options = first if isinstance(first, tuple) else (first, {})
    return ("cuda", int(options.get("device_id", 0))) if name.startswith("CUDA") else ("cpu", 0)


class _Start:
    """What the carried values are before the first step, made one by one: they may be large."""

    def __init__(self, carried: Sequence[Carried], parameters: Mapping[str, Any] | None) -> None:
        """Check what is given.

        Raises:
            TypeError: It is no dict, or an array of it has the wrong dtype.
            ValueError: A name is unknown, an array has the wrong shape, or one is missing.
        """
        if not isinstance(parameters, Mapping | None):
            raise TypeError(
                f"parameters: got {type(parameters).__name__}, expected a dict of arrays by name"
            )
        given = dict(parameters or {})
        # Parameters and running statistics; a state of the optimizer starts as one number.
        own = [value for value in carried if not isinstance(value.initial, int | float)]
        names = dict.fromkeys(view.name for value in own for view in value.views)
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ValueError(
                f"parameters: {', '.join(repr(name) for name in unknown)} "
                f"{'is' if len(unknown) == 1 else 'are'} not trained by this graph; "
                f"it has {', '.join(repr(name) for name in names)}"
            )
        self._arrays = initial_values(carried)
        missing = [name for name in names if name not in given and name not in self._arrays]
        if missing:
            raise ValueError(
                f"parameters: no value for {', '.join(repr(name) for name in missing)}; neither an "
                "update graph nor the graph of a session holds any, give them with "
                "Session(graph, parameters={name: array})"
            )
        for value in own:
            for view in value.views:
                if view.name in given:
                    array = in_native_byte_order(np.asarray(given[view.name]))
                    self._arrays[view.name] = _checked_parameter(view, value.dtype, array)

    def of(self, value: Carried) -> np.ndarray:
        """The array of a carried value."""
        if isinstance(value.initial, int | float):
            return filled(value)
        return joined(value, self._arrays)


def _checked_parameter(view: View, dtype: str, array: np.ndarray) -> np.ndarray:
    if array.shape != view.shape:
        raise ValueError(
            f"parameter '{view.name}': got shape {list(array.shape)}, expected {list(view.shape)}"
        )
    if array.dtype.name != dtype:
        raise TypeError(
            f"parameter '{view.name}': got dtype {array.dtype.name}, expected {dtype}; "
            f"convert it, for example with .astype('{dtype}')"
        )
    return array
